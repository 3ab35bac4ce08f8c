"""Results on the disk, what they say of where they come from, and what every estimator takes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae import _graph
from pyrovae.evaluation import EvaluationRun, Provenance, Result
from tests.models import TwoSites, binary

SHORT = {"num_temperatures": 5, "num_chains": 3, "num_leapfrog": 2}


def small() -> pv.VAE:
    torch.manual_seed(0)
    return pv.VAE((6,), 3, hidden=(8,))


def factors(x: Tensor) -> Tensor:
    return torch.stack([torch.arange(len(x)) % 2, torch.arange(len(x)) % 3], 1)


ESTIMATORS: dict[str, Callable[..., Any]] = {
    "log_marginal": lambda model, x, **kwargs: pv.log_marginal(model, x, num_samples=60, **kwargs),
    "ais": lambda model, x, **kwargs: pv.ais(model, x, **SHORT, **kwargs),
    "bdmc": lambda model, x, **kwargs: pv.bdmc(model, len(x), **SHORT, **kwargs),
    "elbo_terms": lambda model, x, **kwargs: pv.elbo_terms(model, x, num_samples=60, **kwargs),
    "collapse": lambda model, x, **kwargs: pv.collapse(model, x, num_samples=60, **kwargs),
    "gaps": lambda model, x, **kwargs: pv.inference_gaps(model, x, steps=8, num_samples=50, **kwargs),
    "disentanglement": lambda model, x, **kwargs: pv.disentanglement(model, x, factors(x), num_votes=5, **kwargs),
}
HASHES = {"log_marginal", "ais", "elbo_terms", "collapse", "gaps", "disentanglement"}


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    for field in dataclasses.fields(a):
        one, two = getattr(a, field.name), getattr(b, field.name)
        if isinstance(one, pd.DataFrame):
            pd.testing.assert_frame_equal(one, two, check_exact=True)
        elif isinstance(one, Tensor):
            assert torch.equal(one, two)
            assert one.dtype == two.dtype
        else:
            np.testing.assert_equal(one, two)
    pd.testing.assert_series_equal(a.summary(), b.summary())


@pytest.mark.filterwarnings("ignore")  # so few steps that q* has not converged
@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_result_is_kept_whole(name: str, tmp_path) -> None:
    result = ESTIMATORS[name](small(), binary(12), progress=False)
    path = result.save(tmp_path / "folder" / "result.npz")
    assert_same(type(result).load(path), result)
    assert_same(Result.load(path), result)
    other = pv.AISResult if name != "ais" else pv.MarginalResult
    with pytest.raises(ValueError, match=f"holds a {type(result).__name__}: call {type(result).__name__}.load"):
        other.load(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_result_says_where_it_comes_from(name: str) -> None:
    model, x = small(), binary(12)
    expected = pv.log_marginal(model, x, num_samples=5, seed=3, progress=False).provenance
    found = ESTIMATORS[name](model, x, seed=3, progress=False).provenance
    assert (found.model_name, found.model_hash, found.seed) == ("VAE(MeanFieldNormal)", expected.model_hash, 3)
    assert found.versions.keys() == {"pyrovae", "torch", "pyro-ppl"}
    assert found.versions["torch"] == torch.__version__
    if name in HASHES:  # on the same data
        assert found.data_hash == expected.data_hash
        assert found.same_density(expected)
    with torch.no_grad():
        model.decoder[0].bias += 1.0
    changed = ESTIMATORS[name](model, x, seed=3, progress=False).provenance
    assert changed.model_hash != found.model_hash
    assert not changed.same_density(found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_takes_the_same_options(name: str, capsys) -> None:
    """A budget under which every datum is a block of its own, machine code, a device by name, a bar."""
    model, x = small().double(), binary(4).double()
    plain = ESTIMATORS[name](model, x, progress=False, compile="off", memory_budget=1)
    assert capsys.readouterr().err == ""
    same = ESTIMATORS[name](model, x, progress=True, compile="auto", device="cpu", memory_budget=1)
    assert "%|" in capsys.readouterr().err
    assert_same(same, plain)
    with pytest.raises(ValueError, match="compile must be one of 'auto', 'off', 'inductor'; got 'fast'"):
        ESTIMATORS[name](model, x, compile="fast")
    with pytest.raises(ValueError, match="memory_budget must be at least 1; got 0"):
        ESTIMATORS[name](model, x, memory_budget=0)
    with pytest.raises(ValueError, match="device 'nowhere' is not a torch device"):
        ESTIMATORS[name](model, x, device="nowhere")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:q", "ignore:log p")
@pytest.mark.parametrize("name", sorted(ESTIMATORS.keys() - {"disentanglement", "log_marginal"}))
def test_every_estimator_computes_the_same_as_machine_code(name: str, monkeypatch) -> None:
    """Blocks enough that what they have in common is compiled. (``log_marginal`` has a test of its own.)"""
    monkeypatch.setattr(_graph, "_WARM_UP_CALLS", 2)
    made, compiled = [], _graph.compiled
    monkeypatch.setattr(_graph, "compiled", lambda *args: made.append(1) or compiled(*args))
    model, x = small().double(), binary(8).double()
    budget = {"memory_budget": 1} if name in ("elbo_terms", "collapse") else {}
    plain = ESTIMATORS[name](model, x, progress=False, compile="off", **budget).summary()
    code = ESTIMATORS[name](model, x, progress=False, compile="inductor", **budget).summary()
    numbers = plain.map(lambda value: isinstance(value, float))
    # Rounding may turn an acceptance around, and with it what follows of that chain.
    close = {"rtol": 0.3} if name in ("ais", "bdmc") else {"rtol": 1e-7, "atol": 1e-9}
    np.testing.assert_allclose(code[numbers].astype(float), plain[numbers].astype(float), **close)
    assert made


def test_what_is_not_compiled_is_said(monkeypatch) -> None:
    monkeypatch.setattr(_graph, "_WARM_UP_CALLS", 2)
    x = binary(8)
    with pytest.warns(UserWarning, match="not compiled, because it cannot be traced"):
        pv.disentanglement(small(), x, factors(x), num_votes=5, compile="inductor", memory_budget=1, progress=False)


def run_of(x: Tensor, **options: Any) -> EvaluationRun:
    return EvaluationRun("test", small(), x, progress=False, **options)


def test_a_run_is_entered_once_and_left_as_it_was() -> None:
    run = run_of(binary(6))
    run.model.train()
    with run:
        assert not torch.is_grad_enabled()
        with pytest.raises(RuntimeError, match="make another EvaluationRun"), run:
            pass
        with pytest.raises(RuntimeError, match="make another EvaluationRun"), run.within():
            pass
    assert torch.is_grad_enabled()
    assert run.model.training
    with pytest.raises(RuntimeError, match="make another"), run:
        pass


def test_runs_within_have_draws_of_their_own() -> None:
    with run_of(binary(6)) as run:
        drawn = []
        for one in (run, run.within(), run.within(), run.within().within()):
            one.reseed(0, 0)
            drawn.append(torch.randn(3).tolist())
        run.reseed(0, 0)
        assert torch.randn(3).tolist() == drawn[0]
        assert len({tuple(d) for d in drawn}) == 4


def test_columns_that_do_not_fit_are_refused() -> None:
    def collected(*columns: dict[str, Tensor]) -> Any:
        with run_of(binary(4)) as run:
            return run.collect(lambda rows, draws: columns[rows.start // 2], (2, 1), total=1, description="a")

    np.testing.assert_array_equal(collected({"a": torch.zeros(2)}, {"a": torch.ones(2)})["a"], [0, 0, 1, 1])
    for second in (torch.tensor(1.0), torch.ones(3), torch.ones(2, dtype=torch.int64)):
        with pytest.raises(ValueError, match="one value for each row is needed, of one dtype for all"):
            collected({"a": torch.zeros(2)}, {"a": second})
    with pytest.raises(ValueError, match=r"compute gave \['b'\] for slice"):
        collected({"a": torch.zeros(2)}, {"b": torch.zeros(2)})


def test_memory_that_runs_out_in_the_middle_counts_nothing_twice(monkeypatch) -> None:
    """The Gaussian bound sums moments over blocks: those of a block that was given up are not among them."""
    torch.manual_seed(0)
    model, x = pv.VAE((6,), 3, hidden=(8,), posterior="planar"), binary(40)
    expected = pv.collapse(model, x, num_samples=50, progress=False)
    draw, failed = type(model).draw_posterior, []

    def starved(self: pv.VAE, part: Tensor, *, num_particles: int) -> Any:
        if num_particles == 50 and not failed:
            failed.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return draw(self, part, num_particles=num_particles)

    monkeypatch.setattr(type(model), "draw_posterior", starved)
    found = pv.collapse(model, x, num_samples=50, progress=False)
    assert failed
    assert abs(found.marginal_kl - expected.marginal_kl) < 4 * np.hypot(found.marginal_kl_se, expected.marginal_kl_se)


def test_codes_that_are_drawn_follow_the_seed() -> None:
    torch.manual_seed(0)
    model, x = pv.VAE((6,), 3, hidden=(8,), posterior="planar"), binary(40)
    shared = [pv.disentanglement(model, x, factors(x), seed=s, progress=False).mutual_information for s in (0, 0, 1)]
    pd.testing.assert_frame_equal(shared[0], shared[1], check_exact=True)
    assert not shared[0].equals(shared[2])


@pytest.mark.parametrize(
    "index",
    [
        pd.RangeIndex(2, 22, 2),
        pd.Index([f"image {i}" for i in range(10)], name="file"),
        pd.date_range("2026-01-01", periods=10, name="day"),
        pd.MultiIndex.from_product([["a", "b"], range(5)], names=["kind", None]),
        pd.Index(np.linspace(0.0, 1.0, 10)),
        pd.MultiIndex.from_arrays([range(10)], names=["one"]),
        pd.RangeIndex(10, name=("a", 1)),
    ],
)
def test_labels_of_data_are_kept(index: pd.Index, tmp_path) -> None:
    result = pv.log_marginal(small(), pd.DataFrame(binary(10).numpy(), index), num_samples=20, progress=False)
    back = pv.MarginalResult.load(result.save(tmp_path / "r.npz"))
    pd.testing.assert_frame_equal(back.pointwise, result.pointwise, check_exact=True, check_freq=False)
    assert isinstance(back.pointwise.index, pd.RangeIndex) == isinstance(index, pd.RangeIndex)


def test_columns_of_one_name_are_kept(tmp_path) -> None:
    x = binary(12)
    result = pv.disentanglement(small(), x, factors(x), factor_names=["a", "a"], num_votes=5, progress=False)
    assert_same(Result.load(result.save(tmp_path / "r.npz")), result)


def test_what_cannot_be_read_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no result at"):
        Result.load(tmp_path / "none.npz")
    result = pv.elbo_terms(TwoSites(), binary(5), num_samples=10, progress=False)
    path = result.save(tmp_path / "r.npz")
    content = path.read_bytes()
    damaged = tmp_path / "damaged.npz"
    for broken in (content[:100], content[:200] + b"x" + content[201:], b"", b"nothing of ours"):
        damaged.write_bytes(broken)
        with pytest.raises(ValueError, match="is no result saved by pyrovae, or is damaged"):
            Result.load(damaged)
    np.savez(damaged, log_px=np.zeros(3))
    with pytest.raises(ValueError, match="is no result saved by pyrovae"):
        Result.load(damaged)
    np.savez(damaged, result=np.array([print], dtype=object))  # a pickle
    with pytest.raises(ValueError, match="is no result saved by pyrovae"):
        Result.load(damaged)


def test_provenance_of_pooled_results_names_all_seeds(tmp_path) -> None:
    model, x = small(), binary(8)
    pooled = pv.pool([pv.log_marginal(model, x, num_samples=50, seed=s, progress=False) for s in (0, None, 2)])
    assert pooled.provenance.seed == (0, None, 2)
    assert_same(Result.load(pooled.save(tmp_path / "r.npz")), pooled)
    assert not Provenance("a", "b").same_density(Provenance("a", "b"))  # nothing is known of it
