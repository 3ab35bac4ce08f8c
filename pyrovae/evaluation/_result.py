"""What every estimator returns: tables and numbers, where they come from, and files of them."""

import dataclasses
import json
import math
import tokenize
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self, get_type_hints
from zipfile import BadZipFile, ZipFile

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae._arguments import decode, encode, find, not_kept
from pyrovae._checks import as_path
from pyrovae._files import check_regular, check_stored, replaced
from pyrovae._hash import content_hash
from pyrovae._random import seeded
from pyrovae._untrusted import MALFORMED, fits, parsed
from pyrovae._version import __version__
from pyrovae.evaluation._data import EvaluationData
from pyrovae.model import LossModel, VAEModel

_FORMAT = 1
_UNREADABLE = (OSError, EOFError, BadZipFile, tokenize.TokenError)  # the last by NumPy, of a header


@dataclass(frozen=True)
class Provenance:
    """What a result was computed from.

    Attributes:
        data_hash: content hash of the data evaluated, tensor covariates included.
        model_name: class of the model, with its posterior where it has one.
        model_hash: content hash of the weights, by which two results of one trained model are known.
        fingerprint: log p(x, z) at a few fixed points, by which two results of one generative model are known; empty
            for a model without a density.
        seed: seed of the draws; of a pooled result, all of them.
        versions: of the libraries that computed it, by name.
    """

    data_hash: str
    model_name: str
    model_hash: str = ""
    fingerprint: tuple[float, ...] = ()
    seed: int | tuple[int | None, ...] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: VAEModel | LossModel, data: EvaluationData, seed: int | None) -> Self:
        """That of a result about to be made of the ``model``, in evaluation mode, and the ``data``."""
        return cls(
            data_hash=data.hash,
            model_name=model_name(model),
            model_hash=weights_hash(model),
            fingerprint=_fingerprint(model, data) if isinstance(model, VAEModel) else (),
            seed=seed,
            versions={"pyrovae": __version__, "torch": torch.__version__, "pyro-ppl": version("pyro-ppl")},
        )

    def same_density(self, other: "Provenance") -> bool:
        """Whether both are of one p(x, z), as far as :attr:`fingerprint` tells."""
        ours, theirs = self.fingerprint, other.fingerprint
        return len(ours) == len(theirs) > 0 and bool(np.allclose(theirs, ours))


@dataclass(frozen=True, kw_only=True)
class Result(ABC):
    """Tables, numbers, and where they come from.

    Attributes:
        provenance: of the result.
    """

    provenance: Provenance

    @abstractmethod
    def summary(self) -> pd.Series:
        """The figures of the whole, as one row."""

    def save(self, path: str | Path) -> Path:
        """Write everything to one file: a NumPy archive (``.npz``) of columns and JSON, which runs no code when read.

        Nothing in it is compressed: to be read it takes as much memory as it has bytes. Labels of rows that are neither
        numbers nor dates become text.

        Returns:
            The path.

        Raises:
            ValueError: something that no file holds, or that is not what the class says of its fields; a path that is
                there, and no regular file.
            PermissionError: a file that is there and may not be written.
        """
        path = as_path(path, "path")
        arrays: dict[str, np.ndarray] = {}
        facts: dict[str, Any] = {"format": _FORMAT, "class": [type(self).__module__, type(self).__qualname__]}
        facts |= {"tables": {}, "tensors": [], "values": {}}
        _check_fields(type(self), {f.name: getattr(self, f.name) for f in dataclasses.fields(self)})
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, pd.DataFrame):
                described, columns = as_arrays(value)
                facts["tables"][f.name] = encode(described)
                arrays |= {f"{f.name}.{i}": column for i, column in enumerate(columns)}
            elif isinstance(value, Tensor):
                facts["tensors"].append(f.name)
                arrays[f"{f.name}."] = value.detach().cpu().numpy()
            else:
                facts["values"][f.name] = encode(vars(value) if isinstance(value, Provenance) else value)
        if odd := not_kept(facts):
            raise ValueError(f"{type(self).__name__} holds a {odd}, which no file holds.")
        with replaced(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, result=np.array(json.dumps(facts)), **arrays)  # type: ignore[arg-type]
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The result that :meth:`save` wrote; ``Result.load`` takes one of any kind.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no regular file, damaged, no result, or one of another kind.
        """
        path = as_path(path, "path")
        check_regular(path, "result")
        try:
            check_stored(path)
            with ZipFile(path) as file:
                facts = parsed(str(_array(file, "result")))
                if facts["format"] != _FORMAT:
                    raise ValueError(f"its format is {facts['format']}, where {_FORMAT} is needed")
                kind = find(Result, *facts["class"])
                fields = {name: decode_plain(value) for name, value in facts["values"].items()}
                fields["provenance"] = Provenance(**fields["provenance"])
                fields |= {name: torch.from_numpy(_array(file, f"{name}.")) for name in facts["tensors"]}
                for name, described in facts["tables"].items():
                    described = decode_plain(described)
                    count = len(described["columns"]) + len(described["index"])
                    fields[name] = as_frame(described, [_array(file, f"{name}.{i}") for i in range(count)])
            _check_fields(kind, fields)
            result = kind(**fields)
            result.summary()  # which says whether tables have the columns that they should
        except (*MALFORMED, *_UNREADABLE) as error:
            raise ValueError(f"{path} is no result saved by pyrovae, or is damaged: {error}") from error
        if not isinstance(result, cls):
            raise ValueError(f"{path} holds a {kind.__name__}: call {kind.__name__}.load.")
        return result


def _check_fields(kind: type, fields: Mapping[str, Any]) -> None:
    """Raise a ``ValueError`` for fields that are not what a class annotates; those of its provenance as well."""
    names, hints = {f.name for f in dataclasses.fields(kind)}, get_type_hints(kind)
    if odd := sorted(names ^ fields.keys()):
        raise ValueError(f"a {kind.__name__} has missing or unknown fields: {', '.join(odd)}.")
    for name, value in fields.items():
        if not fits(value, hints[name]):
            raise ValueError(f"{name} of a {kind.__name__} is of type {type(value).__name__}.")
    if isinstance(fields.get("provenance"), Provenance):
        _check_fields(Provenance, vars(fields["provenance"]))


def _array(file: ZipFile, name: str) -> np.ndarray:
    """An array of numbers, dates or text, of which there is as much as its header says."""
    with file.open(f"{name}.npy") as entry:
        if np.lib.format.read_magic(entry) != (1, 0):
            raise ValueError(f"{name} is of another version of NumPy's format.")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(entry)
        content = bytearray(entry.read())
    count = math.prod(shape)
    if dtype.kind not in "iufbMU" or min(shape, default=0) < 0 or count * dtype.itemsize != len(content):
        raise ValueError(f"{name} does not hold {shape} values of {dtype}.")
    return np.frombuffer(content, dtype, count).reshape(shape, order="F" if fortran else "C")


def as_arrays(table: pd.DataFrame) -> tuple[dict[str, Any], list[np.ndarray]]:
    """A table as arrays of numbers, dates and text: its columns, then the levels of its index; and what else it takes
    to put it together again.
    """
    index = table.index
    levels = [_storable(index.get_level_values(i)) for i in range(index.nlevels)]
    columns = [table.iloc[:, i] for i in range(table.shape[1])]
    described = {
        "columns": list(table),
        "index": list(index.names),
        "kind": type(index).__name__,
    }
    return described, [*(_storable(pd.Index(column)) for column in columns), *levels]


def as_frame(described: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> pd.DataFrame:
    """The table of which :func:`as_arrays` made these arrays."""
    if not isinstance(described["kind"], str) or any(array.ndim != 1 for array in arrays):
        raise ValueError("a table is of no columns.")
    names, levels = described["columns"], described["index"]
    own = [array.astype(object) if array.dtype.kind == "U" else array for array in arrays]
    columns, keys = own[: len(names)], own[len(names) :]
    index: pd.Index
    if described["kind"] == "MultiIndex":
        index = pd.MultiIndex.from_arrays(keys, names=levels)
    elif described["kind"] == "RangeIndex" and len(keys[0]):
        step = int(keys[0][1] - keys[0][0]) if len(keys[0]) > 1 else 1
        index = pd.RangeIndex(int(keys[0][0]), int(keys[0][-1]) + step, step, name=levels[0])
    else:
        index = pd.Index(keys[0], name=levels[0])
    return pd.DataFrame(dict(enumerate(columns)), index).set_axis(pd.Index(names, tupleize_cols=False), axis=1)


def _storable(labels: pd.Index) -> np.ndarray:
    """Labels as numbers or dates, which files hold, or else as text."""
    values = labels.to_numpy()
    return values if values.dtype.kind in "iufbM" else labels.astype(str).to_numpy(dtype=str)


def decode_plain(kept: Any) -> Any:
    """What was encoded as JSON, where that is no model."""

    def refused(construction: Any) -> Any:
        raise ValueError("it holds a model")

    return decode(kept, refused)


def model_name(model: VAEModel | LossModel) -> str:
    """The class of a model, with that of its posterior where it has one."""
    posterior = getattr(model, "posterior", None)
    name = type(model).__name__
    return f"{name}({type(posterior).__name__})" if isinstance(posterior, torch.nn.Module) else name


def weights_hash(model: VAEModel | LossModel) -> str:
    """Content hash of a model's parameters and buffers."""
    return content_hash(*(v for v in model.state_dict().values() if isinstance(v, Tensor)))


def _fingerprint(model: VAEModel, data: EvaluationData) -> tuple[float, ...]:
    """log p(x, z) of two data at two fixed draws from the prior: equal for equal generative models only."""
    with seeded(0):
        _, log_prior, log_likelihood = model.draw_prior(*data.part(slice(2), model.placement), num_particles=2)
    return tuple((log_prior + log_likelihood).double().flatten().tolist())
