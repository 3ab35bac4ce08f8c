"""The ELBO taken apart in three ways, datum by datum, from the same draws."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae._checks import require_at_least
from pyrovae._graph import Compile
from pyrovae.evaluation._result import Result
from pyrovae.evaluation._run import EvaluationRun
from pyrovae.evaluation.marginal._result import MarginalResult
from pyrovae.evaluation.marginal._stream import WeightStream
from pyrovae.evaluation.marginal._verdict import combined_se, se_over_data
from pyrovae.model import LogTerms, VAEModel


@dataclass(frozen=True, kw_only=True)
class ElboTerms(Result):
    """The ELBO and its parts, in nats.

    Attributes:
        pointwise: one row per datum. ``elbo`` with its Monte Carlo standard error ``elbo_se``; ``reconstruction``
            and ``kl``; ``expected_log_joint`` and ``entropy``; ``log_px`` and ``kl_to_posterior``. With several latent
            sites ``kl_<site>`` for each, which sum to ``kl``. ``kl_exact`` is the KL in closed form, where that is
            known at every site; with several sites ``kl_exact_<site>`` wherever it is known at that site.
        num_samples: K, draws per datum.
        log_px_given: whether ``log_px`` was passed; otherwise it is L_K of the same draws.
        provenance: the data, the model and the seed.
    """

    pointwise: pd.DataFrame
    num_samples: int
    log_px_given: bool

    def summary(self) -> pd.Series:
        """Means over data, with the ELBO's standard errors from having N data (``elbo_se_data``) and K draws
        (``elbo_mc_se``).
        """
        p = self.pointwise
        row: dict[str, Any] = {"N": len(p), "K": self.num_samples}
        row |= {name: p[name].mean(skipna=False) for name in map(str, p.columns) if name != "elbo_se"}
        row |= {"elbo_se_data": se_over_data(p["elbo"]), "elbo_mc_se": combined_se(p["elbo_se"])}
        return pd.Series(row, name=self.provenance.model_name)


def elbo_terms(
    model: VAEModel,
    x: Float[Tensor, "data *event"] | Any,
    *covariates: Any,
    num_samples: int = 100,
    log_px: MarginalResult | Float[Tensor, "data"] | Any = None,
    seed: int | None = 0,
    device: str | torch.device | None = None,
    memory_budget: int | None = None,
    compile: Compile = "auto",
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
        memory_budget: bytes that a block of draws may take; by default 64 MiB on a CPU, 1 GiB on CUDA. Other blocks are
            other draws.
        compile: as in :func:`~pyrovae.log_marginal`.
        progress: show a progress bar.

    Raises:
        TypeError: ``model`` is not a :class:`~pyrovae.VAEModel`; ``log_px`` of another kind.
        ValueError: bad data or arguments (see :func:`~pyrovae.log_marginal`), ``log_px`` of other data.
    """
    require_at_least(1, num_samples=num_samples)
    options: Any = {"seed": seed, "device": device, "memory_budget": memory_budget}
    run = EvaluationRun("elbo_terms", model, x, covariates, **options, compile=compile, progress=progress)
    given = None if log_px is None else run.data.log_px(log_px)[0]
    with run:

        def draw(k: int, *part: Any) -> dict[str, Tensor]:
            return _parts(model.log_terms(*part, num_particles=k))

        sizes = run.plan(draw, num_samples)
        parts_of = run.graph(draw, sizes, num_samples)

        def compute(rows: slice, at_once: int) -> dict[str, Tensor]:
            part, sums = run.part(rows), dict[str, Any]()
            stream = WeightStream(rows.stop - rows.start, num_samples, (1, num_samples), run.device)
            for k in run.draws(rows, num_samples, at_once):
                parts = parts_of(k, *part)
                for name, value in parts.items():
                    sums[name] = sums.get(name, 0.0) + value.sum(0)
                log_weight = parts["expected_log_joint"] + parts["entropy"]
                stream.update(log_weight)
                run.advance(log_weight.numel())
            elbo, elbo_se = stream.bound(1)
            means = {name: total / num_samples for name, total in sums.items()}
            return {"elbo": elbo, "elbo_se": elbo_se, "log_px": stream.log_mean, **means}

        columns = run.collect(compute, sizes, total=num_samples, description="ELBO", required=["elbo"])
        provenance = run.provenance()
    if given is not None:
        columns["log_px"] = given
    columns["kl_to_posterior"] = columns["log_px"] - columns["elbo"]
    first = ["elbo", "elbo_se", "reconstruction", "kl", "expected_log_joint", "entropy", "log_px", "kl_to_posterior"]
    table = pd.DataFrame({name: columns[name] for name in dict.fromkeys([*first, *columns])})
    return ElboTerms(
        pointwise=run.data.table(table),
        num_samples=num_samples,
        log_px_given=given is not None,
        provenance=provenance,
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
