"""The ELBO taken apart in three ways, datum by datum, from the same draws."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae._checks import ARRAYS, as_tensor, at_least
from pyrovae._random import seeded
from pyrovae.evaluation._blocks import blocks
from pyrovae.evaluation._strict import TestSet, as_test_set, model_name, strict
from pyrovae.evaluation.marginal._result import MarginalResult, combined_se, se_over_data
from pyrovae.evaluation.marginal._stream import WeightStream
from pyrovae.model import LogTerms, VAEModel


@dataclass(frozen=True)
class ElboTerms:
    """The ELBO and its parts, in nats.

    Attributes:
        pointwise: one row per datum. ``elbo`` with its Monte Carlo standard error ``elbo_se``; ``reconstruction``
            and ``kl``; ``expected_log_joint`` and ``entropy``; ``log_px`` and ``kl_to_posterior``. With several latent
            sites ``kl_<site>`` for each, which sum to ``kl``. ``kl_exact`` is the KL in closed form, where that is
            known at every site; with several sites ``kl_exact_<site>`` wherever it is known at that site.
        num_samples: K, draws per datum.
        log_px_given: whether ``log_px`` was passed; otherwise it is L_K of the same draws.
        data_hash: content hash of the data evaluated, tensor covariates included.
        model_name: class of the model, with its posterior where it has one.
        seed: seed of the draws.
    """

    pointwise: pd.DataFrame
    num_samples: int
    log_px_given: bool
    data_hash: str
    model_name: str
    seed: int | None

    def summary(self) -> pd.Series:
        """Means over data, with the ELBO's standard errors from having N data (``elbo_se_data``) and K draws
        (``elbo_mc_se``).
        """
        p = self.pointwise
        row: dict[str, Any] = {"N": len(p), "K": self.num_samples}
        row |= {name: p[name].mean(skipna=False) for name in map(str, p.columns) if name != "elbo_se"}
        row |= {"elbo_se_data": se_over_data(p["elbo"]), "elbo_mc_se": combined_se(p["elbo_se"])}
        return pd.Series(row, name=self.model_name)


def elbo_terms(
    model: VAEModel,
    x: Float[Tensor, "data *event"] | Any,
    *covariates: Any,
    num_samples: int = 100,
    log_px: MarginalResult | Float[Tensor, "data"] | Any = None,
    seed: int | None = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> ElboTerms:
    """Take the ELBO apart (Kingma & Welling 2014, arXiv:1312.6114; Hoffman & Johnson 2016).

    With z ~ q(z | x), all of it averaged over the same draws, so that every line adds up to rounding:

        elbo = E log p(x | z) - KL(q(z | x) ‖ p(z))    = reconstruction - kl
             = E log p(x, z) + H(q(z | x))             = expected_log_joint + entropy
             = log p(x) - KL(q(z | x) ‖ p(z | x))      = log_px - kl_to_posterior

    Every column is unbiased save the last two where ``log_px`` is not given: L_K lies below log p(x), and
    ``kl_to_posterior`` below the truth by as much (see :func:`~pyrovae.log_marginal`); at K = 1 it is 0.
    Evaluation is strict, as in :func:`~pyrovae.log_marginal`.

    Args:
        model: a :class:`~pyrovae.VAEModel`.
        x: data ``(N, *event_shape)``: tensor, array or DataFrame.
        covariates: passed to model and guide; tensors with N rows are split along with ``x``.
        num_samples: K, draws per datum.
        log_px: log p(x), in nats: a result of :func:`~pyrovae.log_marginal` or :func:`~pyrovae.ais` on the same data,
            or one number per datum; by default L_K of the same draws.
        seed: seed of the draws.
        device: where to compute; by default where the model is. The model is put back.
        progress: show a progress bar.

    Raises:
        TypeError: ``model`` is not a :class:`~pyrovae.VAEModel`; ``log_px`` of another kind.
        ValueError: bad data or arguments (see :func:`~pyrovae.log_marginal`), ``log_px`` of other data.
    """
    at_least(1, num_samples=num_samples)
    data = as_test_set("elbo_terms", model, x, covariates)
    given = None if log_px is None else _given(log_px, data)

    columns: dict[str, np.ndarray] = {}
    with (
        strict(model, device) as target,
        seeded(seed),
        tqdm(total=len(data) * num_samples, unit="draw", unit_scale=True, desc="ELBO", disable=not progress) as bar,
    ):
        data.check(model)
        for rows, same_rows in groupby(blocks(model.log_terms, model, data, num_samples), key=itemgetter(0)):
            stream = WeightStream(rows.stop - rows.start, num_samples, (1, num_samples), target)
            sums: dict[str, Tensor] = {}
            for _, terms in same_rows:
                parts = _parts(terms)
                for name, value in parts.items():
                    sums[name] = sums.get(name, 0.0) + value.sum(0)
                log_weight = parts["expected_log_joint"] + parts["entropy"]
                stream.update(log_weight)
                bar.update(log_weight.numel())
            elbo, elbo_se = stream.bound(1)
            means = {"elbo": elbo, "elbo_se": elbo_se, "log_px": stream.log_mean}
            means |= {name: value / num_samples for name, value in sums.items()}
            for name, value in means.items():
                columns.setdefault(name, np.empty(len(data)))[rows] = value.cpu().numpy()
    if given is not None:
        columns["log_px"] = given
    columns["kl_to_posterior"] = columns["log_px"] - columns["elbo"]
    first = ["elbo", "elbo_se", "reconstruction", "kl", "expected_log_joint", "entropy", "log_px", "kl_to_posterior"]
    return ElboTerms(
        pointwise=data.labelled(
            pd.DataFrame({c: columns[c] for c in [*first, *(c for c in columns if c not in first)]})
        ),
        num_samples=num_samples,
        log_px_given=given is not None,
        data_hash=data.hash,
        model_name=model_name(model),
        seed=seed,
    )


def _parts(terms: LogTerms) -> dict[str, Tensor]:
    """What each draw adds to the columns, ``(K, B)``, in float64."""
    sites = list(terms.posterior)
    by_site = {site: terms.kl(site, closed_form=False).double() for site in sites}
    known = {site: kl.double() for site in sites if (kl := terms.closed_form_kl(site)) is not None}
    parts = {
        "reconstruction": _sum(terms.log_likelihood, terms),
        "kl": _sum(by_site, terms),
        "expected_log_joint": _sum(terms.log_likelihood, terms) + _sum(terms.log_prior, terms),
        "entropy": -_sum(terms.log_posterior, terms),
    }
    if len(known) == len(sites):
        parts["kl_exact"] = _sum(known, terms)
    if len(sites) > 1:
        parts |= {f"kl_{site}": kl for site, kl in by_site.items()}
        parts |= {f"kl_exact_{site}": kl for site, kl in known.items()}
    return parts


def _sum(by_site: Mapping[str, Tensor], terms: LogTerms) -> Tensor:
    """Over sites, of which a model without latents has none."""
    if not by_site:
        return terms.reconstruction.new_zeros(terms.shape, dtype=torch.float64)
    return torch.stack([term.double() for term in by_site.values()]).sum(0)


def _given(log_px: Any, data: TestSet) -> np.ndarray:
    """log p(x) as the user passed it, one number per datum."""
    if hasattr(log_px, "pointwise"):
        if log_px.data_hash != data.hash:
            raise ValueError(
                f"log_px was evaluated on other data than x (content {log_px.data_hash}, {data.hash}): pass "
                f"log_marginal(model, x) of the same x, with the same binarisation and covariates."
            )
        return log_px.pointwise["log_px"].to_numpy()
    if not isinstance(log_px, (*ARRAYS, list, tuple)):
        raise TypeError(f"log_px must be a MarginalResult or one number per datum; got {type(log_px).__name__}.")
    data.check_index(log_px, "log_px")
    values = as_tensor(log_px if isinstance(log_px, ARRAYS) else np.asarray(log_px, dtype=np.float64), "log_px")
    if tuple(values.shape) != (len(data),):
        raise ValueError(f"log_px has shape {tuple(values.shape)}; one number for each of {len(data)} data is needed.")
    if bool(values.isnan().any()):
        raise ValueError(f"log_px holds {int(values.isnan().sum())} NaN value(s): drop those data.")
    return values.detach().cpu().double().numpy()
