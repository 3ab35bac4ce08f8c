"""What a prior is worth: models that differ in it alone, by L_5000 and by annealed importance sampling, paired.

The models are files that examples/flow_posterior.py saved, the first of them the one to compare with. What was
evaluated is kept beside them, so that a run that was stopped goes on.

    python examples/flow_posterior.py --data mnist --posteriors mean_field --priors standard_normal flow \\
        --epochs 100 --test-size 1000 --out runs/priors
    python -m benchmarks.priors runs/priors/mean_field-{standard_normal,flow}.safetensors
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyrovae as pv
from benchmarks._timing import arguments, write
from pyrovae.evaluation import Result


def kept(path: Path, kind: type[Result], evaluate: Callable[[], Any]) -> Any:
    """The result in a file, or what ``evaluate`` finds, which is put there."""
    if not path.exists():
        start = time.perf_counter()
        result = evaluate()
        print(f"{path.name}: {time.perf_counter() - start:.0f} seconds", flush=True)
        result.save(path)
    return kind.load(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--num-data", type=int, default=1000)
    parser.add_argument("--ais-size", type=int, default=1000, help="the first so many of them are annealed")
    parser.add_argument("--num-samples", type=int, default=5000)
    parser.add_argument("--num-temperatures", type=int, default=250)
    args = arguments(parser)
    x = pv.datasets.load(args.data, binarize="dynamic").test[: args.num_data]
    options: dict[str, Any] = {"device": args.device, "progress": False, "seed": 0}
    sampled, annealed, active = {}, {}, {}
    for path in args.models:
        model, name = pv.load(path), path.stem
        sampled[name] = kept(
            path.with_suffix(f".L-{args.num_data}-{args.num_samples}.npz"),
            pv.MarginalResult,
            partial(pv.log_marginal, model, x, num_samples=args.num_samples, **options),
        )
        annealed[name] = kept(
            path.with_suffix(f".ais-{args.ais_size}-{args.num_temperatures}.npz"),
            pv.AISResult,
            partial(pv.ais, model, x[: args.ais_size], num_temperatures=args.num_temperatures, **options),
        )
        active[name] = int(pv.collapse(model, x, **options).summary()["active"])
    table = pv.compare(sampled, ais=annealed)
    first = args.models[0].stem
    rows = {}
    for name, result in annealed.items():
        gain = result.pointwise["log_px"] - annealed[first].pointwise["log_px"]
        rows[name] = {
            **{key: float(table.loc[name, key]) for key in ("neg_elbo", "log_px", "se_data", "diff", "diff_se")},
            "ais": float(result.pointwise["log_px"].mean()),
            "ais_mc_se": float(result.summary()["mc_se"]),
            "ais_gap": float((result.pointwise["log_px"] - sampled[name].pointwise["log_px"]).mean()),
            "ais_diff": float(gain.mean()),
            "ais_diff_se": float(gain.sem()),
            "ais_reliable": float(result.pointwise["reliable"].mean()),
            "khat_high": float(table.loc[name, "khat_high"]),
            "active": active[name],
        }
        print(name, {key: round(value, 3) for key, value in rows[name].items()})
    write("priors", {"rows": rows, "num_data": args.num_data, "ais_size": args.ais_size})


if __name__ == "__main__":
    main()
