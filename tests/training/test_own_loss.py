"""Models that train by a loss of their own, and penalties."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv

QUIET: dict[str, Any] = {"device": "cpu", "progress": False}


class Line(pv.LossModel):
    """Least squares through the origin."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(3))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return (y - x @ self.slope).square()


@pytest.fixture
def line() -> tuple[Tensor, Tensor]:
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    return x, x @ torch.tensor([1.0, -2.0, 0.5])


@pytest.mark.parametrize("compile", ["off", "graph"])
def test_a_loss_is_minimised(line: tuple[Tensor, Tensor], compile: str) -> None:
    model = Line()
    run = pv.fit(model, line, validation=0.2, epochs=40, learning_rate=0.05, seed=0, compile=compile, **QUIET)
    torch.testing.assert_close(model.slope.detach(), torch.tensor([1.0, -2.0, 0.5]), atol=1e-3, rtol=0)
    assert run.engine == compile
    assert run.history["val_loss"].iloc[-1] < 1e-4 < run.history["val_loss"].iloc[0]


def test_it_is_saved_and_loaded(line: tuple[Tensor, Tensor], tmp_path) -> None:
    model = Line()
    pv.fit(model, line, epochs=2, seed=0, **QUIET)
    model.save(tmp_path / "line.safetensors")
    assert torch.equal(pv.load(tmp_path / "line.safetensors").slope, model.slope)


def test_it_resumes_from_a_checkpoint(line: tuple[Tensor, Tensor], tmp_path) -> None:
    whole, part = Line(), Line()
    pv.fit(whole, line, epochs=4, seed=0, **QUIET)
    pv.fit(part, line, epochs=2, seed=0, checkpoint=tmp_path, **QUIET)
    pv.fit(part, line, epochs=4, seed=0, checkpoint=tmp_path, **QUIET)
    assert torch.equal(whole.slope, part.slope)


def test_what_has_no_density_is_refused(line: tuple[Tensor, Tensor]) -> None:
    x = line[0]
    for estimate in (pv.log_marginal, pv.ais, pv.elbo_terms, pv.collapse, pv.inference_gaps, pv.bdmc):
        with pytest.raises(TypeError, match="no density"):
            estimate(Line(), *([] if estimate is pv.bdmc else [x]))
    with pytest.raises(TypeError, match="no density"):
        pv.fit(Line(), line, epochs=1, callbacks=[pv.CollapseMonitor(x)], **QUIET)


def test_mistakes_are_named(line: tuple[Tensor, Tensor]) -> None:
    class Mean(Line):
        def loss(self, x: Tensor, y: Tensor) -> Tensor:
            return super().loss(x, y).mean()

    class Infinite(Line):
        def loss(self, x: Tensor, y: Tensor) -> Tensor:
            return super().loss(x, y) / (x[:, 0] > -9.0).logical_not()

    with pytest.raises(ValueError, match="one number for each datum"):
        pv.fit(Mean(), line, **QUIET)
    with pytest.raises(ValueError, match=r"the loss fails on data of shape \(100, 2\)"):
        pv.fit(Line(), (line[0][:, :2], line[1]), **QUIET)
    with pytest.raises(ValueError, match="takes 1 covariate"):
        pv.fit(Line(), line[0], **QUIET)
    with pytest.raises(TypeError, match="leave objective out"):
        pv.fit(Line(), line, objective=pv.ELBO(), **QUIET)
    with pytest.raises(pv.NonFiniteLoss, match=r"Infinite\.loss is infinite for 100 of 100 data"):
        pv.fit(Infinite(), line, seed=0, **QUIET)


class Penalised(pv.VAEModel):
    """z ~ N(0, 1), x ~ N(z + shift, 1), with a penalty on the shift."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.shift, self.loc = nn.Parameter(torch.zeros(())), nn.Linear(1, 1)
        self.weight = weight

    def penalty(self) -> Tensor | None:
        return self.weight * self.shift.square() if self.weight else None

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + self.shift, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc(x), 0.5**0.5).to_event(1))


@pytest.mark.parametrize("compile", ["off", "graph"])
def test_a_penalty_counts_once_for_every_datum(compile: str) -> None:
    """-log p(x) with mean m of the data has its minimum with penalty w s² at s = m / (1 + 4 w): (m - s) / 2 = 2 w s."""
    x = 2.0 + torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        model = Penalised(weight)
        objective = pv.ELBO(num_particles=20)
        options = {"compile": compile, "seed": 0, **QUIET}
        pv.fit(model, x, objective=objective, epochs=60, learning_rate=0.03, batch_size=250, **options)
        pv.fit(model, x, objective=objective, epochs=20, learning_rate=0.002, batch_size=1000, **options)
        assert model.shift.item() == pytest.approx(x.mean().item() / (1 + 4 * weight), abs=0.01)
    loss = pv.fit(Penalised(3.0), x, validation=x, epochs=1, learning_rate=1e-9, seed=0, **QUIET).history
    assert loss["loss"][0] == pytest.approx(loss["val_loss"][0], abs=0.2)  # shift is 0: no penalty in either


class Overflowing(pv.VAEModel):
    """Trained by its own loss, which overflows for large data while log p(x, z) and every parameter stay finite."""

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.norm = nn.Linear(1, 1), nn.BatchNorm1d(1)

    def loss(self, x: Tensor) -> Tensor:
        return (self.norm(x.exp()) + self.loc(x)).square().sum(-1)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc(x), 1.0).to_event(1))


@pytest.mark.parametrize("compile", ["off", "graph"])
def test_a_loss_that_overflows_leaves_no_trace_in_buffers_and_is_named(compile: str) -> None:
    x = torch.zeros(100, 1)
    x[50] = 100.0  # e^100 is infinite in float32
    model = Overflowing()
    with pytest.raises(pv.NonFiniteLoss, match=r"Overflowing\.loss is NaN"):
        pv.fit(model, x, batch_size=10, epochs=5, seed=0, compile=compile, **QUIET)
    assert all(bool(b.isfinite().all()) for b in model.buffers())


class Shared(pv.LossModel):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Sequential(self.first)

    def loss(self, x: Tensor) -> Tensor:
        return (self.second(self.first(x)) - x).square().sum(-1)


def test_a_module_of_two_names_is_traced_and_put_back() -> None:
    x = torch.rand(400, 3, generator=torch.Generator().manual_seed(0))
    weights = {}
    for compile in ("off", "graph"):
        torch.manual_seed(0)
        model = Shared()
        assert pv.fit(model, x, epochs=2, seed=0, compile=compile, **QUIET).engine == compile
        weights[compile] = model.first.weight
    assert torch.equal(weights["off"], weights["graph"])


def test_of_two_classes_of_one_name_the_files_own_is_loaded(tmp_path, line: tuple[Tensor, Tensor]) -> None:
    path = Line().save(tmp_path / "line.safetensors")
    namesake = type("Line", (pv.LossModel,), {"__module__": "elsewhere", "loss": Line.loss})
    assert namesake.__qualname__ == Line.__qualname__
    assert type(pv.load(path)) is Line
    stranger = type("Line", (Line,), {"__module__": "another"})().save(tmp_path / "stranger.safetensors")
    assert type(pv.load(stranger)).__module__ == "another"
    third = type("Line", (Line,), {"__module__": "third"})
    gone = third().save(tmp_path / "gone.safetensors")
    third.__module__ = "renamed"
    with pytest.raises(ValueError, match="several modules define one"):
        pv.load(gone)


def test_values_of_all_data_are_looked_at() -> None:
    model = pv.zoo.Autoencoder((4,), 2, reconstruction="bernoulli")
    x = torch.rand(100, 4)
    x[-1] = 7.0
    for transform in (None, lambda x: x.clone()):
        with pytest.raises(ValueError, match=r"values from .* to 7; .* Rescale them"):
            pv.fit(model, x, batch_size=20, batch_transform=transform, seed=0, **QUIET)
    with pytest.raises(ValueError, match="Rescale them"):
        model.reconstruction_error(x)


def test_a_part_called_loss_is_none() -> None:
    class WithPart(Penalised):
        def __init__(self) -> None:
            super().__init__(0.0)
            self.loss = nn.MSELoss()

    x = torch.randn(100, 1)
    torch.manual_seed(0)
    own = pv.fit(WithPart(), x, epochs=2, seed=0, **QUIET).history
    torch.manual_seed(0)
    other = pv.fit(Penalised(0.0), x, epochs=2, seed=0, **QUIET).history
    assert own["loss"].tolist() == other["loss"].tolist()
