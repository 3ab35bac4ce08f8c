"""What memory log_marginal, ais and fit take at their peak, as data, draws and epochs grow.

Every run is a fresh process: its peak resident memory on a CPU, torch and Pyro included, or the most that torch
allocated on CUDA, data and model included. Equal runs differ, so that each is repeated. glibc keeps freed blocks in a
heap that fragments, by 100 to 300 MiB here; --heap as-is measures that too, while by default every block of more than
128 KiB is given back when it is freed (MALLOC_MMAP_THRESHOLD_), so that what is measured is what was needed.

    python -m benchmarks.memory
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from typing import Any

import torch

import pyrovae as pv
from benchmarks._timing import arguments, write

MIB = 2**20
SHORT = {"num_temperatures": 10, "num_chains": 4, "num_leapfrog": 2}
# What grows, and the settings from smallest to largest.
SETTINGS: dict[str, list[dict[str, int]]] = {
    "log_marginal, data": [{"num_data": n, "num_samples": 500} for n in (200, 2_000, 20_000)],
    "log_marginal, draws": [{"num_data": 20, "num_samples": k} for k in (5_000, 50_000, 500_000)],
    "ais, data": [{"num_data": n, **SHORT} for n in (200, 2_000, 20_000)],
    "fit, epochs": [{"num_data": 2_000, "epochs": epochs} for epochs in (3, 30, 300)],
}


def one(name: str, device: str, num_data: int, **options: Any) -> None:
    """Run one setting in this process, and print its peak and the size of its data in bytes."""
    torch.manual_seed(0)
    vae = pv.VAE((784,), 16, hidden=(100,)).to(device)
    x = torch.empty(num_data, 784, device=device).bernoulli_(0.3)  # in place: no temporaries that would count
    match name.partition(",")[0]:
        case "log_marginal":
            pv.log_marginal(vae, x, progress=False, **options)
        case "ais":
            pv.ais(vae, x, progress=False, **options)
        case "fit":
            pv.fit(vae, x, device=device, seed=0, progress=False, **options)
    if x.is_cuda:
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"peak": peak, "data": x.nbytes}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a setting to run in this process, as JSON
    parser.add_argument("--heap", default="returned", choices=["returned", "as-is"])
    args = arguments(parser, repeats=3)
    settings = {"MALLOC_MMAP_THRESHOLD_": str(128 * 2**10)} if args.heap == "returned" else {}
    if args.one is not None:
        one(device=args.device, **json.loads(args.one))
        return

    def measure(name: str, options: dict[str, int]) -> dict[str, int]:
        here = [sys.executable, "-m", "benchmarks.memory", "--threads", str(args.threads), "--device", args.device]
        setting = json.dumps({"name": name, **options})
        # What a parent holds counts as its child's peak too: this process holds its imports alone.
        done = subprocess.run(
            [*here, "--one", setting], check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **settings}
        )
        return json.loads(done.stdout)

    runs = [(name, options) for name, grown in SETTINGS.items() for options in grown]
    rounds = [[measure(name, options) for name, options in runs] for _ in range(args.repeats)]
    rows = [
        {"name": name, **options, "data": found[0]["data"] / MIB, "peaks": [f["peak"] / MIB for f in found]}
        for (name, options), found in zip(runs, zip(*rounds, strict=True), strict=True)
    ]
    growth = {}
    for name, grown in SETTINGS.items():
        print(f"\n{name}")
        some = [row for row in rows if row["name"] == name]
        medians = [statistics.median(row["peaks"]) for row in some]
        for options, row, median in zip(grown, some, medians, strict=True):
            setting = ", ".join(f"{key}={value}" for key, value in options.items())
            spread = f"({min(row['peaks']):.0f} to {max(row['peaks']):.0f})"
            print(f"{setting:75} {median:6.0f} MiB {spread}, data {row['data']:.1f}")
        growth[name] = {"peak": medians[-1] - medians[0], "data": some[-1]["data"] - some[0]["data"]}
        print("growth {peak:.0f} MiB, of the data alone {data:.0f}".format(**growth[name]))
    print(write("memory", {"mebibytes": rows, "growth": growth, "args": vars(args)}))


if __name__ == "__main__":
    main()
