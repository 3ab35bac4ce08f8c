"""Programs run over rows: block by block, so that memory does not grow with them, and rows that fail named."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NoReturn, TypeVar

from torch import Tensor

from pyrovae._checks import placed, rows_of
from pyrovae._compat.pyro import reason
from pyrovae._compat.torch import CheckedIndices, is_out_of_memory
from pyrovae._memory import BLOCK, Allocations, reuse_memory, within_memory
from pyrovae._turns import give_way

T = TypeVar("T")
Numbers = Sequence[int] | Tensor | None  # of rows, as the user counts them; by default from 0
Fields = Mapping[str, Any]  # what has rows, as errors call it; what is no tensor has none
_FIRST_NUMBERS, _FIRST_ROWS = 2**20, 256  # of data in the first two blocks, at most
_MULTIPLE = 16  # of rows: torch draws normals in groups of so many, which then are the same as of all rows at once
FAILURES = (IndexError, RuntimeError, ValueError)  # what programs raise for values


class BadRows(ValueError):
    """An error that names the rows that it is about."""


def in_blocks(run: Callable[..., T], n: int, fields: Fields, numbers: int, like: Tensor) -> list[T]:
    """What ``run(num_rows, *fields)`` gives for one block of ``n`` rows after another.

    The first blocks are small; what the second one allocates says how large the others may be. So they follow from the
    model and the data alone, unless memory runs out all the same.

    Args:
        run: it is given the fields of those rows, placed as ``like`` is.
        n: rows in all.
        fields: what has those rows.
        numbers: in a row of the data.
        like: a tensor where the model is.

    Raises:
        ValueError: where it fails for some rows alone, which the message names.
    """
    few = max(1, min(_FIRST_ROWS, _FIRST_NUMBERS // max(numbers, 1)) // _MULTIPLE)
    found, start, size = list[T](), 0, few * _MULTIPLE
    while start < n:

        def attempt(sizes: tuple[int, int]) -> tuple[int, T]:
            stop = start + sizes[0]  # noqa: B023  # called at once
            few = min(sizes[0], _MULTIPLE)  # which alone would be drawn otherwise
            rows = slice(start, stop if stop + few <= n else n)  # noqa: B023
            return rows.stop, on_rows(run, fields, rows, like)

        if len(found) == 1:
            reuse_memory(like.device)
        if len(found) == 1 and start + size < n:
            with Allocations() as counted:
                (stop, part), (size, _) = within_memory(attempt, (size, 1), like.device)
            most = BLOCK[like.device.type] * (stop - start) // max(counted.bytes, 1)
            size = max(1, most // _MULTIPLE) * _MULTIPLE
        else:
            (stop, part), (size, _) = within_memory(attempt, (size, 1), like.device)
        found.append(part)
        start = stop
        give_way()
    return found


def on_rows(run: Callable[..., T], fields: Fields, rows: slice, like: Tensor, numbers: Numbers = None) -> T:
    """``run(num_rows, *fields)`` of some rows.

    Raises:
        ValueError: see :func:`name_row`.
    """
    looks_up = like.is_cuda and (fields.keys() - {"x", "z"} or any(not f.is_floating_point() for f in fields.values()))
    try:
        with CheckedIndices() if looks_up else nullcontext():
            return run(rows.stop - rows.start, *_part(fields, rows, like))
    except BadRows:
        raise
    except FAILURES as error:
        name_row(run, fields, rows, like, error, numbers)


def name_row(
    run: Callable[..., Any], fields: Fields, rows: slice, like: Tensor, error: Exception, numbers: Numbers
) -> NoReturn:
    """Raise a ``ValueError`` that names the first of the rows that ``run(num_rows, *fields)`` fails for, and the field
    that is at fault; or the ``error`` itself, where it is not a matter of single rows.
    """
    if isinstance(error, RuntimeError) and is_out_of_memory(error):
        raise error

    def failure(*parts: Any) -> Exception | None:
        try:
            with CheckedIndices():
                run(*parts)
        except FAILURES as raised:
            return raised
        return None

    def fails(start: int, stop: int) -> Exception | None:
        return failure(stop - start, *_part(fields, slice(start, stop), like))

    low, high = rows.start, rows.stop
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(low, middle) else (middle, high)
    good = next((row for row in (rows.start, rows.stop - 1) if not fails(row, row + 1)), None)
    found = fails(low, high)
    if found is None or good is None:  # it is all of them
        raise error
    bad, other = (_part(fields, slice(row, row + 1), like) for row in (low, good))
    names = [name for name, field in fields.items() if isinstance(field, Tensor) and field.dim()]
    for i, name in enumerate(fields):
        if name in names and not failure(1, *bad[:i], other[i], *bad[i + 1 :]):
            names = [name]
    raise BadRows(
        f"{named([low], numbers)} of {' with '.join(names)} cannot be computed on, where others can: "
        f"{reason(found).splitlines()[0].rstrip('.')}. Drop or correct it."
    ) from error


def _part(fields: Fields, rows: slice, like: Tensor) -> tuple[Any, ...]:
    """Some rows of the fields, where the model is."""
    return tuple(placed(f, like) if isinstance(f, Tensor) else f for f in rows_of(tuple(fields.values()), rows))


def as_fields(x: Tensor | None, covariates: tuple[Any, ...], name: str = "x") -> dict[str, Any]:
    """Data and covariates by the names that errors have for them."""
    of = "" if name == "x" else f" of {name}"
    return ({} if x is None else {name: x}) | {f"covariate {i}{of}": c for i, c in enumerate(covariates)}


def require_numbers(values: Tensor, dim: int, what: str, fields: Fields) -> None:
    """Raise a ``ValueError`` where what a model makes of the fields' rows, which lie along ``dim``, is NaN."""
    if values.is_floating_point() and bool(values.isnan().any()):
        bad = values.isnan().movedim(dim, 0).flatten(1).any(1).nonzero().flatten().tolist()
        raise BadRows(f"{what} is NaN for {named(bad)} of {' with '.join(fields)}: drop or correct them.")


def named(rows: Sequence[int], numbers: Numbers = None) -> str:
    """Rows in words, the first few by their numbers."""
    shown = ", ".join(str(row if numbers is None else int(numbers[row])) for row in rows[:3])
    return f"row {shown}" if len(rows) == 1 else f"rows {shown}{', …' if len(rows) > 3 else ''} ({len(rows)} in all)"
