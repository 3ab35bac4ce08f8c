"""Files that nobody's ``save`` wrote: each is refused by an error that is documented, in little memory and time.

Every file is read in a process of its own. With ``PYROVAE_FUZZ=full`` there are many more flipped bits, cut ends and
changed values.
"""

import copy
import io
import json
import os
import pickle
import random
import resource
import signal
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyrovae as pv
from pyrovae import _model_files as files
from pyrovae._model_files import digest
from pyrovae.evaluation import Result
from pyrovae.training import _checkpoint as checkpoint
from tests.models import binary

FULL = os.environ.get("PYROVAE_FUZZ") == "full"
RANDOM = 400 if FULL else 12  # of each kind for each kind of file
SHARE = 3  # one of so many, where not all are read
MEMORY, ADDRESSES, SECONDS = 300 * 2**20, 12 * 2**30, 20
X = binary(20)

Case = tuple[str, Callable[[Path], Any]]  # a name, and what puts a file at a path
DEEP = "[" * 500 + "]" * 500
LONG = "[" * 10**6


def small(posterior: str = "iaf") -> pv.VAE:
    torch.manual_seed(0)
    return pv.VAE((6,), 2, hidden=(3,), posterior=posterior, prior="mixture")


def nested(depth: int, inner: Any = 1) -> Any:
    for _ in range(depth):
        inner = [inner]
    return inner


class Payload:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mknod, (str(self.path),)


# -- what nobody should open, and what is no file of ours ----------------------------------------------------------


def anything(loot: Path) -> Iterator[Case]:
    yield "a folder", Path.mkdir
    yield "a pipe", os.mkfifo
    yield "a link to itself", lambda p: p.symlink_to(p)
    for device in ("/dev/zero", "/dev/urandom", "/dev/stdin", "/dev/tty"):
        yield device, lambda p, device=device: p.symlink_to(device)
    yield "a pipe behind links", lambda p: (os.mkfifo(p.with_name("f")), p.symlink_to("f"))
    yield "nothing", lambda p: p.write_bytes(b"")
    yield "zeros", lambda p: p.write_bytes(bytes(5000))
    yield "a sparse file of 64 GB", lambda p: (p.write_bytes(b"PK\3\4"), os.truncate(p, 2**36))
    yield "text", lambda p: p.write_text("[" * 10**5)
    yield "a pickle", lambda p: p.write_bytes(pickle.dumps(Payload(loot)))
    yield "torch's own", lambda p: torch.save({"a": Payload(loot)}, p)
    yield "torch's older", lambda p: torch.save({"a": Payload(loot)}, p, _use_new_zipfile_serialization=False)
    yield "an array of objects", lambda p: np.save(p.open("wb"), np.array([Payload(loot)]), allow_pickle=True)
    yield "arrays of objects", lambda p: np.savez(p.open("wb"), result=np.array([Payload(loot)]))
    yield "an empty archive", lambda p: zipfile.ZipFile(p, "w").close()


# -- models --------------------------------------------------------------------------------------------------------


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The safetensors header, and the rest."""
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def packed(header: Any, rest: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def models(whole: bytes) -> Iterator[Case]:
    from safetensors.torch import load as tensors_of

    outer, rest = split(whole)
    inner, weights = json.loads(outer["__metadata__"]["pyrovae"]), tensors_of(whole)

    def case(name: str, change: Callable[[dict[str, Any]], Any]) -> Case:
        """The digest fits."""
        header = copy.deepcopy(inner)
        change(header)
        header["digest"] = digest(header, weights) if header.get("digest") == inner["digest"] else header.get("digest")
        return name, lambda p: p.write_bytes(packed(with_text(json.dumps(header)), rest))

    def with_text(text: str) -> dict[str, Any]:
        return {**outer, "__metadata__": {"pyrovae": text}}

    bad = {
        **{field: [None, 3, True, 1.5, [], {}, nested(70)] for field in ("class", "module", "digest")},
        "format": [None, "3", 3.5, [3], {}, -1, 10**30],
        "excluded": [None, 3, "x", {}, [1], [None], ["none"], nested(70)],
        "validated_on": [None, 3, "x", {}, [1], [[]], nested(70)],
        "columns": ["x", 3, {}, [3], ["x"], [[3]], [{}], [["a"]], [[]], [["a"] * 6], [list("abcdef"), None]],
        "event_shape": ["x", 3, {}, ["x"], [0], [-6], [1.5], [True], [10**9], [10**30], [6] * 1000],
        "arguments": [None, 3, "x", [], {}, {"event_shape": 3}, nested(70)],
        "layouts": [None, 3, "x", [], {"no": [1]}, nested(70)],
        "state": [None, 3, "x", [], nested(70)],
    }
    for field, values in bad.items():
        yield case(f"{field} is not there", lambda h, field=field: h.pop(field))
        for value in values:
            if value != inner[field] or type(value) is not type(inner[field]):
                yield case(f"{field} is {value!r:.30}", lambda h, f=field, v=value: h.update({f: v}))
    for value in ([0, 0], [-1, 1], [10**15, 1], [1], "x", [None, None], [1.5, 1], 5):
        yield case(f"layout {value}", lambda h, v=value: h.update(layouts={"decoder.0.weight": v}))
    arguments = {
        "latent_dim": [0, -1, "two", 1.5, None, [], {}, 10**4, 10**9, 10**30, nested(60)],
        "hidden": ["x", 3.5, [0], [-1], [10**6], [10**9, 10**9], [None], {"a": 1}, [8] * 3000],
        "posterior": ["none", 3, [], {"$model": inner}, {"$model": {}}, {"$call": "os.system"}],
        "likelihood": ["none", 3, {"$path": "/etc/passwd"}, {"$enum": ["os", "PathLike", "x"]}],
        "prior": ["none", 3, {"$dtype": "load"}, {"$device": "moon"}, {"$tuple": 3}, {"$dict": [[[], 1]]}],
        "network": ["none", 3, {"$float": "x"}, {"$not_kept": "Linear"}],
        "event_shape": [[], [0], [-1], "six", [10**5, 10**5], [7], None],
        "posterior_options": [3, {"none": 1}, {"hidden": [20000, 20000]}, {"hidden": ["x"]}],
        "prior_options": [3, {"none": 1}, {"num_components": 10**8}, {"num_components": -1}],
        "__class__": [1],
        "self": [1],
        "none": [1],
    }
    for name, values in arguments.items():
        for value in values:
            yield case(f"{name}={value!r:.30}", lambda h, n=name, v=value: h["arguments"].update({n: v}))
    names = ("model", "guide", "forward", "load_state_dict", "event_shape", "training", "_parameters", "__class__")
    for name in (
        *names,
        "decoder",
        "decoder.0",
        "decoder.0.weight",
        "no.p",
        "a.b.c",
        "posterior._buffers",
        "prior.training",
    ):
        yield case(f"state {name}", lambda h, name=name: h["state"].update({name: 1}))
    for size in (3, 10**9, 10**30):
        yield case(f"state latent_dim {size}", lambda h, size=size: h["state"].update(latent_dim=size))
    yield case("a model in a model in a model", lambda h: h["arguments"].update(posterior=_models_in(h, 12)))

    text = outer["__metadata__"]["pyrovae"]
    for name, other in {
        "a name twice": text[:-1] + ', "format": 3}',
        "NaN": text.replace('"latent_dim": 2', '"latent_dim": NaN'),
        "infinity": text.replace('"latent_dim": 2', '"latent_dim": 1e999'),
        "a number of many digits": text.replace('"latent_dim": 2', '"latent_dim": ' + "9" * 10**5),
        "deep": text.replace('"latent_dim": 2', f'"latent_dim": {DEEP}'),
        "deep and open": text.replace('"latent_dim": 2', f'"latent_dim": {LONG}'),
        "a list": "[]",
        "a number": "3",
        "pairs": '[["format", 3]]',
        "no text": "",
        "half": text[: len(text) // 2],
    }.items():
        assert other != text, name
        yield f"header: {name}", lambda p, other=other: p.write_bytes(packed(with_text(other), rest))

    tensor = next(name for name in outer if name.endswith("weight"))
    for change in (
        {"shape": [10**6, 10**6]},
        {"shape": [2**62, 4]},
        {"shape": [-1]},
        {"shape": "x"},
        {"shape": [[1]]},
        {"data_offsets": [0, 10**12]},
        {"data_offsets": [-1, 4]},
        {"data_offsets": [8, 4]},
        {"dtype": "F64"},
        {"dtype": "X"},
        {"dtype": "I32"},
        {"dtype": 3},
    ):
        yield (
            f"tensor {change}",
            lambda p, c=change: p.write_bytes(packed({**outer, tensor: {**outer[tensor], **c}}, rest)),
        )
    flat = {"shape": [outer[tensor]["data_offsets"][1] - outer[tensor]["data_offsets"][0]], "dtype": "U8"}
    for name, header in {
        "another name": {f"{k}x" if k == tensor else k: v for k, v in outer.items()},
        "a tensor less": {k: v for k, v in outer.items() if k != tensor},
        "no metadata": {k: v for k, v in outer.items() if k != "__metadata__"},
        "metadata of numbers": {**outer, "__metadata__": {"pyrovae": 3}},
        "metadata alone": {"__metadata__": outer["__metadata__"]},
        "no object": [1],
        "deep": DEEP.encode(),
        "a tensor twice": json.dumps(outer)[:-1].encode()
        + b","
        + json.dumps({tensor: {**outer[tensor], **flat}})[1:].encode(),
    }.items():
        yield f"safetensors: {name}", lambda p, header=header: p.write_bytes(packed(header, rest))
    for size in (2**63, 2**40, 2**31, 10**8, 0, 7):
        yield f"a header of {size} bytes", lambda p, size=size: p.write_bytes(struct.pack("<Q", size) + whole[8:])
    for kind in (torch.int32, torch.bool, torch.complex64, torch.uint8):
        yield f"weights of {kind}", lambda p, kind=kind: _as_kind(p, inner, weights, kind)
    yield "more behind", lambda p: p.write_bytes(whole + b"x")


def _models_in(header: dict[str, Any], depth: int) -> Any:
    out = {key: header[key] for key in ("class", "module", "arguments", "event_shape")}
    for _ in range(depth):
        out = {**out, "arguments": {**out["arguments"], "posterior": {"$model": copy.deepcopy(out)}}}
    return {"$model": out}


def _as_kind(path: Path, header: dict[str, Any], weights: dict[str, torch.Tensor], kind: torch.dtype) -> None:
    from safetensors.torch import save_file

    changed = {name: value.to(kind) if name == "decoder.0.weight" else value for name, value in weights.items()}
    save_file(changed, path, {"pyrovae": json.dumps({**header, "digest": digest(header, changed)})})


# -- results -------------------------------------------------------------------------------------------------------


def results(whole: bytes, loot: Path) -> Iterator[Case]:
    with np.load(io.BytesIO(whole)) as file:
        arrays = dict(file)
    facts = json.loads(str(arrays.pop("result")))

    def write(path: Path, facts: Any, save: Any = np.savez, **others: Any) -> None:
        text = facts if isinstance(facts, str) else json.dumps(facts)
        entries = {"result": np.array(text), **arrays, **others}
        with path.open("wb") as file:
            save(file, **{name: value for name, value in entries.items() if value is not None})

    def case(name: str, change: Callable[[dict[str, Any]], Any]) -> Case:
        changed = copy.deepcopy(facts)
        change(changed)
        return name, lambda p: write(p, changed)

    for field in facts:
        yield case(f"{field} is not there", lambda f, field=field: f.pop(field))
        for value in (None, 3, "x", [], [1], ["a"], {"a": 1}, 1.5, {"pointwise": 3}, [None, None], nested(100)):
            if value != facts[field]:
                yield case(f"{field} is {value!r:.30}", lambda f, n=field, v=value: f.update({n: v}))
    for value in (["builtins", "object"], ["os", "system"], ["a"], ["pyrovae.evaluation", "Result"], [1, 2], ["", ""]):
        yield case(f"class is {value}", lambda f, v=value: f.update({"class": v}))
    for field, right in facts["values"].items():
        yield case(f"without {field}", lambda f, field=field: f["values"].pop(field))
        for value in (None, "x", [1], {"a": 1}, {"$model": {}}, {"$tuple": ["a"]}, {"$call": 1}):
            optional = value is None and field == "num_observed"
            if not optional and not (isinstance(value, str) and isinstance(right, str)):
                yield case(f"{field} is {value!r:.30}", lambda f, n=field, v=value: f["values"].update({n: v}))
    yield case("more fields", lambda f: f["values"].update(more=1))
    yield case("a field that is a method", lambda f: f["values"].update(summary=1))
    for field in facts["values"]["provenance"]:
        for value in ([], {"a": [1]}, 1.5, nested(100)):
            yield case(
                f"provenance.{field} is {value!r:.30}",
                lambda f, n=field, v=value: f["values"]["provenance"].update({n: v}),
            )
    table = facts["tables"]["pointwise"]
    for field in table:
        yield case(f"a table without {field}", lambda f, field=field: f["tables"]["pointwise"].pop(field))
        for value in (None, 3, [], ["x", "y"], [[]], {"a": 1}, ["x"] * 10**4):
            yield case(
                f"a table of {field} {value!r:.30}", lambda f, n=field, v=value: f["tables"]["pointwise"].update({n: v})
            )
    yield case("tables of no class", lambda f: f["tables"].update(more=table))
    yield case("tensors of no name", lambda f: f["tensors"].append("x"))
    yield case(
        "columns that nobody needs", lambda f: f["tables"]["pointwise"].update(columns=[f"c{i}" for i in range(20)])
    )
    text = json.dumps(facts)
    for name, other in {
        "deep": DEEP,
        "open": LONG,
        "NaN": text.replace("20,", "NaN,", 1),
        "twice": text[:-1] + ', "format": 1}',
    }.items():
        yield f"facts: {name}", lambda p, other=other: write(p, other)

    first = next(iter(arrays))
    rows = len(arrays[first])
    for name, array in {
        "objects": np.array([Payload(loot)] * rows),
        "complex": np.zeros(rows, complex),
        "records": np.zeros(rows, [("a", float)]),
        "bytes": np.zeros(rows, "S4"),
        "void": np.zeros(rows, "V4"),
        "text": np.full(rows, "x"),
        "too long": np.zeros(rows + 1),
        "empty": np.zeros(0),
        "a scalar": np.array(1.0),
        "a matrix": np.zeros((rows, 2)),
        "nothing": None,
    }.items():
        yield f"a column: {name}", lambda p, array=array: write(p, facts, **{first: array})
    yield "a bomb of zeros", lambda p: write(p, facts, np.savez_compressed, **{first: np.zeros(2 * 10**7)})
    yield "compressed", lambda p: write(p, facts, np.savez_compressed)
    headers = {
        "huge": "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}",
        "huge and negative": "{'descr': '<f8', 'fortran_order': False, 'shape': (-4, -5)}",
        "negative": "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}",
        "of no size": "{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000,)}",
        "of many dimensions": "{'descr': '<f8', 'fortran_order': False, 'shape': (" + "1," * 3000 + ")}",
        "of floats": "{'descr': '<f8', 'fortran_order': False, 'shape': (1.5,)}",
        "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
        "code": "__import__('os').mknod('" + str(loot) + "')",
        "deep": "(" * 5000,
        "long": "{'descr': '<f8'" + " " * 60000 + "}",
    }
    for name, header in headers.items():
        yield f"an array {name}", lambda p, header=header: _with_entry(p, whole, first, _npy(header))
    yield "an array of version 9", lambda p: _with_entry(p, whole, first, b"\x93NUMPY\x09\0" + bytes(100))
    yield "an entry that is a pickle", lambda p: _with_entry(p, whole, first, pickle.dumps(Payload(loot)))
    yield "an entry twice", lambda p: (p.write_bytes(whole), _append(p, f"{first}.npy", b"x"))
    yield "an entry that says more", lambda p: p.write_bytes(_says_more(whole))
    yield "half an archive behind text", lambda p: p.write_bytes(b"x" * 100 + whole[len(whole) // 2 :])


def _npy(header: str) -> bytes:
    return b"\x93NUMPY\x01\0" + struct.pack("<H", min(len(header), 65535)) + header.encode() + bytes(64)


def _with_entry(path: Path, whole: bytes, name: str, content: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, content if entry == f"{name}.npy" else old.read(entry))


def _append(path: Path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr(name, content)


def _says_more(whole: bytes) -> bytes:
    """The central directory says that an entry has two gigabytes."""
    place = whole.rindex(b"PK\1\2")
    return whole[: place + 20] + struct.pack("<II", 2**31 - 1, 2**31 - 1) + whole[place + 28 :]


# -- checkpoints ---------------------------------------------------------------------------------------------------


def resumed(folder: Path, epochs: int = 2) -> pv.VAE:
    vae = small("mean_field")
    options: dict[str, Any] = {"validation": X, "batch_size": 10, "seed": 0, "device": "cpu", "progress": False}
    schedule = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)  # noqa: E731
    watch = pv.CollapseMonitor(X, num_samples=2)
    pv.fit(vae, X, epochs=epochs, lr_schedule=schedule, callbacks=[watch], checkpoint=folder, **options)
    return vae


def named(folder: Path, content: bytes) -> None:
    """As the newest checkpoint, with the digest that fits."""
    (folder / f"checkpoint-{10**6:010d}-{checkpoint._digest(content)}.pt").write_bytes(content)


def saved(state: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, **options)
    return buffer.getvalue()


def checkpoints(whole: bytes, loot: Path) -> Iterator[Case]:
    state = torch.load(io.BytesIO(whole), weights_only=True)

    def case(name: str, change: Callable[[dict[str, Any]], Any]) -> Case:
        changed = copy.deepcopy(state)
        change(changed)
        return name, lambda p: named(p, saved(changed))

    def at(place: str, value: Any) -> Callable[[dict[str, Any]], Any]:
        def change(whole: Any) -> None:
            *path, last = [int(part) if part.lstrip("-").isdigit() else part for part in place.split("/")]
            for part in path:
                whole = whole[part]
            whole[last] = value

        return change

    wrong: dict[str, list[Any]] = {
        "format": [None, 2, "3", [], {}],
        "identity": [None, 3, [], {}, {"model": 3}, nested(100)],
        "state": [None, 3, [], {}, nested(100)],
        "state/progress": [None, 3, [], {}, {"epoch": 1}],
        "state/model": [None, 3, [], {}],
        "state/optimizer": [None, 3, [], {}, {"state": {}, "param_groups": []}],
        "state/optimizer/state": [None, 3, [1], {10**9: {"exp_avg": torch.zeros(1)}}, {"x": {}}, {-1000: {}}],
        "state/optimizer/param_groups": [None, 3, [], [3], [{}], [{"params": [1]}]],
        "state/optimizer/param_groups/0/params": [None, [], [0], [10**9] * 3],
        "state/optimizer/state/0": [None, 3, [torch.zeros(1)]],
        "state/optimizer/state/0/exp_avg": [torch.zeros(2), torch.zeros(()).expand(10**9), torch.zeros(10**5)],
        "state/optimizer/state/0/exp_avg_sq": [torch.zeros(0), torch.zeros(3, 6, 1)],
        "state/optimizer/state/0/step": [torch.zeros(10**5), torch.zeros(0)],
        "state/scheduler": [None, 3, [], {}, {"step": 3}],
        "state/scheduler/last_epoch": [None, "x", []],
        "state/scheduler/base_lrs": [None, "x", [], 3],
        "state/callbacks": [None, 3, [], [None, None], [3], [{}], [{"seen": 3}], [{"seen": [["a", "b"]]}]],
        "state/random": [None, 3, [], {}, [3], [{}]],
        "state/random/0/torch": [
            None,
            [],
            [3],
            [torch.zeros(5)],
            [torch.zeros(5056, dtype=torch.uint8)],
            [torch.zeros(2)] * 2,
        ],
        "state/random/0/numpy": [None, [], 3, [[0] * 624, 10**6, 0, 0.0], [[0] * 624, 2**31 - 1, 0, 0.0]],
        "state/random/0/numpy/0": [[0] * 623, [2**40] * 624, [-1] * 624, ["a"] * 624, [0.5] * 624, 3, []],
        "state/random/0/numpy/1": [-1, 625, 10**6, 2**31 - 1, -(2**31), 2**40, "x", None, 0.5],
        "state/random/0/numpy/2": [2, -1, "x", None, 2**40],
        "state/random/0/numpy/3": ["x", None, [0.0]],
        "state/random/0/python": [None, [], [3, [0] * 5, None], [9, [0] * 625, None]],
        "state/random/0/python/1": [[0] * 624 + [10**6], [0] * 624 + [-1], ["x"] * 625, [2**40] * 625, None],
        "state/random/0/python/2": ["x", [0.5]],
        "state/progress/epoch_start": [
            None,
            [],
            [3],
            [{}],
            [{"torch": [], "numpy": [[0] * 624, 10**6, 0, 0.0], "python": []}],
        ],
        "state/progress/epoch_start/0/numpy/1": [10**6, -1, "x"],
        "state/progress/epoch": [None, "x", -1, 1.5, True, 10**9, []],
        "state/progress/step": [None, "x", -1, 10**9, 1.5],
        "state/progress/count": [None, "x", -1],
        "state/progress/steps_done": [None, "x", -1],
        "state/progress/loss": [None, "x", []],
        "state/progress/seconds": [None, "x", []],
        "state/progress/records": [None, "x", [3], [{"epoch": "x"}], [{3: 3}], [], {}],
        "state/progress/best": [3, "x", {}, {"a": torch.zeros(1)}, {"decoder.0.weight": 3}],
        "state/progress/best_epoch": ["x", 1.5, -1],
        "state/progress/best_loss": [None, "x"],
        "state/progress/waited": [None, "x", -1],
        "state/progress/called_off": [None, "x", 1.5],
        "state/progress/more": [1],
        "state/model/decoder.0.weight": [
            None,
            3,
            "x",
            torch.zeros(2),
            torch.zeros(()).expand(10**6, 10**6),
            torch.zeros(3, 2, dtype=torch.float64),
            torch.zeros(3, 2, dtype=torch.complex64),
            torch.zeros(3, 2).to_sparse(),
            torch.zeros(3, 2, device="meta"),
        ],
        "state/model/more": [torch.zeros(1)],
    }
    for place, values in wrong.items():
        for value in values:
            yield case(f"{place} is {value!r:.40}", at(place, value))
    for place in (
        "state/random/0/numpy",
        "state/random/0/torch",
        "state/progress/best",
        "state/optimizer/state/0/exp_avg",
    ):
        yield case(f"without {place}", lambda s, place=place: _without(s, place.split("/")))
    bomb: Any = "x"
    for _ in range(45):
        bomb = [bomb, bomb]
    for name, value in {"deep": nested(200), "a bomb": bomb}.items():
        for place in ("identity", "identity/seed", "state/progress/records", "more"):
            yield case(f"{place} is {name}", at(place, value))
    locator = whole.rindex(b"PK\x06\x07")  # which has the number of disks in its bytes 16 to 20
    disks = whole[: locator + 16] + (3).to_bytes(4, "little") + whole[locator + 20 :]
    yield "on three disks", lambda p: named(p, disks)
    with zipfile.ZipFile(io.BytesIO(whole)) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    pickled = next(name for name in entries if name.endswith("data.pkl"))
    for name, code in {
        "a payload": pickle.dumps(Payload(loot), 2),
        "eval": b"cbuiltins\neval\n(V__import__('os').mknod('%s')\ntR." % str(loot).encode(),
        "a huge bytearray": b"cbuiltins\nbytearray\n(L100000000000L\ntR.",
        "a huge tensor": b"ctorch\nFloatTensor\n(L100000000000L\ntR.",
        "a deep list": b"(" + b"]" * 1 + b"".join([b"]"] * 10**5) + b"a" * 10**5 + b".",
        "no end": b"}" * 100,
        "nothing": b"",
        "a number": pickle.dumps(3, 2),
        "stop": b".",
    }.items():
        yield f"pickle: {name}", lambda p, code=code: named(p, _archive({**entries, pickled: code}))
    yield "compressed", lambda p: named(p, _archive(entries, zipfile.ZIP_DEFLATED))
    zeros = {**entries, next(name for name in entries if "/data/" in name): bytes(10**9 if FULL else 10**8)}
    yield "a bomb of zeros", lambda p: named(p, _archive(zeros, zipfile.ZIP_DEFLATED))
    yield "says more", lambda p: named(p, _says_more(whole))
    yield "torch's older", lambda p: named(p, saved(state, _use_new_zipfile_serialization=False))


def _without(state: Any, path: list[str]) -> None:
    for part in path[:-1]:
        state = state[int(part) if part.isdigit() else part]
    state.pop(path[-1])


def _archive(entries: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return buffer.getvalue()


# -- flipped bits and cut ends -------------------------------------------------------------------------------------


def damaged(whole: bytes, write: Callable[[Path, bytes], Any]) -> Iterator[Case]:
    draw = random.Random(0)
    for _ in range(RANDOM):
        bit, end, start = draw.randrange(8 * len(whole)), draw.randrange(len(whole)), draw.randrange(len(whole))
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        swapped = whole[:start] + draw.randbytes(8) + whole[start + 8 :]
        yield f"bit {bit}", lambda p, content=bytes(flipped): write(p, content)
        yield f"cut at {end}", lambda p, content=whole[:end]: write(p, content)
        yield f"other bytes at {start}", lambda p, content=swapped: write(p, content)


# -- reading them --------------------------------------------------------------------------------------------------


def outcomes(reads: list[Callable[[], Any]]) -> Iterator[str]:
    """How each ends in a process of its own: an error's class and text, or what came. Only what takes the process with
    it makes another necessary.
    """
    while reads:
        receiving, sending = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(receiving)
            try:
                _report(reads, sending)
            finally:
                os._exit(0)
        os.close(sending)
        with open(receiving, "rb") as file:
            said = [json.loads(line) for line in file]
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if len(said) < len(reads):
            said.append(f"ended with status {status}")
        yield from said
        reads = reads[len(said) :]


def _report(reads: list[Callable[[], Any]], sending: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for read in reads:
        signal.alarm(SECONDS)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            said = f"loaded {read()}"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        taken = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        said = said if taken < MEMORY else f"{taken} bytes taken, then {said}"
        os.write(sending, json.dumps(said[:60_000]).encode() + b"\n")


def check(cases: Iterator[Case], root: Path, read: Callable[[Path], Any], documented: str, harmless: Any = None) -> int:
    """Make and read some of them or, with ``FULL``, all, and count all; ``harmless`` is what may come of damage."""
    loot, wrong, every = root / "loot", [], list(cases)
    names, reads = [], []
    for i, (name, make) in enumerate(every):
        if FULL or i % SHARE == 0:
            path = root / f"{i}"
            make(path)
            names.append(name)
            reads.append(lambda path=path: read(path))
    for name, said in zip(names, outcomes(reads), strict=True):
        if not (said.startswith(documented) or (harmless is not None and said == f"loaded {harmless}")):
            wrong.append(f"{name}: {said:.300}")
    assert not loot.exists(), "code was run"
    assert not wrong, f"{len(wrong)} of {len(names)}:\n" + "\n".join(wrong)
    return len(every)


def of_model(path: Path) -> str:
    vae = pv.load(path)
    return digest({}, vae.state_dict()) + json.dumps([vae.construction, vae.columns, vae.validated_on])


def of_result(path: Path) -> str:
    found = Result.load(path)
    return found.pointwise.to_json() + repr(found.provenance) + found.summary().to_json()  # type: ignore[attr-defined]


def test_models(tmp_path: Path) -> None:
    whole = small().save(tmp_path / "model").read_bytes()
    same = of_model(tmp_path / "model")
    assert check(models(whole), tmp_path, of_model, "ValueError: ") > 120
    (tmp_path / "more").mkdir()
    check(anything(tmp_path / "more" / "loot"), tmp_path / "more", of_model, "ValueError: ")
    (tmp_path / "damaged").mkdir()
    check(damaged(whole, Path.write_bytes), tmp_path / "damaged", of_model, "ValueError: ", harmless=same)


def test_sizes_are_those_of_the_weights(tmp_path: Path) -> None:
    """What a constructor makes tensors by is no number that may change later, in a model as in a file."""
    model, path = small(), tmp_path / "model"
    model.save(path)
    header, weights = files.read(path)
    made = {k: v for k, v in header.items() if k not in ("format", "layouts", "digest")}
    files.write(path, {**made, "state": {"latent_dim": 5}}, weights)
    with pytest.raises(ValueError, match="do not fit VAE: latent_dim is 2 as built, and 5 in the file"):
        pv.load(path)
    model.latent_dim = 5
    with pytest.raises(ValueError, match="latent_dim is 2 as built, and 5 now"):
        model.save(path)


@pytest.mark.parametrize("columns", [[["a"]], [[]], [["a"] * 6], [list("abcdef"), None], [None, ["a"]], [None] * 3])
def test_columns_are_those_of_the_fields(columns: Any, tmp_path: Path) -> None:
    """Names that fit are taken, in a file whose digest fits in any case."""
    model, path = small(), tmp_path / "model"
    for names in ([list("abcdef")], [None], columns):
        model.columns = names
        model.save(path)
        if names is columns:
            with pytest.raises(
                ValueError, match=r"header names \d+ columns, and its data|names of \d fields, of 1 at most"
            ):
                pv.load(path)
        else:
            assert pv.load(path).columns == names


def test_results(tmp_path: Path) -> None:
    result = pv.log_marginal(small(), X, num_samples=20, progress=False)
    whole = result.save(tmp_path / "result").read_bytes()
    same = of_result(tmp_path / "result")
    assert check(results(whole, tmp_path / "loot"), tmp_path, of_result, "ValueError: ") > 100
    (tmp_path / "more").mkdir()
    check(anything(tmp_path / "more" / "loot"), tmp_path / "more", of_result, "ValueError: ")
    (tmp_path / "damaged").mkdir()
    check(damaged(whole, Path.write_bytes), tmp_path / "damaged", of_result, "ValueError: ", harmless=same)


@pytest.mark.filterwarnings("ignore:the checkpoint .* is passed over")
def test_checkpoints(tmp_path: Path) -> None:
    resumed(tmp_path / "whole", epochs=1)
    (path,) = (tmp_path / "whole").glob("*.pt")
    whole = path.read_bytes()

    def alone(make: Callable[[Path], Any]) -> Callable[[Path], Any]:
        return lambda folder: (folder.mkdir(), make(folder))

    cases = ((name, alone(make)) for name, make in checkpoints(whole, tmp_path / "loot"))
    assert check(cases, tmp_path, resumed, "CheckpointError: ") > 120
    (tmp_path / "more").mkdir()
    odd = anything(tmp_path / "more" / "loot")
    cases = ((name, alone(lambda folder, make=make: make(folder / path.name))) for name, make in odd)
    check(cases, tmp_path / "more", resumed, "CheckpointError: none of the 1 checkpoint")
    (tmp_path / "damaged").mkdir()
    bits = damaged(whole, lambda folder, content: (folder / path.name).write_bytes(content))
    cases = ((name, alone(make)) for name, make in bits)
    check(cases, tmp_path / "damaged", resumed, "CheckpointError: none of the 1 checkpoint")


@pytest.mark.parametrize("path", ["", ".", "a\0b", "x" * 5000, "none/none", "/dev/null/x", "\udcff"])
@pytest.mark.parametrize("read", [pv.load, Result.load])
def test_paths(path: str, read: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        (ValueError, FileNotFoundError), match=r"there is no (model|result) at|is a folder|^path (is|holds)"
    ):
        read(path)
