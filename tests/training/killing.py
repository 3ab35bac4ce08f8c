"""A program that is killed at random moments while it trains, and goes on: do the final weights come out the same?

    python -m tests.training.killing                            # 150 kills: four engines, two kinds of data each
    python -m tests.training.killing graph --kills 30 --loader  # one of them

Digits, a ragged last batch, validation with early stopping, a schedule, clipping, a learning rate that decays, a
callback that keeps a state and a ``CollapseMonitor``; from tensors, or through a ``DataLoader`` with two workers. It
prints how often it was killed, how often while a checkpoint was being written, and whether weights, history and the
callbacks' states are those of the run that nobody killed, bit for bit.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

import pyrovae as pv

EPOCHS, PATIENCE = 30, 2
ENGINES = ("off", "graph", "inductor", "auto")  # all that a CPU has
KILLS = 150


class Best:
    """A callback with a state, from which what it adds to the history follows."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def __call__(self, run: pv.FitResult) -> None:
        self.losses.append(run.records[-1]["loss"])
        run.records[-1]["best_so_far"] = min(self.losses)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = list(state["losses"])


def train(engine: str, loader: bool, folder: Path | None) -> dict[str, Any]:
    """What there is to compare at the end: early, because the learning rate is so high that validation gets worse."""
    digits = pv.datasets.load("digits", binarize="static")
    data: Any = DataLoader(TensorDataset(digits.train), 100, shuffle=True, num_workers=2) if loader else digits.train
    torch.manual_seed(0)
    vae = pv.VAE(digits.event_shape, 8, hidden=(256, 256))
    best, monitor = Best(), pv.CollapseMonitor(digits.val[:50], num_samples=4)
    run = pv.fit(
        vae,
        data,
        validation=digits.val,
        batch_transform=None if loader else pv.datasets.load("digits", binarize="dynamic").batch_transform,
        objective=pv.ELBO(beta=pv.linear_warmup(2)),
        lr_schedule=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
        learning_rate=0.04,
        clip_norm=5.0,
        epochs=EPOCHS,
        patience=PATIENCE,
        callbacks=[best, monitor],
        compile=engine,  # type: ignore[arg-type]
        seed=1,
        device="cpu",
        checkpoint=folder,
        progress=False,
    )
    records = [{name: float(value) for name, value in r.items() if name != "seconds"} for r in run.records]
    return {"weights": vae.state_dict(), "records": records, "states": [best.state_dict(), monitor.state_dict()]}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    equal = all(torch.equal(value, b["weights"][name]) for name, value in a["weights"].items())
    return equal and (a["records"], a["states"]) == (b["records"], b["states"])


def child(engine: str, loader: bool, folder: Path, result: Path) -> int:
    """A process that trains, and writes what came of it if it lives to the end."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.save(train(engine, loader, folder), result)
            code = 0
        finally:
            os._exit(code)
    return pid


def ended(pid: int, seconds: float, early: Callable[[], bool]) -> int | None:
    """The status of a process that ends within so many seconds, or before what makes waiting end early."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until and not early():
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
    return None


def kill(engine: str, loader: bool, most: int, seed: int = 0) -> bool:
    """Kill so often, and say what came of it."""
    expected = train(engine, loader, None)  # its machine code is inherited by the children
    start = time.perf_counter()
    train(engine, loader, None)
    seconds = time.perf_counter() - start
    moments, kills, writing, runs, alike = random.Random(seed), 0, 0, 0, 0

    def ends_alike(result: Path) -> bool:
        return same(expected, torch.load(result, weights_only=True))

    with tempfile.TemporaryDirectory() as root:
        while kills < most:
            folder = Path(root) / str(runs)
            folder.mkdir()
            runs += 1
            while kills < most:
                pid = child(engine, loader, folder, folder / "result.pt")
                status = ended(pid, moments.uniform(0.0, 0.7 * seconds), lambda: False)
                if status is None and kills % 2:  # every other one in the midst of writing
                    status = ended(pid, seconds, lambda folder=folder: any(folder.glob("*.part")))
                if status is not None:
                    if status:
                        sys.exit(f"a process that nobody killed ended with status {status}")
                    alike += ends_alike(folder / "result.pt")
                    break
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                kills += 1
                writing += bool(list(folder.glob("*.part")))
            else:  # the last one in a process that compiles anew
                command = [sys.executable, "-m", "tests.training.killing", engine, "--finish", str(folder)]
                subprocess.run(command + ["--loader"] * loader, check=True)
                alike += ends_alike(folder / "result.pt")
    epochs, data = len(expected["records"]), "a DataLoader" if loader else "tensors"
    print(
        f"{engine}, {data}: {kills} kills, {writing} of them while writing a checkpoint, in runs of {epochs} epochs "
        f"(of {EPOCHS}); {alike} of {runs} ended as the one that nobody killed",
        flush=True,
    )
    return alike == runs


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", nargs="?", choices=ENGINES, help="all of them where there is none")
    parser.add_argument("--kills", type=int, default=KILLS, help="over everything that is done")
    parser.add_argument("--loader", action="store_true")
    parser.add_argument("--finish", type=Path, help="only go on from this folder, and write the result there")
    args = parser.parse_args(argv)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # seeds are set on every GPU, which a forked child cannot
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the collapse that so high a learning rate ends in
    if args.finish:
        torch.save(train(args.engine, args.loader, args.finish), args.finish / "result.pt")
        return
    cases = [(args.engine, args.loader)] if args.engine else [(e, loader) for e in ENGINES for loader in (False, True)]
    shares = [args.kills * (i + 1) // len(cases) - args.kills * i // len(cases) for i in range(len(cases))]
    alike = [kill(*case, share) for case, share in zip(cases, shares, strict=True)]
    if not all(alike):
        sys.exit(1)


if __name__ == "__main__":
    main()
