"""Checks of what users pass in. Every error names the argument, what came, and the fix."""

import difflib
import math
import os
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae._compat.torch import tree_map_only
from pyrovae._frames import Columns, as_numbers, in_order

T = TypeVar("T")
_TOO_LARGE = 2**63  # for an integer of torch's or NumPy's
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_MAX_SHOWN = 500  # characters of a value in an error
_NUMBERS_PER_CHECK = 2**20  # of data, looked at at once
_MAX_PATH, _MAX_NAME = 4095, 255  # bytes, on usual systems
ARRAYS = (Tensor, np.ndarray, pd.DataFrame, pd.Series)
HALF = (torch.float16, torch.bfloat16)


def shown(value: Any) -> str:
    """A value as errors show it: in one line, by its class and shape where it takes more."""
    text = "\n" if isinstance(value, Tensor) else repr(value)  # of a tensor, one that takes a look at its values
    if "\n" in text or len(text) > _MAX_SHOWN:
        shape = getattr(value, "shape", None)
        return f"a {type(value).__name__}" + ("" if shape is None else f" of shape {tuple(shape)}")
    return text


def lookup(registry: Mapping[str, T], name: str, kind: str) -> T:
    """Look up a name in a registry (hyphens and case do not matter); a ``ValueError`` lists the names."""
    key = name.lower().replace("-", "_").replace(" ", "_") if isinstance(name, str) else ""
    if key in registry:
        return registry[key]
    close = difflib.get_close_matches(key, registry, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown {kind} {shown(name)}.{hint} Registered: {', '.join(registry)}.")


def require_at_least(minimum: int, **arguments: Any) -> None:
    """Raise a ``ValueError`` unless every named argument is an integer not under ``minimum``, and under 2**63."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise ValueError(f"{name} must be an integer of at least {minimum}; got {shown(value)}.")
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}; got {value}.")
        if value >= _TOO_LARGE:
            raise ValueError(f"{name} must be under 2**63; got {value}.")


def as_sizes(value: Any, name: str, *, minimum: int = 1, empty: bool = False) -> tuple[int, ...]:
    """Check a sequence of integers not under ``minimum``, and return it as a tuple; a ``ValueError`` otherwise.

    Args:
        value: what came.
        name: what errors call it.
        minimum: of each.
        empty: whether there may be none.
    """
    if not isinstance(value, (tuple, list)):
        fix = f"; pass ({value},)" if isinstance(value, (int, np.integer)) else ""
        raise ValueError(
            f"{name} must be a tuple of integers of at least {minimum}, e.g. (28, 28); got {shown(value)}{fix}."
        )
    if not value and not empty:
        raise ValueError(f"{name} must name at least one size, e.g. (784,); got none.")
    for item in value:
        require_at_least(minimum, **{name: item})
    return tuple(int(item) for item in value)


def require_not_negative(**arguments: Any) -> None:
    """Raise a ``ValueError`` unless every named argument is a finite number, 0 or more."""
    for name, value in arguments.items():
        if not 0 <= _number(value) < math.inf:
            raise ValueError(f"{name} must not be negative, NaN or infinite; got {shown(value)}.")


def require_positive(**arguments: Any) -> None:
    """Raise a ``ValueError`` unless every named argument is a number above 0 and finite."""
    for name, value in arguments.items():
        if not 0 < _number(value) < math.inf:
            raise ValueError(f"{name} must be positive and finite; got {shown(value)}.")


def require_within(interval: str, **arguments: Any) -> None:
    """Raise a ``ValueError`` unless every named argument is a number in an interval, such as ``"[0, 1)"``."""
    low, high = map(float, interval[1:-1].split(","))
    for name, value in arguments.items():
        number = _number(value)
        above = number > low or (number == low and interval[0] == "[")
        if not (above and (number < high or (number == high and interval[-1] == "]"))):
            raise ValueError(f"{name} must be a number in {interval}; got {shown(value)}.")


def _number(value: Any) -> float:
    """The number, or NaN if it is none, as flags and arrays are."""
    try:
        return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.nan


def require_seed(**arguments: Any) -> None:
    """Raise a ``ValueError`` unless every named argument is ``None`` or an integer from 0 to 2**63 - 1."""
    require_at_least(0, **{name: value for name, value in arguments.items() if value is not None})


def require_instance(kind: Any, **arguments: Any) -> None:
    """Raise a ``TypeError`` unless every named argument is of a class, or of one of a union of classes."""
    for name, value in arguments.items():
        if not isinstance(value, kind):
            wanted = (
                kind.__name__
                if isinstance(kind, type)
                else " or ".join("None" if k is type(None) else k.__name__ for k in get_args(kind))
            )
            got = f"the class {value.__name__}" if isinstance(value, type) else shown(value)
            raise TypeError(f"{name} must be of type {wanted}; got {got}.")


def require_flag(**arguments: Any) -> None:
    """Raise a ``TypeError`` unless every named argument is ``True`` or ``False``."""
    for name, value in arguments.items():
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{name} must be True or False; got {shown(value)}.")


def as_path(value: Any, name: str) -> Path:
    """Check what should be a path, and return it; a ``TypeError`` for something else, a ``ValueError`` for nothing."""
    text = type(value).__fspath__(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise TypeError(
            f"{name} must be a str or a path; got {shown(value)}{'' if text is value else ', whose path is none'}."
        )
    if "\0" in text or any("\ud800" <= c < "\udc80" or "\udcff" < c <= "\udfff" for c in text):
        raise ValueError(f"{name} holds a character that no path can; got {shown(value)}.")
    if len(os.fsencode(text)) > _MAX_PATH or any(len(os.fsencode(part)) > _MAX_NAME for part in Path(text).parts):
        raise ValueError(f"{name} is too long, or a name in it ({_MAX_NAME} bytes at most); got {shown(value)}.")
    if not text:
        raise ValueError(f"{name} is empty, which is a folder, the current one: pass the path of another.")
    return Path(value)


def require_callable(**arguments: Any) -> None:
    """Raise a ``TypeError`` unless every named argument can be called."""
    for name, value in arguments.items():
        if not callable(value):
            raise TypeError(f"{name} must be a function, or another object that can be called; got {shown(value)}.")


def require_tensors(*, integers: bool = False, finite: bool = False, positive: bool = False, **arguments: Any) -> None:
    """Raise a ``TypeError`` unless every named argument is a tensor of floating-point numbers, or of ``integers``,
    whichever; a ``ValueError`` for one that is not of plain numbers in memory, or not ``finite`` or ``positive``.
    """
    for name, value in arguments.items():
        plain = isinstance(value, Tensor)
        if not plain or not (value.dtype in _INTEGERS if integers else value.is_floating_point()):
            kind = "integers" if integers else "floating-point numbers"
            of = f"a tensor of {value.dtype}" if plain else shown(value)
            raise TypeError(f"{name} must be a tensor of {kind}; got {of}.")
        _dense(value, name)
        if finite or positive:
            right = value.isfinite() & (value > 0) if positive else value.isfinite()
            if bad := int((~right).sum()):
                wanted = "positive and finite" if positive else "finite"
                raise ValueError(f"{name} must be {wanted}; {bad} of its {value.numel()} value(s) are not.")


def as_real(value: Any, name: str) -> Tensor:
    """As :func:`as_tensor`, of real numbers: a ``ValueError`` for flags and complex numbers too."""
    tensor = as_tensor(value, name)
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{name} must be real numbers; got {tensor.dtype}.")
    return tensor


def require_one_dtype(**tensors: Tensor) -> None:
    """Raise a ``ValueError`` unless the named tensors have one dtype."""
    if len({tensor.dtype for tensor in tensors.values()}) > 1:
        came = ", ".join(f"{name} {tensor.dtype}" for name, tensor in tensors.items())
        raise ValueError(f"{' and '.join(tensors)} must have one dtype; got {came}.")


def require_columns(columns: Sequence[str], **frames: Any) -> None:
    """Raise unless every named argument is a ``DataFrame`` (``TypeError``) with these columns (``ValueError``)."""
    require_instance(pd.DataFrame, **frames)
    for name, frame in frames.items():
        if missing := [column for column in columns if column not in frame]:
            raise ValueError(f"{name} lacks the column(s) {', '.join(missing)}; it has {shown(list(frame))}.")


def require_broadcasting(**tensors: Tensor) -> None:
    """Raise a ``ValueError`` unless the shapes of the named tensors broadcast."""
    try:
        torch.broadcast_shapes(*(tensor.shape for tensor in tensors.values()))
    except RuntimeError as error:
        came = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"the shapes of {' and '.join(tensors)} must broadcast; got {came}.") from error


def require_one_of(allowed: Sequence[str], **arguments: Any) -> None:
    """Raise a ``ValueError`` unless every named argument is one of the ``allowed``."""
    for name, value in arguments.items():
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {shown(value)}.")


def require_precision() -> None:
    """Raise a ``ValueError`` where new tensors are of half a precision."""
    if (dtype := torch.get_default_dtype()) in HALF:
        raise ValueError(
            f"torch's default dtype is {dtype}, in which log-densities are lost: call "
            f"torch.set_default_dtype(torch.float32) before a model is built, trained or evaluated."
        )


def unfit(device: torch.device) -> str:
    """Why nothing is computed on a device; nothing of the CPU and CUDA, where everything is."""
    if device.type in ("cpu", "cuda"):
        return ""
    return {
        "meta": "holds no values",
        "mps": "has no numbers of 64 bits, in which log-densities are summed",
    }.get(device.type, "is of a kind on which nothing here was tried")


def resolve_device(device: str | torch.device | None = "auto") -> torch.device:
    """Resolve a device: ``"auto"`` is CUDA when present, else the CPU; one that is not there raises ``ValueError``."""
    if device is None or (isinstance(device, str) and device == "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    require_instance(str | torch.device, device=device)
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is not a torch device; use 'auto', 'cpu' or 'cuda'.") from error
    if why := unfit(resolved):
        raise ValueError(f"device {str(device)!r} {why}: use 'auto', 'cpu' or 'cuda'.")
    if resolved.type == "cuda" and (resolved.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(
            f"device {str(device)!r} is not there: torch sees {count} CUDA device(s). Use device='auto' or 'cpu'."
        )
    return resolved


def as_tensor(value: Any, name: str, names: Sequence[str] | None = None) -> Tensor:
    """Make a tensor of a tensor, array, DataFrame or Series, with no check of its numbers.

    Args:
        value: what came.
        name: what errors call it.
        names: of columns, in the order that a DataFrame's are put in.

    Raises:
        ValueError: values that are missing, or no numbers; a tensor of another layout than the usual one; columns of
            other names.
    """
    if isinstance(value, Tensor):
        return _dense(value, name)
    if isinstance(value, pd.DataFrame) and names is not None:
        value = in_order(value, names, name)
    if isinstance(value, (pd.DataFrame, pd.Series)):
        value = as_numbers(value, name)
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.getmaskarray(value).any():
            raise ValueError(
                f"{name} has {int(np.ma.count_masked(value))} masked value(s), which are missing: drop or impute them, "
                f"e.g. {name}.filled(0.0), and give the model the mask as a covariate."
            )
        value = value.data
    if isinstance(value, np.ndarray) and value.dtype.names:
        raise ValueError(
            f"{name} is a structured array with the fields {', '.join(value.dtype.names)}: pass "
            f"numpy.lib.recfunctions.structured_to_unstructured({name})."
        )
    try:
        if not (isinstance(value, (list, tuple)) or hasattr(value, "__array__")):
            raise TypeError(f"{type(value).__name__} is none")
        return torch.from_numpy(_as_torch_has_it(np.asarray(value)))
    except (TypeError, ValueError) as error:  # ragged lists are ValueErrors
        raise ValueError(
            f"{name} must be a tensor, array or DataFrame of numbers; got {type(value).__name__}"
            f"{f' with dtype {value.dtype}' if isinstance(value, np.ndarray) else ''}."
        ) from error


def _as_torch_has_it(array: np.ndarray) -> np.ndarray:
    """The array, or a copy where it is read-only, as of pandas, or of an order that torch does not have."""
    if any(stride < 0 for stride in array.strides):
        array = array.copy()
    return np.require(array, array.dtype.newbyteorder("="), "W")


def _dense(value: Tensor, name: str) -> Tensor:
    """Check that a tensor is one of plain numbers in memory, and return it; a ``ValueError`` otherwise."""
    fixes = {
        "masked": (torch.masked.is_masked_tensor(value), "drop or impute what is masked"),
        "nested": (value.is_nested, "pad its rows to one shape, and give the model their lengths as a covariate"),
        "quantised": (value.is_quantized, f"pass {name}.dequantize()"),
        "sparse": (not value.is_nested and value.layout is not torch.strided, f"pass {name}.to_dense()"),
        "meta": (value.device.type == "meta", "it has a shape and no values, so load them"),
        "float8": (value.is_floating_point() and value.dtype.itemsize == 1, f"pass {name}.float()"),
    }
    for kind, (found, fix) in fixes.items():
        if found:
            raise ValueError(f"{name} is a {kind} tensor: {fix}.")
    return value


def as_normal_tensor(value: Tensor) -> Tensor:
    """The tensor, or a copy of one that was made under ``torch.inference_mode``, which autograd does not take."""
    return value.clone() if value.is_inference() and not torch.is_inference_mode_enabled() else value


def check_container(value: Any, name: str) -> None:
    """Raise a ``TypeError`` for a list or tuple, which may stand for batches, data, fields or numbers."""
    if isinstance(value, tuple):
        raise TypeError(f"{name} is a tuple of {len(value)}: pass its fields one by one, as in f(model, *{name}).")
    if isinstance(value, list):
        first = type(value[0]).__name__ if value else "nothing"
        raise TypeError(
            f"{name} is a list of {len(value)} ({first}), which may mean several things: join batches by torch.cat, "
            f"single data by torch.stack, frames by pandas.concat, turn numbers into numpy.array({name}); x with "
            f"covariates is a tuple (x, covariate, ...)."
        )
    if isinstance(value, (pd.Index, pd.api.extensions.ExtensionArray)):
        raise TypeError(f"{name} is a pandas {type(value).__name__}: pass numbers, as an array, Series or DataFrame.")


def as_data(
    value: Any,
    name: str,
    event_shape: Sequence[int] | None = None,
    columns: Columns | None = None,
    *,
    integers: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Check data, and return them as a float32 (or float64) tensor ``(N, *event_shape)``; of an integer dtype if
    ``integers``.

    Args:
        value: a tensor, array, DataFrame or Series.
        name: what errors call it.
        event_shape: shape of one datum, where that is known.
        columns: names by field, of which the first are x's: the order that a DataFrame's columns are put in.
        integers: whether they may be of an integer dtype.
        dtype: in which they will be computed on, where that is known.

    Raises:
        TypeError: a list or tuple.
        ValueError: boolean data, integers unless they may be, an empty set, a wrong shape, values that are NaN,
            infinite or too large, what :func:`as_tensor` finds.
    """
    check_container(value, name)
    x = as_tensor(value, name, columns[0] if columns else None)
    if not (x.is_floating_point() or (integers and not x.is_complex() and x.dtype != torch.bool)):
        raise ValueError(
            f"{name} has dtype {str(x.dtype).removeprefix('torch.')}; a floating dtype is needed. "
            f"For 8-bit images pass x.float() / 255, for counts or flags x.float()."
        )
    if x.dtype in HALF:
        x = x.float()
    if x.dim() == 0 or x.shape[0] == 0 or x.numel() == 0:
        raise ValueError(f"{name} is empty: it has shape {tuple(x.shape)}. Pass at least one datum.")
    if event_shape is not None and tuple(x.shape[1:]) != tuple(event_shape):
        fix = ""
        if tuple(x.shape) == tuple(event_shape):
            fix = " For a single datum pass x.unsqueeze(0)."
        elif x[0].numel() == torch.Size(event_shape).numel():
            fix = f" Pass x.reshape(-1, {', '.join(map(str, event_shape))})."
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; the model needs (N, {', '.join(map(str, event_shape))}).{fix}"
        )
    by_accident = not isinstance(value, Tensor) and x.dtype == torch.float64  # a float64 tensor is a choice
    dtype = torch.float32 if by_accident else dtype or x.dtype
    limit = min(torch.finfo(d).max for d in (dtype, x.dtype) if d.is_floating_point) if x.is_floating_point() else 0
    # NaN where one is NaN; ten times as fast as to look at each, with no mask of them all.
    low, high = (v.item() for v in x.aminmax()) if limit else (0, 0)
    if not -limit <= low <= high <= limit:
        parts = x.split(max(1, _NUMBERS_PER_CHECK // x[0].numel()))
        bad = torch.cat([~(part.abs() <= limit).reshape(len(part), -1).all(1) for part in parts])
        values = x[bad][~(x[bad].abs() <= limit)]
        kind = f"value(s) too large for {str(dtype).removeprefix('torch.')}" if values.isfinite().all() else ""
        raise ValueError(
            f"{name} holds {len(values)} {kind or 'NaN or infinite value(s)'}, the first in row "
            f"{int(bad.nonzero()[0])}. Drop or impute such rows."
        )
    return x.float() if by_accident else x


def rows_of(covariates: Sequence[Any], rows: slice | Tensor) -> tuple[Any, ...]:
    """Select rows of covariates: of those that are tensors, wherever they are; the rest stays as it is."""
    return tuple(
        c[rows.to(c.device) if isinstance(rows, Tensor) else rows] if isinstance(c, Tensor) and c.dim() else c
        for c in covariates
    )


def placed(value: Tensor, like: Tensor) -> Tensor:
    """Move a tensor to the device of ``like`` and, unless it holds integers, to its precision."""
    return value.to(like if value.is_floating_point() else like.device)


def to_device(values: Any, device: torch.device) -> Any:
    """Move the tensors in a nest of anything to a device."""
    return tree_map_only(Tensor, lambda value: value.to(device), values)


def as_covariates(
    covariates: tuple[Any, ...], n: int | None, like: Tensor | None = None, columns: Columns | None = None, of: str = ""
) -> tuple[Any, ...]:
    """Make tensors of arrays, DataFrames and tensors, checked; the rest stays as it is.

    Args:
        covariates: what the user passed after ``x``.
        n: rows each must have; ``None`` if not known.
        like: a tensor of the model's device and dtype, to which they are moved; ``None`` leaves them where they are.
        columns: names by field, x's first: the order that columns of DataFrames are put in.
        of: what ``x`` is called, where errors need to say that.

    Raises:
        TypeError: a list or tuple.
        ValueError: a covariate of another length or none, what :func:`as_tensor` finds.
    """
    out = []
    for i, c in enumerate(covariates):
        name = f"covariate {i} of {of}" if of else f"covariate {i}"
        check_container(c, name)
        if isinstance(c, ARRAYS):
            c = as_tensor(c, name, columns[i + 1] if columns and i + 1 < len(columns) else None)
            if like is not None:
                c = as_normal_tensor(placed(c, like))
            if n is not None and c.dim() and len(c) != n:
                raise ValueError(f"{name} has {len(c)} rows and x has {n}; they must match.")
            if n is None and c.dim() and not len(c):
                raise ValueError(f"{name} is empty: it has shape {tuple(c.shape)}. Pass one row for each datum.")
        out.append(c)
    return tuple(out)
