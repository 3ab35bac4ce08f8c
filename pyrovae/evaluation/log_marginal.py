"""Importance-sampled log p(x), with errors and diagnostics for every datum."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae._checks import at_least, one_of
from pyrovae._distributed import common_seed, connect, joined, rank
from pyrovae._graph import COMPILE, Compile
from pyrovae._random import seeded
from pyrovae.evaluation.result import MarginalResult, judge
from pyrovae.evaluation.stream import WeightStream
from pyrovae.evaluation.strict import as_test_set, fingerprint, model_name, refuse_to_mix, strict, weights_hash
from pyrovae.evaluation.weights import LogWeights
from pyrovae.model import VAEModel
from pyrovae.model.capabilities import capabilities

BOUNDS = (1, 10, 100, 500, 1000, 5000)


def log_marginal(
    model: VAEModel,
    x: Float[Tensor, "data *event"] | Any,
    *covariates: Any,
    num_samples: int = 5000,
    bounds: Sequence[int] = BOUNDS,
    proposal: Literal["posterior", "prior"] = "posterior",
    seed: int | None = 0,
    device: str | torch.device | None = None,
    memory_budget: int | None = None,
    compile: Compile = "auto",
    progress: bool = True,
) -> MarginalResult:
    """Estimate log p(x) by importance sampling from the guide (Burda et al. 2016, arXiv:1509.00519).

    log p̂(x) = log 1/K Σ_k p(x, z_k) / q(z_k | x). Its expectation lies below log p(x) by about half its
    squared Monte Carlo error, so a tighter q also means less bias: read it beside ``khat`` and ``ess``, or read
    ``reliable``, which does. The ``jackknife`` takes out the bias of order 1/K (Nowozin 2018, ICLR) and is no bound.

    Evaluation is strict: evaluation mode, no gradients, no annealing weight, no scale, no autocast, no TF32;
    weights are accumulated in float64. Memory grows neither with ``num_samples`` nor with the data.

    Under ``torchrun`` every process must call it, with the same model and data. They share the blocks of data, draw
    what a single process would have drawn, and all return the whole result; rank 0 shows its own progress.

    Args:
        model: a :class:`~pyrovae.VAEModel`.
        x: data ``(N, *event_shape)``: tensor, array or DataFrame.
        covariates: passed to model and guide; tensors with N rows are split along with ``x``.
        num_samples: K, draws per datum.
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
            of another length, ``num_samples < 1``, an unknown proposal or ``compile``, a device
            that is not there.
    """
    at_least(1, num_samples=num_samples)
    for k in bounds:
        at_least(1, bounds=k)
    one_of(COMPILE, compile=compile)
    half, tenth = max(num_samples // 2, 1), max(num_samples // 10, 1)
    sizes = tuple(sorted({k for k in bounds if k < num_samples} | {1, tenth, num_samples}))
    connect()
    data = as_test_set("log_marginal", model, x, covariates)

    columns: dict[str, np.ndarray] = {}
    with strict(model, device) as target, seeded(common_seed(seed)):
        checked = data.check(model)
        refuse_to_mix(model, data)
        weights = LogWeights(model, data, num_samples, proposal, memory_budget, compile)
        mine = weights.share()
        total = (mine.stop - mine.start) * num_samples
        silent = not progress or rank() > 0
        with tqdm(total=total, unit="draw", unit_scale=True, desc="log p(x)", disable=silent) as bar:
            for rows in weights.parts(mine):
                stream = WeightStream(rows.stop - rows.start, num_samples, {*sizes, half}, target)
                for log_weight in weights(rows):
                    stream.update(log_weight)
                    bar.update(log_weight.numel())
                for name, values in _columns(stream, sizes, half).items():
                    # Whole columns from the start: small pieces kept between chunks would fragment the heap.
                    column = columns.setdefault(name, np.empty(len(data), dtype=values.dtype))
                    column[rows] = values
        columns = joined(columns, mine)
        marks = fingerprint(model, data)
    pointwise = pd.DataFrame(columns)
    verdicts = judge(pointwise, num_samples)
    first = [name for name in columns if not name.startswith("L_")]
    pointwise = pd.concat([pointwise[first], verdicts, pointwise.drop(columns=first)], axis=1)
    return MarginalResult(
        pointwise=data.labelled(pointwise),
        num_samples=num_samples,
        bounds=sizes,
        num_observed=checked.num_observed,
        discrete=all(capabilities(p).discrete for p in checked.terms.likelihood.values()),
        data_hash=data.hash,
        model_name=model_name(model),
        seed=seed,
        proposal=proposal,
        fingerprint=marks,
        model_hash=weights_hash(model),
        validation_data=any(data.hash in getattr(part, "validated_on", ()) for part in model.modules()),
    )


def _columns(stream: WeightStream, sizes: Sequence[int], half: int) -> dict[str, np.ndarray]:
    columns = {
        "log_px": stream.log_mean,
        "mc_se": stream.bound(sizes[-1])[1],
        "ess": stream.ess,
        "khat": stream.khat,
        "elbo": stream.bound(1)[0],
        "non_finite": stream.non_finite,
        "jackknife": stream.jackknife,
        "halves": stream.difference(half),
    }
    for k in sizes:
        columns[f"L_{k}"], columns[f"L_{k}_se"] = stream.bound(k)
    return {name: value.cpu().numpy() for name, value in columns.items()}
