"""Checkpoints: resuming changes nothing, damage is reported, and what does not belong is refused."""

import array
import collections
import copy
import dataclasses
import datetime
import decimal
import errno
import fractions
import functools
import operator
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

import pyrovae as pv
from pyrovae.training import _checkpoint as checkpoint
from pyrovae.training._checkpoint import CheckpointFolder
from pyrovae.training._describe import fingerprint
from pyrovae.training._progress import Progress
from pyrovae.training.batches import as_batches
from pyrovae.training.engines import Task
from tests.models import binary

X = binary(230)


@pytest.fixture(autouse=True)
def _signals_as_in_a_terminal() -> Iterator[None]:
    """Jobs in the background ignore Ctrl-C, and so would the tests in them."""
    before = [(n, signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before:
        signal.signal(number, handler)


def small(**options) -> pv.VAE:
    torch.manual_seed(1)
    return pv.VAE((6,), 3, hidden=(16,), **options)


def settings(**options) -> dict:
    return {
        "validation": 0.2,
        "objective": pv.ELBO(beta=pv.linear_warmup(3)),
        "lr_schedule": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
        "batch_transform": torch.bernoulli,
        "batch_size": 50,
        "learning_rate": 1e-2,
        "seed": 0,
        "device": "cpu",
        "progress": False,
        **options,
    }


def same(a: pv.VAEModel, b: pv.VAEModel) -> bool:
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.pt"))


@pytest.mark.parametrize("compile", ["off", "graph"])
@pytest.mark.parametrize("data", ["tensor", "loader"])
def test_a_resumed_run_is_the_run(compile: str, data: str, tmp_path: Path) -> None:
    """Weights, history and random state, with validation, early stopping and a callback that has a state."""

    class Counting:
        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, run: pv.FitResult) -> None:
            self.calls += 1

        def state_dict(self) -> dict:
            return {"calls": self.calls}

        def load_state_dict(self, state: dict) -> None:
            self.calls = state["calls"]

    def run(epochs: int, folder: Path | None) -> tuple[pv.VAE, pv.FitResult, Counting, torch.Tensor]:
        x = X * 0.8 if data == "tensor" else DataLoader(TensorDataset(X * 0.8), 50, shuffle=True)
        model, callback = small(), Counting()
        options = settings(epochs=epochs, compile=compile, checkpoint=folder, callbacks=[callback], patience=50)
        options["validation"] = X[:40]
        torch.manual_seed(7)
        result = pv.fit(model, x, **{**options, "seed": None})
        return model, result, callback, torch.rand(3)

    model, expected, _, after = run(9, None)
    for epochs in (2, 3, 9, 9):  # the last one has nothing left to do
        again, result, callback, later = run(epochs, tmp_path)
    assert same(model, again)
    assert torch.equal(after, later)
    assert callback.calls == 9
    assert result.best_epoch == expected.best_epoch
    assert result.history.drop(columns="seconds").equals(expected.history.drop(columns="seconds"))


SCRIPT = """
import os, signal, sys, torch, pyrovae as pv
from pyrovae.training.engines import Task
def stop(name, at):
    steps, set_time = [0], Task.set_time
    def counted(self, t):
        steps[0] += 1
        if steps[0] == at:
            os.kill(os.getpid(), getattr(signal, name))
        set_time(self, t)
    Task.set_time = counted
def train(x, folder):
    torch.manual_seed(1)
    model = pv.VAE((6,), 3, hidden=(16,))
    pv.fit(model, x, validation=0.2, batch_size=20, learning_rate=1e-2, seed=0, device="cpu", progress=False, epochs=4,
           batch_transform=torch.bernoulli, compile="off", checkpoint=folder and pv.Checkpoint(folder, every=3))
    return model
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signals_save_before_they_take_effect(name: str, tmp_path: Path) -> None:
    """In the midst of an epoch that no checkpoint would have been due in; another process goes on."""
    x, folder = X * 0.8, tmp_path / "parts"
    torch.save(x, tmp_path / "x.pt")
    stop = (
        f"torch.set_num_threads(1); stop({name!r}, 27)\ntrain(torch.load({str(tmp_path / 'x.pt')!r}), {str(folder)!r})"
    )
    stopped = subprocess.run([sys.executable, "-c", SCRIPT + stop], capture_output=True, text=True, timeout=120)
    if name == "SIGINT":  # Python's exit status then depends on how it was started
        assert stopped.returncode != 0
        assert "KeyboardInterrupt" in stopped.stderr
    else:
        assert stopped.returncode == -signal.SIGTERM, stopped.stderr
    (path,) = checkpoints(folder)
    step = int(path.name.split("-")[1])
    assert step % 10 != 0  # ten steps an epoch
    here: dict[str, Any] = {}
    exec(SCRIPT, here)
    assert same(here["train"](x, None), here["train"](x, folder))


@pytest.mark.slow
def test_killed_at_random_moments() -> None:
    """Two of the kills that ``python -m tests.training.killing`` makes more of, by all engines and from tensors too."""
    command = [sys.executable, "-m", "tests.training.killing", "graph", "--kills", "2", "--loader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("compile", ["graph", pytest.param("inductor", marks=pytest.mark.slow)])
def test_resuming_before_the_ragged_last_batch(compile: str, tmp_path: Path) -> None:
    """The shape that is traced is that of whole batches, not of the first one after resuming."""

    def stop(x: torch.Tensor) -> torch.Tensor:
        return torch.bernoulli(x)

    whole, parts = small(), small()
    options = {"epochs": 4, "compile": compile, "validation": None, "batch_transform": stop}
    pv.fit(whole, X * 0.8, **settings(**options))
    steps, step = [0], Task.set_time

    def interrupt(self, t: float) -> None:
        steps[0] += 1
        if steps[0] == 9:  # five steps an epoch
            signal.raise_signal(signal.SIGINT)
        step(self, t)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Task, "set_time", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pv.fit(parts, X * 0.8, **settings(**options, checkpoint=tmp_path))
    assert checkpoints(tmp_path)[-1].name.startswith("checkpoint-0000000009")
    parts = small()
    assert pv.fit(parts, X * 0.8, **settings(**options, checkpoint=tmp_path)).engine == compile
    assert same(whole, parts)


def test_a_signal_in_the_last_moments_is_not_swallowed(tmp_path: Path, monkeypatch) -> None:
    save = CheckpointFolder.save

    def late(self, *args):
        signal.raise_signal(signal.SIGINT)
        return save(self, *args)

    monkeypatch.setattr(CheckpointFolder, "save", late)
    with pytest.raises(KeyboardInterrupt):
        pv.fit(small(), X, **settings(epochs=1, checkpoint=tmp_path))
    assert len(checkpoints(tmp_path)) == 1


def test_more_patience_goes_on(tmp_path: Path) -> None:
    frozen = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0), "lr_schedule": None, "objective": pv.ELBO()}
    options = settings(epochs=50, checkpoint=tmp_path, **frozen)
    assert len(pv.fit(small(), X, patience=2, **options).history) == 3
    assert len(pv.fit(small(), X, patience=2, **options).history) == 3
    assert len(pv.fit(small(), X, patience=5, **options).history) == 6


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-0000000001-stale.part").write_bytes(b"half")
    pv.fit(small(), X, **settings(epochs=7, checkpoint=pv.Checkpoint(tmp_path, every=2, keep=2)))
    assert [path.name.split("-")[1] for path in checkpoints(tmp_path)] == ["0000000024", "0000000028"]
    assert not list(tmp_path.glob("*.part"))


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a flipped bit": _flip,
    "cut off": lambda p: os.truncate(p, p.stat().st_size // 2),
    "empty": lambda p: os.truncate(p, 0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_reported_and_passed_over(damage: str, tmp_path: Path) -> None:
    whole = small()
    pv.fit(whole, X, **settings(epochs=5))
    pv.fit(small(), X, **settings(epochs=3, checkpoint=tmp_path))
    newest = checkpoints(tmp_path)[-1]
    DAMAGES[damage](newest)
    again = small()
    with pytest.warns(UserWarning, match=f"{newest.name} is passed over: its content is not what was written"):
        pv.fit(again, X, **settings(epochs=5, checkpoint=tmp_path))
    assert same(whole, again)
    assert len(checkpoints(tmp_path)) == 3
    assert newest not in checkpoints(tmp_path)
    for path in checkpoints(tmp_path):
        DAMAGES[damage](path)
    with (
        pytest.warns(UserWarning, match="is passed over"),
        pytest.raises(pv.CheckpointError, match=r"none of the 3 checkpoint\(s\) in"),
    ):
        pv.fit(small(), X, **settings(epochs=5, checkpoint=tmp_path))


class Payload:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickle_payloads_are_refused(tmp_path: Path) -> None:
    """In a checkpoint whose name fits its content, and in a model file; nothing of theirs is run."""
    loot = tmp_path / "loot"
    folder = tmp_path / "run"
    folder.mkdir()
    for content in (pickle.dumps(Payload(loot)), _torch_bytes({"format": 1, "state": Payload(loot)})):
        path = folder / f"checkpoint-0000000010-{checkpoint._digest(content)}.pt"
        path.write_bytes(content)
        with (
            pytest.warns(UserWarning, match=r"holds something other than tensors, numbers|its content is not what was"),
            pytest.raises(pv.CheckpointError, match="can be read"),
        ):
            pv.fit(small(), X, **settings(epochs=2, checkpoint=folder))
        path.unlink()
        model = tmp_path / "model.safetensors"
        model.write_bytes(content)
        with pytest.raises(ValueError, match="not a model saved by pyrovae, or is damaged"):
            pv.load(model)
    assert not loot.exists()
    pickle.loads(pickle.dumps(Payload(loot)))
    assert loot.exists()  # it would have worked


def _torch_bytes(state: dict) -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def test_a_subclasss_own_argument_is_part_of_what_a_run_is(tmp_path: Path) -> None:
    class Decayed(pv.VAE):
        def __init__(self, *args, strength: float = 1.0, **options) -> None:
            super().__init__(*args, **options)
            self.strength = strength

    pv.fit(Decayed((6,), 2, hidden=(8,), strength=7.0), X, **settings(epochs=1, checkpoint=tmp_path))
    with pytest.raises(pv.CheckpointError, match=r"model: arguments: strength was 7.0 and is 9.0"):
        pv.fit(Decayed((6,), 2, hidden=(8,), strength=9.0), X, **settings(epochs=2, checkpoint=tmp_path))


def test_a_full_disk_leaves_the_one_before(tmp_path: Path, monkeypatch) -> None:
    pv.fit(small(), X, **settings(epochs=2, checkpoint=tmp_path))
    before = {path: path.read_bytes() for path in checkpoints(tmp_path)}

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            pv.CheckpointError,
            match=r"step 12 cannot be written: .*No space left on device.*-0000000008-\w+\.pt, is intact",
        ):
            pv.fit(small(), X, **settings(epochs=3, checkpoint=tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.glob("checkpoint*")} == before
    whole, again = small(), small()
    pv.fit(whole, X, **settings(epochs=3))
    pv.fit(again, X, **settings(epochs=3, checkpoint=tmp_path))
    assert same(whole, again)


@pytest.mark.slow
def test_a_file_size_limit_is_a_full_disk_too(tmp_path: Path) -> None:
    script = f"""
import resource, torch, pyrovae as pv
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    x = (torch.rand(50, 6) < 0.5).float()
    pv.fit(pv.VAE((6,), 3), x, epochs=2, checkpoint={str(tmp_path)!r}, progress=False)
except pv.CheckpointError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "step 1 cannot be written: [Errno 27] File too large. There is none before it." in done.stdout, done.stderr
    assert not list(tmp_path.glob("checkpoint*"))


OTHERS = {
    "model": ({"model": {"latent_dim": 4}}, r"model: weights: posterior\.head\.weight was \[6, 16\] and is \[8, 16\]"),
    "activation": ({"activation": torch.nn.Tanh}, r"model: parts: encoder\.1 was ReLU\(\) and is Tanh\(\)"),
    "transform": (
        {"batch_transform": lambda x: torch.bernoulli(x)},
        r"batch_transform was \S*bernoulli \w+ and is <lambda> \w+",
    ),
    "data": ({"x": X.flip(0) * 0.5}, r"data was \w{16} and is \w{16}"),
    "objective": ({"objective": pv.ELBO(beta=pv.linear_warmup(5))}, r"objective: beta was \[0\.0, .*\] and is \[0\.0"),
    "learning rate": ({"learning_rate": 1e-3}, r"optimizer: lr was 0\.01 and is 0\.001"),
    "optimizer": ({"optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}, r"optimizer: class was Adam and is SGD"),
    "schedule": ({"lr_schedule": None}, r"lr_schedule was \{'class': 'StepLR'.*\} and is None"),
    "batch size": ({"batch_size": 10}, r"batch_size was 50 and is 10"),
    "clipping": ({"clip_norm": 1.0}, r"clip_norm was None and is 1\.0"),
    "seed": ({"seed": 4}, r"seed was 0 and is 4"),
    "callbacks": ({"callbacks": [print]}, r"callbacks was \[\] and is \['print'\]"),
    "decay": (
        {"lr_schedule": lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.5)},
        r"lr_schedule: step_size was 2 and is 3",
    ),
    "groups": (
        {"optimizer": lambda ps: torch.optim.Adam([{"params": ps[:1], "lr": 0.5}, {"params": ps[1:]}], lr=0.01)},
        r"optimizer: groups was \[\{'size': \d+\}\] and is \[\{'size': 1, 'lr': 0\.5\}, \{'size': \d+\}\]",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_run_is_refused_with_the_difference_named(case: str, tmp_path: Path) -> None:
    pv.fit(small(), X, **settings(epochs=1, checkpoint=tmp_path))
    options, message = copy.copy(OTHERS[case][0]), OTHERS[case][1]
    torch.manual_seed(1)
    model = pv.VAE((6,), **{"latent_dim": 3, "hidden": (16,), **options.pop("model", {})})
    if "activation" in options:
        model.encoder[1] = options.pop("activation")()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(pv.CheckpointError, match=message):
        pv.fit(model, options.pop("x", X), **settings(epochs=2, checkpoint=tmp_path, **options))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def turned(first: int, second: int) -> Any:
    """Parameters in another order, under options that have it go by their place."""

    def make(parameters: Any) -> torch.optim.Optimizer:
        every = list(parameters)
        every[first], every[second] = every[second], every[first]
        return torch.optim.SGD([{"params": every[:3], "lr": 0.1}, {"params": every[3:]}], lr=1e-3, momentum=0.9)

    return make


def test_parameters_are_known_by_name_and_place(tmp_path: Path) -> None:
    """Two of the same shape, changed over within a group and between groups."""
    names = [name for name, _ in pv.VAE((6,), 6, hidden=(6, 6)).named_parameters()]
    alike = [i for i, p in enumerate(pv.VAE((6,), 6, hidden=(6, 6)).parameters()) if p.shape == (6, 6)]
    assert alike[0] < 3 < alike[1] < alike[2]
    fit = lambda epochs, optimizer: pv.fit(  # noqa: E731
        pv.VAE((6,), 6, hidden=(6, 6)), X, **settings(epochs=epochs, optimizer=optimizer, checkpoint=tmp_path)
    )
    fit(1, turned(0, 0))
    for a, b in (alike[:2], alike[1:3]):
        message = (
            f"optimizer: order: {a} was parameter {names[a]} and is parameter {names[b]}; optimizer: order: {b} was"
        )
        with pytest.raises(pv.CheckpointError, match=message):
            fit(2, turned(a, b))
    fit(2, turned(0, 0))


LEVEL = [1.0]


def raised(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(max=LEVEL[0])


class Clamp:
    def __init__(self, most: float) -> None:
        self.most = most

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(max=self.most)

    def bound(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(max=self.most)


def closed(most: float) -> Any:
    return lambda x: x.clamp(max=most)


def defaulted(most: float) -> Any:
    return lambda x, most=most: x.clamp(max=most)


def scaled(most: float) -> Any:
    def scale(x: torch.Tensor) -> torch.Tensor:
        return (lambda y: y.clamp(max=most))(x)

    return lambda x: scale(x)


def of_class(**members: Any) -> Any:
    """An object whose class has these members, and nothing of its own."""
    return type("Made", (), members)()


class Slotted:
    __slots__ = ("most",)

    def __init__(self, most: float) -> None:
        self.most = most

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(max=self.most)


class Part(torch.nn.Module):
    def __init__(self, most: Any) -> None:
        super().__init__()
        self.most = most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(max=float(self.most[0] if hasattr(self.most, "__getitem__") else self.most))


def in_a_module(most: float) -> Any:
    settings, deeper = types.ModuleType("settings"), types.ModuleType("settings.deeper")
    settings.deeper, deeper.most = deeper, most  # type: ignore[attr-defined]
    return lambda x: x.clamp(max=settings.deeper.most)


def nested(most: float) -> Any:
    value: Any = most
    for _ in range(20):
        value = [value]
    return Part(value)


FUNCTIONS = {
    "an object": Clamp,
    "a method": lambda most: Clamp(most).bound,
    "a partial": lambda most: functools.partial(torch.clamp, max=most),
    "a closure": closed,
    "a default": defaulted,
    "a function in a closure": scaled,
    "a tensor in a closure": lambda most: closed(torch.tensor(most)),
    "a list": lambda most: lambda x, most=(0.1, [most]): x.clamp(max=most[1][0]),
    "a module": lambda most: torch.nn.Hardtanh(0.0, most),
    "slots": Slotted,
    "the closure of a method": lambda most: of_class(__call__=lambda self, x: x.clamp(max=most)),
    "a default of a method": lambda most: of_class(__call__=lambda self, x, most=most: x.clamp(max=most)),
    "an attribute of a class": lambda most: of_class(__call__=Clamp.__call__, most=most),
    "a static method": lambda most: of_class(__call__=lambda self, x: self.f(x), f=staticmethod(closed(most))),
    "a property": lambda most: of_class(__call__=Clamp.__call__, most=property(lambda self: most)),
    "a class in a closure": lambda most: (lambda cls: lambda x: x.clamp(max=cls.most))(type(of_class(most=most))),
    "an attribute of a part": Part,
    "a method of a part": lambda most: Part(most).forward,
    "an attribute of a module": in_a_module,
    "names": lambda most: (lambda x: x.round()) if most == 1.0 else (lambda x: x.floor()),
}


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_functions_are_compared_by_what_they_work_with(kind: str, tmp_path: Path) -> None:
    make = FUNCTIONS[kind]
    pv.fit(small(), X, **settings(epochs=1, checkpoint=tmp_path, batch_transform=make(1.0)))
    pv.fit(small(), X, **settings(epochs=2, checkpoint=tmp_path, batch_transform=make(1.0)))
    with pytest.raises(pv.CheckpointError, match=r"batch_transform was .* and is"):
        pv.fit(small(), X, **settings(epochs=3, checkpoint=tmp_path, batch_transform=make(2.0)))


VALUES = {
    "deque": lambda n: collections.deque([n]),
    "fraction": lambda n: fractions.Fraction(n, 3),
    "decimal": lambda n: decimal.Decimal(n),
    "interval": lambda n: datetime.timedelta(n),
    "array": lambda n: array.array("d", [n]),
    "bytes": lambda n: bytearray([n]),
    "caller": lambda n: operator.methodcaller("clamp", n),
    "getter": operator.itemgetter,
    "slots": dataclasses.make_dataclass("Kept", ["n"], slots=True, frozen=True),
    "order": lambda n: collections.OrderedDict([("a", 0), ("b", 0)][:: 1 if n == 1 else -1]),
    "view": lambda n: types.MappingProxyType({"a": n}),
    "cached": lambda n: functools.lru_cache(lambda x: x * n),
    "nested": nested,
    "named": lambda n: collections.namedtuple("Pair", "a b")(n, 0),
    "objects": lambda n: np.array([fractions.Fraction(n, 3)], object),
    "enum": lambda n: list(signal.Signals)[n],
    "module": lambda n: Part([n]),
    "function": lambda n: functools.wraps(closed(n))(lambda x: x),
}


@pytest.mark.parametrize("kind", VALUES)
def test_objects_are_known_by_what_they_are_made_of(kind: str) -> None:
    make = VALUES[kind]
    assert fingerprint(make(1)) == fingerprint(make(1)) != fingerprint(make(2))


@pytest.mark.parametrize("holds", [torch.Generator(), np.random.default_rng(0), {"a": [random.Random(0)]}])
def test_generators_of_methods_are_refused(holds: Any, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(globals(), "LEVEL", holds)

    holding, module = types.ModuleType("holding"), Part(None)
    holding.deeper, module.forward = holds, lambda x: x  # type: ignore[attr-defined,method-assign]
    module.most = collections.deque([Slotted(holds)])
    made = {
        "global": of_class(__call__=lambda self, x: (LEVEL, x)[1]),
        "class": of_class(source=holds, __call__=lambda self, x: x),
        "attributes": module,
        "module": lambda x: (holding.deeper, x)[1],
    }
    for transform in made.values():
        with pytest.raises(ValueError, match="batch_transform draws from a generator of its own"):
            pv.fit(small(), X, **settings(epochs=1, checkpoint=tmp_path, batch_transform=transform))

    class Draws(Items):
        def __getitem__(self, i: int) -> Any:
            return (LEVEL, super().__getitem__(i))[1]

    with pytest.raises(ValueError, match="the Dataset draws from a generator of its own"):
        pv.fit(small(), Draws(X), **settings(epochs=1, validation=None, checkpoint=tmp_path))


def test_globals_of_functions_are_compared(tmp_path: Path, monkeypatch) -> None:
    pv.fit(small(), X, **settings(epochs=1, checkpoint=tmp_path, batch_transform=raised))
    pv.fit(small(), X, **settings(epochs=2, checkpoint=tmp_path, batch_transform=raised))
    monkeypatch.setitem(globals(), "LEVEL", [2.0])
    with pytest.raises(pv.CheckpointError, match=r"batch_transform was raised \w+ and is raised \w+"):
        pv.fit(small(), X, **settings(epochs=3, checkpoint=tmp_path, batch_transform=raised))


def test_schedules_are_compared_by_what_they_work_with(tmp_path: Path) -> None:
    def by(rate: float) -> dict:
        make = lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda epoch: rate**epoch)  # noqa: E731
        return settings(lr_schedule=make, checkpoint=tmp_path / "rate")

    def stages(at: int) -> dict:
        schedulers = torch.optim.lr_scheduler
        make = lambda o: schedulers.SequentialLR(o, [schedulers.StepLR(o, at), schedulers.StepLR(o, 1)], [4])  # noqa: E731
        return settings(lr_schedule=make, checkpoint=tmp_path / "stages")

    for options, name in ((by, "lr_lambdas"), (stages, "_schedulers")):
        pv.fit(small(), X, epochs=1, **options(3))
        pv.fit(small(), X, epochs=2, **options(3))
        with pytest.raises(pv.CheckpointError, match=f"lr_schedule: {name} was"):
            pv.fit(small(), X, epochs=3, **options(2))


@pytest.mark.slow
def test_a_function_is_known_in_another_process(tmp_path: Path) -> None:
    """Places in memory, the order of sets and the name of the main module are others there."""
    script = tmp_path / "script.py"
    script.write_text(
        "import logging, threading, torch\nfrom pyrovae.training._describe import code_fingerprint, fingerprint\n"
        "class A:\n    def __init__(self): self.f = lambda x: x in {'a', 'b', 'c'}\n    def g(self): return self.f\n"
        "x = {'a', 'b', 'c'}\n"
        "if __name__ in ('__main__', 'script'):\n"
        "    print(fingerprint(lambda y: [A().f(z) for z in x if z not in {'d', 'e', 'f'}]), fingerprint(A().f),"
        " fingerprint(A()), code_fingerprint(A()), fingerprint({1: torch.eye(2), 'x': x, A: object()}),"
        " fingerprint(logging.getLogger('a')), fingerprint([threading.Lock(), torch.nn.BatchNorm1d(2), A().g]))\n"
    )
    said = set()
    for seed, how in (("1", [str(script)]), ("2", [str(script)]), ("3", ["-c", "import script"])):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{tmp_path}:{Path(pv.__file__).parents[1]}"}
        done = subprocess.run([sys.executable, *how], capture_output=True, text=True, env=environment, timeout=120)
        said.add(done.stdout)
        assert done.stdout.count(" ") == 13, done.stderr
    assert len(said) == 1, said


class Items(Dataset):
    """Data by number, with a label that the model does not take, and a cache that it fills."""

    def __init__(self, x: torch.Tensor, noisy: bool = False) -> None:
        self.rows, self.noisy, self.cache = x, noisy, {}  # type: ignore[var-annotated]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        self.cache[i] = 1
        noise = torch.rand(6).round() if self.noisy else 0.0
        return (self.rows[i] + noise).clamp(max=1.0), i


class Stream(IterableDataset):
    def __init__(self, x: torch.Tensor) -> None:
        self.rows = x

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(list(self.rows))


class OpenedByWorkers(Items):
    """As those are that keep a file open, which processes must not share."""

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        assert get_worker_info() is not None
        return super().__getitem__(i)


def test_items_are_looked_at_where_they_are_made(tmp_path: Path) -> None:
    for epochs in (1, 2):
        loader = DataLoader(OpenedByWorkers(X), 50, shuffle=True, num_workers=1)
        pv.fit(small(), loader, **settings(epochs=epochs, validation=None, checkpoint=tmp_path))


@pytest.mark.parametrize("kind", ["items", "noisy items", "a loader", "a stream"])
def test_data_sets_are_compared_by_their_items(kind: str, tmp_path: Path) -> None:
    def data(x: torch.Tensor) -> Any:
        items = Stream(x) if kind == "a stream" else Items(x, noisy=kind == "noisy items")
        return DataLoader(items, 50, shuffle=True) if kind == "a loader" else items

    other = X.clone()
    other[17, 3] = 1 - other[17, 3]
    expected, again = small(), small()
    pv.fit(expected, data(X), **settings(epochs=3, validation=None))
    for epochs in (1, 3):
        again = small()
        pv.fit(again, data(X), **settings(epochs=epochs, validation=None, checkpoint=tmp_path))
    assert same(expected, again)
    with pytest.raises(pv.CheckpointError, match=r"data was (Items|Stream) \w+ and is (Items|Stream) \w+"):
        pv.fit(small(), data(other), **settings(epochs=4, validation=None, checkpoint=tmp_path))


def test_a_large_data_set_is_known_by_a_thousand_items(monkeypatch) -> None:
    x = torch.rand(5000, 6).round()
    items = Items(x)
    looked_at: list[int] = []
    monkeypatch.setattr(Items, "__getitem__", lambda self, i: (looked_at.append(i), self.rows[i])[1])
    before = as_batches(small(), items, batch_size=50).hash()
    assert len(looked_at) == len(set(looked_at)) == 1000
    changed = x.clone()
    changed[-1] = 1 - changed[-1]
    assert as_batches(small(), Items(changed), batch_size=50).hash() != before
    assert as_batches(small(), Items(x[:-1]), batch_size=50).hash() != before
    assert as_batches(small(), Items(x.clone()), batch_size=50).hash() == before


class Shuffled(Sampler):
    """In an order of its own, by a generator or by counting."""

    def __init__(self, generator: Any) -> None:
        self.generator, self.epoch = generator, 0

    def __len__(self) -> int:
        return len(X)

    def __iter__(self) -> Iterator[int]:
        self.epoch += self.generator is None
        return iter(range(self.epoch, len(X)))


def of_its_own(kind: str) -> DataLoader:
    data, generator = TensorDataset(X), torch.Generator()
    match kind:
        case "generator":
            return DataLoader(data, 50, shuffle=True, generator=generator)
        case "sampler":
            return DataLoader(data, 50, sampler=RandomSampler(data, generator=generator))
        case "weights":
            return DataLoader(data, 50, sampler=WeightedRandomSampler(torch.ones(len(X)), 100, generator=generator))
        case "batch sampler":
            return DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data, generator=generator), 50, False))
        case "numpy":
            return DataLoader(data, 50, sampler=Shuffled(np.random.default_rng(0)))
        case "python":
            return DataLoader(data, 50, sampler=Shuffled([{"a": random.Random(0)}]))
    items = Items(X)
    items.draw = np.random.default_rng(0).random  # type: ignore[attr-defined]
    return DataLoader(items, 50)


@pytest.mark.parametrize("kind", ["generator", "sampler", "weights", "batch sampler", "numpy", "python", "data set"])
def test_generators_of_their_own_are_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a generator of its own, whose state checkpoints do not keep: leave it to"):
        pv.fit(small(), of_its_own(kind), **settings(epochs=1, validation=None, checkpoint=tmp_path))
    pv.fit(small(), of_its_own(kind), **settings(epochs=1, validation=None))


def test_order_and_draws_that_checkpoints_do_not_keep_are_refused(tmp_path: Path) -> None:
    options = settings(epochs=2, validation=None, checkpoint=tmp_path)
    workers = DataLoader(TensorDataset(X), 50, num_workers=1, persistent_workers=True)
    with pytest.raises(ValueError, match="persistent_workers, whose state checkpoints do not keep: leave them out"):
        pv.fit(small(), workers, **options)
    with pytest.raises(pv.CheckpointError, match="the sampler of the DataLoader changes as it is iterated"):
        pv.fit(small(), DataLoader(TensorDataset(X), 50, sampler=Shuffled(None)), **options)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="batch_transform draws from a generator of its own"):
        pv.fit(small(), X, **{**options, "batch_transform": lambda x: x * float(rng.random() > 2)})
    assert not checkpoints(tmp_path)


class Counts(Items):
    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        self.number = getattr(self, "number", 0) + 1
        return super().__getitem__(i)


class Remembers(Items):
    """Draws an item when it is first asked for, and gives the same one from then on."""

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        if i not in self.cache:
            self.cache[i] = torch.bernoulli(self.rows[i] * 0.5)
        return self.cache[i], i


class CountsOutside(Items):
    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        SEEN.append(i)
        return super().__getitem__(i)


class CountingStream(Stream):
    def __iter__(self) -> Iterator[torch.Tensor]:
        self.epoch = getattr(self, "epoch", 0) + 1
        return super().__iter__()


SEEN: list[int] = []


@pytest.mark.parametrize("kind", [Counts, Remembers, CountsOutside, CountingStream])
def test_data_that_go_by_what_was_read_are_refused(kind: Any, tmp_path: Path) -> None:
    options = settings(epochs=1, checkpoint=tmp_path, batch_transform=None)
    for data, validation, name in ((kind(X), None, "data"), (X, kind(X), "validation")):
        with pytest.raises(ValueError, match=f"the Dataset of {name} changes as its items are read"):
            pv.fit(small(), data, **{**options, "validation": validation})
    assert not checkpoints(tmp_path)
    pv.fit(small(), kind(X), **{**options, "validation": None, "checkpoint": None})
    workers = DataLoader(kind(X), 50, num_workers=1)  # which begin anew every epoch
    pv.fit(small(), workers, **{**options, "validation": None})


class Opened(Items):
    """A copy cannot be had of it."""

    def __init__(self, x: torch.Tensor, path: Path) -> None:
        super().__init__(x)
        self.file = open(path)  # noqa: SIM115


def test_looking_at_data_leaves_no_trace(tmp_path: Path) -> None:
    """Neither in a data set that can be copied nor in one that cannot."""
    remembers = Remembers(X)
    as_batches(small(), remembers, batch_size=50).hash()
    assert not remembers.cache
    (path := tmp_path / "a").write_text("")
    opened = Opened(X, path)
    known = as_batches(small(), opened, batch_size=50).hash()
    assert not opened.cache
    assert known == as_batches(small(), Opened(X.clone(), path), batch_size=50).hash()
    assert known != as_batches(small(), Opened(1 - X, path), batch_size=50).hash()


def test_what_changes_in_training_is_refused(tmp_path: Path) -> None:
    class Warms:
        calls = 0

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x

    def outside(x: torch.Tensor) -> torch.Tensor:
        SEEN.append(0)
        return x

    class Sampled(Shuffled):
        def __iter__(self) -> Iterator[int]:
            SEEN.append(0)
            return iter(range(len(X)))

    class Counting(pv.VAE):
        calls = 0

        def guide(self, x: torch.Tensor) -> Any:
            self.calls += 1
            return super().guide(x)

    options = settings(epochs=2, validation=None, checkpoint=tmp_path, compile="off")
    for transform in (Warms(), outside):
        with pytest.raises(pv.CheckpointError, match=r"^batch_transform changes as it is called, [^.]*\.$"):
            pv.fit(small(), X, **{**options, "batch_transform": transform})
    with pytest.raises(pv.CheckpointError, match="the sampler of the DataLoader changes as it is iterated"):
        pv.fit(small(), DataLoader(TensorDataset(X), 50, sampler=Sampled(0)), **options)
    with pytest.raises(pv.CheckpointError, match=r"^attributes of the model change as it is trained, [^.]*\.$"):
        pv.fit(Counting((6,), 3), X, **options)
    assert not checkpoints(tmp_path)


def coded(most: float) -> Any:
    class Model(pv.VAE):
        def guide(self, x: torch.Tensor) -> Any:
            return super().guide(x.clamp(max=most))

    return Model((6,), 3)


def attributed(most: float) -> Any:
    (model := small()).most = most  # type: ignore[assignment]
    return model


def with_part(most: float) -> Any:
    class Own(torch.nn.Flatten):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).clamp(max=most)

    return pv.VAE((6,), 3, hidden=(8,), encoder=torch.nn.Sequential(Own(), torch.nn.Linear(6, 8)))


def own_optimizer(most: float) -> Any:
    def make(parameters: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(parameters)
        optimizer.most = most  # type: ignore[attr-defined]
        return optimizer

    return make


class Weighted(pv.ELBO):
    _weight = 1.0


def own_objective(most: float) -> Any:
    (objective := Weighted())._weight = most
    return objective


def classed_objective(most: float) -> Any:
    class Own(pv.ELBO):
        limit = most

    return Own()


def started(most: float) -> Any:
    return DataLoader(TensorDataset(X), 50, worker_init_fn=lambda number: torch.manual_seed(int(most)))


OWN: dict[str, Any] = {
    "model: code: .*Model was": lambda most: {"model": coded(most)},
    "model: code: .*Own was": lambda most: {"model": with_part(most)},
    "attributes of the model: most was 1.0 and is 2.0": lambda most: {"model": attributed(most)},
    "optimizer: most was 1.0 and is 2.0": lambda most: {"optimizer": own_optimizer(most)},
    "objective: _weight was 1.0 and is 2.0": lambda most: {"objective": own_objective(most)},
    r"objective: class was \S*Own \w+ and is": lambda most: {"objective": classed_objective(most)},
    "order of the data was": lambda most: {"data": started(most), "validation": None},
}


@pytest.mark.parametrize("message", OWN)
def test_what_is_not_the_librarys_is_part_of_what_a_run_is(message: str, tmp_path: Path) -> None:
    def run(epochs: int, most: float) -> None:
        options = OWN[message](most)
        model, data = options.pop("model", None), options.pop("data", X)
        pv.fit(model or small(), data, **settings(epochs=epochs, checkpoint=tmp_path, **options))

    run(1, 1.0)
    run(2, 1.0)
    with pytest.raises(pv.CheckpointError, match=message):
        run(3, 2.0)


def test_callbacks_are_part_of_what_a_run_is(tmp_path: Path) -> None:
    class Stop:
        def __init__(self, at: int) -> None:
            self.at = at

        def __call__(self, run: pv.FitResult) -> bool:
            return len(run.records) > self.at

    seen: list[int] = []

    def note(run: pv.FitResult) -> None:
        seen.append(len(run.records))

    def other(run: pv.FitResult) -> None:
        seen.append(-1)

    options = settings(checkpoint=tmp_path)
    pv.fit(small(), X, epochs=1, callbacks=[Stop(9), note], **options)
    pv.fit(small(), X, epochs=2, callbacks=[Stop(9), note], **options)  # whatever is in the list by now
    for callbacks in ([note, Stop(9)], [note], [Stop(9), other], [Stop(9), note, print], []):
        with pytest.raises(
            pv.CheckpointError, match=r"is of another run: callbacks was \['.*Stop \w+', '.*note \w+'\] and"
        ):
            pv.fit(small(), X, epochs=3, callbacks=callbacks, **options)
    assert seen == [1, 2]

    class Half(Stop):
        def state_dict(self) -> dict:
            return {}

    with pytest.raises(TypeError, match="callback Half has a state_dict and no load_state_dict: give it one"):
        pv.fit(small(), X, epochs=3, callbacks=[Half(1)], **options)


LOCKED = """
import sys, time, pyrovae as pv
from pyrovae.training._checkpoint import CheckpointFolder
with CheckpointFolder(sys.argv[1]).locked():
    print("in", flush=True)
    time.sleep(100)
"""


@pytest.mark.slow
def test_a_folder_is_of_one_run_at_a_time(tmp_path: Path) -> None:
    """Of another process, of this one; and of nobody, once that is killed."""
    options = settings(checkpoint=tmp_path)
    message = "another run writes its checkpoints to .*: pass another folder, or wait for its end"
    other = subprocess.Popen([sys.executable, "-c", LOCKED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(pv.CheckpointError, match=message):
            pv.fit(small(), X, epochs=1, **options)
        assert not checkpoints(tmp_path)
    finally:
        other.kill()
        other.wait()

    def within(run: pv.FitResult) -> None:
        with pytest.raises(pv.CheckpointError, match=message):
            pv.fit(small(), X, epochs=1, **options)

    pv.fit(small(), X, epochs=1, callbacks=[within], **options)
    assert len(pv.fit(small(), X, epochs=2, callbacks=[within], **options).history) == 2
    assert (tmp_path / ".lock").stat().st_size == 0


@pytest.mark.slow
def test_a_lock_goes_with_its_process_though_others_live_on(tmp_path: Path) -> None:
    """A process that it started, as the workers of a DataLoader are, holds on to nothing."""
    forking = LOCKED.replace("import sys", "import os, sys").replace("    time", "    os.fork()\n    time")
    other = subprocess.Popen(
        [sys.executable, "-c", forking, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        time.sleep(0.5)
        other.kill()
        other.wait()
        with CheckpointFolder(tmp_path).locked():
            pass
    finally:
        os.killpg(other.pid, signal.SIGKILL)


def test_resume_must_and_never(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
        pv.fit(small(), X, **settings(epochs=1, checkpoint=pv.Checkpoint(tmp_path, resume="must")))
    pv.fit(small(), X, **settings(epochs=1, checkpoint=pv.Checkpoint(tmp_path / "a", resume="never")))
    pv.fit(small(), X, **settings(epochs=2, checkpoint=pv.Checkpoint(tmp_path / "a", resume="must")))
    with pytest.raises(pv.CheckpointError, match=r"holds 2 checkpoint\(s\), the newest checkpoint-0000000008"):
        pv.fit(small(), X, **settings(epochs=3, checkpoint=pv.Checkpoint(tmp_path / "a", resume="never")))


def test_arguments_of_a_checkpoint_are_checked_when_it_is_made(tmp_path: Path) -> None:
    for bad in ({"resume": "yes"}, {"every": 0}, {"every": 1.5}, {"keep": 0}):
        with pytest.raises(ValueError, match=f"^{next(iter(bad))} must be"):
            pv.Checkpoint(tmp_path, **bad)
    for folder in (None, 3, tmp_path.stat()):
        with pytest.raises(TypeError, match=rf"^folder must be a str or a path; got {re.escape(repr(folder))}\."):
            pv.Checkpoint(folder)
    with pytest.raises(TypeError, match=r"^checkpoint must be a str or a path; got True\."):
        pv.fit(small(), X, **settings(epochs=1, checkpoint=True))
    made = pv.Checkpoint(str(tmp_path), every=2)
    assert (made.folder, made.every, made.keep, made.resume) == (str(tmp_path), 2, 3, "auto")
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.keep = 1


def test_a_path_is_a_checkpoint(tmp_path: Path) -> None:
    for name, given in {"str": str(tmp_path / "str"), "path": tmp_path / "path"}.items():
        pv.fit(small(), X, **settings(epochs=5, checkpoint=given))
        assert len(checkpoints(tmp_path / name)) == pv.Checkpoint(given).keep == 3


def test_a_checkpoint_holds_all_progress(tmp_path: Path, monkeypatch) -> None:
    """Field by field: what was going on when a run is saved is what goes on when it is taken up."""
    seen: list[tuple[dict, Progress]] = []
    state_dict = Progress.state_dict

    def remember(self, plan) -> dict:
        seen.append((state_dict(self, plan), copy.deepcopy(self)))
        return seen[-1][0]

    def interrupt(run: pv.FitResult) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Progress, "state_dict", remember)
    with pytest.raises(KeyboardInterrupt):
        pv.fit(small(), X, **settings(epochs=3, checkpoint=tmp_path, callbacks=[interrupt]))
    ((state, then),) = seen
    assert state.keys() == {"progress", "model", "optimizer", "scheduler", "callbacks", "random"}
    names = [f.name for f in dataclasses.fields(Progress)]
    assert list(state["progress"]) == names
    begun = []
    monkeypatch.setattr("pyrovae.training._loop._epoch", lambda plan, progress, *rest: begun.append(progress) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pv.fit(small(), X, **settings(epochs=3, checkpoint=tmp_path, callbacks=[interrupt]))
    (now,) = begun
    assert (now.epoch, now.step, now.steps_done, now.best_epoch, len(now.records)) == (1, 0, 4, 0, 1)
    for name in names:
        assert_same(getattr(then, name), getattr(now, name))


def assert_same(a, b) -> None:
    """Equal, tensors in containers too."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_same(a[name], b[name])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert a == b


def test_a_state_that_could_not_be_loaded_safely_is_refused(tmp_path: Path) -> None:
    class Odd:
        def __call__(self, run: pv.FitResult) -> None: ...

        def state_dict(self) -> dict:
            return {"path": Path("x")}

        def load_state_dict(self, state: dict) -> None: ...

    with pytest.raises(TypeError, match="more than tensors, numbers and strings"):
        pv.fit(small(), X, **settings(epochs=1, checkpoint=tmp_path, callbacks=[Odd()]))
    assert not checkpoints(tmp_path)


def test_without_a_folder_nothing_is_written_and_signals_are_left_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    handlers = []
    pv.fit(small(), X, **settings(epochs=1, callbacks=[lambda run: handlers.append(signal.getsignal(signal.SIGTERM))]))
    assert handlers == [signal.SIG_DFL]
    assert not list(tmp_path.iterdir())
    pv.fit(small(), X, **settings(epochs=1, checkpoint=tmp_path / "run"))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ignored = []
    options = settings(epochs=1, checkpoint=tmp_path / "ignored")
    pv.fit(small(), X, **options, callbacks=[lambda run: ignored.append(signal.getsignal(signal.SIGINT))])
    assert ignored == [signal.SIG_IGN]


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    kept = tmp_path / "checkpoint.pt"
    kept.write_text("mine")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pv.fit(small(), X, **settings(epochs=2, checkpoint=pv.Checkpoint(tmp_path, keep=1)))
    assert kept.read_text() == "mine"
    assert len(CheckpointFolder(tmp_path)._files()) == 1
