"""What an estimate of log p(x) returns: one row per datum, errors, and a verdict on how far to believe it."""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd

from pyrovae._arguments import encode
from pyrovae._checks import require_at_least, shown
from pyrovae.evaluation._arviz import container, group
from pyrovae.evaluation._result import Provenance, Result, as_arrays, as_frame, decode_plain
from pyrovae.evaluation.marginal._tail import khat_threshold
from pyrovae.evaluation.marginal._verdict import combined_se, is_reliable, mean_error, se_over_data, verdict

_GROUP = "log_marginal"


@dataclass(frozen=True, kw_only=True)
class MarginalResult(Result):
    """Estimates of log p(x), in nats.

    Attributes:
        pointwise: one row per datum: ``log_px`` (= L_K), ``mc_se`` (its Monte Carlo standard error), ``draws`` (K),
            ``ess`` (effective sample size of the K weights), ``khat`` (their Pareto shape), ``elbo`` (= L_1),
            ``non_finite`` (weights that were NaN or +inf), ``jackknife`` (L_K without its bias of order 1/K), ``rise``
            (L_K - L_K/10), ``halves`` (L_K/2 of the first half of the draws minus that of the second), ``reliable`` and
            ``reason`` (see :func:`~pyrovae.evaluation.judge`), and ``L_k``, ``L_k_se`` for every k in
            ``bounds``, NaN for data that had fewer draws.
        num_samples: K; with a ``target_mc_se`` the most draws that a datum may have.
        bounds: the sizes k at which L_k was computed.
        num_observed: how many dimensions of a datum are observed, on average; ``None`` where they cannot be counted.
        discrete: whether the likelihood is a probability mass function.
        proposal: what the draws came from, ``"posterior"`` or ``"prior"``.
        validation_data: whether these are the data by which ``fit`` chose the epoch.
        provenance: the data, the model and the seed.
    """

    pointwise: pd.DataFrame
    num_samples: int
    bounds: tuple[int, ...]
    num_observed: float | None
    discrete: bool
    proposal: str = "posterior"
    validation_data: bool = False

    @property
    def khat_threshold(self) -> float:
        """k̂ above which K draws do not suffice."""
        return khat_threshold(self.num_samples)

    @property
    def mean_error(self) -> float:
        """How far the mean of ``log_px`` may be from that of log p(x), in nats, as far as the draws can tell (see
        :func:`~pyrovae.evaluation.mean_error`): infinite where they cannot, NaN where it is no estimate.
        """
        return mean_error(self.pointwise, self.num_samples)

    @property
    def reliable(self) -> bool:
        """Whether the mean has a :attr:`mean_error`, and at most half of the data are flagged."""
        return is_reliable(self.pointwise, self.mean_error)

    @property
    def verdict(self) -> str:
        """How far the mean can be off, and what speaks against single data."""
        remedy = "use more draws, a richer posterior, or ais"
        seen = " fit chose the epoch by these data: others have a lower log p(x)." if self.validation_data else ""
        return verdict(self.pointwise, self.mean_error, f"L_{self.num_samples}", remedy) + seen

    def summary(self) -> pd.Series:
        """Means over data: ``se_data`` is their standard error from having N data, ``mc_se`` from having K draws;
        ``draws`` is the mean number of them.
        """
        p = self.pointwise
        mean = p["log_px"].mean(skipna=False)
        row: dict[str, Any] = {
            "N": len(p),
            "K": self.num_samples,
            "draws": p["draws"].mean(),
            "log_px": mean,
            "se_data": se_over_data(p["log_px"]),
            "mc_se": combined_se(p["mc_se"]),
            "median": p["log_px"].median(skipna=False),
            "worst": p["log_px"].min(skipna=False),
            "elbo": p["elbo"].mean(skipna=False),
            "jackknife": p["jackknife"].mean(skipna=False),
            "median_ess": p["ess"].median(),
            "median_khat": p["khat"].median(),
            "khat_high": float((~(p["khat"] <= self.khat_threshold)).mean()),
            "unreliable": float((~p["reliable"]).mean()),
            "non_finite": int(((p["non_finite"] > 0) | ~np.isfinite(p["log_px"])).sum()),
        }
        if self.discrete and self.num_observed:
            row["bits_per_dim"] = -mean / (self.num_observed * math.log(2.0))
        return pd.Series(row, name=self.provenance.model_name)

    def bound_table(self) -> pd.DataFrame:
        """L_k for every k, from the same draws: mean over data, ``se_data`` and ``mc_se``."""
        p = self.pointwise
        rows = {
            k: {
                "log_px": p[f"L_{k}"].mean(skipna=False),
                "se_data": se_over_data(p[f"L_{k}"]),
                "mc_se": combined_se(p[f"L_{k}_se"]),
            }
            for k in self.bounds
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("k")

    def worst(self, n: int = 10, by: str = "khat") -> pd.DataFrame:
        """The n data that look worst: with the highest ``khat``, ``mc_se``, ``halves``, or the lowest anything else.

        Undefined values come first.
        """
        require_at_least(1, n=n)
        if not isinstance(by, str) or by not in self.pointwise:
            raise ValueError(
                f"by must be a column of pointwise; got {shown(by)}. It has {', '.join(map(str, self.pointwise))}."
            )
        values = self.pointwise[by].abs() if by == "halves" else self.pointwise[by]
        order = values.reset_index(drop=True).sort_values(  # labels of data need not be unique
            ascending=by not in ("khat", "mc_se", "halves", "non_finite"), na_position="first"
        )
        return self.pointwise.iloc[order.index[:n]]

    def to_arviz(self) -> Any:
        """The per-datum results as group ``log_marginal`` of ArviZ's container: ``InferenceData`` (ArviZ 0.x) or
        ``xarray.DataTree`` (1.x), with :meth:`summary` as attributes, and the index, level by level, as coordinates
        ``index_0``, ... (numbers, dates or text). :meth:`from_arviz` reads it back.
        """
        described, arrays = as_arrays(self.pointwise)
        names = list(map(str, described["columns"]))
        columns = {name: ("datum", array) for name, array in zip(names, arrays, strict=False)}
        facts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "pointwise"}
        facts |= {"provenance": vars(self.provenance), "pointwise": described}
        attrs = {"data_hash": self.provenance.data_hash, "model_name": self.provenance.model_name}
        attrs |= {**{str(name): value for name, value in self.summary().items()}, "result": json.dumps(encode(facts))}
        coords = {"datum": np.arange(len(self.pointwise))} | {
            f"index_{i}": ("datum", level) for i, level in enumerate(arrays[len(names) :])
        }
        import xarray

        return container({_GROUP: xarray.Dataset(columns, coords=coords, attrs=attrs)})

    @classmethod
    def from_arviz(cls, data: Any) -> Self:
        """What :meth:`to_arviz` stored, also after a round trip through a netCDF file.

        Args:
            data: an ``InferenceData`` or ``DataTree`` with the group ``log_marginal``.

        Raises:
            ValueError: there is no such group.
        """
        if not hasattr(data, "groups"):
            raise TypeError(f"data must be an InferenceData or DataTree; got {shown(data)}.")
        dataset = group(data, _GROUP)
        facts = decode_plain(json.loads(dataset.attrs["result"]))
        described = facts.pop("pointwise")
        names = [*described["columns"], *(f"index_{i}" for i in range(len(described["index"])))]
        pointwise = as_frame(described, [dataset[name].to_numpy() for name in names])
        provenance = Provenance(**facts.pop("provenance"))
        return cls(pointwise=pointwise.astype({"reliable": bool, "reason": str}), provenance=provenance, **facts)
