"""The same p(x, z) with another approximate posterior: a tighter bound, or a better model?"""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import pyro
from torch import Tensor, nn

from pyrovae._compat.torch import own_settings
from pyrovae._random import restored_on_error, seeded
from pyrovae.evaluation._data import require_density
from pyrovae.model import VAE, VAEModel
from pyrovae.model._modes import inference, local_parameters
from pyrovae.posteriors import POSTERIORS, Posterior
from pyrovae.training import FitResult, fit


class Refitted(VAEModel):
    """The model of one VAE, frozen, with the guide of another.

    Attributes:
        generative: a copy of the VAE whose prior and decoder are used; its parameters take no gradients.
        inference: the VAE whose guide is used.
    """

    def __init__(self, generative: VAEModel, inference: VAEModel) -> None:
        super().__init__()
        self.event_shape = generative.event_shape
        self.max_plate_nesting = generative.max_plate_nesting
        with local_parameters():
            self.generative = copy.deepcopy(generative).eval().requires_grad_(False)
            self.inference = inference

    def model(self, x: Tensor, *covariates: Any) -> Any:
        return self.generative.model(x, *covariates)

    def guide(self, x: Tensor, *covariates: Any) -> Any:
        return self.inference.guide(x, *covariates)

    @property
    def posterior(self) -> Any:
        """The posterior of ``inference``, where it has one."""
        return getattr(self.inference, "posterior", None)

    def train(self, mode: bool = True) -> "Refitted":
        super().train(mode)
        self.generative.eval()  # a frozen decoder neither drops out nor learns statistics
        return self


def _width(model: VAE) -> int:
    """C, the width of what the encoder gives to the posterior."""
    assert model.event_shape is not None
    with inference(model, None):
        return model.encoder(model.placement.new_zeros(1, *model.event_shape)).shape[-1]


class _Guide(VAEModel):
    """An encoder and a posterior for one latent site."""

    def __init__(self, encoder: nn.Module, posterior: Posterior) -> None:
        super().__init__()
        self.encoder, self.posterior = encoder, posterior

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.encoder(x)))


def check_fit_options(function: str, options: Mapping[str, Any]) -> None:
    """Raise a ``TypeError`` for what is no option of ``fit`` beside its model and data."""
    if unknown := options.keys() - (inspect.signature(fit).parameters.keys() - {"model", "data"}):
        raise TypeError(f"{', '.join(sorted(unknown))} is no option of fit, whose options {function} takes.")


@own_settings()
def refit_posterior(
    model: VAEModel,
    data: Any,
    posterior: str | Posterior | VAEModel,
    *,
    posterior_options: dict[str, Any] | None = None,
    **fit_options: Any,
) -> tuple[Refitted, FitResult]:
    """Freeze prior and decoder and train another posterior for them.

    p(x, z) stays what it was to the bit, so log p(x) is the same number for both: ``compare`` says ``same_model``, and
    a difference between the two L_K is one of tightness. A gain that a posterior brings when trained from the start and
    not when refitted is the better model that it made possible.

    Args:
        model: the trained model; it is not changed.
        data: as in :func:`~pyrovae.fit`.
        posterior: for a :class:`~pyrovae.VAE` a name in ``posteriors.POSTERIORS`` or a
            :class:`~pyrovae.posteriors.Posterior`: it is trained with a copy of the model's encoder. For any model
            another one, whose guide is used; it must draw the same sites. What is trained is a copy.
        posterior_options: options of a posterior given by name.
        fit_options: of :func:`~pyrovae.fit`: ``epochs``, ``seed``, ``objective``, ``validation``, ...

    Returns:
        The new model, whose generative part stays frozen, and its training run.

    Raises:
        TypeError: ``model`` is not a :class:`~pyrovae.VAEModel`, or a name or posterior for one that is no ``VAE``.
        ValueError: an unknown name, a posterior of another size, a guide with other sites.
    """
    require_density("model: refit_posterior", model)
    check_fit_options("refit_posterior", fit_options)
    with restored_on_error():
        return _refit(model, data, posterior, posterior_options, fit_options)


def _refit(
    model: VAEModel, data: Any, posterior: Any, posterior_options: Any, fit_options: dict[str, Any]
) -> tuple[Refitted, FitResult]:
    if posterior is model:
        raise ValueError("posterior is the model itself, which must not change: pass another one, or a copy.")
    if isinstance(posterior, VAEModel):
        inference = copy.deepcopy(posterior)  # it may share modules with the model
    elif isinstance(model, VAE):
        sizes = {"latent_dim": model.latent_dim, "context_dim": _width(model)}
        with seeded(fit_options.get("seed")):  # the weights of a new one too
            built = POSTERIORS.build(posterior, posterior_options, **sizes)
        encoder, built = copy.deepcopy((model.encoder, built))  # it may be the model's own
        inference = _Guide(encoder.requires_grad_(True), built.requires_grad_(True)).to(model.placement)
    else:
        raise TypeError(
            f"a posterior by name or module is for a pyrovae.VAE, whose encoder is known; for {type(model).__name__} "
            f"pass a VAEModel with the guide to train."
        )
    refitted = Refitted(model, inference)
    return refitted, fit(refitted, data, **fit_options)
