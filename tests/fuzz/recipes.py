"""A valid call of everything public, and what each of its arguments takes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import networks as nets
from tests.fuzz.kinds import (
    ANYTHING,
    CALLABLE,
    FLAG,
    NONE,
    OPTIONS,
    SEED,
    SHAPE,
    TEXT,
    WIDTHS,
    D,
    Kind,
    N,
    instance,
    is_integer,
    nothing,
    number,
    numbers,
    one_of,
    registered,
    sequence,
    size,
)

# -- what recipes are made of ------------------------------------------------------------------------------------

IMAGE = (1, 8, 8)


def x(*shape: int) -> Tensor:
    """Binary data."""
    shape = shape or (N, D)
    return (torch.arange(math.prod(shape)).reshape(shape) % 3 == 0).float()


@cache
def vae() -> pv.VAE:
    return pv.VAE((D,), 2, hidden=(3,)).eval()


@cache
def images() -> pv.VAE:
    return pv.VAE((1, 2, 2), 2, hidden=(3,)).eval()


@cache
def ladder() -> Any:
    return pv.zoo.LadderVAE((D,), (2, 2), hidden=(3,)).eval()


@cache
def autoencoder() -> Any:
    return pv.zoo.linear_autoencoder((D,), 2).eval()


@cache
def vqvae() -> Any:
    return pv.zoo.VQVAE((1, 4, 4), num_codes=4, code_dim=2, hidden=2, num_blocks=1).eval()


@cache
def marginal(seed: int = 0) -> pv.MarginalResult:
    return pv.log_marginal(vae(), x(), num_samples=20, seed=seed, progress=False, compile="off")


@cache
def calibrated() -> pv.Calibration:
    return pv.calibration(vae(), 8, num_draws=3, progress=False, compile="off")


@cache
def chains() -> pd.DataFrame:
    few: dict[str, Any] = {"num_temperatures": 3, "num_chains": 2, "num_leapfrog": 1, "compile": "off"}
    return pv.ais(vae(), x(), **few, progress=False).pointwise


@cache
def report() -> pv.CollapseReport:
    return pv.collapse(vae(), x(), num_samples=4, progress=False, compile="off")


@cache
def terms() -> pv.LogTerms:
    return vae().log_terms(x(), num_particles=2)


def codes() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(20, 3))


def factors() -> np.ndarray:
    return np.stack([np.arange(20) % 2, np.arange(20) % 3], 1)


def normal(n: int = 3) -> Any:
    return dist.Normal(torch.zeros(n), torch.ones(n)).to_event(1)


def of_lines() -> dict[str, Any]:
    return {"w": torch.eye(3, 2), "b": torch.zeros(3), "noise": 0.5}


# -- kinds -------------------------------------------------------------------------------------------------------


def model_of(*classes: Any) -> Kind:
    return instance(*classes, why="a model")


def is_plain(value: Any) -> bool:
    """Whether a value is a tensor of floats in memory."""
    plain = isinstance(value, Tensor) and not value.is_nested and value.layout is torch.strided
    return plain and value.is_floating_point() and value.device.type == "cpu" and value.dtype.itemsize > 1


def floats(fits: Callable[[Tensor], bool] = lambda value: True, *near: Any, finite: bool = True) -> Kind:
    """A tensor of floats, finite or whatever, of a shape that fits."""
    return Kind(
        lambda v: is_plain(v) and fits(v) and (not finite or bool(v.isfinite().all())),
        "a tensor of a shape that fits",
        (np.zeros(3), [0.0], *near),
    )


def broadcasts(*shape: int, positive: bool = False) -> Kind:
    return floats(
        lambda v: (
            v.dim() <= len(shape)
            and all(n in (1, m) for n, m in zip(v.shape[::-1], shape[::-1], strict=False))
            and (not positive or bool((v > 0).all()))
        )
    )


ODD = Kind(lambda v: size(3).takes(v) and v % 2 == 1, "an odd number", (*size(3).near, 4))
POWER = Kind(lambda v: is_integer(v) and v in (2, 4, 8), "a power of 2", (1, 3, 6, "2", 4.0))
IMAGE_SHAPE = sequence(size(), (3,), (8, 8), (1, 0, 8), (0, 8, 8), (1, 1, 1, 1))
FRAME = instance(pd.DataFrame, why="a DataFrame")
NUMBER = number()
POSITIVE = number(0.0)
NOT_NEGATIVE = number(0.0, least=True)
INSIDE = number(0.0, 1.0)  # without either end
BELOW_ONE = number(0.0, 1.0, least=True)
SCHEDULE = NOT_NEGATIVE.or_(CALLABLE)
DEVICE = Kind(
    lambda v: isinstance(v, torch.device) and v.type == "cpu",
    "a device that is there",
    ("gpu", 0, "cuda:99", "meta", torch.device("meta")),
)
ENGINE = one_of("off", "auto", "graph", "inductor")
PATH = Kind(lambda v: isinstance(v, str) and v != "", "a path", (0, Path))
DATA = numbers(N, D, low=0, high=1)


def binary(kind: Kind) -> Kind:
    """Data of these for a Bernoulli."""
    return Kind(
        lambda v: kind.takes(v) and bool(((np.asarray(v) == 0) | (np.asarray(v) == 1)).all()),
        kind.why,
        (*kind.near, torch.full((N, D), 0.5)),
        kind.called,
    )


X = binary(DATA)
COVARIATE = nothing(called=("covariate", "covariates"), why="no covariate")
AXES = NONE
NAMES = sequence(TEXT, range(9), "abc", [1])
SEQUENCE_OF_CALLABLES = Kind(
    lambda v: isinstance(v, (list, tuple)) and all(callable(c) for c in v), "callables", (print,)
)
# Covariates whose number nobody knows yet: what is no array is handed on.
FREE = Kind(
    lambda v: None if not isinstance(v, (list, tuple)) else False, "whatever the model takes", (), ("covariate",)
)


def parts_of(n: int, lengths: Sequence[int], *near: Any) -> Kind:
    """Different integers from 0 to n - 1."""
    kind = sequence(size(0, n - 1), lengths, (0, 0), (0, n), (-1, 0), *near)
    return Kind(lambda v: kind.takes(v) and len(set(v)) == len(v), "different dimensions", kind.near)


def in_steps(kind: Kind) -> Kind:
    """Tensors alone, of values that only a density looks at, where its validation is on."""

    def takes(v: Any) -> bool | None:
        if not isinstance(v, Tensor) or v.shape != (N, D) or v.dtype == torch.bool or v.is_complex():
            return False
        if v.is_nested or v.layout is not torch.strided or v.device.type != "cpu" or v.is_quantized:
            return False
        if v.is_floating_point() and v.dtype.itemsize == 1:
            return False
        return True if is_plain(v) and kind.takes(v) else None

    return Kind(takes, "a tensor of data", (torch.zeros(N, D + 1), np.zeros((N, D))))


RESULTS = Kind(lambda v: isinstance(v, pv.MarginalResult), "results", (3, {"a": 3}, {"a": None}, [3], {1: 2}))
MODULE = instance(nn.Module, why="a module")

# By the name of the argument, where a recipe says nothing else.
KINDS: dict[str, Kind] = {
    "event_shape": SHAPE,
    "image_shape": IMAGE_SHAPE,
    "latent_dim": size(),
    "context_dim": size(),
    "num_flows": size(),
    "hidden": WIDTHS,
    "posterior": registered(pv.posteriors.POSTERIORS),
    "prior": registered(pv.priors.PRIORS),
    "likelihood": registered(pv.likelihoods.LIKELIHOODS),
    "network": registered(nets.NETWORKS),
    "encoder": NONE,
    "decoder": NONE,
    "options": nothing(called=("nonsense",), why="no such option"),
    "parts": nothing(called=("nonsense",), why="no such option"),
    "fit_options": nothing(called=("nonsense",), why="no such option"),
    "num_particles": size(),
    "num_samples": size(),
    "max_plate_nesting": size().or_(NONE),
    "beta": SCHEDULE,
    "gamma": NOT_NEGATIVE,
    "alpha": NOT_NEGATIVE,
    "num_data": size(),
    "numbers": Kind(lambda value: None, "numbers of the rows, which fit and the estimators give"),
    "seed": SEED.or_(NONE),
    "device": DEVICE.or_(NONE),
    "memory_budget": size().or_(NONE),
    "compile": ENGINE,
    "progress": FLAG,
    "covariates": COVARIATE,
    "x": X,
    "ax": AXES,
    "title": TEXT,
    "event_dim": size(0),
    "num_levels": size(2),
    "min_scale": POSITIVE,
    "channels": size(),
    "in_channels": size(),
    "out_channels": size(),
    "in_features": size(),
    "out_features": size(),
    "num_blocks": size(0),
    "spatial_context": FLAG,
    "num_codes": size(2),
    "code_dim": size(),
    "decay": BELOW_ONE,
    "dead_below": BELOW_ONE,
    "final_activation": FLAG,
    "layer_norm": FLAG,
    "every": size(),
    "steps": size(),
    "learning_rate": POSITIVE,
    "num_bins": size(2),
    "num_votes": size(),
    "codes": Kind(lambda v: False, "codes"),
    "factors": Kind(lambda v: False, "factors"),
    "results": RESULTS,
    "pointwise": nothing(),
    "threshold": POSITIVE,
    "grid_shape": sequence(size(), (2,), (2,), (0, 2)),
    "duration": POSITIVE,
    "start": NOT_NEGATIVE,
    "end": NOT_NEGATIVE,
    "validate_args": FLAG.or_(NONE),
    "schedule": one_of("sigmoid", "linear").or_(CALLABLE),
    "target_acceptance": INSIDE,
    "num_temperatures": size(2),
    "num_chains": size(2),
    "num_leapfrog": size(),
    "proposal": one_of("posterior", "prior"),
    "dims": parts_of(2, (2,)),
    "n": size(),
    "weight": POSITIVE,
    "column": TEXT,
    "epochs": size(0),
    "noise": POSITIVE,
    "stretch": POSITIVE,
}
for _options in ("posterior", "prior", "likelihood", "decoder", "network", "corruption", "penalty"):
    KINDS[f"{_options}_options"] = OPTIONS.or_(NONE).but(called=(_options,))


@dataclass(frozen=True)
class Case:
    """A valid call.

    Attributes:
        given: makes the arguments that have no default, or are dear by default.
        kinds: of arguments, where their name alone does not tell.
        of: makes the object whose method is called.
        errors: that the documentation promises besides ``TypeError`` and ``ValueError``.
    """

    given: Callable[[], dict[str, Any]] = dict
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    of: Callable[[], Any] | None = None
    errors: tuple[type[Exception], ...] = ()


def case(
    given: Callable[[], dict[str, Any]] = dict,
    /,
    of: Callable[[], Any] | None = None,
    errors: tuple[type[Exception], ...] = (),
    **kinds: Kind,
) -> Case:
    return Case(given, kinds, of, errors)


def with_(**given: Any) -> Callable[[], dict[str, Any]]:
    return lambda: dict(given)


def evaluated(**given: Any) -> Callable[[], dict[str, Any]]:
    """The arguments of an estimator, on the small model."""
    return lambda: {"model": vae(), "x": x(), "compile": "off", **given}


def plotted(**given: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"model": vae(), "image_shape": (1, 2, 2), **given}


VAES = model_of(pv.VAEModel)
PLOT_SHAPE = Kind(
    lambda v: (
        isinstance(v, (tuple, list)) and len(v) in (2, 3) and all(size().takes(n) for n in v) and math.prod(v) == D
    ),
    "the shape of an image of four pixels",
    (4, (4,), (3, 3), (2, 2, 2), (2.0, 2.0)),
)
POSTERIOR = {"latent_dim": 2, "context_dim": 3}
CONV = {"image_shape": (1, 8, 8)}
VALIDATION = DATA.or_(NONE).or_(INSIDE)
SITE = TEXT
HIDDEN = size()
ALSO_ALL = number(0.0, 1.0, most=True)

TRAINING: dict[str, Case] = {
    "pyrovae.fit": case(
        lambda: {"model": pv.VAE((D,), 2, hidden=(3,)), "data": x(), "epochs": 1, "compile": "off", "device": "cpu"},
        model=model_of(pv.VAEModel, pv.LossModel),
        data=X,
        validation=VALIDATION,
        objective=instance(PyroELBO, why="an ELBO").or_(NONE),
        batch_size=size(),
        optimizer=CALLABLE.or_(NONE),
        lr_schedule=CALLABLE.or_(NONE),
        clip_norm=POSITIVE.or_(NONE),
        patience=NONE,
        callbacks=SEQUENCE_OF_CALLABLES,
        batch_transform=CALLABLE.or_(NONE),
        precision=one_of("float32"),
        checkpoint=PATH.or_(NONE),
    ),
    "pyrovae.Checkpoint": case(with_(folder="f"), folder=PATH, keep=size(), resume=one_of("auto", "must", "never")),
    "pyrovae.lagging_inference": case(
        lambda: {"slow": nn.Linear(2, 2)},
        slow=instance(nn.Module, Tensor, why="a module or parameter").but(called=("lagging_inference",)),
        steps=size(0),
    ),
    "pyrovae.training.LaggingAdam": case(
        lambda: {
            "parameters": list(vae().parameters()),
            "slow": list(vae().decoder.parameters()),
            "every": 2,
            "steps": 3,
        },
        parameters=nothing(),
        slow=nothing(),
        steps=size(0),
    ),
    "pyrovae.CollapseMonitor": case(
        lambda: {"x": x()},
        covariates=FREE,
        num_samples=size(2),
        x=Kind(
            lambda v: None if isinstance(v, (Tensor, np.ndarray, pd.DataFrame, pd.Series)) else False,
            "data of any shape",
        ),
    ),
    "pyrovae.zoo.pretrain": case(
        lambda: {"model": pv.zoo.deep_autoencoder((D,), 2, hidden=(3,)), "data": x(), "epochs": 1, "compile": "off"},
        model=model_of(pv.zoo.Autoencoder),
        data=numbers(N, D),
    ),
    "pyrovae.refit_prior": case(
        lambda: {"model": vae(), "data": x(), "prior": "mixture", "epochs": 1, "compile": "off"}, model=VAES, data=X
    ),
    "pyrovae.refit_posterior": case(
        lambda: {"model": vae(), "data": x(), "posterior": "mean_field", "epochs": 1, "compile": "off"},
        model=VAES,
        data=X,
    ),
    "pyrovae.zoo.VQVAE.fit_prior": case(
        lambda: {"data": x(4, 1, 4, 4), "epochs": 1, "compile": "off", "prior_options": {"hidden": 2, "num_layers": 1}},
        of=vqvae,
        data=numbers(4, 1, 4, 4).but(called=("x",)),
        validation=NONE.or_(INSIDE).but(called=("x",)),
        prior_options=OPTIONS.or_(NONE),
        batch_transform=CALLABLE.or_(NONE),
    ),
}

OBJECTIVES: dict[str, Case] = {
    "pyrovae.ELBO": case(
        analytic_kl=Kind(lambda v: isinstance(v, bool), "a bool").or_(one_of("auto")),
        free_bits=NOT_NEGATIVE,
        gradient=one_of("reparameterized", "stl", "score"),
    ),
    "pyrovae.IWAE": case(gradient=one_of("reparameterized", "stl", "dreg", "vimco")),
    "pyrovae.MIWAE": case(num_bounds=size()),
    "pyrovae.PIWAE": case(num_bounds=size()),
    "pyrovae.CIWAE": case(beta=number(0.0, 1.0)),
    "pyrovae.BetaTCVAE": case(with_(num_data=10), beta=NOT_NEGATIVE, estimator=one_of("stratified", "weighted")),
    "pyrovae.CapacityELBO": case(with_(capacity=1.0), capacity=SCHEDULE),
    "pyrovae.linear_warmup": case(with_(duration=2.0)),
    "pyrovae.cosine_warmup": case(with_(duration=2.0)),
    "pyrovae.cyclical": case(with_(period=2.0), period=POSITIVE, rise=ALSO_ALL, cycles=size()),
}


def of_reals(value: Any) -> bool:
    """Whether a value is a tensor of numbers in memory, of which only a density can say more."""
    return is_plain(value) or (isinstance(value, Tensor) and value.dtype == torch.int64 and value.device.type == "cpu")


def is_log_weights(value: Any) -> bool:
    """Whether these are numbers, -inf among them or some too large for float32."""
    array = value.numpy() if is_plain(value) else value
    plain = isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.ndim == 1
    return plain and not isinstance(array, np.ma.MaskedArray) and bool((array < np.inf).all())


INTEGER = Kind(is_integer, "an integer")


def as_array(value: Any) -> Any:
    """A list of numbers as the array that it stands for."""
    value = list(value) if isinstance(value, tuple) else value
    numbers_alone = isinstance(value, list) and not any(isinstance(v, bool) for v in value)
    if not numbers_alone or not all(isinstance(v, (int, float, list)) for v in value):
        return value
    return np.asarray(value, dtype=float) if len({len(v) if isinstance(v, list) else 0 for v in value}) == 1 else value


def shaped(value: Any, shape: tuple[int, ...]) -> bool:
    return numbers(*shape, integers=True).takes(value)


LATENTS = Kind(
    lambda v: any(shaped(v, s) for s in ((N, 2), (1, 2), (2,), (1, N, 2), (N, D + 3, 2))), "latents", numbers(N, 2).near
)

MODELS: dict[str, Case] = {
    "pyrovae.VAE": case(with_(event_shape=(D,), latent_dim=2, hidden=(3,))),
    "pyrovae.VAE.as_data": case(
        lambda: {"value": x()}, of=vae, value=numbers(N, D).but(called=("x",)), name=ANYTHING, covariates=ANYTHING
    ),
    "pyrovae.VAE.check": case(lambda: {"x": x()}, of=vae, x=in_steps(X), name=TEXT),
    "pyrovae.VAE.decode": case(
        lambda: {"z": torch.zeros(N, 2)},
        of=vae,
        z=Kind(
            lambda v: LATENTS.takes(as_array(v)),
            "latents",
            (*LATENTS.near, {"y": torch.zeros(3, 2)}, {"z": torch.zeros(3, 3)}, {"z": "a"}),
        ),
    ),
    "pyrovae.VAE.encode": case(lambda: {"x": x()}, of=vae, x=numbers(N, D), num_samples=size().or_(NONE)),
    "pyrovae.VAE.interpolate": case(
        lambda: {"start": x(), "end": x()}, of=vae, start=numbers(N, D), end=numbers(N, D), steps=size(2)
    ),
    "pyrovae.VAE.reconstruct": case(lambda: {"x": x()}, of=vae, x=numbers(N, D)),
    "pyrovae.VAE.sample": case(with_(n=2), of=vae),
    "pyrovae.VAE.sample_latents": case(with_(n=2), of=vae),
    "pyrovae.VAE.simulate": case(with_(n=2), of=vae),
    "pyrovae.VAE.draw_posterior": case(lambda: {"x": x(), "num_particles": 2}, of=vae, x=in_steps(X)),
    "pyrovae.VAE.draw_prior": case(lambda: {"x": x(), "num_particles": 2}, of=vae, x=in_steps(X)),
    "pyrovae.VAE.log_terms": case(lambda: {"x": x()}, of=vae, x=in_steps(X)),
    "pyrovae.VAE.load": case(
        lambda: {"path": vae().save("model")},
        of=lambda: pv.VAE,
        path=nothing(),
        arguments=nothing(called=("nonsense",)),
        errors=(FileNotFoundError, IsADirectoryError),
    ),
    "pyrovae.VAE.save": case(
        with_(path="f"),
        of=vae,
        path=PATH,
        exclude=Kind(lambda v: isinstance(v, (list, tuple, dict, set)) and len(v) == 0, "no names").but("nonsense"),
    ),
    "pyrovae.load": case(
        lambda: {"path": vae().save("model")}, path=nothing(), errors=(FileNotFoundError, IsADirectoryError)
    ),
    "pyrovae.LossModel.as_data": case(
        lambda: {"value": x()},
        of=autoencoder,
        value=numbers(N, D).but(called=("x",)),
        covariates=ANYTHING,
        name=ANYTHING,
    ),
    "pyrovae.LossModel.check": case(
        lambda: {"x": x()},
        of=autoencoder,
        x=in_steps(numbers(N, D)),
        covariates=COVARIATE.but(called=("positional arguments",)),
        name=TEXT,
    ),
    "pyrovae.LogTerms.by_datum": case(with_(site="z"), of=terms, site=nothing(), value=broadcasts(2, N, 2).or_(NONE)),
    "pyrovae.LogTerms.closed_form_kl": case(with_(site="z"), of=terms, site=nothing()),
    "pyrovae.LogTerms.closed_form_kl_by_dimension": case(with_(site="z"), of=terms, site=nothing()),
    "pyrovae.LogTerms.kl": case(with_(site="z"), of=terms, site=nothing(), closed_form=FLAG),
    "pyrovae.LogTerms.weighted_log_joint": case(
        lambda: {"parameters": torch.ones(2, N), "draws": torch.ones(2, N)},
        of=lambda: pv.model.log_terms(vae().model, vae().guide, x(), num_particles=2, draws="weighted"),
        parameters=broadcasts(2, N),
        draws=broadcasts(2, N),
    ),
    "pyrovae.model.Latents.by_datum": case(
        with_(site="z"), of=lambda: terms().latents, site=nothing(), value=broadcasts(2, N, 2).or_(NONE)
    ),
}
for _name in ("log_joint", "log_prior", "log_posterior"):
    MODELS[f"pyrovae.VAE.{_name}"] = case(
        lambda: {"x": x(), "latents": {"z": torch.zeros(2, N, 2)}},
        of=vae,
        x=in_steps(X),
        latents=Kind(
            lambda v: None if isinstance(v, dict) and all(of_reals(z) for z in v.values()) else False,
            "{}, for models without latents",
            ({"z": "a"}, [torch.zeros(2, N, 2)]),
        ),
    )

EVALUATION: dict[str, Case] = {
    "pyrovae.log_marginal": case(
        evaluated(num_samples=10), model=VAES, target_mc_se=POSITIVE.or_(NONE), bounds=sequence(size(), range(9))
    ),
    "pyrovae.evaluation.log_weights": case(evaluated(num_samples=10), model=VAES),
    "pyrovae.ais": case(
        evaluated(num_temperatures=3, num_chains=2, num_leapfrog=1), model=VAES, start=one_of("posterior", "prior")
    ),
    "pyrovae.bdmc": case(
        lambda: {
            "model": vae(),
            "num_data": 2,
            "num_temperatures": 3,
            "num_chains": 2,
            "num_leapfrog": 1,
            "compile": "off",
        },
        model=VAES,
        start=one_of("auto", "posterior", "prior"),
    ),
    "pyrovae.calibration": case(
        lambda: {"model": vae(), "num_data": 2, "num_draws": 3, "compile": "off"},
        model=VAES,
        num_data=size(2),
        num_draws=size(),
    ),
    "pyrovae.Calibration.coverage": case(of=calibrated, levels=nothing(near=([0.5, 2.0], (0.5, "a")))),
    "pyrovae.Calibration.bands": case(of=calibrated, level=number(0.0, 1.0, least=True)),
    "pyrovae.collapse": case(
        evaluated(num_samples=4), model=VAES, num_samples=size(2), num_data=size(2), num_draws=size()
    ),
    "pyrovae.elbo_terms": case(
        evaluated(num_samples=4), model=VAES, log_px=Kind(lambda v: v is None, "nothing", (torch.zeros(N + 1), "a"))
    ),
    "pyrovae.inference_gaps": case(
        evaluated(steps=1, num_particles=2, num_samples=20, families=("mean_field",)),
        model=VAES,
        log_px=NONE,
        families=sequence(one_of("own", "mean_field"), (1, 2), (), ("iaf",)),
        learning_rate=POSITIVE.or_(NONE),
        num_samples=size(2),
    ),
    "pyrovae.disentanglement": case(
        lambda: {"model": vae(), "x": x(20, D), "factors": factors(), "num_votes": 5, "compile": "off"},
        model=model_of(pv.VAEModel),
        seed=SEED,
        x=numbers(20, D),
        factor_names=sequence(TEXT, (0, 2), "ab", [1, 2], ["a"]),
        categorical=sequence(size(0, 1), range(3), ["c"], [2], [-1], [True]),
        threshold=NOT_NEGATIVE,
    ),
    "pyrovae.compare": case(
        lambda: {"results": {"a": marginal(), "b": marginal(1)}},
        reference=NONE,
        confidence=INSIDE,
        resolve=POSITIVE.or_(NONE),
        pool_seeds=FLAG,
        ais=Kind(lambda v: v is None or (isinstance(v, dict) and not v), "nothing", ({"c": 1}, {"a": 3})),
        gaps=Kind(lambda v: v is None or (isinstance(v, dict) and not v), "nothing", ({"c": 1}, {"a": 3})),
        results=nothing(near=RESULTS.near),
    ),
    "pyrovae.evaluation.arviz_comparison": case(
        lambda: {"results": {"a": marginal(), "b": marginal(1)}}, results=nothing(near=RESULTS.near)
    ),
    "pyrovae.pool": case(lambda: {"results": [marginal(), marginal(1)]}, results=RESULTS),
    "pyrovae.evaluation.EvaluationRun": case(
        lambda: {"function": "f", "model": vae(), "x": x(), "compile": "off"},
        function=TEXT,
        model=VAES,
        x=numbers(N, D),
        density=FLAG,
        covariates=Kind(lambda v: v == () if isinstance(v, tuple) else False, "none", called=("covariate",)),
    ),
    "pyrovae.evaluation.continuity": case(
        lambda: {"decode": vae().decode, "codes": torch.randn(5, 2), "num_pairs": 3, "steps": 3},
        decode=CALLABLE,
        codes=numbers(5, 2).but(called=("latents",)),
        num_pairs=size(),
        steps=size(2),
    ),
    "pyrovae.evaluation.completeness": case(
        lambda: {"decode": vae().decode, "z": torch.randn(5, 2), "test": x(4, D), "train": 1 - x(6, D)},
        decode=CALLABLE,
        z=numbers(5, 2).but(called=("latents",)),
        test=numbers(4, D, wide=True),
        train=numbers(6, D, wide=True),
    ),
    "pyrovae.evaluation.judge": case(
        lambda: {"pointwise": marginal().pointwise, "num_samples": 20},
        num_samples=size(),
        exact=FLAG,
        bound=FLAG.or_(NONE),
    ),
    "pyrovae.evaluation.judge_chains": case(
        lambda: {
            "pointwise": chains(),
            "num_chains": 2,
        },
        num_chains=size(),
    ),
    "pyrovae.evaluation.khat_threshold": case(with_(num_samples=10)),
    "pyrovae.evaluation.mean_error": case(lambda: {"pointwise": marginal().pointwise, "num_samples": 20}),
    "pyrovae.evaluation.mean_error_of_chains": case(
        lambda: {"pointwise": chains(), "num_chains": 2}, num_chains=size()
    ),
    "pyrovae.evaluation.pareto_khat": case(
        lambda: {"largest": torch.zeros(2, 8)},
        largest=floats(lambda v: v.dim() == 2 and v.shape[1] > 0, torch.zeros(8), finite=False),
    ),
    "pyrovae.MarginalResult.worst": case(of=marginal, by=one_of("khat", "log_px", "ess")),
    "pyrovae.MarginalResult.from_arviz": case(
        lambda: {"data": marginal().to_arviz()}, of=lambda: pv.MarginalResult, data=nothing()
    ),
    "pyrovae.AISResult.save": case(with_(path="f"), of=marginal, path=PATH),
    "pyrovae.AISResult.load": case(
        lambda: {"path": marginal().save("result.npz")},
        of=lambda: pv.MarginalResult,
        path=nothing(),
        errors=(FileNotFoundError,),
    ),
}
for _score in ("mig", "mutual_information", "sap", "dci", "factor_vae_score"):
    _more: dict[str, Any] = {"num_votes": 5} if _score == "factor_vae_score" else {}
    EVALUATION[f"pyrovae.evaluation.{_score}"] = case(
        lambda _more=_more: {"codes": codes(), "factors": factors(), **_more},
        categorical=sequence(size(0, 1), range(3), [2], [-1], [True]),
        num_fixed=size(2),
        min_variance=NOT_NEGATIVE,
        codes=Kind(
            lambda v: shaped(as_array(v), (20, 2)) or shaped(as_array(v), (20, 3)), "codes", numbers(20, 3).near
        ),
        factors=nothing(called=("factor",), near=(torch.zeros(20, 2), np.arange(40).reshape(20, 2) + 0.5)),
        seed=SEED,
    )

SCALE = POSITIVE.or_(one_of("shared", "per_pixel"))
PARTS: dict[str, Case] = {
    "pyrovae.likelihoods.Bernoulli": case(with_(event_dim=1)),
    "pyrovae.likelihoods.Categorical": case(with_(event_dim=1)),
    "pyrovae.likelihoods.ContinuousBernoulli": case(with_(event_dim=1)),
    "pyrovae.likelihoods.DiscretizedLogistic": case(with_(event_dim=1)),
    "pyrovae.likelihoods.DiscretizedLogisticMixture": case(with_(event_dim=1), num_components=size()),
    "pyrovae.likelihoods.Gaussian": case(with_(event_dim=1), scale=SCALE),
    "pyrovae.posteriors.MeanFieldNormal": case(with_(**POSTERIOR), scale=one_of("amortized", "constant")),
    "pyrovae.posteriors.FullRankNormal": case(with_(**POSTERIOR)),
    "pyrovae.posteriors.Planar": case(with_(**POSTERIOR)),
    "pyrovae.posteriors.Radial": case(with_(**POSTERIOR)),
    "pyrovae.posteriors.OrthogonalSylvester": case(with_(**POSTERIOR), bottleneck=size(1, 2).or_(NONE)),
    "pyrovae.posteriors.HouseholderSylvester": case(with_(**POSTERIOR), num_reflections=size()),
    "pyrovae.posteriors.TriangularSylvester": case(with_(**POSTERIOR)),
    "pyrovae.posteriors.IAF": case(with_(**POSTERIOR)),
    "pyrovae.posteriors.NeuralSpline": case(with_(**POSTERIOR), bins=size(2)),
    "pyrovae.posteriors.RealNVP": case(with_(**POSTERIOR)),
    "pyrovae.posteriors.NeuralSplineCoupling": case(with_(**POSTERIOR), bins=size(2)),
    "pyrovae.posteriors.NeuralAutoregressive": case(with_(**POSTERIOR), signal=size(), monotone=WIDTHS),
    "pyrovae.posteriors.LowRankNormal": case(with_(**POSTERIOR), rank=size()),
    "pyrovae.posteriors.Mixture": case(with_(**POSTERIOR), num_components=size()),
    "pyrovae.priors.StandardNormal": case(with_(latent_dim=2)),
    "pyrovae.priors.MixtureOfGaussians": case(with_(latent_dim=2), num_components=size()),
    "pyrovae.VAE.with_prior": case(
        with_(prior="mixture"), of=vae, prior=one_of(*pv.priors.PRIORS), prior_options=OPTIONS
    ),
    "pyrovae.priors.MixtureOfGaussians.start_at": case(
        lambda: {"draws": torch.randn(5, 2)}, of=lambda: pv.priors.MixtureOfGaussians(2), draws=nothing()
    ),
    "pyrovae.priors.FlowPrior": case(
        with_(latent_dim=2),
        flow=one_of("iaf", "neural_spline", "realnvp", "neural_spline_coupling", "naf"),
        flow_options=OPTIONS,
    ),
    "pyrovae.priors.AR1": case(
        with_(latent_dim=4, delta=1.0), latent_dim=size(2), delta=number(0.0, 100.0), channels=size(1, 2)
    ),
    "pyrovae.priors.VampPrior": case(with_(latent_dim=2, event_shape=(3,)), num_pseudo_inputs=size(), exemplars=FLAG),
    "pyrovae.priors.VampPrior.start_at": case(
        lambda: {"data": torch.rand(4, 3)},
        of=lambda: pv.priors.VampPrior(2, event_shape=(3,), num_pseudo_inputs=3),
        data=nothing(),
    ),
}


NETWORKS: dict[str, Case] = {
    "pyrovae.networks.MLP": case(
        with_(in_features=2, hidden=(3,), out_features=2), activation=nothing(near=("relu", nn.ReLU()))
    ),
    "pyrovae.networks.GatedMLP": case(with_(in_features=2, hidden=(3,), out_features=2)),
    "pyrovae.networks.ConvCell": case(with_(channels=2)),
    "pyrovae.networks.DepthwiseCell": case(with_(channels=2), expansion=size()),
    "pyrovae.networks.SqueezeExcitation": case(with_(channels=2), reduction=size()),
    "pyrovae.networks.ConvEncoder": case(with_(**CONV, out_features=2)),
    "pyrovae.networks.ConvDecoder": case(with_(**CONV, in_features=2, out_channels=2)),
    "pyrovae.networks.StridedEncoder": case(with_(**CONV, out_features=2)),
    "pyrovae.networks.StridedDecoder": case(with_(**CONV, in_features=2, out_channels=2)),
    "pyrovae.networks.GridEncoder": case(with_(**CONV, out_channels=2, hidden=2), hidden=HIDDEN, downsampling=POWER),
    "pyrovae.networks.GridDecoder": case(
        with_(**CONV, in_channels=2, out_channels=2, hidden=2), hidden=HIDDEN, downsampling=POWER
    ),
    "pyrovae.networks.GatedPixelCNN": case(
        with_(in_channels=1, out_channels=1, hidden=2, num_layers=1),
        hidden=HIDDEN,
        num_layers=size(),
        kernel_size=ODD,
        context_dim=size().or_(NONE),
        spatial_context=Kind(lambda v: v is False, "False, without context_dim", ("yes", 1)),
    ),
    "pyrovae.networks.RowGRU": case(
        with_(in_channels=1, out_channels=1, width=4, hidden=2),
        hidden=HIDDEN,
        width=size(),
        context_dim=size().or_(NONE),
        spatial_context=Kind(lambda v: v is False, "False, without context_dim", ("yes", 1)),
    ),
    "pyrovae.networks.SpectralSum": case(lambda: {"network": vae().decoder}, network=nothing(), iterations=size()),
    "pyrovae.networks.VectorQuantizer": case(with_(num_codes=4, code_dim=2)),
    "pyrovae.networks.code_counts": case(
        lambda: {"codes": torch.tensor([[0, 1]]), "num_codes": 4}, codes=nothing(), num_codes=size(2)
    ),
    "pyrovae.networks.perplexity": case(
        lambda: {"counts": torch.tensor([1, 2])}, counts=numbers(2, low=0.5, integers=True, wide=True)
    ),
}

IMAGES = sequence(size(), (3,), (8, 8), (0, 8, 8))
ZOO: dict[str, Case] = {
    "pyrovae.zoo.beta_vae": case(
        with_(event_shape=IMAGE, latent_dim=2), event_shape=IMAGES.but(called=("image_shape",))
    ),
    "pyrovae.zoo.delta_vae": case(
        with_(event_shape=(D,), latent_dim=4, delta=1.0, hidden=(3,)),
        delta=number(0.0, 100.0),
        latent_dim=size(2),
        channels=size(1, 2),
    ),
    "pyrovae.zoo.linear_vae": case(with_(event_shape=(D,), latent_dim=2), scale=POSITIVE.or_(one_of("shared"))),
    "pyrovae.zoo.HierarchicalVAE": case(
        with_(event_shape=(D,), latent_dims=(2,), hidden=(3,)),
        latent_dims=sequence(size(), range(1, 7)),
        layer_norm=FLAG.or_(NONE),
    ),
    "pyrovae.zoo.LadderVAE": case(
        with_(event_shape=(D,), latent_dims=(2,), hidden=(3,)),
        latent_dims=sequence(size(), range(1, 7)),
        layer_norm=FLAG.or_(NONE),
    ),
    "pyrovae.zoo.NVAE": case(
        with_(event_shape=IMAGE, groups=(1,), channels=2, latent_channels=1),
        event_shape=IMAGES,
        groups=sequence(size(), range(1, 4)),
        latent_channels=size(),
        expansion=size(),
        cells=size(),
        spectral_weight=NOT_NEGATIVE,
    ),
    "pyrovae.zoo.NonAmortizedVAE": case(
        lambda: {"generative": vae(), "num_data": 3},
        generative=model_of(pv.VAE),
        context_dim=size().or_(NONE),
        train_decoder=FLAG,
    ),
    "pyrovae.zoo.PixelCNN": case(with_(event_shape=IMAGE), event_shape=IMAGES, decoder=one_of("pixelcnn", "gru")),
    "pyrovae.zoo.PixelVAE": case(
        with_(event_shape=IMAGE, latent_dim=2, hidden=(3,)),
        event_shape=IMAGES,
        decoder=one_of("pixelcnn", "gru"),
        conditioning=one_of("map", "vector"),
        input_dropout=BELOW_ONE,
    ),
    "pyrovae.zoo.PixelDecoder": case(
        lambda: {"event_shape": IMAGE, "likelihood": pv.likelihoods.Bernoulli(3)},
        event_shape=IMAGES,
        likelihood=nothing(),
        network=one_of("pixelcnn", "gru").but(called=("decoder",)),
        network_options=OPTIONS.or_(NONE).but(called=("decoder_options", "decoder")),
        upsample=NONE,
        input_dropout=BELOW_ONE,
    ),
    "pyrovae.zoo.PixelCNNPrior": case(
        with_(grid_shape=(2, 2), num_codes=4, hidden=2, num_layers=1),
        embedding_dim=size(),
        hidden=HIDDEN,
        num_layers=size(),
        kernel_size=ODD,
    ),
    "pyrovae.zoo.UniformCodes": case(with_(grid_shape=(2, 2), num_codes=4)),
    "pyrovae.zoo.VQVAE": case(
        with_(event_shape=IMAGE, hidden=2, num_blocks=1),
        event_shape=IMAGES,
        downsampling=POWER,
        hidden=HIDDEN,
        commitment=POSITIVE,
        prior=NONE,
    ),
    "pyrovae.zoo.VQVAE.codes": case(lambda: {"x": x(2, 1, 4, 4)}, of=vqvae, x=numbers(2, 1, 4, 4)),
    "pyrovae.zoo.VQVAE.code_counts": case(lambda: {"x": x(2, 1, 4, 4)}, of=vqvae, x=numbers(2, 1, 4, 4)),
    "pyrovae.zoo.ContractionPenalty": case(num_probes=size()),
    "pyrovae.zoo.GaussianNoise": case(scale=POSITIVE),
    "pyrovae.zoo.KLPenalty": case(target=INSIDE),
    "pyrovae.zoo.L1Penalty": case(),
    "pyrovae.zoo.MaskingNoise": case(fraction=INSIDE, rescale=FLAG),
    "pyrovae.zoo.Autoencoder.encode": case(lambda: {"x": x()}, of=autoencoder, x=numbers(N, D)),
    "pyrovae.zoo.Autoencoder.decode": case(lambda: {"code": torch.zeros(N, 2)}, of=autoencoder, code=numbers(N, 2)),
    "pyrovae.zoo.Autoencoder.reconstruct": case(lambda: {"x": x()}, of=autoencoder, x=numbers(N, D)),
    "pyrovae.zoo.Autoencoder.reconstruction_error": case(
        lambda: {"x": x()}, of=autoencoder, x=numbers(N, D), given=numbers(N, D).or_(NONE)
    ),
    "pyrovae.zoo.Autoencoder.squared_jacobian_norm": case(
        lambda: {"x": x()}, of=autoencoder, x=numbers(N, D), num_probes=size().or_(NONE)
    ),
}
ACTIVATION = registered(pv.zoo.ACTIVATIONS)
for _make in (
    "Autoencoder",
    "linear_autoencoder",
    "deep_autoencoder",
    "denoising_autoencoder",
    "sparse_autoencoder",
    "contractive_autoencoder",
):
    ZOO[f"pyrovae.zoo.{_make}"] = case(
        with_(event_shape=(D,), code_dim=2),
        activation=ACTIVATION,
        code_activation=ACTIVATION,
        reconstruction=one_of("squared_error", "bernoulli"),
        tied=FLAG,
        corruption=registered(pv.zoo.CORRUPTIONS)
        if _make == "denoising_autoencoder"
        else registered(pv.zoo.CORRUPTIONS).or_(NONE),
        penalty=one_of("kl", "l1") if _make == "sparse_autoencoder" else one_of("l1", "contraction").or_(NONE),
    )

BATCH = sequence(size(0), range(8))
DISTRIBUTIONS: dict[str, Case] = {
    "pyrovae.distributions.AR1": case(
        lambda: {"alpha": torch.tensor([0.5]), "length": 3},
        alpha=floats(lambda v: v.dim() == 1, torch.zeros(2, 2)),
        length=size(),
        scale=floats(lambda v: v.shape in ((1,), (D,), (), (0, D)) or v.shape[-1:] == (1,) or v.dim() >= 1).or_(NONE),
        batch_shape=BATCH,
    ),
    "pyrovae.distributions.Autoregressive": case(
        lambda: {"conditional": lambda v: v, "event_shape": (2, 2)},
        conditional=CALLABLE,
        event_shape=sequence(size(), range(2, 8)),
        batch_shape=BATCH,
        support=nothing(),
        like=Kind(
            lambda v: (
                isinstance(v, Tensor) and v.layout is torch.strided and v.device.type == "cpu" and not v.is_quantized
            ),
            "a tensor",
        ).or_(NONE),
        mean_draws=size(),
    ),
    "pyrovae.distributions.ContinuousBernoulli": case(lambda: {"logits": torch.zeros(3)}, logits=floats()),
    "pyrovae.distributions.DiscretizedLogistic": case(
        lambda: {"loc": torch.zeros(3), "scale": torch.ones(3), "num_levels": 4},
        loc=broadcasts(3),
        scale=broadcasts(3, positive=True),
    ),
    "pyrovae.distributions.Flow": case(
        lambda: {"base": normal(), "transforms": [torch.distributions.AffineTransform(0.0, 2.0, 1)], "can_score": True},
        base=nothing(),
        transforms=nothing(),
        can_score=FLAG,
    ),
    "pyrovae.distributions.Flow.score": case(
        lambda: {"value": torch.zeros(3)},
        of=lambda: pv.distributions.Flow(normal(), [torch.distributions.AffineTransform(0.0, 2.0, 1)], can_score=True),
        value=Kind(lambda value: isinstance(value, torch.Tensor) or None, "a tensor"),
    ),
    "pyrovae.distributions.IndependentBernoulli": case(
        lambda: {"logits": torch.zeros(2, 3), "event_dim": 1, "validate_args": False},
        logits=floats(lambda v: v.dim() > 0, torch.tensor(0.0), finite=False),
        event_dim=size(0, 2),
    ),
    "pyrovae.distributions.Levels": case(
        lambda: {"logits": torch.zeros(3)},
        logits=floats(
            lambda v: v.dim() > 0 and v.shape[-1] > 1 and bool(v.logsumexp(-1).isfinite().all()),
            torch.zeros(3, 1),
            finite=False,
        ),
    ),
    "pyrovae.distributions.PointMass": case(
        lambda: {"value": torch.zeros(3).long(), "num_values": 4},
        value=Kind(lambda v: isinstance(v, Tensor) and v.dtype == torch.int64, "integers"),
        num_values=size(),
    ),
    "pyrovae.distributions.SylvesterTransform": case(
        lambda: {"q": torch.eye(3, 2), "r": torch.eye(2), "r_tilde": torch.eye(2), "b": torch.zeros(2)},
        q=floats(lambda v: v.dim() > 1 and v.shape[-1] == 2 and v.dtype == torch.float32),
        r=nothing(),
        r_tilde=nothing(),
        b=floats(lambda v: v.shape[-1:] == (2,) and v.dtype == torch.float32),
    ),
    "pyrovae.distributions.capabilities": case(lambda: {"p": normal()}, p=nothing()),
    "pyrovae.distributions.product_of_normals": case(lambda: {"p": normal(), "q": normal()}, p=nothing(), q=nothing()),
    "pyrovae.distributions.register_chart": case(lambda: {"distribution": dist.VonMises}, distribution=nothing()),
    "pyrovae.distributions.residual_normal": case(
        lambda: {"p": normal(), "shift": torch.zeros(3), "stretch": torch.ones(3)},
        p=nothing(),
        shift=broadcasts(3),
        stretch=broadcasts(3, positive=True),
    ),
}

CODES = Kind(
    lambda v: numbers(N, D).takes(v),
    "codes",
    [n for n in numbers(N, D).near if np.shape(n)[-1:] != (D - 1,)],
)
LABELS = Kind(
    lambda v: of_reals(v) and not v.is_floating_point() and v.shape == (N,), "labels", (torch.zeros(N + 1), "a")
)
PLOTS: dict[str, Case] = {
    "pyrovae.plots.active_units": case(lambda: {"reports": {"a": report()}}, reports=nothing(near=({}, {"a": 3}))),
    "pyrovae.plots.aggregate_posterior": case(
        lambda: {"model": vae(), "x": x()}, model=VAES, x=numbers(N, D), dims=parts_of(2, (1, 2))
    ),
    "pyrovae.plots.bounds": case(
        lambda: {"results": marginal()},
        ais=Kind(lambda v: v is None or (isinstance(v, dict) and not v), "none", ({"a": 3},)),
    ),
    "pyrovae.plots.codebook_usage": case(lambda: {"counts": torch.tensor([1, 2])}, counts=nothing()),
    "pyrovae.plots.codes": case(
        lambda: {"code": x(), "labels": torch.arange(N)}, code=CODES, labels=LABELS, dims=parts_of(D, (2,))
    ),
    "pyrovae.plots.curves": case(
        lambda: {"runs": {"a": pd.DataFrame({"val_loss": [2.0, 1.0]})}},
        runs=nothing(near=({}, {"a": 3})),
        column=nothing(called=("runs",)),
    ),
    "pyrovae.plots.denoising": case(
        lambda: {"models": {"a": autoencoder()}, "x": x(), "noisy": x(), "image_shape": (2, 2)},
        models=nothing(near=({"a": 3},)),
        x=numbers(N, D),
        noisy=numbers(N, D),
        image_shape=PLOT_SHAPE,
    ),
    "pyrovae.plots.calibration": case(
        lambda: {"report": calibrated()}, report=nothing(near=({}, {"a": 3})), level=number(0.0, 1.0, least=True)
    ),
    "pyrovae.plots.forest": case(
        lambda: {"comparison": pv.compare({"a": marginal(), "b": marginal(1)})},
        comparison=nothing(),
        reference=NONE,
        interval=POSITIVE.or_(NONE),
    ),
    "pyrovae.plots.gaps": case(
        lambda: {
            "tables": {
                "a": {"approximation": 1.0, "approximation_se": 1.0, "amortization": 1.0, "amortization_se": 1.0}
            }
        },
        tables=nothing(near=({}, {"a": 3}, {"a": {}})),
    ),
    "pyrovae.plots.images": case(
        lambda: {"x": x(), "image_shape": (2, 2)},
        x=numbers(N, D),
        image_shape=PLOT_SHAPE,
        columns=size(),
        row_labels=sequence(TEXT, range(2), "a", [1]),
    ),
    "pyrovae.plots.khats": case(lambda: {"result": marginal()}, result=nothing()),
    "pyrovae.plots.kl_per_dimension": case(lambda: {"report": report()}, report=nothing(near=({}, {"a": 3}))),
    "pyrovae.plots.kl_per_site": case(lambda: {"report": report()}, report=nothing(near=({}, {"a": 3}))),
    "pyrovae.plots.layer_samples": case(
        lambda: {"model": ladder(), "image_shape": (2, 2), "n": 2}, model=VAES, n=size(2), image_shape=PLOT_SHAPE
    ),
    "pyrovae.plots.log_weights": case(
        lambda: {"log_weight": torch.linspace(-5, 0, 50)},
        log_weight=Kind(
            lambda v: None if is_log_weights(v) else any(shaped(as_array(v), (n,)) for n in (2, 6, D, 50)),
            "log-weights of a datum",
        ),
    ),
    "pyrovae.plots.manifold": case(
        plotted(n=2),
        model=VAES,
        n=size(2),
        image_shape=PLOT_SHAPE,
        extent=Kind(
            lambda v: v is None or (sequence(NUMBER, (4,)).takes(v) and v[0] < v[1] and v[2] < v[3]),
            "an extent",
            ((0, 1, 1, 0), (1, 2, 3), (0, 1, 0, 1)),
        ),
    ),
    "pyrovae.plots.reconstructions": case(
        plotted(x=x()), model=model_of(pv.VAEModel), x=numbers(N, D), image_shape=PLOT_SHAPE
    ),
    "pyrovae.plots.samples": case(plotted(n=2), model=VAES, image_shape=PLOT_SHAPE),
    "pyrovae.plots.traversals": case(
        plotted(x=x(), values=(0.0, 1.0)),
        model=VAES,
        x=numbers(N, D),
        image_shape=PLOT_SHAPE,
        dims=parts_of(2, (1, 2)).or_(NONE),
        values=sequence(NUMBER, range(1, 7)).or_(NONE),
    ),
}

MATRIX = numbers(3, 2)
TESTING: dict[str, Case] = {
    "pyrovae.testing.LinearGaussian": case(
        of_lines, w=nothing(), b=nothing(), guide=one_of("exact", "mean_field", "detuned"), shift=NUMBER
    ),
    "pyrovae.testing.LinearGaussian.maximum_likelihood": case(
        lambda: {"x": torch.randn(N, D), "latent_dim": 2},
        of=lambda: pv.testing.LinearGaussian,
        x=nothing(),
        latent_dim=size(1, D - 1),
        noise=POSITIVE.or_(NONE),
        guide=one_of("exact", "mean_field", "detuned"),
    ),
    "pyrovae.testing.BetaBernoulli": case(with_(n=3), a=POSITIVE, b=POSITIVE, detune=NOT_NEGATIVE),
    "pyrovae.testing.DiscreteMixture": case(
        lambda: {"log_weights": torch.zeros(2), "logits": torch.zeros(2, 3)}, log_weights=nothing(), logits=nothing()
    ),
    "pyrovae.testing.LinearMixture": case(
        lambda: {"weights": torch.ones(2), "means": torch.zeros(2, 2), "spread": 1.0, **of_lines()},
        weights=nothing(),
        means=nothing(),
        spread=POSITIVE,
        w=nothing(),
        b=nothing(),
    ),
    "pyrovae.testing.grid_log_px": case(
        lambda: {"model": vae(), "x": x(), "points": 3},
        model=VAES,
        x=numbers(N, D),
        site=nothing(),
        half_width=POSITIVE,
        points=size(2),
    ),
}

DATASETS: dict[str, Case] = {
    "pyrovae.datasets.load": case(
        with_(name="digits"),
        name=registered(pv.datasets.DATASETS).but(called=("data set",)),
        binarize=one_of("dynamic", "static", "threshold").or_(NONE),
        flatten=FLAG,
        seed=SEED,
        root=PATH.or_(NONE),
        download=FLAG,
        errors=(FileNotFoundError,),
    ),
}

CASES = {
    **TRAINING,
    **OBJECTIVES,
    **MODELS,
    **EVALUATION,
    **PARTS,
    **NETWORKS,
    **ZOO,
    **DISTRIBUTIONS,
    **PLOTS,
    **TESTING,
    **DATASETS,
}
