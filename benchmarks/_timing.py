"""Interleaved timing of variants, and results that say where they came from."""

import argparse
import importlib.metadata
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

import pyrovae

RESULTS = Path(__file__).parent / "results"
PEERS = ("jax", "jaxlib", "numpyro", "pythae")


def arguments(parser: argparse.ArgumentParser, *, repeats: int = 5) -> argparse.Namespace:
    """The arguments of this run, those included that all benchmarks take; threads and seed are set."""
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    return args


def mnist_and_vae(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Tensor, pyrovae.VAE]:
    """The arguments of an evaluation benchmark, binarised test images, and an untrained 784-300-300-40 VAE."""
    args = arguments(parser)
    x = pyrovae.datasets.load("mnist", binarize="static").test[: args.num_data].to(args.device)
    return args, x, pyrovae.VAE((784,), 40, hidden=(300, 300)).to(args.device)


def interleave(variants: Mapping[str, Callable[[], Any]], *, repeats: int) -> dict[str, list[float]]:
    """Seconds of every variant in every round; a first round, not counted, warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for i in range(repeats + 1):
        for name, run in variants.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], ours: str, theirs: str) -> dict[str, float]:
    """Ratio of medians, and the smallest and largest ratio within a round."""
    rounds = [a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
    medians = statistics.median(seconds[ours]) / statistics.median(seconds[theirs])
    return {"ratio": medians, "min": min(rounds), "max": max(rounds)}


def write(name: str, result: Mapping[str, Any]) -> Path:
    """``benchmarks/results/NAME.json`` with device, threads, versions and command."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    facts = {
        "command": " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "pyro": pyro.__version__,
            "pyrovae": pyrovae.__version__,
            **{peer: importlib.metadata.version(peer) for peer in PEERS if peer in sys.modules},
        },
        **result,
    }
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(facts, indent=2) + "\n")
    return path
