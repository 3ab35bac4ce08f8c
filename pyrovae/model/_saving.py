"""``SaveableModule``, the base class of all models: saving and loading, and a place among dtypes and devices."""

import copy
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Set
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Self

import pyro
import torch
from torch import Tensor, nn

from pyrovae._arguments import build, capture, decode, encode, find, not_kept, num_after_first, parameters
from pyrovae._checks import as_data, as_path, require_instance, require_precision
from pyrovae._compat.torch import uncompiled
from pyrovae._frames import Columns
from pyrovae._interrupt import uninterrupted
from pyrovae._model_files import digest, read, write
from pyrovae._random import undisturbed
from pyrovae._turns import turn
from pyrovae.model._bounded import Bounded, TooMuch
from pyrovae.model._state import NOT_IN_STATE, modules, shapes, state_of, tensors

_MISSING = {"$not_kept": "missing"}


class SaveableModule(nn.Module):
    """A module that is saved as the arguments that its constructor was given and its weights, and loaded by calling it.

    Arguments are captured by value where the object is made, whatever classes above or below its own do with them.
    Public attributes that JSON can hold (numbers, strings, lists and dicts of them) may change later, those of parts as
    well: the file keeps those that are not as the constructor built them, with the types that arguments come back in.
    Tensors belong in parameters and buffers: :meth:`save` refuses a model of which anything else has changed. Private
    attributes (``_name``) are not looked at.

    Attributes:
        event_shape: shape of one datum; ``fit`` fills it in where the subclass did not.
        columns: names of the columns of the DataFrames that ``fit`` trained on, a list (or ``None``) for x and for each
            covariate; later frames are put in this order. ``None`` where there were no frames.
        validated_on: content hashes of the data by which ``fit`` chose the epoch.
    """

    event_shape: tuple[int, ...] | None = None
    columns: Columns | None = None
    validated_on: tuple[str, ...] = ()
    _program = "model"  # the method that takes x and covariates
    _constructed: dict[str, Any]

    def __new__(cls, /, *args: Any, **kwargs: Any) -> Self:
        require_precision()
        # Of nested constructors the outermost call alone comes here. Copies and unpickled objects overwrite this.
        self = super().__new__(cls)
        arguments = capture(cls, args, kwargs)
        self.__dict__["_constructed"] = {"class": cls.__qualname__, "module": cls.__module__, "arguments": arguments}
        return self

    @property
    def construction(self) -> dict[str, Any]:
        """The constructor's call as JSON: ``class``, ``module``, ``arguments`` by name, and ``event_shape``."""
        shape = None if self.event_shape is None else [int(n) for n in self.event_shape]
        return copy.deepcopy({**self._constructed, "event_shape": shape})

    def _set_argument(self, name: str, value: Any) -> None:
        """Capture an argument anew where the constructor has it, because a method replaces what was built from it."""
        names, takes_any, _ = parameters(type(self))
        if self._constructed["arguments"] is not None and (takes_any or name in names):
            arguments = {**self._constructed["arguments"], name: encode(value)}
            self.__dict__["_constructed"] = {**self._constructed, "arguments": arguments}

    @property
    def placement(self) -> Tensor:
        """An empty tensor of the model's device and dtype."""
        return next(chain(self.parameters(), self.buffers()), torch.empty(0)).new_empty(0)

    def as_data(self, value: Any, name: str = "x", covariates: tuple[Any, ...] = ()) -> Tensor:
        """Check data ``(N, *event_shape)``, and return them as a tensor; see :func:`pyrovae._checks.as_data`."""
        return as_data(value, name, self.event_shape, self.columns, dtype=self.placement.dtype)

    def save(self, path: str | os.PathLike[str], *, exclude: str | Collection[str] = ()) -> Path:
        """Write parameters, buffers and the constructor's arguments (JSON in the header) to one safetensors file,
        atomically.

        Args:
            path: where; missing folders are made.
            exclude: names of arguments that the file does without and :meth:`load` will be given, such as modules. It
                is then :meth:`load` that compares the model with what its constructor builds.

        Returns:
            The path.

        Raises:
            ValueError: an argument that JSON cannot hold; a model that is not what its constructor builds, in parts,
                shapes, ties or attributes that JSON cannot hold; a constructor that computes far more than the weights;
                a layer that is lazy still; a tensor of a kind that files do not hold; a path that is there, and no
                regular file.
            PermissionError: a file that is there and may not be written.
        """
        path = as_path(path, "path")
        exclude = [exclude] if isinstance(exclude, str) else exclude
        require_instance(list | tuple | Set | Mapping, exclude=exclude)
        require_instance(str, **{f"exclude[{i}]": name for i, name in enumerate(exclude)})
        header, weights = self.construction, tensors(self)
        name, excluded = header["class"], set(exclude)
        if header["arguments"] is None:
            raise ValueError(f"this {name} was not made by {name}(...), so that a file cannot say how to rebuild it.")
        if unknown := sorted(excluded - header["arguments"].keys()):
            raise ValueError(f"exclude names {', '.join(unknown)}; arguments are {', '.join(header['arguments'])}.")
        header["arguments"] = {key: kept for key, kept in header["arguments"].items() if key not in excluded}
        parts = {m._constructed["class"] for m in self.modules() if m is not self and isinstance(m, SaveableModule)}
        for key, kept in header["arguments"].items():
            inner: list[dict[str, Any]] = []
            if reason := not_kept(kept):
                reason = f"holds a {reason}, which JSON cannot"
            else:
                decode(kept, inner.append)
            if any(made["class"] not in parts for made in inner):
                reason = "holds a model that is no part of this one, so that its weights would be lost"
            if reason:
                raise ValueError(
                    f"{key} of {name} {reason}: build it in the constructor of a subclass, from names and numbers, or "
                    f"call save(path, exclude={[key]!r}) and pass {key} to load()."
                )
        state = state_of(self)
        if not excluded:
            try:
                with uninterrupted(), Bounded(weights):
                    twin = _rebuilt(header)
                    built = state_of(twin)
                    lost = _differences(shapes(twin), shapes(self)) or _differences(built, state, but_json=True)
                    state = {key: kept for key, kept in state.items() if key not in built or kept != built[key]}
                    lost = lost or _other_size({**header, "state": state}, shapes(self))
            except Exception as error:
                raise ValueError(f"no {name} can be rebuilt from its arguments, as by load(): {error}") from error
            if lost:
                raise ValueError(
                    f"this {name} is not what its constructor builds, which load() calls: {lost} now. Set it in the "
                    f"constructor, from an argument, or keep it in a buffer; an attribute that does not matter may be "
                    f"private (_name). The weights alone are saved by torch.save(model.state_dict(), path)."
                )
        seen = {"columns": self.columns, "validated_on": list(self.validated_on)}
        write(Path(path), {**header, **seen, "excluded": sorted(excluded), "state": state}, weights)
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], /, **arguments: Any) -> Self:
        """Rebuild a saved model on the device that its constructor chooses, the CPU by default, to the last bit. No
        random state changes.

        What torch computes and allocates in the constructor is bounded by the weights; memory that a class of yours
        takes through NumPy or Python alone is not.

        Args:
            path: a file written by :meth:`save`.
            arguments: of the constructor: those that the file does without or, where there are none, others than it
                holds.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no regular one, damaged, of another format, or holds another class; the constructor
                lacks arguments, builds other shapes, parts or kinds of tensors, or on the meta device, or computes far
                more than the weights.
        """
        header, weights = read(as_path(path, "path"))
        name = header["class"]
        if name != cls.__qualname__:
            raise ValueError(f"{path} holds a {name}, not a {cls.__qualname__}: call {name}.load.")
        given = header["arguments"].keys() | arguments.keys()
        if missing := [key for key in dict.fromkeys([*parameters(cls)[2], *header["excluded"]]) if key not in given]:
            raise ValueError(f"{path} does not hold all arguments of {name}: pass {', '.join(missing)} to load().")
        if header["excluded"] and (others := sorted(arguments.keys() - header["excluded"])):
            raise ValueError(f"{path} holds {', '.join(others)}, and takes only {', '.join(header['excluded'])}.")
        saved = {key: tuple(value.shape) for key, value in weights.items()}
        try:
            with uninterrupted(), Bounded(weights):
                model = _on_meta(header, cls, arguments)  # what does not fit is seen before memory is taken
            lost = "" if model is None else _differences(shapes(model), saved)
            if not lost:
                with uninterrupted(), Bounded(weights):
                    model = _rebuilt(header, cls, arguments)
                    lost = _other_size(header, saved, cls, arguments)
        except Exception as error:
            raise ValueError(f"{path} holds a {name} that cannot be rebuilt: {error}") from error
        if not lost:
            built = {key: kept for key, kept in state_of(model).items() if key in header["state"]}
            lost = _differences(shapes(model), saved) or _differences(built, header["state"], but_json=True)
        if lost:
            raise ValueError(f"the contents of {path} do not fit {name}: {lost} in the file.")
        ours, state = tensors(model), model.state_dict()
        if any(value.is_meta for value in ours.values()):
            raise ValueError(f"{name} was built on the meta device, which holds no values: load {path} on another.")
        for key, value in weights.items():
            if _kind(value) != _kind(ours[key]):
                raise ValueError(f"the contents of {path} do not fit {name}: {key} is of {value.dtype} in the file.")
            ours[key].data = value.to(ours[key].device, copy=True)  # its dtype and layout, too
        state.update({key: weights[uncompiled(key)] for key in state})
        model.load_state_dict(state)
        if digest(header, ours) != header["digest"]:
            raise ValueError(f"the weights in {path} do not fit {name}: it ties some that differ in the file.")
        if len(header["columns"] or ()) > (most := 1 + num_after_first(getattr(model, model._program))[1]):
            fields = len(header["columns"])
            raise ValueError(f"the contents of {path} do not fit {name}: names of {fields} fields, of {most} at most.")
        model.columns, model.validated_on = header["columns"], tuple(header["validated_on"])
        return model


def load(path: str | os.PathLike[str]) -> Any:
    """Rebuild a saved model of whatever class the file names.

    What torch computes and allocates in the constructor is bounded by the weights; memory that a class of yours takes
    through NumPy or Python alone is not.

    Args:
        path: a file written by :meth:`~pyrovae.VAEModel.save`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no regular one, or damaged, or its class is not defined in this process or needs
            arguments.
    """
    header = read(as_path(path, "path"))[0]
    try:
        cls = find(SaveableModule, header["module"], header["class"])
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    return cls.load(path)


@contextmanager
def _nothing_registered() -> Iterator[None]:
    """Leave no parameter behind in Pyro's global store that a constructor puts there."""
    store = pyro.get_param_store()
    with turn():
        before = set(store.keys())
        try:
            yield
        finally:
            for name in set(store.keys()) - before:
                del store[name]


@undisturbed()  # a constructor that draws builds for load() what it built for save()
@_nothing_registered()
def _rebuilt(made: Mapping[str, Any], cls: Any = None, arguments: Mapping[str, Any] | None = None) -> Any:
    """Build a model with new weights from its ``construction``, by another class than the one named, with other
    arguments.
    """
    given = dict(arguments or {})
    kept = {key: decode(value, _rebuilt) for key, value in made["arguments"].items() if key not in given}
    model = build(cls or find(SaveableModule, made["module"], made["class"]), kept | given)
    if made["event_shape"] is not None and "event_shape" not in given:
        shape = tuple(made["event_shape"])
        if model.event_shape not in (None, shape):
            raise ValueError(f"it is of data of shape {shape}, and its constructor of {tuple(model.event_shape)}")
        model.event_shape = shape
    for key, value in made.get("state", {}).items():
        path, _, name = key.rpartition(".")
        if not not_kept(value) and key not in given:
            part = modules(model).get(path)
            own = getattr(type(part), name, None)
            taken = name.startswith("_") or name in (NOT_IN_STATE[:1] if path else NOT_IN_STATE)
            if part is None or taken or callable(own) or hasattr(own, "__get__"):
                raise ValueError(f"the file sets {key}, which there is not")
            setattr(part, name, decode(value, _rebuilt))
    return model


def _other_size(made: Mapping[str, Any], saved: Any, cls: Any = None, given: Mapping[str, Any] | None = None) -> str:
    """What an attribute says that is an argument of the constructor, which would build other tensors of it, or none."""
    arguments = {key: kept for key, kept in made["arguments"].items() if key not in (given or {})}
    for key, kept in made["state"].items():
        if (
            key in arguments and type(arguments[key]) is type(kept) and not not_kept(kept)
        ):  # else it holds something else
            later = {**made, "state": {}, "arguments": arguments | {key: kept}}
            try:
                fits = shapes(_on_meta(later, cls, given) or _rebuilt(later, cls, given)) == saved
            except Exception:  # whatever somebody else's constructor does
                fits = False
            if not fits:
                return f"{key} is {arguments[key]} as built, and {kept}"
    return ""


def _on_meta(*made: Any) -> Any:
    """Build a model as :func:`_rebuilt` does, with no memory taken; ``None`` for a constructor that computes with
    values.
    """
    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            return _rebuilt(*made)
    except TooMuch:
        raise
    except Exception:
        return None


def _differences(built: Mapping[str, Any], ours: Mapping[str, Any], but_json: bool = False) -> str:
    """The first difference in words, ``but_json`` for one that a header holds."""
    for name in sorted(built.keys() | ours.keys()):
        a, b = built.get(name, _MISSING), ours.get(name, _MISSING)
        if a != b and (not_kept(b) or not but_json):
            a, b = (" ".join(v.values()) if isinstance(v, dict) and "$not_kept" in v else v for v in (a, b))
            return f"{name} is {a!s:.100} as built, and {b!s:.100}"
    return ""


def _kind(value: Tensor) -> tuple[bool, bool, bool]:
    """What a tensor's numbers are, of whatever precision: real, complex, whole, or true and false."""
    return value.is_floating_point(), value.is_complex(), value.dtype == torch.bool
