"""``load``: a data set by name."""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pyrovae._checks import as_path, lookup, require_at_least, require_flag, require_one_of
from pyrovae._hash import content_hash
from pyrovae.datasets import _files as files
from pyrovae.datasets import _sources as sources
from pyrovae.datasets._sprites import sprites

DATASETS: dict[str, Callable[..., sources.Raw]] = {
    "digits": sources.digits,
    "mnist": sources.mnist,
    "fashion_mnist": sources.fashion_mnist,
    "caltech101_silhouettes": sources.caltech101_silhouettes,
    "frey_faces": sources.frey_faces,
    "sprites": sprites,
}

Binarize = Literal["dynamic", "static", "threshold"]


@dataclass(frozen=True)
class Data:
    """A data set with fixed splits.

    Attributes:
        name: the data set's.
        binarize: how it was binarised, or ``None`` for intensities in [0, 1].
        train: training data ``(N, *event_shape)``, float32; with dynamic binarisation still intensities.
        val: validation data.
        test: test data.
        image_shape: ``(1, H, W)``.
        batch_transform: what ``fit`` applies to every training batch (dynamic binarisation), or ``None``.
        labels: class labels by split; empty where the data set has none.
        factors: by split, the factors that the images were made from ``(N, F)``, int64; empty where nobody knows them.
        factor_names: their names.
    """

    name: str
    binarize: Binarize | None
    train: Tensor
    val: Tensor
    test: Tensor
    image_shape: tuple[int, int, int]
    batch_transform: Callable[[Tensor], Tensor] | None = None
    labels: dict[str, Tensor] = field(default_factory=dict)
    factors: dict[str, Tensor] = field(default_factory=dict)
    factor_names: tuple[str, ...] = ()

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return tuple(self.train.shape[1:])

    @property
    def hash(self) -> str:
        """Content hash of the three splits."""
        return content_hash(self.train, self.val, self.test)


def binarized(x: Tensor) -> Tensor:
    """Draw pixels from their intensities, anew at every call, by comparison with uniform draws."""
    return (torch.rand_like(x) < x).to(x.dtype)


def load(
    name: str,
    *,
    binarize: Binarize | None = None,
    flatten: bool = True,
    seed: int = 0,
    root: str | os.PathLike[str] | None = None,
    download: bool = True,
    progress: bool = True,
    **options: int,
) -> Data:
    """Load a data set: ``digits`` (comes with scikit-learn), ``mnist``, ``fashion_mnist``,
    ``caltech101_silhouettes``, ``frey_faces``, or ``sprites``.

    Binarisation of an intensity p: ``"static"`` draws Bernoulli(p) once; ``"dynamic"`` does so for validation
    and test data and leaves the training data to be drawn anew in every batch; ``"threshold"`` is p > ½. The
    draws depend on ``seed`` alone, so that results are comparable: a :class:`~pyrovae.MarginalResult`
    carries the hash of its data.

    Sprites are drawn by formula: one shape on a 32×32 image for every combination of five factors, on a grid of
    3·4·8·8·8 = 6144 by default, after dSprites (Matthey et al. 2017). The factors, whose values count from 0, are
    ``shape`` (square, ellipse, heart), ``scale``, ``rotation``, ``x`` (to the right) and ``y`` (upwards). A shape turns
    in equal steps through the angle after which it looks the same (90°, 180°, 360°): in dSprites all turn through 360°,
    and a square's rotation cannot be read off its image. Rotation is periodic: its last value is next to its first.

    Args:
        name: the data set.
        binarize: ``"dynamic"``, ``"static"``, ``"threshold"`` or ``None``.
        flatten: vectors ``(H·W,)``; otherwise images ``(1, H, W)``, for the conv networks.
        seed: seed of the binarisation.
        root: folder with the files, in place of ``PYROVAE_DATA``.
        download: fetch a missing file into the cache.
        progress: show a progress bar while downloading.
        options: of ``sprites``: ``size`` in pixels, and the numbers of ``scales``, ``rotations`` and ``positions``
            along each axis.

    Raises:
        ValueError: an unknown name, binarisation or option, or a damaged file.
        FileNotFoundError: a file is missing and was not, or could not be, downloaded.
    """
    make = lookup(DATASETS, name, "data set")
    if binarize is not None:
        require_one_of(get_args(Binarize), binarize=binarize)
    require_flag(flatten=flatten, download=download, progress=progress)
    require_at_least(0, seed=seed)
    if root is not None:
        as_path(root, "root")
    known = [name for name in inspect.signature(make).parameters if name != "read"]
    for option in options:
        if option not in known:
            takes = f"takes {', '.join(known)}" if known else "takes no options"
            raise ValueError(f"unknown option {option!r} of the data set {make.__name__!r}, which {takes}.")
    raw = make(partial(files.read, root=root, download=download, progress=progress), **options)
    height, width = raw.images["train"].shape[1:]
    generator = np.random.default_rng(seed)
    splits = {}
    for split in ("test", "val", "train"):  # test first, so that its draws depend on nothing else
        x = raw.images[split]
        if binarize == "threshold":
            x = (x > 0.5).astype(np.float32)
        elif binarize == "static" or (binarize == "dynamic" and split != "train"):
            x = (generator.random(x.shape, dtype=np.float32) < x).astype(np.float32)
        shape = (-1, height * width) if flatten else (-1, 1, height, width)
        splits[split] = torch.from_numpy(np.ascontiguousarray(x.reshape(shape)))
    return Data(
        name=make.__name__,
        binarize=binarize,
        **splits,
        image_shape=(1, height, width),
        batch_transform=binarized if binarize == "dynamic" else None,
        labels={split: torch.from_numpy(y.astype(np.int64)) for split, y in raw.labels.items()},
        factors={split: torch.from_numpy(f.astype(np.int64)) for split, f in raw.factors.items()},
        factor_names=raw.factor_names,
    )
