"""elbo_terms: three ways to write the ELBO, against exact answers."""

import math

import numpy as np
import pytest
import torch

import pyrovae as pv
from pyrovae.testing import DiscreteMixture, LinearGaussian
from tests.cases import randomized
from tests.models import Conditional, TwoSites, binary


def away(model: pv.VAEModel) -> pv.VAEModel:
    """Away from its initialisation, in single precision; log-densities keep tails whose variance can be estimated."""
    return randomized(model, scale=0.2).float()


MODELS = {
    "mean-field": lambda: away(pv.VAE((6,), 3, hidden=(16,))),
    "IAF": lambda: away(pv.VAE((6,), 3, posterior="iaf", hidden=(16,))),
    "Sylvester": lambda: away(pv.VAE((6,), 3, posterior="sylvester", hidden=(16,))),
    "two sites": lambda: away(TwoSites()),
    "two sites, bottom up": lambda: away(TwoSites(bottom_up=True)),
    "discrete": lambda: DiscreteMixture(torch.tensor([0.0, 1.0, -1.0]), 2 * torch.randn(3, 6)),
}


def terms_of(model: pv.VAEModel, *args, **kwargs) -> pv.ElboTerms:
    return pv.elbo_terms(model, *args, **{"progress": False, **kwargs})


@pytest.mark.parametrize("name", MODELS)
def test_every_line_adds_up_datum_by_datum(name: str) -> None:
    model, x = MODELS[name](), binary(20)
    result = terms_of(model, x)
    p = result.pointwise
    np.testing.assert_allclose(p["reconstruction"] - p["kl"], p["elbo"], atol=1e-4)
    np.testing.assert_allclose(p["expected_log_joint"] + p["entropy"], p["elbo"], atol=1e-4)
    np.testing.assert_allclose(p["log_px"] - p["kl_to_posterior"], p["elbo"], atol=1e-4)
    sites = [c for c in p if c.startswith("kl_z")]
    assert sites == (["kl_z2", "kl_z1"] if name == "two sites" else ["kl_z1", "kl_z2"] if "two" in name else [])
    if sites:
        np.testing.assert_allclose(p[sites].sum(axis=1), p["kl"], atol=1e-4)
    assert (p["kl_to_posterior"] >= -1e-9).all()  # of the same draws, by Jensen's inequality
    assert (p["kl_to_posterior"] > 1e-3).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_columns_equal_the_terms_of_one_plain_run(name: str) -> None:
    """The same draws at once, without blocks, taken from LogTerms by hand."""
    model, x = MODELS[name](), binary(8)
    p = terms_of(model, x, num_samples=30_000).pointwise
    with torch.no_grad():
        terms = model.log_terms(x, num_particles=30_000)
    for column, value in {
        "elbo": terms.log_weight,
        "reconstruction": terms.reconstruction,
        "entropy": -sum(terms.log_posterior.values()),
        "kl": sum(terms.log_posterior.values()) - sum(terms.log_prior.values()),
    }.items():
        se = (value.var(0) * 2 / 30_000).sqrt().numpy()
        assert (abs(p[column] - value.mean(0).numpy()) < 4 * se + 1e-4).all(), column
    if name in ("mean-field", "discrete"):  # the others' log-weights have tails too heavy for their own scatter
        np.testing.assert_allclose(p["elbo_se"], terms.log_weight.std(0) / math.sqrt(30_000), rtol=0.1)


def test_closed_form_kl_beside_monte_carlo() -> None:
    for name, known in {"mean-field": True, "two sites": True, "discrete": True, "IAF": False}.items():
        model, x = MODELS[name](), binary(20)
        p = terms_of(model, x, num_samples=2000).pointwise
        assert ("kl_exact" in p) == known
        if known:
            with torch.no_grad():
                terms = model.log_terms(x, num_particles=2000)
            log_ratio = sum(terms.log_posterior.values()) - sum(terms.log_prior.values())
            se = log_ratio.std(0).numpy() / math.sqrt(2000)
            assert (abs(p["kl"] - p["kl_exact"]) < 4 * se + 1e-5).all()
            assert (abs(p["kl"] - p["kl_exact"]) > 0).any()
    # Bottom up, z1 is drawn before z2 and scored after it: no closed form there.
    p = terms_of(MODELS["two sites, bottom up"](), binary(5)).pointwise
    assert "kl_exact" not in p
    assert [c for c in p if "exact" in c] == ["kl_exact_z2"]
    p = terms_of(MODELS["two sites"](), binary(5)).pointwise
    np.testing.assert_allclose(p["kl_exact_z1"] + p["kl_exact_z2"], p["kl_exact"], rtol=1e-12)


def linear(guide: str) -> tuple[LinearGaussian, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    w = 0.5 * torch.randn(12, 4, generator=generator)
    model = LinearGaussian(w, torch.randn(12, generator=generator), 0.8, guide=guide)
    return model, model.sample(50, seed=1)


def test_kl_to_posterior_is_the_approximation_gap() -> None:
    model, x = linear("mean_field")
    gap = model.approximation_gap()
    assert gap > 0.2
    result = terms_of(model, x, num_samples=2000, log_px=model.exact_log_px(x))
    p = result.pointwise
    assert result.log_px_given
    # 50 data: the largest of 50 normals lies beyond 4 once in 300 such tests, so the bound for each is 4.5.
    assert (abs(p["kl_to_posterior"] - gap) < 4.5 * p["elbo_se"]).all()
    row = result.summary()
    assert abs(row["kl_to_posterior"] - gap) < 4 * row["elbo_mc_se"]
    assert row["elbo_mc_se"] == pytest.approx(math.sqrt((p["elbo_se"] ** 2).sum()) / 50)
    assert row["elbo_se_data"] == pytest.approx(p["elbo"].std() / math.sqrt(50))
    for same in (model.exact_log_px(x).numpy(), model.exact_log_px(x).tolist()):
        np.testing.assert_array_equal(
            terms_of(model, x, num_samples=2000, log_px=same).pointwise["kl_to_posterior"], p["kl_to_posterior"]
        )


def test_exact_posterior_leaves_no_gap() -> None:
    model, x = linear("exact")
    p = terms_of(model, x, num_samples=5).pointwise
    np.testing.assert_allclose(p["kl_to_posterior"], 0.0, atol=1e-4)
    np.testing.assert_allclose(p["elbo"], model.exact_log_px(x), atol=1e-4)
    exact = 2 * math.log(2 * math.pi * math.e) - 0.5 * model.precision().logdet().item()
    # -log q(z) of a normal in Z dimensions has variance Z/2; 50 data with 5 draws each.
    assert abs(p["entropy"].mean() - exact) < 4 * math.sqrt(4 / 2 / 250)


def test_log_px_of_log_marginal_and_refusals() -> None:
    model, x = MODELS["mean-field"](), binary(20)
    marginal = pv.log_marginal(model, x, num_samples=500, progress=False)
    p = terms_of(model, x, log_px=marginal).pointwise
    np.testing.assert_array_equal(p["log_px"], marginal.pointwise["log_px"])
    with pytest.raises(ValueError, match=r"log_px was evaluated on other data than x \(content [0-9a-f]{16}, "):
        terms_of(model, 1 - x, log_px=marginal)
    with pytest.raises(ValueError, match=r"log_px has shape \(19,\); one number for each of 20 data"):
        terms_of(model, x, log_px=marginal.pointwise["log_px"][:19])
    with pytest.raises(ValueError, match=r"log_px holds 20 NaN value\(s\)"):
        terms_of(model, x, log_px=[math.nan] * 20)
    with pytest.raises(
        TypeError, match=r"log_px must be a result of log_marginal or ais, or one number per datum; got 'L_K'"
    ):
        terms_of(model, x, log_px="L_K")
    with pytest.raises(ValueError, match="num_samples"):
        terms_of(model, x, num_samples=0)
    with pytest.raises(TypeError, match=r"elbo_terms needs a pyrovae.VAEModel.*Linear"):
        terms_of(torch.nn.Linear(6, 6), x)


def test_covariates_single_draws_seeds_and_the_callers_state() -> None:
    model, x, y = Conditional().train(), binary(7), torch.randn(7, 2)
    state = torch.get_rng_state()
    p = terms_of(model, x, y).pointwise
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert (p["elbo"] == terms_of(model, x, y).pointwise["elbo"]).all()
    assert (p["elbo"] != terms_of(model, x, y, seed=1).pointwise["elbo"]).all()
    one = terms_of(model, x, y, num_samples=1).pointwise
    assert one["elbo_se"].isna().all()
    np.testing.assert_allclose(one["kl_to_posterior"], 0.0, atol=1e-12)
