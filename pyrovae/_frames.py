"""What pandas knows beyond the numbers: names of columns, labels of rows, kinds of values, what is missing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_extension_array_dtype, is_numeric_dtype

Columns = list[list[str] | None]  # names by field, x and then the covariates; None for what has no names
_MAX_NAMES_SHOWN = 6  # names that an error lists


def column_names(frame: pd.DataFrame, name: str) -> list[str]:
    """The names of a frame's columns, as strings, which a file can hold.

    Raises:
        ValueError: two columns of one name.
    """
    names = [str(column) for column in frame.columns]
    if twice := [n for n, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{name} has several columns named {_listed(twice)}: rename them, or pass {name}.to_numpy().")
    return names


def in_order(frame: pd.DataFrame, names: Sequence[str], name: str) -> pd.DataFrame:
    """The columns of ``frame`` in the order of ``names``.

    Raises:
        ValueError: columns that are missing, too many or of one name.
    """
    given = column_names(frame, name)
    missing, surplus = ([n for n in a if n not in b] for a, b in ((names, set(given)), (given, set(names))))
    if missing or surplus:
        found = [f"lacks {_listed(missing)}"] * bool(missing) + [f"has {_listed(surplus)} besides"] * bool(surplus)
        raise ValueError(
            f"{name} {' and '.join(found)}: the model was trained on columns {_listed(names)}. Pass a frame of these, "
            f"in any order, or {name}.to_numpy() if its columns are the model's in all but name."
        )
    place = {n: i for i, n in enumerate(given)}
    return frame if given == list(names) else frame.iloc[:, [place[n] for n in names]]


def check_same_index(values: Mapping[str, Any]) -> None:
    """Raise a ``ValueError`` unless the frames and series among ``values``, by name, label their rows alike."""
    labelled = [(name, v.index) for name, v in values.items() if isinstance(v, (pd.DataFrame, pd.Series))]
    for name, index in labelled[1:]:
        first, expected = labelled[0]
        if len(index) == len(expected) and not index.equals(expected):
            i = int(np.argmax([a != b for a, b in zip(index, expected, strict=True)]))
            raise ValueError(
                f"the index of {name} is not that of {first}: row {i} is {index[i]!r} in one, {expected[i]!r} in the "
                f"other. Pass {name}.loc[{first}.index], or reset_index(drop=True) of both if rows go by position."
            )


def as_numbers(value: pd.DataFrame | pd.Series, name: str) -> np.ndarray:
    """The values of a frame or series as one array, nullable and sparse types included.

    Raises:
        ValueError: text, dates, categories, objects, flags among numbers, or missing values of a nullable type; it
            names the column.
    """
    parts = [value] if isinstance(value, pd.Series) else [value.iloc[:, i] for i in range(value.shape[1])]
    kinds = [part.dtype for part in parts]
    flags = [is_bool_dtype(kind) for kind in kinds]
    for part, kind, flag in zip(parts, kinds, flags, strict=True):
        which = name if isinstance(value, pd.Series) else f"column {part.name!r} of {name}"
        if not is_numeric_dtype(kind) or (flag and not all(flags)):
            raise ValueError(
                f"{which} has dtype {kind}; numbers are needed. Drop it or encode it: .astype(float) for flags and for "
                f"numbers kept as objects, .cat.codes or one column per value for categories."
            )
        if is_extension_array_dtype(kind) and (missing := part.isna()).any():
            raise ValueError(
                f"{which} holds {int(missing.sum())} missing value(s), the first in row {int(np.argmax(missing))}. "
                f"Drop or impute such rows."
            )
    # Types that pandas adds say what NumPy calls them: numpy_dtype, or subtype if they are sparse.
    plain: list[Any] = [getattr(k, "numpy_dtype", getattr(k, "subtype", k)) for k in kinds]
    return value.to_numpy(dtype=np.result_type(*plain)) if plain else value.to_numpy()


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_MAX_NAMES_SHOWN]))
    return shown if len(names) <= _MAX_NAMES_SHOWN else f"{shown}, ... ({len(names)} in all)"
