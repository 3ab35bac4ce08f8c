"""Imports go down only: a package may import those below it and none above."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pyrovae

ROOT = Path(pyrovae.__file__).parent
BELOW = {
    "networks": 0,
    "distributions": 0,
    "posteriors": 1,
    "priors": 1,
    "likelihoods": 1,
    "model": 2,
    "objectives": 3,
    "training": 4,
    "evaluation": 5,
    "datasets": 6,
    "plots": 6,
    "zoo": 6,
    "testing": 6,
}


def layer(path: Path) -> int | None:
    return BELOW.get(path.relative_to(ROOT).parts[0].removesuffix(".py"))


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    mine = layer(path)
    if mine is None:
        assert path.name == "__init__.py" or path.name.startswith("_"), f"{path.name} belongs to no layer"
        return
    for node in ast.walk(ast.parse(path.read_text())):
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        for module in modules:
            parts = module.split(".")
            if parts[0] != "pyrovae":
                continue
            assert len(parts) > 1, f"{path.name} imports pyrovae itself"
            if not parts[1].startswith("_"):
                assert BELOW[parts[1]] <= mine, f"{path.name} (layer {mine}) imports {module}"
                assert BELOW[parts[1]] < 6 or parts[1] == path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_only_the_model_layer_reads_traces() -> None:
    for path in ROOT.rglob("*.py"):
        if path.relative_to(ROOT).parts[0] not in ("model",):
            assert "get_trace(" not in path.read_text().replace("_get_trace(", ""), f"{path} reads a Pyro trace"


def test_importing_leaves_validation_on() -> None:
    from torch.distributions import Distribution

    assert Distribution._validate_args


def test_what_takes_long_to_import_comes_on_first_use() -> None:
    heavy = (
        "sklearn",
        "scipy.stats",
        "scipy.io",
        "matplotlib",
        "xarray",
        "arviz",
        "pooch",
        "torch._inductor.compile_fx",
    )
    code = f"import sys, pyrovae; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
    code = "import pyrovae; print(pyrovae.plots.curves.__name__, hasattr(pyrovae, 'plot'))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "curves False"
