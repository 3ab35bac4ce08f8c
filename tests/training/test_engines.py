"""Engines against their slow and obvious twin: same seed, same trajectory; and models that they cannot take."""

import copy
import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroParam
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyrovae as pv
from pyrovae.testing import DiscreteMixture
from pyrovae.training import engines
from pyrovae.training.engines import ENGINES
from tests.cases import CONTEXT, LATENT, POSTERIORS
from tests.models import Conditional, TwoSites, binary

X = binary(230)
STEPS = {"epochs": 3, "batch_size": 50, "learning_rate": 1e-2, "seed": 0, "progress": False}
COMPILED = [name for name in ENGINES if name not in ("off", "auto", "cudagraph")]


class Tempered(pv.VAE):
    """With a constrained parameter, dropout, and running statistics that it replaces rather than changes."""

    def __init__(self) -> None:
        super().__init__(
            (6,), 3, hidden=(16,), encoder=nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.2))
        )
        self.scale = PyroParam(torch.tensor(1.0), dist.constraints.positive)
        self.register_buffer("average", torch.zeros(6))

    def p(self, z):
        self.average = 0.9 * self.average + 0.1 * z.detach().mean() if self.training else self.average
        return pv.distributions.IndependentBernoulli(self.decoder(z) * self.scale, 1)


def build(name: str) -> pv.VAEModel:
    torch.manual_seed(1)
    if name == "two sites":
        return TwoSites()
    if name == "tempered":
        return Tempered()
    if name == "vamp":
        return pv.VAE((6,), 3, hidden=(16,), prior="vamp", prior_options={"num_pseudo_inputs": 4})
    if name == "gaussian":
        return pv.VAE((6,), 3, hidden=(16,), likelihood="gaussian")
    if name == "conv":
        return pv.VAE((1, 8, 8), 3, hidden=(16,), network="conv")
    if name == "discrete":
        return DiscreteMixture(torch.zeros(3), torch.randn(3, 6))
    return pv.VAE((6,), LATENT, hidden=(16, CONTEXT), posterior=POSTERIORS[name]())


def trained(
    name: str, compile: str, device: str = "cpu", x: torch.Tensor = X, moved_by: int | None = None, **options
) -> tuple[pv.VAEModel, pv.FitResult]:
    model = build(name)
    if moved_by is not None:  # every weight to the next number, up or down
        torch.manual_seed(moved_by)
        for p in model.parameters():
            p.data *= 1.0 + torch.finfo(p.dtype).eps * torch.randint(0, 2, p.shape).mul(2).sub(1)
    if name == "conv":
        x = torch.nn.functional.pad(x, (0, 58)).reshape(-1, 1, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run = pv.fit(model, x, compile=compile, device=device, **{**STEPS, **options})
    return model, run


def apart(a: nn.Module, b: nn.Module) -> float:
    """The distance between the weights and buffers of two models."""
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return math.sqrt(sum(float((x.double() - y.double()).square().sum()) for x, y in pairs))


MODELS = [*POSTERIORS, "two sites", "tempered", "vamp", "gaussian", "conv", "discrete"]


@pytest.mark.parametrize("name", MODELS)
def test_graph_follows_pyro_bit_for_bit(name: str) -> None:
    """Weights, buffers, losses, random state: with a ragged last batch, binarisation, clipping, schedules."""
    options = {
        "objective": pv.ELBO(beta=pv.linear_warmup(2), num_particles=2 if name == "iaf" else 1),
        "lr_schedule": lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5),
        "clip_norm": 0.5,
        "x": X if name in ("gaussian",) else X * 0.7,
        "batch_transform": None if name == "gaussian" else torch.bernoulli,
    }
    (plain, expected), (graph, run) = (trained(name, engine, **options) for engine in ("off", "graph"))
    for key, value in plain.state_dict().items():
        assert torch.equal(graph.state_dict()[key], value), key
    assert run.history.drop(columns="seconds").equals(expected.history.drop(columns="seconds"))
    assert (expected.engine, run.engine) == ("off", "graph")
    if name == "tempered":
        assert plain.average.abs().sum() > 0
        assert plain.encoder[1].num_batches_tracked == 15


@pytest.mark.slow
@pytest.mark.parametrize("name", ["iaf", "sylvester_square", "tempered"])
def test_inductor_follows_pyro_up_to_rounding(name: str) -> None:
    """By plain gradient steps: Adam would blow up the rounding of gradients that are zero, e.g. along Q's columns."""
    options = {"x": X * 0.7, "batch_transform": torch.bernoulli, "objective": pv.ELBO(beta=pv.linear_warmup(2))}
    options["optimizer"] = lambda p: torch.optim.SGD(p, lr=0.1)
    (plain, expected), (code, run) = (trained(name, engine, **options) for engine in ("off", "inductor"))
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(code.state_dict()[key], value, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run.history["loss"], expected.history["loss"], rtol=1e-5)


@pytest.mark.parametrize("objective", [pv.IWAE(4), pv.ELBO(num_particles=3, analytic_kl=False)], ids=["IWAE", "ELBO"])
def test_objectives_and_covariates_in_a_graph(objective) -> None:
    y = torch.randn(230, 2)
    weights = []
    for engine in ("off", "graph"):
        torch.manual_seed(1)
        model = Conditional()
        pv.fit(model, (X, y), compile=engine, objective=objective, device="cpu", **STEPS)
        weights.append(model.state_dict())
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())


@pytest.mark.cuda
@pytest.mark.parametrize("name", MODELS)
def test_cuda_graph_follows_pyro_on_cuda(name: str) -> None:
    options = {
        "device": "cuda",
        "objective": pv.ELBO(beta=pv.linear_warmup(2)),
        "lr_schedule": lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5),
        "clip_norm": 0.5,
        "x": X if name == "gaussian" else X * 0.7,
        "batch_transform": None if name == "gaussian" else torch.bernoulli,
    }
    (plain, expected), (graph, run) = (trained(name, engine, **options) for engine in ("off", "cudagraph"))
    # As far apart as Pyro's own runs are from weights that differ in their last bit: Adam blows up rounding.
    others = [trained(name, "off", moved_by=seed, **options) for seed in (1, 2, 3)]
    assert apart(graph, plain) <= 5.0 * max(apart(other, plain) for other, _ in others)
    off = [abs(r.history["loss"] - expected.history["loss"]).max() for r in (run, *(other for _, other in others))]
    assert off[0] <= 5.0 * max(off[1:])
    assert (expected.engine, run.engine) == ("off", "cudagraph")


@pytest.mark.cuda
def test_validation_is_captured_too() -> None:
    """With a ragged last batch of either; validation draws the same every epoch."""
    options = {"validation": X[:130], "objective": pv.ELBO(num_particles=2, analytic_kl=False), "epochs": 20}
    expected, run = (trained("iaf", engine, "cuda", **options)[1] for engine in ("off", "cudagraph"))
    assert run.engine == "cudagraph"
    np.testing.assert_allclose(run.history["val_loss"], expected.history["val_loss"], rtol=1e-3)
    frozen = {**options, "optimizer": lambda p: torch.optim.SGD(p, lr=0.0)}
    assert trained("iaf", "cudagraph", "cuda", **frozen)[1].history["val_loss"].nunique() == 1


@pytest.mark.cuda
def test_a_step_that_cannot_be_captured_keeps_its_machine_code() -> None:
    """A number that goes through the CPU, for which the device has to wait."""

    class Waiting(pv.VAE):
        def q(self, x):
            return super().q(x * x.mean().cpu().clamp(1.0, 1.0).to(x.device))

    states = []
    for engine in ("off", "cudagraph"):
        torch.manual_seed(1)
        model = Waiting((6,), 3, hidden=(16,))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            run = pv.fit(model, X * 0.7, compile=engine, device="cuda", batch_transform=torch.bernoulli, **STEPS)
        states.append(model.state_dict())
    assert run.engine in ("inductor", "graph")
    assert "is not captured as a CUDA graph" in str(caught[-1].message)
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-3, atol=1e-4)
    assert torch.rand(3, device="cuda").unique().numel() == 3  # the generator is as it was


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["gru", "vqvae"])
def test_recurrent_and_quantised_models_are_captured(kind: str) -> None:
    x = torch.nn.functional.pad(X, (0, 58)).reshape(-1, 1, 8, 8)
    torch.manual_seed(1)
    model = pv.zoo.PixelCNN((1, 8, 8), decoder="gru") if kind == "gru" else pv.zoo.VQVAE((1, 8, 8), downsampling=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        run = pv.fit(model, x, device="cuda", **STEPS)
    assert run.engine == ("cudagraph(graph)" if kind == "gru" else "cudagraph")
    assert all(
        "without machine code" in str(w.message) for w in caught
    )  # of CUDA's fused recurrent cells there is none


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["SGD", "Adagrad", "Adam not fused"])
def test_cuda_graphs_with_other_optimisers(kind: str) -> None:
    optimizer = {
        "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.1),
        "Adam not fused": lambda p: torch.optim.Adam(p, lr=1e-2),
    }[kind]
    options = {"optimizer": optimizer, "lr_schedule": lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5)}
    plain, graph = (trained("gaussian", engine, "cuda", **options)[0] for engine in ("off", "cudagraph"))
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(graph.state_dict()[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.cuda
def test_a_cuda_graph_resumes(tmp_path) -> None:
    options = {"lr_schedule": lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5), "device": "cuda"}
    whole = trained("mean_field", "cudagraph", **{**options, "epochs": 6})[0]
    for epochs in (2, 6):
        again, run = trained("mean_field", "cudagraph", **{**options, "epochs": epochs, "checkpoint": tmp_path})
    assert run.engine == "cudagraph"
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.cuda
def test_non_finite_losses_are_found_afterwards_on_cuda() -> None:
    model = build("gaussian")
    order = DataLoader(TensorDataset(torch.cat([X[:200], torch.full((50, 6), 3e30), X[:200]])), 50)
    with pytest.raises(pv.NonFiniteLoss, match="the loss is not finite at epoch 0, step 4") as caught:
        pv.fit(model, order, device="cuda", **STEPS)
    assert caught.value.step == 4
    assert all(v.isfinite().all() for v in model.state_dict().values())


@pytest.mark.cuda
def test_bfloat16_trains_on_cuda_and_is_not_evaluated() -> None:
    model = pv.VAE((6,), 3, hidden=(16,))
    run = pv.fit(model, X, precision="bfloat16", device="cuda", epochs=30, learning_rate=1e-2, progress=False)
    assert run.history["loss"].iloc[-1] < run.history["loss"].iloc[0]
    seen = []
    model.decoder.register_forward_hook(lambda module, args, out: seen.append((out.dtype, torch.is_autocast_enabled())))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        pv.log_marginal(model, X[:20], num_samples=20, progress=False)
    assert set(seen) == {(torch.float32, False)}


def test_bfloat16_is_for_cuda() -> None:
    with pytest.raises(ValueError, match="precision='bfloat16' is for CUDA devices; the device is cpu"):
        pv.fit(pv.VAE((6,), 3), X, precision="bfloat16", device="cpu")
    with pytest.raises(ValueError, match="precision must be one of 'float32', 'bfloat16'; got 'half'"):
        pv.fit(pv.VAE((6,), 3), X, precision="half", device="cpu")
    with pytest.raises(ValueError, match=r"compile must be one of 'auto', .*; got 'jit'"):
        pv.fit(pv.VAE((6,), 3), X, compile="jit", device="cpu")


class Branching(pv.VAE):
    """Control flow that depends on data."""

    def p(self, z):
        if z.abs().max() > 1e9:  # the line that the warning names
            z = z * 0
        return super().p(z)


class Remembering(pv.VAE):
    """Keeps a tensor of the last run."""

    def q(self, x):
        self.last = self.encoder(x)
        return self.posterior(self.last)


class Memoising(pv.VAE):
    """Adds to what it has seen before."""

    def q(self, x):
        memo = self.__dict__.setdefault("memo", {"mean": torch.zeros(())})
        memo["mean"] = 0.9 * memo["mean"] + 0.1 * x.mean()
        return super().q(x + 0.1 * memo["mean"])


class Keeping(pv.VAE):
    """Keeps the last posterior for a callback to look at."""

    def q(self, x):
        self.last = super().q(x)
        return self.last


class Noisy(pv.VAE):
    """Draws with a generator that nobody else knows."""

    def q(self, x):
        return super().q(x + self.numbers.normal())


class Legacy(pv.VAE):
    """Draws NumPy's global random numbers."""

    def q(self, x):
        return super().q(x + np.random.normal())  # noqa: NPY002


CANNOT = {
    "control flow": (Branching, r"test_engines\.py:\d+ \(if z\.abs\(\)\.max\(\) > 1e9:"),
    "tensors in a dict": (Memoising, r"the model sets Memoising\.memo as it runs"),
    "a distribution left behind": (Keeping, r"the model sets Keeping\.last as it runs"),
    "tensors left behind": (Remembering, r"the model sets Remembering\.last as it runs"),
    "hidden random numbers": (Noisy, r"its loss or gradient differs from Pyro's at the same draws"),
    "NumPy's random numbers": (Legacy, r"random numbers that are not torch's"),
}


@pytest.mark.parametrize("case", CANNOT)
@pytest.mark.parametrize("compile", ["graph", "auto"])
def test_models_that_cannot_be_traced_train_through_pyro_with_one_warning(case: str, compile: str, monkeypatch) -> None:
    monkeypatch.setitem(engines._MIN_CALLS_TO_TRACE, "train", 0)
    cls, message = CANNOT[case]
    weights = []
    for engine in ("off", compile):
        torch.manual_seed(1)
        model = cls((6,), 3, hidden=(16,))
        model.numbers = np.random.default_rng(0)
        np.random.seed(0)  # noqa: NPY002
        if engine == "off":
            pv.fit(model, X, compile=engine, device="cpu", **STEPS)
        else:
            with pytest.warns(UserWarning, match=message) as caught:
                pv.fit(model, X, compile=engine, device="cpu", **STEPS)
            assert len(caught) == 1
            assert f"compile={compile!r}: training goes through Pyro step by step" in str(caught[0].message)
        weights.append({k: v.clone() for k, v in model.state_dict().items()})
    if case != "hidden random numbers":  # whose draws the attempt has used up
        assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())
    if case == "tensors left behind":
        assert type(model.last) is torch.Tensor


@pytest.mark.slow
def test_auto_compiles_where_there_is_work_enough(monkeypatch) -> None:
    assert trained("mean_field", "auto")[1].engine == "off"
    monkeypatch.setitem(engines._MIN_CALLS_TO_TRACE, "train", 10)
    assert trained("mean_field", "auto")[1].engine == "graph"
    monkeypatch.setattr("pyrovae._graph._WORTHWHILE_SECONDS", 1e-3)
    assert trained("mean_field", "auto")[1].engine == "inductor"


def test_pyros_objectives_train_as_they_are() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert pv.fit(pv.VAE((6,), 3), X, objective=Trace_ELBO(), device="cpu", **STEPS).engine == "off"
    with pytest.warns(UserWarning, match="compile='graph': training goes through Pyro"):
        pv.fit(pv.VAE((6,), 3), X, objective=TraceMeanField_ELBO(), compile="graph", device="cpu", **STEPS)


def test_weights_of_an_objective_of_ones_own_enter_the_graph() -> None:
    class Floored(pv.ELBO):
        """An override of the bound, which is what is trained."""

        def weights(self, t):
            return super().weights(t) | {"floor": 0.1 * min(t, 2.0)}

        def per_datum(self, terms, *, floor, **weights):
            return super().per_datum(terms, **weights) - floor * terms.reconstruction.mean(0)

    expected, got = (trained_weights(Floored(), engine) for engine in ("off", "graph"))
    assert all(torch.equal(v, got[k]) for k, v in expected.items())
    plain = trained_weights(pv.ELBO(), "graph")
    assert not any(torch.equal(v, plain[k]) for k, v in expected.items())


def trained_weights(objective, compile: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    model = pv.VAE((6,), 3, hidden=(16,))
    pv.fit(model, X, objective=objective, compile=compile, device="cpu", **STEPS)
    return model.state_dict()


def test_changes_between_epochs_are_noticed() -> None:
    """Attributes, closures and frozen parameters that a callback changes: the graph is made anew."""
    temperature = [1.0]

    class Annealed(pv.VAE):
        def p(self, z):
            return super().p(z * temperature[0])

    def cool(run: pv.FitResult) -> None:
        temperature[0] *= 0.5
        if len(run.records) == 2:
            run.model.encoder.requires_grad_(False)

    weights = []
    for engine in ("off", "graph"):
        temperature[0] = 1.0
        torch.manual_seed(1)
        model = Annealed((6,), 3, hidden=(16,))
        pv.fit(model, X, compile=engine, callbacks=[cool], device="cpu", **{**STEPS, "epochs": 4})
        weights.append(model.state_dict())
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())


def test_a_model_that_was_moved_and_brought_back_trains_on() -> None:
    """Its parameters have other memory then, at equal values."""

    def move(run: pv.FitResult) -> None:
        run.model.double().float()

    weights = []
    for engine in ("off", "graph"):
        torch.manual_seed(1)
        model = pv.VAE((6,), 3, hidden=(16,))
        pv.fit(model, X, compile=engine, callbacks=[move], device="cpu", **STEPS)
        weights.append(model.state_dict())
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())


def test_a_change_that_shows_in_the_gradient_alone_is_noticed() -> None:
    class Detachable(pv.VAE):
        cut = False

        def p(self, z):
            return super().p(z.detach() if self.cut else z)

    def cut(run: pv.FitResult) -> None:
        run.model.cut = True

    weights = []
    for engine in ("off", "graph"):
        torch.manual_seed(1)
        model = Detachable((6,), 3, hidden=(16,))
        pv.fit(model, X, compile=engine, callbacks=[cut], device="cpu", **STEPS)
        weights.append(model.state_dict())
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())


class Strided(pv.VAE):
    """Gradients of every layout: transposed, expanded, one for two parameters, and one that is part of another."""

    def __init__(self) -> None:
        super().__init__((6,), 3, hidden=(16,))
        self.w = nn.Parameter(0.1 * torch.randn(6, 16))
        self.c, self.a, self.b = (nn.Parameter(0.1 * torch.randn(n)) for n in (5, 16, 16))

    def q(self, x):
        h = torch.einsum("...i,io->...o", x, self.w.permute(1, 0).reshape(-1).reshape(16, 6).T)
        return self.posterior((h + self.a + self.b) * (1 + self.c.sum()) + self.encoder(x))


@pytest.mark.parametrize("compile", ["graph", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_gradients_are_laid_out_as_optimisers_need_them(compile: str, clip_norm: float | None) -> None:
    """The fused Adam reads memory as it lies, and clipping scales it in place."""
    weights = []
    for engine in ("off", compile):
        torch.manual_seed(1)
        model = Strided()
        run = pv.fit(model, X, compile=engine, clip_norm=clip_norm, device="cpu", **STEPS)
        assert run.engine == engine
        weights.append(model.state_dict())
    for key, value in weights[0].items():
        tolerance = {"rtol": 0.0, "atol": 0.0} if compile == "graph" else {"rtol": 5e-2, "atol": 5e-3}
        torch.testing.assert_close(weights[1][key], value, **tolerance)


def test_buffers_that_validation_replaces_are_the_right_ones() -> None:
    class Averaging(pv.VAE):
        def __init__(self) -> None:
            super().__init__((6,), 3, hidden=(16,))
            self.register_buffer("average", torch.zeros(()))

        def q(self, x):
            self.average = 0.9 * self.average + 0.1 * x.mean()
            return super().q(x)

    averages = []
    for engine in ("off", "graph"):
        torch.manual_seed(1)
        model = Averaging()
        x = X * 0.7
        pv.fit(model, x, validation=X[:20], batch_transform=torch.bernoulli, compile=engine, device="cpu", **STEPS)
        averages.append(model.average)
    assert torch.equal(*averages)


class Bookkeeping(pv.VAE):
    """A buffer that no loss depends on; ``kind`` says what becomes of it."""

    def __init__(self, kind: str) -> None:
        super().__init__((6,), 3, hidden=(16,))
        self.kind = kind
        self.register_buffer(
            "kept", None if kind == "made" else torch.zeros(6, dtype=torch.long if kind == "dtype" else None)
        )

    def q(self, x):
        if self.training:
            mean = x.mean(0)
            if self.kind == "shape":
                self.kept = mean.mean()
            elif self.kind == "in place":
                self.kept.copy_(2.0 * self.kept + torch.rand(6)).clamp_(max=9.0)
            else:
                self.kept = mean if self.kept is None else 0.9 * self.kept + 0.1 * mean
        return super().q(x)


@pytest.mark.parametrize("compile", ["graph", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["replaced", "dtype", "shape", "made", "in place"])
def test_buffers_end_as_they_do_through_pyro(kind: str, compile: str) -> None:
    """Where a graph cannot keep them, it is left out, with a warning."""
    states = []
    for engine in ("off", compile):
        torch.manual_seed(1)
        model = Bookkeeping(kind)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            run = pv.fit(model, X, compile=engine, device="cpu", **STEPS)
        states.append(model.state_dict())
    traceable = kind in ("replaced", "in place")
    assert run.engine == (compile if traceable else "off")
    assert ["its buffer kept" in str(w.message) for w in caught] == ([] if traceable else [True])
    tolerance = {"rtol": 5e-2, "atol": 5e-3} if run.engine == "inductor" else {"rtol": 0.0, "atol": 0.0}
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, **tolerance)
    assert type(model.kept) is torch.Tensor


@pytest.mark.slow
def test_a_change_is_noticed_when_the_loss_has_fallen_far() -> None:
    """What rounding explains at a loss of 10⁷ is not what it explains at one of 10."""

    class Scaled(pv.VAE):
        factor = 1.0

        def p(self, z):
            return super().p(z * self.factor)

    def change(run: pv.FitResult) -> None:
        if len(run.records) == 1:
            with torch.no_grad():
                run.model.posterior.head.bias.fill_(0.1)
        run.model.factor = 1.02 if len(run.records) >= 2 else 1.0

    losses = []
    for engine in ("graph", "inductor"):
        torch.manual_seed(1)
        model = Scaled((6,), 3, hidden=(16,))
        with torch.no_grad():
            model.posterior.head.bias.fill_(3e3)
        options = {**STEPS, "epochs": 4, "learning_rate": 1e-9, "callbacks": [change], "device": "cpu"}
        losses.append(pv.fit(model, X, compile=engine, **options).history["loss"])
    assert losses[0][0] > 1e5 > 1e3 * losses[0][2]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_loaders_whose_batches_have_other_sizes_than_they_say() -> None:
    twice = DataLoader(TensorDataset(X), 50, collate_fn=lambda rows: torch.stack([r[0] for r in rows]).repeat(2, 1))
    for loader in (twice, DataLoader(TensorDataset(X[:30]), 50)):
        model = pv.VAE((6,), 3, hidden=(16,))
        assert pv.fit(model, loader, compile="graph", device="cpu", **STEPS).engine == "graph"


def test_sparse_gradients_train() -> None:
    class Looked(pv.LossModel):
        event_shape = (6,)

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 6, sparse=True)

        def loss(self, x):
            return (self.table(x.sum(-1).long() % 4) - x).square().sum(-1)

    model = Looked()
    options = {**STEPS, "optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}
    run = pv.fit(model, X, compile="off", device="cpu", **options)
    assert run.history["loss"].is_monotonic_decreasing


def test_validation_leaves_the_gradients_of_training() -> None:
    seen = []

    def look(run: pv.FitResult) -> None:
        seen.append([p.grad is not None for p in run.model.parameters()])

    x, held_out = X[:200], DataLoader(TensorDataset(X.repeat(2, 1)[:320]), 10)
    pv.fit(pv.VAE((6,), 3), x, validation=held_out, compile="graph", callbacks=[look], device="cpu", **STEPS)
    assert all(map(all, seen))


@pytest.mark.slow
def test_a_cuda_graph_needs_cuda() -> None:
    with pytest.warns(UserWarning, match="CUDA graphs need a CUDA device, and the model is on cpu") as caught:
        run = pv.fit(pv.VAE((6,), 3), X, compile="cudagraph", device="cpu", **STEPS)
    assert (run.engine, len(caught)) == ("inductor", 1)


def test_inductor_without_a_compiler_keeps_the_graph(monkeypatch) -> None:
    def broken(*args, **kwargs):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch._inductor, "compile", broken)
    with pytest.warns(UserWarning, match=r"without machine code, .*: RuntimeError: no C\+\+ compiler") as caught:
        run = pv.fit(pv.VAE((6,), 5), X, compile="inductor", device="cpu", **STEPS)
    assert (run.engine, len(caught)) == ("graph", 1)


def test_machine_code_that_is_wrong_or_fails_is_left_out(monkeypatch) -> None:
    """The graph remains, and training does not change by a bit."""
    expected = build("mean_field")
    pv.fit(expected, X, compile="graph", device="cpu", **STEPS)
    graph = []

    def wrong(*inputs):
        return [1.001 * r for r in graph[0](*inputs)]

    def failing(*inputs):
        raise AssertionError("expected size 16==16, stride 16==1 at dim=1")

    for code, message in ((wrong, "its loss or gradient differs"), (failing, "AssertionError: expected size 16==16")):
        monkeypatch.setattr(
            torch._inductor, "compile", lambda module, *rest, code=code, **options: (graph.insert(0, module), code)[1]
        )
        monkeypatch.setattr("pyrovae._code._COMPILED", {})
        model = build("mean_field")
        with pytest.warns(UserWarning, match=message) as caught:
            run = pv.fit(model, X, compile="inductor", device="cpu", **STEPS)
        assert (run.engine, len(caught)) == ("graph", 1)
        assert all(torch.equal(v, expected.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("compile", ["off", "graph"])
def test_a_bad_step_leaves_the_weights_before_it(compile: str) -> None:
    """The learning rate explodes at a known step, whose loss the next step finds."""

    class Exploding(torch.optim.SGD):
        steps = 0

        def step(self, closure=None):
            self.steps += 1
            if self.steps == 4:
                self.param_groups[0]["lr"] = 1e30
            super().step(closure)

    model = build("gaussian")
    with pytest.raises(pv.NonFiniteLoss) as caught:
        pv.fit(model, X, compile=compile, optimizer=lambda p: Exploding(p, lr=1e-3), device="cpu", **STEPS)
    assert (caught.value.epoch, caught.value.step) == (0, 4)
    assert all(v.isfinite().all() for v in model.state_dict().values())


@pytest.mark.parametrize("compile", ["off", "graph"])
def test_a_bad_loss_updates_nothing(compile: str) -> None:
    """The data of one step are beyond float32: the weights are those of a run that ends before it."""
    model, twin = build("gaussian"), build("gaussian")
    x = torch.cat([X[:200], torch.full((30, 6), 3e30)])
    order = DataLoader(TensorDataset(x), 50)  # as they come
    with pytest.raises(pv.NonFiniteLoss) as caught:
        pv.fit(model, order, compile=compile, device="cpu", **STEPS)
    assert (caught.value.epoch, caught.value.step) == (0, 4)
    pv.fit(twin, DataLoader(TensorDataset(x[:200]), 50), compile=compile, device="cpu", **{**STEPS, "epochs": 1})
    assert all(torch.equal(v, twin.state_dict()[k]) for k, v in model.state_dict().items())


def test_nothing_is_left_in_pyro_or_the_model(recwarn) -> None:
    model = build("iaf")
    pv.fit(model, X, compile="graph", device="cpu", **STEPS)
    assert len(pyro.get_param_store()) == 0
    assert all(type(p) in (nn.Parameter, torch.Tensor) for p in [*model.parameters(), *model.buffers()])
    copy.deepcopy(model)
    assert math.isfinite(model.log_terms(X[:2]).log_weight.sum().item())
    assert not [str(w.message) for w in recwarn if issubclass(w.category, UserWarning)]
