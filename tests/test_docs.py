"""Every Python block of the README and the guides runs, with fewer epochs, data and draws, and lists are complete."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import pyrovae as pv
from tests.api import PACKAGES, lines
from tests.cases import POSTERIORS, PRIORS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


FAMILIES: list = [pv.posteriors.POSTERIORS, pv.priors.PRIORS, pv.likelihoods.LIKELIHOODS]
LISTS = {
    "README.md": [*FAMILIES, pv.networks.NETWORKS, pv.datasets.DATASETS],
    "docs/guide/posteriors.md": FAMILIES[:1],
    "docs/guide/priors.md": FAMILIES[1:2],
    "docs/guide/likelihoods.md": FAMILIES[2:],
    "docs/guide/composing.md": [pv.networks.NETWORKS],
    "docs/guide/data.md": [pv.datasets.DATASETS],
}


@pytest.mark.parametrize("page", LISTS)
def test_what_lists_a_registry_lists_all_of_it(page: str) -> None:
    code = re.findall(r"`([^`\n]+)`", (ROOT / page).read_text())
    missing = {name for registry in LISTS[page] for name in registry} - {text.strip('"') for text in code}
    assert not missing


def script(name: str) -> ModuleType:
    """A module beside the pages."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_of_capabilities_say_what_the_cases_promise() -> None:
    tables = script("capabilities").pages()
    for kind, cases in (("posterior", POSTERIORS), ("prior", PRIORS)):
        names = re.findall(r"^\| `(\w+)` \|", tables[kind], re.MULTILINE)
        assert names == list({"posterior": pv.posteriors.POSTERIORS, "prior": pv.priors.PRIORS}[kind])
        assert set(names) <= set(cases)
    said = {"exact": "yes", "numerical": "by search", None: "no"}
    for name, scored in re.findall(r"^\| `(\w+)` \| ([\w ]+) \|", tables["posterior"], re.MULTILINE):
        assert scored == said[POSTERIORS[name].inverse]


def test_the_reference_has_whatever_is_exported() -> None:
    """Every public name once: under the package, or the top where that exports it."""
    page = script("reference").page()
    documented = re.findall(
        r"^\.\. (?:auto(?:class|function|exception|data)|py:data):: pyrovae\.([\w.]+)$", page, re.MULTILINE
    )
    public = {line.split("(")[0].split("[")[0] for line in lines()}
    things = {name.removeprefix("pyrovae.") for name in public if name.count(".") <= 2}
    own = {n for n in things if n.count(".") == 0} | {n for n in things if n.split(".")[0] in PACKAGES}
    assert len(documented) == len(set(documented))
    assert {n.rpartition(".")[2] for n in own} == {n.rpartition(".")[2] for n in documented}


def shrunk(code: str) -> str:
    code = re.sub(r"epochs=\d+", "epochs=2", code)
    code = re.sub(r"num_samples=\d[\d_]*", "num_samples=50", code)
    code = re.sub(r"\bpoints=\d+", "points=41", code)
    code = re.sub(r"\bnum_chains=\d+", "num_chains=4", code)
    code = re.sub(r"\b(x|exact|data\.test)\[:[23]0\]", r"\1[:5]", code)
    code = re.sub(r"\bbdmc\((\w+), \d+", r"bdmc(\1, 4", code)
    return re.sub(r"\b(num_temperatures|steps)=\d+", r"\1=5", code)


def test_some_pages_have_code() -> None:
    assert sum(bool(BLOCK.search(p.read_text())) for p in PAGES) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "__main__"}
    before = [dict(registry) for registry in FAMILIES]
    try:
        for code in BLOCK.findall(page.read_text()):
            exec(compile(shrunk(code), str(page), "exec"), namespace)
    finally:  # what a page registers is not there for the tests that follow
        for registry, families in zip(FAMILIES, before, strict=True):
            registry.clear()
            registry.update(families)
