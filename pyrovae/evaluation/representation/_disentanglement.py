"""Disentanglement of a model's latents: whether single dimensions hold single factors of the data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyrovae._checks import require_at_least, require_instance, require_not_negative
from pyrovae._frames import check_same_index
from pyrovae._graph import Compile
from pyrovae.evaluation._result import Result
from pyrovae.evaluation._run import EvaluationRun
from pyrovae.evaluation.representation import _factors as scores_of
from pyrovae.model import LossModel, VAEModel


@dataclass(frozen=True, kw_only=True)
class Disentanglement(Result):
    """How well single latent dimensions hold single factors. Scores have no unit; see :func:`disentanglement`.

    Attributes:
        scores: one row per score: its ``score``, its ``chance``, which is what the same codes in random order get, and
            the ``maximum`` that it can reach.
        by_factor: one row per factor: ``mig``, ``sap``, ``completeness``, ``accuracy``.
        mutual_information: I(z_i; v_j) in nats, a row per dimension and a column per factor.
        importance: of each dimension for the prediction of each factor; columns sum to 1.
        active: how many dimensions are active.
        num_data: N.
        provenance: the data, the model, and the seed of the scores that draw and of the random order.
    """

    scores: pd.DataFrame
    by_factor: pd.DataFrame
    mutual_information: pd.DataFrame
    importance: pd.DataFrame
    active: int
    num_data: int

    def summary(self) -> pd.Series:
        """The scores, with N and the number of active dimensions."""
        row: dict[str, Any] = {"N": self.num_data, "active": self.active, **self.scores["score"]}
        return pd.Series(row, name=self.provenance.model_name)


def disentanglement(
    model: VAEModel | LossModel,
    x: Float[Tensor, "data *event"] | Any,
    factors: Int[Tensor, "data factors"] | Any,
    *covariates: Any,
    factor_names: Sequence[str] = (),
    categorical: Sequence[int | str] = (),
    threshold: float = 0.01,
    num_bins: int = 20,
    num_votes: int = 800,
    seed: int = 0,
    device: str | torch.device | None = None,
    memory_budget: int | None = None,
    compile: Compile = "auto",
    progress: bool = True,
) -> Disentanglement:
    """Score the posterior means of data whose factors are known, such as ``datasets.load("sprites")``.

    - ``mig``: mutual information gap (Chen et al. 2018), :func:`~pyrovae.evaluation.mig`;
    - ``sap``: separated attribute predictability (Kumar et al. 2018), :func:`~pyrovae.evaluation.sap`;
    - ``disentanglement``, ``completeness``, ``informativeness``: DCI (Eastwood & Williams 2018) with random forests,
      :func:`~pyrovae.evaluation.dci`;
    - ``factor_vae``: the FactorVAE score (Kim & Mnih 2018), :func:`~pyrovae.evaluation.factor_vae_score`.

    A dimension is active where the variance of its posterior means is above ``threshold``, as in
    :func:`~pyrovae.collapse`. The others are set to a constant for all scores: their means follow the data in digits
    that the posterior's noise drowns. (Published code does so for FactorVAE's alone; ``threshold=0`` leaves all.)

    Args:
        model: a :class:`~pyrovae.VAEModel`, or a :class:`~pyrovae.LossModel` with ``encode(x)``. The latents of several
            sites stand side by side.
        x: data ``(N, *event_shape)``: tensor, array or DataFrame.
        factors: ``(N, F)`` integers: ``data.factors["test"]``.
        covariates: passed to the guide.
        factor_names: of the columns of ``factors``.
        categorical: factors whose values have no order, by name or column, for ``sap``.
        threshold: variance of the means above which a dimension is active.
        num_bins: bins of each dimension for ``mig``.
        num_votes: votes of ``factor_vae``.
        seed: seed of what is drawn.
        device: where to encode; by default where the model is. The model is put back.
        memory_budget: bytes that encoding may take at once; by default 64 MiB on a CPU, 1 GiB on CUDA. Means
            that have to be estimated from draws are others in other blocks.
        compile: as in :func:`~pyrovae.log_marginal`, for encoders that read no values.
        progress: show a progress bar.

    Raises:
        TypeError: a model that does not encode.
        ValueError: bad data, factors that are no integers or have a single value, or of another number of data.
    """
    if not isinstance(model, (VAEModel, LossModel)) or not hasattr(model, "encode"):
        raise TypeError(
            f"model: disentanglement needs a pyrovae.VAEModel, or a model with encode(x); got {type(model).__name__}."
        )
    require_not_negative(threshold=threshold)
    require_at_least(2, num_bins=num_bins)
    require_at_least(1, num_votes=num_votes)
    labels: dict[str, tuple[Any, Any]] = {"factor_names": (factor_names, str)}
    labels["categorical"] = (categorical, str | int | np.integer)
    for argument, (items, kinds) in labels.items():
        require_instance(tuple | list, **{argument: items})
        for item in items:
            require_instance(kinds, **{argument: item})
    if seed is None:
        raise ValueError("seed must be an integer: scores draw, and are to be compared; got None.")
    check_same_index({"x": x, "factors": factors})
    options: Any = {"seed": seed, "device": device, "memory_budget": memory_budget, "density": False}
    with EvaluationRun("disentanglement", model, x, covariates, **options, compile=compile, progress=progress) as run:
        codes, v = scores_of.as_arrays(_codes(run), factors)
        provenance = run.provenance()
    names = list(factor_names) or [str(j) for j in range(v.shape[1])]
    if len(names) != v.shape[1]:
        raise ValueError(f"factor_names must name {v.shape[1]} factors; got {len(names)}.")
    for name in categorical:
        if isinstance(name, str) and name not in names:
            raise ValueError(f"categorical names {name!r}, which is not one of the factors {', '.join(names)}.")
    columns = [names.index(name) if isinstance(name, str) else name for name in categorical]
    scores_of.check_categorical(columns, v)

    active = codes.var(0) > threshold
    codes = np.where(active, codes, 0.0)
    settings: dict[str, Any] = {"categorical": columns, "num_bins": num_bins, "num_votes": num_votes, "seed": seed}
    scores, by_factor, importance = _scores(codes, v, **settings)
    shuffled = codes[np.random.default_rng(seed).permutation(len(codes))]
    chance = _scores(shuffled, v, **settings)[0]
    maximum = dict.fromkeys(scores, 1.0)
    maximum["mig"] = scores_of.largest_mig(codes, v, num_bins=num_bins)
    maximum["sap"] = 1 - sum(1 / len(np.unique(v[:, j])) for j in set(columns)) / v.shape[1]
    dimensions = pd.RangeIndex(codes.shape[1], name="dim")
    return Disentanglement(
        scores=pd.DataFrame({"score": scores, "chance": chance, "maximum": maximum}).rename_axis("metric"),
        by_factor=pd.DataFrame(by_factor, index=pd.Index(names, name="factor")),
        mutual_information=pd.DataFrame(
            scores_of.mutual_information(codes, v, num_bins=num_bins), dimensions, columns=names
        ),
        importance=pd.DataFrame(importance, dimensions, columns=names),
        active=int(active.sum()),
        num_data=len(run.data),
        provenance=provenance,
    )


def _codes(run: EvaluationRun) -> np.ndarray:
    """Posterior means ``(N, D)``, site by site, each latent flattened."""

    seed: Any = {"seed": None} if isinstance(run.model, VAEModel) else {}  # the run's: means may have to be drawn

    def encode(k: int, *part: Any) -> Tensor:
        mean = run.model.encode(*part, **seed)
        sites = mean.values() if isinstance(mean, dict) else [mean]
        return torch.cat([z.flatten(1).double() for z in sites], 1)

    encode(1, *run.part(slice(2)))  # whose errors name the row
    sizes = run.plan(encode)
    codes_of = run.graph(encode, sizes)

    def compute(rows: slice, draws: int) -> dict[str, Tensor]:
        run.reseed(rows.start)
        run.advance(rows.stop - rows.start)
        return {"codes": codes_of(draws, *run.part(rows))}

    return run.collect(compute, sizes, total=1, description="codes", unit="datum", required=["codes"])["codes"]


def _scores(
    codes: np.ndarray, v: np.ndarray, *, categorical: list[int], num_bins: int, num_votes: int, seed: int
) -> tuple[dict[str, float], dict[str, np.ndarray], np.ndarray]:
    """By score, by factor, and the importances."""
    mig = scores_of.mig(codes, v, num_bins=num_bins)
    sap = scores_of.sap(codes, v, categorical=categorical)
    dci = scores_of.dci(codes, v, seed=seed)
    scores = {
        "mig": float(mig.mean()),
        "sap": float(sap.mean()),
        "disentanglement": dci.disentanglement,
        "completeness": dci.completeness,
        "informativeness": dci.informativeness,
        "factor_vae": scores_of.factor_vae_score(codes, v, num_votes=num_votes, seed=seed),
    }
    by_factor = {"mig": mig, "sap": sap, "completeness": dci.by_factor, "accuracy": dci.accuracy}
    return scores, by_factor, dci.importance
