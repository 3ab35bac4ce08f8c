"""A program that is killed at random moments while it trains, and goes on: do the final weights come out the same?

    python -m tests.training.killing graph --kills 30 --binarize

Prints how often it was killed, how often while a checkpoint was being written, and whether the weights are those of the
run that nobody killed, bit for bit.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import pyrovae as pv

EPOCHS = 6


def train(engine: str, binarize: bool, folder: Path | None) -> dict[str, torch.Tensor]:
    """Digits, a ragged last batch, validation, a schedule, clipping, and a learning rate that decays."""
    data = pv.datasets.load("digits", binarize="dynamic" if binarize else "static")
    torch.manual_seed(0)
    vae = pv.VAE(data.event_shape, 8, hidden=(256, 256))
    pv.fit(
        vae,
        data,
        objective=pv.ELBO(beta=pv.linear_warmup(3)),
        lr_schedule=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.7),
        clip_norm=5.0,
        epochs=EPOCHS,
        compile=engine,
        seed=1,
        device="cpu",
        checkpoint=folder,
        progress=False,
    )
    return vae.state_dict()


def child(engine: str, binarize: bool, folder: Path, result: Path) -> int:
    """A process that trains, and writes the weights if it lives to the end."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.save(train(engine, binarize, folder), result)
            code = 0
        finally:
            os._exit(code)
    return pid


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--binarize", action="store_true")
    parser.add_argument("--finish", type=Path, help="only go on from this folder, and write the weights there")
    args = parser.parse_args(argv)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # seeds are set on every GPU, which a forked child cannot
    torch.set_num_threads(1)
    if args.finish:
        torch.save(train(args.engine, args.binarize, args.finish), args.finish / "weights.pt")
        return
    expected = train(args.engine, args.binarize, None)  # its machine code is inherited by the children
    start = time.perf_counter()
    train(args.engine, args.binarize, None)
    seconds = time.perf_counter() - start
    moments, kills, writing, runs, same = random.Random(0), 0, 0, 0, 0

    def ends_alike(result: Path) -> bool:
        weights = torch.load(result, weights_only=True)
        return all(torch.equal(value, weights[name]) for name, value in expected.items())

    with tempfile.TemporaryDirectory() as root:
        while kills < args.kills:
            folder = Path(root) / str(runs)
            folder.mkdir()
            runs += 1
            while kills < args.kills:
                pid = child(args.engine, args.binarize, folder, folder / "weights.pt")
                time.sleep(moments.uniform(0.0, 1.2 * seconds))
                if kills % 2:  # every other one in the midst of writing
                    until = time.perf_counter() + seconds
                    while time.perf_counter() < until and not list(folder.glob("*.part")):
                        pass
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    if status:
                        sys.exit(f"a process that nobody killed ended with status {status}")
                    same += ends_alike(folder / "weights.pt")
                    break
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                kills += 1
                writing += bool(list(folder.glob("*.part")))
            else:  # the last one in a process that compiles anew
                command = [sys.executable, "-m", "tests.training.killing", args.engine, "--finish", str(folder)]
                subprocess.run(command + ["--binarize"] * args.binarize, check=True)
                same += ends_alike(folder / "weights.pt")
    binarisation = "dynamic" if args.binarize else "static"
    print(f"{args.engine}, {binarisation} binarisation: {kills} kills, {writing} of them while writing a checkpoint")
    print(f"{same} of {runs} runs ended with the weights of the run that nobody killed")
    if same != runs:
        sys.exit(1)


if __name__ == "__main__":
    main()
