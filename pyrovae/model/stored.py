"""What every model has that ``fit`` trains: a place among dtypes and devices, and a file to be kept in."""

import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pyrovae._random import others_state, seeded, set_others_state
from pyrovae.model import files
from pyrovae.model.arguments import build, capture, decode, encode, find, not_kept, required, takes


class Stored(nn.Module):
    """A module that can be saved and rebuilt: from the arguments that its constructor was given, and its weights.

    Arguments are captured by value where the object is constructed, whatever its class makes of them. What is set
    later, other than parameters and buffers, is not saved: :meth:`save` refuses where it would be lost.

    Attributes:
        event_shape: shape of one datum; ``fit`` fills it in where the subclass did not.
    """

    event_shape: tuple[int, ...] | None = None
    _constructed: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # The outermost call alone comes here, with all of its arguments; copies and unpickled objects overwrite this.
        self = super().__new__(cls)
        arguments = capture(cls, args, kwargs)
        self.__dict__["_constructed"] = {"class": cls.__qualname__, "module": cls.__module__, "arguments": arguments}
        return self

    @property
    def construction(self) -> dict[str, Any]:
        """How the object was constructed, in JSON: ``class``, ``module``, ``arguments`` by name, ``event_shape``."""
        shape = None if self.event_shape is None else [int(n) for n in self.event_shape]
        return {**self._constructed, "event_shape": shape}

    def _set_argument(self, name: str, value: Any) -> None:
        """Let a file say that the constructor was given this value, because a method has changed what it built."""
        made = self._constructed
        if made["arguments"] is not None and takes(type(self), name):
            arguments = {**made["arguments"], name: encode(value)}
            self.__dict__["_constructed"] = {**made, "arguments": arguments}

    def like(self) -> Tensor:
        """An empty tensor of the model's device and dtype."""
        first = next(chain(self.parameters(), self.buffers()), torch.empty(0))
        return torch.empty(0, device=first.device, dtype=first.dtype)

    def save(self, path: str | os.PathLike[str], *, exclude: str | Collection[str] = ()) -> Path:
        """Write parameters, buffers and the constructor's arguments (JSON in the header) to one safetensors file,
        atomically.

        Args:
            path: where; missing folders are made.
            exclude: names of arguments that the file is to do without, and :meth:`load` to be given; what a file
                cannot keep is left out in this way. With any, whether the file will fit is seen at :meth:`load` only.

        Returns:
            The path.

        Raises:
            ValueError: an argument that JSON cannot hold, such as a module; a model that is no longer what its
                constructor builds; a lazy module that has not been run yet; a tensor of a kind that files do not hold.
        """
        path = Path(path)
        excluded = {exclude} if isinstance(exclude, str) else set(exclude)
        header, weights = self.construction, _tensors(self)
        name = header["class"]
        if header["arguments"] is None:
            raise ValueError(f"this {name} was not made by calling {name}(...), so no file can say how to rebuild it.")
        if unknown := sorted(excluded - header["arguments"].keys()):
            raise ValueError(f"exclude names {', '.join(unknown)}; arguments are {', '.join(header['arguments'])}.")
        header["arguments"] = {n: v for n, v in header["arguments"].items() if n not in excluded}
        parts = {m._constructed["class"] for m in self.modules() if m is not self and isinstance(m, Stored)}
        inner: list[dict[str, Any]] = []
        for argument, value in header["arguments"].items():
            fix = (
                f"build it in the constructor of a subclass, from names and numbers, or call "
                f"save(path, exclude={[argument]!r}) and pass {argument} to load()."
            )
            if kind := not_kept(value):
                raise ValueError(f"{argument} of {name} holds a {kind}, which JSON cannot: {fix}")
            decode(value, inner.append)
            if any(made["class"] not in parts for made in inner):
                raise ValueError(f"{argument} of {name} is no part of it, so its weights would not be kept: {fix}")
        if not excluded:
            with _undisturbed():
                twin = _on_meta(header) or _rebuilt(header)
            settings = _settings(twin)
            lost = _differences(_shapes(self), _shapes(twin)) or _differences(
                {key: value for key, value in _settings(self).items() if key in settings}, settings
            )
            if lost:
                raise ValueError(
                    f"this {name} is not what {name}(...) builds from its arguments, as load() would: {lost}. Let the "
                    f"constructor set it, from an argument, or keep it as a buffer. (For the weights alone: "
                    f"torch.save(model.state_dict(), path).)"
                )
        files.write(path, {**header, "excluded": sorted(excluded)}, weights)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str], **arguments: Any) -> Self:
        """Rebuild a saved model, on the CPU, with the same bits. No random state changes.

        Args:
            path: a file written by :meth:`save`.
            arguments: of the constructor, in place of those in the file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, of an older format, or holds another class or other shapes; it lacks
                arguments of the constructor.
        """
        header, weights = files.read(Path(path))
        name = header["class"]
        if name != cls.__qualname__:
            raise ValueError(f"{path} holds a {name}, not a {cls.__qualname__}: call {name}.load.")
        known = header["arguments"].keys() | arguments.keys()
        if missing := [a for a in dict.fromkeys([*header["excluded"], *required(cls)]) if a not in known]:
            raise ValueError(
                f"{path} does not keep all of its {name}'s arguments: pass {', '.join(missing)} to load()."
            )
        shapes = {key: tuple(value.shape) for key, value in weights.items()}
        with _undisturbed():
            model = _on_meta(header, cls, arguments)  # a model that is too large, or another one, costs no memory
            lost = "" if model is None else _differences(shapes, _shapes(model))
            if not lost:
                try:
                    model = _rebuilt(header, cls, arguments)
                except Exception as error:
                    given = ", ".join(known) or "no arguments"
                    raise ValueError(f"{path} is a {name} that cannot be built from {given}: {error}") from error
                lost = _differences(shapes, _shapes(model))
        if lost:
            raise ValueError(f"the weights in {path} do not fit {name}: {lost}")
        tensors = _tensors(model)
        for key, value in weights.items():
            tensors[key].data = value.to(tensors[key].device, copy=True)  # dtype and layout, too
        state = model.state_dict()
        state.update({key: weights[_uncompiled(key)] for key in state})
        model.load_state_dict(state)
        if files.digest(header, tensors) != header["digest"]:
            raise ValueError(f"the weights in {path} do not fit {name}: it ties some that are not tied in the file.")
        return model


def load(path: str | os.PathLike[str]) -> Any:
    """Rebuild a saved model of whatever class the file names.

    Args:
        path: a file written by :meth:`~pyrovae.VAEModel.save`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or its class is not defined in this process or needs arguments.
    """
    header = files.read(Path(path))[0]
    try:
        cls = find(Stored, header["module"], header["class"])
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    return cls.load(path)


def _rebuilt(made: Mapping[str, Any], cls: Any = None, arguments: Mapping[str, Any] | None = None) -> Any:
    """A model of new weights from its ``construction``, with some arguments in place of those."""
    kept = {n: decode(v, _rebuilt) for n, v in made["arguments"].items() if n not in (arguments or {})}
    model = build(cls or find(Stored, made["module"], made["class"]), {**kept, **(arguments or {})})
    if made["event_shape"] is not None:
        model.event_shape = tuple(made["event_shape"])
    return model


def _on_meta(*construction: Any) -> Any:
    """The same without memory for its weights; ``None`` for a constructor that computes with values."""
    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            return _rebuilt(*construction)
    except Exception:
        return None


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Every global random state afterwards as before."""
    others = others_state()
    with seeded(0):
        try:
            yield
        finally:
            set_others_state(*others)


def _uncompiled(name: str) -> str:
    return name.replace("_orig_mod.", "")  # torch.compile(part) puts the part inside another module


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, of which those that ``state_dict`` leaves out too."""
    found = dict(model.state_dict(keep_vars=True))
    for path, module in model.named_modules():
        found |= {f"{path}.{n}".lstrip("."): b for n, b in module._buffers.items() if b is not None}
    for name, value in found.items():
        if not isinstance(value, Tensor) or is_lazy(value):
            what = "not built yet, and a constructor does not say its shape" if is_lazy(value) else "not a tensor"
            fix = "use the layer that is not lazy" if is_lazy(value) else "keep it as a buffer"
            raise ValueError(f"{name} of {type(model).__name__} is {what}: {fix}, so that a file can hold it.")
    return {_uncompiled(name): value for name, value in found.items()}


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in _tensors(model).items()}


def _settings(model: nn.Module) -> dict[Any, Any]:
    """Plain attributes of a model and its parts, by name and by the part's class."""
    return {
        (_uncompiled(f"{path}.{name}").lstrip("."), type(module)): encode(value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in ("training", "event_shape")
        if value is None or isinstance(value, (bool, int, float, str, tuple))
    }


def _differences(ours: Mapping[Any, Any], theirs: Mapping[Any, Any]) -> str:
    """The first of what differs, in words."""
    for key in dict.fromkeys([*ours, *theirs]):
        a, b = ours.get(key, "not there"), theirs.get(key, "not there")
        if a != b:
            return f"{key if isinstance(key, str) else key[0]} is {a} here and {b} as constructed"
    return ""
