"""How good a latent space is to walk in: continuity between codes, completeness away from them.

Both take functions, so that autoencoders, which have no density, are measured like VAEs.
"""

from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae._checks import as_data, require_at_least, require_callable, require_instance, require_seed
from pyrovae._compat.torch import own_settings
from pyrovae._random import seeded

_AT_ONCE = 2**22  # numbers decoded, or compared, at once

Decode = Callable[[Float[Tensor, "n latent"]], Float[Tensor, "n *event"]]


@own_settings()
@torch.no_grad()
def continuity(
    decode: Decode,
    codes: Float[Tensor, "data latent"],
    *,
    num_pairs: int = 500,
    steps: int = 100,
    seed: int | None = 0,
) -> pd.DataFrame:
    """How evenly what is decoded changes along straight lines between the codes of pairs of data.

    A line is cut into equal steps, and the Euclidean distance between decoded neighbours measured. ``evenness`` is the
    mean step over the largest: 1 where the decoded datum moves at constant speed, 1/``steps`` where it jumps
    once and stands still else. For a continuous decoder it tends to mean speed over top speed as ``steps`` grows; for
    one with jumps, to 0. ``detour`` is the path's length over the distance of its ends: 1 is the shortest way.

    Args:
        decode: from codes ``(n, Z)`` to data ``(n, *event_shape)``: ``vae.decode``, or an autoencoder's
            ``inverse_transform``.
        codes: of at least two data, ``(N, Z)``: ``vae.encode(x)``, or ``transform(x)``.
        num_pairs: lines, between random pairs of different data.
        steps: of each line.
        seed: seed of the choice of pairs.

    Returns:
        One row per pair: ``evenness``, ``largest_step``, ``path`` (length), ``distance`` (of the ends), ``detour``. The
        mean over pairs, with its standard error, is what to report. Where nothing changes on the way, ``evenness`` and
        ``detour`` are NaN, which pandas leaves out of means: report how many such pairs there are.

    Raises:
        ValueError: fewer than two codes, values that are not finite, or arguments under their minimum.
    """
    require_at_least(1, num_pairs=num_pairs)
    require_at_least(2, steps=steps)
    require_seed(seed=seed)
    require_callable(decode=decode)
    codes, num_pairs, steps = _flat(codes, "codes"), int(num_pairs), int(steps)
    if len(codes) < 2:
        raise ValueError("codes holds one code; pairs need at least two.")
    with seeded(seed):
        first = torch.randint(len(codes), (num_pairs,))
        other = torch.randint(len(codes) - 1, (num_pairs,))
    other = other + (other >= first).long()
    weights = torch.linspace(0.0, 1.0, steps + 1, dtype=codes.dtype, device=codes.device).reshape(-1, 1, 1)
    pieces = []
    size = max(1, _AT_ONCE // ((steps + 1) * _decode(decode, codes[:1]).shape[1]))
    for start, end in zip(codes[first].split(size), codes[other].split(size), strict=True):
        along = torch.lerp(start, end, weights)
        decoded = _decode(decode, along.flatten(0, 1)).unflatten(0, along.shape[:2])
        pieces.append((decoded.diff(dim=0).norm(dim=-1), (decoded[-1] - decoded[0]).norm(dim=-1)))
    moves = torch.cat([m for m, _ in pieces], dim=1)
    distance, path, largest = torch.cat([d for _, d in pieces]), moves.sum(0), moves.amax(0)
    columns = {
        "evenness": path / steps / largest,
        "largest_step": largest,
        "path": path,
        "distance": distance,
        "detour": path / distance,
    }
    return pd.DataFrame({name: value.cpu().numpy() for name, value in columns.items()})


@own_settings()
@torch.no_grad()
def completeness(
    decode: Decode,
    z: Float[Tensor, "draws latent"],
    test: Float[Tensor, "test *event"],
    train: Float[Tensor, "train *event"],
) -> pd.DataFrame:
    """How far what latents decode to lies from real data, in units of how far real data lie from each other.

    ``nearest`` is the Euclidean distance of a decoded latent to the nearest test datum; ``relative`` is that over the
    mean distance of test data to the nearest of as many training data. Near or under 1: latents drawn this way decode
    to something like data. A decoder gives means, which are smoother than data and lie nearer to them: decode codes of
    data too, and compare.

    Nearness alone is no completeness: one good image for all latents would be near. How many different ``test_index``
    there are says on how many data the latents fall.

    Args:
        decode: as in :func:`continuity`.
        z: latents to judge, ``(n, Z)``: draws from the prior; for what has none, from a box around the codes.
        test: data that the model has not seen, ``(N, *event_shape)``.
        train: at least as many others.

    Returns:
        One row per latent: ``nearest``, ``relative``, ``test_index`` of the nearest test datum. The mean of
        ``relative``, and how many different ``test_index`` there are, is what to report.

    Raises:
        ValueError: empty sets, values that are not finite, fewer training than test data, test data that all are
            training data.
    """
    require_callable(decode=decode)
    z, test, train = _flat(z, "z"), _flat(test, "test"), _flat(train, "train")
    test, train = (t.to(torch.promote_types(test.dtype, train.dtype)) for t in (test, train))
    if len(train) < len(test):
        raise ValueError(
            f"train holds {len(train)} data and test {len(test)}: the distance from one to the other is compared with "
            f"that from latents to test, so train must hold at least as many."
        )
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"train has {train.shape[1]} numbers a datum and test {test.shape[1]}; they must match.")
    apart = _nearest(test, train[: len(test)])[0].mean()
    if not apart > 0:
        raise ValueError("every test datum is among the training data: pass data that the model has not seen.")
    size = max(1, _AT_ONCE // max(test.shape[1], len(test)))
    decoded = [_decode(decode, part).to(test) for part in z.split(size)]
    if decoded[0].shape[1] != test.shape[1]:
        raise ValueError(f"decode gives {decoded[0].shape[1]} numbers a datum and test has {test.shape[1]}.")
    found = [_nearest(part, test) for part in decoded]
    nearest = torch.cat([distance for distance, _ in found])
    columns = {"nearest": nearest, "relative": nearest / apart, "test_index": torch.cat([i for _, i in found])}
    return pd.DataFrame({name: value.cpu().numpy() for name, value in columns.items()})


def _flat(value: Any, name: str) -> Float[Tensor, "n numbers"]:
    x = as_data(value, name)
    if x.dim() < 2:
        raise ValueError(f"{name} must have shape (n, ...); got {tuple(x.shape)}.")
    return x.detach().flatten(1)


def _decode(decode: Decode, z: Tensor) -> Float[Tensor, "n numbers"]:
    decoded = decode(z)
    require_instance(Tensor, **{"what decode gives": decoded})
    if decoded.shape[:1] != z.shape[:1]:
        raise ValueError(f"decode gives shape {tuple(decoded.shape)} for {len(z)} codes: one datum for each is needed.")
    return as_data(decoded, "what decode gives").flatten(1)


def _nearest(x: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to the nearest, and which it is."""
    exact = "donot_use_mm_for_euclid_dist"  # squares of differences: by products, small distances drown in rounding
    parts = x.split(max(1, _AT_ONCE // len(among)))
    found = [torch.cdist(part, among, compute_mode=exact).min(dim=1) for part in parts]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
