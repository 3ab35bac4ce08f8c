"""Results on the disk, what they say of where they come from, and what every estimator takes."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib.pyplot
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae import _graph, evaluation
from pyrovae.evaluation import EvaluationRun, Provenance, Result
from pyrovae.model._generation import Generation
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


# -- whatever the caller has set -------------------------------------------------------------------------------------

X, TWO = binary(12), TwoSites()
FACTORS = factors(X)
RUNS: dict[str, Callable[[Any], Any]] = {
    **{name: lambda m, run=run: run(m, X, progress=False) for name, run in ESTIMATORS.items() if name != "gaps"},
    "disentanglement": lambda m: pv.disentanglement(m, X, FACTORS, num_votes=5, progress=False),
    "inference_gaps": lambda m: ESTIMATORS["gaps"](m, X, progress=False),
    "log_weights": lambda m: evaluation.log_weights(m, X, num_samples=5, progress=False),
    "calibration": lambda m: pv.calibration(m, 6, num_draws=9, progress=False),
    "refit_prior": lambda m: pv.refit_prior(m, X, "mixture", epochs=2, seed=0, progress=False, device="cpu")[1],
    "refit_posterior": lambda m: pv.refit_posterior(m, X, "iaf", epochs=2, seed=0, progress=False, device="cpu")[1],
    "continuity": lambda m: evaluation.continuity(m.decode, m.encode(X), num_pairs=3, steps=4),
    "completeness": lambda m: evaluation.completeness(m.decode, m.encode(X[:3]), X[:4], X[4:]),
    # methods of a model
    "encode": lambda m: [m.encode(X), m.encode(X, num_samples=2)],
    "decode": lambda m: m.decode(m.encode(X)),
    "reconstruct": lambda m: m.reconstruct(X),
    "interpolate": lambda m: m.interpolate(X[:2], X[2:4]),
    "sample": lambda m: m.sample(3, seed=0),
    "simulate": lambda m: list(m.simulate(3, seed=0)[1].values()),
    "sample_latents": lambda m: m.sample_latents(3, seed=0),
    "as_data": lambda m: m.as_data(X),
    # plots that run a model
    "aggregate_posterior": lambda m: pv.plots.aggregate_posterior(m, X).collections[-1].get_offsets().data,
    "manifold": lambda m: pv.plots.manifold(m, (2, 3), n=3).get_images()[0].get_array(),
    "traversals": lambda m: pv.plots.traversals(m, X[:2], (2, 3)).get_images()[0].get_array(),
    "reconstructions": lambda m: pv.plots.reconstructions(m, X, (2, 3)).get_images()[0].get_array(),
    "samples": lambda m: pv.plots.samples(m, (2, 3)).get_images()[0].get_array(),
    "layer_samples": lambda m: pv.plots.layer_samples(TWO, (2, 3), n=3).get_images()[0].get_array(),
}
# These take numbers, results or arrays, or have a test of their own.
NO_MODEL = {
    "evaluation": "arviz_comparison compare dci factor_vae_score judge judge_chains khat_threshold mean_error "
    "mean_error_of_chains mig mutual_information pareto_khat pool sap",
    "plots": "active_units bounds calibration codebook_usage codes curves denoising forest gaps images khats "
    "kl_per_dimension kl_per_site log_weights",
    "model": "check draw_posterior draw_prior guide load log_joint log_posterior log_prior log_terms model penalty "
    "save",
}


def numbers(found: Any) -> list[np.ndarray]:
    """The numbers of whatever it is."""
    if isinstance(found, pv.FitResult):
        return [found.history[["loss"]].to_numpy()]
    if dataclasses.is_dataclass(found):
        return numbers([getattr(found, f.name) for f in dataclasses.fields(found)])
    if isinstance(found, pd.DataFrame):
        return [found.select_dtypes("number").to_numpy()]
    if isinstance(found, (list, tuple)):
        return [array for part in found for array in numbers(part)]
    return [np.asarray(found)] if isinstance(found, (Tensor, np.ndarray, float)) else []


def functions(module: Any) -> set[str]:
    return {name for name in module.__all__ if callable(getattr(module, name)) and name[0].islower()}


def test_every_function_is_run_under_whatever_the_caller_has_set() -> None:
    """A new one belongs into RUNS, or into NO_MODEL with a reason."""
    methods = {n for c in (pv.VAEModel, Generation) for n, f in vars(c).items() if callable(f) and n[0] != "_"}
    methods |= {"save", "load"}
    surface = {"evaluation": functions(evaluation), "plots": functions(pv.plots), "model": methods}
    for kind, names in surface.items():
        without = set(NO_MODEL[kind].split())
        assert without <= names
        assert names - without <= RUNS.keys(), kind
    assert RUNS.keys() <= set().union(*surface.values())


@contextlib.contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def less_precise() -> Iterator[None]:
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"


SETTINGS: dict[str, Callable[[], Any]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "gradients": lambda: torch.set_grad_enabled(True),
    "deterministic": deterministic,
    "meta": lambda: default_device("meta"),
    "bfloat16 products": less_precise,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RUNS)
def test_nothing_that_the_caller_has_set_changes_a_number(name: str) -> None:
    model = small()
    torch.manual_seed(0)
    expected = numbers(RUNS[name](model))
    assert expected
    for setting, make in SETTINGS.items():
        if setting == "bfloat16 products" and name.startswith("refit_"):
            continue  # training takes the products that the user wants
        torch.manual_seed(0)
        before = torch.get_rng_state()
        with make():
            found = numbers(RUNS[name](model))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"{name} under {setting}")
        assert name in ("layer_samples", "refit_posterior", "refit_prior") or torch.equal(torch.get_rng_state(), before)
    matplotlib.pyplot.close("all")
