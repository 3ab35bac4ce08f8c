"""What every model has that ``fit`` trains: a place among dtypes and devices, and a file to be kept in."""

import inspect
import json
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from pyrovae._checks import as_data
from pyrovae.model import files


class Stored(nn.Module):
    """A module that can be saved and rebuilt.

    Attributes:
        event_shape: shape of one datum; ``fit`` fills it in where the subclass did not.
        config: keyword arguments that rebuild this object, if it has such; stored by :meth:`save`.
    """

    event_shape: tuple[int, ...] | None = None
    config: dict[str, Any] | None = None

    def like(self) -> Tensor:
        """An empty tensor of the model's device and dtype."""
        first = next(chain(self.parameters(), self.buffers()), torch.empty(0))
        return torch.empty(0, device=first.device, dtype=first.dtype)

    def as_data(self, value: Any, name: str = "x", covariates: tuple[Any, ...] = ()) -> Tensor:
        """Data ``(N, *event_shape)``, checked; see :func:`pyrovae._checks.as_data`."""
        return as_data(value, name, self.event_shape)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the weights and the configuration (JSON in the header) to one safetensors file, atomically.

        Args:
            path: where; missing folders are made.

        Returns:
            The path.
        """
        path = Path(path)
        header = {
            "class": type(self).__qualname__,
            "module": type(self).__module__,
            "config": self.config,
            "event_shape": self.event_shape,
            "dtype": str(self.like().dtype).removeprefix("torch."),
        }
        files.write(path, header, self.state_dict())
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str], **config: Any) -> Self:
        """Rebuild a saved model.

        Args:
            path: a file written by :meth:`save`.
            config: arguments of the constructor; by default the stored ones.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, or holds another class or other shapes.
        """
        header, weights = files.read(Path(path))
        if header["class"] != cls.__qualname__:
            raise ValueError(
                f"{path} holds a {header['class']}, not a {cls.__qualname__}: call {header['class']}.load."
            )
        arguments = config or header["config"] or {}
        required = [
            p.name
            for p in inspect.signature(cls).parameters.values()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in arguments
        ]
        if required:
            raise ValueError(
                f"{path} does not store how its {cls.__qualname__} was built: pass {', '.join(required)} to load()."
            )
        model = cls(**arguments).to(getattr(torch, header.get("dtype", "float32")))
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"the weights in {path} do not fit {cls.__qualname__}: {error}") from error
        if header["event_shape"] is not None:
            model.event_shape = tuple(header["event_shape"])
        return model


def as_from_file(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration as it will come back from a file: lists for tuples, Python's numbers for NumPy's and torch's."""
    return json.loads(json.dumps(config, default=lambda number: number.item()))


def load(path: str | os.PathLike[str]) -> Any:
    """Rebuild a saved model of whatever class the file names.

    Args:
        path: a file written by :meth:`~pyrovae.VAEModel.save`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or its class is not defined in this process or needs arguments.
    """
    header = files.read(Path(path))[0]
    name = header["class"]
    known = {(c.__module__, c.__qualname__): c for c in _subclasses(Stored)}  # of a cell run twice, the last
    cls = known.get((header.get("module", ""), name))
    if cls is None:  # from a script or notebook, where the module's name was another one
        match [c for c in known.values() if c.__qualname__ == name]:
            case [cls]:
                pass
            case []:
                raise ValueError(f"{path} holds a {name}, which is not defined here: import it, then call {name}.load.")
            case several:
                modules = ", ".join(sorted(c.__module__ for c in several))
                raise ValueError(
                    f"{path} holds a {name}, and several modules define one ({modules}): call {name}.load."
                )
    return cls.load(path)


def _subclasses(cls: type[Stored]) -> Iterator[type[Stored]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)
