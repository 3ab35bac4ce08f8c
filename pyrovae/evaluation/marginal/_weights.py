"""Importance weights, block by block: what is drawn depends on the seed alone, what is scored at once on memory."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae._checks import require_at_least, require_one_of
from pyrovae._graph import Compile
from pyrovae._memory import BLOCK, SLICE, default_budget, plan, probe, within_memory
from pyrovae.evaluation._run import EvaluationRun
from pyrovae.model import Latents, VAEModel

Proposal = Literal["posterior", "prior"]


class LogWeights:
    """log p(x, z) - log q(z | x) for K draws of every datum.

    Draws come in blocks whose sizes follow from the model, the data and K alone. Each block is scored in slices that
    fit the run's memory budget, halved where memory runs out all the same, so that the budget changes rounding at most.
    Where memory does not even suffice to draw a block, the run takes a smaller one; only then are the draws others.

    Args:
        run: the model and the data.
        num_samples: K.
        proposal: ``"posterior"`` draws from the guide, ``"prior"`` from the model, with log p(x | z) as weight.

    Attributes:
        sizes: data and draws in a block.
    """

    def __init__(self, run: EvaluationRun, num_samples: int, proposal: Proposal = "posterior") -> None:
        self._run, self._num_samples, model = run, num_samples, run.model

        def draw(k: int, *part: Any) -> tuple[Latents, Tensor, Tensor | None]:
            if proposal == "prior":  # one run of the model draws and scores
                return model.draw_prior(*part, num_particles=k)
            return *model.draw_posterior(*part, num_particles=k), None

        def score(latents: Latents, *part: Any) -> Tensor:
            return model.log_joint(*part, latents=latents)

        cost = probe(lambda n, k: draw(k, *run.part(slice(n))))
        block, most = BLOCK[run.device.type], run.memory_budget or default_budget(run.device)
        self.sizes = plan(len(run.data), num_samples, block, cost)
        if proposal == "posterior":
            few = draw(10, *run.part(slice(2)))[0]
            cost = probe(lambda n, k: score(_cut(few, slice(k), slice(n)), *run.part(slice(n))))
        self._slice = plan(*self.sizes, min(SLICE[run.device.type], most), cost)
        self._draw = run.graph(draw, self.sizes, num_samples)
        self._score = run.graph(score, self._slice, num_samples)

    def __call__(self, rows: slice, at_once: int) -> Iterator[Float[Tensor, "draws rows"]]:
        """The K log-weights of each of the rows, so many draws at once."""
        part = self._run.part(rows)
        for k in self._run.draws(rows, self._num_samples, at_once):
            latents, log_q, log_likelihood = self._draw(k, *part)
            yield self._log_joint(latents, k, rows) - log_q if log_likelihood is None else log_likelihood

    def _log_joint(self, latents: Latents, k: int, rows: slice) -> Tensor:
        """log p(x, z), slice by slice, in smaller ones once memory has run out."""

        def sliced(sizes: tuple[int, int]) -> Tensor:
            n, out = rows.stop - rows.start, []
            for i in range(0, n, sizes[0]):
                some = slice(i, min(i + sizes[0], n))
                part = self._run.part(slice(rows.start + some.start, rows.start + some.stop))
                if not latents:  # then every draw has the same weight
                    out.append(self._score(latents, *part).expand(k, -1))
                    continue
                draws = [slice(j, j + sizes[1]) for j in range(0, k, sizes[1])]
                out.append(torch.cat([self._score(_cut(latents, d, some), *part) for d in draws]))
            return torch.cat(out, dim=1)

        log_joint, self._slice = within_memory(sliced, self._slice, self._run.device)
        return log_joint


def _cut(latents: Latents, draws: slice, rows: slice) -> Latents:
    """Some draws of some rows, laid out anew."""
    some = latents.draws(draws).rows(rows)
    return Latents({site: z.contiguous() for site, z in some.items()}, some.num_plates)


def log_weights(
    model: VAEModel,
    x: Float[Tensor, "data *event"] | Any,
    *covariates: Any,
    num_samples: int = 5000,
    proposal: Proposal = "posterior",
    seed: int | None = 0,
    device: str | torch.device | None = None,
    memory_budget: int | None = None,
    compile: Compile = "auto",
    progress: bool = True,
) -> Float[Tensor, "draws data"]:
    """All K log-weights log p(x, z) - log q(z | x) of a few data, in nats: those that :func:`~pyrovae.log_marginal`
    reduces, given the same arguments.

    All of them are kept, 8 K N bytes.

    Args:
        model: a :class:`~pyrovae.VAEModel`.
        x: data ``(N, *event_shape)``: tensor, array or DataFrame.
        covariates: passed to model and guide; tensors with N rows are split along with ``x``.
        num_samples: K, draws per datum.
        proposal: as in :func:`~pyrovae.log_marginal`; for ``"prior"`` the weight is log p(x | z).
        seed: seed of the draws. It fixes them for these data together: a datum on its own has other draws.
        device: where to compute; by default where the model is. The model is put back.
        memory_budget: as in :func:`~pyrovae.log_marginal`.
        compile: as in :func:`~pyrovae.log_marginal`.
        progress: show a progress bar.

    Returns:
        ``(K, N)`` in float64, on the CPU.

    Raises:
        TypeError: ``model`` is not a :class:`~pyrovae.VAEModel`.
        ValueError: as :func:`~pyrovae.log_marginal`.
    """
    require_at_least(1, num_samples=num_samples)
    require_one_of(("posterior", "prior"), proposal=proposal)
    options: Any = {"seed": seed, "device": device, "memory_budget": memory_budget}
    with EvaluationRun("log_weights", model, x, covariates, **options, compile=compile, progress=progress) as run:
        weights = LogWeights(run, num_samples, proposal)

        def compute(rows: slice, at_once: int) -> dict[str, Tensor]:
            blocks = []
            for block in weights(rows, at_once):
                blocks.append(block.double().T)
                run.advance(block.numel())
            return {"log_weight": torch.cat(blocks, dim=1)}

        columns = run.collect(compute, weights.sizes, total=num_samples, description="log w", required=["log_weight"])
    return torch.from_numpy(columns["log_weight"]).T
