"""When does the decoder ignore z, and which remedy brings z back at what price?

A PixelCNN decoder models images without any help from z, so that the posterior collapses onto the prior. Trains the
reference (an MLP decoder, which needs z), the PixelCNN alone (no z at all), the strong decoder plainly, and with one
remedy at a time; then prints one table and draws what happened.

    python examples/posterior_collapse.py                             # digits, minutes on one core
    python examples/posterior_collapse.py --remedies none free_bits   # some remedies only
    python examples/posterior_collapse.py --decoder gru
    python examples/posterior_collapse.py --data mnist --train-size 5000 --epochs 20
"""

import argparse
import json
import math
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import torch
from command_line import at_least, number

import pyrovae as pv
from pyrovae.zoo import PixelCNN, PixelVAE

MLP, ALONE = "mlp", "alone"  # beside the remedies: a decoder that needs z, and the strong one without z


@dataclass
class Remedy:
    """What differs from plain training."""

    title: str
    model: dict[str, Any] = field(default_factory=dict)
    objective: pv.ELBO = field(default_factory=pv.ELBO)
    lagging: bool = False


def remedies(args: argparse.Namespace) -> dict[str, Remedy]:
    pixels = args.decoder == "pixelcnn"
    known = {
        "none": Remedy("no remedy"),
        "warmup": Remedy("KL warm-up, linear", objective=pv.ELBO(beta=pv.linear_warmup(args.epochs / 2))),
        "cyclical": Remedy("KL warm-up, cyclical", objective=pv.ELBO(beta=pv.cyclical(args.epochs / 5, cycles=4))),
        "free_bits": Remedy(f"free bits, {args.free_bits:g} nats", objective=pv.ELBO(free_bits=args.free_bits)),
        "beta": Remedy(f"β = {args.beta:g}", objective=pv.ELBO(beta=args.beta)),
        "lagging": Remedy(f"lagging, 1 in {args.every}", lagging=True),
        "dropout": Remedy(f"input dropout {args.dropout:g}", model={"input_dropout": args.dropout}),
    }
    known["map"] = Remedy("z as a map", model={"conditioning": "map", "context_dim": 8})
    if pixels:
        weak = {"hidden": args.hidden_channels, "num_layers": 1, "kernel_size": 3}
        # What lies beyond its neighbours the decoder can only learn from z, which must say it pixel by pixel.
        known["small_field"] = Remedy("small field, z a map", model=known["map"].model | {"decoder_options": weak})
    committed = {"prior": "ar1", "prior_options": {"delta": args.rate}}
    known["delta"] = Remedy(f"δ-VAE, {args.rate:g} nats", model=committed)
    return known


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", choices=list(pv.datasets.DATASETS))
    parser.add_argument("--remedies", nargs="+", default=None, help="default: all; 'none' is plain training")
    parser.add_argument("--decoder", default="pixelcnn", choices=["pixelcnn", "gru"])
    parser.add_argument("--hidden-channels", type=at_least(1), default=None, help="of the decoder; default: 32, GRU 96")
    parser.add_argument("--layers", type=at_least(1), default=None, help="of the PixelCNN; default: 5, on digits 3")
    parser.add_argument("--latent-dim", type=at_least(1), default=None, help="default: 8 on digits, else 16")
    parser.add_argument("--free-bits", type=number(zero=True), default=0.5, help="nats per latent dimension")
    parser.add_argument("--beta", type=number(zero=True), default=0.4, help="weight of the KL, for the remedy 'beta'")
    parser.add_argument("--dropout", type=number(zero=True), default=0.5, help="of the decoder's inputs")
    parser.add_argument("--every", type=at_least(1), default=5, help="steps of the encoder for one of the decoder")
    parser.add_argument("--rate", type=number(zero=False), default=2.0, help="nats committed by the δ-VAE")
    parser.add_argument("--epochs", type=at_least(0), default=None, help="default: 24")
    parser.add_argument("--batch-size", type=at_least(1), default=100)
    parser.add_argument("--learning-rate", type=number(zero=False), default=2e-3)
    parser.add_argument("--train-size", type=at_least(1), default=None, help="train on the first so many data")
    parser.add_argument(
        "--test-size", type=at_least(1), default=None, help="evaluate on the first so many; default: 200"
    )
    parser.add_argument("--num-samples", type=at_least(1), default=None, help="K of L_K; default: 100")
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--threads", type=at_least(1), default=None, help="CPU threads; default: torch's own choice")
    parser.add_argument("--out", type=Path, default=Path("runs/posterior_collapse"))
    parser.add_argument("--quick", action="store_true", help="a few seconds: tiny everything, to see that it runs")
    parser.add_argument("--no-progress", action="store_true")
    args = parser.parse_args(argv)
    quick = {"epochs": 2, "num_samples": 20, "test_size": 30, "train_size": 150, "layers": 2}
    quick["hidden_channels"] = 8 if args.decoder == "pixelcnn" else 32
    usual = {"epochs": 24, "num_samples": 100, "test_size": 200, "train_size": None}
    for name, value in (quick if args.quick else usual).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    digits = args.data == "digits"
    args.latent_dim = (8 if digits else 16) if args.latent_dim is None else args.latent_dim
    args.layers = (3 if digits else 5) if args.layers is None else args.layers
    if args.hidden_channels is None:
        args.hidden_channels = 32 if args.decoder == "pixelcnn" else 96
    if args.epochs < 1:
        parser.error("--epochs must be at least 1")
    known = remedies(args)
    args.remedies = list(dict.fromkeys(args.remedies or known))
    for name in args.remedies:
        if name not in known:
            parser.error(f"unknown remedy {name!r}; there are {', '.join(known)}")
    return args


def main(argv: list[str] | None = None) -> pd.DataFrame:
    args = arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    data = pv.datasets.load(args.data, binarize="threshold", flatten=False)
    args.out.mkdir(parents=True, exist_ok=True)
    hidden = [128] if args.data == "digits" else [256]
    options = {"hidden": args.hidden_channels}
    if args.decoder == "pixelcnn":
        options |= {"num_layers": args.layers, "kernel_size": 5}
    shared: dict[str, Any] = {"event_shape": data.event_shape, "latent_dim": args.latent_dim, "hidden": hidden}
    # z is told as a vector, the same for all pixels; "as a map" it is harder to ignore.
    strong = shared | {"decoder": args.decoder, "decoder_options": options, "conditioning": "vector", "context_dim": 16}

    known = {
        MLP: Remedy("MLP decoder"),
        ALONE: Remedy("PixelCNN alone" if args.decoder == "pixelcnn" else "GRU alone"),
        **remedies(args),
    }
    trained: dict[str, tuple[pv.VAEModel, pv.FitResult]] = {}
    rows, reports, results = {}, {}, {}
    for name in [MLP, ALONE, *args.remedies]:
        remedy = known[name]
        torch.manual_seed(args.seed)
        if name == MLP:
            model: pv.VAEModel = pv.VAE(**shared)
        elif name == ALONE:
            model = PixelCNN(data.event_shape, decoder=args.decoder, decoder_options=options)
        else:
            model = PixelVAE(**(strong | remedy.model))
        print(f"{remedy.title}: training", flush=True)
        start = time.perf_counter()
        run = train(model, data, remedy, args)
        seconds = time.perf_counter() - start
        result, report = evaluate(model, data, args)
        rows[name] = {"title": remedy.title, **figures(result, report), "train_seconds": seconds}
        trained[remedy.title], results[name] = (model, run), result
        if report is not None:
            reports[remedy.title] = report
        model.save(args.out / f"{name}.safetensors")
        run.history.to_csv(args.out / f"{name}.history.csv")
        result.pointwise.to_csv(args.out / f"{name}.pointwise.csv", index_label="datum")

    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")
    if "none" in results:  # datum by datum; the PixelCNN alone needs no draws, so that its K differs
        log_px = pd.DataFrame({name: result.pointwise["log_px"] for name, result in results.items()})
        differences = log_px.sub(log_px["none"], axis=0)
        place = list(table.columns).index("se") + 1
        table.insert(place, "diff", differences.mean())
        table.insert(place + 1, "diff_se", differences.sem())
    table.to_csv(args.out / "comparison.csv")
    (args.out / "settings.json").write_text(json.dumps({**vars(args), "out": str(args.out)}, indent=2))
    pictures(args, data, trained, reports)
    print(
        f"\n{args.data}, trained on {len(data.train[: args.train_size])} images for {args.epochs} epochs, evaluated on "
        f"{len(data.test[: args.test_size])}; nats per datum, L_K with K = {args.num_samples}, seed {args.seed}:"
    )
    shown = table.set_index("title").round(2)
    shown["active"] = shown["active"].map("{:.0f}".format, na_action="ignore")
    print(shown.to_string(na_rep=""))
    print(
        f"\nactive: latent dimensions whose posterior mean varies with x, of {args.latent_dim}; rate:\n"
        f"KL(q(z|x) ‖ p(z)); mi: I(x; z), at most log of the number of data; alone: no z, so that log p(x) is exact.\n"
        f"diff ± diff_se: log_px over that without a remedy, datum by datum; they do not cover other training seeds.\n"
        f"One training seed. Tables, pictures and models: {args.out}"
    )
    return table


def train(model: pv.VAEModel, data: pv.datasets.Data, remedy: Remedy, args: argparse.Namespace) -> pv.FitResult:
    x = data.train[: args.train_size]
    optimizer, epochs = None, args.epochs
    if (
        remedy.lagging
    ):  # for as long as half of the others' training; then on, until the decoder has had as many updates
        steps = math.ceil(len(x) / args.batch_size) * args.epochs // 2
        epochs += round(args.epochs / 2 * (1 - 1 / args.every))
        optimizer = pv.lagging_inference(model.decoder, every=args.every, steps=steps, learning_rate=args.learning_rate)
    callbacks = [] if isinstance(model, PixelCNN) else [pv.CollapseMonitor(data.val[:100], num_samples=4)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="posterior collapse at epoch")  # it is what we came to see
        return pv.fit(
            model,
            x,
            validation=data.val[:1000],
            objective=remedy.objective,
            epochs=epochs,
            batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            optimizer=optimizer,
            callbacks=callbacks,
            seed=args.seed,
            progress=not args.no_progress,
        )


def evaluate(
    model: pv.VAEModel, data: pv.datasets.Data, args: argparse.Namespace
) -> tuple[pv.MarginalResult, pv.CollapseReport | None]:
    x, progress = data.test[: args.test_size], not args.no_progress
    if isinstance(model, PixelCNN):
        return pv.log_marginal(model, x, num_samples=1, progress=progress), None
    result = pv.log_marginal(model, x, num_samples=args.num_samples, progress=progress)
    return result, pv.collapse(model, x, num_samples=16, progress=progress)


def figures(result: pv.MarginalResult, report: pv.CollapseReport | None) -> dict[str, float]:
    log_px, se = result.summary()[["log_px", "se_data"]]
    if report is None:
        return {"neg_elbo": -log_px, "log_px": log_px, "se": se}
    return {
        "neg_elbo": -report.elbo,
        "log_px": log_px,
        "se": se,
        "distortion": report.distortion,
        "rate": report.rate,
        "active": int(report.sites["active"].sum()),
        "mi": report.mutual_information,
    }


def pictures(
    args: argparse.Namespace,
    data: pv.datasets.Data,
    trained: dict[str, tuple[pv.VAEModel, pv.FitResult]],
    reports: dict[str, pv.CollapseReport],
) -> None:
    with_z = {title: pair for title, pair in trained.items() if title in reports}
    figure, ax = plt.subplots(figsize=(9.5, 5), layout="constrained")
    pv.plots.curves({title: run for title, (_, run) in with_z.items()}, column="rate", ax=ax)
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    ax.set_title("Rate while training")
    figure.savefig(args.out / "rate.png", dpi=150, bbox_inches="tight")
    figure, ax = plt.subplots(figsize=(7, 0.4 * len(reports) + 1.3), layout="constrained")
    pv.plots.active_units(reports, ax=ax)
    figure.savefig(args.out / "active_units.png", dpi=150, bbox_inches="tight")

    shown, columns = data.test[:10], 10
    # One draw of x given one draw of z: means would blur what the decoder adds.
    strips, labels = [shown], ["data"]
    for title, (model, _) in with_z.items():
        strips.append(redraw(model, shown, args.seed))
        labels.append(title)
    figure, ax = plt.subplots(figsize=(9, 0.68 * len(labels) + 0.6), layout="constrained")
    pv.plots.images(torch.cat(strips), data.image_shape, columns=columns, row_labels=labels, ax=ax)
    ax.set_title("One draw x ~ p(x | z), z ~ q(z | data): does it show the same digit?")
    figure.savefig(args.out / "reconstructions.png", dpi=150, bbox_inches="tight")
    strips = [model.sample(columns, seed=args.seed) for model, _ in trained.values()]
    figure, ax = plt.subplots(figsize=(9, 0.68 * len(strips) + 0.6), layout="constrained")
    pv.plots.images(torch.cat(strips), data.image_shape, columns=columns, row_labels=list(trained), ax=ax)
    ax.set_title("Samples, z ~ p(z)")
    figure.savefig(args.out / "samples.png", dpi=150, bbox_inches="tight")
    plt.close("all")


def redraw(model: pv.VAE, x: torch.Tensor, seed: int) -> torch.Tensor:
    z = model.encode(x, num_samples=1, seed=seed)[0]
    torch.manual_seed(seed)
    with torch.no_grad():
        return model.p(z).sample()


if __name__ == "__main__":
    main()
