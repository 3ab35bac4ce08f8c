"""``VAEModel``, the base class of models that are a Pyro model/guide pair."""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from jaxtyping import Num
from pyro.nn import PyroModule, pyro_method
from torch import Tensor

from pyrovae._checks import as_tensor, require_at_least, require_instance, rows_of, to_device
from pyrovae._compat.pyro import param_statements, reason
from pyrovae._compat.torch import is_outside_support, part_of, without_autocast
from pyrovae.model._generation import Generation
from pyrovae.model._inputs import check_num_covariates
from pyrovae.model._latents import Data, Latents, PerDatum, check_latents
from pyrovae.model._log_terms import LogTerms, draw, log_densities, log_terms, sum_terms
from pyrovae.model._modes import inference, local_parameters, param_statements_disabled
from pyrovae.model._pairing import check_auxiliary, check_precision
from pyrovae.model._rows import Numbers, as_fields, on_rows
from pyrovae.model._support import checked_terms

_NUM_AUXILIARY_ROWS = 64  # data whose guide's transformations are compared with the densities that they state


class VAEModel(Generation, PyroModule):
    """A VAE: subclass it and write ``model(self, x, *covariates)`` and ``guide(self, x, *covariates)`` in Pyro.

    Data are ``x`` of shape ``(B, *event_shape)``, on any device: results are on the model's. Every sample site stands
    inside ``with pyro.plate("data", len(x)):`` (dimension -1), and every network keeps leading dimensions, because
    particles are vectorised over a plate outside.

    Parameters live in the module, never in Pyro's global param store; plain ``pyro.infer.SVI`` trains it too.

    Attributes:
        event_shape: shape of one datum; ``fit`` fills it in where the subclass did not.
        max_plate_nesting: how many plates the model nests.
    """

    def __init__(self) -> None:
        with local_parameters():
            super().__init__()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("model", "guide"):
            if name in cls.__dict__:  # so that a bound method registers its parameters wherever it is used
                setattr(cls, name, pyro_method(cls.__dict__[name]))

    def model(self, x: Tensor, *covariates: Any) -> Any:
        """The generative model p(x, z): the prior and the decoder, with ``obs=x``."""
        raise NotImplementedError(f"{type(self).__name__} must define model(self, x, *covariates).")

    def guide(self, x: Tensor, *covariates: Any) -> Any:
        """The approximate posterior q(z | x): the encoder and its distribution."""
        raise NotImplementedError(f"{type(self).__name__} must define guide(self, x, *covariates).")

    def penalty(self) -> Tensor | None:
        """A regulariser of the weights, in nats, that ``fit`` adds to the loss of every datum; ``None`` for none.
        Neither evaluation nor validation in ``fit`` includes it.
        """
        return None

    def __getattr__(self, name: str) -> Any:
        # Reaching for a part makes a param statement for each of its parameters, a sixth of a small model's step.
        if param_statements_disabled():
            part = part_of(self, name)
            if part is not None and not isinstance(part, PyroModule):
                return part
        return super().__getattr__(name)

    def log_terms(self, x: Data, *covariates: Any, num_particles: int = 1) -> LogTerms:
        """Per-site, per-datum log-densities ``(num_particles, B)``, in nats; see :class:`LogTerms`.

        Args:
            x: data ``(B, *event_shape)``.
            covariates: passed to model and guide.
            num_particles: K, draws of z per datum; the encoder runs once per datum.
        """
        require_at_least(1, num_particles=num_particles)
        self._check_given(x, covariates)
        with without_autocast(), local_parameters():
            return self._on_waist(log_terms, self.model, self.guide, x, *covariates, num_particles=num_particles).read()

    def log_joint(self, x: Data, *covariates: Any, latents: Mapping[str, Tensor]) -> PerDatum:
        """The joint log-density log p(x, z), in nats, at given ``latents``, each ``(K, *plates, B, *event)``."""
        self._check_given(x, covariates)
        check_latents(latents)
        return sum_terms(self._on_waist(log_densities, self.model, x, *covariates, latents=latents))

    def log_prior(self, x: Data, *covariates: Any, latents: Mapping[str, Tensor]) -> dict[str, PerDatum]:
        """The log-density log p(z), in nats, by latent site, given the sites before it, at given ``latents``."""
        self._check_given(x, covariates)
        check_latents(latents)
        terms = self._on_waist(log_densities, self.model, x, *covariates, latents=latents)
        return {site: term for site, term in terms.items() if site in latents}

    def log_posterior(self, x: Data, *covariates: Any, latents: Mapping[str, Tensor]) -> PerDatum:
        """The log-density log q(z | x), in nats, at given ``latents``, each ``(K, *plates, B, *event)``.

        Raises:
            NotImplementedError: a flow that can score its own draws only (``can_score`` is False).
        """
        self._check_given(x, covariates)
        check_latents(latents)
        return sum_terms(self._on_waist(log_densities, self.guide, x, *covariates, latents=latents))

    def draw_posterior(self, x: Data, *covariates: Any, num_particles: int) -> tuple[Latents, PerDatum]:
        """Draw z ~ q(z | x), each site's ``(K, *plates, B, *event)``, with their log q(z | x) in nats. The decoder does
        not run.
        """
        require_at_least(1, num_particles=num_particles)
        self._check_given(x, covariates)
        return self._on_waist(draw, self.guide, x, *covariates, num_particles=num_particles)[:2]

    def draw_prior(
        self, x: Data, *covariates: Any, num_particles: int
    ) -> tuple[Latents, PerDatum, Num[Tensor, "particles batch"]]:
        """Draw z ~ p(z), each site's ``(K, *plates, B, *event)``, with their log p(z) and the log p(x | z) of the data,
        in nats.
        """
        require_at_least(1, num_particles=num_particles)
        self._check_given(x, covariates)
        return self._on_waist(draw, self.model, x, *covariates, num_particles=num_particles)

    def _check_given(self, x: Any, covariates: tuple[Any, ...]) -> None:
        """Check what came, but for its values, which may be anywhere: this is called often."""
        require_instance(Tensor, x=x)
        as_tensor(x, "x")
        if x.is_complex() or x.dtype == torch.bool:
            raise ValueError(f"x must be real numbers; got {x.dtype}.")
        shape = x.shape[1:] if self.event_shape is None else tuple(self.event_shape)
        if not x.numel() or tuple(x.shape[1:]) != tuple(shape):
            raise ValueError(f"x has shape {tuple(x.shape)}; the model needs (N, {', '.join(map(str, shape))}).")
        if covariates:  # Python names those that are missing
            check_num_covariates(self, covariates)

    def _on_waist(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a function of programs with tensors on the model's device, parameters in the model, and no autocast."""
        args, options = to_device((args, options), self.placement.device)
        with without_autocast(), local_parameters():
            return function(*args, max_plate_nesting=self.max_plate_nesting, **options)

    def check(
        self, x: Tensor, *covariates: Any, num_particles: int = 2, name: str = "x", numbers: Numbers = None
    ) -> LogTerms:
        """Run the model on two data with Pyro's and torch's validation on, so that mistakes surface before a long run.
        Neither the model nor the random state changes.

        Args:
            x: data ``(B, *event_shape)``.
            covariates: passed to model and guide.
            num_particles: K of the run; with 1 the model need not be vectorised.
            name: what the error calls ``x``.
            numbers: of the rows, for errors; by default from 0.

        Raises:
            ValueError: a wrong shape, values outside the support, or a malformed model or guide.
        """
        require_at_least(1, num_particles=num_particles)
        require_instance(str, name=name)
        self._check_given(x, covariates)
        options: dict[str, Any] = {"num_particles": num_particles, "name": name, "whole": x, "numbers": numbers}
        few, fields = slice(0, min(2, len(x))), as_fields(x, covariates, name)

        def run(n: int, *part: Any) -> LogTerms:
            return checked_terms(self, *part, **options)

        param_statements(self).clear()  # of what tracing has left there
        with inference(self, 0):
            try:
                with pyro.validation_enabled(True):
                    try:
                        terms = on_rows(run, fields, few, self.placement, numbers)
                    except ValueError as error:
                        if not is_outside_support(error):
                            raise
                        # A draw outside the prior's support has importance weight zero, which is allowed.
                        with pyro.distributions.validation_enabled(False):
                            terms = on_rows(run, fields, few, self.placement, numbers)
            except NotImplementedError:
                raise
            except RuntimeError as error:
                raise ValueError(
                    f"model or guide fails on {name} of shape {tuple(x.shape)}: {reason(error)} Check the event "
                    f"shape and that every network keeps leading dimensions (..., features)."
                ) from error
            check_precision(terms.posterior)
            if any(site not in terms.prior for site in terms.posterior):
                some = slice(_NUM_AUXILIARY_ROWS)
                check_auxiliary(self.guide, terms.prior, x[some], *rows_of(covariates, some))
        own = {id(p) for p in self.parameters()}  # pyro.module(...) registers these, which does no harm
        store = param_statements(self)
        stray = [n for n, p in store.items() if id(p) not in own]
        store.clear()
        if stray:
            raise ValueError(
                f"pyro.param({stray[0]!r}, ...) inside model or guide would not be trained: set "
                f"self.NAME = pyro.nn.PyroParam(...) in __init__ instead."
            )
        return terms
