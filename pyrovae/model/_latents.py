"""``Latents``: the draws of all latent sites, in one shape."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor

from pyrovae._checks import as_real, require_broadcasting, require_instance, require_one_of
from pyrovae._compat.torch import register_pytree_node

Data = Num[Tensor, "batch *event"]
PerDatum = Float[Tensor, "particles batch"]  # a number for each particle and datum
VectorPerDatum = Float[Tensor, "particles batch dim"]


class Latents(dict[str, Tensor]):
    """Draws by latent site, each ``(K, *plates, B, *event)``: K particles, the plates that the model nests outside the
    data (size 1 at sites outside them), B data. Nobody else needs to know where which dimension is.

    Args:
        sites: the draws.
        num_plates: how many plates there are between particles and data.
    """

    def __init__(self, sites: Mapping[str, Any], num_plates: int) -> None:
        super().__init__(sites)
        self.num_plates = num_plates

    def __repr__(self) -> str:
        return f"Latents({ {site: tuple(z.shape) for site, z in self.items()} })"

    def by_datum(self, site: str, value: Tensor | None = None) -> VectorPerDatum:
        """The site's draws as a vector for each particle and datum: plates and event flattened.

        Args:
            site: name.
            value: what broadcasts to the draws' shape, to be arranged likewise: a mean of the site, say.
        """
        require_one_of(tuple(self), site=site)
        if value is not None:
            require_instance(Tensor, value=value)
            require_broadcasting(value=value, latents=self[site])
        z = self[site] if value is None else value.broadcast_to(self[site].shape)
        return z.movedim(self.data_dim, 1).flatten(2) if z.dim() > 2 else z.unsqueeze(2)

    def flat(self) -> VectorPerDatum:
        """All sites' draws as one vector for each particle and datum."""
        return torch.cat([self.by_datum(site) for site in self], 2)

    def unflattened(self, flat: VectorPerDatum) -> "Latents":
        """Undo :meth:`flat` for other draws of the same sites, of as many particles and data."""
        data, sites, start = self.data_dim, {}, 0
        for site, z in self.items():
            rest = [n for i, n in enumerate(z.shape) if i not in (0, data)]
            stop = start + torch.Size(rest).numel()
            sites[site] = flat[..., start:stop].reshape(*flat.shape[:2], *rest).movedim(1, data)
            start = stop
        return Latents(sites, self.num_plates)

    @property
    def data_dim(self) -> int:
        """The dimension of the data."""
        return 1 + self.num_plates

    def draws(self, index: slice | Tensor) -> "Latents":
        """Select particles."""
        return self._indexed((index,))

    def rows(self, index: slice | Tensor | int) -> "Latents":
        """Select data; a single one, by its number, has no dimension for it."""
        return self._indexed((slice(None),) * self.data_dim + (index,))

    def _indexed(self, index: tuple[Any, ...]) -> "Latents":
        return Latents({site: z[index] for site, z in self.items()}, self.num_plates)


def as_latents(sites: Mapping[str, dict[str, Any]], max_plate_nesting: int) -> Latents:
    """Arrange the values of a trace's sites in one shape, with size 1 for particles and plates that a site lacks."""
    values = {}
    for name, site in sites.items():
        z = site["value"]
        missing = 1 + max_plate_nesting + len(site["fn"].event_shape) - z.dim()
        values[name] = z.reshape((1,) * missing + z.shape)
    return Latents(values, max_plate_nesting - 1)


def over_plates(term: Tensor) -> PerDatum:
    """Sum ``(K, *plates, B)`` over the plates between particles and data."""
    return term.flatten(1, -2).sum(1) if term.dim() > 2 else term


def per_datum(term: Tensor, num_plates: int) -> PerDatum:
    """Sum ``(K, *plates, B, ...)`` over the plates and whatever follows the data."""
    return term.movedim(1 + num_plates, 1).flatten(2).sum(2) if term.dim() > 2 else term


def of_one_particle(z: Tensor, max_plate_nesting: int) -> Tensor:
    """Rearrange draws of one particle as a program sees them, which runs without the particles' plate."""
    z = z[0]
    for _ in range(max_plate_nesting - 1):
        if z.shape[0] > 1:
            break  # an outer plate that the site is in; plates of size 1 inside it have their place
        z = z[0]
    return z


register_pytree_node(
    Latents,
    lambda latents: (list(latents.values()), (tuple(latents), latents.num_plates)),
    lambda sites, context: Latents(dict(zip(context[0], sites, strict=True)), context[1]),
)


def check_latents(latents: Any) -> None:
    """Raise a ``TypeError`` unless these are tensors by site; a ``ValueError`` for one that is not of real numbers."""
    require_instance(Mapping, latents=latents)
    named = {f"latents[{site!r}]": z for site, z in latents.items()}
    require_instance(Tensor, **named)
    for name, z in named.items():
        as_real(z, name)
