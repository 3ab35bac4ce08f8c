"""What a session on a CUDA machine must show: the tests, training and evaluation, each in under four minutes.

    PYROVAE_DATA=... python -m benchmarks.gpu --part train
    PYROVAE_DATA=... python -m benchmarks.gpu --part evaluate
    PYROVAE_DATA=... python -m benchmarks.gpu --part tests

``train``: dynamic MNIST, batches of 100, validation on 10 000 images after every epoch, epochs after the first; a loop
by hand captures its step and its validation, each in one CUDA graph of compiled code, and SVI is timed by 300 steps.
``evaluate``: L_5000 of 10 000 images against the decoder's products alone, AIS, and peak memory. Results are put with
those of other parts into ``benchmarks/results/gpu.json``; the bounds are printed beside the figures.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

import pyrovae as pv
from benchmarks._timing import RESULTS, arguments, write
from benchmarks.log_marginal import products
from benchmarks.training_step import Setting, as_fit, captured_step, mean_field_loss, own_store, recorded, svi
from pyrovae.posteriors import POSTERIORS

BATCH, VALIDATION, EPOCHS, SVI_STEPS = 100, 1000, 4, 300
Row = tuple[str, float, str, bool | None]  # what, figure, unit with bound, whether it is met


# -- training --------------------------------------------------------------------------------------------------------


def by_hand(setting: Setting, held_out: Tensor) -> Iterator[float]:
    """Seconds of one epoch after another with validation, each step and each validation batch one captured graph."""
    vae = setting.vae()
    train, total = captured_step(setting, vae, mean_field_loss)
    held_out_loss = torch.compile(lambda x: mean_field_loss(vae, x))

    @torch.no_grad()
    def validate(x: Tensor) -> None:
        total.add_(held_out_loss(x))

    validation = recorded(validate, held_out[:VALIDATION])
    while True:
        start = time.perf_counter()
        for batch in setting.rows():
            train(batch)
        total.item()
        total.zero_()
        for x in held_out.split(VALIDATION):
            validation(x)
        total.item()
        yield time.perf_counter() - start


def by_svi(setting: Setting, held_out: Tensor) -> float:
    """Seconds of an epoch with validation, by 300 steps and 20 validation batches."""
    with own_store(validate=True)():
        steps = svi(setting, Trace_ELBO())
        list(islice(steps, 20))
        seconds = timed(lambda: list(islice(steps, SVI_STEPS))) / SVI_STEPS
        vae = setting.vae()
        evaluate = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).evaluate_loss
        batches = held_out.split(BATCH)
        evaluate(batches[0])
        validation = timed(lambda: [evaluate(x) for x in batches[:20]]) / 20
    return seconds * len(setting.rows()) + validation * len(batches)


def timed(function: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def models() -> dict[str, Callable[[], Any]]:
    """What must train on a captured engine, with the shape of a datum."""

    def mlp(posterior: str) -> pv.VAE:
        return pv.VAE((784,), 40, hidden=(300, 300), posterior=posterior)

    out: dict[str, Callable[[], Any]] = {name: partial(mlp, name) for name in POSTERIORS}
    out["conv"] = lambda: pv.VAE((1, 28, 28), 40, hidden=(300, 300), network="conv")
    out["vqvae"] = lambda: pv.zoo.VQVAE((1, 28, 28))
    out["row GRU"] = lambda: pv.zoo.PixelCNN((1, 28, 28), decoder="gru")
    return out


def train(seconds: float, names: Sequence[str]) -> tuple[list[Row], dict[str, Any]]:
    deadline = time.perf_counter() + seconds
    data = pv.datasets.load("mnist", binarize="dynamic")
    held_out = data.val.cuda()
    setting = Setting(data.train.cuda(), data.batch_transform, BATCH, "mean_field", "mlp")
    found: dict[str, Any] = {}
    for name, make in models().items():
        if names and name not in names:
            continue
        if time.perf_counter() > deadline:
            found[name] = {"skipped": "no time was left"}
            continue
        torch.manual_seed(0)
        model, shaped = make(), name not in POSTERIORS
        x, val = (t.reshape(-1, 1, 28, 28) if shaped else t for t in (data.train, data.val))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                run = pv.fit(
                    model,
                    x,
                    validation=val,
                    batch_transform=data.batch_transform,
                    epochs=EPOCHS if name == "mean_field" else 3,
                    progress=False,
                    seed=0,
                )
            except Exception as error:
                found[name] = {"error": f"{type(error).__name__}: {error}"[:600]}
                continue
        epochs = run.history["seconds"].tolist()
        found[name] = {
            "engine": run.engine,
            "epochs": epochs,
            "compile_seconds": run.compile_seconds,
            "warnings": [str(w.message)[:400] for w in caught if issubclass(w.category, UserWarning)],
        }
        print(name, found[name], flush=True)
    if names:
        return [], found
    ours = statistics.median(found["mean_field"]["epochs"][1:])
    with as_fit():
        hand = statistics.median(islice(by_hand(setting, held_out), 4))
    slow = by_svi(setting, held_out)
    found |= {"by hand": hand, "SVI": slow}
    whole = {p for p in POSTERIORS if found[p].get("engine") == "cudagraph" and not found[p]["warnings"]}
    conv = "cudagraph" in found["conv"].get("engine", "")
    rows: list[Row] = [
        ("epoch, mean-field MLP, pyrovae", ours, "s", None),
        ("epoch, captured by hand", hand, "s", None),
        ("epoch, SVI.step", slow, "s", None),
        ("pyrovae / by hand", ours / hand, "(at most 1.25)", ours / hand <= 1.25),
        ("SVI / pyrovae", slow / ours, "(at least 15)", slow / ours >= 15),
        ("posteriors on cudagraph without a warning", len(whole), f"of {len(POSTERIORS)}", whole == set(POSTERIORS)),
        ("conv network on a captured engine", float(conv), "of 1", conv),
    ]
    return rows, found


# -- evaluation ------------------------------------------------------------------------------------------------------


def evaluate(seconds: float) -> tuple[list[Row], dict[str, Any]]:
    x = pv.datasets.load("mnist", binarize="static").test.cuda()
    torch.manual_seed(0)
    vae = pv.VAE((784,), 40, hidden=(300, 300)).cuda()
    quiet: dict[str, Any] = {"progress": False, "compile": "inductor"}

    def bound(n: int, k: int) -> Any:
        return pv.log_marginal(vae, x[:n], num_samples=k, **quiet)

    def chains(n: int, temperatures: int = 200) -> Any:
        return pv.ais(vae, x[:n], num_temperatures=temperatures, num_chains=16, num_leapfrog=10, **quiet)

    bound(10_000, 5000)
    ours = min(timed(lambda: bound(10_000, 5000)) for _ in range(2))
    products(vae, 100, 5000, 50_000)
    alone = min(timed(lambda: products(vae, 10_000, 5000, 50_000)) for _ in range(2))
    chains(200, 20)
    gradients: dict[int, float] = {}
    for n in (200, 1000):
        start = time.perf_counter()
        gradients[n] = chains(n).num_gradients / (time.perf_counter() - start) / 1e6
    peak = {}
    for n, k in ((100, 5_000), (100, 50_000), (100, 500_000), (1000, 5_000), (10_000, 5_000)):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        bound(n, k)
        peak[f"{n} x {k}"] = torch.cuda.max_memory_allocated() / 2**30
    flat = max(peak.values()) / min(peak.values())
    rows: list[Row] = [
        ("L_5000 of 10 000 images", ours, "s", None),
        ("its products alone", alone, "s", None),
        ("L_5000 / products", ours / alone, "(at most 1.6)", ours / alone <= 1.6),
        ("AIS, 3 200 chains", gradients[200], "million gradients a second (at least 10)", gradients[200] >= 10),
        ("AIS, 16 000 chains", gradients[1000], "million gradients a second", None),
        ("peak memory, largest / smallest over K and N", flat, "(at most 1.5)", flat <= 1.5),
    ]
    return rows, {"L_5000": ours, "products": alone, "AIS": gradients, "peak GiB": peak}


# -- tests -----------------------------------------------------------------------------------------------------------


def tests(seconds: float) -> tuple[list[Row], dict[str, Any]]:
    """The tests that need CUDA."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-n", "8", f"--junitxml={report}", "--tb=line"]
        try:
            subprocess.run(command, timeout=seconds)
        except subprocess.TimeoutExpired:
            print("the tests did not finish", flush=True)
        if not report.exists():  # time was up: nothing is known of the whole
            return [("failed tests", float("nan"), "(0)", None)], {"finished": False}
        suite = ET.parse(report).getroot()[0]
        counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    bad = counts["failures"] + counts["errors"]
    return [("tests with CUDA", counts["tests"], "", None), ("of these failed", bad, "(0)", bad == 0)], counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["tests", "train", "evaluate"], required=True)
    parser.add_argument("--models", nargs="*", help="of training, these alone: their code is on the disk then")
    parser.add_argument("--seconds", type=float, default=200.0, help="after which nothing new is begun")
    args = arguments(parser)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    parts: dict[str, Any] = {"tests": tests, "train": partial(train, names=args.models), "evaluate": evaluate}
    rows, facts = parts[args.part](args.seconds)
    path = RESULTS / "gpu.json"
    known = json.loads(path.read_text())["parts"] if path.exists() else {}
    device = torch.cuda.get_device_name()
    if args.models:  # to be put beside those of another run
        facts = {name: {**found, "run by itself": True} for name, found in facts.items()}
        known.setdefault(args.part, {}).update(facts)
        print(write("gpu", {"parts": known}))
        return
    known[args.part] = {"commit": commit, "device": device, "torch": torch.__version__, "rows": rows, **facts}
    print(f"\n{device}, torch {torch.__version__}, commit {commit[:10]}")
    for what, figure, unit, met in rows:
        print(f"{what:55} {figure:10.3f} {unit} {'' if met is None else 'met' if met else 'MISSED'}")
    print(write("gpu", {"parts": known}))


if __name__ == "__main__":
    main()
