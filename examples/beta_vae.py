"""Does a heavier KL make single latents hold single factors, and what does it cost?

Trains β-VAEs, a VAE of controlled capacity and a β-TCVAE on sprites, whose five factors (shape, scale, rotation, x, y)
are known, from several seeds each. Prints one table: bound, reconstruction and rate on held-out images, in nats, and
the disentanglement scores on the whole grid, as mean ± standard error over seeds; then how each differs from the first
model, seed by seed. Writes the tables (CSV), traversals of the latents, the mutual information gap by model and some
of the images (PNG), and the models.

    python examples/beta_vae.py                    # four objectives, five seeds: seven minutes on one core
    python examples/beta_vae.py --betas 1 2 4 8 16 --seeds 0 1 2 --size 32
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import torch
from command_line import at_least, number
from pyro.infer import ELBO
from scipy.stats import t as student

import pyrovae as pv

SCORES = ["mig", "sap", "disentanglement", "completeness", "informativeness", "factor_vae"]
COLUMNS = ["neg_elbo", "distortion", "rate", "active", *SCORES]


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--betas", nargs="+", type=number(zero=True), default=[1, 4], help="the first is compared with")
    parser.add_argument(
        "--capacity", type=number(zero=True), default=9.0, help="nats at the end of the capacity's annealing"
    )
    parser.add_argument(
        "--gamma", type=number(zero=True), default=30.0, help="weight of the distance from the capacity"
    )
    parser.add_argument(
        "--tc", type=number(zero=True), default=6.0, help="weight of the total correlation in the β-TCVAE"
    )
    parser.add_argument("--data", default="sprites", choices=["sprites"], help="the set whose factors are known")
    parser.add_argument("--size", type=at_least(1), default=None, help="of the images, in pixels; default: 24")
    parser.add_argument("--latent-dim", type=at_least(1), default=10)
    parser.add_argument("--hidden", nargs="+", type=at_least(1), default=None, help="default: 256 256")
    parser.add_argument("--epochs", type=at_least(0), default=None, help="default: 50")
    parser.add_argument("--batch-size", type=at_least(1), default=64)
    parser.add_argument("--learning-rate", type=number(zero=False), default=2e-3)
    parser.add_argument("--seeds", nargs="+", type=at_least(0), default=None, help="default: 0 1 2 3 4")
    parser.add_argument("--device", default="auto", help="default: CUDA if there is any")
    parser.add_argument("--threads", type=at_least(1), default=None, help="CPU threads; default: torch's own choice")
    parser.add_argument("--out", type=Path, default=Path("runs/beta_vae"))
    parser.add_argument("--quick", action="store_true", help="a few seconds: tiny everything, to see that it runs")
    parser.add_argument("--no-progress", action="store_true")
    args = parser.parse_args(argv)
    if args.device not in ("auto", "cpu", "cuda") and not args.device.removeprefix("cuda:").isdigit():
        parser.error(f"argument --device: must be auto, cpu, cuda or cuda:0, cuda:1, ...; got {args.device!r}")
    quick = {"size": 16, "hidden": [32], "epochs": 3, "seeds": [0, 1]}
    usual = {"size": 24, "hidden": [256, 256], "epochs": 50, "seeds": [0, 1, 2, 3, 4]}
    for name, value in (quick if args.quick else usual).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.betas, args.seeds = list(dict.fromkeys(args.betas)), list(dict.fromkeys(args.seeds))
    if args.epochs < 1:
        parser.error("--epochs must be at least 1")
    return args


def objectives(args: argparse.Namespace, num_data: int) -> dict[str, ELBO]:
    rising = pv.linear_warmup(args.epochs / 2, end=args.capacity)
    return {
        **{f"beta_{beta:g}": pv.ELBO(beta=beta) for beta in args.betas},
        f"capacity_{args.capacity:g}": pv.CapacityELBO(rising, gamma=args.gamma),
        f"tc_{args.tc:g}": pv.BetaTCVAE(num_data, beta=args.tc),
    }


def main(argv: list[str] | None = None) -> pd.DataFrame:
    args = arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    progress = not args.no_progress
    grid: dict[str, Any] = {"scales": 3, "rotations": 3, "positions": 5} if args.quick else {}
    data = pv.datasets.load("sprites", binarize="threshold", size=args.size, **grid)
    splits = ("train", "val", "test")
    images = torch.cat([getattr(data, split) for split in splits])
    factors = torch.cat([data.factors[split] for split in splits])
    args.out.mkdir(parents=True, exist_ok=True)

    rows: list[dict[str, Any]] = []
    models: dict[str, pv.VAE] = {}
    for name, objective in objectives(args, len(data.train)).items():
        for seed in args.seeds:
            print(f"{name}, seed {seed}: training", flush=True)
            torch.manual_seed(seed)
            vae = pv.VAE(data.event_shape, args.latent_dim, hidden=args.hidden)
            start = time.perf_counter()
            pv.fit(
                vae,
                data.train,
                objective=objective,
                epochs=args.epochs,
                batch_size=args.batch_size,
                learning_rate=args.learning_rate,
                device=args.device,
                seed=seed,
                progress=progress,
            )
            seconds = time.perf_counter() - start
            terms = pv.elbo_terms(vae, data.test, num_samples=20, progress=progress).summary()
            found = pv.disentanglement(
                vae, images, factors, factor_names=data.factor_names, categorical=["shape"], seed=seed
            )
            parts = {"neg_elbo": -terms["elbo"], "distortion": -terms["reconstruction"], "rate": terms["kl"]}
            summary = found.summary()
            by_factor = {f"mig_{factor}": value for factor, value in found.by_factor["mig"].items()}
            rows.append({"model": name, "seed": seed, **parts, **summary, **by_factor, "train_seconds": seconds})
            pd.DataFrame(rows).to_csv(args.out / "runs.csv", index=False)
            vae.save(args.out / f"{name}-seed{seed}.safetensors")
            models.setdefault(name, vae)

    runs = pd.DataFrame(rows)
    table = summarised(runs)
    table.to_csv(args.out / "comparison.csv")
    (args.out / "settings.json").write_text(
        json.dumps({**vars(args), "out": str(args.out), "data": data.hash}, indent=2)
    )
    pictures(args.out, data, models, runs, table)
    report(table, found, len(data.test), args)
    return table


def summarised(runs: pd.DataFrame) -> pd.DataFrame:
    """Means and standard errors over seeds, and the paired difference of the gap from the first model's."""
    columns = [*COLUMNS, *(c for c in runs.columns if c.startswith("mig_")), "train_seconds"]
    groups = runs.groupby("model", sort=False)[columns]
    table = groups.mean()
    errors = groups.sem()
    for column in columns:
        table[f"{column}_se"] = errors[column]
    gaps = runs.pivot(index="seed", columns="model", values="mig")[table.index]
    differences = gaps.sub(gaps[table.index[0]], axis=0)
    n = len(differences)
    table["mig_diff"], table["mig_diff_se"] = differences.mean(), differences.sem()
    half = student.ppf(0.975, n - 1) * table["mig_diff_se"] if n > 1 else math.nan
    table["mig_diff_low"], table["mig_diff_high"] = table["mig_diff"] - half, table["mig_diff"] + half
    return table


def pictures(out: Path, data: pv.datasets.Data, models: dict, runs: pd.DataFrame, table: pd.DataFrame) -> None:
    order = data.factors["test"][:, 0].argsort(stable=True)
    shown = torch.cat([order[data.factors["test"][order, 0] == shape][:12] for shape in range(3)])
    figure, ax = plt.subplots(figsize=(8, 2.6), layout="constrained")
    pv.plots.images(
        data.test[shown],
        data.image_shape,
        columns=12,
        row_labels=("square", "ellipse", "heart"),
        title=f"Sprites of {data.image_shape[1]}×{data.image_shape[2]} pixels, held out",
        ax=ax,
    )
    figure.savefig(out / "sprites.png", dpi=150)

    figure, ax = plt.subplots(figsize=(1.4 * len(table) + 1.5, 4), layout="constrained")
    places = {name: i for i, name in enumerate(table.index)}
    ax.scatter(runs["model"].map(places), runs["mig"], s=14, color="0.6", label="one seed", zorder=1)
    ax.errorbar(range(len(table)), table["mig"], table["mig_se"], fmt="o", capsize=4, label="mean ± standard error")
    ax.set_xticks(range(len(table)), list(table.index))
    ax.set_ylim(bottom=0)
    ax.set_ylabel("mutual information gap")
    ax.set_title("MIG by objective")
    ax.legend()
    figure.savefig(out / "mig.png", dpi=150)

    figure, axes = plt.subplots(1, len(models), figsize=(3.1 * len(models), 2.6), squeeze=False, layout="constrained")
    for (name, model), ax in zip(models.items(), axes[0], strict=True):
        traversals(model, data.test[shown[len(shown) // 2]], data, name, ax)
    figure.suptitle("Decoded means as one latent moves from -2 to 2, the six with the highest KL, at one image's code")
    figure.savefig(out / "traversals.png", dpi=150)
    plt.close("all")


def traversals(model: pv.VAE, x: torch.Tensor, data: pv.datasets.Data, title: str, ax: plt.Axes) -> None:
    steps = 8
    kl = pv.collapse(model, data.test, num_data=2, num_samples=2, progress=False).dimensions.set_index("dim")["kl"]
    dims = kl.sort_values(ascending=False).index[:6].tolist()
    z = model.encode(x.unsqueeze(0)).cpu().repeat(len(dims), steps, 1)
    for row, dim in enumerate(dims):
        z[row, :, dim] = torch.linspace(-2, 2, steps)
    labels = [f"{kl[dim]:.1f} nats" for dim in dims]
    pv.plots.images(
        model.decode(z).flatten(0, 1), data.image_shape, columns=steps, row_labels=labels, title=title, ax=ax
    )


def report(table: pd.DataFrame, found: pv.Disentanglement, num_test: int, args: argparse.Namespace) -> None:
    print(
        f"\n{args.data}, {args.size}×{args.size} pixels; nats per image on {num_test} held-out images, scores on all "
        f"{found.num_data}; mean ± standard error over {len(args.seeds)} seeds, {args.epochs} epochs:"
    )
    digits = {"neg_elbo": 2, "distortion": 2, "rate": 2, "active": 1}
    both = {
        c: [
            f"{m:.{digits.get(c, 3)}f} ± {s:.{digits.get(c, 3)}f}"
            for m, s in zip(table[c], table[f"{c}_se"], strict=True)
        ]
        for c in COLUMNS
    }
    print(pd.DataFrame(both, index=table.index).T.to_string())
    print("\nMIG by factor:")
    factors = found.by_factor.index
    print(table[[f"mig_{f}" for f in factors]].set_axis(factors, axis=1).T.round(3).to_string())
    print("\nOf the last model's codes in random order (chance), and the most there is:")
    print(found.scores[["chance", "maximum"]].T.round(3).to_string())
    first = table.index[0]
    print(f"\nMIG against {first}, seed by seed, with the 95% interval of Student's t:")
    for name, row in table.iloc[1:].iterrows():
        interval = f"[{row['mig_diff_low']:+.3f}, {row['mig_diff_high']:+.3f}]"
        print(f"  {name}: {row['mig_diff']:+.3f} ± {row['mig_diff_se']:.3f}  {interval}")
    print(f"\nTables, pictures and models: {args.out}")


if __name__ == "__main__":
    main()
