"""Several threads: the numbers of one, no error, nothing left behind, and nobody waits for what is not computing."""

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset, TensorDataset

import pyrovae as pv
from pyrovae import _turns, turn
from pyrovae._turns import kept
from tests.models import binary

THREADS, CALLS = 4, 200 if os.environ.get("PYROVAE_FUZZ") == "full" else 40


def small(seed: int = 0, **options: Any) -> pv.VAE:
    with pv.turn():
        torch.manual_seed(seed)
        return pv.VAE((6,), 2, hidden=(8,), **options)


def state() -> dict[str, Any]:
    """What the process has for all threads."""
    return {
        "random": torch.get_rng_state().tolist(),
        "validation": (torch.distributions.Distribution._validate_args, pyro.distributions.Bernoulli._validate_args),
        "local": pyro.settings.get("module_local_params"),
        "poutine": len(pyro.poutine.runtime._PYRO_STACK),
        "parameters": sorted(pyro.get_param_store()),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "grad": torch.is_grad_enabled(),
    }


def weights(model: torch.nn.Module) -> list[Any]:
    return [t.tolist() for t in model.state_dict().values()]


def calls() -> list[Callable[[], Any]]:
    """Short calls of every kind, on one model that all threads share and on models of their own; each is repeatable."""
    x, shared = binary(7), small().train()
    quiet: dict[str, Any] = {"progress": False}
    short: dict[str, Any] = {"epochs": 2, "batch_size": 3, "device": "cpu", "seed": 3, **quiet}

    loader = DataLoader(TensorDataset(x), 2, shuffle=True)  # shared, too

    def trained(**options: Any) -> Any:
        model = small(1)
        run = pv.fit(model, options.pop("data", x), **{**short, **options})
        return weights(model), run.history["loss"].tolist()

    return [
        lambda: shared.encode(x, num_samples=2, seed=1).tolist(),
        lambda: shared.sample(3, seed=2).tolist(),
        lambda: shared.reconstruct(x, seed=3).tolist(),
        lambda: shared.decode(torch.ones(2, 2)).tolist(),
        lambda: pv.log_marginal(shared, x, num_samples=20, seed=4, **quiet).pointwise["log_px"].tolist(),
        lambda: pv.evaluation.elbo_terms(shared, x, num_samples=5, seed=5, **quiet).pointwise.to_numpy().tolist(),
        lambda: trained(compile="off"),
        lambda: trained(compile="graph", validation=x[:2]),
        lambda: trained(compile="off", data=loader),
    ]


@pytest.mark.slow
def test_many_threads_get_what_one_gets() -> None:
    each = calls()
    alone, before = [call() for call in each], state()
    order = [[(i * 7 + thread * 3) % len(each) for i in range(CALLS)] for thread in range(THREADS)]
    started = threading.Barrier(THREADS)

    def work(numbers: list[int]) -> list[tuple[int, Any]]:
        started.wait()
        return [(n, each[n]()) for n in numbers]

    with ThreadPoolExecutor(THREADS) as pool:
        found = [pair for part in pool.map(work, order) for pair in part]
    assert len(found) == THREADS * CALLS
    wrong = sorted({n for n, value in found if value != alone[n]})
    assert not wrong, f"calls {wrong} gave other numbers than in one thread"
    assert state() == before


def test_many_rows_in_many_threads_get_what_one_gets() -> None:
    """Between blocks of encoding others have a turn, and find neither its seed nor its evaluation mode."""
    model, x, before = small(posterior="iaf").train(), binary(1500), state()
    alone = model.encode(x, num_samples=2, seed=1)

    def work(_: int) -> list[bool]:
        return [torch.equal(model.encode(x, num_samples=2, seed=1), alone) for _ in range(5)]

    modes: list[bool] = []
    with ThreadPoolExecutor(THREADS) as pool:
        found = [pool.submit(work, i) for i in range(THREADS)]
        while not all(f.done() for f in found):
            with turn():
                modes.append(model.training)
    assert all(same for f in found for same in f.result())
    assert all(modes)
    assert state() == before


class OutOfTurn(TorchDispatchMode):
    """Notes who draws while another thread may be in the midst of a step."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and (kwargs or {}).get("generator") is None:
            self.note(str(func))
        return func(*args, **(kwargs or {}))

    def note(self, what: str) -> None:
        if not _turns._thread.depth:
            places = [f for f in traceback.extract_stack() if f.filename.startswith(str(Path(pv.__file__).parent))]
            self.found.add(f"{what} by {places[-1].filename}:{places[-1].lineno}")


def test_nobody_draws_out_of_turn(monkeypatch) -> None:
    x, model, quiet = binary(8), small(), {"progress": False}
    images = torch.nn.functional.pad(x, (0, 58)).reshape(-1, 1, 8, 8)
    annealed: dict[str, Any] = {"num_temperatures": 3, "num_chains": 2, "num_leapfrog": 1, **quiet}
    short: dict[str, Any] = {"epochs": 2, "batch_size": 3, "device": "cpu", "seed": 0, **quiet}
    quantised, plain = pv.zoo.VQVAE((1, 8, 8), downsampling=2), pv.zoo.Autoencoder((6,), 2, hidden=(8,))
    evaluated = [pv.log_marginal, pv.evaluation.log_weights, pv.evaluation.elbo_terms, pv.collapse]
    with OutOfTurn() as watch:
        real = torch.manual_seed
        monkeypatch.setattr(torch, "manual_seed", lambda seed: (watch.note("manual_seed"), real(seed))[1])
        for engine in ("off", "graph"):
            pv.fit(model, x, compile=engine, batch_transform=torch.bernoulli, validation=0.3, **short)
        pv.fit(model, DataLoader(TensorDataset(x), 3, shuffle=True), **short)
        pv.fit(quantised, images, **short)
        pv.fit(plain, x, **short)
        for function in evaluated:
            function(model, x, **quiet)
        pv.ais(model, x, **annealed)
        pv.bdmc(model, num_data=3, **annealed)
        pv.inference_gaps(model, x[:2], steps=4, num_samples=4, log_px=None, **quiet)
        pv.disentanglement(model, x, (torch.arange(16) % 5).reshape(8, 2), **quiet)
        pv.refit_posterior(model, x, "planar", **short)
        model.sample(2, seed=0), model.encode(x, num_samples=2, seed=0), model.interpolate(x, x), model.reconstruct(x)
    assert not watch.found


class Elsewhere:
    """Somebody who needs the model, in a thread of their own, and is waited for."""

    def __init__(self) -> None:
        self.model, self.calls = small(5), 0

    def __call__(self, *_: Any) -> None:
        done = threading.Thread(target=lambda: self.model.encode(binary(2)), daemon=True)
        done.start()
        done.join(20)
        assert not done.is_alive(), "a thread waits for a turn, while the one that has it waits for that thread"
        self.calls += 1


class Slow(Dataset):
    def __init__(self, x: torch.Tensor, wait: Elsewhere) -> None:
        self.x, self.wait = x, wait

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> torch.Tensor:
        self.wait()
        return self.x[index]


def test_no_turn_is_held_in_callbacks_and_while_data_are_loaded() -> None:
    wait, x = Elsewhere(), binary(5)
    options: dict[str, Any] = {"epochs": 2, "batch_size": 2, "device": "cpu", "seed": 0, "progress": False}
    pv.fit(small(), x, callbacks=[wait], **options)
    assert wait.calls == 2
    pv.fit(small(), Slow(x, wait), validation=DataLoader(Slow(x, wait), 2), **options)
    assert wait.calls > 2 + 4 * len(x)


def test_long_work_lets_others_have_a_turn_between_its_steps() -> None:
    """Others wait for a step or a block, and not for a whole training or evaluation."""
    model, x, longest, over = small(), binary(4000), 0.0, threading.Event()

    def long() -> None:
        pv.fit(small(2), x, epochs=4, batch_size=20, device="cpu", compile="off", progress=False)
        pv.log_marginal(small(2), x, num_samples=2000, memory_budget=2**21, progress=False)
        over.set()

    start = time.perf_counter()
    worker = threading.Thread(target=long)
    worker.start()
    count = 0
    while not over.is_set():
        begun = time.perf_counter()
        model.encode(x[:2])
        longest, count = max(longest, time.perf_counter() - begun), count + 1
    worker.join()
    assert count > 100
    assert longest < (time.perf_counter() - start) / 4


@contextmanager
def noted(events: list[str], name: str) -> Iterator[None]:
    events.append(f"+{name}")
    try:
        yield
    finally:
        events.append(f"-{name}")


def test_modes_are_in_force_in_turns_of_their_own_thread_alone() -> None:
    events: list[str] = []

    def other() -> None:
        with kept(lambda: noted(events, "c")), turn():
            events.append("other")

    with kept(lambda: noted(events, "a")), kept(lambda: noted(events, "b")):
        worker = threading.Thread(target=other)
        worker.start()
        worker.join()
        with turn(), turn():
            events.append("own")
        with turn():
            events.append("again")
    assert events == ["+a", "+b", "-b", "-a", "+c", "other", "-c", "+a", "+b", "own", "again", "-b", "-a"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_waits_for_no_thread_of_its_parent() -> None:
    model, inside, leave = small(), threading.Event(), threading.Event()

    def hold() -> None:
        with turn():
            inside.set()
            leave.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            model.sample(1)
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + 20
    done = (0, 0)
    while done[0] == 0 and time.monotonic() < deadline:
        done = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if done[0] == 0:
        os.kill(child, 9)
        os.waitpid(child, 0)
    leave.set()
    holder.join()
    assert done == (child, 0)


INTERRUPTED = """
import os, signal, sys, threading, time
import torch, pyrovae as pv
from pyrovae import _turns
from tests.test_turns import small, state
from tests.models import binary

kind, threads = sys.argv[1], int(sys.argv[2])
x, deadline, interrupts = binary(20), time.monotonic() + 20, 0
short = {"epochs": 3, "batch_size": 10, "compile": "off", "device": "cpu", "seed": 0, "progress": False}

def work(model):
    if kind == "fit":
        return pv.fit(small(1), x, **short).history["loss"].tolist()
    if kind == "encode":
        return model.encode(x, seed=0).tolist()
    return pv.log_marginal(model, x, num_samples=50, seed=0, progress=False).pointwise["log_px"].tolist()

def beside():
    model = small(2)
    while True:
        work(model)

def disturb():
    pause = torch.Generator().manual_seed(0)
    while True:
        armed.wait()
        time.sleep(0.03 * float(torch.rand((), generator=pause)))
        armed.clear()
        os.kill(os.getpid(), signal.SIGINT)

model, armed = small(), threading.Event()
expected, before = work(model), state()
for target in [disturb, *[beside] * (threads - 1)]:
    threading.Thread(target=target, daemon=True).start()
while interrupts < 100 and time.monotonic() < deadline:
    try:
        while True:
            armed.set()
            work(model)
    except KeyboardInterrupt:
        interrupts += 1
signal.signal(signal.SIGINT, signal.SIG_IGN)
assert interrupts > 20, interrupts
assert not _turns._thread.depth and not _turns._thread.modes
assert work(model) == expected
free = threading.Thread(target=work, args=(model,))
free.start()
free.join(10)
assert not free.is_alive(), "the turn is held by nobody"
if threads == 1:
    assert {**state(), "random": 0} == {**before, "random": 0}
os._exit(0)
"""


@pytest.mark.parametrize(("kind", "threads"), [("fit", 2), ("encode", 1), ("log_marginal", 2)])
def test_ctrl_c_at_any_moment_leaves_everything_as_it_was(kind: str, threads: int) -> None:
    """A hundred times, alone and beside another thread: the turn is free, the next call gives what it gave."""
    command = [sys.executable, "-W", "ignore", "-c", INTERRUPTED, kind, str(threads)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr[-2000:]


def test_two_signals_in_a_turn_are_both_heeded() -> None:
    came: list[str] = []

    def work() -> None:
        with turn():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            came.append("work")

    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append("end"))
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == ["work", "end"]


def test_a_mode_that_fails_gives_the_turn_back() -> None:
    def refuse() -> Any:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"), kept(refuse):
        pass
    assert not _turns._thread.depth
    assert not _turns._thread.modes
    other = threading.Thread(target=lambda: small().sample(1), daemon=True)
    other.start()
    other.join(20)
    assert not other.is_alive()
