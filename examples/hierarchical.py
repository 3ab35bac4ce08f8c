"""Do several layers of latents model data better than one, and what does each layer carry?

Trains a VAE with one layer of latents, one with two inferred bottom-up, a ladder VAE with the same two, and a small
NVAE, with the same data, likelihood and number of epochs. Evaluates each by importance-sampled log p(x) through all its
layers, and measures every layer's share of the rate. Prints one table and writes it, the per-datum results, samples,
per-layer samples, and the layers' KL at the end and over the epochs.

    python examples/hierarchical.py                                                     # digits, three minutes on a CPU
    python examples/hierarchical.py --data mnist --models one_layer two_layers ladder   # minutes
    python examples/hierarchical.py --data mnist --train-size 5000 --test-size 100      # all four, minutes
"""

import argparse
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import torch
from command_line import at_least, number

import pyrovae as pv

MODELS = ["one_layer", "two_layers", "ladder", "nvae"]


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", choices=list(pv.datasets.DATASETS))
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument(
        "--latent-dims", nargs=2, type=at_least(1), default=None, help="default: 8 4 on digits, else 40 20"
    )
    parser.add_argument(
        "--hidden", nargs="+", type=at_least(1), default=None, help="default: 128 128 on digits, else 200 200"
    )
    parser.add_argument("--layer-norm", action=argparse.BooleanOptionalAction, default=True, help="of dense layers")
    parser.add_argument("--channels", type=at_least(1), default=16, help="of the NVAE at its finest resolution")
    parser.add_argument("--epochs", type=at_least(0), default=None, help="default: 100 on digits, else 20")
    parser.add_argument(
        "--warmup", type=number(zero=False), default=None, help="epochs of KL warm-up; default: a third"
    )
    parser.add_argument("--batch-size", type=at_least(1), default=100)
    parser.add_argument("--learning-rate", type=number(zero=False), default=1e-3)
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--num-samples", type=at_least(1), default=None, help="K of L_K; default: 1000")
    parser.add_argument("--train-size", type=at_least(1), default=None, help="train on the first so many data")
    parser.add_argument(
        "--test-size", type=at_least(1), default=None, help="evaluate on the first so many; default: 500"
    )
    parser.add_argument("--threads", type=at_least(1), default=None, help="CPU threads; default: torch's own choice")
    parser.add_argument("--out", type=Path, default=Path("runs/hierarchical"))
    parser.add_argument("--quick", action="store_true", help="a few seconds: tiny everything, to see that it runs")
    parser.add_argument("--no-progress", action="store_true")
    args = parser.parse_args(argv)
    digits = args.data == "digits"
    quick = {"epochs": 3, "num_samples": 100, "test_size": 40}
    usual = {"epochs": 100 if digits else 20, "num_samples": 1000, "test_size": 500}
    for name, value in (quick if args.quick else usual).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.quick:
        args.channels = 8
    args.latent_dims = args.latent_dims or ([8, 4] if digits else [40, 20])
    args.hidden = args.hidden or ([128, 128] if digits else [200, 200])
    args.warmup = args.epochs / 3 if args.warmup is None else args.warmup
    args.models = list(dict.fromkeys(args.models))
    if args.epochs < 1 or args.warmup < 0:
        parser.error("--epochs must be at least 1, and --warmup at least 0")
    return args


def build(name: str, event_shape: tuple[int, ...], args: argparse.Namespace) -> pv.VAEModel:
    options = {"hidden": args.hidden, "layer_norm": args.layer_norm}
    if name == "one_layer":
        return pv.zoo.HierarchicalVAE(event_shape, args.latent_dims[:1], **options)
    if name == "two_layers":
        return pv.zoo.HierarchicalVAE(event_shape, args.latent_dims, **options)
    if name == "ladder":
        return pv.zoo.LadderVAE(event_shape, args.latent_dims, **options)
    return pv.zoo.NVAE(event_shape, (1, 1 if args.quick else 2), channels=args.channels)


def main(argv: list[str] | None = None) -> pd.DataFrame:
    args = arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    progress = not args.no_progress
    data = pv.datasets.load(args.data, binarize="dynamic", flatten=False)
    train, test = data.train[: args.train_size], data.test[: args.test_size]
    args.out.mkdir(parents=True, exist_ok=True)

    models, runs, results, reports, rows = {}, {}, {}, {}, {}
    for name in args.models:
        print(f"{name}: training", flush=True)
        torch.manual_seed(args.seed)
        models[name] = model = build(name, data.event_shape, args)
        start = time.perf_counter()
        runs[name] = pv.fit(
            model,
            train,
            validation=data.val[:1000],
            batch_transform=data.batch_transform,
            objective=pv.ELBO(beta=pv.linear_warmup(args.warmup) if args.warmup > 0 else 1.0),
            epochs=args.epochs,
            batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            callbacks=[pv.CollapseMonitor(data.val[:200])],
            seed=args.seed,
            progress=progress,
        )
        seconds = time.perf_counter() - start
        results[name] = pv.log_marginal(model, test, num_samples=args.num_samples, progress=progress)
        # The mixture behind I(x; z) scores all pairs of its data, which a convolutional guide would take long over.
        reports[name] = pv.collapse(model, test, num_samples=16, num_data=20, progress=progress)
        rows[name] = {
            "rate": reports[name].rate,
            "parameters": sum(p.numel() for p in model.parameters()),
            "seconds": seconds,
            "best_epoch": runs[name].best_epoch,
        }
        model.save(args.out / f"{name}.safetensors")
        results[name].pointwise.to_csv(args.out / f"{name}.pointwise.csv", index_label="datum")

    table = pv.compare(results).join(pd.DataFrame(rows).T)
    layers = pd.concat({name: report.sites for name, report in reports.items()}, names=["model"])
    layers["units over 0.01 nats"] = pd.concat({name: carrying(report) for name, report in reports.items()})
    table.to_csv(args.out / "comparison.csv")
    layers.to_csv(args.out / "layers.csv")
    pictures(args.out, data.image_shape, models, runs, reports)
    show(table, layers, results, args, len(train))
    return table


def carrying(report: pv.CollapseReport) -> pd.Series:
    """How many dimensions of each site have a KL over 0.01 nats, the count of Sønderby et al. (2016)."""
    return report.dimensions["kl"].gt(0.01).groupby(report.dimensions["site"], sort=False).sum()


def pictures(out: Path, image_shape: tuple[int, int, int], models: dict, runs: dict, reports: dict) -> None:
    several = {name: model for name, model in models.items() if len(reports[name].sites) > 1}
    figure, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
    pv.plots.kl_per_site(reports, ax=ax)
    figure.savefig(out / "kl.png", dpi=150)
    figure, axes = plt.subplots(len(models), 1, figsize=(7, 1.8 * len(models)), squeeze=False, layout="constrained")
    for (name, model), ax in zip(models.items(), axes[:, 0], strict=True):
        pv.plots.samples(model, image_shape, title=name, ax=ax)
    figure.savefig(out / "samples.png", dpi=150)
    if several:
        rows = [len(reports[name].sites) for name in several]
        figure, axes = plt.subplots(
            len(several),
            1,
            figsize=(7, 0.65 * sum(rows) + 0.4 * len(rows)),
            squeeze=False,
            layout="constrained",
            height_ratios=rows,
        )
        for (name, model), ax in zip(several.items(), axes[:, 0], strict=True):
            pv.plots.layer_samples(model, image_shape, title=f"{name}: first column, the draw that is held", ax=ax)
        figure.savefig(out / "layer_samples.png", dpi=150)
        figure, axes = plt.subplots(
            1, len(several), figsize=(3.4 * len(several), 3.6), sharey=True, squeeze=False, layout="constrained"
        )
        for name, ax in zip(several, axes[0], strict=True):
            for site in reports[name].sites.index:
                history = runs[name].history[f"kl_{site}"]
                ax.plot(history.index + 1, history, label=site)
            ax.set_title(name)
            ax.set_xlabel("epoch")
            ax.grid(alpha=0.3)
            ax.legend(frameon=False, fontsize="small")
        axes[0, 0].set_ylabel("KL (nats per datum)")
        figure.savefig(out / "kl_over_epochs.png", dpi=150)
    plt.close("all")


def show(table: pd.DataFrame, layers: pd.DataFrame, results: dict, args: argparse.Namespace, num_train: int) -> None:
    first = next(iter(results.values()))
    shown = ["neg_elbo", "log_px", "mc_se", "diff", "diff_se", "rate", "median_khat", "parameters", "seconds"]
    formats = {"parameters": "{:.0f}", "seconds": "{:.0f}", "neg_elbo": "{:.2f}", "rate": "{:.2f}"}
    print(
        f"\n{args.data}, {num_train} training data, {args.epochs} epochs, {len(first.pointwise)} test data "
        f"({first.provenance.data_hash}), log_px = L_{first.num_samples}, nats per datum:"
    )
    print(table[shown].apply(lambda c: c.map(formats.get(str(c.name), "{:.3f}").format)).to_string())
    print("\nBy layer, z1 next to the data; bottom-up, a lower layer's share of the rate is no divergence:")
    print(layers.round(3).to_string())
    for name, result in results.items():
        if not result.reliable:
            print(f"\n{name}: {result.verdict}")
    print(
        f"\ndiff ± diff_se: against {next(iter(results))}, datum by datum, which covers the choice of test data, not "
        f"how training came out (one seed). Tables, pictures and models: {args.out}"
    )


if __name__ == "__main__":
    main()
