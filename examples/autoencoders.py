"""What do the autoencoders of the lecture learn: which reconstructs, which denoises, whose code is sparse or stable?

Trains a linear, a deep, a stacked, two denoising, two sparse and two contractive autoencoders on the same data, and the
plain shallow one that the sparse and contractive ones are to be compared with. Prints one table: the error of
reconstructing test data from themselves, from noisy and from masked ones, how active the code is, how far it moves with
the data, and the time. Writes the table (CSV), reconstructions, a denoising strip and two-dimensional codes (PNG), and
the models.

    python examples/autoencoders.py                                 # 8x8 digits, under a minute on a CPU
    python examples/autoencoders.py --data mnist --epochs 10        # minutes
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
from pyrovae import zoo

SHOWN = 12  # data in the strips


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", choices=list(pv.datasets.DATASETS))
    parser.add_argument(
        "--hidden", nargs="+", type=at_least(1), default=None, help="default: 128 64 on digits, else 256 128"
    )
    parser.add_argument(
        "--code-dim", type=at_least(1), default=None, help="of the bottlenecks; default: 16 on digits, else 32"
    )
    wide = "size of the codes that penalties are put on; default: 64 on digits, else 256"
    parser.add_argument("--wide", type=at_least(1), default=None, help=wide)
    parser.add_argument(
        "--noise", type=number(zero=False), default=0.4, help="standard deviation of the Gaussian noise"
    )
    parser.add_argument(
        "--masked", type=number(zero=False), default=0.4, help="fraction of the pixels that masking noise loses"
    )
    parser.add_argument(
        "--target", type=number(zero=False), default=0.05, help="mean activation that the KL penalty aims at"
    )
    parser.add_argument("--epochs", type=at_least(0), default=None, help="default: 100 on digits, else 10")
    parser.add_argument(
        "--pretrain-epochs", type=at_least(0), default=None, help="of each layer; default: a fifth of --epochs"
    )
    parser.add_argument("--train-size", type=at_least(1), default=None, help="train on the first so many data")
    parser.add_argument("--batch-size", type=at_least(1), default=100)
    parser.add_argument(
        "--learning-rate", type=number(zero=False), default=None, help="default: 3e-3 on digits, else 1e-3"
    )
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--device", default="auto", help="default: CUDA if there is any")
    parser.add_argument("--threads", type=at_least(1), default=None, help="CPU threads; default: torch's own choice")
    parser.add_argument("--out", type=Path, default=Path("runs/autoencoders"))
    parser.add_argument("--quick", action="store_true", help="a few seconds: tiny everything, to see that it runs")
    parser.add_argument("--no-progress", action="store_true")
    args = parser.parse_args(argv)
    if args.device not in ("auto", "cpu", "cuda") and not args.device.removeprefix("cuda:").isdigit():
        parser.error(f"argument --device: must be auto, cpu, cuda or cuda:0, cuda:1, ...; got {args.device!r}")
    digits = args.data == "digits"
    usual = {
        "hidden": [128, 64] if digits else [256, 128],
        "code_dim": 16 if digits else 32,
        "wide": 64 if digits else 256,
        "epochs": 100 if digits else 10,
        "learning_rate": 3e-3 if digits else 1e-3,
        "train_size": None,
    }
    for name, value in (usual | ({"epochs": 25} if args.quick else {})).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.pretrain_epochs is None:
        args.pretrain_epochs = max(1, args.epochs // 5)
    if args.epochs < 1:
        parser.error("--epochs must be at least 1")
    return args


def recipes(event_shape: tuple[int, ...], args: argparse.Namespace) -> dict[str, zoo.Autoencoder]:
    """The models by name, each from the same random state."""
    noise, masked = {"scale": args.noise}, {"fraction": args.masked}
    target = {"target": args.target}
    small, wide, hidden = (event_shape, args.code_dim), (event_shape, args.wide), args.hidden
    makers = {
        "linear": lambda: zoo.linear_autoencoder(*small),
        "deep": lambda: zoo.deep_autoencoder(*small, hidden=hidden),
        "stacked": lambda: zoo.deep_autoencoder(*small, hidden=hidden),
        "denoising (Gaussian)": lambda: zoo.denoising_autoencoder(*small, hidden=hidden, corruption_options=noise),
        "denoising (masking)": lambda: zoo.denoising_autoencoder(
            *small, hidden=hidden, corruption="masking", corruption_options=masked
        ),
        "shallow": lambda: zoo.Autoencoder(*wide, code_activation="sigmoid", tied=True),
        "sparse (L1)": lambda: zoo.sparse_autoencoder(*wide, penalty="l1"),
        "sparse (KL)": lambda: zoo.sparse_autoencoder(*wide, penalty="kl", penalty_options=target),
        "contractive": lambda: zoo.contractive_autoencoder(*wide),
        "contractive (deep)": lambda: zoo.contractive_autoencoder(*wide, hidden=hidden[:1], activation="softplus"),
        "linear, 2-D": lambda: zoo.linear_autoencoder(event_shape, 2),
        "deep, 2-D": lambda: zoo.deep_autoencoder(event_shape, 2, hidden=hidden),
    }
    models = {}
    for name, make in makers.items():
        torch.manual_seed(args.seed)
        models[name] = make()
    return models


def main(argv: list[str] | None = None) -> pd.DataFrame:
    args = arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    data = pv.datasets.load(args.data)
    train, test = data.train[: args.train_size], data.test
    torch.manual_seed(args.seed)
    noisy, masked = zoo.GaussianNoise(scale=args.noise)(test), zoo.MaskingNoise(fraction=args.masked)(test)
    options = {
        "batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
        "seed": args.seed,
        "device": args.device,
        "progress": not args.no_progress,
    }
    print(f"{data.name}: {len(train)} training and {len(test)} test data, {args.epochs} epochs, seed {args.seed}")

    models, rows, starts = recipes(data.event_shape, args), {}, {}
    for name, model in models.items():
        print(f"{name}: training", flush=True)
        begun = time.perf_counter()
        if name in ("stacked", "deep, 2-D"):
            zoo.pretrain(model, train, epochs=args.pretrain_epochs, **options)
        if name in ("deep", "stacked"):
            starts[name] = model.reconstruction_error(test).mean().item()
        pv.fit(model, train, epochs=args.epochs, **options)
        seconds = time.perf_counter() - begun
        model.save(args.out / f"{name.translate(str.maketrans(' ', '_', '(),'))}.safetensors")
        error, code = model.reconstruction_error(test), model.transform(test)
        rows[name] = {
            "code": model.code_dim,
            "error": error.mean().item(),
            "error_se": error.std().item() / len(error) ** 0.5,
            "from_noisy": model.reconstruction_error(test, given=noisy).mean().item(),
            "from_masked": model.reconstruction_error(test, given=masked).mean().item(),
            "activity": code.abs().mean().item(),
            "zeros": (code == 0).float().mean().item(),
            "jacobian": model.squared_jacobian_norm(test[:1000]).mean().item(),
            "seconds": seconds,
        }
    table = pd.DataFrame(rows).T.rename_axis("model").astype({"code": int})
    table.to_csv(args.out / "comparison.csv")
    pictures(args.out, data, {"Gaussian": noisy, "masking": masked}, models)
    left_in = [0.5 * (given - test).square().sum(-1).mean().item() for given in (noisy, masked)]
    report(table, starts, left_in, args)
    return table


def pictures(
    out: Path, data: pv.datasets.Data, given: dict[str, torch.Tensor], models: dict[str, zoo.Autoencoder]
) -> None:
    x, shape = data.test[:SHOWN], data.image_shape
    pv.plots.reconstructions(models, x, shape, title="test data and their reconstructions")
    plt.gcf().savefig(out / "reconstructions.png", dpi=150, bbox_inches="tight")
    figure, axes = plt.subplots(2, 1, figsize=(10, 6.8), layout="constrained")
    for ax, (noise, corrupted) in zip(axes, given.items(), strict=True):
        shown = {name: models[name] for name in ("deep", f"denoising ({noise})")}
        pv.plots.denoising(shown, x, corrupted[:SHOWN], shape, title=f"{noise} noise", ax=ax)
    figure.savefig(out / "denoising.png", dpi=150, bbox_inches="tight")
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.5), layout="constrained")
    labels = data.labels.get("test", torch.zeros(len(data.test), dtype=torch.int64))
    for ax, name in zip(axes, ("linear, 2-D", "deep, 2-D"), strict=True):
        pv.plots.codes(models[name].transform(data.test[:1000]), labels[:1000], title=name, ax=ax)
    figure.savefig(out / "codes.png", dpi=150)
    plt.close("all")


def report(table: pd.DataFrame, starts: dict[str, float], left_in: list[float], args: argparse.Namespace) -> None:
    formats = {"code": "{:.0f}", "zeros": "{:.0%}", "seconds": "{:.1f}", "jacobian": "{:.2f}"}
    print("\n" + table.apply(lambda c: c.map(formats.get(str(c.name), "{:.3f}").format)).to_string())
    print(
        f"\nerror: half the squared error of a test datum, -log N(x; reconstruction, 1) in nats without its constant;\n"
        f"error_se: its standard error. from_noisy: given the datum with noise of standard deviation {args.noise:g} "
        f"(noise left in:\n{left_in[0]:.3f}); from_masked: with {args.masked:.0%} of the pixels at 0 (left in: "
        f"{left_in[1]:.3f}). activity: mean |code|;\nzeros: share of codes that are exactly 0; jacobian: squared "
        f"Frobenius norm of d code / d x.\nThe stacked one's error before fine-tuning: {starts['stacked']:.3f}; at "
        f"random weights: {starts['deep']:.3f}.\nTables, pictures and models: {args.out}"
    )


if __name__ == "__main__":
    main()
