"""What users pass as data, as batches."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from pyrovae._checks import ARRAYS, check_container, require_at_least
from pyrovae._distributed import from_main, num_processes
from pyrovae._turns import turn
from pyrovae.model._inputs import as_inputs, num_covariates, program
from pyrovae.training.batches._base import Batches, Model, Tensors, Transform
from pyrovae.training.batches._kinds import MAX_NUMBERS_AT_ONCE, LoaderBatches, TensorBatches

_MAX_ENLARGEMENT = 10  # times the batch size of training, where no gradients are taken


def with_splits(
    data: Any, validation: Any = None, transform: Transform | None = None
) -> tuple[Any, Any, Transform | None]:
    """Data to train on, to validate on, and their transform: what is not given is that of the data's own splits, which
    those from :func:`pyrovae.datasets.load` have.
    """
    if not all(hasattr(data, name) for name in ("train", "val", "batch_transform")):
        return data, validation, transform
    validation = data.val if validation is None else validation
    return data.train, validation, data.batch_transform if transform is None else transform


def as_batches(
    model: Model,
    data: Any,
    *,
    batch_size: int,
    transform: Transform | None = None,
    held_out: bool = False,
    numbers: Tensor | None = None,
) -> Batches:
    """Batches of ``data``: a tensor, array or DataFrame, a tuple of them (x, then covariates), a ``Dataset`` or a
    ``DataLoader`` (which keeps its own batch size). Of ``held_out`` data in memory they are larger. Errors call
    data in memory by their ``numbers``.

    Raises:
        TypeError: data of another kind, a list among them.
        ValueError: wrong shape, integer, NaN or empty data, covariates of another length or index, a tuple with more
            fields than the model takes.
    """
    require_at_least(1, batch_size=batch_size)
    name = "validation" if held_out else "data"
    if isinstance(data, DataLoader):
        return LoaderBatches(data, model, transform, name)
    if isinstance(data, (*ARRAYS, tuple)):
        tensors = in_memory(model, data, name)
        if held_out:
            most = MAX_NUMBERS_AT_ONCE // max(tensors[0][0].numel(), 1)
            batch_size = max(batch_size, min(_MAX_ENLARGEMENT * batch_size, most))
        return TensorBatches(tensors, batch_size, model, transform, name, numbers)
    if isinstance(data, Dataset):
        if not isinstance(data, IterableDataset) and len(data) == 0:  # type: ignore[arg-type]
            raise ValueError(f"{name} is empty. Pass at least one datum.")
        if not held_out and num_processes() > 1 and not isinstance(data, IterableDataset):
            mine = max(1, batch_size // num_processes())
            loader = DataLoader(data, mine, sampler=DistributedSampler(data))
        else:
            loader = DataLoader(data, batch_size, shuffle=not isinstance(data, IterableDataset))
        return LoaderBatches(loader, model, transform, name)
    check_container(data, name)
    raise TypeError(
        f"{name} must be a tensor, array, DataFrame, tuple of them, Dataset, DataLoader or datasets.load(...); "
        f"got {type(data).__name__}."
    )


def as_fields(data: Any) -> tuple[Any, ...]:
    """x and the covariates of data in memory; nothing of what is iterated."""
    return data if isinstance(data, tuple) else (data,) if isinstance(data, ARRAYS) else ()


def in_memory(model: Model, data: Any, name: str) -> Tensors:
    """x and the covariates of data in memory as tensors, checked; see :func:`as_batches`."""
    fields, most = as_fields(data), 1 + num_covariates(model)[1]
    if len(fields) > most:
        fix = f"{name}[:{most}]" if most > 1 else f"{name}[0]"
        raise ValueError(
            f"{name} is a tuple of {len(fields)} fields, and {type(model).__name__}.{program(model).__name__} takes x "
            f"and {most - 1} covariate(s): pass {fix}, or torch.cat({name}) if these are batches of x."
        )
    if not fields:
        raise ValueError(f"{name} is empty. Pass at least one datum.")
    x, covariates = as_inputs(model, fields[0], fields[1:], name)
    for i, c in enumerate(covariates):
        if not (isinstance(c, Tensor) and c.dim()):
            raise ValueError(
                f"covariate {i} of {name} is of type {type(fields[i + 1]).__name__} and has no rows: batches need one "
                f"for each datum."
            )
    return x, *covariates


def hold_out(model: Model, data: Any, fraction: float) -> tuple[tuple[Tensors, Tensor], tuple[Tensors, Tensor]]:
    """Hold out a random ``fraction`` of tensors, arrays or DataFrames: (training, validation), each with the numbers of
    its data.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"validation as a fraction must be between 0 and 1; got {fraction}.")
    check_container(None if isinstance(data, tuple) else data, "data")
    if not isinstance(data, (*ARRAYS, tuple)):
        raise ValueError("validation as a fraction needs tensors, arrays or DataFrames; pass the validation set.")
    tensors = in_memory(model, data, "data")
    with turn():
        order = torch.randperm(len(tensors[0]), device="cpu")
    order = from_main(order)
    held_out = math.ceil(fraction * len(order))
    if held_out == len(order):
        raise ValueError(f"validation={fraction} leaves none of the {len(order)} data to train on.")
    return tuple((tuple(t[rows] for t in tensors), rows) for rows in (order[held_out:], order[:held_out]))  # type: ignore[return-value]
