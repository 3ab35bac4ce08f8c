"""The narrow waist: one run of the guide and one of the model, split into per-site, per-datum log-densities.

Objectives and estimators are functions of :class:`LogTerms`; only this file reads Pyro traces.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import pyro
from jaxtyping import Float
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from pyrovae.distributions.independent import innermost
from pyrovae.distributions.kl import kl_by_dimension
from pyrovae.model.modes import without_statements

PARTICLES = "_particles"


@dataclass(frozen=True)
class LogTerms:
    """Log-densities in nats, each of shape ``(K, B)``: K particles of B data. They are computed when first read: a
    closed-form KL needs neither log p(z) nor log q(z | x).

    Attributes:
        log_likelihood: log p(x | z) by observed site.
        log_prior: log p(z) by latent site.
        log_posterior: log q(z | x) by guide site.
        latents: the draws by latent site, ``(K, B, *event)`` (no leading K when one particle was drawn).
        observed: the values of the observed sites.
        likelihood: distributions of the observed sites.
        prior: distributions of the latent sites in the model, in the model's order.
        posterior: distributions of the sites in the guide, in the guide's order.
        shape: ``(K, B)``.
        masked: sites under ``poutine.mask``.
    """

    log_likelihood: Mapping[str, Float[Tensor, "particles batch"]]
    log_prior: Mapping[str, Float[Tensor, "particles batch"]]
    log_posterior: Mapping[str, Float[Tensor, "particles batch"]]
    latents: Mapping[str, Tensor]
    observed: Mapping[str, Tensor]
    likelihood: Mapping[str, Distribution]
    prior: Mapping[str, Distribution]
    posterior: Mapping[str, Distribution]
    shape: tuple[int, int]
    masked: frozenset[str] = frozenset()

    def read(self) -> "LogTerms":
        """Compute every log-density now.

        Raises:
            ValueError: one that is not a number for each particle and datum.
        """
        for terms in (self.log_likelihood, self.log_prior, self.log_posterior):
            dict(terms)
        return self

    @cached_property
    def log_weight(self) -> Float[Tensor, "particles batch"]:
        """log p(x, z) - log q(z | x)."""
        return _total(self.log_likelihood) + _total(self.log_prior) - _total(self.log_posterior)

    @property
    def reconstruction(self) -> Float[Tensor, "particles batch"]:
        """log p(x | z), summed over observed sites."""
        return _total(self.log_likelihood)

    @property
    def not_reparameterized(self) -> list[str]:
        """Guide sites through whose draws no gradient passes."""
        return [name for name, q in self.posterior.items() if not q.has_rsample]

    def closed_form_kl(self, site: str) -> Float[Tensor, "particles batch"] | None:
        """KL(q(z) ‖ p(z)) at ``site`` given the sites before it, or ``None`` where it is not known.

        Valid only where everything that precedes the site in the model also precedes it in the guide:
        otherwise p(z | parents) depends on draws made after z, and averaging over q(z) alone is wrong.
        """
        if site not in self.prior or site not in self.posterior or site in self.masked:
            return None
        before_in_guide = _before(site, self.posterior)
        if not set(_before(site, self.prior)) <= set(before_in_guide):
            return None
        if isinstance(innermost(self.posterior[site]), Delta):  # the registered formula leaves out its log_density
            return None
        try:
            kl = kl_divergence(self.posterior[site], self.prior[site])
        except NotImplementedError:
            return None
        # Plates nested between the particles and the data are summed, as in the log-densities.
        return _to_particles_and_batch(kl, self.shape[0] if kl.dim() > 1 else 1, self.shape[1]).expand(self.shape)

    def closed_form_kl_by_dimension(self, site: str) -> Tensor | None:
        """The terms of :meth:`closed_form_kl`, shaped like the site's latents, where they are known (see
        :func:`~pyrovae.distributions.kl.kl_by_dimension`); else ``None``.
        """
        if self.closed_form_kl(site) is None:
            return None
        return kl_by_dimension(self.posterior[site], self.prior[site])

    def kl(self, site: str, *, closed_form: bool = True) -> Float[Tensor, "particles batch"]:
        """KL at ``site``: in closed form where known and wanted, else log q(z | x) - log p(z) at the draws."""
        exact = self.closed_form_kl(site) if closed_form else None
        if exact is not None:
            return exact
        log_q = self.log_posterior[site]
        return log_q - self.log_prior[site] if site in self.log_prior else log_q


def log_terms(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    *covariates: Any,
    num_particles: int = 1,
    max_plate_nesting: int = 1,
) -> LogTerms:
    """Run the guide once and the model once, replayed, over a plate of particles outside the model's plates.

    The data plate must be dimension -1 of every sample site. Scales (``poutine.scale``, subsampled plates)
    do not enter: the terms are per datum. A mask does.

    Args:
        model: ``model(x, *covariates)``.
        guide: ``guide(x, *covariates)``.
        x: data ``(B, *event_shape)``.
        covariates: passed on unchanged.
        num_particles: K.
        max_plate_nesting: how many plates the model nests; the particle plate goes outside them.

    Raises:
        ValueError: a site outside the data plate, a latent site that only one of model and guide has, a
            model that observes nothing, or a scale that differs between sites; a term of a wrong shape when it is read.
    """
    drawn = _trace(guide, x, covariates, num_particles, max_plate_nesting)
    scored = _trace(poutine.replay(model, trace=drawn), x, covariates, num_particles, max_plate_nesting)
    return _split(drawn, scored, num_particles, len(x), max_plate_nesting)


def draw(
    program: Callable[..., Any],
    x: Tensor,
    *covariates: Any,
    num_particles: int = 1,
    max_plate_nesting: int = 1,
) -> tuple[dict[str, Tensor], Float[Tensor, "particles batch"], Float[Tensor, "particles batch"]]:
    """Run a guide, or a model as the proposal it is: what it draws and how it scores that.

    Args:
        program: ``guide(x, *covariates)`` or ``model(x, *covariates)``.
        x: data ``(B, *event_shape)``.
        covariates: passed on unchanged.
        num_particles: K.
        max_plate_nesting: as in :func:`log_terms`.

    Returns:
        The draws by latent site, ``(K, B, *event)``; the sum of their log-densities; and that of the observed sites.
    """
    trace = _trace(program, x, covariates, num_particles, max_plate_nesting)
    latents: dict[str, Tensor] = {}
    hidden, observed = x.new_zeros(num_particles, len(x)), x.new_zeros(num_particles, len(x))
    for name, site in sample_sites(trace).items():
        _refuse_plates(name, site, num_particles, max_plate_nesting)
        log_prob = _log_prob(name, site, num_particles, len(x))
        if site["is_observed"]:
            observed = observed + log_prob
        else:
            hidden = hidden + log_prob
            latents[name] = padded(site, max_plate_nesting + 1)
    return latents, hidden, observed


def padded(site: dict[str, Any], batch_dims: int) -> Tensor:
    """A site's value with at least so many dimensions before those of its event."""
    value = site["value"]
    missing = batch_dims + len(site["fn"].event_shape) - value.dim()
    return value.reshape((1,) * missing + value.shape) if missing > 0 else value


def log_joint(
    program: Callable[..., Any],
    x: Tensor,
    *covariates: Any,
    latents: Mapping[str, Tensor],
    max_plate_nesting: int = 1,
) -> Float[Tensor, "particles batch"]:
    """log p(x, z) of a model, or log q(z | x) of a guide, at given latents ``(K, B, *event)``, in nats.

    Args:
        program: ``model(x, *covariates)`` or ``guide(x, *covariates)``.
        x: data ``(B, *event_shape)``.
        covariates: passed on unchanged.
        latents: a value for every latent site; with ``max_plate_nesting`` above 1, shaped as the guide
            draws them. Where there are none, K is 1.
        max_plate_nesting: as in :func:`log_terms`.

    Raises:
        ValueError: a latent site without a value.
    """
    k = next(iter(latents.values())).shape[0] if latents else 1
    conditioned = poutine.condition(program, data=dict(latents))
    with pyro.plate(PARTICLES, k, dim=-max_plate_nesting - 1), without_statements():
        trace = poutine.trace(conditioned).get_trace(x, *covariates)
    total: Any = 0.0
    for name, site in sample_sites(trace).items():
        if not site["is_observed"]:
            raise ValueError(f"latents has no value for site {name!r}; it has {sorted(latents)}.")
        _refuse_plates(name, site, k, max_plate_nesting)
        total = total + _log_prob(name, site, k, len(x))
    return total


def _trace(
    function: Callable[..., Any], x: Tensor, covariates: tuple[Any, ...], k: int, max_plate_nesting: int
) -> Trace:
    with _particle_plate(k, max_plate_nesting), without_statements():
        return poutine.trace(function).get_trace(x, *covariates)


@contextmanager
def _particle_plate(k: int, max_plate_nesting: int) -> Iterator[None]:
    """No plate for one particle: a model that cannot be vectorised can still be trained."""
    if k == 1:
        yield
    else:
        with pyro.plate(PARTICLES, k, dim=-max_plate_nesting - 1):
            yield


def sample_sites(trace: Trace) -> dict[str, dict[str, Any]]:
    """A trace's random sites by name: neither plates' subsampling nor ``pyro.deterministic``."""
    return {
        name: site
        for name, site in prune_subsample_sites(trace).nodes.items()
        if site["type"] == "sample" and not site["infer"].get("_deterministic")
    }


def _split(drawn: Trace, scored: Trace, k: int, b: int, nesting: int) -> LogTerms:
    model_sites = sample_sites(scored)
    guide_sites = {n: s for n, s in sample_sites(drawn).items() if not s["is_observed"]}
    observed = {n: s for n, s in model_sites.items() if s["is_observed"]}
    hidden = {n: s for n, s in model_sites.items() if not s["is_observed"]}
    if not observed:
        raise ValueError("the model observes nothing: give its data site obs=x.")
    for name in hidden:
        if name not in guide_sites:
            raise ValueError(f"site {name!r} of the model is missing from the guide: sample it there too.")
    for name, site in guide_sites.items():
        if name not in hidden and not site["infer"].get("is_auxiliary"):
            raise ValueError(
                f"site {name!r} of the guide is missing from the model: sample it there too, or mark it "
                f"infer={{'is_auxiliary': True}}."
            )
    _refuse_scales({**guide_sites, **model_sites})
    for name, site in (*guide_sites.items(), *model_sites.items()):
        _refuse_plates(name, site, k, nesting)
    log_likelihood, log_prior, log_posterior = (
        _WhenRead({n: partial(_log_prob, n, s, k, b) for n, s in sites.items()})
        for sites in (observed, hidden, guide_sites)
    )
    return LogTerms(
        log_likelihood=log_likelihood,
        log_prior=log_prior,
        log_posterior=log_posterior,
        latents={n: s["value"] for n, s in guide_sites.items()},
        observed={n: s["value"] for n, s in observed.items()},
        likelihood={n: s["fn"] for n, s in observed.items()},
        prior={n: s["fn"] for n, s in hidden.items()},
        posterior={n: s["fn"] for n, s in guide_sites.items()},
        shape=(k, b),
        masked=frozenset(n for sites in (guide_sites, hidden) for n, s in sites.items() if s["mask"] is not None),
    )


def _refuse_scales(sites: Mapping[str, dict[str, Any]]) -> None:
    """One scale for all sites is a subsampled plate, and drops out; anything else reweights terms."""
    scales = {name: site["scale"] for name, site in sites.items()}
    if any(isinstance(s, Tensor) for s in scales.values()) or len(set(scales.values())) > 1:
        raise ValueError(
            f"the sites are scaled differently ({', '.join(scales)}): poutine.scale would silently change "
            f"log p(x). Put an annealing weight into the objective, ELBO(beta=...)."
        )


class _WhenRead(Mapping[str, Tensor]):
    """Values that are computed when first read, and kept."""

    def __init__(self, compute: dict[str, Callable[[], Tensor]]) -> None:
        self._compute = compute
        self._values: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._values:
            self._values[name] = self._compute[name]()
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._compute)

    def __len__(self) -> int:
        return len(self._compute)


def _refuse_plates(name: str, site: dict[str, Any], k: int, nesting: int) -> None:
    if not any(frame.dim == -1 for frame in site["cond_indep_stack"]):
        raise ValueError(
            f"site {name!r} is not inside the data plate: open `with pyro.plate('data', len(x)):` around it, "
            f"at dimension -1. Latent variables shared by all data are not supported."
        )
    if k > 1 and any(frame.dim is not None and frame.dim < -nesting - 1 for frame in site["cond_indep_stack"]):
        raise ValueError(
            f"site {name!r} is in more nested plates than the {nesting} stated: set max_plate_nesting on the model."
        )


def _log_prob(name: str, site: dict[str, Any], k: int, b: int) -> Tensor:
    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    log_prob = scale_and_mask(log_prob, 1.0, site["mask"])
    try:
        return _to_particles_and_batch(log_prob, k, b)
    except RuntimeError as error:
        raise ValueError(
            f"site {name!r} has log-density of shape {tuple(log_prob.shape)}, which is not one number for each "
            f"of {k} particle(s) × {b} data. Check its .to_event(), the plate sizes and max_plate_nesting, and "
            f"that the decoder keeps leading dimensions."
        ) from error


def _to_particles_and_batch(term: Tensor, k: int, b: int) -> Tensor:
    """``(K, *plates, B)``, or ``(*plates, B)`` for one particle, summed over the plates between: ``(K, B)``."""
    if term.dim() < 2:
        return term.expand(k, b)
    if k > 1:
        return term.flatten(1, -2).sum(1).expand(k, b) if term.dim() > 2 else term.expand(k, b)
    return term.reshape(-1, term.shape[-1]).sum(0).expand(k, b)


def _total(terms: Mapping[str, Tensor]) -> Any:
    """The sum of all terms; 0 where there are none, of a model without latents."""
    total: Any = 0.0
    for i, term in enumerate(terms.values()):
        total = total + term if i else term
    return total


def _before(site: str, ordered: Mapping[str, Any]) -> list[str]:
    names = list(ordered)
    return names[: names.index(site)]
