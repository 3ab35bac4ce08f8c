"""What is a prior over the codes worth, in nats and to the eye?

Trains a VQ-VAE on binarised images (stage one: encoder, codebook, decoder), then a PixelCNN over its grids of codes
(stage two), and evaluates log p(x, z(x)) ≤ log p(x) with the uniform prior and with the learnt one: the same codes and
the same decoder, so that the whole difference is the prior's. Writes the tables (CSV), reconstructions, samples under
both priors, the use of the codebook and the training curves (PNG), and the model.

    python examples/vqvae.py                              # 10 000 images of MNIST, minutes on one core
    python examples/vqvae.py --data digits                # 20 seconds
    python examples/vqvae.py --data digits --downsampling 4 --num-codes 64       # a coarser grid: a better bound
    python examples/vqvae.py --data fashion_mnist --train-size 50000 --epochs 30 --prior-epochs 30 --hidden 64
"""

import argparse
import json
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import torch
from command_line import at_least, number

import pyrovae as pv
from pyrovae.networks import perplexity
from pyrovae.zoo import VQVAE


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", default=None, help=f"one of {', '.join(pv.datasets.DATASETS)}; default: mnist, with --quick digits"
    )
    parser.add_argument("--binarize", default="dynamic", choices=["dynamic", "static", "threshold"])
    parser.add_argument("--num-codes", type=at_least(1), default=None, help="default: 32 on digits, else 64")
    parser.add_argument("--code-dim", type=at_least(1), default=16)
    parser.add_argument(
        "--downsampling", type=at_least(1), default=None, help="default: 2 on digits (4×4 codes), else 4 (7×7)"
    )
    parser.add_argument("--hidden", type=at_least(1), default=None, help="channels; default: 16 on digits, else 32")
    parser.add_argument("--commitment", type=number(zero=False), default=0.25)
    parser.add_argument("--epochs", type=at_least(0), default=None, help="of stage one; default: 40 on digits, else 12")
    parser.add_argument(
        "--prior-epochs", type=at_least(0), default=None, help="of stage two; default: 40 on digits, else 24"
    )
    parser.add_argument("--prior-hidden", type=at_least(1), default=32)
    parser.add_argument("--prior-layers", type=at_least(1), default=3)
    parser.add_argument("--batch-size", type=at_least(1), default=100)
    parser.add_argument("--learning-rate", type=number(zero=False), default=2e-3)
    parser.add_argument(
        "--train-size", type=at_least(1), default=None, help="train on the first so many data; default: 10000"
    )
    parser.add_argument("--test-size", type=at_least(1), default=None, help="evaluate on the first so many test data")
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=at_least(1), default=None, help="CPU threads; default: torch's own choice")
    parser.add_argument("--out", type=Path, default=Path("runs/vqvae"))
    parser.add_argument("--quick", action="store_true", help="a few seconds: tiny everything, to see that it runs")
    parser.add_argument("--no-progress", action="store_true")
    args = parser.parse_args(argv)
    if args.device not in ("auto", "cpu", "cuda") and not args.device.removeprefix("cuda:").isdigit():
        parser.error(f"argument --device: must be auto, cpu, cuda or cuda:0, cuda:1, ...; got {args.device!r}")
    args.data = args.data or ("digits" if args.quick else "mnist")
    digits = args.data == "digits"
    usual = {
        "num_codes": 32 if digits else 64,
        "downsampling": 2 if digits else 4,
        "hidden": 16 if digits else 32,
        "epochs": 40 if digits else 12,
        "prior_epochs": 40 if digits else 24,
        "train_size": 10_000,
        "test_size": 2_000,
    }
    quick = {"epochs": 3, "prior_epochs": 3, "test_size": 100, "train_size": 1000}
    for name, value in (usual | quick if args.quick else usual).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if min(args.epochs, args.prior_epochs) < 1:
        parser.error("--epochs and --prior-epochs must be at least 1")
    return args


def main(argv: list[str] | None = None) -> pd.DataFrame:
    args = arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    progress = not args.no_progress
    data = pv.datasets.load(args.data, binarize=args.binarize, flatten=False)
    train, val, test = data.train[: args.train_size], data.val[: args.test_size], data.test[: args.test_size]
    args.out.mkdir(parents=True, exist_ok=True)
    common = {
        "validation": val,
        "batch_transform": data.batch_transform,
        "batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
        "seed": args.seed,
        "progress": progress,
    }

    torch.manual_seed(args.seed)
    vqvae = VQVAE(
        data.event_shape,
        num_codes=args.num_codes,
        code_dim=args.code_dim,
        downsampling=args.downsampling,
        hidden=args.hidden,
        commitment=args.commitment,
    )
    print(f"stage one: {len(train)} images, {args.epochs} epochs, {vqvae.grid_shape} codes of {args.num_codes}")
    start = time.perf_counter()
    in_use: list[float] = []
    stage_one = pv.fit(
        vqvae,
        train,
        epochs=args.epochs,
        device=args.device,
        callbacks=[lambda run: in_use.append(perplexity(vqvae.quantizer.counts))],  # append gives None: it goes on
        **common,
    )
    seconds = {"uniform": time.perf_counter() - start}
    results = {"uniform": pv.log_marginal(vqvae, test, num_samples=2, seed=args.seed, progress=False)}
    terms = {"uniform": pv.elbo_terms(vqvae, test, num_samples=1, progress=False).summary()}
    uniform_samples = vqvae.decode(vqvae.sample_latents(36, seed=args.seed))

    print(f"stage two: a PixelCNN over the codes, {args.prior_epochs} epochs", flush=True)
    start = time.perf_counter()
    stage_two = vqvae.fit_prior(
        train,
        prior_options={"hidden": args.prior_hidden, "num_layers": args.prior_layers},
        epochs=args.prior_epochs,
        **common,
    )
    seconds["pixelcnn"] = time.perf_counter() - start
    results["pixelcnn"] = pv.log_marginal(vqvae, test, num_samples=2, seed=args.seed, progress=False)
    terms["pixelcnn"] = pv.elbo_terms(vqvae, test, num_samples=1, progress=False).summary()
    learnt_samples = vqvae.decode(vqvae.sample_latents(36, seed=args.seed))

    counts = vqvae.code_counts(test)
    table = pv.compare(results, reference="uniform").loc[list(results)]
    for name in table.index:
        table.loc[name, "reconstruction"] = -terms[name]["reconstruction"]
        table.loc[name, "rate"] = terms[name]["kl"]
        table.loc[name, "train_seconds"] = seconds[name]
        results[name].pointwise.to_csv(args.out / f"{name}.pointwise.csv", index_label="datum")
    table["perplexity"] = perplexity(counts)
    table["usage"] = float((counts > 0).float().mean())
    table.rename_axis("model").to_csv(args.out / "comparison.csv")
    vqvae.save(args.out / "vqvae.safetensors")
    settings = {**vars(args), "out": str(args.out), "data_hash": results["uniform"].provenance.data_hash}
    (args.out / "settings.json").write_text(json.dumps(settings, indent=2))
    pictures(args.out, vqvae, data.image_shape, test, counts, uniform_samples, learnt_samples)
    curves(args.out, stage_one, stage_two, in_use)
    report(table, vqvae, args, len(test), len(train))
    return table


def pictures(
    out: Path,
    vqvae: VQVAE,
    image_shape: tuple[int, int, int],
    test: torch.Tensor,
    counts: torch.Tensor,
    uniform_samples: torch.Tensor,
    learnt_samples: torch.Tensor,
) -> None:
    figure, ax = plt.subplots(figsize=(8, 2.0), layout="constrained")
    pv.plots.reconstructions(vqvae, test[:10], image_shape, title="test images and their reconstructions", ax=ax)
    figure.savefig(out / "reconstructions.png", dpi=150)
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.9), layout="constrained")
    for ax, images, title in zip(
        axes, (uniform_samples, learnt_samples), ("codes drawn uniformly", "codes drawn by the PixelCNN"), strict=True
    ):
        pv.plots.images(images, image_shape, columns=6, title=title, ax=ax)
    figure.savefig(out / "samples.png", dpi=150)
    figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    pv.plots.codebook_usage(counts, title=f"codes of {len(test)} test images", ax=ax)
    figure.savefig(out / "codebook.png", dpi=150)
    plt.close("all")


def curves(out: Path, stage_one: pv.FitResult, stage_two: pv.FitResult, in_use: list[float]) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    pv.plots.curves({"stage one": stage_one}, ax=axes[0])
    axes[0].set(title="log p(x | z) - commitment", ylabel="validation (nats)")
    axes[1].plot(range(1, len(in_use) + 1), in_use)
    axes[1].set(title="perplexity of the codebook", xlabel="epoch", ylabel="training (running means)")
    pv.plots.curves({"stage two": stage_two}, ax=axes[2])
    axes[2].set(title="log p(z)", ylabel="validation (nats)")
    for ax in axes:
        ax.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(out / "curves.png", dpi=150)
    plt.close(figure)


def report(table: pd.DataFrame, vqvae: VQVAE, args: argparse.Namespace, num_test: int, num_train: int) -> None:
    height, width = vqvae.grid_shape
    print(
        f"\n{args.data} ({args.binarize}), trained on {num_train}, {num_test} test data; {height}×{width} codes of "
        f"{args.num_codes}. A bound log p(x, z(x)) on log p(x), in nats per datum:"
    )
    shown = ["log_px", "se_data", "diff", "diff_se", "bits_per_dim", "reconstruction", "rate", "perplexity", "usage"]
    formats = {"bits_per_dim": "{:.4f}", "usage": "{:.0%}", "perplexity": "{:.1f}", "train_seconds": "{:.0f}"}
    columns = table[[*shown, "train_seconds"]].rename(columns={"log_px": "bound"})
    print(columns.apply(lambda c: c.map(formats.get(str(c.name), "{:.3f}").format)).to_string())
    print(
        f"\nbound = -reconstruction - rate; reconstruction is -log p(x | z), rate is -log p(z). diff ± diff_se: "
        f"against the uniform prior, datum by datum. Tables, pictures and the model: {args.out}"
    )


if __name__ == "__main__":
    main()
