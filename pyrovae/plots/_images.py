"""Plots of images: data, reconstructions, samples."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from pyrovae._checks import as_data, require_at_least, require_instance, shown
from pyrovae._compat.torch import own_settings
from pyrovae.plots._axes import check_frame, new_axes
from pyrovae.plots._inputs import as_picture, by_name, require_method


@own_settings()
def images(
    x: Tensor,
    image_shape: Sequence[int],
    *,
    columns: int = 10,
    row_labels: Sequence[str] = (),
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Plot a grid of grey images.

    Args:
        x: ``(N, *event_shape)`` with values in [0, 1], row by row.
        image_shape: ``(1, H, W)`` or ``(H, W)``.
        columns: images per row.
        row_labels: a label for each row.
        title: above the grid.
        ax: where to draw.

    Example:
        >>> import torch
        >>> images(torch.rand(20, 64), (1, 8, 8)).get_images()[0].get_array().shape
        (19, 91)
    """
    check_frame(title, ax)
    height, width = as_picture(image_shape)
    require_at_least(1, columns=columns)
    require_instance(tuple | list, row_labels=row_labels)
    x = as_data(x, "x", dtype=torch.float32).detach().cpu()
    if x[0].numel() != height * width:
        raise ValueError(
            f"x has {x[0].numel()} numbers a datum; image_shape {tuple(image_shape)} needs {height * width}."
        )
    pictures = x.float().reshape(-1, height, width).clamp(0, 1)
    rows = math.ceil(len(pictures) / columns)
    if len(row_labels) > rows or not all(isinstance(label, str) for label in row_labels):
        raise ValueError(f"row_labels must be text for up to {rows} row(s); got {shown(row_labels)}.")
    canvas = torch.full((rows * (height + 1) + 1, columns * (width + 1) + 1), 0.5)
    for i, picture in enumerate(pictures):
        r, c = divmod(i, columns)
        top, left = r * (height + 1) + 1, c * (width + 1) + 1
        canvas[top : top + height, left : left + width] = picture
    ax = ax or new_axes(0.7 * columns + 1.2, 0.75 * rows * height / width + 0.6)
    ax.imshow(canvas.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], title=title)
    ax.set_yticks([(r + 0.5) * (height + 1) for r in range(len(row_labels))], list(row_labels))
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def strips(rows: Mapping[str, Tensor], image_shape: Sequence[int], **options: Any) -> Axes:
    """Plot a grid of images with a row for each of several batches of one size, by name."""
    x = torch.cat([row.cpu() for row in rows.values()])
    return images(x, image_shape, columns=len(x) // len(rows), row_labels=tuple(rows), **options)


def reconstructions(
    model: Any, x: Tensor, image_shape: Sequence[int], *, title: str = "", ax: Axes | None = None
) -> Axes:
    """Plot data above their reconstructions: the mean of p(x | z) at one draw z ~ q(z | x), or an autoencoder's.

    Args:
        model: a :class:`~pyrovae.VAEModel`, a :class:`~pyrovae.zoo.Autoencoder`, or several by name, a row for each.
        x: data ``(N, *event_shape)``; one column each.
        image_shape: ``(1, H, W)`` or ``(H, W)``.
        title: above the grid.
        ax: where to draw.

    Example:
        >>> import pyrovae, torch
        >>> vae = pyrovae.VAE((64,), 2, hidden=(8,))
        >>> reconstructions(vae, torch.zeros(5, 64), (8, 8), title="untrained").get_title()
        'untrained'
    """
    check_frame(title, ax)
    as_picture(image_shape)
    models = by_name(model, "model") if isinstance(model, Mapping) else {"decoded": model}
    single = not isinstance(model, Mapping)
    require_method("reconstruct", **{"model" if single else f"model[{name!r}]": m for name, m in models.items()})
    x = as_data(x, "x")
    rows = {"data": x, **{name: m.reconstruct(x) for name, m in models.items()}}
    return strips(rows, image_shape, title=title, ax=ax)


def denoising(
    models: Mapping[str, Any],
    x: Tensor,
    noisy: Tensor,
    image_shape: Sequence[int],
    *,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Plot clean data, the same with noise, and each model's reconstruction of the latter.

    Args:
        models: models with ``reconstruct(x)``, by name, such as :class:`~pyrovae.zoo.Autoencoder`; a row each.
        x: data ``(N, *event_shape)``; one column each.
        noisy: the same data with noise.
        image_shape: ``(1, H, W)`` or ``(H, W)``.
        title: above the grid.
        ax: where to draw.

    Raises:
        ValueError: ``noisy`` has another shape than ``x``.

    Example:
        >>> import pyrovae, torch
        >>> models = {"plain": pyrovae.zoo.linear_autoencoder((64,), 4)}
        >>> ax = denoising(models, torch.zeros(5, 64), torch.rand(5, 64), (8, 8))
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['clean', 'noisy', 'plain']
    """
    check_frame(title, ax)
    as_picture(image_shape)
    models = by_name(models, "models")
    require_method("reconstruct", **{f"models[{name!r}]": m for name, m in models.items()})
    x, noisy = (as_data(of, name, dtype=torch.float32) for name, of in (("x", x), ("noisy", noisy)))
    if noisy.shape != x.shape:
        raise ValueError(f"noisy has shape {tuple(noisy.shape)} and x has {tuple(x.shape)}; they must be equal.")
    rows = {"clean": x, "noisy": noisy, **{name: m.reconstruct(noisy) for name, m in models.items()}}
    return strips(rows, image_shape, title=title, ax=ax)


def samples(
    model: Any, image_shape: Sequence[int], *, n: int = 20, seed: int = 0, title: str = "", ax: Axes | None = None
) -> Axes:
    """Plot means of p(x | z) at draws z ~ p(z).

    Args:
        model: a :class:`~pyrovae.VAE`.
        image_shape: ``(1, H, W)`` or ``(H, W)``.
        n: how many.
        seed: seed of the draws.
        title: above the grid.
        ax: where to draw.

    Example:
        >>> import pyrovae
        >>> samples(pyrovae.VAE((64,), 2, hidden=(8,)), (8, 8), title="untrained").get_title()
        'untrained'
    """
    check_frame(title, ax)
    as_picture(image_shape)
    require_method("sample_latents", model=model)
    return images(model.decode(model.sample_latents(n, seed=seed)), image_shape, title=title, ax=ax)
