"""A watch on posterior collapse while a model trains."""

import warnings
from typing import Any

from pyrovae._checks import require_at_least
from pyrovae.evaluation._run import EvaluationRun
from pyrovae.evaluation.latents._collapse import check_threshold, require_latents
from pyrovae.evaluation.latents._dimensions import measure
from pyrovae.training import FitResult

_PATIENCE, _START = 5, 10  # looks in a row, because latents also die and wake; the latter before any has been active


class CollapseMonitor:
    """A callback for :func:`~pyrovae.fit` that watches the latents and warns once when they die.

    At every look the epoch's record, and so ``run.history``, gets ``rate`` (E KL(q(z | x) ‖ p(z)), in nats) and
    ``active_units`` (Burda et al. 2016; see :func:`~pyrovae.collapse`); with several latent sites also ``kl_<site>``
    for each, which sum to the rate. The warning comes when for five looks in a
    row no dimension is active, or fewer than half of the most seen at this KL weight or a higher one (so that a
    warm-up may prune dimensions); after ten where none has been active yet, because many models start with all
    latents silent. Looks at weight zero do not count.

    Training goes on as it would without: modes, gradients and random state are left alone.

    Args:
        x: data to look at ``(N, *event_shape)``; some hundreds, held out, suffice.
        covariates: passed to model and guide.
        every: epochs from one look to the next.
        threshold: activity above which a dimension is active.
        num_samples: draws per datum, the same at every look.
        seed: seed of the draws.

    Raises:
        ValueError: bad arguments; at the first look bad data (see :func:`~pyrovae.log_marginal`) or a single datum.
    """

    def __init__(
        self,
        x: Any,
        *covariates: Any,
        every: int = 1,
        threshold: float = 0.01,
        num_samples: int = 16,
        seed: int = 0,
    ) -> None:
        require_at_least(1, every=every)
        require_at_least(2, num_samples=num_samples)
        check_threshold(threshold)
        self._fields = x, covariates
        self._every, self._threshold, self._num_samples, self._seed = every, threshold, num_samples, seed
        self._records: list[dict[str, float]] | None = None  # of the run that is watched
        self._seen: list[tuple[float, int]] = []  # KL weight and active dimensions of every look
        self._low, self._warned = 0, False
        self._last: float | None = None  # epoch of a run that is taken up again

    def state_dict(self) -> dict[str, Any]:
        """What has been seen of a run, for a checkpoint."""
        last = self._records[-1]["epoch"] if self._records else self._last
        return {"seen": [list(look) for look in self._seen], "low": self._low, "warned": self._warned, "last": last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the run that :meth:`state_dict` is of."""
        self._records, self._seen = None, [(float(weight), int(active)) for weight, active in state["seen"]]
        self._low, self._warned, self._last = int(state["low"]), bool(state["warned"]), state["last"]

    def _start(self, run: FitResult) -> None:
        goes_on = self._records is None and self._last is not None and run.records[-1]["epoch"] > self._last
        self._records = run.records
        if not goes_on:
            self._seen, self._low, self._warned = [], 0, False

    def __call__(self, run: FitResult) -> None:
        record = run.records[-1]
        if record["epoch"] % self._every:
            return
        x, covariates = self._fields
        model: Any = run.model
        options: Any = {"seed": self._seed, "progress": False, "compile": "off"}
        evaluation = EvaluationRun("CollapseMonitor", model, x, covariates, **options)
        require_at_least(2, **{"the number of data in x": len(evaluation.data)})
        with evaluation:
            if run.records is not self._records:
                self._start(run)
                require_latents(evaluation)
            measured = measure(evaluation, self._num_samples, self._threshold)
        active, total = int(measured.dimensions["active"].sum()), int(measured.dimensions["activity"].notna().sum())
        record["rate"], record["active_units"] = float(measured.rate.mean()), active
        if len(measured.kl) > 1:
            record.update({f"kl_{site}": float(kl.mean()) for site, kl in measured.kl.items()})
        weight = record.get("beta", 1.0)
        if weight > 0 and total:
            self._judge(record, weight, active, total)

    def _judge(self, record: dict[str, float], weight: float, active: int, total: int) -> None:
        self._seen.append((weight, active))
        most = max(a for w, a in self._seen if w >= weight)
        self._low = self._low + 1 if active == 0 or 2 * active < most else 0
        if self._low < (_PATIENCE if any(a for _, a in self._seen) else _START) or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"posterior collapse at epoch {record['epoch']}: {active} of {total} latent dimensions are active (at most "
            f"{most} before, at this KL weight), rate {record['rate']:.2f} nats, KL weight {weight:g}. Remedies: warm "
            f"the KL up (ELBO(beta=linear_warmup(...))), free bits, a lower beta, a weaker decoder.",
            stacklevel=2,
        )
