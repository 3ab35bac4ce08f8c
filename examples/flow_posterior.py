"""Which approximate posterior is better, by how much, and can the number be trusted?

Trains one VAE per posterior with the same prior, likelihood, networks, data and number of epochs, evaluates each by
importance-sampled log p(x) (L_5000), and prints one table. Writes the table and the per-datum results (CSV), the
training curves, reconstructions, samples and a forest plot of paired differences (PNG), and the models. With several
priors every posterior is trained with each. With --same-model every posterior is trained once more, for the first one's
prior and decoder, which stay as they are: is its model better, or its bound tighter?

    python examples/flow_posterior.py                                       # digits, seven posteriors, minutes on a CPU
    python examples/flow_posterior.py --posteriors mean_field iaf --same-model --seeds 0 1 2
    python examples/flow_posterior.py --posteriors mean_field --priors standard_normal mixture vamp flow
    python examples/flow_posterior.py --data mnist --epochs 200 --posteriors mean_field planar sylvester iaf --seeds 0 1
    torchrun --nproc-per-node 2 examples/flow_posterior.py --data mnist    # two GPUs share the work
"""

import argparse
import json
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import torch
from command_line import at_least, number

import pyrovae as pv

POSTERIORS = ["mean_field", "full_rank", "planar", "radial", "sylvester", "iaf", "neural_spline"]


def part(kind: str) -> Callable[[str], str]:
    """The type of an argument that names a posterior or a prior; errors say which name was meant."""

    def name(text: str) -> str:
        try:
            options: Any = {kind: text}
            pv.VAE((4,), 2, **options)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return text

    return name


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", choices=list(pv.datasets.DATASETS))
    known = ", ".join(pv.posteriors.POSTERIORS)
    parser.add_argument("--posteriors", nargs="+", default=POSTERIORS, type=part("posterior"), help=f"of {known}")
    known = ", ".join(pv.priors.PRIORS)
    parser.add_argument("--priors", nargs="+", default=["standard_normal"], type=part("prior"), help=f"of {known}")
    parser.add_argument("--same-model", action="store_true", help="tighter bound, or better model?")
    parser.add_argument(
        "--likelihood",
        default=None,
        choices=list(pv.likelihoods.LIKELIHOODS),
        help="default: bernoulli; categorical for frey_faces",
    )
    parser.add_argument("--binarize", default="dynamic", choices=["dynamic", "static", "threshold"])
    parser.add_argument("--network", default="mlp", choices=["mlp", "gated_mlp", "conv"])
    parser.add_argument(
        "--hidden", nargs="+", type=at_least(1), default=None, help="default: 128 128 on digits, else 300 300"
    )
    parser.add_argument("--latent-dim", type=at_least(1), default=None, help="default: 8 on digits, else 40")
    parser.add_argument("--epochs", type=at_least(0), default=None, help="default: 150")
    parser.add_argument(
        "--warmup", type=number(zero=False), default=None, help="epochs of KL warm-up; default: a third, at most 100"
    )
    parser.add_argument("--batch-size", type=at_least(1), default=100)
    parser.add_argument("--learning-rate", type=number(zero=False), default=1e-3)
    parser.add_argument(
        "--patience", type=at_least(1), default=None, help="stop early after so many epochs without gain"
    )
    parser.add_argument("--seeds", nargs="+", type=at_least(0), default=[0], help="all share one compiled step")
    parser.add_argument("--num-samples", type=at_least(1), default=None, help="K of L_K; default: 5000")
    parser.add_argument("--test-size", type=at_least(1), default=None, help="evaluate on the first so many test data")
    parser.add_argument("--device", default="auto", help="default: CUDA if there is any; each torchrun process its own")
    parser.add_argument("--threads", type=at_least(1), default=None, help="CPU threads; default: torch's own choice")
    parser.add_argument("--out", type=Path, default=Path("runs/flow_posterior"))
    parser.add_argument("--quick", action="store_true", help="a few seconds: tiny everything, to see that it runs")
    parser.add_argument("--no-progress", action="store_true")
    args = parser.parse_args(argv)
    if args.device not in ("auto", "cpu", "cuda") and not args.device.removeprefix("cuda:").isdigit():
        parser.error(f"argument --device: must be auto, cpu, cuda or cuda:0, cuda:1, ...; got {args.device!r}")
    quick = {"epochs": 3, "num_samples": 100, "test_size": 40}
    usual = {"epochs": 150, "num_samples": 5000, "test_size": None}
    for name, value in (quick if args.quick else usual).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    digits = args.data == "digits"
    args.latent_dim = (8 if digits else 40) if args.latent_dim is None else args.latent_dim
    args.hidden = args.hidden or ([128, 128] if digits else [300, 300])
    args.warmup = min(args.epochs / 3, 100) if args.warmup is None else args.warmup
    args.likelihood = args.likelihood or ("categorical" if args.data == "frey_faces" else "bernoulli")
    for name in ("posteriors", "priors", "seeds"):
        setattr(args, name, list(dict.fromkeys(getattr(args, name))))
    if args.epochs < 1:
        parser.error("--epochs must be at least 1")
    for posterior, prior in product(args.posteriors, args.priors):  # fail before training anything
        try:
            pv.VAE((4,), args.latent_dim, posterior=posterior, prior=prior)
        except ValueError as error:
            parser.error(f"--posteriors {posterior} --priors {prior}: {error}")
    return args


def training(args: argparse.Namespace) -> dict[str, Any]:
    """The options of ``fit`` that all models have in common."""
    shared = ("epochs", "batch_size", "learning_rate", "patience", "device")
    return {**{name: getattr(args, name) for name in shared}, "progress": not args.no_progress}


def label(args: argparse.Namespace, posterior: str, prior: str, seed: int | None = None) -> str:
    """What a model is called in tables: by what distinguishes it."""
    name = posterior if len(args.priors) == 1 else f"{posterior} / {prior}"
    return name if seed is None or len(args.seeds) == 1 else f"{name} #{seed}"


def stem(name: str) -> str:
    """The name of a model's files."""
    return name.replace(" / ", "-").replace(" #", "-seed")


def main(argv: list[str] | None = None) -> pd.DataFrame:
    args = arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    progress, main_process = not args.no_progress, pv.is_main_process()  # under torchrun one process prints and writes
    binarize = args.binarize if args.likelihood == "bernoulli" else None
    data = pv.datasets.load(args.data, binarize=binarize, flatten=args.network != "conv")
    settings = {
        "event_shape": data.event_shape,
        "latent_dim": args.latent_dim,
        "hidden": args.hidden,
        "network": args.network,
        "likelihood": args.likelihood,
    }
    if args.likelihood == "categorical" and data.name == "digits":
        settings["likelihood_options"] = {"num_levels": 17}
    test = data.test[: args.test_size]
    if main_process:
        args.out.mkdir(parents=True, exist_ok=True)

    models, runs, results, seconds = {}, {}, {}, {}
    for posterior, prior, seed in product(args.posteriors, args.priors, args.seeds):
        name = label(args, posterior, prior, seed)
        if main_process:
            print(f"{name}: training", flush=True)
        torch.manual_seed(seed)
        vae = pv.VAE(posterior=posterior, prior=prior, **settings)
        warmup = pv.ELBO(beta=pv.linear_warmup(args.warmup) if args.warmup > 0 else 1.0)
        start = time.perf_counter()
        runs[name] = pv.fit(vae, data, objective=warmup, seed=seed, **training(args))
        trained = time.perf_counter()
        results[name] = pv.log_marginal(vae, test, num_samples=args.num_samples, progress=progress)
        seconds[name] = {"train_seconds": trained - start, "eval_seconds": time.perf_counter() - trained}
        models[name] = vae
        if main_process:
            vae.save(args.out / f"{stem(name)}.safetensors")
            results[name].pointwise.to_csv(args.out / f"{stem(name)}.pointwise.csv", index_label="datum")
            results[name].bound_table().to_csv(args.out / f"{stem(name)}.bounds.csv")

    table = pv.compare(results).join(pd.DataFrame(seconds).T)
    table["best_epoch"] = [runs[name].best_epoch for name in table.index]
    same = on_the_same_model(models, results, data, test, args) if args.same_model else None
    if main_process:
        table.to_csv(args.out / "comparison.csv")
        facts = {**vars(args), "out": str(args.out), "data_hash": next(iter(results.values())).provenance.data_hash}
        (args.out / "settings.json").write_text(json.dumps(facts, indent=2))
        pictures(args.out, data, test, models, runs, table)
        report(table, results, args)
        if same is not None:
            same.to_csv(args.out / "same_model.csv", index_label="model")
            print(
                "\nBetter model or tighter bound? Every posterior trained for the prior and decoder of the first, so "
                f"that log p(x) is the same:\n{same.round(4).to_string()}"
            )
    return table


def on_the_same_model(
    models: dict, results: dict, data: pv.datasets.Data, test: torch.Tensor, args: argparse.Namespace
) -> pd.DataFrame:
    """What each posterior gains over the first: by the model that it made possible, and by its bound alone.

    ``better_model`` is the difference in log p(x) of the models trained with either; ``tighter_bound`` that of the
    ELBOs of posteriors trained for one prior and decoder, those of the first. The standard errors are over data and, of
    several, over seeds; ``better_model`` is as good as L_K is.
    """
    rows = {}
    for prior in args.priors:
        trained: dict[str, list[pv.MarginalResult]] = {}
        refitted: dict[str, list[pv.MarginalResult]] = {}
        for posterior in args.posteriors:
            trained[posterior] = [results[label(args, posterior, prior, seed)] for seed in args.seeds]
            refitted[posterior] = []
            for seed in args.seeds:
                first = models[label(args, args.posteriors[0], prior, seed)]
                if pv.is_main_process():
                    print(f"{label(args, posterior, prior, seed)}: training for the decoder of the first", flush=True)
                model, _ = pv.refit_posterior(first, data, posterior, seed=seed, **training(args))
                options = {"num_samples": args.num_samples, "progress": not args.no_progress}
                refitted[posterior].append(pv.log_marginal(model, test, **options))
        better = pv.compare(trained)
        elbo = {name: pd.concat([r.pointwise["elbo"] for r in some], axis=1) for name, some in refitted.items()}
        for posterior in args.posteriors:
            tighter = elbo[posterior] - elbo[args.posteriors[0]]  # by datum and seed
            over_data: Any = tighter.mean(axis=1).sem()
            over_seeds: Any = tighter.mean().sem() if len(args.seeds) > 1 else 0.0
            rows[label(args, posterior, prior)] = {
                "neg_elbo": better.loc[posterior, "neg_elbo"],
                "log_px": better.loc[posterior, "log_px"],
                "better_model": better.loc[posterior, "diff"],
                "better_se": better.loc[posterior, "diff_se"],
                "same_neg_elbo": -elbo[posterior].mean().mean(),
                "same_log_px": pd.concat([r.pointwise["log_px"] for r in refitted[posterior]]).mean(),
                "tighter_bound": tighter.mean().mean(),
                "tighter_se": (over_data**2 + over_seeds**2) ** 0.5,
            }
    return pd.DataFrame(rows).T


def pictures(
    out: Path, data: pv.datasets.Data, test: torch.Tensor, models: dict, runs: dict, table: pd.DataFrame
) -> None:
    for kind in ("curves", "forest"):
        figure, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
        pv.plots.curves(runs, ax=ax) if kind == "curves" else pv.plots.forest(table, ax=ax)
        figure.savefig(out / f"{kind}.png", dpi=150)
    for kind in ("reconstructions", "samples"):
        height = 1.6 if kind == "reconstructions" else 1.8
        figure, axes = plt.subplots(
            len(models), 1, figsize=(7, height * len(models)), squeeze=False, layout="constrained"
        )
        for (name, model), ax in zip(models.items(), axes[:, 0], strict=True):
            if kind == "reconstructions":
                pv.plots.reconstructions(model, test[:10], data.image_shape, title=name, ax=ax)
            else:
                pv.plots.samples(model, data.image_shape, title=name, ax=ax)
        figure.savefig(out / f"{kind}.png", dpi=150)
    plt.close("all")


def report(table: pd.DataFrame, results: dict[str, pv.MarginalResult], args: argparse.Namespace) -> None:
    first = next(iter(results.values()))
    shown = ["log_px", "se_data", "diff", "diff_se", "mc_se", "neg_elbo", "median_ess", "median_khat", "khat_high"]
    shown += ["bits_per_dim"] * first.discrete + ["train_seconds", "eval_seconds"]
    print(
        f"\n{args.data}, {len(first.pointwise)} test data ({first.provenance.data_hash}), L_{first.num_samples}, "
        f"nats per datum:"
    )
    formats = {"log_px": "{:.3f}", "neg_elbo": "{:.3f}", "median_ess": "{:.0f}", "khat_high": "{:.1%}"}
    formats |= {"median_khat": "{:.2f}", "train_seconds": "{:.1f}", "eval_seconds": "{:.1f}"}
    print(table[shown].apply(lambda c: c.map(formats.get(str(c.name), "{:.4f}").format)).to_string())
    if len(args.seeds) > 1:
        over_seeds = {
            label(args, *parts): [results[label(args, *parts, seed)] for seed in args.seeds]
            for parts in product(args.posteriors, args.priors)
        }
        print(f"\nOver {len(args.seeds)} training seeds, which the intervals take into account:")
        columns = ["log_px", "seed_sd", "diff", "diff_se", "diff_low", "diff_high", "neg_elbo"]
        print(pv.compare(over_seeds)[columns].round(4).to_string())
    else:
        print(
            "\nOne training seed: diff_se covers the choice of test data, not how training came out. Try --seeds 0 1 2."
        )
    print("\nHow far a mean may be from that of log p(x), for having so many draws:")
    for name, result in results.items():
        print(f"{name}: {result.verdict}")
    print(f"\ndiff ± diff_se: against {next(iter(results))}, datum by datum. Tables, pictures and models: {args.out}")


if __name__ == "__main__":
    main()
