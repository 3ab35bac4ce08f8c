"""fit: every kind of data, what it restores, what it refuses, and what it says when a loss is not finite."""

import copy
import math
import time

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import infer
from pyro.contrib.gp.kernels import RBF
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import pyrovae as pv
from pyrovae.testing import DiscreteMixture
from pyrovae.training.engines import Task
from pyrovae.training.engines._check import Check
from tests.models import Conditional, TwoSites, binary


def small(posterior: str = "mean_field", **options) -> pv.VAE:
    return pv.VAE((6,), 3, posterior=posterior, hidden=(16,), **options)


def train(model: pv.VAEModel, data, **kwargs) -> pv.FitResult:
    return pv.fit(model, data, **{"epochs": 2, "progress": False, "seed": 0, "device": "cpu", **kwargs})


class Rows(Dataset):
    def __init__(self, x: torch.Tensor, *rest: torch.Tensor) -> None:
        self.parts = (x, *rest)

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, i: int):
        return tuple(p[i] for p in self.parts) if len(self.parts) > 1 else self.parts[0][i]


class Stream(IterableDataset):
    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def __iter__(self):
        return iter(self.x)


def _two_patterns(n: int) -> torch.Tensor:
    """Noisy copies of a pattern or its inverse: something to learn."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.randint(0, 2, (n, 1), generator=generator)
    mean = torch.where(kind == 1, torch.tensor([0.9] * 3 + [0.1] * 3), torch.tensor([0.1] * 3 + [0.9] * 3))
    return torch.bernoulli(mean, generator=generator)


X = _two_patterns(230)
KINDS = {
    "tensor": lambda: X,
    "array": lambda: X.numpy(),
    "float64 tensor": lambda: X.double(),
    "float64 array": lambda: X.double().numpy(),
    "DataFrame": lambda: pd.DataFrame(X.numpy()),
    "tuple": lambda: (X,),
    "TensorDataset with labels": lambda: TensorDataset(X, torch.arange(230)),
    "Dataset": lambda: Rows(X),
    "IterableDataset": lambda: Stream(X),
    "DataLoader": lambda: DataLoader(TensorDataset(X), batch_size=50),
}


@pytest.mark.parametrize("kind", KINDS)
def test_takes_any_kind_of_data(kind: str) -> None:
    model = small()
    run = train(model, KINDS[kind](), epochs=12, learning_rate=1e-2)
    assert run.history["loss"].iloc[-1] < run.history["loss"].iloc[0]
    assert run.history["loss"].iloc[-1] < 6 * math.log(2) + 0.1
    assert not model.training
    assert len(pyro.get_param_store()) == 0


def test_covariates_reach_the_model() -> None:
    x, y = binary(100), torch.randn(100, 2)
    for data in ((x, y), TensorDataset(x, y), DataLoader(TensorDataset(x, y, torch.arange(100)), 20)):
        train(Conditional(), data)
    train(Conditional(), (x, y), validation=0.2)
    with pytest.raises(ValueError, match=r"Conditional.model takes 1 covariate\(s\) and data has 0"):
        train(Conditional(), x)
    with pytest.raises(ValueError, match="covariate 0 of data has 99 rows and x has 100"):
        train(Conditional(), (x, y[:99]))


@pytest.mark.parametrize(
    "objective",
    [
        pv.ELBO(),
        pv.ELBO(beta=pv.linear_warmup(5), num_particles=3),
        pv.ELBO(analytic_kl=False),
        pv.IWAE(5),
        Trace_ELBO(),
        TraceMeanField_ELBO(),
        TraceGraph_ELBO(),
        RenyiELBO(alpha=0, num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    ],
    ids=lambda o: type(o).__name__,
)
def test_takes_our_objectives_and_pyros(objective) -> None:
    run = train(small(), X, objective=objective, epochs=15, learning_rate=1e-2, validation=0.2)
    assert run.history["val_loss"].iloc[-1] < run.history["val_loss"].iloc[0]


@pytest.mark.parametrize(
    ("objective", "why"),
    [
        (infer.JitTrace_ELBO(), "without Jit"),
        (infer.ReweightedWakeSleep(num_particles=2), "two losses"),
        (infer.TraceTailAdaptive_ELBO(num_particles=2, vectorize_particles=True), "what its loss is"),
        (infer.Trace_MMD(kernel=RBF(6), num_particles=2), "kernel"),
    ],
    ids=lambda o: o if isinstance(o, str) else type(o).__name__,
)
def test_objectives_of_no_use_are_refused_in_a_sentence(objective, why: str) -> None:
    with pytest.raises(ValueError, match=f"{type(objective).__name__} .*{why}"):
        train(small(), X, objective=objective, epochs=1)


@pytest.mark.slow
def test_history_and_schedules() -> None:
    run = train(
        small(),
        X,
        validation=0.2,
        objective=pv.ELBO(beta=pv.linear_warmup(4)),
        epochs=6,
        batch_size=46,
        lr_schedule=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1),
    )
    history = run.history
    assert list(history.columns) == ["loss", "beta", "learning_rate", "val_loss", "seconds"]
    assert history.index.tolist() == [0, 1, 2, 3, 4, 5]
    assert history["beta"].tolist() == pytest.approx([0.1875, 0.4375, 0.6875, 0.9375, 1.0, 1.0])
    assert history["learning_rate"].tolist() == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
    plateau = train(small(), X, lr_schedule=torch.optim.lr_scheduler.ReduceLROnPlateau)
    assert len(plateau.history) == 2


def test_the_loss_is_the_mean_per_datum_also_with_a_ragged_last_batch() -> None:
    model = small()
    start = copy.deepcopy(model)
    run = train(model, X, epochs=1, batch_size=100, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    reference = torch.stack([-start.log_terms(X, num_particles=1).log_weight.mean() for _ in range(200)])
    assert run.history["loss"][0] == pytest.approx(reference.mean().item(), abs=5 * reference.std().item())


def test_early_stopping_restores_the_best_weights() -> None:
    seen: list[tuple[float, dict]] = []

    def remember(run: pv.FitResult) -> None:
        seen.append((run.records[-1]["val_loss"], copy.deepcopy(run.model.state_dict())))

    model = small()
    run = train(model, X[:40], validation=X[40:], epochs=400, learning_rate=5e-2, patience=5, callbacks=[remember])
    assert run.stopped_early
    assert len(run.history) == run.best_epoch + 6 < 400
    best = min(range(len(seen)), key=lambda i: seen[i][0])
    assert best == run.best_epoch
    assert all(torch.equal(v, seen[best][1][k]) for k, v in model.state_dict().items())
    assert any(not torch.equal(v, seen[-1][1][k]) for k, v in model.state_dict().items())


def test_patience_starts_when_the_warm_up_has_ended() -> None:
    frozen = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0), "validation": X, "patience": 2, "epochs": 50}
    assert len(train(small(), X, **frozen).history) == 3
    run = train(small(), X, objective=pv.ELBO(beta=pv.linear_warmup(10)), **frozen)
    assert len(run.history) == 10 + 2


def test_a_model_that_cannot_be_vectorised_trains_with_one_particle() -> None:
    class Flat(pv.VAE):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", self.prior(self.q))
                assert z.dim() == 2
                pyro.sample("x", self.p(z), obs=x)

    train(Flat((6,), 3, hidden=(16,)), X)


def test_the_progress_bar_keeps_up_with_short_epochs(capsys, monkeypatch) -> None:
    monkeypatch.setattr("pyrovae.training._loop._SECONDS_BETWEEN_READINGS", 0.1)
    train(small(), X, batch_size=230, epochs=3, progress=True, callbacks=[lambda run: time.sleep(0.15)])
    shown = capsys.readouterr().err
    assert "epoch 3, loss" in shown


def test_callbacks_can_stop() -> None:
    run = train(small(), X, epochs=50, callbacks=[lambda run: len(run.records) == 3])
    assert run.stopped_early
    assert len(run.history) == 3


def test_a_seed_fixes_everything_and_does_not_leak() -> None:
    state, weights = torch.get_rng_state(), []
    for _ in range(2):
        torch.manual_seed(5)
        model = small()
        torch.set_rng_state(state)
        train(model, X * 0.9, batch_transform=torch.bernoulli, validation=X[:20], seed=3)
        weights.append(model.state_dict())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())


def test_clipping_bounds_the_gradient() -> None:
    norms = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            norms.append(torch.linalg.vector_norm(torch.cat([g.flatten() for g in grads])).item())
            return super().step(closure)

    train(small(), X, optimizer=lambda p: Spy(p, lr=0.1), clip_norm=0.05)
    assert max(norms) == pytest.approx(0.05, rel=1e-3)


def test_dynamic_binarisation_draws_anew_and_only_for_training() -> None:
    intensities = torch.full((50, 6), 0.5)
    seen: list[torch.Tensor] = []

    def draw(x: torch.Tensor) -> torch.Tensor:
        seen.append(torch.bernoulli(x))
        return seen[-1]

    options = {"batch_transform": draw, "validation": binary(20), "batch_size": 50, "epochs": 3}
    train(small(), intensities, compile="off", **options)
    assert all(set(s.unique().tolist()) == {0.0, 1.0} for s in seen)
    assert len(seen) == 5  # one for the check of the model, one for a look at all data, one for each epoch
    assert len({tuple(s.flatten().tolist()) for s in seen}) == 5


def test_datasets_bring_their_splits() -> None:
    data = pv.datasets.load("digits", binarize="dynamic")
    run = train(pv.VAE(data.event_shape, 2, hidden=(16,)), data)
    assert "val_loss" in run.history


def test_discrete_latents_learn() -> None:
    torch.manual_seed(1)
    model = DiscreteMixture(torch.zeros(3), torch.randn(3, 6))
    before = model.exact_log_px(X).mean().item()
    train(model, X, epochs=60, learning_rate=2e-2)
    assert model.exact_log_px(X).mean().item() > before + 0.3


def _poison_after(module: torch.nn.Module, calls_left: list[int]) -> None:
    def hook(module, args, out):
        calls_left[0] -= 1
        return out * math.nan if calls_left[0] < 0 else out

    module.register_forward_hook(hook)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("encoder", r"log q\(z\|x\) at site 'z' is NaN for 100 of 100 data"),
        ("decoder", r": log p\(x\|z\) at site 'x' is NaN"),
    ],
)
def test_non_finite_terms_name_epoch_step_and_site(where: str, message: str) -> None:
    model, calls_left = small(), [10_000]
    _poison_after(getattr(model, where), calls_left)
    weights = []

    def arm(run: pv.FitResult) -> None:
        if len(run.records) == 2:
            calls_left[0] = 1  # one good step in epoch 2, then NaN
        weights.append(copy.deepcopy(run.model.state_dict()))

    with pytest.raises(pv.NonFiniteLoss, match=message) as caught:
        train(model, X[:200], epochs=5, callbacks=[arm], compile="off")  # the hook counts its calls
    assert (caught.value.epoch, caught.value.step) == (2, 1)
    assert "epoch 2, step 1" in str(caught.value)
    assert len(caught.value.run.history) == 2
    assert all(v.isfinite().all() for v in model.state_dict().values())
    assert any(not torch.equal(v, weights[-1][k]) for k, v in model.state_dict().items())  # the good step is kept


def test_a_loss_that_nobody_read_is_found_by_going_back(monkeypatch) -> None:
    """As on a device that would have to be waited for: the same step, the same cause, the same weights."""
    rare = torch.cat([X[:199], torch.full((1, 6), 9.0)])
    caught, models = [], []
    for reads in (True, False):
        monkeypatch.setattr(Task, "reads_every_loss", reads)
        armed = []
        torch.manual_seed(1)
        models.append(small(likelihood="gaussian"))
        models[-1].encoder.register_forward_hook(
            lambda module, args, out, armed=armed: out * math.nan if armed and bool((args[0] == 9.0).any()) else out
        )

        def arm(run: pv.FitResult, armed=armed) -> None:
            armed.extend([True] * (len(run.records) == 2))

        with pytest.raises(pv.NonFiniteLoss, match=r"log q\(z\|x\) at site 'z' is NaN for") as error:
            train(models[-1], rare, epochs=5, batch_size=20, callbacks=[arm], compile="off")
        caught.append(error.value)
    assert str(caught[0]) == str(caught[1])
    assert (caught[0].epoch, caught[0].step) == (caught[1].epoch, caught[1].step)
    assert caught[0].epoch == 2
    assert caught[0].step > 0
    assert all(torch.equal(v, models[1].state_dict()[k]) for k, v in models[0].state_dict().items())


def test_non_finite_validation_is_an_error_too() -> None:
    held_out = torch.cat([X[:150], torch.full((1, 6), 3e38)])
    with pytest.raises(pv.NonFiniteLoss, match=r"the validation loss is not finite at epoch 0"):
        train(small(likelihood="gaussian"), X[:200], validation=held_out)


def test_exploding_updates_name_the_parameter_and_roll_back() -> None:
    model, weights = small(), []

    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            if len(weights) == 2:
                self.param_groups[0]["params"][0].data.fill_(math.nan)

    with pytest.raises(pv.NonFiniteLoss, match=r"an update made parameters non-finite") as caught:
        train(
            model,
            X[:200],
            epochs=5,
            optimizer=lambda p: Broken(p, lr=1e-3),
            callbacks=[lambda run: weights.append(copy.deepcopy(run.model.state_dict()))],
        )
    assert (caught.value.epoch, caught.value.step) == (2, 1)
    assert all(torch.equal(v, weights[-1][k]) for k, v in model.state_dict().items())


def test_a_broken_last_update_is_an_error_too() -> None:
    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            self.param_groups[0]["params"][0].data.fill_(math.nan)

    model = small()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        pv.NonFiniteLoss, match=r"the update is not finite at epoch 0, step 0: .* parameters non-finite"
    ):
        train(model, X, epochs=1, batch_size=230, optimizer=lambda p: Broken(p, lr=1e-3))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_data_that_can_be_read_only_once_are_refused() -> None:
    class Once(IterableDataset):
        def __init__(self) -> None:
            self.rows = iter(X)

        def __iter__(self):
            return self.rows

    for kwargs in ({"data": Once()}, {"data": X, "validation": Once()}):
        with pytest.raises(ValueError, match="can be iterated only once"):
            train(small(), kwargs.pop("data"), **kwargs)


def test_every_batch_of_a_loader_is_looked_at() -> None:
    poisoned = torch.cat([X[:200], X[200:] * 0.5])
    for data in (DataLoader(TensorDataset(poisoned), batch_size=50), Rows(poisoned)):
        with pytest.raises(ValueError, match=r"data holds .* outside the support"):
            train(small(), data)
    with pytest.raises(ValueError, match=r"validation holds .* outside the support"):
        train(small(), X, validation=DataLoader(TensorDataset(poisoned), batch_size=50))
    with pytest.raises(ValueError, match=r"data holds .* outside the support"):
        train(small(), poisoned, batch_transform=lambda x: x, batch_size=10)
    with pytest.raises(ValueError, match="data holds 6 NaN"):
        train(small(), DataLoader(TensorDataset(torch.cat([X, X[:1] * math.nan])), batch_size=50))


def test_gradients_are_of_the_loss_per_datum() -> None:
    """One plain gradient step moves the weights by the gradient of the mean, whatever the batch size."""
    model = small()
    twin = copy.deepcopy(model)
    run = train(model, X, epochs=1, batch_size=230, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    moved = {k: twin.state_dict()[k] - v for k, v in model.state_dict().items()}
    # The expected gradient, from many draws; a sum over data would be 230 times larger.
    (-twin.log_terms(X, num_particles=500).log_weight.mean()).backward()
    ours = torch.cat([moved[k].flatten() for k, p in twin.named_parameters()])
    mean = torch.cat([p.grad.flatten() for p in twin.parameters()])
    assert (ours - mean).norm() < 0.3 * mean.norm()
    assert run.history["loss"][0] > 0


def test_validation_uses_the_final_weight() -> None:
    """With the weights frozen, validation does not see the warm-up; the training loss does."""
    frozen = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0), "validation": X, "epochs": 4}
    model = small()
    torch.nn.init.constant_(model.posterior.head.bias, 1.5)  # a KL term that cannot be overlooked
    run = train(model, X, objective=pv.ELBO(beta=pv.linear_warmup(4)), **frozen)
    assert run.history["val_loss"].nunique() == 1
    assert run.history["loss"].is_monotonic_increasing
    assert run.history["val_loss"][0] > run.history["loss"][2]


def test_data_are_shuffled_anew_every_epoch() -> None:
    rows = torch.arange(64).float().reshape(-1, 1).expand(-1, 6)
    seen = []

    def remember(x):
        seen.append(x[:, 0].tolist())
        return x

    train(small(likelihood="gaussian"), rows / 64, batch_transform=remember, batch_size=64, epochs=3, compile="off")
    assert all(sorted(order) == (rows[:, 0] / 64).tolist() for order in seen)
    assert seen.pop(1) == (rows[:, 0] / 64).tolist()  # the look at all data before the first epoch
    assert len({tuple(order) for order in seen}) == len(seen) == 4


def test_patience_waits_for_the_end_of_a_cyclical_schedule() -> None:
    frozen = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0), "validation": X, "patience": 2, "epochs": 50}
    run = train(small(), X, objective=pv.ELBO(beta=pv.cyclical(4, cycles=3)), **frozen)
    assert len(run.history) == 12 + 2


def test_held_out_fractions_are_transformed_once() -> None:
    run = train(small(), X * 0.8, validation=0.2, batch_transform=torch.bernoulli)
    assert "val_loss" in run.history
    with pytest.raises(ValueError, match=r"data holds .* outside the support"):
        train(small(), X, batch_transform=lambda x: x * 0.5)
    with pytest.raises(ValueError, match="batch_transform does not take it"):
        train(small(), X * 3.0, batch_transform=torch.bernoulli)


def test_covariates_in_any_form() -> None:
    y = torch.randn(230, 2)
    for covariate in (y.double(), y.numpy(), y.double().numpy(), pd.DataFrame(y.numpy())):
        train(Conditional(), (X.numpy(), covariate), validation=0.2)
    with pytest.raises(ValueError, match="covariate 0 of data has 50 rows and x has 230"):
        train(Conditional(), (X, y[:50]), validation=0.2)


def test_a_refused_fit_leaves_buffers_alone() -> None:
    encoder = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.BatchNorm1d(16))
    model = small(encoder=encoder)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="outside the support"):
        train(model, X * 0.5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    train(model, X, epochs=1)
    assert encoder[1].num_batches_tracked == 3


def test_stray_pyro_params_are_refused() -> None:
    class Stray(pv.VAE):
        def model(self, x):
            pyro.param("bias", torch.zeros(()))
            super().model(x)

    with pytest.raises(ValueError, match=r"pyro.param\('bias', ...\) inside model or guide would not be trained"):
        train(Stray((6,), 3, hidden=(16,)), X)


def test_pyro_module_statements_are_welcome() -> None:
    class Tutorial(pv.VAE):
        def model(self, x):
            pyro.module("decoder", self.decoder)
            super().model(x)

    model = Tutorial((6,), 3, hidden=(16,))
    before = copy.deepcopy(model.decoder.state_dict())
    train(model, X)
    assert any(not torch.equal(v, before[k]) for k, v in model.decoder.state_dict().items())
    assert np.isfinite(pv.log_marginal(model, X[:5], num_samples=10, progress=False).pointwise["log_px"]).all()


def test_frozen_infinite_parameters_are_not_broken() -> None:
    model = small()
    model.mask = torch.nn.Parameter(torch.tensor([0.0, -math.inf]), requires_grad=False)
    train(model, X)


@pytest.mark.parametrize("objective", [pv.ELBO(num_particles=3), pv.IWAE(3), pv.ELBO()])
def test_nested_plates_train(objective) -> None:
    """Pixels and their channels in plates of their own: the bound is that of the same model written with events."""

    class Plates(pv.VAEModel):
        def __init__(self, nested: bool) -> None:
            super().__init__()
            self.max_plate_nesting = 2 if nested else 1
            self.nested, self.loc = nested, torch.nn.Parameter(torch.tensor(0.3))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
                if self.nested:
                    with pyro.plate("pixels", 6):
                        pyro.sample("x", dist.Normal(z + self.loc, 1.0), obs=x.T)
                else:
                    pyro.sample(
                        "x", dist.Normal((z + self.loc).unsqueeze(-1), 1.0).expand([*z.shape, 6]).to_event(1), obs=x
                    )

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x.mean(-1), 0.4))

    runs = [train(Plates(nested), X, objective=objective) for nested in (True, False)]
    assert runs[0].history["loss"].tolist() == pytest.approx(runs[1].history["loss"].tolist(), rel=1e-5)
    undeclared = Plates(True)
    undeclared.max_plate_nesting = 1
    if objective.num_particles > 1:
        with pytest.raises(ValueError, match="max_plate_nesting"):
            train(undeclared, X, objective=objective)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"data": X.long()}, ValueError, "data has dtype int64"),
        ({"data": X[:0]}, ValueError, "data is empty"),
        ({"data": TensorDataset(X[:0])}, ValueError, "data is empty"),
        ({"data": X[:, :5]}, ValueError, r"data has shape \(230, 5\); the model needs \(N, 6\)"),
        ({"data": torch.where(X > 0, math.nan, X)}, ValueError, "data holds .* NaN"),
        ({"data": X * 0.5}, ValueError, "data holds .* outside the support"),
        ({"data": X, "validation": X * 0.5}, ValueError, "validation holds .* outside the support"),
        ({"data": X, "validation": X[:0]}, ValueError, "validation is empty"),
        ({"data": X, "validation": 1.5}, ValueError, "between 0 and 1"),
        ({"data": DataLoader(TensorDataset(X), 10), "validation": 0.1}, ValueError, "pass the validation set"),
        ({"data": "digits"}, TypeError, "data must be a tensor.*got str"),
        ({"data": X, "epochs": -1}, ValueError, "epochs"),
        ({"data": X, "batch_size": 0}, ValueError, "batch_size"),
        ({"data": X, "patience": 3}, ValueError, "patience needs validation"),
        ({"data": X, "patience": 0, "validation": 0.1}, ValueError, "patience must be at least 1"),
        ({"data": X, "clip_norm": 0.0}, ValueError, "clip_norm"),
        ({"data": X, "learning_rate": -1.0}, ValueError, "learning_rate"),
        ({"data": X, "objective": "elbo"}, TypeError, "objective must be"),
        ({"data": X, "device": "warp"}, ValueError, "not a torch device"),
    ],
)
def test_bad_arguments_are_named(kwargs: dict, error: type[Exception], message: str) -> None:
    model = small()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        train(model, kwargs.pop("data"), **kwargs)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_not_a_model_and_an_absent_device() -> None:
    with pytest.raises(TypeError, match=r"needs a pyrovae.VAEModel"):
        train(torch.nn.Linear(6, 6), X)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="is not there"):
            train(small(), X, device="cuda:3")


def test_a_subclass_learns_its_event_shape() -> None:
    class Shapeless(TwoSites):
        event_shape = None

    model = Shapeless()
    train(model, X)
    assert model.event_shape == (6,)
    assert model.sample(3).shape == (3, 6)


@pytest.mark.cuda
def test_trains_on_cuda_by_default() -> None:
    model = small()
    pv.fit(model, X, epochs=2, progress=False)
    assert model.placement.device.type == "cuda"
    assert np.isfinite(pv.log_marginal(model, X, num_samples=50, progress=False).pointwise["log_px"]).all()


# -- batches of a single datum ---------------------------------------------------------------------------------------


def normalised() -> pv.VAE:
    encoder = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU())
    return pv.VAE((6,), 3, hidden=(8,), encoder=encoder)


@pytest.mark.parametrize("compile", ["off", "graph"])
def test_a_datum_that_is_left_over_joins_the_batch_before(compile: str) -> None:
    sizes: list[int] = []

    def count(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if module.training:
            sizes.append(len(args[0]))

    model, x = normalised(), X[:101]
    model.encoder.register_forward_pre_hook(count)
    run = train(model, x, batch_size=50, validation=X[:1], compile=compile)
    assert run.history["val_loss"].notna().all()
    assert {50, 51} <= set(sizes)
    assert min(sizes) > 1
    sizes.clear()
    train(model, x, batch_size=100, compile="off")
    assert set(sizes) == {101}
    for held_out in (X[:1], X[:11], DataLoader(TensorDataset(X[:11]), 10), 0.01):
        assert train(model, X[:100], validation=held_out, batch_size=10).history["val_loss"].notna().all()


@pytest.mark.parametrize(
    "data",
    [
        X[:1],
        DataLoader(TensorDataset(X[:101]), 50, shuffle=True),
        DataLoader(TensorDataset(X[:2]), 1),
        TensorDataset(X[:101]),
        Stream(X[:101]),
    ],
    ids=["one", "loader", "loader of ones", "dataset", "stream"],
)
def test_a_batch_of_one_that_cannot_be_trained_on_is_found_before_it_is(data) -> None:
    model = normalised()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="batch of a single datum, on which VAE cannot be trained: Expected more"):
        train(model, data, batch_size=50)
    if not isinstance(data, Stream):  # whose length nobody knows
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert train(small(), data, batch_size=50).history["loss"].notna().all()  # others can


# -- what the caller has set ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("compile", ["off", "graph"])
def test_nothing_that_the_caller_has_set_changes_training(compile: str) -> None:
    def trained() -> list[float]:
        torch.manual_seed(0)
        run = train(small(), X, validation=X[:20], compile=compile)
        return run.history[["loss", "val_loss"]].to_numpy().flatten().tolist()

    expected = trained()
    for setting in (
        torch.autocast("cpu", dtype=torch.bfloat16),
        torch.inference_mode(),
        torch.no_grad(),
        torch.set_grad_enabled(True),
    ):
        with setting:
            torch.manual_seed(0)
            with torch.inference_mode(False):
                model = small()
            run = train(model, X, validation=X[:20], compile=compile)
        assert run.history[["loss", "val_loss"]].to_numpy().flatten().tolist() == expected, setting


def test_an_epoch_of_one_step_is_not_compared_with_pyro_every_time() -> None:
    compared: list[int] = []
    agrees = Check.agrees

    def count(self: Check, *args: object) -> bool:
        compared.append(1)
        return agrees(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Check, "agrees", count)
        assert train(small(), X, batch_size=len(X), epochs=30, compile="graph").engine == "graph"
        alone = len(compared)
        train(small(), X, batch_size=len(X), epochs=30, compile="graph", callbacks=[lambda run: None])
    assert alone <= 2  # the first, and no other in a hundred steps
    assert len(compared) - alone >= 29  # a callback may change anything


@pytest.mark.parametrize("compile", ["off", "graph"])
@pytest.mark.parametrize(
    ("transform", "error", "message"),
    [
        (lambda t: t[:3], ValueError, r"^batch_transform gives shape \(3, 6\) for 100 data: one for each is needed"),
        (lambda t: torch.cat([t, t]), ValueError, r"^batch_transform gives shape \(200, 6\) for 100 data"),
        (lambda t: t.sum(), ValueError, r"^batch_transform gives shape \(\) for 100 data"),
        (lambda t: t.numpy(), TypeError, r"^what batch_transform gives must be of type Tensor; got a ndarray"),
        (lambda t: None, TypeError, r"^what batch_transform gives must be of type Tensor; got None"),
        (lambda t: t * math.nan, ValueError, r"^a batch of data after batch_transform holds \d+ NaN"),
        (lambda t: t + 0j, ValueError, r"^a batch of data after batch_transform has dtype complex64"),
    ],
)
def test_what_a_transform_gives_is_looked_at(transform, error, message: str, compile: str) -> None:
    with pytest.raises(error, match=message):
        train(small(), X[:100], batch_size=100, epochs=1, batch_transform=transform, compile=compile)


def test_a_transform_may_compute_in_another_precision() -> None:
    losses = []
    for transform in (None, lambda t: t.double()):
        torch.manual_seed(0)
        losses.append(train(small(), X, epochs=1, batch_transform=transform).history["loss"])
    assert losses[0].equals(losses[1])


@pytest.mark.parametrize("weight", [None, "a", np.zeros(2), 1j, torch.zeros(2), -1.0, math.nan])
def test_a_schedule_gives_a_number(weight) -> None:
    for name, make in (("beta", pv.ELBO), ("capacity", pv.CapacityELBO)):
        with pytest.raises(ValueError, match=rf"^{name}, a schedule, at time t=0 must not be negative.*; got "):
            train(small(), X, epochs=1, objective=make(**{name: lambda t: weight}))


@pytest.mark.parametrize("result", [np.zeros(2), "no", 0, 1.0, pd.DataFrame({"a": [1, 2]}), torch.zeros(2)])
def test_a_callback_says_whether_to_stop(result) -> None:
    with pytest.raises(TypeError, match=r"^callbacks\[1\] must give True to stop, or False or None to go on; it gave "):
        train(small(), X, epochs=2, callbacks=[lambda run: None, lambda run: result])


@pytest.mark.parametrize("result", [True, np.True_, torch.tensor(True)])
def test_a_callback_stops(result) -> None:
    assert len(train(small(), X, epochs=2, callbacks=[lambda run: result]).history) == 1


def test_optimisers_of_pyro_are_refused() -> None:
    decay = pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.9})
    for given in (pyro.optim.Adam({"lr": 0.1}), pyro.optim.Adam, pyro.optim.ClippedAdam({"lr": 0.1})):
        with pytest.raises(TypeError, match=r"^optimizer is one of Pyro's.*pass lambda given: torch\.optim\.Adam"):
            train(small(), X, epochs=1, optimizer=given)
    with pytest.raises(TypeError, match=r"^lr_schedule is one of Pyro's"):
        train(small(), X, epochs=1, lr_schedule=decay)
