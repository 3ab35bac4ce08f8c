"""What log_marginal returns, refuses and leaves alone."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray

import pyrovae as pv
from pyrovae import _graph
from pyrovae._memory import Cost, plan, probe
from pyrovae.evaluation.marginal import _weights as weights
from pyrovae.evaluation.marginal._stream import WeightStream
from pyrovae.evaluation.marginal._tail import tail_length
from tests.models import Conditional, TwoSites, binary


def small(posterior: str = "mean_field", **options) -> pv.VAE:
    return pv.VAE((6,), 3, posterior=posterior, hidden=(16,), **options)


def evaluate(model: pv.VAEModel, *args, **kwargs) -> pv.MarginalResult:
    return pv.log_marginal(model, *args, **{"num_samples": 50, "progress": False, **kwargs})


def test_columns_summary_and_bounds() -> None:
    result = evaluate(small(), binary(8), bounds=(1, 10, 5000))
    assert list(result.pointwise.columns[:6]) == ["log_px", "mc_se", "draws", "ess", "khat", "elbo"]
    assert result.bounds == (1, 5, 10, 50)  # K/10 is always among them
    assert len(result.pointwise) == 8
    row = result.summary()
    p = result.pointwise
    assert row["log_px"] == pytest.approx(p["log_px"].mean())
    assert row["se_data"] == pytest.approx(p["log_px"].std() / math.sqrt(8))
    assert row["mc_se"] == pytest.approx(np.sqrt((p["mc_se"] ** 2).sum()) / 8)
    assert row["bits_per_dim"] == pytest.approx(-row["log_px"] / (6 * math.log(2)))
    assert (p["elbo"] <= p["log_px"]).mean() > 0.8
    assert (p["L_50"] == p["log_px"]).all()


def test_bits_per_dim_only_for_discrete_data() -> None:
    assert "bits_per_dim" not in evaluate(small(likelihood="gaussian"), torch.randn(4, 6)).summary()


@pytest.mark.parametrize("make", [small, TwoSites, lambda: small("planar"), lambda: small("iaf", prior="mixture")])
def test_stream_equals_one_big_run(make, monkeypatch) -> None:
    """Chunks over particles and data, reduced as they come, against all weights at once in float64."""
    model, x, chunks = make(), binary(5), {}
    update = WeightStream.update

    def spy(self, log_weight):
        chunks.setdefault(self, []).append(log_weight.double())
        update(self, log_weight)

    monkeypatch.setattr(WeightStream, "update", spy)
    monkeypatch.setattr(weights, "plan", lambda *args: (2, 270))
    result = evaluate(model, x, num_samples=1000)
    assert [len(c) for c in chunks.values()] == [4, 4, 4]
    w = torch.cat([torch.cat(c) for c in chunks.values()], 1)
    assert w.shape == (1000, 5)
    p = result.pointwise
    np.testing.assert_allclose(p["log_px"], w.logsumexp(0) - math.log(1000), rtol=1e-12)
    np.testing.assert_allclose(p["elbo"], w.mean(0), rtol=1e-12)
    np.testing.assert_allclose(p["L_1_se"], w.std(0) / math.sqrt(1000), rtol=1e-10)
    np.testing.assert_allclose(p["ess"], (2 * w.logsumexp(0) - (2 * w).logsumexp(0)).exp(), rtol=1e-10)
    blocks = w.unflatten(0, (10, 100)).logsumexp(1) - math.log(100)
    np.testing.assert_allclose(p["L_100"], blocks.mean(0), rtol=1e-12)
    np.testing.assert_allclose(p["L_100_se"], blocks.std(0) / math.sqrt(10), rtol=1e-9)


@pytest.mark.parametrize("autocast", [False, True])
def test_strict_whatever_the_caller_has_switched_on(autocast: bool) -> None:
    """bfloat16 autocast and reduced matrix precision around the call change nothing, and survive it."""
    model, x = small(), binary(4)
    expected = evaluate(model, x)
    backend = torch.backends.mkldnn.matmul
    before = backend.fp32_precision
    backend.fp32_precision = "bf16"
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            result = evaluate(model, x)
            seen = []
            hook = model.decoder.register_forward_hook(lambda m, a, out: seen.append(backend.fp32_precision))
            evaluate(model, x)
            hook.remove()
        assert backend.fp32_precision == "bf16"
    finally:
        backend.fp32_precision = before
    assert set(seen) == {"ieee"}
    pd.testing.assert_frame_equal(result.pointwise, expected.pointwise)


def test_reduced_precision_set_through_either_interface_is_put_back() -> None:
    model, x = small(), binary(4)
    torch.set_float32_matmul_precision("high")
    try:
        evaluate(model, x)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        evaluate(model, x)
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"


@pytest.mark.slow
def test_zero_weights_do_not_depend_on_the_chunks(monkeypatch) -> None:
    """A normal guide for a uniform prior: draws outside have weight zero, the ELBO is -inf, log p(x) is not."""

    class Uniform(pv.VAEModel):
        event_shape = (1,)

        def __init__(self, width: float) -> None:
            super().__init__()
            self.width = torch.nn.Parameter(torch.tensor(width))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Uniform(-self.width, self.width).expand([1]).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    x = torch.tensor([[0.0], [0.5]])
    inside = torch.special.ndtr(1.0 - x[:, 0]) - torch.special.ndtr(-1.0 - x[:, 0])
    exact = inside.log() - math.log(2.0)  # of U(-1, 1) blurred by N(0, 1)
    for chunks in ((2, 1000), (1, 3)):
        monkeypatch.setattr(weights, "plan", lambda *args, chunks=chunks: chunks)
        p = evaluate(Uniform(1.0), x, num_samples=1000).pointwise
        assert (p["elbo"] == -math.inf).all()
        assert (abs(p["log_px"] - exact.numpy()) < 4.5 * p["mc_se"]).all()
        none = evaluate(Uniform(1.0), x + 50.0, num_samples=1000)
        assert (none.pointwise["log_px"] == -math.inf).all()
        assert (none.pointwise["ess"] == 0).all()
        assert none.pointwise["khat"].isna().all()
        assert none.summary()["non_finite"] == 2


def test_covariates_in_any_form() -> None:
    model, x, y = Conditional(), binary(4), torch.randn(4, 2)
    expected = evaluate(model, x, y)
    for same in (y.numpy(), y.double(), pd.DataFrame(y.numpy())):
        result = evaluate(model, x, same)
        np.testing.assert_allclose(result.pointwise["log_px"], expected.pointwise["log_px"], rtol=1e-6)
    hashes = {evaluate(m, x, y.double().numpy()).provenance.data_hash for m in (Conditional(), Conditional().double())}
    assert len(hashes) == 1


def test_support_of_rearranged_data_is_checked_too() -> None:
    class Columns(pv.VAEModel):
        max_plate_nesting = 2

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
                with pyro.plate("pixels", x.shape[1]):
                    pyro.sample("x", dist.Bernoulli(logits=z), obs=x.T)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x.mean(1), 0.7))

    x = binary(8)
    evaluate(Columns(), x)
    x[5] = 0.3
    with pytest.raises(ValueError, match="outside the support"):
        evaluate(Columns(), x)


def test_seed_decides_and_leaves_the_generator() -> None:
    model, x = small(), binary(4)
    state = torch.get_rng_state()
    a, b, c = evaluate(model, x), evaluate(model, x), evaluate(model, x, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    pd.testing.assert_frame_equal(a.pointwise, b.pointwise)
    assert (a.pointwise["log_px"] != c.pointwise["log_px"]).all()


def test_leaves_the_model_and_the_process_as_they_were() -> None:
    model = small().train()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    evaluate(model, binary(4))
    assert model.training
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert torch.distributions.Distribution._validate_args
    assert torch.backends.cudnn.allow_tf32
    assert len(pyro.get_param_store()) == 0
    assert all(p.grad is None for p in model.parameters())


def test_evaluation_mode_is_used() -> None:
    model = small(encoder=torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Dropout(0.9))).train()
    evaluate(model, binary(4))
    seen = []
    model.encoder.register_forward_hook(lambda module, args, out: seen.append(module.training))
    evaluate(model, binary(4))
    assert not any(seen)
    assert model.encoder[1].training


def test_arrays_frames_and_covariates() -> None:
    model, x = small(), binary(4)
    expected = evaluate(model, x)
    for same in (x.numpy(), x.double().numpy(), pd.DataFrame(x.numpy())):
        pd.testing.assert_frame_equal(evaluate(model, same).pointwise, expected.pointwise)
        assert evaluate(model, same).provenance.data_hash == expected.provenance.data_hash
    y = torch.randn(4, 2)
    assert len(evaluate(Conditional(), x, y).pointwise) == 4
    with pytest.raises(ValueError, match="covariate 0 has 3 rows and x has 4"):
        evaluate(Conditional(), x, y[:3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_model_in_its_own_precision(dtype: torch.dtype) -> None:
    assert np.isfinite(evaluate(small().to(dtype), binary(4)).pointwise["log_px"]).all()


def test_one_draw_has_no_standard_error() -> None:
    p = evaluate(small(), binary(4), num_samples=1).pointwise
    assert p["mc_se"].isna().all()
    assert p["khat"].isna().all()
    assert not p["reliable"].any()
    assert (p["log_px"] == p["elbo"]).all()


def test_non_finite_weights_are_counted_not_dropped() -> None:
    model = small()

    class Poisoned(torch.nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            logits = z[..., :1].expand(*z.shape[:-1], 6)
            return torch.where(logits > 2.0, torch.nan, logits)

    model.decoder = Poisoned()
    result = evaluate(model, binary(4), num_samples=1000)
    assert (result.pointwise["non_finite"] > 0).any()
    assert result.summary()["non_finite"] == (result.pointwise["non_finite"] > 0).sum()
    assert math.isnan(result.summary()["log_px"])
    assert math.isnan(result.summary()["se_data"])


BAD = {
    "shape": (lambda: torch.zeros(4, 7), r"x has shape \(4, 7\); the model needs \(N, 6\)"),
    "one datum": (lambda: torch.zeros(6), r"pass x.unsqueeze\(0\)"),
    "image": (lambda: torch.zeros(4, 2, 3), r"Pass x.reshape\(-1, 6\)"),
    "integer": (lambda: torch.zeros(4, 6, dtype=torch.int64), r"x has dtype int64; .* x.float\(\) / 255"),
    "boolean": (lambda: torch.zeros(4, 6, dtype=torch.bool), "x has dtype bool"),
    "NaN": (lambda: torch.full((4, 6), math.nan), "24 NaN or infinite value.*first in row 0"),
    "infinite": (lambda: torch.tensor([[0.0] * 6, [math.inf] * 6]), "6 NaN or infinite value.*first in row 1"),
    "support": (
        lambda: torch.full((4, 6), 0.5),
        r"24 value\(s\) outside the support .* 'x' .*Bernoulli.*e.g. 0.5.* Binarise",
    ),
    "empty": (lambda: torch.zeros(0, 6), "x is empty"),
    "text": (lambda: np.array([["a"] * 6]), "x must be a tensor, array or DataFrame of numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_named(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        evaluate(small(), make())


def test_bad_support_late_in_the_data_is_found() -> None:
    x = binary(500)
    x[400, 3] = 0.25
    with pytest.raises(ValueError, match=r"1 value\(s\) outside the support"):
        evaluate(small(), x)


def test_a_decoder_that_wants_contiguous_latents() -> None:
    model, x = small(), binary(100)

    class Viewing(torch.nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return z.view(-1, 3).repeat(1, 2).view(*z.shape[:-1], 6)

    model.decoder = Viewing()
    result = evaluate(model, x, num_samples=500, memory_budget=2**14)
    np.testing.assert_allclose(
        result.pointwise["log_px"], evaluate(model, x, num_samples=500).pointwise["log_px"], rtol=1e-5
    )


def test_bad_arguments_are_named() -> None:
    model, x = small(), binary(4)
    for bad in (0, -5, 2.5, True):
        with pytest.raises(ValueError, match="num_samples"):
            evaluate(model, x, num_samples=bad)
    with pytest.raises(ValueError, match="bounds"):
        evaluate(model, x, bounds=(0,))
    with pytest.raises(TypeError, match=r"needs a pyrovae.VAEModel.*Linear"):
        evaluate(torch.nn.Linear(6, 6), x)
    with pytest.raises(ValueError, match="'warp' is not a torch device"):
        evaluate(model, x, device="warp")
    for device, why in {"mps": "no numbers of 64 bits", "meta": "holds no values", "xpu": "nothing here was"}.items():
        with pytest.raises(ValueError, match=f"device '{device}' .*{why}.*: use 'auto', 'cpu' or 'cuda'"):
            evaluate(model, x, device=device)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"'cuda' is not there: torch sees 0 CUDA device"):
            evaluate(model, x, device="cuda")


def test_a_subclass_with_a_wrong_shape_says_where() -> None:
    class Wrong(TwoSites):
        event_shape = None

    with pytest.raises(ValueError, match=r"(?s)fails on x of shape .*leading dimensions"):
        evaluate(Wrong(), torch.zeros(4, 5))


@pytest.mark.parametrize(
    ("n", "k", "budget", "cost", "expected"),
    [
        (100, 50, 10_000, Cost(0, 10), (20, 50)),
        (100, 5000, 10_000, Cost(0, 10), (1, 1000)),
        (100, 1, 10_000, Cost(990, 10), (10, 1)),
        (100, 5000, 10_000, Cost(5_000, 10), (1, 500)),
        (3, 7, 10**9, Cost(1, 1), (3, 7)),
        (5, 9, 1, Cost(10, 10), (1, 1)),
    ],
)
def test_chunks_fit_the_budget(n: int, k: int, budget: int, cost: Cost, expected: tuple[int, int]) -> None:
    batch, draws = plan(n, k, budget, cost)
    assert (batch, draws) == expected
    assert batch * (cost.per_datum + draws * cost.per_draw) <= max(budget, cost.per_datum + cost.per_draw)


def test_the_probe_sees_what_a_datum_and_a_draw_allocate() -> None:
    cost = probe(lambda n, k: (torch.zeros(n, 100), torch.zeros(n, k, 25)))
    assert cost == Cost(per_datum=400, per_draw=100)


def test_heavy_amortisation_counts_at_one_draw() -> None:
    """16 Sylvester flows of Z = 64 cost a megabyte per datum before the first draw."""
    vae = pv.VAE((6,), 64, posterior="sylvester", posterior_options={"num_flows": 16}, hidden=(16,))
    x = binary(8)
    with torch.no_grad():
        cost = probe(lambda n, k: vae.log_terms(x[:n], num_particles=k))
    assert cost.per_datum > 2**20
    assert plan(10_000, 1, 64 * 2**20, cost)[0] < 64


@pytest.mark.slow
def test_peak_memory_grows_neither_with_draws_nor_with_data() -> None:
    """Peak resident memory of a fresh process, after runs with enough work to fill the budget (64 MiB) many times."""
    code = """
import resource, torch, pyrovae as pv
torch.set_num_threads(1)
torch.manual_seed(0)
vae = pv.VAE((784,), 16, hidden=(100,))
for n, k in ((200, 500), (5, 30_000), (1000, 500)):
    x = (torch.rand(n, 784) < 0.3).float()
    pv.log_marginal(vae, x, num_samples=k, progress=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    start, many_draws, many_data = (int(peak) / 1024 for peak in done.stdout.split())
    print(f"peak MiB: {start:.0f}, with many draws {many_draws:.0f}, with many data {many_data:.0f}")
    # Equal runs scatter by 80 MiB, and 1000 images with their temporaries weigh 10. Keeping the decoder's outputs would
    # add 470 and 1500 MiB; small results kept between chunks once fragmented the heap by 400 over 1000 data.
    assert many_draws - start < 200
    assert many_data - start < 200


def test_the_stream_keeps_the_tail_and_nothing_else() -> None:
    def kept(num_samples: int) -> int:
        stream = WeightStream(3, num_samples, (1, 100, num_samples), torch.device("cpu"))
        for _ in range(num_samples // 100):
            stream.update(torch.randn(100, 3))
        parts = [vars(stream), *(vars(block) for block in stream._blocks.values())]
        return sum(t.numel() for part in parts for t in part.values() if isinstance(t, torch.Tensor))

    assert kept(50_000) - kept(500) == 3 * (tail_length(50_000) + 1 - 128)


def test_arviz_container_survives_a_file(tmp_path) -> None:
    result = evaluate(small(), binary(5), seed=None)
    container = result.to_arviz()
    container.to_netcdf(str(tmp_path / "result.nc"))
    with xarray.open_dataset(tmp_path / "result.nc", group="log_marginal") as read:
        np.testing.assert_array_equal(read["log_px"], result.pointwise["log_px"])
        assert read.attrs["data_hash"] == result.provenance.data_hash
        assert read.attrs["log_px"] == pytest.approx(result.summary()["log_px"])
    import arviz

    back = pv.MarginalResult.from_arviz(arviz.from_netcdf(str(tmp_path / "result.nc")))
    pd.testing.assert_frame_equal(back.pointwise, result.pointwise)
    for field in dataclasses.fields(result):
        if field.name != "pointwise":
            assert getattr(back, field.name) == getattr(result, field.name), field.name
    pd.testing.assert_series_equal(back.summary(), result.summary())
    with pytest.raises(ValueError, match="there is no group 'log_marginal'"):
        pv.MarginalResult.from_arviz(type(container)())


def test_slices_are_halved_when_memory_runs_out(monkeypatch) -> None:
    model, x = pv.VAE((6,), 3, hidden=(16,)), binary(10)
    expected = pv.log_marginal(model, x, num_samples=200, progress=False).pointwise
    score, limit = type(model).log_joint, 37

    def short(self, *part, latents):
        if latents["z"].shape[:2].numel() > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")
        return score(self, *part, latents=latents)

    monkeypatch.setattr(type(model), "log_joint", short)
    got = pv.log_marginal(model, x, num_samples=200, progress=False).pointwise
    np.testing.assert_allclose(got["log_px"], expected["log_px"], rtol=1e-6)
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        pv.log_marginal(model, x, num_samples=200, progress=False)


@pytest.mark.slow
def test_compiled_results_differ_by_rounding_alone(monkeypatch) -> None:
    monkeypatch.setattr(_graph, "_WARM_UP_CALLS", 2)
    model, x = pv.VAE((6,), 3, hidden=(16,)), binary(10)
    options = {"num_samples": 200, "memory_budget": 20_000, "progress": False}
    plain = pv.log_marginal(model, x, compile="off", **options).pointwise
    code = pv.log_marginal(model, x, compile="inductor", **options).pointwise
    np.testing.assert_allclose(code["log_px"], plain["log_px"], rtol=1e-6)
    np.testing.assert_allclose(code["ess"], plain["ess"], rtol=1e-4)
    with pytest.raises(ValueError, match="compile must be one of 'auto', 'off', 'inductor'; got 'fast'"):
        pv.log_marginal(model, x, compile="fast", progress=False)


def test_blocks_are_halved_when_memory_runs_out_in_drawing(monkeypatch) -> None:
    """Their draws are others, of the same law; where one draw of a datum is too much, the error is the allocator's."""
    model, x = pv.VAE((6,), 3, hidden=(16,)), binary(20)
    options = {"num_samples": 400, "progress": False}
    expected = pv.log_marginal(model, x, **options).pointwise
    draw, sizes = type(model).draw_posterior, []

    def short(self, part, *covariates, num_particles):
        sizes.append((len(part), num_particles))
        if len(part) * num_particles > limit:
            raise torch.OutOfMemoryError
        return draw(self, part, *covariates, num_particles=num_particles)

    monkeypatch.setattr(type(model), "draw_posterior", short)
    limit = 1000
    halved = pv.log_marginal(model, x, **options).pointwise
    assert {(20, 400), (10, 400), (5, 400), (3, 400), (2, 400)} <= set(sizes)
    assert sizes.count((20, 400)) == sizes.count((10, 400)) == 1  # what is too much is not tried again
    error = np.hypot(halved["mc_se"], expected["mc_se"])
    assert ((halved["log_px"] - expected["log_px"]).abs() < 4 * error).all()
    assert not np.allclose(halved["log_px"], expected["log_px"], rtol=0, atol=1e-9)
    limit = 150
    assert (pv.log_marginal(model, x, **options).pointwise["mc_se"] > 0).all()
    assert {(1, 200), (1, 100)} <= set(sizes)
    limit = 0
    monkeypatch.setattr(weights, "probe", lambda run: Cost(0, 1))
    monkeypatch.setattr(type(model), "draw_posterior", short)
    with pytest.raises(torch.OutOfMemoryError):
        pv.log_marginal(model, x, **options)
