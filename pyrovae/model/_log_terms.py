"""The narrow waist: per-site, per-datum log-densities from one run of the guide and one of the model.

Objectives and estimators are functions of :class:`LogTerms`; only this file reads Pyro traces.
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, cached_property, partial, reduce
from typing import Any

import pyro
import torch
from jaxtyping import Float, Num
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyrovae._checks import require_flag, require_one_of, require_tensors
from pyrovae._compat.pyro import is_sample_site, scale_and_mask
from pyrovae.distributions._capabilities import capabilities, innermost, innermost_support
from pyrovae.distributions._density import is_zero_somewhere, log_density, mask_of, sum_last
from pyrovae.distributions._kl import expanded_kl, kl_by_dimension
from pyrovae.model._latents import Latents, PerDatum, VectorPerDatum, as_latents, of_one_particle, over_plates
from pyrovae.model._modes import disable_param_statements
from pyrovae.model._pairing import NotAPair, Sites, check_pair, masks_of
from pyrovae.model._pathwise import Detached, Draws, Gate, Paths, check_scores, scores

Program = Callable[..., Any]  # (x, *covariates)
PARTICLES = "_particles"
_TINY = 1e-30  # a weight that float32 has, and that counts for nothing


@dataclass(frozen=True)
class LogTerms:
    """Log-densities in nats, each of shape ``(K, B)``: K particles of B data. They are computed when first read: a
    closed-form KL needs neither log p(z) nor log q(z | x).

    Attributes:
        log_likelihood: log p(x | z) by observed site.
        log_prior: log p(z) by latent site.
        log_posterior: log q(z | x) by guide site.
        latents: the draws by guide site, each ``(K, *plates, B, *event)``.
        observed: the values of the observed sites.
        likelihood: distributions of the observed sites.
        prior: distributions of the latent sites in the model, in the model's order.
        posterior: distributions of the sites in the guide, in the guide's order.
        shape: ``(K, B)``.
        masks: of the latent sites that have one, those of guide and model.
    """

    log_likelihood: Mapping[str, PerDatum]
    log_prior: Mapping[str, PerDatum]
    log_posterior: Mapping[str, PerDatum]
    latents: Latents
    observed: Mapping[str, Tensor]
    likelihood: Mapping[str, Distribution]
    prior: Mapping[str, Distribution]
    posterior: Mapping[str, Distribution]
    shape: tuple[int, int]
    masks: Mapping[str, tuple[Tensor | bool, Tensor | bool]]
    _observed_sites: Sites
    _paths: Paths

    def read(self) -> "LogTerms":
        """Compute every log-density now, and return the terms.

        Raises:
            ValueError: one that is not a number for each particle and datum.
        """
        for terms in (self.log_likelihood, self.log_prior, self.log_posterior):
            dict(terms)
        return self

    @cached_property
    def log_weight(self) -> PerDatum:
        """The log importance weight, log p(x, z) - log q(z | x)."""
        return self.log_joint - sum_terms(self.log_posterior)

    @property
    def log_joint(self) -> PerDatum:
        """log p(x, z)."""
        return sum_terms(self.log_likelihood) + sum_terms(self.log_prior)

    def check_pathwise(self) -> None:
        """Raise a ``ValueError`` for a guide that :attr:`pathwise_log_posterior` is not known of."""
        check_scores(self._paths.sites)
        if len(self._paths.sites) > 1:
            values = {name: site["value"] for name, site in self._paths.sites.items()}
            for name, log_q in self._paths.again(values).items():
                if not torch.allclose(log_q, self.log_posterior[name], rtol=1e-3, atol=1e-3):
                    raise ValueError(
                        f"site {name!r} of the guide has another density in another run at the same draws: the guide "
                        f"is random beside its sites, as dropout is. Use gradient='reparameterized'."
                    )

    @cached_property
    def pathwise_log_posterior(self) -> PerDatum:
        """log q(z | x), whose gradient goes through the draws alone, as if the guide's parameters were constants
        (Roeder et al. 2017, arXiv:1703.09194).

        Raises:
            ValueError: a site that is not reparameterised, has no density, or cannot be scored.
        """
        check_scores(self._paths.sites)
        k, b = self.shape
        of_site = partial(_log_prob_at, self._paths.sites, k, b)
        value = sum_terms(self.log_posterior).detach()
        for name, gradient in scores(self._paths.sites, of_site, self._paths.again).items():
            z, event_dim = self._paths.sites[name]["value"], len(self._paths.sites[name]["fn"].event_shape)
            path = sum_last(gradient.detach() * (z - z.detach()), event_dim)
            path = scale_and_mask(path, 1.0, self._paths.sites[name]["mask"])
            value = value + _to_particles_and_batch(path, k, b)
        return value

    def weighted_log_joint(self, parameters: PerDatum, draws: PerDatum) -> PerDatum:
        """log p(x, z), with the weight ``parameters`` for the gradient of what the model computes with, and the weight
        ``draws`` for the gradient that passes through the draws to the guide. Asked for once; the terms need
        ``draws="weighted"``.

        Args:
            parameters: weights ``(K, B)``, not negative, without gradients.
            draws: likewise.

        Raises:
            ValueError: the terms are of other ``draws``.
        """
        require_tensors(parameters=parameters, draws=draws)
        if self._paths.draws != "weighted":
            raise ValueError(
                "the gradient through the draws cannot be weighted: call log_terms(..., draws='weighted')."
            )
        parameters = parameters + _TINY  # or a weight of zero would take the other along
        self._paths.gate.weight = draws / parameters
        return parameters * self.log_joint

    @property
    def reconstruction(self) -> PerDatum:
        """The reconstruction term log p(x | z), summed over observed sites."""
        return sum_terms(self.log_likelihood)

    @cached_property
    def num_observed(self) -> Float[Tensor, "batch"] | None:
        """The number of observed dimensions of each datum: masked ones are not, and a one-hot vector is one. ``None``
        where a site's cannot be counted (multinomial).
        """
        total = torch.zeros(self.shape[1])
        for site in self._observed_sites.values():
            fn = site["fn"]
            core = innermost_support(capabilities(fn).support)
            if isinstance(core, constraints.multinomial):
                return None
            each = torch.as_tensor(mask_of(fn, site["mask"])).expand(fn.batch_shape + fn.event_shape)
            if core is constraints.one_hot:
                each = each[..., :1]
            counts = sum_last(each, len(fn.event_shape)).to(torch.get_default_dtype())
            total = total.to(counts.device) + _to_particles_and_batch(counts, *self.shape)[0]
        return total

    @property
    def is_masked(self) -> bool:
        """Whether anything has a mask, latent or observed."""
        sites = self._observed_sites.values()
        return bool(self.masks) or any(mask_of(site["fn"], site["mask"]) is not True for site in sites)

    @property
    def not_reparameterized(self) -> list[str]:
        """The guide's sites through whose draws no gradient passes."""
        return [name for name, q in self.posterior.items() if self._paths.draws == "detached" or not q.has_rsample]

    def by_datum(self, site: str, value: Tensor | None = None) -> VectorPerDatum:
        """The draws at ``site``, or a value that broadcasts to them, as :meth:`Latents.by_datum` arranges them."""
        return self.latents.by_datum(site, value)

    def _check_site(self, site: Any) -> None:
        require_one_of(tuple({**self.posterior, **self.prior}), site=site)

    def closed_form_kl(self, site: str) -> PerDatum | None:
        """The closed-form KL(q(z) ‖ p(z)) at ``site`` given the sites before it, or ``None`` where it is not known.

        Valid only where everything that precedes the site in the model also precedes it in the guide:
        otherwise p(z | parents) depends on draws made after z, and averaging over q(z) alone is wrong.
        """
        self._check_site(site)
        if site not in self.prior or site not in self.posterior or site in self.masks:
            return None
        in_model, in_guide = list(self.prior), list(self.posterior)
        if not set(in_model[: in_model.index(site)]) <= set(in_guide[: in_guide.index(site)]):
            return None
        if isinstance(innermost(self.posterior[site]), Delta):  # whose registered formula leaves out its log_density
            return None
        kl = expanded_kl(self.posterior[site], self.prior[site])
        # Plates nested between the particles and the data are summed, as in the log-densities.
        return None if kl is None else _to_particles_and_batch(kl, *self.shape)

    def closed_form_kl_by_dimension(self, site: str) -> VectorPerDatum | None:
        """The terms of :meth:`closed_form_kl` by dimension, where they are known (see
        :func:`~pyrovae.distributions._kl.kl_by_dimension`); else ``None``.
        """
        if self.closed_form_kl(site) is None:
            return None
        terms = kl_by_dimension(self.posterior[site], self.prior[site])
        return None if terms is None else self.by_datum(site, terms)

    def kl(self, site: str, *, closed_form: bool = True) -> PerDatum:
        """The KL at ``site``: in closed form where known and wanted, else log q(z | x) - log p(z) at the draws."""
        self._check_site(site)
        require_flag(closed_form=closed_form)
        if closed_form and (exact := self.closed_form_kl(site)) is not None:
            return exact
        log_q = self.log_posterior[site]
        return log_q - self.log_prior[site] if site in self.log_prior else log_q


def log_terms(
    model: Program,
    guide: Program,
    x: Tensor,
    *covariates: Any,
    num_particles: int = 1,
    max_plate_nesting: int = 1,
    draws: Draws = "attached",
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
        draws: how gradients pass from the model to the guide: as they come (``"attached"``), as
            :meth:`LogTerms.weighted_log_joint` is told (``"weighted"``), or not at all (``"detached"``).

    Raises:
        ValueError: a site outside the data plate, a latent site that only one of model and guide has, a
            model that observes nothing, or a scale that differs between sites; a term of a wrong shape when it is read.
    """
    k, b = num_particles, len(x)
    with Detached() if draws == "detached" else nullcontext():
        drawn, guide_sites = _run(guide, x, covariates, k, max_plate_nesting)
    gate = Gate()
    if draws == "weighted":
        drawn = drawn.copy()
        for name, site in guide_sites.items():
            drawn.nodes[name] = {**site, "value": gate.passed(site, max_plate_nesting)}
    _, model_sites = _run(poutine.replay(model, trace=drawn), x, covariates, k, max_plate_nesting)
    check_pair(guide_sites, model_sites)
    observed = {n: s for n, s in model_sites.items() if s["is_observed"]}
    hidden = {n: s for n, s in model_sites.items() if not s["is_observed"]}

    def terms(sites: Sites, *, given: bool = False) -> Mapping[str, PerDatum]:
        return _LazyTerms({n: partial(_log_prob, n, s, k, b, given=given) for n, s in sites.items()})

    def again(values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        _, sites = _run(poutine.condition(guide, data=dict(values)), x, covariates, k, max_plate_nesting)
        return {name: _log_prob(name, site, k, b) for name, site in sites.items()}

    return LogTerms(
        log_likelihood=terms(observed),
        log_prior=terms(hidden, given=True),
        log_posterior=terms(guide_sites),
        latents=as_latents(guide_sites, max_plate_nesting),
        observed={n: s["value"] for n, s in observed.items()},
        likelihood={n: s["fn"] for n, s in observed.items()},
        prior={n: s["fn"] for n, s in hidden.items()},
        posterior={n: s["fn"] for n, s in guide_sites.items()},
        shape=(k, b),
        masks=masks_of(guide_sites, hidden),
        _observed_sites=observed,
        _paths=Paths(guide_sites, draws, again, gate),
    )


def draw(
    program: Program, x: Tensor, *covariates: Any, num_particles: int, max_plate_nesting: int
) -> tuple[Latents, PerDatum, Num[Tensor, "particles batch"]]:
    """Run a guide, or a model as the proposal that it is: its draws, and how it scores them. Arguments are those of
    :func:`log_terms`.

    Returns:
        The draws, each ``(K, *plates, B, *event)``; the sum of their log-densities; and that of the observed sites.
    """
    _, sites = _run(program, x, covariates, num_particles, max_plate_nesting)
    totals = {observed: x.new_zeros(num_particles, len(x)) for observed in (False, True)}
    for name, site in sites.items():
        observed = site["is_observed"]
        totals[observed] = totals[observed] + _log_prob(name, site, num_particles, len(x))
    return as_latents(latent_sites(sites), max_plate_nesting), totals[False], totals[True]


def log_densities(
    program: Program, x: Tensor, *covariates: Any, latents: Mapping[str, Tensor], max_plate_nesting: int
) -> dict[str, PerDatum]:
    """Score given latents: log p(x, z) of a model, or log q(z | x) of a guide, by site, in nats. Arguments are those of
    :func:`log_terms`.

    Args:
        latents: a value for every latent site, ``(K, *plates, B, *event)``. Where there are none, K is 1.

    Raises:
        ValueError: a latent site without a value.
    """
    k = next(iter(latents.values())).shape[0] if latents else 1
    values = dict(latents) if k > 1 else {site: of_one_particle(z, max_plate_nesting) for site, z in latents.items()}
    _, sites = _run(poutine.condition(program, data=values), x, covariates, k, max_plate_nesting)
    terms = {}
    for name, site in sites.items():
        if not site["is_observed"]:
            raise ValueError(f"latents has no value for site {name!r}; it has {sorted(latents)}.")
        terms[name] = _log_prob(name, site, k, len(x), given=name in values)
    return terms


def sample_sites(trace: poutine.Trace) -> dict[str, dict[str, Any]]:
    """The random sites of a trace by name, without plates' subsampling and ``pyro.deterministic``."""
    return {name: site for name, site in trace.nodes.items() if is_sample_site(site)}


def latent_sites(sites: Sites) -> dict[str, dict[str, Any]]:
    """The sites that are neither observed nor auxiliary."""
    return {n: s for n, s in sites.items() if not (s["is_observed"] or s["infer"].get("is_auxiliary"))}


class _LazyTerms(Mapping[str, Tensor]):
    """A mapping of terms that are computed when first read, and kept."""

    def __init__(self, compute: Mapping[str, Callable[[], Tensor]]) -> None:
        self._compute = {name: cache(function) for name, function in compute.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._compute[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._compute)

    def __len__(self) -> int:
        return len(self._compute)


def _run(program: Program, x: Tensor, covariates: tuple[Any, ...], k: int, nesting: int) -> tuple[poutine.Trace, Sites]:
    """Trace a program over k particles, and check the plates that its random sites are in."""
    # No plate for one particle: a model that cannot be vectorised can still be trained.
    particles = pyro.plate(PARTICLES, k, dim=-nesting - 1) if k > 1 else nullcontext()
    with particles, disable_param_statements():
        trace = poutine.trace(program).get_trace(x, *covariates)
    sites, b = sample_sites(trace), len(x)
    for name, site in sites.items():
        frames = site["cond_indep_stack"]
        for frame in frames:
            whole = frame.size == b if frame.dim == -1 else frame.full_size in (None, frame.size)
            if not whole and frame.name != PARTICLES:
                some = f"takes {frame.size} at random"
                wrong = f"has {frame.size} rows where {b} data came" if frame.dim == -1 else some
                raise NotAPair(
                    f"plate {frame.name!r} of site {name!r} {wrong}: log p(x) needs all of it. Data are len(x), or "
                    f"subsample=x; leave subsample_size out."
                )
        if not any(frame.dim == -1 for frame in frames):
            raise ValueError(
                f"site {name!r} is not inside the data plate: open `with pyro.plate('data', len(x)):` around it, "
                f"at dimension -1. Latent variables shared by all data are not supported."
            )
        if any(frame.dim is not None and frame.dim < -nesting - (k > 1) for frame in frames):
            raise ValueError(
                f"site {name!r} is in more nested plates than the {nesting} stated: set max_plate_nesting on the model."
            )
    return trace, sites


def _log_prob(name: str, site: dict[str, Any], k: int, b: int, *, given: bool = False) -> Tensor:
    """The log-density of a value that the site drew, or that is ``given`` and which it may not be able to draw.
    Observed values are compared with a constant support once, when they come in.
    """
    fn = site["fn"]
    if (given or (site["is_observed"] and is_zero_somewhere(fn))) and not (site["args"] or site["kwargs"]):
        log_prob = log_density(fn, site["value"])
    else:
        log_prob = fn.log_prob(site["value"], *site["args"], **site["kwargs"])
    log_prob = scale_and_mask(log_prob, 1.0, site["mask"])
    try:
        return _to_particles_and_batch(log_prob, k, b)
    except RuntimeError as error:
        raise ValueError(
            f"site {name!r} has log-density of shape {tuple(log_prob.shape)}, which is not one number for each "
            f"of {k} particle(s) × {b} data. Check its .to_event(), the plate sizes and max_plate_nesting, and "
            f"that the decoder keeps leading dimensions."
        ) from error


def _log_prob_at(sites: Sites, k: int, b: int, name: str, value: Tensor) -> Tensor:
    """The log-density of a site at another value."""
    return _log_prob(name, {**sites[name], "value": value}, k, b)


def _to_particles_and_batch(term: Tensor, k: int, b: int) -> Tensor:
    """Sum ``(K, *plates, B)``, or ``(*plates, B)`` for one particle, over the plates between: ``(K, B)``."""
    term = term if k > 1 or not term.dim() else term.unsqueeze(0)
    return over_plates(term).expand(k, b)


def sum_terms(terms: Mapping[str, Tensor]) -> Any:
    """The sum of all terms; 0 where there are none, of a model without latents."""
    return reduce(operator.add, terms.values()) if terms else 0.0
