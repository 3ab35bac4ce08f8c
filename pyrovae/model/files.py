"""Model files: weights and a JSON header in one safetensors file, never half-written."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pyrovae._files import replaced

_KEY = "pyrovae"


def write(path: Path, header: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Write to a temporary file beside ``path``, flush it to the disk, and rename it into place."""
    copies = {name: value.detach().clone() for name, value in weights.items()}  # tied weights share memory
    with replaced(path) as temporary:
        save_file(copies, temporary, {_KEY: json.dumps(header)})


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or not one of ours.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no model at {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_KEY])
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a model saved by pyrovae, or is damaged: {error}") from error
