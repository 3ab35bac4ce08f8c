"""Factorised normals, one set of parameters for every datum."""

import math
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal, biject_to

from pyrovae.distributions._capabilities import capabilities, innermost_support, varies
from pyrovae.evaluation.inference._per_datum import Draws, PerDatum
from pyrovae.model import Latents, VAEModel
from pyrovae.model._latents import per_datum

_INITIAL_DRAWS = 100


class MeanField(PerDatum):
    """Independent normals in unconstrained space at every latent site, started at moments of the guide's draws.

    Locations and scales are in units of the first scales, so that one learning rate suits every latent.

    Args:
        model: the model.
        part: ``(x, *covariates)`` of B data.

    Raises:
        ValueError: a latent site that is discrete, or whose support is not stated or depends on other latents.
    """

    def __init__(self, model: VAEModel, part: tuple[Any, ...]) -> None:
        draws, _ = model.draw_posterior(*part, num_particles=_INITIAL_DRAWS)
        terms = model.log_terms(*part)
        again = model.log_terms(*part).prior if any(varies(_support(p)) for p in terms.prior.values()) else {}
        self._sites, self._num_plates = {}, draws.num_plates
        for site, prior in terms.prior.items():
            support = _continuous(site, prior, again)
            bijection = biject_to(support)
            u = bijection.inv(draws[site])
            inside = _possible(support, draws[site], u)
            loc, scale = _moments(torch.where(inside, u, torch.nan))
            mask = torch.as_tensor(terms.masks[site][1], device=u.device) if site in terms.masks else None
            shift, log_stretch = torch.zeros_like(loc), torch.zeros_like(loc)
            parameters = shift.requires_grad_(), log_stretch.requires_grad_()
            self._sites[site] = bijection, support, mask, loc, scale, *parameters
        self.parameters = [(p, 1.0) for *_, shift, log_stretch in self._sites.values() for p in (shift, log_stretch)]

    def at(self, parameters: Sequence[Tensor]) -> Self:
        other, pairs = copy(self), zip(parameters[::2], parameters[1::2], strict=True)
        other._sites = {s: (*self._sites[s][:-2], *pair) for s, pair in zip(self._sites, pairs, strict=True)}
        other.parameters = [(p, 1.0) for p in parameters]
        return other

    def draw(self, num_particles: int) -> Draws:
        latents: dict[str, Tensor] = {}
        log_q: Any = 0.0
        for site, (bijection, _, mask, origin, unit, shift, log_stretch) in self._sites.items():
            loc, scale = origin + unit * shift, unit * log_stretch.exp()
            u = loc + scale * torch.randn(num_particles, *loc.shape, dtype=loc.dtype, device=loc.device)
            z = latents[site] = bijection(u)
            # The gradient passes through the draws alone: less noise near the optimum (Roeder et al. 2017).
            log_q = log_q + self._score(loc.detach(), scale.detach(), bijection, mask, u, z)
        return Latents(latents, self._num_plates), log_q

    def log_prob(self, latents: Latents) -> Float[Tensor, "particles batch"]:
        log_q: Any = 0.0
        for site, (bijection, support, mask, origin, unit, shift, log_stretch) in self._sites.items():
            z = latents[site]
            u = bijection.inv(z)
            inside = _possible(support, z, u)
            loc, scale = origin + unit * shift, unit * log_stretch.exp()
            log_q = log_q + self._score(loc, scale, bijection, mask, torch.where(inside, u, 0.0), z)
            impossible = ~(inside if mask is None else inside | ~mask)
            log_q = torch.where(per_datum(impossible.to(u.dtype), self._num_plates) > 0, -torch.inf, log_q)
        return log_q

    def widened(self, factor: float) -> "MeanField":
        """The same with scales so many times as large."""
        other = copy(self)
        other._sites = {
            site: (*fixed, unit, shift, log_stretch + math.log(factor))
            for site, (*fixed, unit, shift, log_stretch) in self._sites.items()
        }
        return other

    def _score(
        self, loc: Tensor, scale: Tensor, bijection: Any, mask: Tensor | None, u: Tensor, z: Tensor
    ) -> Float[Tensor, "particles batch"]:
        terms = Normal(loc, scale).log_prob(u), -bijection.log_abs_det_jacobian(u, z)
        if mask is not None:  # over an event at once, the log-determinant has fewer dimensions
            over = [mask.flatten(t.dim() - u.dim()).all(-1) if t.dim() < u.dim() else mask for t in terms]
            terms = torch.where(over[0], terms[0], 0.0), torch.where(over[1], terms[1], 0.0)
        return per_datum(terms[0], self._num_plates) + per_datum(terms[1], self._num_plates)


def _support(p: Any) -> Any:
    return capabilities(p).support


def _continuous(site: str, prior: Any, again: Mapping[str, Any]) -> Any:
    """The support of a latent site, the same at another draw of the other latents."""
    support = _support(prior)
    if support is None:
        raise ValueError(
            f"latent site {site!r} does not state its support ({type(prior).__name__}), which the mean-field normal "
            f"is mapped to: define it on the class, or ask for families=('own',)."
        )
    if support.is_discrete:
        raise ValueError(
            f"latent site {site!r} is discrete ({type(prior).__name__}), and the mean-field normal needs continuous "
            f"latents: sum over it exactly, or relax it (e.g. RelaxedOneHotCategorical)."
        )
    if varies(support):
        one, two = (vars(innermost_support(s)).values() for s in (support, _support(again[site])))
        if any(isinstance(a, Tensor) and not torch.equal(a, b) for a, b in zip(one, two, strict=True)):
            raise ValueError(
                f"the support of latent site {site!r} depends on other latents, so that no mean-field normal can be "
                f"mapped to it: ask for families=('own',)."
            )
    return support


def _possible(support: Any, z: Tensor, u: Tensor) -> Tensor:
    """Whether entries of ``z``, or whole events, lie where the bijection of the support goes; ``u`` is its inverse."""
    inside = innermost_support(support).check(z)
    inside = inside.reshape(*inside.shape, *[1] * (u.dim() - inside.dim()))
    return (inside & u.isfinite()).broadcast_to(u.shape)


def _moments(u: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the draws that are not NaN; 0 and 1 where there are none."""
    loc = u.nanmean(0)
    scale = (u - loc).square().nanmean(0).sqrt()
    return loc.nan_to_num(0.0), torch.where(scale > 0, scale.clamp(min=1e-4), 1.0)
