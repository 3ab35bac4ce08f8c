"""Plots of decoded grids and walks through the latent space, which show what latents mean."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from pyrovae._checks import require_at_least, require_instance, require_within, shown
from pyrovae._compat.torch import own_settings
from pyrovae.model import VAEModel
from pyrovae.plots._axes import check_frame
from pyrovae.plots._images import images
from pyrovae.plots._inputs import as_dims, as_picture, require_method, single_site
from pyrovae.priors import StandardNormal

_NUM_QUANTILE_DRAWS = 20_000  # from a prior without an inverse distribution function
_MAX_TICKS = 5  # along each axis


@own_settings()
def manifold(
    model: Any,
    image_shape: Sequence[int],
    *,
    n: int = 20,
    dims: Sequence[int] = (0, 1),
    extent: Sequence[float] | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Plot decoded images over a plane of latents, spaced so that every image stands for the same share of the prior:
    the n × n midpoints of equal slices go through the prior's inverse distribution function (Kingma & Welling 2014,
    arXiv:1312.6114, fig. 4).

    Latents that are not on the axes stay at the prior's medians.

    Args:
        model: a :class:`~pyrovae.VAEModel` with a single, continuous latent site; with ``extent``, anything with
            ``decode(z)`` or ``inverse_transform(z)``, such as an autoencoder with two latents.
        image_shape: ``(1, H, W)`` or ``(H, W)``.
        n: images per side.
        dims: the latent dimensions across and up.
        extent: left, right, bottom, top of an evenly spaced grid instead, in units of the latents.
        title: above the grid.
        ax: where to draw.

    Raises:
        ValueError: several latent sites or a discrete one, dimensions that are not there, an empty ``extent``.

    Example:
        >>> import pyrovae
        >>> ax = manifold(pyrovae.VAE((64,), 2, hidden=(8,)), (8, 8), n=3)
        >>> ax.get_xlabel(), ax.get_images()[0].get_array().shape
        ('z[0]', (28, 28))
    """
    check_frame(title, ax)
    height, width = as_picture(image_shape)
    require_at_least(2, n=n)
    if extent is None:
        *quantiles, medians = _prior_quantiles(model, torch.cat([(torch.arange(n) + 0.5) / n, torch.tensor([0.5])]))
        first, second = as_dims(dims, len(medians), (2,))
        across, up = torch.stack(quantiles)[:, [first, second]].T
    else:
        if not isinstance(extent, (tuple, list)) or len(extent) != 4:
            raise ValueError(f"extent must be (left, right, bottom, top); got {shown(extent)}.")
        require_within("(-inf, inf)", **{f"extent[{i}]": e for i, e in enumerate(extent)})
        left, right, bottom, top = (float(e) for e in extent)
        if not (left < right and bottom < top):
            raise ValueError(f"extent must be left < right, bottom < top; got {tuple(extent)}.")
        medians = torch.zeros(getattr(model, "latent_dim", None) or 1 + max(dims))
        first, second = as_dims(dims, len(medians), (2,))
        across, up = torch.linspace(left, right, n), torch.linspace(bottom, top, n)
    z = medians.repeat(n, n, 1)
    z[..., first], z[..., second] = across, up.flip(0).unsqueeze(1)
    ax = images(_decode(model, z.flatten(0, 1)), image_shape, columns=n, title=title, ax=ax)
    at = np.unique(np.linspace(0, n - 1, min(n, _MAX_TICKS)).round().astype(int))
    ax.set_xticks((at + 0.5) * (width + 1), [f"{v:.2g}" for v in across[at].tolist()])
    ax.set_yticks((n - at - 0.5) * (height + 1), [f"{v:.2g}" for v in up[at].tolist()])
    ax.set(xlabel=f"z[{first}]", ylabel=f"z[{second}]")
    return ax


@own_settings()
def traversals(
    model: Any,
    x: Tensor,
    image_shape: Sequence[int],
    *covariates: Any,
    dims: Sequence[int] | None = None,
    values: Sequence[float] | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Plot decoded images along one latent at a time, the others held at the datum's posterior mean.

    A row is a datum and a dimension: pass one datum to see what every dimension does, several and one of ``dims`` to
    see whether it does the same to all.

    Args:
        model: a :class:`~pyrovae.VAEModel` with a single, continuous latent site; with ``values``, anything with
            ``encode`` and ``decode`` or ``transform`` and ``inverse_transform``.
        x: data ``(N, *event_shape)``.
        image_shape: ``(1, H, W)`` or ``(H, W)``.
        covariates: passed to model and guide.
        dims: latent dimensions; by default all.
        values: what the latent is set to, one column each; by default nine quantiles of the prior, 1 % to 99 %.
        title: above the grid.
        ax: where to draw.

    Raises:
        ValueError: several latent sites or a discrete one, dimensions that are not there, no values.

    Example:
        >>> import pyrovae, torch
        >>> ax = traversals(pyrovae.VAE((64,), 3, hidden=(8,)), torch.zeros(1, 64), (8, 8), values=(-1, 0, 1))
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['z[0]', 'z[1]', 'z[2]']
    """
    check_frame(title, ax)
    as_picture(image_shape)
    if values is not None:
        require_instance(tuple | list, values=values)
        require_within("(-inf, inf)", **{f"values[{i}]": v for i, v in enumerate(values)})
    require_method("encode" if hasattr(model, "encode") else "transform", model=model)
    encode = getattr(model, "encode", None) or model.transform
    mean = _vectors(encode(x, *covariates)).detach().cpu()
    chosen = as_dims(range(mean.shape[1]) if dims is None else dims, mean.shape[1])
    if values is not None:
        grid = torch.tensor([float(v) for v in values]).reshape(-1, 1).expand(-1, mean.shape[1])
        if not len(grid):
            raise ValueError("values is empty: name at least one value for the latent.")
        labels = [f"{v:.3g}" for v in values]
    else:
        shares = torch.linspace(0.01, 0.99, 9)
        grid = _prior_quantiles(model, shares, *covariates)
        same = bool((grid - grid[:, :1]).abs().max() < 1e-5)
        labels = [f"{v:.2f}" for v in grid[:, 0].tolist()] if same else [f"{100 * s:.0f} %" for s in shares.tolist()]
    rows = [(i, d) for i in range(len(mean)) for d in chosen]
    z = torch.stack([mean[i] for i, _ in rows]).unsqueeze(1).repeat(1, len(grid), 1)
    for row, (_, d) in enumerate(rows):
        z[row, :, d] = grid[:, d]
    names = [f"z[{d}]" for _, d in rows]
    if len(mean) > 1:
        names = [f"datum {i}, z[{d}]" if len(chosen) > 1 else f"datum {i}" for i, d in rows]
    decoded = _decode(model, z.flatten(0, 1), *_repeated(covariates, len(mean), len(chosen) * len(grid)))
    ax = images(decoded, image_shape, columns=len(grid), row_labels=names, title=title, ax=ax)
    width = tuple(image_shape)[-1]
    ax.set_xticks([(c + 0.5) * (width + 1) for c in range(len(grid))], labels)
    ax.set_xlabel(f"value of z[{chosen[0]}]" if len(chosen) == 1 else "value of the row's latent")
    return ax


def _decode(model: Any, z: Tensor, *covariates: Any) -> Tensor:
    """Decode latents with whichever method the model has for that."""
    require_method("decode" if hasattr(model, "decode") else "inverse_transform", model=model)
    decode: Callable[..., Tensor] = getattr(model, "decode", None) or model.inverse_transform
    with torch.no_grad():
        return decode(z, *covariates)


def _vectors(latents: Any) -> Tensor:
    """Check that a model's latents are vectors ``(N, Z)`` of one continuous site, and return them."""
    z = single_site(latents)
    if z.dim() != 2:
        raise ValueError(f"the latent site must be of vectors; it is of shape {tuple(z.shape[1:])}.")
    return z


def _prior_quantiles(model: Any, shares: Tensor, *covariates: Any) -> Tensor:
    """Quantiles of the prior of every latent dimension, ``(len(shares), Z)``: exact for the standard normal, else of
    draws.
    """
    if not isinstance(model, VAEModel):
        name = type(model).__name__
        raise TypeError(
            f"model: {name} has no prior whose quantiles could be taken: say where to go by extent= or values=."
        )
    rows = next((len(c) for c in covariates if isinstance(c, Tensor) and c.dim()), 1)
    times = -(-_NUM_QUANTILE_DRAWS // rows)
    draws = _vectors(model.sample_latents(rows * times, *_repeated(covariates, rows, times), seed=0)).float().cpu()
    if isinstance(getattr(model, "prior", None), StandardNormal):
        return torch.special.ndtri(shares).unsqueeze(1).expand(-1, draws.shape[1])
    return torch.quantile(draws, shares, dim=0)


def _repeated(covariates: tuple[Any, ...], rows: int, times: int) -> list[Any]:
    """Covariates of ``rows`` data, each of them ``times`` times."""
    return [
        c.repeat_interleave(times, 0) if isinstance(c, Tensor) and c.dim() and len(c) == rows else c for c in covariates
    ]
