"""Approximate posteriors fitted to every datum by itself, a batch of data at once."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, biject_to
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode

from pyrovae.model import Latents, VAEModel
from pyrovae.model.latents import per_datum
from pyrovae.posteriors import Posterior

_INITIAL_DRAWS = 100
_FAN_IN = 8  # inputs of a layer above which its weights take smaller steps

Draws = tuple[Latents, Float[Tensor, "particles batch"]]


class PerDatum(ABC):
    """One q(z) for each of B data, with parameters ``(B, ...)`` of its own.

    Attributes:
        parameters: what to fit, each with a factor for the learning rate.
    """

    parameters: list[tuple[Tensor, float]]

    @abstractmethod
    def draw(self, num_particles: int) -> Draws:
        """Draws by site, ``(K, B, *event)``, and log q of them in nats."""


class MeanField(PerDatum):
    """Independent normals in unconstrained space at every latent site, started at moments of the guide's draws.

    Locations and scales are in units of the first scales, so that one learning rate suits every latent.

    Args:
        model: the model.
        part: ``(x, *covariates)`` of B data.

    Raises:
        ValueError: a discrete latent site.
    """

    def __init__(self, model: VAEModel, part: tuple[Any, ...]) -> None:
        draws, _ = model.draw_posterior(*part, num_particles=_INITIAL_DRAWS)
        self._sites, self._num_plates = {}, draws.num_plates
        for site, prior in model.log_terms(*part).prior.items():
            bijection = biject_to(_continuous(site, prior))
            u = bijection.inv(draws[site])
            loc, scale = u.mean(0), u.std(0).clamp(min=1e-4)
            shift, log_stretch = torch.zeros_like(loc), torch.zeros_like(loc)
            self._sites[site] = bijection, loc, scale, shift.requires_grad_(), log_stretch.requires_grad_()
        self.parameters = [(p, 1.0) for *_, shift, log_stretch in self._sites.values() for p in (shift, log_stretch)]

    def draw(self, num_particles: int) -> Draws:
        latents: dict[str, Tensor] = {}
        log_q: Any = 0.0
        for site, (bijection, origin, unit, shift, log_stretch) in self._sites.items():
            loc, scale = origin + unit * shift, unit * log_stretch.exp()
            u = loc + scale * torch.randn(num_particles, *loc.shape, dtype=loc.dtype, device=loc.device)
            z = latents[site] = bijection(u)
            # The gradient passes through the draws alone: less noise near the optimum (Roeder et al. 2017).
            log_density = Normal(loc.detach(), scale.detach()).log_prob(u)
            log_det = bijection.log_abs_det_jacobian(u, z)
            log_q = log_q + per_datum(log_density, self._num_plates) - per_datum(log_det, self._num_plates)
        return Latents(latents, self._num_plates), log_q


class OwnFamily(PerDatum):
    """The guide with a copy of its parameters for every datum, started where the guide is.

    Copied are the parameters of ``model.posterior`` where that is a :class:`~pyrovae.posteriors.Posterior`, and
    otherwise all that the guide uses. An affine layer that sees the same input at every draw is fitted through its
    bias: for one datum its weight can do nothing that the bias cannot.

    Args:
        model: the model.
        part: ``(x, *covariates)`` of B data.

    Raises:
        ValueError: a guide without parameters, with a site through whose draws no gradient passes, or with operations
            that cannot be run for many parameters at once (``torch.func.vmap``).
    """

    def __init__(self, model: VAEModel, part: tuple[Any, ...]) -> None:
        if stuck := model.log_terms(*part).not_reparameterized:
            raise ValueError(
                f"guide site {stuck[0]!r} is not reparameterised, and the own family is fitted by gradients through "
                f"the draws. Ask for families=('mean_field',), or use a distribution with rsample."
            )
        self._guide, self._part = _Guide(model), part
        # Every place of a parameter, once: a tied one has several, a module reached by two paths has one set.
        places = {
            f"{path}.{name}": p
            for path, module in self._guide.named_modules()
            for name, p in module.named_parameters(recurse=False)
        }
        first = {id(p): name for name, p in reversed(places.items())}
        self._tied = {name: first[id(p)] for name, p in places.items()}
        self._fixed = {name: places[name].detach() for name in first.values()}
        posterior = getattr(model, "posterior", None)
        own = posterior if isinstance(posterior, Posterior) else model
        names = self._to_fit([first[id(p)] for p in own.parameters()])
        self._stacked = {n: torch.stack([self._fixed[n]] * len(part[0])).requires_grad_() for n in names}
        # Adam moves a sum over n inputs n times as far as one of its weights.
        self.parameters = [
            (p, min(1.0, _FAN_IN / p[0, 0].numel()) if p.dim() > 2 else 1.0) for p in self._stacked.values()
        ]

    def draw(self, num_particles: int) -> Draws:
        split = [0 if isinstance(c, Tensor) and c.dim() else None for c in self._part]

        def one(parameters: dict[str, Tensor], *datum: Any) -> Draws:
            datum = tuple(c if d is None else c.unsqueeze(0) for c, d in zip(datum, split, strict=True))
            latents, log_q = self._run(parameters, datum, num_particles)
            return latents.rows(0), log_q.squeeze(1)

        vectorised = vmap(one, (0, *split), (self._data_dim, 1), randomness="different")
        try:
            return vectorised(self._stacked, *self._part)
        except RuntimeError as error:
            if not any(word in str(error) for word in ("vmap", "functorch")):
                raise
            raise ValueError(
                f"the guide cannot be run for many parameters at once, as the own family needs, because it branches "
                f"on values or draws from a distribution that torch does not vectorise (Beta, Dirichlet). Ask for "
                f"families=('mean_field',). torch says: {error}"
            ) from error

    def _run(self, parameters: dict[str, Tensor], part: tuple[Any, ...], num_particles: int) -> Draws:
        values = {**self._fixed, **parameters}
        everywhere = {place: values[name] for place, name in self._tied.items()}
        # torch's own handling of ties would leave a module reached by two paths with the replaced values.
        return functional_call(self._guide, everywhere, (num_particles, *part), tie_weights=False)

    def _to_fit(self, names: list[str]) -> list[str]:
        """Those of the parameters that are to be copied, found by a run of the guide on one datum."""
        candidates = {n: self._fixed[n].clone().requires_grad_() for n in names}
        datum = tuple(c[:1] if isinstance(c, Tensor) and c.dim() else c for c in self._part)
        with torch.enable_grad(), _same_at_every_draw(self._guide) as redundant:
            latents, log_q = self._run(candidates, datum, 2)
            self._data_dim = latents.data_dim
            total = log_q.sum() + sum(z.sum() for z in latents.values())
            used: Any = []
            if total.requires_grad:
                used = torch.autograd.grad(total, list(candidates.values()), allow_unused=True)
        names = [
            n for n, gradient in zip(candidates, used, strict=bool(used)) if gradient is not None and n not in redundant
        ]
        if not names:
            raise ValueError("the guide has no parameters to fit: ask for families=('mean_field',).")
        return names


def fit(
    q: PerDatum, model: VAEModel, part: tuple[Any, ...], *, steps: int, learning_rate: float, num_particles: int
) -> Iterator[None]:
    """Maximise every datum's ELBO over its own parameters, by Adam with a learning rate that falls to zero (cosine).

    A gradient that is not finite counts as zero, so that one bad draw does not end a datum's fit.

    Args:
        q: the posteriors; changed in place.
        model: the model, which stays as it is.
        part: ``(x, *covariates)``.
        steps: number of steps; the iterator yields after each.
        learning_rate: the first step's.
        num_particles: draws per datum and step.
    """
    parameters = [p for p, _ in q.parameters]
    groups = [{"params": [p], "lr": learning_rate * factor} for p, factor in q.parameters]
    optimizer = torch.optim.Adam(groups, fused=parameters[0].device.type in ("cpu", "cuda"))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        for p, gradient in zip(parameters, gradients(q, model, part, num_particles), strict=True):
            p.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
        optimizer.step()
        schedule.step()
        yield


def gradients(q: PerDatum, model: VAEModel, part: tuple[Any, ...], num_particles: int) -> tuple[Tensor, ...]:
    """Of every datum's negative ELBO with respect to its own parameters."""
    with torch.enable_grad():
        loss = -log_weight(q, model, part, num_particles).mean(0).sum()
        return torch.autograd.grad(loss, [p for p, _ in q.parameters])


def log_weight(
    q: PerDatum, model: VAEModel, part: tuple[Any, ...], num_particles: int
) -> Float[Tensor, "particles batch"]:
    """log p(x, z) - log q(z) at draws from ``q``, in nats."""
    latents, log_q = q.draw(num_particles)
    return model.log_joint(*part, latents=latents) - log_q


def _continuous(site: str, prior: Distribution) -> Any:
    """The support of a latent site."""
    support: Any = prior.support
    if support.is_discrete:
        raise ValueError(
            f"latent site {site!r} is discrete ({type(prior).__name__}), and the mean-field normal needs continuous "
            f"latents: sum over it exactly, or relax it (e.g. RelaxedOneHotCategorical)."
        )
    return support


class _Guide(nn.Module):
    """The guide as a module, which ``functional_call`` wants."""

    def __init__(self, model: VAEModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, num_particles: int, *part: Any) -> Draws:
        with _FreshNoise():
            return self.model.draw_posterior(*part, num_particles=num_particles)


class _FreshNoise(TorchFunctionMode):
    """Lets noise be drawn in place under ``vmap``, a set for every datum: only a tensor that is random already can
    take it there.
    """

    IN_PLACE = (Tensor.normal_, Tensor.uniform_, Tensor.exponential_, Tensor.cauchy_)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.IN_PLACE:
            args = (torch.rand_like(args[0]), *args[1:])
        return func(*args, **(kwargs or {}))


@contextmanager
def _same_at_every_draw(module: nn.Module) -> Iterator[set[str]]:
    """Weights, by name, of the affine layers with a bias that see one row in all while the block runs."""
    redundant: set[str] = set()
    rows: Counter[int] = Counter()
    names = {id(p): name for name, p in module.named_parameters()}

    def count(key: int, layer: nn.Linear, inputs: tuple[Tensor]) -> None:
        rows[key] += inputs[0].numel() // layer.in_features

    with ExitStack() as stack:
        for layer in module.modules():
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                stack.callback(layer.register_forward_pre_hook(partial(count, id(layer.weight))).remove)
        yield redundant
    redundant.update(names[key] for key, n in rows.items() if n == 1)
