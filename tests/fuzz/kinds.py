"""What is thrown at an argument, and what each kind of argument takes of it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

LARGEST = 3.4e38  # that the recipes' models, which are of float32, take
N, D = 8, 4  # of the data that the recipes' models take

# By name, so that a failure says what was passed; made anew for every call.
POOL: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "text": lambda: "no such thing",
    "empty text": lambda: "",
    "number as text": lambda: "2",
    "bytes": lambda: b"a",
    "object": object,
    "class": lambda: int,
    "function": lambda: lambda *given, **options: None,
    "True": lambda: True,
    "False": lambda: False,
    "NumPy bool": lambda: np.True_,
    "complex": lambda: 1j,
    "NaN": lambda: math.nan,
    "infinity": lambda: math.inf,
    "-infinity": lambda: -math.inf,
    "NumPy NaN": lambda: np.float64("nan"),
    "-1": lambda: -1,
    "0": lambda: 0,
    "0.5": lambda: 0.5,
    "1.5": lambda: 1.5,
    "-0.5": lambda: -0.5,
    "2.0": lambda: 2.0,
    "2": lambda: 2,
    "NumPy 2": lambda: np.int64(2),
    "NumPy 0.5": lambda: np.float32(0.5),
    "huge": lambda: 10**30,
    "-huge": lambda: -(10**30),
    "too large for a float": lambda: 10**400,
    "empty list": list,
    "list of text": lambda: ["a"],
    "list of None": lambda: [None],
    "list of floats": lambda: [0.5, 1.5],
    "list of zeros": lambda: [0, 0],
    "list of lists": lambda: [[1], [2, 3]],
    "tuple": lambda: (1, 2, 3, 4, 5, 6),
    "tuple of bools": lambda: (True, True),
    "set": lambda: {1, 2},
    "empty dict": dict,
    "dict": lambda: {"no such option": 1},
    "dict of integers": lambda: {1: 2},
    "ellipsis": lambda: ...,
    "scalar tensor": lambda: torch.tensor(2.0),
    "empty tensor": lambda: torch.empty(0, D),
    "vector": lambda: torch.zeros(D),
    "tensor of another shape": lambda: torch.zeros(N, D + 3, 2),
    "tensor of NaN": lambda: torch.full((N, D), math.nan),
    "tensor with an infinity": lambda: torch.zeros(N, D).index_fill(0, torch.tensor([3]), math.inf),
    "complex tensor": lambda: torch.zeros(N, D, dtype=torch.complex64),
    "bool tensor": lambda: torch.zeros(N, D, dtype=torch.bool),
    "integer tensor": lambda: torch.full((N, D), -7),
    "sparse tensor": lambda: torch.eye(N, D).to_sparse(),
    "meta tensor": lambda: torch.zeros(N, D, device="meta"),
    "nested tensor": lambda: torch.nested.nested_tensor([torch.zeros(D)] * N, layout=torch.jagged),
    "quantised tensor": lambda: torch.quantize_per_tensor(torch.zeros(N, D), 0.1, 0, torch.quint8),
    "array of objects": lambda: np.array([[object()] * D] * N),
    "array of text": lambda: np.array([["a"] * D] * N),
    "array of dates": lambda: np.zeros((N, D), "datetime64[D]"),
    "structured array": lambda: np.zeros(N, [("a", "f4"), ("b", "f4")]),
    "masked array": lambda: np.ma.array(np.zeros((N, D)), mask=np.eye(N, D)),
    "0-d array": lambda: np.array(0.5),
    "empty array": lambda: np.zeros((0, D)),
    "frame with text": lambda: pd.DataFrame(np.zeros((N, D))).assign(word="a"),
    "frame with flags": lambda: pd.DataFrame(np.zeros((N, D - 1))).assign(flag=True),
    "frame with missing": lambda: pd.DataFrame({"a": pd.array([1, None] * (N // 2), "Int64"), "b": 0.0}),
    "frame of NaN": lambda: pd.DataFrame(np.full((N, D), math.nan)),
    "empty frame": pd.DataFrame,
    "series of text": lambda: pd.Series(["a"] * N),
}


def _one_of_ones(value: float, dtype: torch.dtype = torch.float32) -> Callable[[tuple[int, ...]], Tensor]:
    return lambda shape: torch.ones(shape, dtype=dtype).flatten().index_fill(0, torch.tensor(0), value).reshape(shape)


# The same, of the shape of what is right, so that nothing but its own fault tells it from that.
OF_SHAPE: dict[str, Callable[[tuple[int, ...]], Any]] = {
    "complex tensor": lambda shape: torch.ones(shape, dtype=torch.complex64),
    "bool tensor": lambda shape: torch.ones(shape, dtype=torch.bool),
    "integer tensor": lambda shape: torch.full(shape, -7),
    "meta tensor": lambda shape: torch.ones(shape, device="meta"),
    "sparse tensor": lambda shape: torch.ones(shape).to_sparse(),
    "float8 tensor": lambda shape: torch.ones(shape).to(torch.float8_e4m3fn),
    "quantised tensor": lambda shape: torch.quantize_per_tensor(torch.ones(shape), 0.1, 0, torch.quint8),
    "tensor with a NaN": _one_of_ones(math.nan),
    "tensor with an infinity": _one_of_ones(math.inf),
    "tensor with -infinity": _one_of_ones(-math.inf),
    "tensor too large for float32": _one_of_ones(1e300, torch.float64),
    "array too large for float32": lambda shape: np.full(shape, 1e300),
    "complex array": lambda shape: np.ones(shape, complex),
    "bool array": lambda shape: np.ones(shape, bool),
    "array with a NaN": lambda shape: _one_of_ones(math.nan)(shape).numpy(),
    "array of objects": lambda shape: np.full(shape, None, object),
    "array of text": lambda shape: np.full(shape, "a"),
    "array of dates": lambda shape: np.zeros(shape, "datetime64[D]"),
    "masked array": np.ma.masked_all,
    "list": lambda shape: torch.ones(shape).tolist(),
}


def of_shape(right: Any) -> dict[str, Callable[[], Any]]:
    """What is wrong by itself, for an argument that takes a tensor, an array or a dict of tensors such as ``right``."""
    if isinstance(right, dict) and right and all(isinstance(v, Tensor) for v in right.values()):
        key, first = next(iter(right.items()))
        return {f"{name} in a dict": lambda make=make: right | {key: make()} for name, make in of_shape(first).items()}
    if not isinstance(right, (Tensor, np.ndarray)):
        return {}
    return {f"{name} of its shape": lambda make=make: make(tuple(right.shape)) for name, make in OF_SHAPE.items()}


GENERATED = st.one_of(
    st.integers(max_value=-1),
    st.integers(min_value=2**63),
    st.floats(max_value=-1e-3),
    st.floats(1.01, 1e6).filter(lambda value: value != int(value)).map(lambda value: -value),
    st.text(min_size=1).map(lambda text: f"no {text}"),
    st.complex_numbers().filter(lambda value: value.imag != 0),
    st.lists(st.one_of(st.none(), st.text(), st.floats(max_value=-1e-3)), min_size=1, max_size=3),
    st.dictionaries(st.text(min_size=1), st.integers(), min_size=1, max_size=2),
    st.binary(min_size=1),
)


@dataclass(frozen=True)
class Kind:
    """What an argument takes.

    Attributes:
        takes: whether a value is right: then it must go through, and else be refused, by the argument's name. ``None``
            where that is for others to say, such as the function that was passed.
        why: what is right, in words.
        near: further values that are wrong, or right, by a hair.
        called: what errors may call the argument instead of its name.
    """

    takes: Callable[[Any], bool | None]
    why: str
    near: Sequence[Any] = field(default=())
    called: tuple[str, ...] = ()

    def or_(self, other: "Kind") -> "Kind":
        """What this kind takes, and what the other one does."""
        return Kind(
            lambda value: self.takes(value) or other.takes(value) if self.takes(value) is not None else None,
            f"{self.why}, or {other.why}",
            (*self.near, *other.near),
            self.called + other.called,
        )

    def but(self, *near: Any, called: tuple[str, ...] = ()) -> "Kind":
        """The same, with further near values or names."""
        return Kind(self.takes, self.why, (*self.near, *near), self.called + called)


def is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return False
    return abs(value) < 2**1023 if isinstance(value, int) else math.isfinite(value)


def nothing(*, why: str = "nothing", near: Sequence[Any] = (), called: tuple[str, ...] = ()) -> Kind:
    return Kind(lambda value: False, why, near, called)


def size(minimum: int = 1, most: int = 2**31, *near: Any) -> Kind:
    return Kind(
        lambda value: is_integer(value) and minimum <= value <= most,
        f"an integer from {minimum} on",
        (minimum - 1, float(minimum), str(minimum), np.int32(minimum - 1), np.float64(minimum), (minimum,), *near),
    )


def number(low: float = -math.inf, high: float = math.inf, *, least: bool = False, most: bool = False) -> Kind:
    """A finite number between two others, each of which is right itself, or not."""

    def takes(value: Any) -> bool:
        if not is_number(value):
            return False
        return (low < value or (least and value == low)) and (value < high or (most and value == high))

    edges = [e for e in (low, high) if math.isfinite(e)]
    return Kind(takes, f"a number from {low} to {high}", (*edges, *(np.float32(e) for e in edges)))


def one_of(*names: str) -> Kind:
    return Kind(
        lambda value: isinstance(value, str) and value in names, f"one of {', '.join(names)}", (names[0].title() + "x",)
    )


def registered(names: Mapping[str, Any]) -> Kind:
    """A name in a registry, where hyphens and case do not matter."""
    return Kind(
        lambda value: isinstance(value, str) and value.lower().replace("-", "_").replace(" ", "_") in names,
        f"one of {', '.join(names)}",
        (nn.Linear, torch.zeros),
    )


def sequence(item: Kind, lengths: Sequence[int], *near: Any) -> Kind:
    def takes(value: Any) -> bool:
        plain = isinstance(value, (tuple, list)) and not isinstance(value, (str, bytes))
        return plain and len(value) in lengths and all(item.takes(v) for v in value)

    return Kind(takes, f"a sequence of {item.why}", (784, np.int64(3), "784", (1, 0), (2, -1), (1.5,), (True,), *near))


def instance(*kinds: Any, why: str) -> Kind:
    return Kind(lambda value: isinstance(value, kinds), why, (nn.Linear, torch.nn.Identity, np.zeros))


NONE = Kind(lambda value: value is None, "None")
FLAG = Kind(lambda value: isinstance(value, (bool, np.bool_)), "a bool", ("yes", "no", 1, 0))
SEED = Kind(lambda value: is_integer(value) and 0 <= value < 2**63, "an integer from 0 on", (1.0, "0", 2**64, -(2**63)))
CALLABLE = Kind(lambda value: None if callable(value) else False, "a function, which says itself what it takes")
TEXT = Kind(lambda value: isinstance(value, str), "text")
ANYTHING = Kind(lambda value: True, "anything: it is only shown in errors, or handed on")
MAYBE_TEXT = TEXT.or_(NONE)
SHAPE = sequence(size(), range(1, 8))
WIDTHS = sequence(size(), range(8))
OPTIONS = Kind(
    lambda value: isinstance(value, Mapping) and not value, "no options", ("hidden", [("hidden", 3)], {"nonsense": 1})
)


def _is_data(value: Any, shape: tuple[int, ...], low: float, high: float, integers: bool) -> bool:
    """Whether a value is an ordinary set of numbers of this shape."""
    if isinstance(value, Tensor):
        plain = value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not plain or value.is_nested or value.is_complex() or value.dtype == torch.bool:
            return False
        if value.is_floating_point() and value.dtype.itemsize == 1:
            return False
    elif isinstance(value, np.ndarray):
        if isinstance(value, np.ma.MaskedArray) or value.dtype.kind not in ("fiu" if integers else "f"):
            return False
    elif isinstance(value, pd.DataFrame):
        if any(kind.kind != "f" for kind in value.dtypes):
            return False
        value = value.to_numpy()
    else:
        return False
    floats = value.is_floating_point() if isinstance(value, Tensor) else value.dtype.kind == "f"
    right = tuple(value.shape) == shape and (integers or floats) and 0 not in value.shape
    finite = bool((abs(value) < math.inf).all()) if right else False
    return finite and bool((value >= low).all() and (value <= high).all())


def numbers(
    *shape: int, low: float = -math.inf, high: float = math.inf, integers: bool = False, wide: bool = False
) -> Kind:
    """Data of this shape, finite, between two numbers; ``wide`` ones may be too large for float32, or not."""
    low, high = max(low, -LARGEST), min(high, LARGEST)
    wrong = [
        torch.zeros(shape, dtype=torch.float32)[..., :-1] if shape else torch.zeros(2),
        np.zeros(shape)[None],
        torch.zeros(shape).tolist(),
        torch.full(shape, math.nan),
        np.full(shape, math.inf),
    ]
    right = [np.zeros(shape, ">f8"), np.zeros(shape)[::-1] if shape else np.zeros(()), np.zeros(shape, order="F")]
    outside = [torch.full(shape, high + 1.5)] if high < LARGEST else []

    def takes(value: Any) -> bool | None:
        if wide and not _is_data(value, shape, low, high, integers) and _is_data(value, shape, -1e308, 1e308, integers):
            return None
        return _is_data(value, shape, low, high, integers)

    return Kind(
        takes,
        f"numbers {shape}",
        (*wrong, *outside, *(right if low <= 0 <= high else ())),
    )
