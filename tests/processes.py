"""What tests/test_distributed.py looks at: ``torchrun --nproc-per-node 2 -m tests.processes FOLDER``.

Every process runs all cases and writes what it saw into the folder.
"""

import contextlib
import copy
import io
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

import pyrovae as pv
from pyrovae import _memory as memory
from pyrovae._distributed import rank, summed
from pyrovae._random import get_state, set_state
from pyrovae.evaluation._run import EvaluationRun
from pyrovae.training._checkpoint import CheckpointFolder

BLOCK = 2**15  # bytes: several blocks of data even in a test
CASES: dict[str, Callable[[Path], Any]] = {}


def case(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
    CASES[function.__name__] = function
    return function


def binary(n: int, d: int = 6) -> Tensor:
    return (torch.rand(n, d, generator=torch.Generator().manual_seed(n)) < 0.4).float()


class Still(pv.VAEModel):
    """Nothing random: z is the encoder's output."""

    event_shape = (6,)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.encoder, self.decoder = nn.Linear(6, 3), nn.Linear(3, 6)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(self.encoder(x)).to_event(1))


class PartlyUsed(Still):
    """One layer never enters the loss; another one enters until it is told not to."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.extra, self.uses_extra = nn.Linear(2, 2), nn.Linear(6, 3), False

    def guide(self, x: Tensor) -> None:
        loc = self.encoder(x) + (self.extra(x) if self.uses_extra else 0.0)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(loc).to_event(1))


class Rows(Dataset):
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Tensor:
        return self.x[i]


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(binary(20))


def small(**options: Any) -> pv.VAE:
    torch.manual_seed(1)
    return pv.VAE((6,), 3, hidden=(16,), **options)


def fit(model: pv.VAEModel, data: Any, **options: Any) -> pv.FitResult:
    return pv.fit(model, data, **{"epochs": 1, "seed": 0, "device": "cpu", "progress": False, **options})


def sgd(rate: float) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=rate)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def table(run: pv.FitResult) -> Any:
    return run.history.drop(columns="seconds")


def error_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    try:
        function(*args, **kwargs)
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


# -- also run by a single process, for comparison ------------------------------------------------------------

SIZES = {"even": (8, None), "odd": (7, None), "clipped": (7, 0.1), "fewer than processes": (1, None)}


def one_step(size: int, clip_norm: float | None) -> dict[str, Tensor]:
    """The weights after one step of length 1 along the gradient of one global batch."""
    model = Still().double()
    fit(model, binary(size).double(), batch_size=size, optimizer=sgd(1.0), clip_norm=clip_norm)
    return state(model)


def standing_still() -> Any:
    """The history of a run that changes nothing, with a ragged last batch of a single datum."""
    x = binary(22).double()
    return table(fit(Still().double(), x[:15], validation=x[15:], batch_size=3, epochs=2, optimizer=sgd(0.0)))


UNSEEDED = ("log_marginal", "ais", "bdmc")


def evaluations(seed: int | None = 0) -> dict[str, Any]:
    """Every estimator that shares its work, on several blocks of data and on a single one; some without a seed."""
    flow, model, x = small(posterior="planar"), small(), binary(23)
    factors = (x[:, :2] > 0).long()
    torch.manual_seed(100 + rank())  # which nothing may depend on, but rank 0's where there is no seed
    options: dict[str, Any] = {"seed": seed, "progress": False}
    short = {"num_temperatures": 4, "num_chains": 4, "num_leapfrog": 2}
    estimators: dict[str, Callable[[], Any]] = {
        "log_marginal": lambda: pv.log_marginal(flow, x, num_samples=100, **options).pointwise,
        "one block": lambda: pv.log_marginal(flow, x[:1], num_samples=20, **options).pointwise,
        "ais": lambda: pv.ais(model, x, **short, **options).pointwise,
        "bdmc": lambda: pv.bdmc(model, 15, **short, **options).pointwise,
        "target_mc_se": lambda: pv.log_marginal(flow, x[:8], num_samples=400, target_mc_se=0.2, **options).pointwise,
        "elbo_terms": lambda: pv.elbo_terms(flow, x, num_samples=40, **options).pointwise,
        "mixture": lambda: _figures(pv.collapse(model, x, num_samples=40, **options)),
        "gaussian bound": lambda: _figures(pv.collapse(flow, x, num_samples=40, **options)),
        "gaps": lambda: pv.inference_gaps(model, x[:12], steps=4, num_samples=20, **options).pointwise,
        "log_weights": lambda: pd.DataFrame(pv.evaluation.log_weights(flow, x, num_samples=50, **options).numpy()),
        "disentanglement": lambda: pv.disentanglement(model, x, factors, num_votes=20, progress=False).scores,
    }
    with mock.patch.dict(memory.BLOCK, cpu=BLOCK):
        return {name: run() for name, run in estimators.items() if seed is not None or name in UNSEEDED}


def _figures(report: pv.CollapseReport) -> pd.DataFrame:
    """All numbers of a report."""
    return report.dimensions.select_dtypes("number").assign(**report.summary()[2:-1].astype(float))


# -- cases ---------------------------------------------------------------------------------------------------


@case
def steps(folder: Path) -> Any:
    return {name: one_step(*sizes) for name, sizes in SIZES.items()}


@case
def still(folder: Path) -> Any:
    return standing_still()


@case
def noisy_step(folder: Path) -> Any:
    """A step of a model that draws, and the gradient that follows from what every process drew."""
    model = small().double()
    before, seen = copy.deepcopy(model), []

    def watch(x: Tensor) -> Tensor:
        seen.append((x.clone(), get_state()))
        return x

    fit(model, binary(7).double(), batch_size=7, optimizer=sgd(1.0), batch_transform=watch)
    x, generators = seen[-1]
    set_state(generators)
    pv.ELBO().differentiable_loss(before.model, before.guide, x).backward()
    expected = {name: p.detach() - summed(p.grad) / 7 for name, p in before.named_parameters()}
    set_state(generators)
    return {"expected": expected, "got": state(model), "x": x, "draws": torch.randn(5)}


@case
def digits(folder: Path) -> Any:
    data = pv.datasets.load("digits", binarize="dynamic")
    torch.manual_seed(rank())  # rank 0's weights are everybody's
    model = pv.VAE(data.event_shape, 4, posterior="iaf", hidden=(32,))
    run = fit(model, data, epochs=5, learning_rate=5e-3)
    return {"weights": state(model), "history": table(run), "best": run.best_epoch}


@case
def running_means(folder: Path) -> Any:
    encoder = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU())
    model = small(encoder=encoder)
    run = fit(model, binary(50), validation=0.2, batch_size=10, epochs=2)
    return {"weights": state(model), "history": table(run)}


@case
def checkpoints(folder: Path) -> Any:
    """Weights and histories of a run and of one in two parts, and what each process wrote."""
    out: dict[str, Any] = {}
    writes = []
    save = CheckpointFolder.save

    def counting(self: CheckpointFolder, *args: Any) -> Path:
        writes.append(rank())
        return save(self, *args)

    def train(epochs: int, where: Path | None) -> dict[str, Any]:
        model = small()
        run = fit(
            model,
            binary(45),
            validation=0.2,
            batch_transform=torch.bernoulli,
            batch_size=10,
            learning_rate=1e-2,
            objective=pv.ELBO(beta=pv.linear_warmup(3)),
            epochs=epochs,
            checkpoint=where,
        )
        return {"weights": state(model), "history": table(run)}

    with mock.patch.object(CheckpointFolder, "save", counting):
        out["whole"] = train(4, None)
        for name, where in {"shared": folder / "shared", "own": folder / f"own{rank()}"}.items():
            train(2, where)
            out[name] = train(4, where)
    return {**out, "writes": len(writes)}


@case
def kinds_of_data(folder: Path) -> Any:
    x = binary(60)
    refused = {
        "DataLoader": error_of(fit, small(), DataLoader(Rows(x), 10)),
        "IterableDataset": error_of(fit, small(), Stream()),
        "Pyro's own": error_of(fit, small(), x, objective=pyro.infer.TraceGraph_ELBO()),
    }
    trained = {}
    for name, data in {
        "Dataset": Rows(x),
        "sampler": DataLoader(Rows(x), 10, sampler=DistributedSampler(Rows(x))),
    }.items():
        model = small()
        run = fit(model, data, validation=Rows(binary(21)), batch_size=20, epochs=10, learning_rate=1e-2)
        trained[name] = {"weights": state(model), "history": table(run)}
    return {"refused": refused, "trained": trained}


@case
def compiled(folder: Path) -> Any:
    """By Pyro, by graphs, and by graphs of one process alone: what the other's engine is does not matter."""
    out = []
    for engine in ("off", "graph", "graph" if rank() else "off"):
        model = small()
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            options = {"compile": engine, "epochs": 5, "learning_rate": 1e-2, "validation": binary(30)}
            run = fit(model, binary(40), **options)
        out.append({"engine": run.engine, "weights": state(model), "history": table(run)})
    return out


@case
def stopping(folder: Path) -> Any:
    """A callback that wants to stop in one process only."""
    return len(fit(small(), binary(20), epochs=5, callbacks=[lambda run: rank() == 1]).records)


@case
def unused_parameters(folder: Path) -> Any:
    model = PartlyUsed()
    idle = model.idle.weight.detach().clone()
    fit(model, binary(20), batch_size=5)
    out = {"weights": state(model), "untouched": torch.equal(idle, model.idle.weight)}
    model = PartlyUsed()
    model.idle.requires_grad_(False)
    model.uses_extra = True

    def leave_out(run: pv.FitResult) -> None:
        model.uses_extra = False

    fit(model, binary(20), epochs=1)
    before = model.extra.weight.detach().clone()
    fit(model, binary(20), epochs=1, callbacks=[leave_out])
    after = model.extra.weight.detach().clone()
    fit(model, binary(20), epochs=2)
    out["left_out"] = not torch.equal(before, after) and torch.equal(after, model.extra.weight)
    return out


@case
def evaluation(folder: Path) -> Any:
    rows: list[tuple[int, int]] = []
    collect = EvaluationRun.collect

    def noting(self: EvaluationRun, compute: Any, sizes: tuple[int, int], **options: Any) -> dict[Any, Any]:
        def noted(some: slice, draws: int) -> dict[Any, Tensor]:
            rows.append((some.start, some.stop))
            return compute(some, draws)

        return collect(self, noted, sizes, **options)

    out: dict[str, Any] = {"seeded": evaluations(), "unseeded": evaluations(None)}
    with mock.patch.dict(memory.BLOCK, cpu=BLOCK), mock.patch.object(EvaluationRun, "collect", noting):
        pv.log_marginal(small(), binary(23), num_samples=200, progress=False)
        out["rows of log_marginal"] = list(rows)
        rows.clear()
        pv.ais(small(), binary(23), num_temperatures=5, num_chains=4, progress=False)
        out["rows of ais"] = list(rows)
    return out


@case
def out_of_memory(folder: Path) -> Any:
    """The last process has room for two data at a time, the others for a block."""
    collect = EvaluationRun.collect

    def starving(self: EvaluationRun, compute: Any, sizes: tuple[int, int], **options: Any) -> dict[Any, Any]:
        def starved(rows: slice, draws: int) -> dict[Any, Tensor]:
            if rank() > 0 and rows.stop - rows.start > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")
            return compute(rows, draws)

        return collect(self, starved, sizes, **options)

    with mock.patch.dict(memory.BLOCK, cpu=BLOCK), mock.patch.object(EvaluationRun, "collect", starving):
        return pv.ais(small(), binary(23), num_temperatures=10, num_chains=8, progress=False).pointwise


@case
def example(folder: Path) -> Any:
    """What an example prints, and how it ends."""
    options = ("--quick", "--posteriors", "mean_field", "planar", "--epochs", "1", "--out", str(folder / "example"))
    out, errors = io.StringIO(), io.StringIO()
    scripts = Path(__file__).parent.parent / "examples"
    argv, path = (
        mock.patch.object(sys, *new) for new in (("argv", ["", *options]), ("path", [str(scripts), *sys.path]))
    )
    with argv, path, contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        runpy.run_path(str(scripts / "flow_posterior.py"), run_name="__main__")
    return {"out": out.getvalue(), "errors": errors.getvalue()}


@case
def different_things(folder: Path) -> Any:
    x = binary(10)
    torch.manual_seed(rank())
    other = pv.VAE((6,), 3, hidden=(16,))
    return {
        "data": error_of(pv.log_marginal, small(), x[rank() :], num_samples=10, progress=False),
        "model": error_of(pv.ais, other, x, num_temperatures=5, progress=False),
    }


if __name__ == "__main__":
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    assert pv.is_main_process() == (rank() == 0)
    seen = {}
    for name, function in CASES.items():
        pyro.clear_param_store()
        seen[name] = function(out)
    torch.save(seen, out / f"{rank()}.pt")
