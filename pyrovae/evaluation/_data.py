"""Data to evaluate on, checked."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Num
from torch import Tensor

from pyrovae._checks import ARRAYS, as_covariates, as_tensor, rows_of
from pyrovae._frames import check_same_index
from pyrovae._hash import content_hash
from pyrovae.model import LogTerms, LossModel, VAEModel
from pyrovae.model._inputs import as_inputs, check_num_covariates
from pyrovae.model._rows import Numbers, as_fields, on_rows
from pyrovae.model._support import check_densities, check_values, checked_terms, fixed_support

_NUMBERS_CHECKED = {"cpu": 2**14, "cuda": 2**22}  # of x that the model is run on at once
_NUMBERS_COMPARED = 2**20  # that are compared with the support, where that is enough


class Checked(NamedTuple):
    """What :meth:`EvaluationData.check` found.

    Attributes:
        terms: those of the first data.
        num_observed: how many dimensions of a datum are observed, on average; ``None`` where they cannot be counted.
    """

    terms: LogTerms
    num_observed: float | None


@dataclass(frozen=True)
class EvaluationData:
    """Data of shape ``(N, *event_shape)``, the covariates that go with them, the index that ``x`` had if it was a
    frame, and the numbers of the rows in what the user passed, where these are some of them.
    """

    x: Num[Tensor, "data *event"]
    covariates: tuple[Any, ...]
    index: pd.Index | None = None
    numbers: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    @cached_property
    def hash(self) -> str:
        """Content hash of the data, tensor covariates included."""
        return content_hash(self.x, *(c for c in self.covariates if isinstance(c, Tensor)))

    def table(self, columns: pd.DataFrame) -> pd.DataFrame:
        """A finished table with one row per datum, under the data's own index."""
        return columns if self.index is None else columns.set_axis(self.index)

    def check_index(self, values: Any, name: str) -> None:
        """Raise a ``ValueError`` where ``values``, one per datum, are a series whose index is not that of the data."""
        if self.index is not None:
            check_same_index({"x": pd.Series(0, self.index), name: values})

    def rows(self, index: Tensor) -> "EvaluationData":
        """The data with these indices."""
        x, *rest = rows_of((self.x, *self.covariates), index)
        return EvaluationData(x, tuple(rest), numbers=index if self.numbers is None else self.numbers[index])

    @property
    def fields(self) -> dict[str, Any]:
        """x and the covariates by the names that errors have for them."""
        return as_fields(self.x, self.covariates)

    def part(self, rows: slice, like: Tensor) -> tuple[Any, ...]:
        """``(x, *covariates)`` of some rows, on the model's device and in its precision."""
        covariates = rows_of(self.covariates, rows)
        # A copy, because how memory is laid out decides how sums are rounded.
        own = like if self.x.is_floating_point() else like.new_empty(0, dtype=self.x.dtype)
        x = self.x[rows].to(own, copy=True, memory_format=torch.contiguous_format)
        return x, *as_covariates(covariates, None, like)

    def check(self, model: VAEModel) -> Checked:
        """Run the model on some data with validation on, and compare all data with the likelihood's support.

        Raises:
            ValueError: see :meth:`VAEModel.check`; values outside the support; a guide that is a point on a continuum.
        """
        like = model.placement
        numbers = max(self.x[0].numel(), 1)
        step = max(2, _NUMBERS_CHECKED[like.device.type] // numbers)
        terms = model.check(*self.part(slice(step), like))
        check_densities(terms)
        counts = []
        for rows in _slices(len(self), step):
            run = partial(_looked_at, model, range(rows.start, len(self)))
            found, x = on_rows(run, self.fields, rows, like)
            counts.append(found.num_observed)
            known = None if self.covariates else fixed_support(found, x)
            if known is not None:  # then nothing is masked, and the model need not run on the others
                break
        if known is not None:
            for rows in _slices(len(self), max(step, _NUMBERS_COMPARED // numbers)):
                check_values(*known, self.part(rows, like)[0], numbers=range(rows.start, len(self)))
        checked = sum(map(len, (count for count in counts if count is not None)))
        total = sum(float(count.sum(dtype=torch.float64)) for count in counts if count is not None)
        return Checked(terms, total / checked if all(count is not None for count in counts) else None)

    def log_px(self, given: Any) -> tuple[np.ndarray, np.ndarray]:
        """log p(x) of every datum as a user passed it, and its standard error, 0 where that is not known.

        Args:
            given: a result of an estimator of log p(x) on these data, or one number per datum.

        Raises:
            TypeError: something else.
            ValueError: a result on other data; another number of values, or NaN among them.
        """
        if {"log_px", "mc_se"} <= set(getattr(given, "pointwise", ())):
            if given.provenance.data_hash != self.hash:
                raise ValueError(
                    f"log_px was evaluated on other data than x (content {given.provenance.data_hash}, {self.hash}): "
                    f"pass a result on the same x, with the same binarisation and covariates."
                )
            return given.pointwise["log_px"].to_numpy(), given.pointwise["mc_se"].to_numpy()
        if not isinstance(given, (*ARRAYS, list, tuple)):
            raise TypeError(
                f"log_px must be a result of log_marginal or ais, or one number per datum; got {given!r:.40}."
            )
        self.check_index(given, "log_px")
        values = as_tensor(given, "log_px").detach().cpu().double().numpy()
        if values.shape != (len(self),):
            raise ValueError(f"log_px has shape {values.shape}; one number for each of {len(self)} data is needed.")
        if np.isnan(values).any():
            raise ValueError(f"log_px holds {int(np.isnan(values).sum())} NaN value(s): drop those data.")
        return values, np.zeros(len(self))


def _slices(n: int, size: int) -> Iterator[slice]:
    """So many rows at a time."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _looked_at(model: VAEModel, numbers: Numbers, n: int, *part: Any) -> tuple[LogTerms, Tensor]:
    return checked_terms(model, *part, numbers=numbers), part[0]


def require_density(function: str, model: Any) -> VAEModel:
    """The model, or a ``TypeError`` if it is none that ``function`` could score data under."""
    if isinstance(model, LossModel):
        raise TypeError(
            f"model: {function} needs log p(x). {type(model).__name__} is trained by its own loss and puts no density "
            f"on the data: use a pyrovae.VAEModel."
        )
    if not isinstance(model, VAEModel):
        raise TypeError(
            f"model: {function} needs a pyrovae.VAEModel, whose model and guide have densities; got "
            f"{type(model).__name__}."
        )
    return model


def as_evaluation_data(
    model: VAEModel | LossModel, x: Any, covariates: tuple[Any, ...], *, counted: bool = True
) -> EvaluationData:
    """Check what a user passed; that there are as many covariates as the model takes, only if they are ``counted``.

    Raises:
        TypeError: data or covariates are a list or tuple.
        ValueError: wrong shape, integer, NaN, masked or empty data, covariates of another length, index or number, a
            DataFrame with other columns than the model was trained on.
    """
    if counted:
        check_num_covariates(model, covariates)
    index = x.index if isinstance(x, (pd.DataFrame, pd.Series)) else None
    return EvaluationData(*as_inputs(model, x, covariates), index)
