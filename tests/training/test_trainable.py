"""fit trains, or says before the first update that nothing would be trained."""

import copy
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrovae as pv
from tests.models import Conditional

X = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
ENGINES = pytest.mark.parametrize("engine", ["off", "graph"])


def plain() -> pv.VAE:
    torch.manual_seed(0)
    return pv.VAE((6,), 2, likelihood="gaussian", hidden=(16,))


def fit(model, data=X, **kwargs) -> pv.FitResult:
    return pv.fit(model, data, **{"epochs": 2, "seed": 0, "device": "cpu", "progress": False, **kwargs})


class Detached(pv.VAEModel):
    """A linear encoder whose output is detached, through ``how``."""

    event_shape = (6,)

    def __init__(self, how=Tensor.detach) -> None:
        super().__init__()
        self.encoder, self.how = nn.Linear(6, 2), how

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([*z.shape[:-1], 6]).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.how(self.encoder(x)), 1.0).to_event(1))


class Reconstruction(pv.LossModel):
    def __init__(self, how=Tensor.detach) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(6, 6), how

    def loss(self, x: Tensor) -> Tensor:
        return (self.how(self.layer(x)) - x).square().sum(-1)


def without_gradients(out: Tensor) -> Tensor:
    with torch.no_grad():
        return out + 1.0


def of_something_else(out: Tensor) -> Tensor:
    return out.detach() + torch.zeros(out.shape[-1], requires_grad=True)


@ENGINES
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, lambda: torch.set_grad_enabled(False)])
def test_gradients_are_enabled_whatever_the_caller_disabled(engine: str, context) -> None:
    here, there, third = plain(), plain(), plain()
    fit(here, compile=engine, validation=X[:9])
    with context():
        x = X + 0.0  # under inference_mode of a kind that autograd does not take
        fit(there, x, compile=engine, validation=x[:9] + 0.0)
        assert not torch.is_grad_enabled()
    assert all(torch.equal(v, there.state_dict()[k]) for k, v in here.state_dict().items())
    with context():
        loader = DataLoader(TensorDataset(x), batch_size=None, sampler=[slice(0, 50), slice(50, 100)])
        run = fit(third, loader, compile=engine)
    assert run.history["loss"].iloc[1] < run.history["loss"].iloc[0]


@ENGINES
@pytest.mark.filterwarnings("ignore:compile='graph'")  # Pyro's own objectives cannot be traced
@pytest.mark.parametrize("how", [Tensor.detach, without_gradients, of_something_else])
def test_a_loss_that_depends_on_no_parameter_is_an_error(engine: str, how) -> None:
    for model, objectives in (
        (Detached(how), (None, pv.ELBO(analytic_kl=False), pv.IWAE(3), Trace_ELBO(), TraceGraph_ELBO())),
        (Reconstruction(how), (None,)),
    ):
        before = copy.deepcopy(model.state_dict())
        for objective in objectives:
            with pytest.raises(ValueError, match="depends on none of the parameters that the optimiser has"):
                fit(model, compile=engine, objective=objective)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is not that the step cannot be traced
        with pytest.raises(ValueError, match="depends on none"):
            fit(Detached(how), compile=engine)


@ENGINES
def test_the_optimiser_must_have_parameters_that_the_loss_depends_on(engine: str) -> None:
    model, other = plain(), plain()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"has none of the parameters of VAE that are trained.*lambda parameters"):
        fit(model, compile=engine, optimizer=lambda p: torch.optim.Adam(other.parameters()))
    model.unused = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="depends on none of the parameters that the optimiser has"):
        fit(model, compile=engine, optimizer=lambda p: torch.optim.Adam([model.unused]))
    model.encoder.requires_grad_(False)
    with pytest.raises(ValueError, match="has none of the parameters of VAE that are trained"):
        fit(model, compile=engine, optimizer=lambda p: torch.optim.Adam(model.encoder.parameters()))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    fit(model, compile=engine, optimizer=lambda p: torch.optim.Adam(model.decoder.parameters()))  # some are enough
    moved = {k.split(".")[0] for k, v in before.items() if not torch.equal(v, model.state_dict()[k])}
    assert moved == {"decoder"}


@ENGINES
def test_a_frozen_model_is_an_error(engine: str) -> None:
    with pytest.raises(ValueError, match=r"has no parameters to train: all are frozen.*requires_grad_\(True\)"):
        fit(plain().requires_grad_(False), compile=engine)


@ENGINES
def test_what_was_made_under_inference_mode_is_named(engine: str) -> None:
    with torch.inference_mode():
        model = plain()
        with pytest.raises(ValueError, match=r"parameter '.*' of VAE was made under torch.inference_mode"):
            fit(model, compile=engine)
    copied = copy.deepcopy(model)  # the remedy that the message names
    fit(copied, compile=engine)
    assert not torch.equal(copied.decoder[0].weight, model.decoder[0].weight)
    normed = plain()
    normed.encoder.append(nn.BatchNorm1d(16))
    with torch.inference_mode():
        normed.encoder[-1].running_mean = torch.zeros(16)
    with pytest.raises(ValueError, match=r"buffer 'encoder.*running_mean' of VAE was made under"):
        fit(normed, compile=engine)


def test_estimators_that_differentiate_work_under_inference_mode() -> None:
    settings = {"num_temperatures": 5, "num_chains": 2, "compile": "off", "progress": False}
    y = torch.randn(4, 2)
    for model, data in ((plain(), (X[:4],)), (Conditional(), ((X[:4] > 0).float(), y))):
        expected = pv.ais(model, *data, **settings).pointwise
        with torch.inference_mode():
            found = pv.ais(model, *(d + 0.0 for d in data), **settings).pointwise
        assert found.equals(expected)


def test_what_the_optimiser_leaves_out_is_named_and_not_clipped_by() -> None:
    model = plain()
    with pytest.warns(UserWarning, match=r"leaves out 4 of 9 parameters of VAE.*: likelihood.log_scale, posterior"):
        fit(
            model,
            optimizer=lambda p: torch.optim.SGD([*model.encoder.parameters(), *model.decoder.parameters()][:5], 0.1),
        )


def test_optimisers_and_schedulers_that_are_not_the_models_own_are_refused() -> None:
    model, other = plain(), plain()
    before = copy.deepcopy(model.state_dict())
    adam = torch.optim.Adam(other.parameters())
    cases = {
        "parameter.s. that are not VAE's": {"optimizer": lambda p: torch.optim.Adam([*p, *other.parameters()])},
        "has likelihood.log_scale twice": {"optimizer": Twice},
        "optimizer must give a torch.optim.Optimizer": {"optimizer": lambda p: None},
        "optimizer must be a function": {"optimizer": adam},
        "scheduler of another optimiser": {"lr_schedule": lambda o: torch.optim.lr_scheduler.StepLR(adam, 1)},
        "lr_schedule must give a scheduler": {"lr_schedule": lambda o: o},
        "callbacks must be a list": {"callbacks": print},
    }
    for message, arguments in cases.items():
        with pytest.raises((TypeError, ValueError), match=message):
            fit(model, **arguments)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


class Twice(torch.optim.SGD):
    """An optimiser that has its first parameter in two groups."""

    def __init__(self, parameters: list[Tensor]) -> None:
        super().__init__(parameters, lr=0.1)
        self.param_groups.append({**self.param_groups[0], "params": parameters[:1]})
