"""Checks of what users pass to a model: data, and as many covariates as it takes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import pandas as pd
from torch import Tensor

from pyrovae._arguments import ANY_NUMBER, num_after_first
from pyrovae._checks import as_covariates
from pyrovae._frames import check_same_index, column_names
from pyrovae.model._loss_model import LossModel
from pyrovae.model._saving import SaveableModule


def as_inputs(
    model: SaveableModule, x: Any, covariates: tuple[Any, ...], name: str = "x"
) -> tuple[Tensor, tuple[Any, ...]]:
    """Check data ``(N, *event_shape)`` and their covariates, and return them as tensors, where they are; no gradient
    enters.

    Columns of DataFrames are put in the order of those that the model was trained on.

    Args:
        model: the model.
        x: tensor, array, DataFrame or Series.
        covariates: what goes with it: arrays become tensors, the rest is unchanged.
        name: what errors call ``x``.

    Raises:
        TypeError: lists or tuples.
        ValueError: what :meth:`VAEModel.as_data` finds; covariates of another length or index.
    """
    data = model.as_data(x, name, covariates).detach()
    of = "" if name == "x" else name
    check_same_index({name: x} | {f"covariate {i}": c for i, c in enumerate(covariates)})
    rest = as_covariates(covariates, len(data), None, model.columns, of=of)
    return data, tuple(c.detach() if isinstance(c, Tensor) else c for c in rest)


def check_num_covariates(model: SaveableModule, covariates: tuple[Any, ...]) -> None:
    """Raise a ``ValueError`` unless the model takes so many covariates."""
    least, most = num_covariates(model)
    if not least <= len(covariates) <= most:
        wanted = str(most) if least == most else f"{least} to {most}" if most < ANY_NUMBER else f"at least {least}"
        name = f"{type(model).__name__}.{program(model).__name__}"
        raise ValueError(f"{name} takes {wanted} covariate(s); got {len(covariates)}. Pass those it takes, one by one.")


def num_covariates(model: SaveableModule) -> tuple[int, int]:
    """Count the arguments that a model's program needs after ``x``, and those that it takes."""
    return num_after_first(program(model))


def program(model: SaveableModule) -> Callable[..., Any]:
    """The method of a model that takes ``x`` and the covariates: ``loss``, or ``model``."""
    return model.loss if isinstance(model, LossModel) else model.model  # type: ignore[return-value]


@contextmanager
def keep_columns(model: SaveableModule, fields: tuple[Any, ...]) -> Iterator[None]:
    """Tell the model the columns of the fields that it is about to be trained on, unless the block fails. Where it
    knows some already, those stay.
    """
    before = model.columns
    new = [
        column_names(f, "data" if i == 0 else f"covariate {i - 1}") if isinstance(f, pd.DataFrame) else None
        for i, f in enumerate(fields)
    ]
    both = [old or names for old, names in zip_longest(before or [], new)]
    model.columns = both if any(both) else None
    try:
        yield
    except BaseException:
        model.columns = before
        raise
