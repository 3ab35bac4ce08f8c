"""The same encoder and decoder with another prior, fitted afterwards: what the old one costs."""

import copy
from collections.abc import Mapping
from typing import Any

import pyro
from torch import Tensor

from pyrovae._checks import ARRAYS, require_instance
from pyrovae._compat.torch import own_settings
from pyrovae._random import restored_on_error, seeded
from pyrovae.evaluation.inference._refit import check_fit_options
from pyrovae.model import VAE, VAEModel
from pyrovae.model._modes import local_parameters
from pyrovae.priors import MixtureOfGaussians, Prior
from pyrovae.training import FitResult, fit

_STARTING_DRAWS = 10_000  # of the aggregate posterior, at most


class _Prior(VAEModel):
    """The prior of a VAE, which is all of it that is trained; the rest is a frozen copy."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.event_shape = vae.event_shape
        with local_parameters():
            self.vae, self.prior = copy.deepcopy(vae).eval().requires_grad_(False), vae.prior

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(self.vae.q))
            pyro.sample("x", self.vae.p(z), obs=x)

    def guide(self, x: Tensor) -> None:
        self.vae.guide(x)

    def train(self, mode: bool = True) -> "_Prior":
        super().train(mode)
        self.vae.eval()  # a frozen encoder neither drops out nor learns statistics
        return self


@own_settings()
def refit_prior(
    model: VAE,
    data: Any,
    prior: str | Prior,
    *,
    prior_options: Mapping[str, Any] | None = None,
    **fit_options: Any,
) -> tuple[VAE, FitResult]:
    """Freeze encoder and decoder and train another prior for them, on draws of the aggregate posterior: ex-post density
    estimation (Ghosh et al. 2020, arXiv:1903.12436), by the ELBO.

    The best prior for a given encoder and decoder is the aggregate posterior, the mean of q(z | x) over the data. It
    is fitted to draws of q(z | x), not to means, which have a smaller variance. What comes out is a new model with
    another p(x): evaluate it anew.

    Args:
        model: the trained model, a :class:`~pyrovae.VAE`; it is not changed.
        data: as in :func:`~pyrovae.fit`.
        prior: a name in ``priors.PRIORS``, or a :class:`~pyrovae.priors.Prior`; what is trained is a copy. A mixture
            given by name starts at draws of the aggregate posterior, unless data come in batches.
        prior_options: options of a prior given by name.
        fit_options: of :func:`~pyrovae.fit`: ``epochs``, ``seed``, ``learning_rate``, ...

    Returns:
        A copy of the model with the new prior, and its training run.

    Raises:
        TypeError: ``model`` is no :class:`~pyrovae.VAE`, or one with a ``model`` of its own; options that ``fit`` does
            not take.
        ValueError: an unknown name; a prior of another size, or with nothing to train.
    """
    require_instance(VAE, model=model)
    if type(model).model is not VAE.model or type(model).guide is not VAE.guide:
        raise TypeError(
            f"model is a {type(model).__name__}, whose model or guide is its own: refit_prior knows those of "
            f"pyrovae.VAE."
        )
    check_fit_options("refit_prior", fit_options)
    with restored_on_error():
        with seeded(fit_options.get("seed")):
            new = model.with_prior(prior, prior_options)
            built = new.prior
            if not any(p.requires_grad for p in built.parameters()):
                raise ValueError(
                    f"prior {type(built).__name__} has nothing to train: pass another, e.g. 'mixture', or take "
                    f"model.with_prior(...) as it is."
                )
            x = getattr(data, "train", data)
            if isinstance(prior, str) and isinstance(built, MixtureOfGaussians) and isinstance(x, ARRAYS):
                built.start_at(new.encode(x[:_STARTING_DRAWS], num_samples=1).flatten(0, -2))
        run = fit(_Prior(new), data, **fit_options)
    return new, run
