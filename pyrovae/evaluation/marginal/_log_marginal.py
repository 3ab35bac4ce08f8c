"""Importance-sampled log p(x), with errors and diagnostics for every datum."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae._checks import as_sizes, require_at_least, require_one_of, require_positive
from pyrovae._graph import Compile
from pyrovae._random import seeded
from pyrovae.distributions._capabilities import capabilities
from pyrovae.evaluation._run import EvaluationRun
from pyrovae.evaluation.marginal._pool import pooled
from pyrovae.evaluation.marginal._result import MarginalResult
from pyrovae.evaluation.marginal._stream import WeightStream
from pyrovae.evaluation.marginal._verdict import judge
from pyrovae.evaluation.marginal._weights import LogWeights, Proposal
from pyrovae.model import VAEModel
from pyrovae.model._pairing import narrower_sites

BOUNDS = (1, 10, 100, 500, 1000, 5000)
_PILOT = 200  # draws that decide how many a datum needs for target_mc_se, and the fewest that it gets
_MARGIN = 1.5  # over what the pilot says
_DATA_AT_ONCE = 1000  # whose certainty is looked at
_CERTAIN = 1e-5  # -log q(z) under which z has all the mass, but for rounding


def log_marginal(
    model: VAEModel,
    x: Float[Tensor, "data *event"] | Any,
    *covariates: Any,
    num_samples: int = 5000,
    target_mc_se: float | None = None,
    bounds: Sequence[int] = BOUNDS,
    proposal: Proposal = "posterior",
    seed: int | None = 0,
    device: str | torch.device | None = None,
    memory_budget: int | None = None,
    compile: Compile = "auto",
    progress: bool = True,
) -> MarginalResult:
    """Estimate log p(x) by importance sampling from the guide (Burda et al. 2016, arXiv:1509.00519).

    log p̂(x) = log 1/K Σ_k p(x, z_k) / q(z_k | x). Its expectation lies below log p(x) by about half its
    squared Monte Carlo error, so a tighter q also means less bias: read it beside ``khat`` and ``ess``, or read
    ``verdict``, which does. The ``jackknife`` takes out the bias of order 1/K (Nowozin 2018, ICLR) and is no bound.

    Evaluation is strict: evaluation mode, no gradients, no annealing weight, no scale, no autocast, no TF32;
    weights are accumulated in float64. Memory grows neither with ``num_samples`` nor with the data.

    Under ``torchrun`` every process must call it, with the same model and data. They share the blocks of data, draw
    what a single process would have drawn, and all return the whole result; rank 0 shows its own progress.

    Args:
        model: a :class:`~pyrovae.VAEModel`.
        x: data ``(N, *event_shape)``: tensor, array or DataFrame.
        covariates: passed to model and guide; tensors with N rows are split along with ``x``.
        num_samples: K, draws per datum.
        target_mc_se: ``mc_se`` in nats that is enough for a datum: draws are made until it is reached, 200 at least and
            ``num_samples`` at most, and the column ``draws`` says how many. How many comes first decides a pilot whose
            draws are not used, because stopping by the draws' own error favours those among which the largest weights
            are missing; what few data still miss is drawn in addition.
        bounds: sizes k ≤ K at which to report L_k too, from the same draws; 1, K/10 and K are always among them.
        proposal: ``"posterior"`` draws from the guide; ``"prior"`` from p(z), which is the naive Monte Carlo estimate
            log 1/K Σ_k p(x | z_k). Then ``elbo`` is E[log p(x | z)] under the prior.
        seed: seed of the draws. It alone decides what is drawn, not the memory budget.
        device: where to compute; by default where the model is. The model is put back.
        memory_budget: bytes that scoring may take at once. By default 20 MiB on a CPU, whose caches that suits; up to
            1 GiB on CUDA, at most a quarter of the free memory. Where memory runs out, half as much is taken.
        compile: ``"inductor"`` turns drawing and scoring into machine code, which takes 5 to 30 seconds once for models
            of one architecture and changes rounding; ``"auto"`` does so where minutes of work lie ahead; ``"off"``.
        progress: show a progress bar.

    Raises:
        TypeError: ``model`` is not a :class:`~pyrovae.VAEModel`.
        ValueError: wrong shape, integer, NaN or empty data, values outside the likelihood's support, covariates
            of another length, ``num_samples < 1``, a ``target_mc_se`` that is not positive, an unknown proposal
            or ``compile``, a device that is not there.
    """
    require_at_least(1, num_samples=num_samples)
    bounds = as_sizes(bounds, "bounds", empty=True)
    require_one_of(("posterior", "prior"), proposal=proposal)
    if target_mc_se is not None:
        require_positive(target_mc_se=target_mc_se)
    sizes = tuple(sorted({k for k in bounds if k < num_samples} | {1, max(num_samples // 10, 1), num_samples}))
    options: Any = {"seed": seed, "device": device, "memory_budget": memory_budget}
    with EvaluationRun("log_marginal", model, x, covariates, **options, compile=compile, progress=progress) as run:
        if target_mc_se is None:
            columns = _estimate(run, num_samples, sizes, proposal)
        else:
            columns = _reach(target_mc_se, run, num_samples, sizes, proposal)
        terms, provenance = run.terms, run.provenance()
        exact = not terms.prior
        if exact:  # so that one draw tells as much
            columns |= {"mc_se": np.zeros(len(run.data)), "jackknife": columns["log_px"]}
        leaves_out = _leaves_out(run) if proposal == "posterior" else None
    pointwise = pd.DataFrame(columns)
    verdicts = judge(pointwise, num_samples, exact=exact, bound=leaves_out)
    first = [name for name in columns if not name.startswith("L_")]
    pointwise = pd.concat([pointwise[first], verdicts, pointwise.drop(columns=first)], axis=1)
    return MarginalResult(
        pointwise=run.data.table(pointwise),
        num_samples=num_samples,
        bounds=sizes,
        num_observed=run.num_observed,
        discrete=all(capabilities(p).discrete for p in terms.likelihood.values()),
        proposal=proposal,
        validation_data=any(run.data.hash in getattr(part, "validated_on", ()) for part in model.modules()),
        provenance=provenance,
    )


def _estimate(run: EvaluationRun, num_samples: int, sizes: Sequence[int], proposal: Proposal) -> dict[str, np.ndarray]:
    """The columns of all data, from K draws each."""
    half, tenth = max(num_samples // 2, 1), max(num_samples // 10, 1)
    reached = {k for k in sizes if k <= num_samples} | {1, tenth, half, num_samples}
    weights = LogWeights(run, num_samples, proposal)

    def compute(rows: slice, at_once: int) -> dict[str, Tensor]:
        stream = WeightStream(rows.stop - rows.start, num_samples, reached, run.device)
        for log_weight in weights(rows, at_once):
            stream.update(log_weight)
            run.advance(log_weight.numel())
        return stream_columns(stream, num_samples, sizes)

    return run.collect(compute, weights.sizes, total=num_samples, description="log p(x)", required=["log_px"])


def _reach(
    target_mc_se: float, run: EvaluationRun, num_samples: int, sizes: Sequence[int], proposal: Proposal
) -> dict[str, np.ndarray]:
    """The columns of all data, each from as many draws as it needs."""
    n, least = len(run.data), min(_PILOT, num_samples)
    mc_se, drawn = _estimate(run.within(), least, sizes, proposal)["mc_se"], np.zeros(n, dtype=int)
    seen, columns = np.full(n, least), dict[str, np.ndarray]()
    missed = np.arange(n)
    while len(missed):
        ratio = np.nan_to_num(mc_se[missed] / target_mc_se, nan=np.inf, posinf=np.inf)
        needed = np.minimum(_MARGIN * seen[missed] * np.square(ratio), num_samples) - drawn[missed]
        # At least as many again as were drawn; in few sizes, because each is a run.
        needed = np.maximum(needed, np.maximum(drawn[missed], least)) / least
        more = np.minimum(least * 2 ** np.ceil(np.log2(needed)).astype(int), num_samples - drawn[missed])
        for k in np.unique(more):
            rows = missed[more == k]
            part = _estimate(run.within(torch.from_numpy(rows)), int(k), sizes, proposal)
            if drawn[rows[0]]:
                part = pooled({name: values[rows] for name, values in columns.items()}, part)
            for name, values in part.items():
                columns.setdefault(name, np.empty(n, dtype=values.dtype))[rows] = values
        drawn[missed] += more
        mc_se, seen = columns["mc_se"], drawn
        missed = missed[~(mc_se[missed] <= target_mc_se) & (drawn[missed] < num_samples)]
    return columns


def _leaves_out(run: EvaluationRun) -> np.ndarray:
    """Whether the guide leaves out what the prior has, datum by datum: it puts all mass of a discrete latent on one
    value of several, or it draws a part of the reals only.
    """
    terms, model = run.terms, run.model
    if narrower_sites(terms.posterior, terms.prior):
        return np.ones(len(run.data), dtype=bool)
    discrete = [site for site, p in terms.prior.items() if capabilities(p).discrete]
    if not discrete:
        return np.zeros(len(run.data), dtype=bool)

    def certain(rows: slice, draws: int) -> dict[str, Tensor]:
        with seeded(0):
            part = model.log_terms(*run.part(rows), num_particles=2)
        found = [(part.log_posterior[s] > -_CERTAIN) & (part.log_prior[s] < -_CERTAIN) for s in discrete]
        return {"bound": torch.stack(found).all(1).any(0)}

    return run.collect(certain, (_DATA_AT_ONCE, 1), total=0, description="certain")["bound"]


def stream_columns(stream: WeightStream, num_samples: int, sizes: Sequence[int]) -> dict[str, Tensor]:
    """What :class:`~pyrovae.MarginalResult` has of the K draws in a stream, with L_k for these sizes k."""
    log_px, tenth = stream.log_mean, stream.bound(max(num_samples // 10, 1))[0]
    columns = {
        "log_px": log_px,
        "mc_se": stream.bound(num_samples)[1],
        "draws": torch.full_like(log_px, num_samples, dtype=torch.int64),
        "ess": stream.ess,
        "khat": stream.khat,
        "elbo": stream.bound(1)[0],
        "non_finite": stream.non_finite,
        "jackknife": stream.jackknife,
        "rise": log_px - tenth,
        "halves": stream.difference(max(num_samples // 2, 1)),
    }
    nothing = torch.full_like(log_px, torch.nan)
    for k in sizes:
        columns[f"L_{k}"], columns[f"L_{k}_se"] = stream.bound(k) if k <= num_samples else (nothing, nothing)
    return columns
