"""Every example is run as a newcomer would, on something small."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(p for p in (ROOT / "examples").glob("*.py") if p.name != "__init__.py")


def run(script: Path, *args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(script), *args],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


PICTURES = {
    "autoencoders.py": ("reconstructions", "denoising", "codes"),
    "beta_vae.py": ("sprites", "mig", "traversals"),
    "flow_posterior.py": ("curves", "reconstructions", "samples", "forest"),
    "hierarchical.py": ("kl", "samples", "layer_samples", "kl_over_epochs"),
    "posterior_collapse.py": ("reconstructions", "samples", "rate", "active_units"),
    "evaluation_report.py": ("bounds", "gaps", "khats", "kl", "weights", "aggregate"),
    "vqvae.py": ("reconstructions", "samples", "codebook", "curves"),
}
BOUNDS = {"vqvae.py": (-110, -20)}  # of log p(x), where they are not those of a VAE


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda p: p.name)
def test_quick(script: Path, tmp_path: Path) -> None:
    done = run(script, "--quick", "--no-progress", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    for picture in PICTURES[script.name]:
        assert (tmp_path / f"{picture}.png").stat().st_size > 10_000
    table = pd.read_csv(tmp_path / "comparison.csv", index_col="model")
    assert len(table) >= 2
    if script.name == "autoencoders.py":  # which have no density
        assert table["error"].between(0.1, 3.0).all()  # of the mean digit: 2.35; of a blank: 7.5
        return
    if script.name == "beta_vae.py":  # which scores latents, not log p(x)
        assert table["neg_elbo"].between(20, 180).all()  # 256 pixels at log 2 nats are 177
        assert (table["neg_elbo"] - table["distortion"] - table["rate"]).abs().max() < 1e-3
        assert table["factor_vae"].between(0.1, 1).all()
        assert len(pd.read_csv(tmp_path / "runs.csv")) == 2 * len(table)
        return
    assert table["log_px"].between(*BOUNDS.get(script.name, (-45, -20))).all()
    for name in table.index:
        pointwise = pd.read_csv(tmp_path / f"{name}.pointwise.csv")
        assert pointwise["log_px"].mean() == pytest.approx(table.loc[name, "log_px"])


def test_report_on_saved_models(tmp_path: Path) -> None:
    options = ("--quick", "--no-progress")
    models = tmp_path / "models"
    assert run(ROOT / "examples" / "flow_posterior.py", *options, "--out", str(models)).returncode == 0
    assert len(list(models.glob("*.safetensors"))) >= 6
    script = ROOT / "examples" / "evaluation_report.py"
    done = run(script, str(models / "planar.safetensors"), *options, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert pd.read_csv(tmp_path / "subset.csv", index_col="model").index.tolist() == ["planar"]
    done = run(script, str(models / "nothing.safetensors"), *options)
    assert done.returncode == 2
    assert "there is no file" in done.stderr


def test_several_seeds_and_unknown_names(tmp_path: Path) -> None:
    script = ROOT / "examples" / "flow_posterior.py"
    options = ("--quick", "--no-progress", "--out", str(tmp_path))
    done = run(
        script,
        *options,
        "--posteriors",
        "mean_field",
        "iaf",
        "--seeds",
        "0",
        "1",
        "--network",
        "conv",
        "--hidden",
        "16",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "iaf-seed1.safetensors").is_file()
    done = run(script, *options, "--posteriors", "mean_field", "planer")
    assert done.returncode != 0
    assert "Did you mean 'planar'?" in done.stderr
