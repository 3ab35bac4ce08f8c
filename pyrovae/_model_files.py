"""Model files: weights and a JSON header in one safetensors file, with a digest, never half-written."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pyrovae._files import check_regular, replaced
from pyrovae._interrupt import uninterrupted
from pyrovae._untrusted import MALFORMED, parsed

_KEY, _FORMAT = "pyrovae", 3
_TEXTS, _LISTS, _DICTS = ("class", "module", "digest"), ("excluded", "validated_on"), ("arguments", "layouts", "state")
_KINDS: dict[str, Any] = {**dict.fromkeys(_TEXTS, str), **dict.fromkeys(_LISTS, list), **dict.fromkeys(_DICTS, dict)}
_KINDS |= {"format": int, "event_shape": (list, type(None)), "columns": (list, type(None))}


def write(path: Path, header: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write to a temporary file beside ``path``, flush it to the disk, and rename it into place.

    Raises:
        ValueError: a tensor of a kind that safetensors does not have; a path that is there, and no regular file.
    """
    copies, layouts = {}, {}
    for name, value in weights.items():
        if value.layout is not torch.strided or value.dtype is torch.complex128 or value.is_meta or value.is_quantized:
            kind = f"{value.layout}, {value.dtype}, on {value.device}"
            raise ValueError(f"{name} is a tensor of a kind that no model file holds ({kind}): convert it first.")
        copy = value.detach().cpu().clone()  # tied weights share memory, expanded ones overlap
        if copy.stride() != torch.empty(copy.shape, device="meta").stride():
            layouts[name] = copy.stride()  # channels last, say, on which the last bit of a convolution depends
        copies[name] = copy.contiguous()
    header = {"format": _FORMAT, **header, "layouts": layouts}
    header["digest"] = digest(header, copies)
    with replaced(path) as temporary:
        save_file(copies, temporary, {_KEY: json.dumps(header)})


@uninterrupted()  # or Ctrl-C is taken for damage, as libraries in C report it
def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no regular file, damaged, not one of ours, or of another format.
    """
    check_regular(path, "model")
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(parsed((file.metadata() or {})[_KEY]))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if (version := header.get("format")) != _FORMAT:
            raise ValueError(f"its format is {version or 1}, where {_FORMAT} is needed. Save the model anew.")
        names = sorted(header.keys() | _KINDS.keys())
        if odd := [n for n in names if n not in header or not isinstance(header[n], _KINDS.get(n, ()))]:
            raise ValueError(f"its header has missing, unknown or malformed fields: {', '.join(odd)}.")
        if not all(type(n) is int and n > 0 for n in header["event_shape"] or ()):
            raise ValueError(f"its header gives data of shape {header['event_shape']}.")
        fields = [names for names in header["columns"] or () if names is not None]
        for names in (header["excluded"], header["validated_on"], *fields):
            if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
                raise ValueError(f"its header has {names} where a list of names is needed.")
        names, shape = (header["columns"] or [None])[0], header["event_shape"]
        if names is not None and (len(set(names)) != len(names) or (shape and len(names) != shape[-1])):
            raise ValueError(f"its header names {len(names)} columns, and its data have shape {shape}.")
        if digest(header, weights) != header["digest"]:
            raise ValueError("its content is not what was written (a damaged disk, or a file changed afterwards).")
        for name, strides in header["layouts"].items():
            plain = weights[name]
            if sum((n - 1) * step for n, step in zip(plain.shape, strides, strict=True)) >= plain.numel():
                raise ValueError(f"its header spreads {name} over more memory than it needs.")
            weights[name] = torch.empty_strided(plain.shape, strides, dtype=plain.dtype).copy_(plain)
    except (SafetensorError, OSError, *MALFORMED) as error:
        raise ValueError(f"{path} is not a model saved by pyrovae, or is damaged: {error}") from error
    return header, weights


def digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a header, all but its own digest, and of names, dtypes, shapes and values of tensors."""
    content = {key: value for key, value in header.items() if key != "digest"}
    out = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        out.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        out.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return out.hexdigest()
