"""How gradients go from the model to the guide through the draws: as they come, weighted, or not at all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pyrovae._compat.pyro import Messenger, is_sample_site
from pyrovae.distributions._capabilities import Capabilities, capabilities, family
from pyrovae.distributions._flow import Flow
from pyrovae.model._pairing import Sites

Draws = Literal["attached", "weighted", "detached"]


class Detached(Messenger):
    """Sites draw without gradients, whatever they could do: for the score-function estimator.

    Raises:
        ValueError: from a site without density, or whose density is known at its own draws alone.
    """

    def _pyro_sample(self, message: dict[str, Any]) -> None:
        if is_sample_site(message) and not (message["is_observed"] or message["done"]):
            if _with_density(message["name"], message).inverse is None:
                raise ValueError(
                    f"site {message['name']!r} of the guide ({family(message['fn'])}) has no inverse, so that "
                    f"log q(z | x) is known at its own draws alone, which the score function takes no gradient "
                    f"through: use ELBO(gradient='stl') or IWAE(gradient='dreg'), or a family with can_score."
                )
            with torch.no_grad():
                message["value"] = message["fn"](*message["args"], **message["kwargs"])
            message["done"] = True


class Gate:
    """What draws pass on their way from guide to model: the gradient that comes back is weighted.

    Attributes:
        weight: ``(K, B)``, by particle and datum; set before the gradient is taken, ``None`` for none.
    """

    def __init__(self) -> None:
        self.weight: Tensor | None = None

    def passed(self, site: Mapping[str, Any], max_plate_nesting: int) -> Tensor:
        """The draw of a site, as the model is given it."""
        z, event_dim = site["value"], len(site["fn"].event_shape)
        if not z.requires_grad:
            return z
        z = z.view_as(z)

        def weighted(gradient: Tensor) -> Tensor:
            if (weight := self.weight) is None:
                return gradient
            k, b = weight.shape
            shape = (k, *(1,) * (max_plate_nesting - 1), b, *(1,) * event_dim)
            return gradient * weight.reshape(shape if k > 1 else shape[max_plate_nesting:])

        z.register_hook(weighted)
        return z


@dataclass(frozen=True)
class Paths:
    """The ways through the draws of one run.

    Attributes:
        sites: the guide's, with what they drew.
        draws: how gradients pass through them to the guide.
        again: log q(z | x) by site at values of all of them, by another run of the guide.
        gate: what the draws have passed, where they are ``"weighted"``.
    """

    sites: Sites
    draws: Draws
    again: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    gate: Gate


def _with_density(name: str, site: Mapping[str, Any]) -> Capabilities:
    """What a site of the guide can do; a ``ValueError`` where it has no density."""
    can = capabilities(site["fn"])
    if site["infer"].get("is_auxiliary") or can.point_mass:
        raise ValueError(f"site {name!r} of the guide has no density of its own: use gradient='reparameterized'.")
    return can


def check_scores(sites: Sites) -> None:
    """Raise a ``ValueError`` for guides whose log q(z | x) has no gradient through the draws alone."""
    for name, site in sites.items():
        can = _with_density(name, site)
        if not can.rsample:
            raise ValueError(
                f"site {name!r} ({family(site['fn'])}) is not reparameterised: use ELBO(gradient='score') or "
                f"IWAE(gradient='vimco')."
            )
        if can.inverse is None and (len(sites) > 1 or not isinstance(site["fn"], Flow)):
            raise ValueError(
                f"site {name!r} ({family(site['fn'])}) has no inverse, so that log q(z | x) is known at its own draws "
                f"alone: use gradient='reparameterized', or a family with can_score."
            )


def scores(
    sites: Sites, score: Callable[[str, Tensor], Tensor], again: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The gradients of log q(z | x) with respect to the draws, the parameters held fixed, by site.

    Args:
        sites: of the guide, with their draws.
        score: log q of one site at a value, from its distribution as it is.
        again: log q by site at values of all of them, by another run of the guide: with several sites the later depend
            on the values of those before.
    """
    if len(sites) == 1:
        ((name, site),) = sites.items()
        if isinstance(site["fn"], Flow) and (own := site["fn"].score(site["value"])) is not None:
            return {name: own}
    with torch.enable_grad():
        leaves = {name: site["value"].detach().requires_grad_() for name, site in sites.items()}
        if len(sites) == 1:
            total = score(name, leaves[name]).sum()
        else:
            total = torch.stack([term.sum() for term in again(leaves).values()]).sum()
        gradients = torch.autograd.grad(total, list(leaves.values()))
    return dict(zip(leaves, gradients, strict=True))
