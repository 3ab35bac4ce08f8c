"""Can these numbers be published? Everything the library knows about a trained model's log p(x), in one report.

For every model: -ELBO, L_K with its verdict, the jackknife; annealed importance sampling (AIS) and approximation and
amortisation gaps on some of the data; and how many latents are in use. Prints the tables, writes them (CSV), and saves
the pictures (PNG). Models are files that examples/flow_posterior.py saved; without any, two small ones are trained.

    python examples/evaluation_report.py                                            # minutes on a CPU
    python examples/evaluation_report.py runs/flow_posterior/*.safetensors --data mnist --test-size 1000
    torchrun --nproc-per-node 2 examples/evaluation_report.py                  # two GPUs share training, L_K and AIS
"""

import argparse
import time
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import torch
from command_line import at_least

import pyrovae as pv


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="saved models; default: mean-field and IAF, trained here")
    parser.add_argument("--data", default="digits", choices=list(pv.datasets.DATASETS))
    parser.add_argument("--binarize", default="dynamic", choices=["dynamic", "static", "threshold", "none"])
    parser.add_argument("--epochs", type=at_least(0), default=None, help="of the models trained here; default: 150")
    parser.add_argument("--num-samples", type=at_least(1), default=None, help="K of L_K; default: 5000")
    parser.add_argument("--test-size", type=at_least(1), default=None, help="evaluate on the first so many test data")
    parser.add_argument(
        "--ais-size", type=at_least(1), default=None, help="of which so many by AIS and for gaps; default: 100"
    )
    parser.add_argument("--num-temperatures", type=at_least(1), default=None, help="T of AIS; default: 1000")
    parser.add_argument(
        "--gap-steps", type=at_least(1), default=None, help="steps of every datum's own q*; default: 1000"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=at_least(1), default=None, help="CPU threads; default: torch's own choice")
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/evaluation_report"))
    parser.add_argument("--quick", action="store_true", help="seconds: tiny everything, to see that it runs")
    parser.add_argument("--no-progress", action="store_true")
    args = parser.parse_args(argv)
    if args.device not in ("auto", "cpu", "cuda") and not args.device.removeprefix("cuda:").isdigit():
        parser.error(f"argument --device: must be auto, cpu, cuda or cuda:0, cuda:1, ...; got {args.device!r}")
    quick = {"epochs": 3, "num_samples": 100, "test_size": 40, "ais_size": 6, "num_temperatures": 20, "gap_steps": 100}
    usual = {
        "epochs": 150,
        "num_samples": 5000,
        "test_size": None,
        "ais_size": 100,
        "num_temperatures": 1000,
        "gap_steps": 1000,
    }
    for name, value in (quick if args.quick else usual).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    for path in args.models:
        if not path.is_file():
            parser.error(f"there is no file {path}")
    return args


def main(argv: list[str] | None = None) -> pd.DataFrame:
    args = arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    main_process = pv.is_main_process()  # under torchrun one process prints and writes
    progress = not args.no_progress and main_process
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    device = automatic if args.device == "auto" else args.device
    data = pv.datasets.load(args.data, binarize=None if args.binarize == "none" else args.binarize)
    models = {path.stem: pv.load(path) for path in args.models} or train(data, args)
    test = data.test[: args.test_size]
    some = test[: args.ais_size]
    if main_process:
        args.out.mkdir(parents=True, exist_ok=True)

    results, annealed, gaps, reports, seconds = {}, {}, {}, {}, {}
    for name, model in models.items():
        if main_process:
            print(f"{name}: evaluating", flush=True)
        common = {"seed": args.seed, "device": device, "progress": progress}
        clock = [time.perf_counter()]
        results[name] = pv.log_marginal(model, test, num_samples=args.num_samples, **common)
        clock.append(time.perf_counter())
        annealed[name] = pv.ais(model, some, num_temperatures=args.num_temperatures, **common)
        clock.append(time.perf_counter())
        gaps[name] = pv.inference_gaps(model, some, log_px=annealed[name], steps=args.gap_steps, **common)
        clock.append(time.perf_counter())
        reports[name] = pv.collapse(model, test, **common)
        clock.append(time.perf_counter())
        seconds[name] = dict(zip(("L_K", "AIS", "gaps", "collapse"), [b - a for a, b in pairwise(clock)], strict=True))
        if main_process:
            results[name].pointwise.to_csv(args.out / f"{name}.pointwise.csv", index_label="datum")
            annealed[name].pointwise.to_csv(args.out / f"{name}.ais.csv", index_label="datum")
            gaps[name].pointwise.to_csv(args.out / f"{name}.gaps.csv", index_label="datum")
            reports[name].dimensions.to_csv(args.out / f"{name}.dimensions.csv")

    table = pv.compare(results)
    options = {"num_samples": args.num_samples, "seed": args.seed, "progress": False}
    # Bounds on the data that AIS saw, so that its line belongs there.
    bounds = {name: pv.log_marginal(model, some, **options) for name, model in models.items()}
    if main_process:
        table.to_csv(args.out / "comparison.csv")
        subset = on_some(results, annealed, gaps, reports, len(some))
        subset.to_csv(args.out / "subset.csv")
        pictures(args.out, models, test, results, bounds, annealed, gaps, reports, args)
        show(table, subset, results, reports, pd.DataFrame(seconds).T, args)
    return table


def train(data: pv.datasets.Data, args: argparse.Namespace) -> dict[str, pv.VAEModel]:
    """A mean-field and an IAF model of equal networks."""
    models: dict[str, pv.VAEModel] = {}
    options = {"epochs": args.epochs, "seed": args.seed, "device": args.device, "progress": not args.no_progress}
    for posterior in ("mean_field", "iaf"):
        if pv.is_main_process():
            print(f"{posterior}: training", flush=True)
        torch.manual_seed(args.seed)
        models[posterior] = pv.VAE(data.event_shape, latent_dim=8, posterior=posterior, hidden=(128, 128))
        warmup = pv.ELBO(beta=pv.linear_warmup(args.epochs / 3))
        pv.fit(models[posterior], data, objective=warmup, **options)
    return models


def on_some(results: dict, annealed: dict, gaps: dict, reports: dict, n: int) -> pd.DataFrame:
    """What was computed on the first n data, side by side: means, with Monte Carlo standard errors."""
    rows = {}
    for name, result in results.items():
        p, a, g = result.pointwise[:n], annealed[name].summary(), gaps[name].summary()
        rows[name] = {
            "neg_elbo": -p["elbo"].mean(),
            "L_K": p["log_px"].mean(),
            "jackknife": p["jackknife"].mean(),
            "ais": a["log_px"],
            "ais_se": a["mc_se"],
            "L_K - ais": p["log_px"].mean() - a["log_px"],
            "approximation": g["approximation"],
            "amortization": g["amortization"],
            "active": reports[name].summary()["active"],
            "rate": reports[name].rate,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def pictures(
    out: Path,
    models: dict,
    test: torch.Tensor,
    results: dict,
    bounds: dict,
    annealed: dict,
    gaps: dict,
    reports: dict,
    args: argparse.Namespace,
) -> None:
    for kind in ("bounds", "gaps"):
        figure, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
        if kind == "gaps":
            pv.plots.gaps(gaps, ax=ax)
        else:
            pv.plots.bounds(bounds, ais=annealed, ax=ax)
        figure.savefig(out / f"{kind}.png", dpi=150)
    for kind in ("khats", "kl", "weights", "aggregate"):
        figure, axes = plt.subplots(len(models), 1, figsize=(7, 3.2 * len(models)), squeeze=False, layout="constrained")
        for (name, model), ax in zip(models.items(), axes[:, 0], strict=True):
            if kind == "khats":
                pv.plots.khats(results[name], ax=ax)
            elif kind == "kl":
                pv.plots.kl_per_dimension(reports[name], ax=ax)
            elif kind == "weights":
                worst = int(results[name].worst(1).index[0])
                weights = pv.evaluation.log_weights(model, test[worst : worst + 1], num_samples=args.num_samples)
                pv.plots.log_weights(weights, ax=ax)
            else:
                pv.plots.aggregate_posterior(model, test, ax=ax)
            ax.set_ylabel(f"{name}\n{ax.get_ylabel()}")  # titles and legends have the top
        figure.savefig(out / f"{kind}.png", dpi=150)
    plt.close("all")


def show(
    table: pd.DataFrame,
    subset: pd.DataFrame,
    results: dict,
    reports: dict,
    seconds: pd.DataFrame,
    args: argparse.Namespace,
) -> None:
    first = next(iter(results.values()))
    columns = ["log_px", "se_data", "mc_se", "diff", "diff_se", "same_model", "neg_elbo", "rise", "jackknife"]
    columns += ["median_ess", "median_khat", "khat_high", "unreliable"]
    print(
        f"\n{args.data}, {len(first.pointwise)} test data ({first.provenance.data_hash}), L_{first.num_samples}, "
        f"nats per datum:"
    )
    print(table[columns].round(4).T.to_string())
    for name, result in results.items():
        print(f"\n{name}: {result.verdict}\n{name}: {reports[name].verdict}")
    print(f"\nThe first {min(args.ais_size, len(first.pointwise))} of them:")
    print(subset.round(4).T.to_string())
    print("\nSeconds:")
    print(seconds.round(1).to_string())
    print(f"\nTables and pictures: {args.out}")


if __name__ == "__main__":
    main()
