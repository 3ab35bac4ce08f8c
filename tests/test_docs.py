"""Every Python block of the README and the guides runs, with fewer epochs, data and draws, and lists are complete."""

import re
from pathlib import Path

import pytest

import pyrovae as pv

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


FAMILIES = [pv.posteriors.POSTERIORS, pv.priors.PRIORS, pv.likelihoods.LIKELIHOODS]
LISTS = {
    "README.md": [*FAMILIES, pv.networks.NETWORKS, pv.datasets.DATASETS],
    "docs/guide/posteriors.md": FAMILIES,
    "docs/guide/composing.md": [pv.networks.NETWORKS],
    "docs/guide/data.md": [pv.datasets.DATASETS],
}


@pytest.mark.parametrize("page", LISTS)
def test_what_lists_a_registry_lists_all_of_it(page: str) -> None:
    code = re.findall(r"`([^`\n]+)`", (ROOT / page).read_text())
    missing = {name for registry in LISTS[page] for name in registry} - {text.strip('"') for text in code}
    assert not missing


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
    for code in BLOCK.findall(page.read_text()):
        exec(compile(shrunk(code), str(page), "exec"), namespace)
