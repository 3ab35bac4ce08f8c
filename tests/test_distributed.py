"""Two processes on the CPU do what one does: the same gradients, the same evaluation, one history, one set of files."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import pyrovae as pv
from pyrovae import _distributed
from tests import processes

ROOT = Path(__file__).parent.parent
TIMEOUT = 120  # seconds, after which whatever hangs has failed

Seen = list[dict[str, Any]]


def torchrun(*args: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """``torchrun`` without a GPU: two processes would fight for a single one."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *args]
    started = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    try:
        out, errors = started.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        pytest.fail(f"{' '.join(args)} hangs")
    return subprocess.CompletedProcess(command, started.returncode, out, errors)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What each of two processes saw, case by case. One launch serves all tests, pytest-xdist's workers included."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "processes"
    log = folder / "log"
    try:
        folder.mkdir()
    except FileExistsError:  # another worker is at it
        deadline = time.monotonic() + 1.5 * TIMEOUT
        while not log.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
    else:
        done = torchrun("-m", "tests.processes", str(folder))
        (folder / "writing").write_text(done.stderr if done.returncode else "")
        (folder / "writing").rename(log)
    assert not log.read_text(), log.read_text()
    return [{"folder": folder, **torch.load(folder / f"{rank}.pt", weights_only=False)} for rank in range(2)]


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def assert_same_run(runs: list[dict[str, Any]]) -> None:
    """The same weights, buffers and history everywhere."""
    for run in runs[1:]:
        assert equal(runs[0]["weights"], run["weights"])
        pd.testing.assert_frame_equal(runs[0]["history"], run["history"], check_exact=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", processes.SIZES)
def test_a_step_is_the_step_of_a_single_process(name: str, seen: Seen) -> None:
    first, second = (s["steps"][name] for s in seen)
    assert equal(first, second)
    expected = processes.one_step(*processes.SIZES[name])
    for key, value in first.items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-12)


@pytest.mark.slow
def test_losses_are_those_of_a_single_process(seen: Seen) -> None:
    """Training and validation, with shares of unequal size and a last batch of one datum."""
    expected = processes.standing_still()
    for s in seen:
        pd.testing.assert_frame_equal(s["still"], expected, rtol=1e-12)


@pytest.mark.slow
def test_processes_draw_differently_and_average_their_gradients(seen: Seen) -> None:
    first, second = (s["noisy_step"] for s in seen)
    assert equal(first["got"], second["got"])
    assert equal(first["expected"], second["expected"])
    for key, value in first["expected"].items():
        torch.testing.assert_close(first["got"][key], value, rtol=0, atol=1e-12)
    assert sorted((len(first["x"]), len(second["x"]))) == [3, 4]
    assert not set(first["draws"].tolist()) & set(second["draws"].tolist())


@pytest.mark.slow
def test_training_on_digits(seen: Seen) -> None:
    runs = [s["digits"] for s in seen]
    assert_same_run(runs)
    history = runs[0]["history"]
    assert history["loss"].is_monotonic_decreasing
    assert history["loss"].iloc[-1] < 29
    # Validation against that of one process with the same weights, which draws otherwise.
    data = pv.datasets.load("digits", binarize="dynamic")
    vae = pv.VAE(data.event_shape, 4, posterior="iaf", hidden=(32,))
    vae.load_state_dict(runs[0]["weights"])
    with torch.no_grad():
        losses = [pv.ELBO().loss(vae.model, vae.guide, data.val) / len(data.val) for _ in range(50)]
    mean, sd = torch.tensor(losses).mean().item(), torch.tensor(losses).std().item()
    print(f"validation loss {history['val_loss'][runs[0]['best']]:.3f}, of one process {mean:.3f} ± {sd:.3f}")
    assert abs(history["val_loss"][runs[0]["best"]] - mean) < 4 * sd


@pytest.mark.slow
def test_running_means_are_the_same_everywhere(seen: Seen) -> None:
    assert_same_run([s["running_means"] for s in seen])


@pytest.mark.slow
def test_a_resumed_run_is_the_run(seen: Seen) -> None:
    """From a folder that both processes see, and from one that the first alone sees."""
    for name in ("whole", "shared", "own"):
        assert_same_run([s["checkpoints"][name] for s in seen])
        assert_same_run([seen[0]["checkpoints"]["whole"], seen[0]["checkpoints"][name]])
    assert [s["checkpoints"]["writes"] for s in seen] == [8, 0]
    folder = seen[0]["folder"]
    assert len(list((folder / "shared").glob("*.pt"))) == 3
    assert not (folder / "own1").exists()


@pytest.mark.slow
def test_kinds_of_data(seen: Seen) -> None:
    for s in seen:
        refused = s["kinds_of_data"]["refused"]
        assert (
            "2 processes would all train on the same batches of this DataLoader: give it sampler="
            in (refused["DataLoader"])
        )
        assert "the same batches of this IterableDataset: pass tensors or a Dataset" in refused["IterableDataset"]
        assert "TraceGraph_ELBO has no differentiable_loss" in refused["Pyro's own"]
    for name in ("Dataset", "sampler"):
        runs = [s["kinds_of_data"]["trained"][name] for s in seen]
        assert equal(runs[0]["weights"], runs[1]["weights"])
        pd.testing.assert_frame_equal(runs[0]["history"], runs[1]["history"], check_exact=True)
        assert runs[0]["history"]["loss"].iloc[-1] < runs[0]["history"]["loss"].iloc[0]


@pytest.mark.slow
def test_every_process_has_an_engine_of_its_own(seen: Seen) -> None:
    pyro, graph, mixed = zip(*(s["compiled"] for s in seen), strict=True)
    assert [[r["engine"] for r in runs] for runs in (pyro, graph, mixed)] == [
        ["off", "off"],
        ["graph", "graph"],
        ["off", "graph"],
    ]
    assert_same_run([*pyro, *graph, *mixed])
    assert graph[0]["history"]["loss"].iloc[-1] < graph[0]["history"]["loss"].iloc[0]


@pytest.mark.slow
def test_one_process_may_stop_all(seen: Seen) -> None:
    assert [s["stopping"] for s in seen] == [1, 1]


@pytest.mark.slow
def test_parameters_that_do_not_enter_the_loss(seen: Seen) -> None:
    unused = [s["unused_parameters"] for s in seen]
    assert equal(unused[0]["weights"], unused[1]["weights"])
    assert all(u["untouched"] for u in unused)
    assert all(u["left_out"] for u in unused)


ESTIMATORS = ["log_marginal", "ais", "bdmc", "target_mc_se", "elbo_terms", "gaps", "log_weights", "disentanglement"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ESTIMATORS, "one block", "mixture", "gaussian bound"])
def test_evaluation_is_that_of_a_single_process(name: str, seen: Seen, single: dict[str, pd.DataFrame]) -> None:
    for s in seen:
        # Moments of q(z) are summed over processes, in another order.
        how = {"rtol": 1e-12} if name == "gaussian bound" else {"check_exact": True}
        pd.testing.assert_frame_equal(s["evaluation"]["seeded"][name], single[name], **how)


@pytest.fixture(scope="module")
def single() -> dict[str, pd.DataFrame]:
    return processes.evaluations()


@pytest.mark.slow
@pytest.mark.parametrize("name", processes.UNSEEDED)
def test_without_a_seed_all_processes_agree(name: str, seen: Seen) -> None:
    first, second = (s["evaluation"]["unseeded"] for s in seen)
    pd.testing.assert_frame_equal(first[name], second[name], check_exact=True)
    column = "lower" if name == "bdmc" else "log_px"
    assert (first[name][column] != seen[0]["evaluation"]["seeded"][name][column]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["log_marginal", "ais"])
def test_every_datum_is_evaluated_once(name: str, seen: Seen) -> None:
    parts = [s["evaluation"][f"rows of {name}"] for s in seen]
    print(parts)
    assert min(len(p) for p in parts) >= 2
    rows = [row for part in parts for some in part for row in range(*some)]
    assert rows == list(range(23))


@pytest.mark.slow
def test_a_process_may_run_out_of_memory(seen: Seen) -> None:
    first, second = (s["out_of_memory"] for s in seen)
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    expected = pv.ais(processes.small(), processes.binary(23), num_temperatures=10, num_chains=8, progress=False)
    error = (first["log_px"] - expected.pointwise["log_px"]).abs()
    assert (error < 5 * (first["mc_se"] + expected.pointwise["mc_se"])).all()
    assert len(first) == 23


@pytest.mark.slow
def test_models_and_data_must_be_the_same(seen: Seen) -> None:
    for s in seen:
        assert "ValueError: x must be the same in all 2 processes" in s["different_things"]["data"]
        assert "Give every process all the data" in s["different_things"]["data"]
        assert "ValueError: model must be the same in all 2 processes" in s["different_things"]["model"]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_processes_share_rows_and_blocks(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_distributed, "num_processes", lambda: size)

    def each(function: Callable[..., Any], *args: Any) -> list[Any]:
        out = []
        for rank in range(size):
            monkeypatch.setattr(_distributed, "rank", lambda rank=rank: rank)
            out.append(function(*args))
        return out

    for n in range(1, 12):
        shares = each(_distributed.my_share, torch.arange(n))
        whole = torch.cat(shares) if n >= size else shares[0]
        assert torch.equal(whole, torch.arange(n))
        assert all(len(s) > 0 for s in shares)
        for block in range(1, 13):
            parts = each(_distributed.my_blocks, n, block)
            assert [row for part in parts for row in range(part.start, part.stop)] == list(range(n))
            assert all(part.start % block == 0 for part in parts if part.stop > part.start)
            blocks = [-(-(part.stop - part.start) // block) for part in parts]
            assert max(blocks) - min(blocks) <= 1
            assert blocks[0] == max(blocks)  # whose progress is shown


@pytest.mark.slow
def test_an_error_in_one_process_ends_all(tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text("""
import math, torch, pyrovae as pv
torch.manual_seed(0)
main = pv.is_main_process()
vae = pv.VAE((6,), 2, hidden=(8,))
x = (torch.rand(40, 6) < 0.5).float()
pv.fit(vae, x, batch_transform=lambda x: x if main else x / 0, epochs=2, device="cpu", progress=False)
""")
    done = torchrun(str(script))
    assert done.returncode != 0
    assert "a batch of data after batch_transform holds" in done.stderr, done.stderr


@pytest.mark.slow
def test_flow_posterior(seen: Seen) -> None:
    out, errors = ("".join(s["example"][name] for s in seen) for name in ("out", "errors"))
    folder = seen[0]["folder"] / "example"
    assert out.count("planar: training") == 1
    assert out.count("diff ± diff_se") == 1
    assert "Warning" not in errors, errors
    assert errors.count("log p(x): 100%") == 2, errors
    for file in ("comparison.csv", "planar.safetensors", "planar.pointwise.csv", "settings.json", "samples.png"):
        assert (folder / file).is_file()
    table = pd.read_csv(folder / "comparison.csv", index_col="model")
    assert table["log_px"].between(-45, -20).all()
    # A single process, given what two trained, finds the same.
    vae = pv.load(folder / "planar.safetensors")
    data = pv.datasets.load("digits", binarize="dynamic")
    alone = pv.log_marginal(vae, data.test[:40], num_samples=100, progress=False).pointwise
    pointwise = pd.read_csv(folder / "planar.pointwise.csv", index_col="datum")
    assert pointwise["log_px"].tolist() == alone["log_px"].tolist()
