"""What holds for every input, where inputs are free: checks, chunks, streams, plates, schedules."""

import math
import pickle
import sys
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import pyrovae as pv
from pyrovae import _checks as checks
from pyrovae._memory import Cost, plan, within_memory
from pyrovae.evaluation.marginal._stream import WeightStream
from pyrovae.model._log_terms import log_terms
from pyrovae.objectives._schedules import Schedule, has_ended, value_at

# The same examples in every run, however long one takes.
settings.register_profile("pyrovae", derandomize=True, deadline=None, max_examples=60, database=None)
settings.load_profile("pyrovae")

ANYTHING = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers()))


def refused(check: Callable[..., None], *args: Any, **arguments: Any) -> bool:
    """Whether a check refuses, which it must do by an error that names the argument and says what came."""
    try:
        check(*args, **arguments)
    except ValueError as error:
        said = str(error)
    else:
        return False
    ((name, value),) = arguments.items()
    assert said.startswith(f"{name} must ")
    assert str(value) in said or repr(value) in said
    return True


# -- checks ------------------------------------------------------------------------------------------------------


@given(value=ANYTHING, minimum=st.integers(-3, 10))
def test_at_least_takes_the_integers_from_the_minimum_on(value: Any, minimum: int) -> None:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    assert refused(checks.require_at_least, minimum, size=value) == (not is_integer or not minimum <= value < 2**63)
    if is_integer and abs(value) < 2**62:
        assert refused(checks.require_at_least, minimum, size=np.int64(value)) == (value < minimum)


@given(value=ANYTHING | st.just(10**400))
def test_positive_and_not_negative_take_finite_numbers(value: Any) -> None:
    fine = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    assert refused(checks.require_positive, rate=value) == (not (fine and value > 0))
    assert refused(checks.require_not_negative, rate=value) == (not (fine and value >= 0))


@given(value=st.text(), allowed=st.lists(st.text(), min_size=1))
def test_one_of_takes_what_is_allowed(value: str, allowed: list[str]) -> None:
    assert refused(checks.require_one_of, allowed, kind=value) == (value not in allowed)


@given(name=st.text(), data=st.data())
def test_a_name_is_found_however_it_is_spelt(name: str, data: st.DataObject) -> None:
    registry = {"mean_field": 1, "iaf": 2, "neural_spline": 3}
    known = data.draw(st.sampled_from(list(registry)))
    spelt = "".join(data.draw(st.sampled_from([c.lower(), c.upper()])) for c in known)
    spelt = "".join(data.draw(st.sampled_from("-_ ")) if c == "_" else c for c in spelt)
    assert checks.lookup(registry, spelt, "posterior") == registry[known]
    assume(name.lower().replace("-", "_").replace(" ", "_") not in registry)
    with pytest.raises(ValueError, match="Registered: mean_field, iaf, neural_spline"):
        checks.lookup(registry, name, "posterior")


SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@given(shape=SHAPES, double=st.booleans(), data=st.data())
def test_data_come_back_as_they_are_or_the_first_bad_row_is_named(
    shape: list[int], double: bool, data: st.DataObject
) -> None:
    x = torch.arange(math.prod(shape)).reshape(shape).to(torch.float64 if double else torch.float32)
    assert checks.as_data(x, "x", shape[1:]) is x
    assert torch.equal(checks.as_data(x.numpy(), "x", shape[1:]), x.float())
    with pytest.raises(ValueError, match=r"x has shape \(.*\); the model needs \(N, "):
        checks.as_data(x, "x", (*shape[1:], 5))
    where = data.draw(st.sets(st.integers(0, x.numel() - 1), min_size=1))
    bad = x.flatten()
    bad[list(where)] = data.draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    first = min(where) // math.prod(shape[1:])
    with pytest.raises(
        ValueError, match=rf"x holds {len(where)} NaN or infinite value\(s\), the first in row {first}\."
    ):
        checks.as_data(bad.reshape(shape), "x")


@given(shape=SHAPES, data=st.data())
def test_covariates_have_a_row_for_each_datum(shape: list[int], data: st.DataObject) -> None:
    c, n = torch.zeros(shape), data.draw(st.integers(1, 4))
    if n == shape[0]:
        assert checks.as_covariates((c, 3, "word"), n) == (c, 3, "word")
        rows = data.draw(st.lists(st.integers(0, n - 1), min_size=1))
        some, *rest = checks.rows_of((c, 3, "word"), torch.tensor(rows))
        assert some.shape == (len(rows), *shape[1:])
        assert rest == [3, "word"]
    else:
        with pytest.raises(ValueError, match=f"covariate 0 has {shape[0]} rows and x has {n}"):
            checks.as_covariates((c, 3, "word"), n)


# -- chunks ------------------------------------------------------------------------------------------------------

COUNTS = st.integers(1, 10**5)


@given(
    COUNTS, COUNTS, st.integers(1, 10**9), st.builds(Cost, st.integers(0, 10**7), st.integers(1, 10**7)), st.booleans()
)
def test_what_is_computed_at_once_fits(n: int, k: int, budget: int, cost: Cost, whole: bool) -> None:
    data, draws = plan(n, k, budget, cost, whole=whole)
    assert 1 <= data <= n
    assert 1 <= draws <= k
    if whole:
        assert draws == k
        assert data == 1 or data * cost.of(draws) <= budget
    else:
        assert (data, draws) == (1, 1) or data * cost.of(draws) <= budget
        assert draws == k or data == 1 or cost.of(k) > budget
    # In equal parts: the last one is as large as the others, but for less than one draw in each.
    parts = -(-k // draws)
    assert 0 <= parts * draws - k < parts


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(1, 10**6))
def test_sizes_are_halved_until_they_fit(n: int, k: int, capacity: int) -> None:
    tried: list[tuple[int, int]] = []

    def attempt(sizes: tuple[int, int]) -> str:
        tried.append(sizes)
        if sizes[0] * sizes[1] > capacity:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return "done"

    found, sizes = within_memory(attempt, (n, k), torch.device("cpu"))
    assert (found, sizes) == ("done", tried[-1])
    assert tried[0] == (n, k)
    for before, after in pairwise(tried):
        assert after == ((math.ceil(before[0] / 2), k) if before[0] > 1 else (1, math.ceil(before[1] / 2)))
    assert len(tried) <= 1 + math.ceil(math.log2(n)) + math.ceil(math.log2(k))


# -- streams -----------------------------------------------------------------------------------------------------


@st.composite
def weights(draw: st.DrawFn) -> tuple[Tensor, list[int]]:
    """Log-weights of K draws of some data, a few of them -inf, and where to cut them into blocks."""
    k, batch = draw(st.integers(2, 100)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    spread, level = draw(st.floats(0.0, 5.0)), draw(st.floats(-500.0, 500.0))
    w = level + spread * torch.randn(k, batch, generator=generator, dtype=torch.float64)
    nothing = draw(st.sets(st.integers(1, k - 1), max_size=k // 2)) if k > 3 else set()
    w[list(nothing)] = -math.inf
    return w, sorted(draw(st.sets(st.integers(1, k - 1), max_size=8)))


def mean(w: Tensor) -> Tensor:
    return w.logsumexp(0) - math.log(len(w))


@given(weights(), st.data())
def test_blocks_of_draws_give_what_all_of_them_give(drawn: tuple[Tensor, list[int]], data: st.DataObject) -> None:
    w, cuts = drawn
    k, batch = w.shape
    size = data.draw(st.integers(1, k))
    stream = WeightStream(batch, k, (1, size, k), torch.device("cpu"))
    for start, stop in pairwise((0, *cuts, k)):
        stream.update(w[start:stop])
    close(stream.log_mean, mean(w))
    p = (w - w.logsumexp(0)).exp()
    close(stream.ess, 1 / p.square().sum(0))
    close(stream.se(size), (w - mean(w)).exp().std(0) / math.sqrt(size))
    without = torch.stack([mean(torch.cat([w[:i], w[i + 1 :]])) for i in range(k)])
    finite = without.isfinite().all(0)  # where a single draw has all the weight there is no jackknife
    close(stream.jackknife[finite], (k * mean(w) - (k - 1) * without.mean(0))[finite], atol=1e-6)
    blocks = torch.stack([mean(w[i * size : (i + 1) * size]) for i in range(k // size)])
    bound, se = stream.bound(size)
    close(bound, blocks.mean(0))
    if len(blocks) > 1 and blocks.isfinite().all():
        close(se, blocks.std(0) / math.sqrt(len(blocks)), atol=1e-6)
        close(stream.difference(size), blocks[0] - blocks[-1])
    assert (stream.non_finite == 0).all()


def close(a: Tensor, b: Tensor, *, atol: float = 1e-8) -> None:
    torch.testing.assert_close(a, b, rtol=1e-8, atol=atol)


# -- plates ------------------------------------------------------------------------------------------------------


@given(
    plates=st.lists(st.integers(1, 3), max_size=2),
    event=st.lists(st.integers(1, 3), max_size=2),
    b=st.integers(1, 4),
    k=st.integers(1, 3),
    inside=st.booleans(),
)
def test_terms_are_sums_over_all_but_particles_and_data(
    plates: list[int], event: list[int], b: int, k: int, inside: bool
) -> None:
    """Of a latent with any plates and event, and of an x that is inside the plates or in that of the data alone."""
    torch.manual_seed(0)
    shape = (*plates, b, *event)
    p, q, likelihood = (
        dist.Normal(torch.randn(sizes), torch.rand(sizes) + 0.5)
        for sizes in (shape, shape, shape if inside else (b, 2))
    )
    x = likelihood.sample()

    def program(*sites: tuple[str, Any, int, Tensor | None]) -> Callable[[Tensor], None]:
        def run(x: Tensor) -> None:
            with pyro.plate("data", b), ExitStack() as stack:
                for name, fn, event_dim, obs in sites:
                    if fn is not likelihood or inside:
                        for i, size in enumerate(reversed(plates)):
                            stack.enter_context(pyro.plate(f"plate {i} of {name}", size, dim=-2 - i))
                    pyro.sample(name, fn.to_event(event_dim), obs=obs)
                    stack.pop_all().close()

        return run

    observed = ("x", likelihood, len(event) if inside else 1, x)
    terms = log_terms(
        program(("z", p, len(event), None), observed),
        program(("z", q, len(event), None)),
        torch.zeros(b),
        num_particles=k,
        max_plate_nesting=1 + len(plates),
    )
    z = terms.latents["z"]
    assert z.shape == (k, *shape)
    for fn, term in ((p, terms.log_prior["z"]), (q, terms.log_posterior["z"])):
        torch.testing.assert_close(term, per_datum(fn.log_prob(z), 1 + len(plates)))
    of_data = likelihood.log_prob(x)
    plain = per_datum(of_data.unsqueeze(0), (1 + len(plates)) if inside else 1)
    torch.testing.assert_close(terms.log_likelihood["x"], plain.expand(k, b))
    by_hand = terms.log_likelihood["x"] + terms.log_prior["z"] - terms.log_posterior["z"]
    torch.testing.assert_close(terms.log_weight, by_hand)
    assert terms.by_datum("z").shape == (k, b, math.prod(plates) * math.prod(event))


def per_datum(values: Tensor, data_dim: int) -> Tensor:
    """Sums over all dimensions but the first and the data's."""
    rest = [i for i in range(values.dim()) if i not in (0, data_dim)]
    return values.sum(rest) if rest else values


# -- schedules ---------------------------------------------------------------------------------------------------

DURATIONS, WEIGHTS, TIMES = st.floats(1e-3, 1e4), st.floats(0.0, 1e3), st.floats(0.0, 1e5)


@given(st.sampled_from([pv.linear_warmup, pv.cosine_warmup]), DURATIONS, WEIGHTS, WEIGHTS, TIMES, TIMES)
def test_warm_ups_go_one_way_from_start_to_end(
    make: Callable[..., Schedule], duration: float, start: float, end: float, a: float, b: float
) -> None:
    schedule = make(duration, start=start, end=end)
    low, high = sorted((start, end))
    early, late = (schedule(t) for t in sorted((a, b)))
    rounding = 1e-12 * high
    for value in (early, late):
        assert low - rounding <= value <= high + rounding
    assert (late - early) * (1 if end >= start else -1) >= -rounding
    assert schedule(0.0) == pytest.approx(start)
    assert schedule(duration) == schedule(math.inf) == end
    ends_alike(schedule, a)


@given(DURATIONS, st.floats(0.01, 1.0), st.integers(1, 10), WEIGHTS, TIMES)
def test_cycles_repeat_until_they_end(period: float, rise: float, cycles: int, end: float, t: float) -> None:
    schedule = pv.cyclical(period, rise=rise, cycles=cycles, end=end)
    assert 0 <= schedule(t) <= end
    assert schedule(0.0) == 0
    assert schedule(math.inf) == end
    phase = t % period
    if t < (cycles - 1) * period and 1e-6 < phase / period < 1 - 1e-6:  # not where rounding decides on the side
        assert schedule(t + period) == pytest.approx(schedule(t), rel=1e-6, abs=1e-6 * end)
        assert schedule(t) == pytest.approx(end * min(1.0, phase / (rise * period)))
    ends_alike(schedule, t)


def ends_alike(schedule: Schedule, t: float) -> None:
    """What was pickled is the same schedule, and after its end it has its final value."""
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule
    assert again(t) == schedule(t) == value_at(schedule, t, "beta")
    assert has_ended(schedule, t) == (t >= schedule.ends)
    if has_ended(schedule, t):
        assert schedule(t) == schedule(math.inf)
