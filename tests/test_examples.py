"""Every example is run as a newcomer would, on something small."""

import contextlib
import io
import json
import math
import runpy
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import torch

import pyrovae as pv

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(p for p in (ROOT / "examples").glob("*.py") if p.name != "command_line.py")


class Done(NamedTuple):
    """What a run wrote, and its exit status."""

    returncode: int
    out: str
    errors: str
    folder: Path


def run(script: str, *args: str, folder: Path) -> Done:
    """``python examples/SCRIPT ARGS --out FOLDER``, without starting another Python.

    (tests/test_distributed.py and .ci/run start one of them as a process.)
    """
    out, errors, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as heard:
        patch.setattr(sys, "argv", [script, *args, "--quick", "--no-progress", "--out", str(folder)])
        patch.setattr(torch, "set_num_threads", lambda n: None)
        # What a process shows: neither of the hints for developers.
        warnings.simplefilter("always")
        for category in (DeprecationWarning, PendingDeprecationWarning, ResourceWarning, ImportWarning):
            warnings.simplefilter("ignore", category)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            try:
                runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
            except Exception:
                code = 1
                traceback.print_exc()
    shown = [f"{warning.category.__name__}: {warning.message}\n" for warning in heard]
    return Done(code, out.getvalue(), errors.getvalue() + "".join(shown), folder)


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Done]:
    """Every example by name, run once: what one test looks at another goes on from."""
    done: dict[str, Done] = {}

    def of(script: str) -> Done:
        if script not in done:
            done[script] = run(script, folder=tmp_path_factory.mktemp("example"))
        return done[script]

    return of


PICTURES = {
    "autoencoders.py": ("reconstructions", "denoising", "codes"),
    "beta_vae.py": ("sprites", "mig", "traversals"),
    "flow_posterior.py": ("curves", "reconstructions", "samples", "forest"),
    "hierarchical.py": ("kl", "samples", "layer_samples", "kl_over_epochs"),
    "posterior_collapse.py": ("reconstructions", "samples", "rate", "active_units"),
    "evaluation_report.py": ("bounds", "gaps", "khats", "kl", "weights", "aggregate"),
    "vqvae.py": ("reconstructions", "samples", "codebook", "curves"),
}


@pytest.mark.slow
@pytest.mark.parametrize("script", [p.name for p in EXAMPLES])
def test_quick(script: str, ran: Callable[[str], Done]) -> None:
    done = ran(script)
    assert done.returncode == 0, done.errors
    assert "Warning" not in done.errors, done.errors
    for picture in PICTURES[script]:
        assert (done.folder / f"{picture}.png").stat().st_size > 10_000
    table = pd.read_csv(done.folder / "comparison.csv", index_col="model")
    assert len(table) >= 2
    CHECKS[script](table, done.folder)


def autoencoders(table: pd.DataFrame, folder: Path) -> None:
    """Errors, which are half a sum of squares: not so small as one grey level off at each of 64 pixels, of linear ones
    not under that of the best plane, and under that of the mean digit, which needs no code.
    """
    data = pv.datasets.load("digits")
    assert (table["error"] > 0.5 * 64 / 16**2).all()
    rest = torch.linalg.svdvals(data.test - data.test.mean(0)).square() / (2 * len(data.test))
    for name, code in (("linear", 16), ("linear, 2-D", 2)):
        assert table.loc[name, "error"] > rest[code:].sum()
    assert (table["error"] < 0.5 * (data.test - data.train.mean(0)).square().sum(1).mean().item()).all()


def beta_vae(table: pd.DataFrame, folder: Path) -> None:
    """In a few epochs no more is learnt of 256 pixels than each one's frequency, and more than that it is a coin's."""
    settings = json.loads((folder / "settings.json").read_text())
    data = pv.datasets.load("sprites", binarize="threshold", size=settings["size"], scales=3, rotations=3, positions=5)
    alone = of_independent_pixels(data, len(data.test))
    assert table["neg_elbo"].between(-alone.mean() - 4 * alone.sem(), 256 * math.log(2)).all()
    assert (table["neg_elbo"] - table["distortion"] - table["rate"]).abs().max() < 1e-3
    assert table["factor_vae"].between(0.1, 1).all()
    assert len(pd.read_csv(folder / "runs.csv")) == 2 * len(table)


def densities(table: pd.DataFrame, folder: Path, *, binarize: str = "dynamic", least: float = 0.5) -> None:
    """As of the pixels of sprites; ``least`` is the probability that a pixel's value has in the (geometric) mean."""
    for name in table.index:
        log_px = pd.read_csv(folder / f"{name}.pointwise.csv")["log_px"]
        assert log_px.mean() == pytest.approx(table.loc[name, "log_px"])
        alone = of_independent_pixels(pv.datasets.load("digits", binarize=binarize), len(log_px))
        assert 64 * math.log(least) + 4 * log_px.sem() < log_px.mean() < alone.mean() + 4 * alone.sem()


def vqvae(table: pd.DataFrame, folder: Path) -> None:
    """The codes' 16 times log 64 nats are paid on top of pixels that are better than independent ones."""
    for name in table.index:
        log_px = pd.read_csv(folder / f"{name}.pointwise.csv")["log_px"]
        assert log_px.mean() == pytest.approx(table.loc[name, "log_px"])
        alone = of_independent_pixels(pv.datasets.load("digits", binarize="dynamic"), len(log_px))
        assert alone.mean() - 16 * math.log(64) < log_px.mean() < alone.mean() + 4 * alone.sem()
        assert log_px.mean() == pytest.approx(-table.loc[name, "reconstruction"] - table.loc[name, "rate"], abs=1e-3)


CHECKS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    "autoencoders.py": autoencoders,
    "beta_vae.py": beta_vae,
    "flow_posterior.py": densities,
    "hierarchical.py": densities,
    # Six steps leave decoders of many layers about where their random weights put them, which is below a coin's.
    "posterior_collapse.py": partial(densities, binarize="threshold", least=1 / 3),
    "evaluation_report.py": densities,
    "vqvae.py": vqvae,
}


def of_independent_pixels(data: pv.datasets.Data, n: int) -> pd.Series:
    """log p(x) of the first n test data, every pixel by itself and as often 1 as in training: exact, in nats."""
    p, x = data.train.flatten(1).mean(0).clamp(1e-3, 1 - 1e-3), data.test[:n].flatten(1)
    return pd.Series(torch.distributions.Bernoulli(p).log_prob(x).sum(1).numpy())


@pytest.mark.slow
def test_report_on_saved_models(ran: Callable[[str], Done], tmp_path: Path) -> None:
    models = ran("flow_posterior.py").folder
    assert len(list(models.glob("*.safetensors"))) >= 6
    done = run("evaluation_report.py", str(models / "planar.safetensors"), folder=tmp_path)
    assert done.returncode == 0, done.errors
    assert pd.read_csv(tmp_path / "subset.csv", index_col="model").index.tolist() == ["planar"]
    done = run("evaluation_report.py", str(models / "nothing.safetensors"), folder=tmp_path)
    assert done.returncode == 2
    assert "there is no file" in done.errors


@pytest.mark.slow
def test_several_seeds(tmp_path: Path) -> None:
    options = ("--seeds", "0", "1", "--network", "conv", "--hidden", "16", "--epochs", "1")
    done = run("flow_posterior.py", "--posteriors", "mean_field", "iaf", *options, folder=tmp_path)
    assert done.returncode == 0, done.errors
    assert (tmp_path / "iaf-seed1.safetensors").is_file()


@pytest.mark.slow
def test_several_priors_and_posteriors_on_one_model(tmp_path: Path) -> None:
    """On one prior and decoder all posteriors' L_K are near one number, which the models trained anew differ from."""
    options = ("--priors", "standard_normal", "mixture", "--same-model", "--epochs", "10", "--num-samples", "500")
    done = run("flow_posterior.py", "--posteriors", "mean_field", "full_rank", *options, folder=tmp_path)
    assert done.returncode == 0, done.errors
    assert (tmp_path / "full_rank-mixture.safetensors").is_file()
    table = pd.read_csv(tmp_path / "same_model.csv", index_col="model")
    for prior in ("standard_normal", "mixture"):
        first, other = table.loc[f"mean_field / {prior}"], table.loc[f"full_rank / {prior}"]
        assert not first[["better_model", "better_se", "tighter_bound", "tighter_se"]].any()
        assert other["better_model"] == pytest.approx(other["log_px"] - first["log_px"])
        assert other["tighter_bound"] == pytest.approx(first["same_neg_elbo"] - other["same_neg_elbo"])
        log_px = pd.read_csv(tmp_path / f"mean_field-{prior}.pointwise.csv")["log_px"]
        assert abs(other["same_log_px"] - log_px.mean()) < 0.05
        assert min(first["same_neg_elbo"], other["same_neg_elbo"]) > -log_px.mean() - 0.05


def test_priors_that_do_not_go_with_a_posterior(tmp_path: Path) -> None:
    done = run("flow_posterior.py", "--posteriors", "planar", "--priors", "vamp", folder=tmp_path)
    assert done.returncode == 2
    assert "--posteriors planar --priors vamp: VampPrior scores the posterior" in done.errors


def test_unknown_names(tmp_path: Path) -> None:
    done = run("flow_posterior.py", "--posteriors", "mean_field", "planer", folder=tmp_path)
    assert done.returncode != 0
    assert "Did you mean 'planar'?" in done.errors
