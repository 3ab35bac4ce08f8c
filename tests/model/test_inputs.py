"""Whatever data come in: what a mask, a list, a name or an index of rows means is kept, or refused with the fix."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import pyrovae as pv
from tests.models import Conditional, binary

QUIET = {"device": "cpu", "progress": False}
NAMES = list("abcdef")


def gaussian() -> pv.VAE:
    torch.manual_seed(0)
    return pv.VAE((6,), 2, likelihood="gaussian", hidden=(16,))


def rows(n: int = 40) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 7)


def frame(n: int = 40) -> pd.DataFrame:
    return pd.DataFrame(rows(n).numpy(), columns=NAMES, index=[f"row {i}" for i in range(n)])


def fit(model: pv.VAEModel, data, **kwargs) -> pv.FitResult:
    return pv.fit(model, data, **{"epochs": 1, "seed": 0, "compile": "off", **QUIET, **kwargs})


def evaluate(model: pv.VAEModel, *data) -> pv.MarginalResult:
    return pv.log_marginal(model, *data, num_samples=5, **QUIET)


ENTRANCES = {
    "fit": lambda x: fit(gaussian(), x),
    "validation": lambda x: fit(gaussian(), rows(), validation=x),
    "held out": lambda x: fit(gaussian(), x, validation=0.1),
    "log_marginal": lambda x: evaluate(gaussian(), x),
    "elbo_terms": lambda x: pv.elbo_terms(gaussian(), x, num_samples=2, **QUIET),
    "collapse": lambda x: pv.collapse(gaussian(), x, num_samples=2, **QUIET),
    "ais": lambda x: pv.ais(gaussian(), x, **QUIET),
    "encode": lambda x: gaussian().encode(x),
    "reconstruct": lambda x: gaussian().reconstruct(x),
    "autoencoder": lambda x: pv.zoo.Autoencoder((6,), 2).transform(x),
    "covariate": lambda y: evaluate(Conditional(), binary(40), y),
    "covariate of fit": lambda y: fit(Conditional(), (binary(40), y)),
    "covariate of sample": lambda y: Conditional().sample(40, y),
    "covariate of decode": lambda y: Conditional().decode(torch.zeros(40, 2), y),
}


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_what_is_missing_is_refused_wherever_it_enters(entrance: str) -> None:
    enter, x = ENTRANCES[entrance], rows().numpy()
    with pytest.raises(ValueError, match=r"2 masked value\(s\), which are missing: .*filled"):
        enter(np.ma.masked_greater(x, np.sort(x.ravel())[-3]))
    with pytest.raises(ValueError, match=r"column 'b' of .* holds 1 missing value\(s\), the first in row 3"):
        enter(frame().astype("Float64").mask(lambda f: f == f.iloc[3, 1]))


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_a_list_is_no_data(entrance: str) -> None:
    batches = list(rows().split(10))
    for data in (batches, [batches[0].numpy()], rows().tolist(), [frame(), frame()], []):
        with pytest.raises(TypeError, match=rf"is a list of {len(data)} .*torch.cat"):
            ENTRANCES[entrance](data)


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_kinds_that_hold_no_plain_numbers_are_named(entrance: str) -> None:
    x, f = rows(), frame()
    kinds = {
        "is a sparse tensor: pass .*to_dense": x.to_sparse(),
        "is a nested tensor: pad": torch.nested.nested_tensor([x[0], x[1, :2]], layout=torch.jagged),
        "is a meta tensor": x.to("meta"),
        "is a structured array with the fields u, v": np.zeros(40, dtype=[("u", "f4"), ("v", "f4")]),
        "column 'c' of .* has dtype category": f.assign(c=pd.Categorical(["u", "v"] * 20)),
        "column 'a' of .* has dtype bool": f.assign(a=f["a"] > 0),
        "column 'a' of .* has dtype object": f.astype(object),
        "column 'f' of .* has dtype datetime64": f.assign(f=pd.Timestamp("2020-01-01")),
    }
    for message, data in kinds.items():
        with pytest.raises(ValueError, match=message):
            ENTRANCES[entrance](data)
    with pytest.raises(TypeError, match="Categorical"):
        ENTRANCES[entrance](pd.Categorical(["u", "v"] * 20))


def test_containers_without_anything_missing_are_their_numbers() -> None:
    expected = evaluate(gaussian(), rows())
    for same in (
        np.ma.masked_array(rows().numpy()),
        np.ma.masked_array(rows().numpy(), mask=np.zeros((40, 6), bool)),
        frame().astype("Float64"),
        frame().astype(pd.SparseDtype("float64", 0.0)),
        rows().requires_grad_() * 1,
    ):
        result = evaluate(gaussian(), same)
        assert result.provenance.data_hash == expected.provenance.data_hash
        np.testing.assert_array_equal(result.pointwise["log_px"], expected.pointwise["log_px"])
    a, b = (gaussian() for _ in range(2))
    for model, data in ((a, rows()), (b, rows().requires_grad_() * 1)):  # nothing is passed back into the data
        fit(model, data, epochs=2)
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_surplus_fields_of_a_tuple_are_refused_and_labels_of_a_dataset_dropped() -> None:
    x, y = rows(), torch.arange(40)
    for bad in (
        lambda: fit(gaussian(), (x, y)),
        lambda: fit(gaussian(), (x, y), validation=0.1),
        lambda: fit(gaussian(), x, validation=(x, y)),
    ):
        with pytest.raises(ValueError, match=r"a tuple of 2 fields, and VAE.model takes x and 0 covariate.*\[0\]"):
            bad()
    with pytest.raises(ValueError, match=r"a tuple of 4 fields.*torch.cat\(data\)"):
        fit(gaussian(), x.split(10))  # torch splits into tuples
    with pytest.raises(ValueError, match=r"a tuple of 3 fields.* takes x and 1 covariate.*pass data\[:2\]"):
        fit(Conditional(), (binary(9), torch.randn(9, 2), torch.arange(9)))
    trained = [gaussian() for _ in range(3)]
    dataset = TensorDataset(x, y)
    for model, data in zip(trained, (TensorDataset(x), dataset, DataLoader(dataset, 100, shuffle=True)), strict=True):
        fit(model, data)
    for model in trained[1:]:
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in trained[0].state_dict().items())


def test_estimators_take_as_many_covariates_as_the_model() -> None:
    x, y = binary(5), torch.randn(5, 2)
    for estimator in (pv.log_marginal, pv.elbo_terms, pv.ais, pv.collapse, pv.inference_gaps):
        with pytest.raises(ValueError, match=r"VAE.model takes 0 covariate\(s\); got 1"):
            estimator(gaussian(), rows(), y, **QUIET)
        with pytest.raises(ValueError, match=r"Conditional.model takes 1 covariate\(s\); got 0"):
            estimator(Conditional(), x, **QUIET)
    with pytest.raises(TypeError, match=r"x is a tuple of 2: .*\*x"):
        evaluate(Conditional(), (x, y), y)


# -- columns ---------------------------------------------------------------------------------------------


def test_columns_go_by_name() -> None:
    f, model, twin = frame(), gaussian(), gaussian()
    fit(model, f, validation=f[NAMES[::-1]], epochs=2)
    fit(twin, f.to_numpy(), validation=f.to_numpy(), epochs=2)  # an array of the same numbers, in the same order
    assert all(torch.equal(v, twin.state_dict()[k]) for k, v in model.state_dict().items())
    assert model.columns == [NAMES]
    assert twin.columns is None

    shuffled = f[list("dbface")]
    expected = evaluate(twin, f.to_numpy())
    for same in (f, shuffled, shuffled.astype("Float64"), f.to_numpy(), torch.tensor(f.to_numpy())):
        result = evaluate(model, same)
        assert result.provenance.data_hash == expected.provenance.data_hash
        np.testing.assert_array_equal(result.pointwise["log_px"], expected.pointwise["log_px"])
    assert torch.equal(model.encode(shuffled), model.encode(f.to_numpy()))
    assert torch.equal(model.reconstruct(shuffled), model.reconstruct(f.to_numpy()))
    one, other = (pv.collapse(model, data, num_samples=4, **QUIET) for data in (f, shuffled))
    assert one.rate == other.rate
    before = copy.deepcopy(model.state_dict())
    fit(model, shuffled, optimizer=lambda p: torch.optim.SGD(p, lr=1e-3))
    fit(twin, f.to_numpy(), optimizer=lambda p: torch.optim.SGD(p, lr=1e-3))
    assert model.columns == [NAMES]
    assert all(torch.equal(v, twin.state_dict()[k]) for k, v in model.state_dict().items())
    assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_other_columns_are_named() -> None:
    f, model = frame(), gaussian()
    fit(model, f)
    for bad, message in {
        "missing": (
            f.rename(columns={"b": "z"}),
            "x lacks 'b' and has 'z' besides: the model was trained on columns 'a'",
        ),
        "surplus": (f.assign(label=1.0), "x has 'label' besides"),
        "fewer": (f.drop(columns=["a", "f"]), "x lacks 'a', 'f'"),
        "twice": (f[list("abcdefa")], "x has several columns named 'a'"),
        "without names": (pd.DataFrame(f.to_numpy()), r"x lacks 'a'.*has '0'.*x.to_numpy\(\)"),
    }.values():
        for enter in (lambda x: evaluate(model, x), model.encode, lambda x: pv.elbo_terms(model, x, **QUIET)):
            with pytest.raises(ValueError, match=message):
                enter(bad)
    with pytest.raises(ValueError, match="validation lacks 'b'"):
        fit(gaussian(), f, validation=f.rename(columns={"b": "z"}))
    with pytest.raises(ValueError, match="data has several columns named 'a'"):
        fit(gaussian(), f[list("abcdea")])
    assert evaluate(gaussian(), f[list("abcdea")]).pointwise.shape[0] == 40  # trained on no frame: any of that width


def test_a_failed_fit_leaves_no_names() -> None:
    model = gaussian()
    with pytest.raises(ValueError, match="the model needs"):
        fit(model, frame().assign(label=1.0))
    assert model.columns is None
    fit(model, frame())
    assert model.columns == [NAMES]


@pytest.mark.parametrize(
    "columns",
    [range(6), [5, 4, 3, 2, 1, 0], pd.MultiIndex.from_product([["u", "v"], [1, 2, 3]]), [1.5, "a", 2, "b", 3, 4]],
)
def test_names_survive_a_file(columns, tmp_path) -> None:
    f = frame().set_axis(columns, axis=1)
    model = gaussian()
    fit(model, f)
    model.save(tmp_path / "model.safetensors")
    back = pv.load(tmp_path / "model.safetensors")
    assert back.columns == model.columns == [[str(c) for c in columns]]
    expected = evaluate(model, f.to_numpy()).pointwise["log_px"]
    np.testing.assert_array_equal(evaluate(back, f.iloc[:, [3, 1, 0, 5, 4, 2]]).pointwise["log_px"], expected)


def test_autoencoders_keep_the_names_too(tmp_path) -> None:
    model, f = pv.zoo.Autoencoder((6,), 2, hidden=(4,)), frame()
    pv.zoo.pretrain(model, f, epochs=1, **QUIET)
    assert torch.equal(model.transform(f[NAMES[::-1]]), model.transform(f.to_numpy()))
    model.save(tmp_path / "model.safetensors")
    back = pv.load(tmp_path / "model.safetensors")
    assert torch.equal(back.reconstruct(f[NAMES[::-1]]), model.reconstruct(f.to_numpy()))
    with pytest.raises(ValueError, match="x lacks 'a'"):
        back.transform(f.rename(columns={"a": "A"}))


def test_columns_of_covariates_go_by_name(tmp_path) -> None:
    x, y = binary(30), pd.DataFrame(np.random.default_rng(0).normal(size=(30, 2)), columns=["age", "dose"])
    model = Conditional()
    fit(model, (x, y), validation=(x, y[["dose", "age"]]))
    assert model.columns == [None, ["age", "dose"]]
    expected = evaluate(model, x, y.to_numpy()).pointwise["log_px"]
    swapped = y[["dose", "age"]]
    np.testing.assert_array_equal(evaluate(model, x, swapped).pointwise["log_px"], expected)
    for method in (
        lambda c: model.encode(x, c),
        lambda c: model.reconstruct(x, c),
        lambda c: model.sample(30, c, seed=0),
        lambda c: model.decode(torch.ones(30, 2), c),
    ):
        assert torch.equal(method(swapped), method(y.to_numpy()))
        with pytest.raises(ValueError, match="covariate 0 lacks 'age'"):
            method(y.rename(columns={"age": "Age"}))
    fit(model, (pd.DataFrame(x.numpy(), columns=NAMES), swapped))  # what was an array so far gets its names
    assert model.columns == [NAMES, ["age", "dose"]]


# -- rows ------------------------------------------------------------------------------------------------


def test_rows_of_x_and_covariates_must_go_together() -> None:
    x = pd.DataFrame(binary(30).numpy(), columns=NAMES, index=np.arange(30) + 100)
    y = pd.DataFrame(np.random.default_rng(0).normal(size=(30, 2)), index=x.index)
    model = Conditional()
    expected = evaluate(model, x.to_numpy(), y.to_numpy()).pointwise["log_px"]
    for same in (y, y.to_numpy(), torch.tensor(y.to_numpy())):
        np.testing.assert_array_equal(evaluate(model, x, same).pointwise["log_px"], expected)
    for other in (y.iloc[::-1], y.reset_index(drop=True), y.set_axis([*x.index[:-1], 0])):
        for enter in (
            lambda c: evaluate(model, x, c),
            lambda c: model.encode(x, c),
            lambda c: fit(Conditional(), (x, c)),
            lambda c: fit(Conditional(), (x, c), validation=0.1),
            lambda c: fit(Conditional(), (x, y), validation=(x, c)),
        ):
            with pytest.raises(ValueError, match=r"the index of covariate 0 is not that of .*\.loc\[.*reset_index"):
                enter(other)
    with pytest.raises(ValueError, match="covariate 0 has 29 rows and x has 30"):
        evaluate(model, x, y.iloc[:29])
    with pytest.raises(ValueError, match="index of factors is not that of x"):
        pv.disentanglement(gaussian(), frame(), pd.DataFrame({"k": np.arange(40) % 4}))


def test_interpolation_is_between_ends_under_the_covariates_of_the_start() -> None:
    x, y = binary(8), torch.randn(4, 2)
    start, end = (pd.DataFrame(part.numpy(), columns=NAMES) for part in x.split(4))
    start.index, end.index = list("abcd"), list("efgh")
    model, covariate = Conditional(), pd.DataFrame(y.numpy(), index=list("abcd"))
    expected = model.interpolate(x[:4], x[4:], y, steps=3)
    assert torch.equal(model.interpolate(start, end, covariate, steps=3), expected)
    mean = model.encode(x[:4], y)
    torch.testing.assert_close(expected[0], model.decode(mean, y))
    with pytest.raises(ValueError, match="the index of covariate 0 is not that of start"):
        model.interpolate(end, start, covariate)
    for short, other in ((x[:3], x[4:]), (x[:1], x[4:])):
        with pytest.raises(ValueError, match=rf"^start has {len(short)} data and end has 4: each line"):
            gaussian().interpolate(short, other)
    with pytest.raises(ValueError, match="end has shape"):
        gaussian().interpolate(x, x[:, :5])


INDICES = {
    "text": [f"patient {i}" for i in range(12)],
    "numbers": np.arange(12)[::-1] * 3,
    "duplicates": [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3],
    "dates": pd.date_range("2020-01-01", periods=12, name="day"),
    "levels": pd.MultiIndex.from_product([["u", "v", "w"], range(4)], names=["site", "visit"]),
}


@pytest.mark.parametrize("kind", INDICES)
def test_results_keep_the_index(kind: str, tmp_path) -> None:
    index = pd.Index(INDICES[kind]) if not isinstance(INDICES[kind], pd.Index) else INDICES[kind]
    x = rows(12)
    result, plain = evaluate(gaussian(), pd.DataFrame(x.numpy(), index=index)), evaluate(gaussian(), x)
    pd.testing.assert_index_equal(result.pointwise.index, index)
    pd.testing.assert_frame_equal(result.pointwise.reset_index(drop=True), plain.pointwise)
    pd.testing.assert_series_equal(result.summary(), plain.summary())
    assert pv.compare({"a": result, "b": plain})["diff"].abs().max() == 0
    for by in ("khat", "mc_se", "halves", "log_px"):
        worst, expected = result.worst(3, by=by), plain.worst(3, by=by)
        assert len(worst) == 3
        pd.testing.assert_frame_equal(worst.reset_index(drop=True), expected.reset_index(drop=True))
        assert list(worst.index) == list(index[expected.index])

    arviz = pytest.importorskip("arviz")
    result.to_arviz().to_netcdf(str(tmp_path / "result.nc"))
    for back in (
        pv.MarginalResult.from_arviz(result.to_arviz()),
        pv.MarginalResult.from_arviz(arviz.from_netcdf(str(tmp_path / "result.nc"))),
    ):
        assert list(back.pointwise.index) == list(index)
        assert back.pointwise.index.names == index.names
        pd.testing.assert_frame_equal(back.pointwise.reset_index(drop=True), plain.pointwise)


def test_every_estimator_keeps_the_index() -> None:
    model, x = gaussian(), rows(12)
    f = pd.DataFrame(x.numpy(), index=INDICES["duplicates"])
    given = {id(d): evaluate(model, d) for d in (f, x)}
    gaps = {"families": ["mean_field"], "steps": 2, "num_samples": 10}
    for run in (
        lambda d: pv.ais(model, d, num_temperatures=3, num_chains=2, **QUIET),
        lambda d: pv.elbo_terms(model, d, num_samples=3, log_px=given[id(d)], **QUIET),
        lambda d: pv.inference_gaps(model, d, log_px=given[id(d)], **gaps, **QUIET),
    ):
        ours, expected = run(f).pointwise, run(x).pointwise
        pd.testing.assert_index_equal(ours.index, f.index)
        pd.testing.assert_frame_equal(ours.reset_index(drop=True), expected)


def test_log_px_of_other_rows_is_refused() -> None:
    model, f = gaussian(), frame(12)
    result = evaluate(model, f)
    pv.elbo_terms(model, f, num_samples=2, log_px=result.pointwise["log_px"], **QUIET)
    shuffled = result.pointwise["log_px"].sort_values()
    for estimator in (pv.elbo_terms, pv.inference_gaps):
        with pytest.raises(ValueError, match="the index of log_px is not that of x"):
            estimator(model, f, num_samples=2, log_px=shuffled, **QUIET)
