"""A saved model comes back to the last bit, or ``save`` and ``load`` say in a sentence why it cannot."""

import copy
import enum
import functools
import json
import math
import pickle
import random
import resource
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import zoo
from pyrovae._arguments import decode, encode
from pyrovae.likelihoods import LIKELIHOODS
from pyrovae.model._state import tensors
from pyrovae.posteriors import POSTERIORS
from pyrovae.priors import PRIORS
from pyrovae.testing import BetaBernoulli, LinearGaussian
from tests.models import binary


class Decayed(pv.VAE):
    """Of arguments that it does not name, with one of its own."""

    def __init__(self, *args: Any, strength: float = 1.0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.strength = strength


class Schedule:
    def __init__(self) -> None:
        self.end, self._lock = 1, object()


class Furnished(Decayed):
    """With attributes of many kinds."""

    temperature = 1.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.mean, self.means, self.table = torch.zeros(6), [torch.randn(2)], {"a": np.zeros(3)}
        self.schedule, self.squash, self.steps = Schedule(), lambda x: x, 0
        self.tied, self.norm = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.BatchNorm1d(3)
        self.tied[1].weight = self.tied[0].weight
        self.both, self.teachers = [self.tied, self.tied[0].bias, self], [nn.Linear(2, 1)]
        with torch.no_grad():  # of the model the weights alone may differ from what is built anew
            self.teachers[0].weight.zero_(), self.teachers[0].bias.zero_(), self.means[0].zero_()

    @functools.cached_property
    def total(self) -> Tensor:
        return self.mean.sum() + len(self.means)


class Defaults(pv.VAE):
    def __init__(self, event_shape: tuple[int, ...] = (6,), latent_dim: int = 2, *, hidden: tuple[int, ...] = (7,)):
        super().__init__(event_shape, latent_dim + 1, hidden=hidden)


class Nothing(pv.VAE):
    def __init__(self) -> None:
        super().__init__((6,), 2, hidden=(5,))


class Mixin:
    """Not a model, and first in line."""

    def __init__(self, *args: Any, factor: float = 1.0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.factor = factor


class Mixed(Mixin, pv.VAE):
    pass


class Grandchild(Decayed):
    def __init__(self, latent_dim: int, /, *, more: float = 0.0) -> None:
        super().__init__((6,), latent_dim, hidden=(5,), strength=2 * more)
        self.more = more


class Anything(pv.LossModel):
    """Keeps what it is given."""

    def __init__(self, value: Any = None, **options: Any) -> None:
        super().__init__()
        self.value_, self.options_ = value, options
        self.weight = nn.Parameter(torch.zeros(1))

    def loss(self, x: Tensor) -> Tensor:
        return (self.weight * x).sum(1)


class Colour(enum.Enum):
    RED = "red"


class Parts(pv.LossModel):
    """A model of whatever parts a function makes."""

    make: Callable[[], nn.Module]

    def __init__(self) -> None:
        super().__init__()
        self.part = type(self).make()

    def loss(self, x: Tensor) -> Tensor:
        return self.part(x).flatten(1).sum(1)


def of_parts(make: Callable[[], nn.Module]) -> Parts:
    return type("OfParts", (Parts,), {"make": staticmethod(make), "__module__": __name__})()


def there_and_back(model: Any, tmp_path: Path) -> Any:
    """Loaded again, with the same bits in every parameter and buffer and no random number drawn."""
    path = model.save(tmp_path / "model.safetensors")
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    again = type(model).load(path)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]  # noqa: NPY002
    assert type(again) is type(model)
    assert again.event_shape == model.event_shape
    assert again.construction == model.construction
    ours, theirs = tensors(model), tensors(again)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        assert value.shape == theirs[name].shape, name
        a, b = (v.detach().contiguous().flatten().view(torch.uint8) for v in (value, theirs[name]))
        assert torch.equal(a, b), name
    return again


# -- arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "check"),
    [
        (lambda: Decayed((6,), 2, hidden=(16,), strength=7.0), lambda m: m.strength == 7.0),
        (lambda: Decayed((6,), latent_dim=2, hidden=[4]), lambda m: m.strength == 1.0),
        (lambda: Defaults(), lambda m: m.latent_dim == 3),
        (lambda: Defaults(latent_dim=4), lambda m: (m.latent_dim, m.decoder[0].out_features) == (5, 7)),
        (lambda: Nothing(), lambda m: m.latent_dim == 2),
        (lambda: Mixed((6,), 2, hidden=(3,), factor=3.0), lambda m: m.factor == 3.0),
        (lambda: Grandchild(3, more=0.5), lambda m: (m.latent_dim, m.more, m.strength) == (3, 0.5, 1.0)),
    ],
)
def test_the_outermost_constructors_arguments_are_kept(make, check, tmp_path) -> None:
    model, x = make(), binary(4)
    assert check(model)
    again = there_and_back(model, tmp_path)
    assert check(again)
    assert torch.equal(again.encode(x), model.encode(x))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.construction == model.construction
        assert check(there_and_back(twin, tmp_path))


@pytest.mark.parametrize(
    ("value", "back"),
    [
        ((6, (1, 2)), (6, (1, 2))),
        ([1, "a", None, True, 2.5], [1, "a", None, True, 2.5]),
        (torch.Size([2, 3]), (2, 3)),
        ({"a": {"b": (1,)}, "c": []}, {"a": {"b": (1,)}, "c": []}),
        (MappingProxyType({"a": 1}), {"a": 1}),
        ({0: 0.5, (1, 2): "x", None: 1}, {0: 0.5, (1, 2): "x", None: 1}),
        ({"$tuple": [1]}, {"$tuple": [1]}),
        ('{"$not_kept": "x"}', '{"$not_kept": "x"}'),
        (np.float32(1.5), 1.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array(2.0), 2.0),
        (torch.tensor(4), 4),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (math.inf, math.inf),
        (-math.inf, -math.inf),
        (0.1 + 0.2, 0.1 + 0.2),
        (2**70, 2**70),
        ("\udc80\U0001f600", "\udc80\U0001f600"),
        (torch.bfloat16, torch.bfloat16),
        (torch.device("cuda", 1), torch.device("cuda", 1)),
        (Path("a") / "b", Path("a/b")),
        (Colour.RED, Colour.RED),
    ],
)
def test_values_come_back_as_they_were(value: Any, back: Any, tmp_path) -> None:
    for model in (Anything(value), Anything(value=value), Anything(1, option=value)):
        again = there_and_back(model, tmp_path)
        got = again.options_.get("option", again.value_)
        assert got == back
        assert type(got) is type(back)


def test_nan_comes_back() -> None:
    assert math.isnan(decode(json.loads(json.dumps(encode(math.nan))), lambda construction: None))


def test_arguments_are_captured_by_value(tmp_path) -> None:
    hidden, options = [16], {"scale": 0.5}
    vae = pv.VAE((6,), 2, hidden=hidden, likelihood="gaussian", likelihood_options=options)
    hidden.append(4)
    options["scale"] = 9.0
    vae.construction["arguments"].clear()
    assert there_and_back(vae, tmp_path).likelihood.scale == 0.5


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (nn.Linear(2, 2), "Linear"),
        (nn.ReLU, "type"),
        (math.sqrt, "builtin_function_or_method"),
        (lambda x: x, "function"),
        (torch.zeros(3), "Tensor"),
        (np.zeros(2), "ndarray"),
        (nn.Parameter(torch.zeros(())), "Parameter"),
        ({1, 2}, "set"),
        (b"a", "bytes"),
        (1j, "complex"),
        ({"a": [(nn.ReLU(),)]}, "ReLU"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_the_remedy(value: Any, kind: str, tmp_path) -> None:
    for name, model in (("value", Anything(value)), ("own", Anything(own=value))):
        path = tmp_path / name
        with pytest.raises(ValueError, match=rf"{name} of Anything holds a {kind}, which JSON cannot.*exclude="):
            model.save(path)
        assert not path.exists()
        model.save(path, exclude=name)
        with pytest.raises(ValueError, match=rf"does not hold all arguments of Anything: pass {name} to load"):
            pv.load(path)
        again = Anything.load(path, **{name: value})
        assert again.options_.get("own", again.value_) is value
    with pytest.raises(ValueError, match=r"exclude names valeu; arguments are value"):
        model.save(path, exclude=["valeu"])


def test_a_container_that_holds_itself_is_refused(tmp_path) -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ValueError, match="value of Anything holds a list, which JSON cannot"):
        Anything(value).save(tmp_path / "m")


def test_a_module_as_part_is_given_at_load(tmp_path) -> None:
    def part() -> nn.Module:
        return pv.networks.MLP(6, [9], 16)

    vae, x = pv.VAE((6,), 3, hidden=(16,), encoder=part()), binary(5)
    with pytest.raises(ValueError, match=r"encoder of VAE holds a MLP.*exclude=\['encoder'\].*pass encoder to load"):
        vae.save(tmp_path / "m")
    path = vae.save(tmp_path / "m", exclude=["encoder"])
    with pytest.raises(ValueError, match="pass encoder to load"):
        pv.load(path)
    assert torch.equal(pv.VAE.load(path, encoder=part()).encode(x), vae.encode(x))
    with pytest.raises(ValueError, match=r"do not fit VAE: encoder.0.bias is \(8,\) as built, and \(9,\) in the file"):
        pv.VAE.load(path, encoder=pv.networks.MLP(6, [8], 16))


def test_arguments_in_place_of_the_files(tmp_path) -> None:
    path = Decayed((6,), 2, hidden=(16,), strength=7.0).save(tmp_path / "m")
    assert Decayed.load(path, strength=3.0).strength == 3.0
    with pytest.raises(ValueError, match=r"do not fit Decayed: decoder.0.bias is \(8,\) as built"):
        Decayed.load(path, hidden=(8,))
    with pytest.raises(ValueError, match=r"cannot be rebuilt: .*unexpected keyword argument 'strenght'"):
        Decayed.load(path, strenght=3.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m, "mean", 3 * torch.ones(6)), "mean is Tensor .* as built, and Tensor .* now"),
        (lambda m: m.means.append(torch.zeros(1)), "means is .* as built, and .* now"),
        (lambda m: m.table["a"].fill(1.0), "table is .* as built, and .* now"),
        (lambda m: setattr(m.schedule, "end", 4), "schedule is Schedule .* as built, and Schedule .* now"),
        (lambda m: setattr(m, "squash", torch.relu), "squash is function .* as built, and builtin_function"),
        (lambda m: delattr(m, "strength"), "strength is 7.0 as built, and missing now"),
        (lambda m: setattr(m, "likelihood", LIKELIHOODS["bernoulli"](1)), "likelihood is Gaussian as built, and B"),
        (lambda m: m.decoder.__setitem__(1, nn.Tanh()), "decoder.1 is ReLU as built, and Tanh now"),
        (lambda m: m.decoder.add_module("drop", nn.Dropout()), "decoder.drop is missing as built, and Dropout now"),
        (lambda m: setattr(m.decoder[1], "forward", torch.tanh), "decoder.1.forward is missing as built, and builtin"),
        (
            lambda m: setattr(m.tied[1], "weight", nn.Parameter(torch.zeros(2, 2))),
            "tied.1.weight is tensor tied.0.weight as built, and tensor tied.1.weight now",
        ),
        (
            lambda m: setattr(m.tied[1], "bias", m.tied[0].bias),
            "tied.1.bias is tensor tied.1.bias as built, and tensor tied.0.bias now",
        ),
        (lambda m: m.teachers[0].bias.data.add_(1), "teachers is .* as built, and .* now"),
        (lambda m: setattr(m, "decoder", nn.Linear(2, 6)), "decoder.0.bias is .* as built, and missing now"),
        (lambda m: m.register_buffer("extra", torch.zeros(2)), "extra is missing as built"),
    ],
)
def test_what_was_changed_later_is_not_lost_without_a_word(change, message: str, tmp_path) -> None:
    options = {"likelihood": "gaussian", "likelihood_options": {"scale": 0.5}}
    model = Furnished((6,), 2, hidden=(16,), strength=7.0, **options)
    there_and_back(model, tmp_path)
    change(model)
    with pytest.raises(ValueError, match=message):
        model.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


CHANGES: list[tuple[str, str, Any]] = [
    ("", "strength", 9.0),
    ("", "temperature", 20.0),  # the class has it
    ("", "max_plate_nesting", 2),
    ("", "steps", 3),
    ("", "notes", {"epoch": (3, [math.inf, "a"])}),
    ("", "mean", None),  # a tensor before
    ("", "best", np.float64(0.5)),
    ("likelihood", "scale", 0.25),
    ("decoder.1", "inplace", True),
    ("norm", "momentum", 0.5),
    ("norm", "event_shape", (3,)),
]


@pytest.mark.parametrize(("part", "name", "value"), CHANGES)
def test_numbers_and_the_like_may_change_later(part: str, name: str, value: Any, tmp_path) -> None:
    options = {"likelihood": "gaussian", "likelihood_options": {"scale": 0.5}}
    model = Furnished((6,), 2, hidden=(16,), strength=7.0, **options)
    setattr(model.get_submodule(part), name, value)
    assert name == "mean" or model.total == 1  # computed, and nothing to keep
    for again in (there_and_back(model, tmp_path), there_and_back(there_and_back(model, tmp_path), tmp_path)):
        assert getattr(again.get_submodule(part), name) == value
    path = model.save(tmp_path / "m")
    if name == "strength":
        assert Furnished.load(path, strength=3.0).strength == 3.0
    else:
        assert getattr(Furnished.load(path, strength=3.0).get_submodule(part), name) == value
    assert len(json.loads(safe_open(path, framework="pt").metadata()["pyrovae"])["state"]) == 1


def test_attributes_of_a_model_with_parts_that_load_is_given(tmp_path) -> None:
    def part(**options: Any) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(**options))

    model = Furnished((6,), 2, hidden=(16,), encoder=part())
    model.temperature, model.likelihood = 20.0, LIKELIHOODS["continuous_bernoulli"](1)
    path = model.save(tmp_path / "m", exclude="encoder")
    with pytest.raises(ValueError, match="likelihood is Bernoulli as built, and ContinuousBernoulli in the file"):
        Furnished.load(path, encoder=part())
    model.likelihood = LIKELIHOODS["bernoulli"](1)
    model.save(path, exclude="encoder")
    assert Furnished.load(path, encoder=part(inplace=True)).temperature == 20.0
    with pytest.raises(ValueError, match=r"encoder.1 is Tanh as built, and ReLU in the file"):
        Furnished.load(path, encoder=nn.Sequential(nn.Linear(6, 16), nn.Tanh()))
    with pytest.raises(ValueError, match="holds strength, and takes only encoder"):
        Furnished.load(path, encoder=part(), strength=3.0)


class Drawn(Nothing):
    """What a constructor draws differs each time, or by chance does not."""

    def __init__(self, tensor: bool = False) -> None:
        super().__init__()
        self.coin, self.die = bool(torch.rand(()) < 0.5), int(np.random.randint(3))  # noqa: NPY002
        self.mask, self.letter = (np.random.rand(6) < 0.5).tolist(), random.choice("ab")  # noqa: NPY002
        if tensor:
            self.order = torch.randperm(6)


def test_what_a_constructor_draws(tmp_path) -> None:
    torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002
    for _ in range(6):
        model = Drawn()
        again = there_and_back(model, tmp_path)
        for name in ("coin", "die", "mask", "letter"):
            assert getattr(again, name) == getattr(model, name)
    with pytest.raises(ValueError, match=r"order is Tensor .* as built, and Tensor .* keep it in a buffer"):
        Drawn(tensor=True).save(tmp_path / "m")


def test_any_name_may_be_an_arguments(tmp_path) -> None:
    class Named(Nothing):
        def __init__(self, cls: str, path: int, **options: Any) -> None:
            super().__init__()
            self.given = (cls, path, options)

    model = Named(cls="a", path=1, args=2, kwargs=3)
    assert there_and_back(model, tmp_path).given == ("a", 1, {"args": 2, "kwargs": 3})
    assert Named.load(model.save(tmp_path / "m"), cls="b", path=2).given[:2] == ("b", 2)


@pytest.mark.parametrize("posterior", ["mean_field", "iaf"])
def test_the_meta_device_holds_no_model(posterior: str, tmp_path) -> None:
    path = pv.VAE((6,), 2, hidden=(16,), posterior=posterior).save(tmp_path / "m")
    with torch.device("meta"), pytest.raises(ValueError, match="meta"):
        pv.load(path)


def test_models_as_arguments(tmp_path) -> None:
    torch.manual_seed(0)
    inner = Decayed((6,), 2, hidden=(16,), strength=7.0)
    again = there_and_back(zoo.NonAmortizedVAE(inner, 5), tmp_path)
    assert type(again.generative) is Decayed
    assert again.generative.strength == 7.0

    class Distilled(Defaults):
        def __init__(self, teacher: pv.VAE) -> None:
            super().__init__()
            self._teachers = [teacher]  # not a part: its weights are in no file

    with pytest.raises(ValueError, match=r"teacher of .*Distilled holds a model that is no part of this one"):
        Distilled(inner).save(tmp_path / "m")


def test_an_object_that_no_constructor_made(tmp_path) -> None:
    model = pv.VAE.__new__(pv.VAE)
    model.__setstate__({k: v for k, v in pv.VAE((6,), 2).__dict__.items() if k != "_constructed"})
    with pytest.raises(ValueError, match="was not made by VAE"):
        model.save(tmp_path / "m")


def test_a_constructor_that_works_once(tmp_path) -> None:
    class Once(Nothing):
        made = 0

        def __init__(self) -> None:
            super().__init__()
            type(self).made += 1
            if self.made > 1:
                raise RuntimeError("the data are gone")

    with pytest.raises(ValueError, match=r"no .*Once can be rebuilt from its arguments, as by load\(\): the data are"):
        Once().save(tmp_path / "m")


def test_signatures_are_the_constructors_own() -> None:
    import inspect

    assert list(inspect.signature(zoo.HierarchicalVAE).parameters)[:2] == ["event_shape", "latent_dims"]
    with pytest.raises(TypeError, match=r"missing (1|a) required (positional )?argument: 'latent_dim'"):
        pv.VAE((6,))


# -- every class of the library ----------------------------------------------------------------------------------

IMAGE = (1, 8, 8)
MODELS: dict[str, Callable[[], Any]] = {
    **{f"posterior {n}": lambda n=n: pv.VAE((6,), 4, posterior=n, hidden=(8,)) for n in POSTERIORS},
    **{f"prior {n}": lambda n=n: pv.VAE((6,), 4, prior=n, hidden=(8,)) for n in PRIORS},
    **{f"likelihood {n}": lambda n=n: pv.VAE((6,), 4, likelihood=n, hidden=(8,)) for n in LIKELIHOODS},
    **{f"network {n}": lambda n=n: pv.VAE(IMAGE, 2, network=n, hidden=(8,)) for n in pv.networks.NETWORKS},
    "linear": lambda: zoo.linear_vae((6,), 2),
    "delta": lambda: zoo.delta_vae((6,), 4, delta=0.5, hidden=(8,)),
    "beta": lambda: zoo.beta_vae((1, 16, 16), 3),
    "hierarchical": lambda: zoo.HierarchicalVAE((6,), (3, 2), hidden=(8,)),
    "ladder": lambda: zoo.LadderVAE((6,), (3, 2), hidden=(8,)),
    "NVAE": lambda: zoo.NVAE(IMAGE, channels=4),
    "VQ-VAE": lambda: zoo.VQVAE(IMAGE, num_codes=4, code_dim=3, hidden=4),
    "VQ-VAE with prior": lambda: zoo.VQVAE(
        IMAGE, num_codes=4, code_dim=3, hidden=4, prior=zoo.PixelCNNPrior((2, 2), 4, hidden=6)
    ),
    "PixelCNN": lambda: zoo.PixelCNN(IMAGE, decoder_options={"hidden": 4}),
    "PixelVAE": lambda: zoo.PixelVAE(IMAGE, 2, hidden=(8,), decoder_options={"hidden": 4}),
    "PixelVAE, GRU": lambda: zoo.PixelVAE(IMAGE, 2, hidden=(8,), decoder="gru", conditioning="vector"),
    "not amortised": lambda: zoo.NonAmortizedVAE(pv.VAE((6,), 2, hidden=(8,), prior="mixture"), 5),
    "linear-Gaussian": lambda: LinearGaussian(torch.ones(6, 2), torch.zeros(6), 0.5),
    "Beta-Bernoulli": lambda: BetaBernoulli(6),
    "autoencoder": lambda: zoo.contractive_autoencoder((6,), 2),
    "prior of codes": lambda: zoo.PixelCNNPrior((2, 2), 4),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_class_evaluates_the_same(name: str, tmp_path) -> None:
    model, dtype = MODELS[name]().double(), torch.float64
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    if name == "linear-Gaussian":
        path = model.save(tmp_path / "m", exclude=["w", "b"])
        again = LinearGaussian.load(path, w=torch.ones(6, 2), b=torch.zeros(6))
    else:
        again = there_and_back(model, tmp_path)
    x = (torch.rand(5, *model.event_shape or (6,), dtype=dtype) < 0.5).to(dtype)
    if isinstance(model, pv.LossModel):
        a, b = (m.eval().loss(x) for m in (model, again))
    else:
        rows = [torch.arange(5)] if name == "not amortised" else []
        a, b = (
            pv.log_marginal(m, x, *rows, num_samples=3, progress=False, seed=1).pointwise["log_px"]
            for m in (model, again)
        )
        a, b = (torch.tensor(v.to_numpy()) for v in (a, b))
    assert a.isfinite().all()
    assert torch.equal(a, b)


class Shapeless(pv.VAEModel):
    """``event_shape`` comes from the data."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.encoder = nn.Linear(2, 6), nn.Linear(6, 4)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        loc, raw = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


def test_the_shape_that_fit_found_is_kept(tmp_path) -> None:
    model = Shapeless()
    pv.fit(model, binary(20), epochs=1, progress=False, device="cpu")
    again = there_and_back(model, tmp_path)
    assert again.event_shape == (6,)
    assert torch.equal(again.sample(3, seed=0), model.sample(3, seed=0))


def test_a_prior_fitted_later_is_kept(tmp_path) -> None:
    model = MODELS["VQ-VAE"]()
    model.fit_prior(torch.rand(20, *IMAGE).round(), prior_options={"hidden": 6}, epochs=1, progress=False)
    again = there_and_back(model, tmp_path)
    assert isinstance(again.prior, zoo.PixelCNNPrior)
    x = torch.rand(4, *IMAGE).round()
    a, b = (pv.log_marginal(m, x, num_samples=1, progress=False).pointwise["log_px"] for m in (model, again))
    assert a.equals(b)


# -- weights -----------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class Buffers(nn.Module):
    """Buffers of many kinds, some of them not in ``state_dict``, one drawn by the constructor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6))
        for name, value in {
            "counts": torch.arange(3),
            "mask": torch.tensor([True, False]),
            "scalar": torch.tensor(2.5, dtype=torch.float64),
            "short": torch.randn(3).bfloat16(),
            "waves": torch.randn(3, dtype=torch.complex64),
            "empty": torch.zeros(0, 3),
            "projection": torch.randn(6),
        }.items():
            self.register_buffer(name, value, persistent=name != "projection")

    def forward(self, x: Tensor) -> Tensor:
        return (
            self.weight * self.projection * x * self.scalar.float() * self.short.float().sum() + self.waves.real.sum()
        )


def _expanded() -> nn.Module:
    layer = nn.Linear(6, 6)
    layer.weight = nn.Parameter(torch.randn(6, 1).expand(6, 6))
    return layer


def _transposed() -> nn.Module:
    layer = nn.Linear(6, 6)
    layer.weight = nn.Parameter(torch.randn(6, 6).T)
    return layer


PARTS: dict[str, Callable[[], nn.Module]] = {
    "tied": Tied,
    "buffers": Buffers,
    "expanded": _expanded,
    "transposed": _transposed,
    "mixed precision": lambda: nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)),
    "old spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(6, 6)),
    "Pyro's": lambda: _pyro_part(),
    "batch norm": lambda: nn.BatchNorm1d(6),
    "recurrent": lambda: nn.Sequential(nn.Unflatten(1, (6, 1)), nn.GRU(1, 2, batch_first=True), _First()),
    "compiled by the constructor": lambda: torch.compile(nn.Linear(6, 6), backend="eager"),
}


def _pyro_part() -> nn.Module:
    part = pyro.nn.PyroModule[nn.Linear](6, 6)
    part.bias = pyro.nn.PyroParam(torch.ones(6), dist.constraints.positive)
    return part


class _First(nn.Module):
    def forward(self, outputs: tuple[Tensor, Tensor]) -> Tensor:
        return outputs[0]


@pytest.mark.parametrize("name", PARTS)
def test_weights_of_every_kind(name: str, tmp_path) -> None:
    model, x = of_parts(PARTS[name]), torch.randn(4, 6)
    if name == "mixed precision":
        model.part[0].bfloat16(), model.part[2].double()
        there_and_back(model, tmp_path)
        return
    model.loss(x)  # statistics and singular vectors move
    again = there_and_back(model, tmp_path)
    for m in (model, again):
        m.eval()
    # What was expanded is dense, which a matrix product sums in another order.
    torch.testing.assert_close(
        model.loss(x), again.loss(x), rtol=1e-5 * (name == "expanded"), atol=1e-5 * (name == "expanded")
    )
    if name == "tied":
        assert again.part.a.weight is again.part.b.weight
    if name == "transposed":
        assert again.part.weight.stride() == (1, 6)


@pytest.mark.parametrize("compile", ["part", "whole", "in place"])
def test_compiled_models(compile: str, tmp_path) -> None:
    model, x = pv.VAE((6,), 2, hidden=(16,)), binary(4)
    codes = model.encode(x)
    if compile == "part":
        model.encoder = torch.compile(model.encoder, backend="eager")
        path = model.save(tmp_path / "m")
    elif compile == "whole":
        path = torch.compile(model, backend="eager").save(tmp_path / "m")
    else:
        model.compile(backend="eager")
        path = model.save(tmp_path / "m")
    again = pv.load(path)
    assert not any("_orig_mod" in name for name in again.state_dict())
    assert torch.equal(again.encode(x), codes)


def test_channels_last(tmp_path) -> None:
    for channels in (1, 3):
        shape = (channels, 16, 16)
        model = pv.VAE(shape, 2, network="strided_conv", hidden=(8,)).to(memory_format=torch.channels_last)
        again = there_and_back(model, tmp_path)
        strides = [{n: p.stride() for n, p in m.named_parameters()} for m in (model, again)]
        assert strides[0]["encoder.0.weight"][1] == 1
        assert strides[0] == strides[1]
        x = torch.rand(5, *shape).round()
        assert torch.equal(again.encode(x), model.encode(x))


def test_weights_that_the_constructor_ties_and_the_file_does_not(tmp_path) -> None:
    model = of_parts(Tied)
    model.part.b.weight = nn.Parameter(torch.randn(6, 6))
    with pytest.raises(ValueError, match=r"b.weight is tensor part.a.weight as built, and tensor part.b.weight"):
        model.save(tmp_path / "m")
    kind, kind.make = type(model), staticmethod(lambda: nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)}))
    path = kind().save(tmp_path / "m")
    kind.make = staticmethod(Tied)  # the class is another now
    with pytest.raises(ValueError, match="ties some that differ in the file"):
        kind.load(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.LazyLinear(3), r"part.weight of OfParts cannot be kept in a file, because it is lazy"),
        (lambda: _with(torch.zeros(2, dtype=torch.complex128)), "part.b is a tensor of a kind .*complex128"),
        (lambda: _with(torch.zeros(2, 2).to_sparse()), "part.b is a tensor of a kind .*sparse"),
        (lambda: _with(torch.zeros(2, device="meta")), "part.b is a tensor of a kind .*on meta"),
    ],
)
def test_what_a_file_does_not_hold(make, message: str, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        of_parts(make).save(tmp_path / "m")


def _with(buffer: Tensor) -> nn.Module:
    part = nn.Linear(6, 1)
    part.register_buffer("b", buffer)
    return part


def test_a_model_that_is_too_large_costs_no_memory_to_refuse(tmp_path) -> None:
    path = pv.VAE((6,), 2, hidden=(16,)).save(tmp_path / "m")
    with pytest.raises(ValueError, match=r"do not fit VAE: decoder.0.bias is \(10000000,\) as built"):
        pv.VAE.load(path, hidden=(10**7, 10**7))  # 400 TB


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("posterior iaf", {"posterior_options": {"hidden": [20000, 20000]}}),
        ("posterior iaf", {"latent_dim": 10**5}),
        ("posterior iaf", {"posterior_options": {"num_flows": 10**7}}),
        ("posterior neural_spline", {"hidden": [20000, 20000]}),
    ],
)
def test_a_constructor_that_the_meta_device_cannot_run_takes_no_memory(name: str, change: dict, tmp_path) -> None:
    """Of a small file that declares large layers, or many."""
    path = crafted(MODELS[name]().save(tmp_path / "m"), lambda h: h["arguments"].update(change))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="its constructor computes far more than weights of this size take"):
        pv.load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 2**10  # kB


class Costly(pv.VAE):
    """Which computes with values, and a lot, to no end that its weights would show."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        torch.eye(5000).sum().item()


def test_what_would_not_be_loaded_is_not_saved(tmp_path) -> None:
    with pytest.raises(
        ValueError, match=r"no Costly can be rebuilt .*: its constructor computes far more than weights"
    ):
        Costly((6,), 2, hidden=(3,)).save(tmp_path / "m")


@pytest.mark.parametrize("shape", [[7], [6, 1], [10**9]])
def test_data_of_another_shape_than_the_constructors(shape: list[int], tmp_path) -> None:
    path = crafted(pv.VAE((6,), 2, hidden=(3,)).save(tmp_path / "m"), lambda h: h.update(event_shape=shape))
    with pytest.raises(ValueError, match=r"it is of data of shape \(.*\), and its constructor of \(6,\)"):
        pv.load(path)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_weights_of_another_kind(dtype: torch.dtype, tmp_path) -> None:
    from pyrovae._model_files import digest

    path = pv.VAE((6,), 2, hidden=(3,)).save(tmp_path / "m")
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["pyrovae"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights["decoder.0.bias"] = weights["decoder.0.bias"].to(dtype)
    header["digest"] = digest(header, weights)
    save_file(weights, path, {"pyrovae": json.dumps(header)})
    with pytest.raises(ValueError, match=f"do not fit VAE: decoder.0.bias is of {dtype} in the file"):
        pv.load(path)


# -- files -------------------------------------------------------------------------------------------------------


def test_any_flipped_bit_is_noticed(tmp_path) -> None:
    path = pv.VAE((6,), 2, hidden=(3,)).save(tmp_path / "m")
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    silent = []
    for place in [*range(0, header, 7), *range(header, len(content), 11), len(content) - 1]:
        bad = bytearray(content)
        bad[place] ^= 1
        path.write_bytes(bad)
        try:
            pv.load(path)
        except ValueError as error:
            assert "is not a model saved by pyrovae, or is damaged" in str(error), place  # noqa: PT017
        else:
            silent.append(place)
    assert all(content[place : place + 1].isspace() for place in silent)  # padding of the format


def crafted(path: Path, change: Callable[[dict], None]) -> Path:
    """A file whose header was changed by hand, digest and all."""
    from pyrovae._model_files import digest

    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["pyrovae"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(header)
    header["digest"] = digest(header, weights) if "digest" in header else ""
    save_file(weights, path, {"pyrovae": json.dumps(header)})
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(format=1), "format is 1, where 3 is needed. Save the model anew"),
        (lambda h: h.pop("format"), "format is 1, where 3 is needed"),
        (lambda h: h.update(format="3"), "format is 3"),
        (lambda h: h.pop("arguments"), "missing, unknown or malformed fields: arguments"),
        (lambda h: h.update(arguments=[1]), "malformed fields: arguments"),
        (lambda h: h.update(module=3, more=1), "malformed fields: module, more"),
        (lambda h: h.update(event_shape="six"), "malformed fields: event_shape"),
        (lambda h: h.update(event_shape=["a"]), r"data of shape \['a'\]"),
        (lambda h: h.update(columns=[1, 2]), "its header has 1 where a list of names is needed"),
        (lambda h: h.update(columns=["abcdef"]), "its header has abcdef where a list of names"),
        (lambda h: h.update(columns=[None, ["a", 1]]), r"its header has \['a', 1\] where a list of names"),
        (lambda h: h.update(validated_on=[1, {}]), r"its header has \[1, \{\}\] where a list of names"),
        (lambda h: h.update(excluded=[[]]), r"its header has \[\[\]\] where a list of names"),
        (lambda h: h.update(state={"nothing.p": 1}), r"cannot be rebuilt: the file sets nothing.p, which there is not"),
        (lambda h: h.update(state={"_parameters": {}}), r"cannot be rebuilt: the file sets _parameters, which"),
        *(
            (lambda h, name=name: h.update(state={name: 1}), f"cannot be rebuilt: the file sets {name}, which")
            for name in ("model", "load_state_dict", "event_shape", "training", "placement", "decoder.training")
        ),
        (lambda h: h.update(state={"strength": {"$call": "x"}}), r"cannot be rebuilt: a value of unknown kind"),
        (
            lambda h: h.update(state={"likelihood": {"$not_kept": "Other"}}),
            "likelihood is Bernoulli as built, and Other in",
        ),
        (lambda h: h.update(layouts={"none": [0]}), "damaged: 'none'"),
        (lambda h: h.update(layouts={"decoder.0.weight": [0, 0]}), "damaged"),
        (lambda h: h.update(layouts={"decoder.0.weight": [10**15, 1]}), "over more memory than it needs"),
        (lambda h: h.update(layouts={"decoder.0.weight": [1, 2, 3]}), "damaged"),
        (lambda h: h.update(layouts={"decoder.0.weight": 5}), "damaged"),
        (lambda h: h.update({"class": "Elsewhere"}), "holds a Elsewhere, which is not defined here"),
        (lambda h: h["arguments"].update(latent_dim="two"), "cannot be rebuilt: latent_dim must be an integer"),
        (lambda h: h["arguments"].update(other=2), "cannot be rebuilt: .*unexpected keyword argument 'other'"),
        (lambda h: h["arguments"].pop("latent_dim"), r"pass latent_dim to load\(\)"),
        (lambda h: h["arguments"].update(latent_dim={"$call": "os.system"}), "a value of unknown kind, \\$call"),
        (lambda h: h["arguments"].update(latent_dim={"$dtype": "load"}), "a value of unknown kind, \\$dtype"),
        (lambda h: h["arguments"].update(latent_dim={"$device": "moon"}), "cannot be rebuilt"),
        (lambda h: h["arguments"].update(latent_dim={"$enum": ["os", "PathLike", "x"]}), "cannot be rebuilt: holds a"),
        (lambda h: h["arguments"].update(latent_dim={"$model": {"class": "VAE"}}), "cannot be rebuilt"),
        (lambda h: h["arguments"].update(latent_dim={"$not_kept": "Linear"}), "unknown kind"),
    ],
)
def test_headers_by_another_hand(change, message: str, tmp_path) -> None:
    path = crafted(pv.VAE((6,), 2, hidden=(3,)).save(tmp_path / "m"), change)
    with pytest.raises(ValueError, match=message):
        pv.load(path)


def test_a_file_of_the_older_format(tmp_path) -> None:
    header = {"class": "VAE", "module": "pyrovae.model.vae", "config": {}, "event_shape": [6], "dtype": "float32"}
    save_file({"a": torch.zeros(2)}, tmp_path / "m", {"pyrovae": json.dumps(header)})
    with pytest.raises(ValueError, match="its format is 1, where 3 is needed"):
        pv.load(tmp_path / "m")


class Drawing(pv.VAE):
    """Its constructor draws from everything that there is to draw from, and registers itself with Pyro."""

    def __init__(self) -> None:
        super().__init__((6,), 2, hidden=(8,))
        numbers = [random.random(), np.random.rand(), torch.rand(()).item()]  # noqa: NPY002
        self.register_buffer("drawn", torch.tensor(numbers))
        pyro.param("stray", torch.zeros(2))
        pyro.module("drawing", self.decoder)


def test_saving_and_loading_leave_every_random_state_and_the_store_alone(tmp_path) -> None:
    def states() -> list[Any]:
        cuda = [s.tolist() for s in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else []
        return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate(), cuda]  # noqa: NPY002

    model = Drawing()
    pyro.clear_param_store()
    kept = pyro.param("kept", torch.ones(2))
    before = states()
    model.save(tmp_path / "m")
    for loaded in (Drawing.load(tmp_path / "m"), pv.load(tmp_path / "m")):
        assert torch.equal(loaded.drawn, model.drawn)
    assert states() == before
    assert list(pyro.get_param_store().keys()) == ["kept"]
    assert pyro.param("kept") is kept


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_a_precision_is_refused_wherever_it_comes_from(dtype: torch.dtype, tmp_path) -> None:
    x = (torch.rand(20, 6) < 0.5).float()
    model = pv.VAE((6,), 2, hidden=(8,))
    model.save(tmp_path / "m")
    runs = {
        "fit": lambda m: pv.fit(m, x, epochs=1, progress=False, device="cpu"),
        "log_marginal": lambda m: pv.log_marginal(m, x, num_samples=2, progress=False),
        "bdmc": lambda m: pv.bdmc(m, 2, num_temperatures=2, progress=False),
        "encode": lambda m: m.encode(x),
        "decode": lambda m: m.decode(torch.zeros(2, 2)),
        "sample": lambda m: m.sample(2),
    }
    half = copy.deepcopy(model).to(dtype)
    for run in runs.values():
        with pytest.raises(ValueError, match=rf"VAE has {dtype} parameters.*call model\.float\(\)"):
            run(half)
    torch.set_default_dtype(dtype)
    try:
        runs |= {
            "VAE": lambda m: pv.VAE((6,), 2),
            "Autoencoder": lambda m: pv.zoo.Autoencoder((6,), 2),
            "load": lambda m: pv.load(tmp_path / "m"),
        }
        for run in runs.values():
            with pytest.raises(ValueError, match=rf"default dtype is {dtype}.*set_default_dtype\(torch\.float32\)"):
                run(model)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_model_without_values_says_so_and_others_do_not_mind_the_default_device(tmp_path) -> None:
    x = (torch.rand(20, 6) < 0.5).float()
    model = pv.VAE((6,), 2, hidden=(8,))
    twin = copy.deepcopy(model)
    model.save(tmp_path / "m")

    def results(model: pv.VAE) -> list[Any]:
        run = pv.fit(model, x.numpy(), epochs=2, batch_size=8, validation=0.2, seed=0, progress=False, device="cpu")
        px = pv.log_marginal(model, x.numpy(), num_samples=3, progress=False).pointwise["log_px"].tolist()
        return [run.history["loss"].tolist(), px, model.sample(3, seed=0).tolist(), model.encode(x.numpy()).tolist()]

    expected = results(model)
    torch.set_default_device("meta")
    try:
        empty = pv.VAE((6,), 2, hidden=(8,))
        found = results(twin)
        with pytest.raises(ValueError, match="VAE was built on the meta device, which holds no values"):
            pv.load(tmp_path / "m")
    finally:
        torch.set_default_device(None)
    assert found == expected
    for run in (lambda: pv.fit(empty, x), lambda: pv.log_marginal(empty, x), lambda: empty.encode(x)):
        with pytest.raises(ValueError, match="VAE is on the meta device, which holds no values: move it"):
            run()
