"""How cost grows: seconds of log_marginal against data and draws, and of fit against epochs.

Sizes are 1, 2, 4 and 8 times the smallest, which is doubled until a run takes --seconds. The exponent is the
least-squares slope of log(median seconds) on log(size), its standard error that of the slopes of single rounds. Cost
that grows in proportion has exponent 1. Nothing is subtracted from it: what a call costs before it starts on the work
(checks, tracing) counts, and is estimated beside it, by a line through the medians with relative errors.

    python -m benchmarks.scaling                                        # 8x8 digits, 64-128-128-8
    PYROVAE_DATA=... python -m benchmarks.scaling --data mnist          # 784-300-300-40
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

import pyrovae as pv
from benchmarks._timing import arguments, interleave, write

FACTORS = (1, 2, 4, 8)
MODELS = {"digits": (8, (128, 128)), "mnist": (40, (300, 300))}  # latent dimensions, hidden layers


def smallest(run: Callable[[int], object], size: int, seconds: float) -> int:
    """The first of size, 2 size, 4 size, ... whose second run takes so long."""
    while True:
        run(size)
        start = time.perf_counter()
        run(size)
        if time.perf_counter() - start >= seconds:
            return size
        size *= 2


def exponent(sizes: Sequence[int], seconds: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The slope of log(median seconds) on log(size), and its standard error from rounds; seconds are by size."""

    def slope(times: Sequence[float]) -> float:
        return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])

    by_round = [slope(times) for times in zip(*seconds, strict=True)]
    error = statistics.stdev(by_round) / math.sqrt(len(by_round)) if len(by_round) > 1 else math.nan
    return slope([statistics.median(times) for times in seconds]), error


def fixed(sizes: Sequence[int], seconds: Sequence[Sequence[float]]) -> float:
    """Seconds that do not grow."""
    medians = np.array([statistics.median(times) for times in seconds])
    return float(np.polyfit(sizes, medians, 1, w=1.0 / medians)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", choices=list(MODELS))
    parser.add_argument("--seconds", type=float, default=2.0, help="of the smallest run, at least")
    args = arguments(parser)
    data = pv.datasets.load(args.data, binarize="static")
    test, train = data.test.to(args.device), data.train.to(args.device)
    latent_dim, hidden = MODELS[args.data]

    def new() -> pv.VAE:
        torch.manual_seed(0)
        return pv.VAE(data.event_shape, latent_dim, hidden=hidden).to(args.device)

    vae = new()

    def log_marginal(num_data: int, num_samples: int) -> pv.MarginalResult:
        x = test[torch.arange(num_data, device=test.device) % len(test)]
        return pv.log_marginal(vae, x, num_samples=num_samples, progress=False)

    def fit(epochs: int) -> pv.FitResult:
        return pv.fit(new(), train, epochs=epochs, device=args.device, seed=0, progress=False)

    growth: dict[str, tuple[Callable[[int], object], int]] = {
        "log_marginal against N": (partial(log_marginal, num_samples=1000), 100),
        "log_marginal against K": (partial(log_marginal, 100), 1000),
        "fit against epochs": (fit, 1),
    }
    sizes = {}
    for name, (run, size) in growth.items():
        base = smallest(run, size, args.seconds)
        sizes[name] = [factor * base for factor in FACTORS]
    variants = {f"{name} {size}": partial(growth[name][0], size) for name in growth for size in sizes[name]}
    seconds = interleave(variants, repeats=args.repeats)

    exponents = {}
    for name in growth:
        times = [seconds[f"{name} {size}"] for size in sizes[name]]
        table = ", ".join(f"{size}: {statistics.median(t):.2f}" for size, t in zip(sizes[name], times, strict=True))
        slope, error = exponent(sizes[name], times)
        exponents[name] = {"exponent": slope, "se": error, "fixed_seconds": fixed(sizes[name], times)}
        print(f"{name}: exponent {slope:.3f} ± {error:.3f}, {exponents[name]['fixed_seconds']:.2f} s fixed ({table})")
    print(write("scaling", {"sizes": sizes, "seconds": seconds, "exponents": exponents, "args": vars(args)}))


if __name__ == "__main__":
    main()
