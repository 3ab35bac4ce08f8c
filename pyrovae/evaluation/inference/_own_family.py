"""The guide's own family, with a copy of its parameters for every datum."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import copy
from functools import partial
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode

from pyrovae._compat.torch import is_not_vectorised
from pyrovae._random import seeded
from pyrovae.evaluation.inference._per_datum import Draws, PerDatum, can_score_anywhere
from pyrovae.evaluation.inference._playback import Playback, record
from pyrovae.model import Latents, VAEModel
from pyrovae.posteriors import Posterior

_FAN_IN = 8  # inputs of a layer above which its weights take smaller steps


class OwnFamily(PerDatum):
    """The guide with a copy of its parameters for every datum, started where the guide is.

    Copied are the parameters of ``model.posterior`` where that is a :class:`~pyrovae.posteriors.Posterior`, and
    otherwise all that the guide uses. An affine layer that sees the same input at every draw is fitted through its
    bias: for one datum its weight, and whatever else makes its input, can do nothing that the bias cannot. So an
    encoder with such a layer at its end is not copied. Modules that are not, and give the same at every draw, run once
    for all data: they may be what cannot be run for many parameters at once (recurrent networks).

    Args:
        model: the model.
        part: ``(x, *covariates)`` of B data.

    Raises:
        ValueError: a guide without parameters, with a site through whose draws no gradient passes, or with operations
            that cannot be run for many parameters at once (``torch.func.vmap``).
    """

    def __init__(self, model: VAEModel, part: tuple[Any, ...]) -> None:
        terms = model.log_terms(*part)
        if stuck := terms.not_reparameterized:
            raise ValueError(
                f"guide site {stuck[0]!r} is not reparameterised, and the own family is fitted by gradients through "
                f"the draws. Ask for families=('mean_field',), or use a distribution with rsample."
            )
        self.can_score = can_score_anywhere(terms)
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
        self._playback = self._steady(names, {id(p) for name, p in places.items() if self._tied[name] in names})
        self._stacked = {n: torch.stack([self._fixed[n]] * len(part[0])).requires_grad_() for n in names}
        # Adam moves a sum over n inputs n times as far as one of its weights.
        self.parameters = [
            (p, min(1.0, _FAN_IN / p[0, 0].numel()) if p.dim() > 2 else 1.0) for p in self._stacked.values()
        ]

    def at(self, parameters: Sequence[Tensor]) -> Self:
        other = copy(self)
        other._stacked = dict(zip(self._stacked, parameters, strict=True))
        other.parameters = [(p, factor) for p, (_, factor) in zip(parameters, self.parameters, strict=True)]
        return other

    def draw(self, num_particles: int) -> Draws:
        def one(run: Any) -> tuple[Latents, Tensor]:  # of a single datum, without its dimension
            latents, log_q = run(None, num_particles)
            return latents.rows(0), log_q.squeeze(1)

        return self._vectorised(one, (self._data_dim, 1))

    def log_prob(self, latents: Latents) -> Float[Tensor, "particles batch"]:
        def one(run: Any, z: Latents) -> Tensor:
            given = {site: value.unsqueeze(self._data_dim) for site, value in z.items()}
            return run(Latents(given, z.num_plates), 0).squeeze(1)

        return self._vectorised(one, 1, latents)

    def _vectorised(self, one: Any, out_dims: Any, *latents: Latents) -> Any:
        """``one(run, *latents)`` of every datum, with ``run(latents, num_particles)`` for its guide."""
        split = [0 if isinstance(c, Tensor) and c.dim() else None for c in self._part]

        def of_datum(parameters: dict[str, Tensor], rows: list[Tensor], z: tuple[Latents, ...], *datum: Any) -> Any:
            datum = tuple(c if d is None else c.unsqueeze(0) for c, d in zip(datum, split, strict=True))
            with self._playback.of(rows):
                return one(partial(self._run, parameters, datum), *z)

        rows = list(self._playback.rows)
        in_dims = (0, 0 if rows else None, self._data_dim if latents else None, *split)
        vectorised = vmap(of_datum, in_dims, out_dims, randomness="different")
        try:
            return vectorised(self._stacked, rows, latents, *self._part)
        except RuntimeError as error:
            if not is_not_vectorised(error):
                raise
            raise ValueError(
                f"the guide cannot be run for many parameters at once, as the own family needs, because it branches "
                f"on values, draws from a distribution that torch does not vectorise (Beta, Dirichlet), takes "
                f"gradients itself (a flow of monotone networks), or ends in a recurrent network: end that in a "
                f"torch.nn.Linear. Or ask for families=('mean_field',). torch says: {error}"
            ) from error

    def _run(
        self, parameters: dict[str, Tensor], part: tuple[Any, ...], latents: Latents | None, num_particles: int
    ) -> Any:
        values = {**self._fixed, **parameters}
        everywhere = {place: values[name] for place, name in self._tied.items()}
        # torch's own handling of ties would leave a module reached by two paths with the replaced values.
        return functional_call(self._guide, everywhere, (latents, num_particles, *part), tie_weights=False)

    def _datum(self, row: int, copies: int = 1) -> tuple[Any, ...]:
        rows = slice(row, row + 1)
        return tuple(torch.cat([c[rows]] * copies) if isinstance(c, Tensor) and c.dim() else c for c in self._part)

    def _to_fit(self, names: list[str]) -> list[str]:
        """Those of the parameters that are to be copied, found by runs of the guide on one datum."""
        candidates = {n: self._fixed[n].clone().requires_grad_() for n in names}
        once = [n for n, count in Counter(self._tied.values()).items() if count == 1 and n in candidates]
        layers = {
            layer: path
            for path, layer in self._guide.named_modules()
            if isinstance(layer, nn.Linear) and layer.bias is not None and f"{path}.bias" in once
        }
        with torch.enable_grad():
            with _rows_seen(layers) as rows:
                self._run(candidates, self._datum(0), None, 2)
            single = [layer for layer in layers if rows[layer] == 1]
            with _inputs_detached(single):
                latents, log_q = self._run(candidates, self._datum(0), None, 2)
            self._data_dim = latents.data_dim
            total = log_q.sum() + sum(z.sum() for z in latents.values())
            used: Any = []
            if total.requires_grad:
                used = torch.autograd.grad(total, list(candidates.values()), allow_unused=True)
        redundant = {f"{layers[layer]}.weight" for layer in single}
        names = [
            n for n, gradient in zip(candidates, used, strict=bool(used)) if gradient is not None and n not in redundant
        ]
        if not names:
            raise ValueError("the guide has no parameters to fit: ask for families=('mean_field',).")
        return names

    def _steady(self, names: list[str], fitted: set[int]) -> Playback:
        """The outputs of modules that what is fitted does not change."""
        candidates = {
            path: module
            for path, module in self._guide.named_modules()
            if not any(id(p) in fitted for p in module.parameters()) and module not in (self._guide, self._guide.model)
        }
        parameters = {n: self._fixed[n].clone().requires_grad_() for n in names}

        def run(n: int, k: int) -> None:
            with torch.enable_grad():
                self._run(parameters, self._datum(0, n), None, k)

        playback = record(candidates, run, lambda: self._run({}, self._part, None, 2))
        for row in {0, len(self._part[0]) - 1}:
            draws = []
            for played in (False, True):
                with seeded(0), playback.of([r[row] for r in playback.rows]) if played else nullcontext():
                    latents, log_q = self._run({}, self._datum(row), None, 2)
                    draws.append([log_q, *latents.values()])
            same = (torch.allclose(a, b, 1e-2, 1e-3, equal_nan=True) for a, b in zip(*draws, strict=True))
            if not all(same):
                return Playback()
        return playback


class _Guide(nn.Module):
    """The guide as a module, which ``functional_call`` wants."""

    def __init__(self, model: VAEModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Latents | None, num_particles: int, *part: Any) -> Any:
        """Draws; of given latents, log q."""
        if latents is not None:
            return self.model.log_posterior(*part, latents=latents)
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
def _rows_seen(layers: Iterable[nn.Linear]) -> Iterator[Counter[nn.Module]]:
    """How many rows each of the layers sees while the block runs."""
    rows: Counter[nn.Module] = Counter()

    def count(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        rows[layer] += inputs[0].numel() // inputs[0].shape[-1]

    with _before_forward(layers, count):
        yield rows


def _inputs_detached(layers: Iterable[nn.Linear]) -> AbstractContextManager[None]:
    """Let no gradient pass to what makes the inputs of the layers."""
    return _before_forward(layers, lambda layer, inputs: tuple(t.detach() for t in inputs))


@contextmanager
def _before_forward(layers: Iterable[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(hook).remove)
        yield
