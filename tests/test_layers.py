"""Imports go down only: a package may import those below it and none above."""

import ast
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import nn

import pyrovae

ROOT = Path(pyrovae.__file__).parent
BELOW = {
    "_compat": -1,
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
            assert mine >= 0, f"{path.name} is of the lowest layer and imports {module}"
            if not parts[1].startswith("_"):
                assert BELOW[parts[1]] <= mine, f"{path.name} (layer {mine}) imports {module}"
                assert BELOW[parts[1]] < 6 or parts[1] == path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_modules_are_private() -> None:
    """So that no function shadows the module that it is in, and what is exported is what can be relied on."""
    packages = {path.parent for path in ROOT.rglob("__init__.py")}
    own = [path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path.stem != "testing"]
    assert not [path for path in own if not any(part.startswith("_") for part in path.parts)]
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


OUTSIDE = [path for path in sorted(ROOT.rglob("*.py")) if path.relative_to(ROOT).parts[0] != "_compat"]
UNSTABLE = ("torch.fx.experimental", "pyro.infer.", "pyro.poutine.", "pyro.distributions.util", "functorch", "zuko")


def theirs() -> set[str]:
    """Private names of the libraries' classes."""
    normal = dist.MultivariateNormal(torch.zeros(2), torch.eye(2)).mask(True)
    recurrent = PyroModule[nn.GRU](1, 1)
    objects = (
        *(torch, torch.Tensor, torch.UntypedStorage, torch.ops.aten.add.Tensor, nn.modules.conv),
        *(
            normal,
            normal.base_dist,
            dist.transforms.ExpTransform(),
            recurrent,
            torch.optim.Adam(recurrent.parameters()),
        ),
        *(pyro, pyro.poutine, pyro.poutine.Trace(), pyro.infer.Trace_ELBO(), pyro.get_param_store()),
    )
    keys = {"_orig_mod", "_deterministic", "_warned_capturable_if_run_uncaptured"}  # of modules, sites, optimisers
    return {name for thing in objects for name in dir(thing) if is_private(name)} | keys


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


THEIRS = theirs()


def uses_of_what_is_private(source: str) -> list[str]:
    """Every import, attribute, argument or name in a string that is private to torch, Pyro or zuko, and every look at
    what an error says, as far as the text alone shows it.

    What a class has itself is ``self._x``, or ``other._x`` where the file defines it and no library does.
    """
    nodes = list(ast.walk(ast.parse(source)))
    defined = {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    defined |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    defined |= {n.attr for n in nodes if isinstance(n, ast.Attribute) and is_stored_on_self(n)}
    found: list[ast.AST] = []
    for node in nodes:
        match node:
            case ast.Import() | ast.ImportFrom():
                module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
                paths = [f"{module}.{alias.name}".lstrip(".") for alias in node.names]
                if any(is_theirs(path) for path in paths) or module.startswith(UNSTABLE):
                    found.append(node)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name) if is_private(name):
                if name in THEIRS - defined:
                    found.append(node)
            case ast.Attribute(attr=name) if is_private(name) and (name in THEIRS or name not in defined):
                found.append(node)
            case ast.keyword(arg=str(name)) if is_private(name) and name not in defined:
                found.append(node)
            case ast.Constant(value=str(text)) if text.rstrip(".") in THEIRS:
                found.append(node)
            case ast.Compare(ops=[ast.In() | ast.NotIn()], comparators=[ast.Call(func=ast.Name(id="str"))]):
                found.append(node)
    return [ast.unparse(node) for node in found]


def is_theirs(path: str) -> bool:
    first, *rest = path.split(".")
    return (first in ("torch", "pyro") and any(map(is_private, rest))) or path.startswith(UNSTABLE[:1] + UNSTABLE[-2:])


def is_stored_on_self(node: ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self"


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_is_private_to_libraries_is_used_in_the_lowest_layer_alone(path: Path) -> None:
    found = uses_of_what_is_private(path.read_text())
    assert not found, f"{path.relative_to(ROOT)} uses {found}: put it into pyrovae/_compat, with a test of it"


@pytest.mark.parametrize(
    "line",
    [
        "import torch._dynamo",
        "from torch._guards import tracing",
        "from torch.utils import _pytree",
        "from torch.utils._pytree import tree_leaves",
        "from torch.fx import experimental",
        "from torch.fx.experimental.proxy_tensor import make_fx",
        "from functorch.compile import aot_function",
        "from pyro.poutine.runtime import _PYRO_STACK",
        "from pyro.infer.util import torch_item",
        "import zuko",
        "code = torch._inductor.compile(module)",
        "taken = x.untyped_storage()._cdata",
        "layers = nn.modules.conv._ConvNd",
        "if p.base_dist._validate_args: pass",
        "same = type(t)._inverse is None",
        "optimizer._warned_capturable_if_run_uncaptured = True",
        "for place in (module._parameters, module._buffers): pass",
        "schema = getattr(target, '_schema', None)",
        "name = name.replace('_orig_mod.', '')",
        "drawn = not site['infer'].get('_deterministic')",
        "module = make_fx(function, _allow_non_fake_inputs=True)",
        "class Q(Normal):\n    def rsample(self, shape):\n        return self._extended_shape(shape)",
        "class Q(PyroModule):\n    def clear(self):\n        self._pyro_context.clear()",
        "try:\n    f()\nexcept RuntimeError as error:\n    known = 'vmap' in str(error)",
    ],
)
def test_uses_of_what_is_private_are_found(line: str) -> None:
    assert len(uses_of_what_is_private(line)) > 0


def test_what_is_ones_own_may_be_private() -> None:
    own = """
from torch.fx.node import map_arg
from pyro.infer import ELBO
from pyrovae._graph import trace
class Q(Transform):
    _cache: int
    def __init__(self, other):
        self._x = other._cache
        self._made_elsewhere()
        super()._call(Q(_cache=1)._x)
    def _call(self, x):
        return self._inverse(x, "_own")
    def _inverse(self, y, name):
        return y
"""
    assert uses_of_what_is_private(own) == ["super()._call"]  # which is theirs


def test_importing_leaves_validation_on() -> None:
    from torch.distributions import Distribution

    assert Distribution._validate_args


@pytest.mark.slow
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
    code = f"""
import sys, pyrovae
print([name for name in {heavy} if name in sys.modules])
print(pyrovae.plots.curves.__name__, hasattr(pyrovae, "plot"))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, used = run.stdout.splitlines()
    assert loaded == "[]"
    assert used == "curves False"
