"""Imports go down only: a package may import those below it and none above."""

import ast
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType

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


def test_modules_are_private() -> None:
    """So that no function shadows the module that it is in, and what is exported is what can be relied on."""
    packages = {path.parent for path in ROOT.rglob("__init__.py")}
    public = [path for path in ROOT.rglob("*.py") if not path.name.startswith("_") and path.stem != "testing"]
    assert not public
    for package in packages:
        module = import_module(".".join(package.relative_to(ROOT.parent).parts))
        names = {p.stem for p in package.glob("_*.py") if p.stem != "__init__"} | {
            path.name for path in packages if path.parent == package
        }
        shadowed = [
            name for name in names if hasattr(module, name) and not isinstance(getattr(module, name), ModuleType)
        ]
        assert not shadowed, f"{module.__name__}: {shadowed}"


def test_imports_go_in_no_circle() -> None:
    """Importing any module first works: no two of them need each other."""
    paths = sorted(ROOT.rglob("*.py"))
    names = {".".join(p.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}
    needs = {name: imported(path, names) - {name} for name, path in names.items() if path.name != "__init__.py"}
    while free := [name for name, others in needs.items() if not others & needs.keys()]:
        for name in free:
            del needs[name]
    assert not needs, f"circles among {sorted(needs)}"


def imported(path: Path, names: Mapping[str, Path]) -> set[str]:
    """The modules that one needs, if only for types or inside a function; of a package, those its names come from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module in names:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found |= {whole} if whole in names else origins(node.module, alias.name, names)
    return found


def origins(module: str, name: str, names: Mapping[str, Path]) -> set[str]:
    """Where a name that a package exports is defined; the module itself where it is no package."""
    if names[module].name != "__init__.py":
        return {module}
    for node in ast.parse(names[module].read_text()).body:
        if (
            isinstance(node, ast.ImportFrom)
            and node.module in names
            and name in [a.asname or a.name for a in node.names]
        ):
            return origins(node.module, name, names)
    return set()


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
