"""``VAEModel``: what a Pyro model/guide pair gets for nothing."""

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.nn import PyroModule, pyro_method
from torch import Tensor

from pyrovae._checks import as_covariates, as_data, at_least
from pyrovae._random import seeded
from pyrovae.model.capabilities import moment
from pyrovae.model.latents import Latents
from pyrovae.model.log_terms import LogTerms, as_latents, draw, log_densities, log_joint, log_terms, sample_sites
from pyrovae.model.modes import are_statements_unheard, evaluation_mode, local_parameters
from pyrovae.model.pairing import check_auxiliary, check_precision
from pyrovae.model.stored import Stored

_MEAN_BLOCKS, _MEAN_BLOCK = 16, 16  # 256 draws stand in for the mean of a posterior without a closed-form one


class VAEModel(Stored, PyroModule):
    """A VAE: subclass it and write ``model(self, x, *covariates)`` and ``guide(self, x, *covariates)`` in Pyro.

    Data are ``x`` of shape ``(B, *event_shape)``. Every sample site stands inside
    ``with pyro.plate("data", len(x)):`` (dimension -1), and every network keeps leading dimensions, because
    particles are vectorised over a plate outside.

    Parameters live in the module, never in Pyro's global param store; plain ``pyro.infer.SVI`` trains it too.

    Attributes:
        event_shape: shape of one datum; ``fit`` fills it in where the subclass did not.
        max_plate_nesting: how many plates the model nests.
        config: keyword arguments that rebuild this object, if it has such; stored by :meth:`save`.
    """

    max_plate_nesting: int = 1

    def __init__(self) -> None:
        with local_parameters():
            super().__init__()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("model", "guide"):
            if name in cls.__dict__:  # so that a bound method registers its parameters wherever it is used
                setattr(cls, name, pyro_method(cls.__dict__[name]))

    def model(self, x: Tensor, *covariates: Any) -> Any:
        """p(x, z): the prior and the decoder, with ``obs=x``."""
        raise NotImplementedError(f"{type(self).__name__} must define model(self, x, *covariates).")

    def guide(self, x: Tensor, *covariates: Any) -> Any:
        """q(z | x): the encoder and the approximate posterior."""
        raise NotImplementedError(f"{type(self).__name__} must define guide(self, x, *covariates).")

    def penalty(self) -> Tensor | None:
        """What ``fit`` adds to the loss of every datum, in nats: a regulariser of the weights. Evaluation leaves it
        out, validation in ``fit`` too.
        """
        return None

    def __getattr__(self, name: str) -> Any:
        # Reaching for a part makes a param statement for each of its parameters, a sixth of a small model's step.
        if are_statements_unheard():
            part = self.__dict__.get("_modules", {}).get(name)
            if part is not None and not isinstance(part, PyroModule):
                return part
        return super().__getattr__(name)

    # -- the waist ---------------------------------------------------------------------------------------

    def log_terms(self, x: Float[Tensor, "batch *event"], *covariates: Any, num_particles: int = 1) -> LogTerms:
        """Per-site, per-datum log-densities ``(num_particles, B)``, in nats; see :class:`LogTerms`.

        Args:
            x: data ``(B, *event_shape)``.
            covariates: passed to model and guide.
            num_particles: K, draws of z per datum; the encoder runs once per datum.
        """
        with local_parameters():
            return log_terms(
                self.model,
                self.guide,
                x,
                *covariates,
                num_particles=num_particles,
                max_plate_nesting=self.max_plate_nesting,
            ).read()

    def log_joint(
        self, x: Float[Tensor, "batch *event"], *covariates: Any, latents: Mapping[str, Tensor]
    ) -> Float[Tensor, "particles batch"]:
        """log p(x, z) in nats at given ``latents``, each ``(K, *plates, B, *event)``."""
        with local_parameters():
            return log_joint(self.model, x, *covariates, latents=latents, max_plate_nesting=self.max_plate_nesting)

    def log_prior(
        self, x: Float[Tensor, "batch *event"], *covariates: Any, latents: Mapping[str, Tensor]
    ) -> dict[str, Float[Tensor, "particles batch"]]:
        """log p(z) in nats by latent site, given the sites before it, at given ``latents``."""
        with local_parameters():
            nesting = self.max_plate_nesting
            terms = log_densities(self.model, x, *covariates, latents=latents, max_plate_nesting=nesting)
        return {site: term for site, term in terms.items() if site in latents}

    def log_posterior(
        self, x: Float[Tensor, "batch *event"], *covariates: Any, latents: Mapping[str, Tensor]
    ) -> Float[Tensor, "particles batch"]:
        """log q(z | x) in nats at given ``latents``, each ``(K, *plates, B, *event)``.

        Raises:
            NotImplementedError: a flow that can score its own draws only (``can_score`` is False).
        """
        with local_parameters():
            return log_joint(self.guide, x, *covariates, latents=latents, max_plate_nesting=self.max_plate_nesting)

    def draw_posterior(
        self, x: Float[Tensor, "batch *event"], *covariates: Any, num_particles: int
    ) -> tuple[Latents, Float[Tensor, "particles batch"]]:
        """Draws z ~ q(z | x), each site's ``(K, *plates, B, *event)``, and their log q(z | x) in nats. The decoder does
        not run.
        """
        with local_parameters():
            nesting = self.max_plate_nesting
            return draw(self.guide, x, *covariates, num_particles=num_particles, max_plate_nesting=nesting)[:2]

    def draw_prior(
        self, x: Float[Tensor, "batch *event"], *covariates: Any, num_particles: int
    ) -> tuple[Latents, Float[Tensor, "particles batch"], Float[Tensor, "particles batch"]]:
        """Draws z ~ p(z), each site's ``(K, *plates, B, *event)``, with their log p(z) and the log p(x | z) of the
        data, in nats.
        """
        with local_parameters():
            nesting = self.max_plate_nesting
            return draw(self.model, x, *covariates, num_particles=num_particles, max_plate_nesting=nesting)

    def check(self, x: Tensor, *covariates: Any, num_particles: int = 2, name: str = "x") -> LogTerms:
        """Run two data with Pyro's and torch's validation on, so that mistakes surface before a long run. Neither
        the model nor the random state changes.

        Args:
            x: data ``(B, *event_shape)``.
            covariates: passed to model and guide.
            num_particles: K of the run; with 1 the model need not be vectorised.
            name: what the error calls ``x``.

        Raises:
            ValueError: a wrong shape, or a malformed model or guide.
        """
        head = tuple(_first(c, 2) for c in covariates)
        with self._inference(0):
            try:
                with pyro.validation_enabled(True):
                    try:
                        terms = self.log_terms(x[:2], *head, num_particles=num_particles)
                    except ValueError as error:
                        if "within the support" not in str(error):
                            raise
                        # Data are compared with the support elsewhere, all of them. A draw outside the prior's
                        # support has importance weight zero, which is allowed.
                        with pyro.distributions.validation_enabled(False):
                            terms = self.log_terms(x[:2], *head, num_particles=num_particles)
            except NotImplementedError:
                raise
            except RuntimeError as error:
                raise ValueError(
                    f"model or guide fails on {name} of shape {tuple(x.shape)}: {error} Check the event shape "
                    f"and that every network keeps leading dimensions (..., features)."
                ) from error
            check_precision(terms.posterior)
            if any(site not in terms.prior for site in terms.posterior):
                guide = sample_sites(poutine.trace(self.guide).get_trace(x[:1], *(_first(c, 1) for c in covariates)))
                check_auxiliary(self.guide, guide, terms.prior, x[:1], *(_first(c, 1) for c in covariates))
        own = {id(p) for p in self.parameters()}  # pyro.module(...) registers these, which does no harm
        store = self._pyro_context.param_state["params"]
        stray = [n for n, p in store.items() if id(p) not in own]
        store.clear()
        if stray:
            raise ValueError(
                f"pyro.param({stray[0]!r}, ...) inside model or guide would not be trained: set "
                f"self.NAME = pyro.nn.PyroParam(...) in __init__ instead."
            )
        return terms

    # -- generating and encoding ---------------------------------------------------------------------------

    def sample(self, n: int, *covariates: Any, seed: int | None = None) -> Float[Tensor, "n *event"]:
        """Draw ``n`` data from the model: z ~ p(z), x ~ p(x | z).

        Args:
            n: number of draws.
            covariates: as in the model, for ``n`` data.
            seed: seed of the draws.

        Raises:
            ValueError: ``n < 1``, or the model does not know its ``event_shape`` yet.
        """
        return self.simulate(n, *covariates, seed=seed)[0]

    def simulate(self, n: int, *covariates: Any, seed: int | None = None) -> tuple[Float[Tensor, "n *event"], Latents]:
        """Draw ``n`` data with the latents they came from, z ~ p(z), x ~ p(x | z).

        z is then an exact draw from p(z | x), provided that x is all that the model observes.

        Args:
            n: number of draws.
            covariates: as in the model, for ``n`` data.
            seed: seed of the draws.

        Returns:
            The data, and the latents by site, ``(1, *plates, n, *event)``.

        Raises:
            ValueError: ``n < 1``, or the model does not know its ``event_shape`` yet.
        """
        at_least(1, n=n)
        covariates = as_covariates(covariates, n, self.like())
        with self._inference(seed):
            trace = poutine.trace(poutine.uncondition(self.model)).get_trace(self._template(n), *covariates)
        data = self._data_site(trace)
        latents = {
            name: site
            for name, site in sample_sites(trace).items()
            if not (site["is_observed"] or site["infer"].get("was_observed"))
        }
        return data["value"], as_latents(latents, self.max_plate_nesting)

    def sample_latents(self, n: int, *covariates: Any, seed: int | None = None) -> Any:
        """Draw latents from the prior: ``(n, *latent)``, or a dict by site where there are several."""
        at_least(1, n=n)
        covariates = as_covariates(covariates, n, self.like())
        with self._inference(seed):
            trace = poutine.trace(self.model).get_trace(self._template(n), *covariates)
        return _only({name: s["value"] for name, s in sample_sites(trace).items() if not s["is_observed"]})

    def encode(
        self,
        x: Float[Tensor, "batch *event"],
        *covariates: Any,
        num_samples: int | None = None,
        seed: int | None = 0,
    ) -> Any:
        """The posterior mean of the latents, or draws from the posterior.

        Args:
            x: data ``(B, *event_shape)``.
            covariates: passed to the guide.
            num_samples: ``None`` for the mean ``(B, *latent)``, in closed form where the family has one and
                otherwise averaged over 256 draws; a number S for draws ``(S, B, *latent)``.
            seed: seed of the draws.

        Returns:
            A tensor; a dict of tensors by site for a guide with several latent sites.
        """
        x = as_data(x, "x", self.event_shape).to(self.like())
        covariates = as_covariates(covariates, len(x), self.like())
        if num_samples is not None:
            at_least(1, num_samples=num_samples)
        with self._inference(seed):
            if num_samples is not None:
                latents = self._draw(x, *covariates, num_samples=num_samples)
            elif (mean := self._closed_form_mean(x, *covariates)) is not None:
                return mean
            else:
                sums: dict[str, Tensor] = {}
                for _ in range(_MEAN_BLOCKS):
                    for name, z in self._draw(x, *covariates, num_samples=_MEAN_BLOCK).items():
                        if not z.is_floating_point():
                            raise ValueError(f"site {name!r} is discrete and has no mean: pass num_samples.")
                        sums[name] = sums.get(name, 0.0) + z.mean(0) / _MEAN_BLOCKS
                latents = sums
        return _only(latents)

    def decode(self, z: Any, *covariates: Any) -> Float[Tensor, "*batch_event"]:
        """The mean of p(x | z).

        Args:
            z: latents ``(..., Z)`` of the model's single latent site, or a dict of latents ``(n, *latent)`` by site;
                sites not in the dict are drawn.
            covariates: as in the model, for as many data as the leading dimensions of ``z`` hold.
        """
        with self._inference(0):
            if isinstance(z, Mapping):
                named, real = dict(z), False
                if not named:
                    raise ValueError("decode needs a value for at least one latent site; got none.")
                lead = next(iter(named.values())).shape[:1]
            else:
                name, event_dim, real = self._latent_site(*as_covariates(covariates, None, self.like()))
                lead = z.shape[: z.dim() - event_dim]
                named = {name: z.reshape(-1, *z.shape[z.dim() - event_dim :])}
            like = self.like()
            named = {n: v.to(like if v.is_floating_point() or real else like.device) for n, v in named.items()}
            covariates = as_covariates(covariates, lead.numel(), like)
            trace = poutine.trace(poutine.condition(self.model, data=named)).get_trace(
                self._template(lead.numel()), *covariates
            )
            mean = self._data_site(trace, given=set(named))["fn"].mean
        return mean.reshape(*lead, *mean.shape[1:])

    def reconstruct(
        self, x: Float[Tensor, "batch *event"], *covariates: Any, seed: int | None = 0
    ) -> Float[Tensor, "batch *event"]:
        """The mean of p(x | z) at one draw z ~ q(z | x) per datum."""
        draw = self.encode(x, *covariates, num_samples=1, seed=seed)
        z = {name: value[0] for name, value in draw.items()} if isinstance(draw, dict) else draw[0]
        return self.decode(z, *covariates)

    def interpolate(
        self,
        start: Float[Tensor, "batch *event"],
        end: Float[Tensor, "batch *event"],
        *covariates: Any,
        steps: int = 8,
    ) -> Float[Tensor, "steps batch *event"]:
        """Decode along the straight lines between the posterior means of ``start`` and ``end``.

        Args:
            start: data ``(B, *event_shape)``.
            end: data ``(B, *event_shape)``.
            covariates: of both ends, for B data.
            steps: points on each line, both ends included.

        Raises:
            ValueError: fewer than two steps, or several latent sites.
        """
        at_least(2, steps=steps)
        a, b = self.encode(start, *covariates), self.encode(end, *covariates)
        if isinstance(a, dict):
            raise ValueError("interpolate needs a single latent site; decode a dict of latents instead.")
        weights = torch.linspace(0, 1, steps, device=a.device).reshape(-1, *[1] * a.dim())
        along = [c.repeat(steps, *[1] * (c.dim() - 1)) if isinstance(c, Tensor) and c.dim() else c for c in covariates]
        return self.decode((1 - weights) * a + weights * b, *along)

    # -- inside ------------------------------------------------------------------------------------------

    @contextmanager
    def _inference(self, seed: int | None) -> Iterator[None]:
        """Evaluation mode, no gradients, local parameters, a seed; all put back afterwards."""
        with evaluation_mode(self), torch.no_grad(), local_parameters(), seeded(seed):
            yield

    def _template(self, n: int) -> Tensor:
        """Data of the right shape, for a model that is run without observing."""
        if self.event_shape is None:
            raise ValueError(
                f"{type(self).__name__} does not know the shape of its data: set self.event_shape in __init__."
            )
        return self.like().new_zeros(n, *tuple(self.event_shape))

    def _latent_site(self, *covariates: Any) -> tuple[str, int, bool]:
        """Name of the model's only latent site, its event dimensions, and whether its values are real."""
        n = next((len(c) for c in covariates if isinstance(c, Tensor) and c.dim()), 1)
        trace = poutine.trace(self.model).get_trace(self._template(n), *covariates)
        match [(n, s) for n, s in sample_sites(trace).items() if not s["is_observed"]]:
            case [(name, site)]:
                return name, len(site["fn"].event_shape), site["value"].is_floating_point()
            case several:
                names = [n for n, _ in several]
                raise ValueError(f"the model has the latent sites {names}: pass decode() a dict with a value for each.")

    def _draw(self, x: Tensor, *covariates: Any, num_samples: int) -> Latents:
        return draw(self.guide, x, *covariates, num_particles=num_samples, max_plate_nesting=self.max_plate_nesting)[0]

    def _closed_form_mean(self, x: Tensor, *covariates: Any) -> Tensor | None:
        """The mean of a guide's only site, if that is known; means of several sites depend on each other."""
        trace = poutine.trace(self.guide).get_trace(x, *covariates)
        match [s["fn"] for s in sample_sites(trace).values() if not s["is_observed"]]:
            case [q]:
                return moment(q, "mean")
        return None

    def _data_site(self, trace: poutine.Trace, given: Container[str] = ()) -> dict[str, Any]:
        """The observed (or no longer observed) site that stands for the data."""
        observed = [
            site
            for name, site in sample_sites(trace).items()
            if name not in given and (site["is_observed"] or site["infer"].get("was_observed"))
        ]
        alike = [site for site in observed if tuple(site["fn"].event_shape) == tuple(self.event_shape or ())]
        match alike or observed:
            case [site, *_] if site["value"].shape[1:] == torch.Size(self.event_shape or ()):
                return site
        raise ValueError(
            f"no observed site of the model has values of shape (n, {', '.join(map(str, self.event_shape or ()))}), "
            f"as the data have: where x is rearranged before it is observed, sample and decode with Pyro's handlers."
        )


def _first(covariate: Any, n: int) -> Any:
    return covariate[:n] if isinstance(covariate, Tensor) and covariate.dim() else covariate


def _only(latents: Mapping[str, Tensor]) -> Any:
    if not latents:
        raise ValueError("the model has no latents: there is nothing to encode, and sample() alone draws data.")
    return next(iter(latents.values())) if len(latents) == 1 else dict(latents)
