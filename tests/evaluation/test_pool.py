"""Results of one trained model as one: against what all draws, or all data, give at once."""

import dataclasses
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

import pyrovae as pv
from pyrovae.evaluation.marginal._stream import WeightStream
from pyrovae.testing import LinearGaussian
from tests.models import from_elsewhere


def model() -> LinearGaussian:
    generator = torch.Generator().manual_seed(3)
    return LinearGaussian(0.5 * torch.randn(12, 4, generator=generator), torch.zeros(12), 0.8, guide="detuned")


def evaluate(x: torch.Tensor, seed: int | None, num_samples: int = 1000, **options) -> pv.MarginalResult:
    return pv.log_marginal(model(), x, num_samples=num_samples, seed=seed, progress=False, **options)


def test_more_draws_are_what_all_of_them_give() -> None:
    x, sizes = model().sample(30, seed=1), (1000, 1000, 500)
    results = [evaluate(x, seed, k) for seed, k in enumerate(sizes)]
    pooled = pv.pool(results)
    stream = WeightStream(30, 2500, {1, 10, 100, 2500}, torch.device("cpu"))
    weights = [pv.evaluation.log_weights(model(), x, num_samples=k, seed=seed) for seed, k in enumerate(sizes)]
    stream.update(torch.cat(weights))
    p = pooled.pointwise
    expected = {"log_px": stream.log_mean, "ess": stream.ess, "mc_se": stream.se(2500), "elbo": stream.bound(1)[0]}
    expected |= {f"L_{k}": stream.bound(k)[0] for k in (1, 10, 100, 2500)}
    for name, values in expected.items():
        np.testing.assert_allclose(p[name], values, rtol=1e-9, err_msg=name)
    np.testing.assert_allclose(p["L_100_se"], stream.bound(100)[1], rtol=0.35)  # of 25 blocks, pooled or not
    # Without its bias of order 1/K, as the jackknife of all is: far closer to that than the error is wide.
    assert (np.abs(p["jackknife"] - stream.jackknife.numpy()) < 0.2 * p["mc_se"]).mean() > 0.9
    assert list(p) == [
        *(name for name in results[0].pointwise if not name.startswith("L_")),
        *(name for k in (1, 10, 100, 500, 2500) for name in (f"L_{k}", f"L_{k}_se")),
    ]
    assert (pooled.num_samples, pooled.provenance.seed, pooled.provenance.data_hash) == (
        2500,
        (0, 1, 2),
        results[0].provenance.data_hash,
    )
    error = (p["log_px"] - model().exact_log_px(x).numpy()) / p["mc_se"]
    assert error.abs().max() < 4.5
    assert 0.6 < error.std() < 1.5


def test_more_data_are_rows() -> None:
    x = model().sample(40, seed=1)
    parts = [evaluate(x[:25], 0), evaluate(x[25:], 1)]
    pooled = pv.pool(parts)
    pd.testing.assert_frame_equal(pooled.pointwise, pd.concat([r.pointwise for r in parts], ignore_index=True))
    assert pooled.summary()["N"] == 40
    assert pooled.provenance.data_hash not in {r.provenance.data_hash for r in parts}
    assert pooled.provenance.data_hash == pv.pool([evaluate(x[:25], 2), evaluate(x[25:], 3)]).provenance.data_hash
    # More draws of one part and the other part: the number of draws must agree in the end.
    both = pv.pool(
        [evaluate(x[:25], 0, 500), evaluate(x[:25], 2, 500), evaluate(x[25:], 1, bounds=(1, 10, 50, 100, 500))]
    )
    assert (len(both.pointwise), both.num_samples) == (40, 1000)


def test_pooled_results_compare_and_are_kept() -> None:
    x = model().sample(20, seed=1)
    pooled = pv.pool([evaluate(x, 0, 300), evaluate(x, 1, 300)])
    table = pv.compare({"pooled": pooled, "one": evaluate(x, 2, 600)})  # the same number of draws: no warning
    assert table.loc["one", "same_model"]
    p = pooled.pointwise
    assert table.loc["pooled", "rise"] == pytest.approx((p["L_600"] - p["L_30"]).mean())
    again = pv.MarginalResult.from_arviz(pooled.to_arviz())
    assert again.provenance.seed == (0, 1)
    assert again.provenance.model_hash == pooled.provenance.model_hash
    with pytest.raises(ValueError, match=r"results\[0\] and results\[1\] have the same draws"):
        pv.pool([again, evaluate(x, 1, 300)])


def test_nothing_new_or_something_else_is_refused() -> None:
    x = model().sample(20, seed=1)
    a, b = evaluate(x, 0, 100), evaluate(x, 1, 100)
    for again in (a, evaluate(x, 0, 200), from_elsewhere(b, seed=0)):
        with pytest.raises(ValueError, match="have the same draws"):
            pv.pool([a, again])
    unknown = from_elsewhere(a, seed=None)
    with pytest.raises(ValueError, match="are equal datum by datum"):
        pv.pool([unknown, unknown])
    with pytest.raises(ValueError, match="differ in proposal"):
        pv.pool([a, evaluate(x, 1, 100, proposal="prior")])
    other = LinearGaussian(1.01 * model().w.detach(), torch.zeros(12), 0.8)
    with pytest.raises(ValueError, match=r"differ in .*log p\(x, z\)"):
        pv.pool([a, pv.log_marginal(other, x, num_samples=100, seed=1, progress=False)])
    with pytest.raises(ValueError, match="need the same num_samples and bounds; they have 100, 200 draws"):
        pv.pool([a, evaluate(model().sample(20, seed=2), 1, 200)])
    with pytest.raises(ValueError, match="have the same draws"):  # whose noise would be that of the first part
        pv.pool([a, evaluate(model().sample(20, seed=2), 0, 100)])
    with pytest.raises(ValueError, match="results is empty"):
        pv.pool([])
    assert pv.pool([a]) is a


def test_no_weight_above_zero_in_one_of_them() -> None:
    x = model().sample(5, seed=1)
    a, b = evaluate(x, 0, 100), evaluate(x, 1, 100)
    nothing = a.pointwise.assign(log_px=-np.inf, ess=0.0, elbo=-np.inf, jackknife=-np.inf, mc_se=np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = pv.pool([dataclasses.replace(a, pointwise=nothing), b]).pointwise
        none = pv.pool([dataclasses.replace(r, pointwise=nothing) for r in (a, b)][:1]).pointwise
    np.testing.assert_allclose(p["log_px"], b.pointwise["log_px"] - np.log(2))
    np.testing.assert_allclose(p["ess"], b.pointwise["ess"])
    assert p["jackknife"].isna().all()
    assert (none["log_px"] == -np.inf).all()


def test_one_trained_model_is_no_second_seed() -> None:
    x = model().sample(20, seed=1)
    a, b = evaluate(x, 0, 100), evaluate(x, 1, 100)
    for seeds in ([a, b], [a, a]):
        with pytest.raises(ValueError, match=r"m\[0\] and m\[1\] are results of one trained model"):
            pv.compare({"m": seeds})
    trained = [pv.VAE((12,), 2, hidden=(8,), likelihood="gaussian") for _ in range(2)]
    both = [pv.log_marginal(vae, x, num_samples=100, progress=False) for vae in trained]
    assert pv.compare({"m": both})["seeds"].item() == 2


def test_data_that_chose_the_epoch() -> None:
    """fit keeps the best epoch by its validation data: log p(x) on them is not that of new data."""
    torch.manual_seed(0)
    x, val, test = (model().sample(n, seed=n) for n in (60, 41, 40))
    vae = pv.VAE((12,), 2, hidden=(8,), likelihood="gaussian")
    plain = pv.log_marginal(vae, val, num_samples=10, progress=False)
    pv.fit(vae, x, validation=val, epochs=2, progress=False, device="cpu")
    on_val = pv.log_marginal(vae, val, num_samples=10, progress=False)
    assert (plain.validation_data, on_val.validation_data) == (False, True)
    assert "fit chose the epoch by these data" in on_val.verdict
    with pytest.warns(UserWarning, match="fit chose the epoch of 'trained' by these very data"):
        pv.compare({"untrained": plain, "trained": on_val})
    assert not pv.log_marginal(vae, test, num_samples=10, progress=False).validation_data
    # Fitted again by other data, by a loader, and as the generative part of another model.
    pv.fit(
        vae, x, validation=torch.utils.data.TensorDataset(test, torch.zeros(40)), epochs=1, progress=False, device="cpu"
    )
    refitted, _ = pv.refit_posterior(vae, x, "mean_field", epochs=1, progress=False, device="cpu")
    for trained in (vae, refitted):
        for data in (val, test):
            assert pv.log_marginal(trained, data.numpy(), num_samples=10, progress=False).validation_data
    assert pv.MarginalResult.from_arviz(on_val.to_arviz()).validation_data


def test_data_in_two_results_and_results_of_other_kinds_are_refused() -> None:
    x = model().sample(20, seed=1)
    frame = pd.DataFrame(x.numpy(), index=[f"row {i}" for i in range(20)])
    parts = [evaluate(frame[:12], 0), evaluate(frame[10:], 1)]
    with pytest.raises(ValueError, match="datum 'row 10' is in two results"):
        pv.pool(parts)
    apart = [evaluate(frame[:12], 0), evaluate(frame[12:], 1)]
    assert list(pv.pool(apart).pointwise.index) == list(frame.index)
    with pytest.raises(TypeError, match="got a AISResult"):
        pv.pool([pv.ais(model(), x[:2], num_temperatures=5, num_chains=2, progress=False)])
    assert pv.pool(parts[0]) is parts[0]
