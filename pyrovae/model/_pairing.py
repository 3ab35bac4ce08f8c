"""Checks that model and guide are a pair: that their sites' terms sum to log p(x, z) - log q(z | x)."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta, Unit
from torch import Tensor
from torch.distributions import Distribution, biject_to

from pyrovae.distributions._capabilities import capabilities, innermost
from pyrovae.distributions._density import is_everywhere_positive, mask_of
from pyrovae.distributions._normals import rounding_error

Sites = Mapping[str, dict[str, Any]]
_NUM_CHECKED_DRAWS = 8  # draws at which a transformation is compared with the density that it states
_MAX_ROUNDING_ERROR = 0.05  # nats that rounding may add to log q of a draw


class NotAPair(ValueError):
    """An error for a model and a guide whose sites' terms do not sum to log p(x, z) - log q(z | x), so that no
    estimator takes them. Pyro's own objectives may, which mean something else by them.
    """


def check_pair(guide: Sites, model: Sites) -> None:
    """Raise :class:`NotAPair` for a factor, observations in the guide or none in the model, a latent site that only one
    of them has, an auxiliary site that is not transformed into the latents, unequal scales, or a mask in one of them.

    Args:
        guide: the guide's random sites.
        model: the model's, replayed.
    """
    for program, sites in (("model", model), ("guide", guide)):
        for name, site in sites.items():
            if isinstance(innermost(site["fn"]), Unit):
                raise NotAPair(
                    f"site {name!r} of the {program} is a pyro.factor, which is no part of log p(x, z) - log q(z | x): "
                    f"put it into the objective, or return it from VAEModel.penalty."
                )
            if program == "guide" and site["is_observed"]:
                raise NotAPair(f"site {name!r} of the guide is observed: only the model observes data.")
    hidden = {name: site for name, site in model.items() if not site["is_observed"]}
    if len(hidden) == len(model):
        raise NotAPair("the model observes nothing: give its data site obs=x.")
    for name in hidden:
        if name not in guide:
            raise NotAPair(f"site {name!r} of the model is missing from the guide: sample it there too.")
    auxiliary = None
    for name, site in guide.items():
        if name not in hidden:
            if not site["infer"].get("is_auxiliary"):
                raise NotAPair(
                    f"site {name!r} of the guide is missing from the model: sample it there too, or transform it into "
                    f"the latents by Delta sites with their log_density, and mark it infer={{'is_auxiliary': True}}."
                )
            if mask_of(site["fn"], site["mask"]) is not True:
                raise NotAPair(f"site {name!r} of the guide is auxiliary and masked: log q(z | x) needs its density.")
            auxiliary = name
        elif site["infer"].get("is_auxiliary"):
            raise NotAPair(f"site {name!r} of the guide is a latent of the model: take is_auxiliary off it.")
        elif auxiliary is not None and not isinstance(innermost(site["fn"]), Delta):
            raise NotAPair(
                f"site {auxiliary!r} of the guide is auxiliary and {name!r} is drawn after it: log q(z | x) would need "
                f"the integral over {auxiliary!r}. What follows it must be pyro.distributions.Delta(value, "
                f"log_density=-log|det ∂value/∂{auxiliary}|)."
            )
    if auxiliary is not None and auxiliary == list(guide)[-1]:
        raise NotAPair(f"site {auxiliary!r} of the guide is auxiliary, but no latent is made from it: remove it.")
    scales = [site["scale"] for site in (*guide.values(), *model.values())]
    if any(isinstance(s, Tensor) for s in scales) or len(set(scales)) > 1:
        raise NotAPair(
            f"the sites are scaled differently ({', '.join({**guide, **model})}): poutine.scale would silently change "
            f"log p(x). Put an annealing weight into the objective, ELBO(beta=...)."
        )
    for name, (of_guide, of_model) in masks_of(guide, hidden).items():
        if of_guide is True or of_model is True:
            raise NotAPair(
                f"site {name!r} is masked in the {'model' if of_guide is True else 'guide'} only, so that its density "
                f"would be counted on one side: put it under the same mask in both."
            )


def masks_of(guide: Sites, hidden: Sites) -> dict[str, tuple[Tensor | bool, Tensor | bool]]:
    """The masks in guide and model of each latent site that has one in either."""
    both = {n: tuple(mask_of(s[n]["fn"], s[n]["mask"]) for s in (guide, hidden)) for n in hidden}
    return {name: pair for name, pair in both.items() if pair[0] is not True or pair[1] is not True}  # type: ignore[misc]


def check_masks(masks: Mapping[str, tuple[Tensor | bool, Tensor | bool]]) -> None:
    """Raise :class:`NotAPair` where a latent site's masks in guide and model differ."""
    for name, pair in masks.items():
        of_guide, of_model = torch.broadcast_tensors(*(torch.as_tensor(mask) for mask in pair))
        if not torch.equal(of_guide.cpu(), of_model.cpu()):
            raise NotAPair(f"site {name!r} is masked differently in model and guide: the two masks must be equal.")


def narrower_sites(distributions: Mapping[str, Distribution], others: Mapping[str, Distribution]) -> list[str]:
    """The sites at which a distribution has mass on a part of the reals, and the other one on all of them."""
    partial = {site: p for site, p in distributions.items() if site in others and not is_everywhere_positive(p)}
    can = {site: capabilities(p) for site, p in partial.items()}
    return [s for s in partial if is_everywhere_positive(others[s]) and not (can[s].discrete or can[s].point_mass)]


def check_precision(posterior: Mapping[str, Distribution]) -> None:
    """Raise a ``ValueError`` where a site's own draws cannot be scored in its precision."""
    for name, q in posterior.items():
        core = innermost(q)
        if not (wrong := rounding_error(core)) < _MAX_ROUNDING_ERROR:
            raise ValueError(
                f"log q of a draw at site {name!r} is wrong by {wrong:.3g} nats: its covariance is nearly degenerate "
                f"for {str(core.loc.dtype).removeprefix('torch.')}. Use pyrovae.distributions.MultivariateNormal, "
                f"which scores its draws from their noise, a floor under the scales, or model.double()."
            )


def check_auxiliary(guide: Callable[..., Any], prior: Mapping[str, Distribution], *args: Any) -> None:
    """Raise :class:`NotAPair` unless the Delta sites after auxiliary ones state the density of their transformation, at
    several draws for every datum.

    Args:
        guide: ``guide(x, *covariates)``.
        prior: of the latent sites.
        args: ``(x, *covariates)`` of some data.
    """
    b, signs = len(args[0]), []
    for _ in range(_NUM_CHECKED_DRAWS):
        drawn = poutine.trace(guide).get_trace(*args).nodes
        auxiliary = [n for n, s in drawn.items() if s["type"] == "sample" and s["infer"].get("is_auxiliary")]
        sources = {name: drawn[name]["value"].detach().clone().requires_grad_() for name in auxiliary}
        at = list(sources.values())
        with torch.enable_grad():
            trace = poutine.trace(poutine.condition(guide, data=sources)).get_trace(*args)
            made = {n: trace.nodes[n] for n in prior if isinstance(innermost(trace.nodes[n]["fn"]), Delta)}
            free, stated = [], torch.zeros(b)
            for name, site in made.items():
                bijection = biject_to(prior[name].support)
                z, event_dim = site["value"], len(site["fn"].event_shape)
                u = bijection.inv(z)
                free.append(_by_datum(u, event_dim, b))
                density = innermost(site["fn"]).log_density
                for term in (bijection.log_abs_det_jacobian(u, z), density):
                    stated = stated.to(term) + _by_datum(term, max(term.dim() - (z.dim() - event_dim), 0), b).sum(1)
            u, n = torch.cat(free, 1), sum(s.numel() for s in at) // b
            jacobian = torch.zeros(b, n, n).to(u)
            for d in range(n if u.requires_grad and u.shape[1] == n else 0):  # one pass for all data
                rows = torch.autograd.grad(u[:, d].sum(), at, retain_graph=True, materialize_grads=True)
                parts = zip(sources, rows, strict=True)
                jacobian[:, d] = torch.cat([_by_datum(g, len(drawn[k]["fn"].event_shape), b) for k, g in parts], 1)
        sign, log_det = torch.linalg.slogdet(jacobian)
        signs.append(sign)
        off = stated.detach() + log_det
        bad = ~(off.abs() <= 1e-3 * (n + log_det.abs())) | ~log_det.isfinite() | (sign != signs[0])
        if bool(bad.any()):
            raise NotAPair(
                f"the latents made from the auxiliary site(s) {', '.join(map(repr, sources))} of the guide state a "
                f"log_density that is not -log|det| of their transformation (it is off by {float(off[bad][0]):.4g}). "
                f"Give each Delta log_density=-log|det ∂value/∂auxiliary|, of a map that can be undone."
            )


def _by_datum(value: Tensor, event_dim: int, b: int) -> Tensor:
    """Rearrange ``(*plates, B, *event)`` as ``(B, D)``."""
    value = value.expand(*value.shape[: value.dim() - event_dim - 1], b, *value.shape[value.dim() - event_dim :])
    return value.movedim(value.dim() - event_dim - 1, 0).reshape(b, -1)
