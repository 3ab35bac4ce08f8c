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
from pyrovae.evaluation import Provenance, Result
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


@pytest.mark.parametrize(
    "index",
    [
        pd.RangeIndex(2, 22, 2),
        pd.Index([f"image {i}" for i in range(10)], name="file"),
        pd.date_range("2026-01-01", periods=10, name="day"),
        pd.MultiIndex.from_product([["a", "b"], range(5)], names=["kind", None]),
        pd.Index(np.linspace(0.0, 1.0, 10)),
    ],
)
def test_labels_of_data_are_kept(index: pd.Index, tmp_path) -> None:
    result = pv.log_marginal(small(), pd.DataFrame(binary(10).numpy(), index), num_samples=20, progress=False)
    back = pv.MarginalResult.load(result.save(tmp_path / "r.npz"))
    pd.testing.assert_frame_equal(back.pointwise, result.pointwise, check_exact=True, check_freq=False)
    assert isinstance(back.pointwise.index, pd.RangeIndex) == isinstance(index, pd.RangeIndex)


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
