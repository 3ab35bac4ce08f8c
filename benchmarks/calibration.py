"""What the verdicts of log_marginal and ais are worth: coverage, bias and false alarms on problems of known log p(x).

Every row is a family of problems, from good ones to hopeless ones, each evaluated in results of 100 data. Where the
law of the log-weights is known they are drawn from it, reduced by the library's stream and judged by its verdict; the
rows that say so run ``log_marginal`` and ``ais`` themselves. A problem is good where its true CV²/K < .01, or the true
effective number of chains is over half of them.

    python -m benchmarks.calibration
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyrovae as pv
from benchmarks._timing import arguments, write
from pyrovae.evaluation import AISResult, MarginalResult, Provenance
from pyrovae.evaluation.marginal._annealing import SCHEDULES
from pyrovae.evaluation.marginal._chains import estimate_chains
from pyrovae.evaluation.marginal._log_marginal import stream_columns
from pyrovae.evaluation.marginal._stream import WeightStream
from pyrovae.evaluation.marginal._verdict import FEW_CHAINS, judge, judge_chains, se_over_data
from pyrovae.testing import LinearGaussian, LinearMixture

DATA = 100  # of one result
DRAWS = (50, 200, 1000, 5000)
CHAINS = (4, 16, 64)
REPEATS = {50: 3, 200: 3, 1000: 3, 5000: 1, 4: 1, 16: 3, 64: 2}  # results of each problem
GOOD = 0.01  # CV²/K
NOWHERE = Provenance("", "")
Result = MarginalResult | AISResult


@dataclass
class Problem:
    """Normalised importance weights: E w = 1 for every datum, so that log p(x) = 0.

    Attributes:
        draw: from (K, number of data, generator) to log-weights ``(K, data)``.
        squared_cv: true relative variance of the weights, one for all data or for each.
    """

    draw: Callable[[int, int, torch.Generator], Tensor]
    squared_cv: float | np.ndarray


def gaussian(*groups: tuple[int, float, float]) -> Problem:
    """A normal guide for a standard normal posterior: groups of (latents, their variance c² under q, shift of the mean
    of one of them).
    """

    def draw(k: int, n: int, generator: torch.Generator) -> Tensor:
        w = torch.zeros(k, n, dtype=torch.float64)
        for count, c2, shift in groups:
            u = torch.randn(k, n, generator=generator, dtype=torch.float64)
            w += 0.5 * count * math.log(c2) + 0.5 * (u.square() - (shift + math.sqrt(c2) * u).square())
            if count > 1 and c2 != 1.0:
                chi2 = 2.0 * torch._standard_gamma(torch.full_like(w, (count - 1) / 2), generator=generator)
                w += 0.5 * (1.0 - c2) * chi2
        return w

    log_square = 0.0
    for count, c2, shift in groups:
        if c2 <= 0.5:
            return Problem(draw, math.inf)
        log_square += count * (math.log(c2) - 0.5 * math.log(2 * c2 - 1)) + shift**2 / (2 * c2 - 1)
    return Problem(draw, math.expm1(log_square))


def correlated(latents: int, coupling: float, seed: int) -> Problem:
    """The best mean-field guide of a linear-Gaussian model with random loadings: c² are the eigenvalues of the
    correlation in the posterior's precision.
    """
    w = coupling * torch.randn(2 * latents, latents, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    precision = LinearGaussian(w, torch.zeros(2 * latents).double(), 1.0).precision().detach()
    scale = precision.diagonal().rsqrt()
    return gaussian(*((1, c2, 0.0) for c2 in torch.linalg.eigvalsh(scale[:, None] * precision * scale).tolist()))


def mixture(weight: float, distance: float, c2: float) -> Problem:
    """A posterior of two unit normals in two dimensions, ``weight`` on the one at ``distance``; q is N(0, c² I)."""
    shares, centres = (1.0 - weight, weight), (0.0, distance)

    def draw(k: int, n: int, generator: torch.Generator) -> Tensor:
        z = math.sqrt(c2) * torch.randn(k, n, 2, generator=generator, dtype=torch.float64)
        modes = [
            math.log(s) - 0.5 * ((z[..., 0] - a).square() + z[..., 1].square())
            for s, a in zip(shares, centres, strict=True)
        ]
        return torch.logaddexp(*modes) + z.square().sum(2) / (2.0 * c2) + math.log(c2)

    a = 2.0 - 1.0 / c2
    square = sum(
        s * t * c2 / a * math.exp((p + q) ** 2 / (2.0 * a) - 0.5 * (p * p + q * q))
        for s, p in zip(shares, centres, strict=True)
        for t, q in zip(shares, centres, strict=True)
    )
    return Problem(draw, square - 1.0)


class Banana(pv.VAEModel):
    """z ~ N(0, I₂), x ~ N(z₂ + b z₁², σ²): a bent posterior. The guide is the normal of its moments, its scales
    multiplied by ``stretch``; all integrals are taken on a grid.
    """

    def __init__(self, bend: float, noise: float, stretch: float) -> None:
        super().__init__()
        self.event_shape = (1,)
        self.bend, self.noise, self.stretch = bend, noise, stretch
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        axis = torch.linspace(-6.0, 6.0, 161, dtype=torch.float64)
        self.grid = torch.cartesian_prod(axis, axis)
        self.cell = float(axis[1] - axis[0]) ** 2

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), self.scale).to_event(1))
            mean = z[..., 1:] + self.bend * z[..., :1].square()
            pyro.sample("x", dist.Normal(mean, self.noise).to_event(1), obs=x)

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x, z) on the grid, ``(data, points)``."""
        log_prior = dist.Normal(0.0, 1.0).log_prob(self.grid).sum(1)
        return log_prior + dist.Normal(self.grid[:, 1] + self.bend * self.grid[:, 0].square(), self.noise).log_prob(x)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.log_density(x).softmax(1)
        mean = weight @ self.grid
        return mean, self.stretch * (weight @ self.grid.square() - mean.square()).sqrt()

    def guide(self, x: Tensor) -> None:
        mean, scale = self.moments(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean, scale).to_event(1))

    def exact_log_px(self, x: Tensor) -> Tensor:
        return self.log_density(x).logsumexp(1) + math.log(self.cell)

    def squared_cv(self, x: Tensor) -> np.ndarray:
        """Of the weights of every datum. Along z₂ = x - b z₁² it is finite if q's variance of z₂ is over ½."""
        mean, scale = self.moments(x)
        log_q = dist.Normal(mean.unsqueeze(1), scale.unsqueeze(1)).log_prob(self.grid).sum(2)
        log_p = self.log_density(x) - self.exact_log_px(x).unsqueeze(1)
        square = (2.0 * log_p - log_q).logsumexp(1) + math.log(self.cell)
        return np.where(scale[:, 1].square() <= 0.5, math.inf, square.expm1().numpy())

    def problem(self, n: int, seed: int) -> Problem:
        """The weights of ``n`` data that the model makes."""
        x = self.sample(n, seed=seed)
        mean, scale = self.moments(x)
        truth = self.exact_log_px(x)

        def draw(k: int, n: int, generator: torch.Generator) -> Tensor:
            u = torch.randn(k, n, 2, generator=generator, dtype=torch.float64)
            z = mean + scale * u
            log_q = -0.5 * u.square().sum(2) - scale.log().sum(1)
            residual = (x[:, 0] - z[..., 1] - self.bend * z[..., 0].square()) / self.noise
            log_p = -0.5 * (z.square().sum(2) + residual.square()) - math.log(self.noise * math.sqrt(2.0 * math.pi))
            return log_p - log_q - truth

        return Problem(draw, self.squared_cv(x))


def mixed(seed: int, hard: float) -> Problem:
    """Easy and hard data side by side: every datum has a wrong mean and a wrong scale in ten latents of its own; of a
    fraction ``hard`` three latents have c² = .3.
    """
    generator = np.random.default_rng(seed)
    data = []
    for _ in range(DATA):
        shift, c2 = 0.7 * math.exp(0.4 * generator.standard_normal()), generator.uniform(0.65, 1.3)
        bad = generator.random() < hard
        data.append(gaussian((10, c2, 0.0), (1, 1.0, shift), *(((3, 0.3, 0.0),) if bad else ())))

    def draw(k: int, n: int, generator: torch.Generator) -> Tensor:
        return torch.cat([p.draw(k, 1, generator) for p in data], dim=1)

    return Problem(draw, np.array([p.squared_cv for p in data]))


def annealed(num_temperatures: int, *groups: tuple[int, float, float]) -> Problem:
    """Chains from a guide as in :func:`gaussian` that move by exact draws from every distribution on the path."""
    betas = SCHEDULES["sigmoid"](torch.linspace(0.0, 1.0, num_temperatures + 1, dtype=torch.float64)).tolist()
    steps = list(zip(betas[:-1], np.diff(betas), strict=True))

    def draw(k: int, n: int, generator: torch.Generator) -> Tensor:
        w = torch.zeros(k, n, dtype=torch.float64)
        for beta, step in steps:
            for count, c2, shift in groups:
                precision = (1.0 - beta) / c2 + beta
                v = torch.randn(k, n, generator=generator, dtype=torch.float64)
                z = (1.0 - beta) * shift / c2 / precision + v / math.sqrt(precision)
                ratio = 0.5 * count * math.log(c2) + 0.5 * ((z - shift).square() / c2 - z.square())
                if count > 1 and c2 != 1.0:
                    chi2 = 2.0 * torch._standard_gamma(torch.full_like(w, (count - 1) / 2), generator=generator)
                    ratio += 0.5 * (1.0 / c2 - 1.0) / precision * chi2
                w += step * ratio
        return w

    log_square = 0.0
    for beta, step in steps:
        for count, c2, shift in groups:
            precision = (1.0 - beta) / c2 + beta
            natural = (1.0 - beta) * shift / c2

            def moment(s: float, latents: int, linear: float) -> float:  # log E of the increment's exponential
                a, b = s * step * (1.0 - 1.0 / c2), s * step * linear / c2  # noqa: B023
                if precision + a <= 0:  # noqa: B023
                    return math.inf
                n = natural if linear else 0.0  # noqa: B023
                at = 0.5 * ((n - b) ** 2 / (precision + a) - n**2 / precision)  # noqa: B023
                return at - 0.5 * latents * math.log1p(a / precision)  # noqa: B023

            log_square += moment(2.0, count, shift) - 2.0 * moment(1.0, count, shift)
    return Problem(draw, math.expm1(min(log_square, 700.0)))


# -- results ---------------------------------------------------------------------------------------------------------


def sampled(problem: Problem, k: int, generator: torch.Generator) -> MarginalResult:
    """What ``log_marginal`` makes of K draws of 100 data."""
    sizes = (1, k // 10, k)
    stream = WeightStream(DATA, k, {*sizes, k // 2}, torch.device("cpu"))
    for part in problem.draw(k, DATA, generator).split(1000):
        stream.update(part)
    pointwise = pd.DataFrame({name: values.numpy() for name, values in stream_columns(stream, k, sizes).items()})
    facts: Any = {"num_samples": k, "bounds": sizes, "num_observed": 1, "discrete": False, "provenance": NOWHERE}
    return MarginalResult(pointwise=pointwise.join(judge(pointwise, k)), **facts)


def chains(problem: Problem, c: int, generator: torch.Generator) -> AISResult:
    """What ``ais`` makes of C chains of 100 data, all moves accepted."""
    columns = estimate_chains(problem.draw(c, DATA, generator))
    pointwise = pd.DataFrame({name: values.numpy() for name, values in columns.items()}).assign(acceptance=1.0)
    facts: Any = {"num_temperatures": 2, "num_chains": c, "num_leapfrog": 1, "num_gradients": 0, "provenance": NOWHERE}
    return AISResult(pointwise=pointwise.join(judge_chains(pointwise, c)), start="", schedule="", **facts)


@dataclass
class Outcome:
    """One result on a problem, with the truth.

    Attributes:
        setting: name of the problem and its size.
        result: the result.
        truth: log p(x) of every datum.
        good: which data are good.
    """

    setting: str
    result: Result
    truth: np.ndarray
    good: np.ndarray


def row(outcomes: list[Outcome]) -> dict[str, Any]:
    """Coverage, bias and false alarms over the data of all results; bias in units of the mean ``mc_se``."""
    frames, means = [], []
    for o in outcomes:
        p, error = o.result.pointwise, o.result.mean_error
        frame = p[["mc_se", "reliable"]].assign(setting=o.setting, good=o.good, error=p["log_px"] - o.truth)
        bias = p["bias"] if "bias" in p else p["log_px"] - p["jackknife"]
        frames.append(frame.assign(corrected=frame["error"] - bias))
        off = abs(frame["error"].mean())
        means.append((o.result.reliable, math.isfinite(error), off <= error, error))
    table = pd.concat(frames, ignore_index=True)
    table["covered"] = table["error"].abs() <= 1.96 * table["mc_se"]
    kept, good = table[table["reliable"]], table[table["good"]]
    reliable, stated, held, size = (np.array(column) for column in zip(*means, strict=True))
    out = {
        "data": len(table),
        "coverage": table["covered"].mean(),
        "reliable": table["reliable"].mean(),
        "good": table["good"].mean(),
        "good_reliable": good["reliable"].mean(),
        "worst_good_setting": good.groupby("setting")["reliable"].mean().min(),
        "results": len(means),
        "results_stated": stated.mean(),
        "results_reliable": reliable.mean(),
        "mean_covered": held[stated].mean() if stated.any() else math.nan,
        "mean_covered_reliable": held[reliable].mean() if reliable.any() else math.nan,
        "median_mean_error": float(np.median(size[stated])) if stated.any() else math.nan,
    }
    if len(kept):
        unit = kept["mc_se"].mean()
        out |= {"reliable_coverage": kept["covered"].mean()}
        for name, column in (("bias", "error"), ("jackknife_bias", "corrected")):
            out |= {name: kept[column].mean() / unit, f"{name}_se": se_over_data(kept[column]) / unit}
        out["bias_nats"] = kept["error"].mean()
        out["meets_coverage"] = bool(out["reliable_coverage"] >= 0.9)
        out["meets_bias"] = all(abs(out[b]) <= 0.25 + 2 * out[f"{b}_se"] for b in ("bias", "jackknife_bias"))
    if len(good):
        out["meets_good"] = bool(out["good_reliable"] >= 0.9)
    return out


UNSEEN = "a missing mode (in nats)"
SHIFTS = (0.3, 0.6, 0.9, 1.2, 1.5, 1.8, 2.2)
SCALES = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.2, 1.5)
FAMILIES: dict[str, list[Problem]] = {
    "wrong mean": [gaussian((10, 1.0, s)) for s in SHIFTS],
    "wrong scale, all of 10 or 40 latents": [gaussian((n, c2, 0.0)) for n in (10, 40) for c2 in SCALES],
    "wrong scale, 1 or 3 latents": [gaussian((n, c2, 0.0)) for n in (1, 3) for c2 in SCALES],
    "mean and scale, 20 latents": [gaussian((20, c2, s)) for s in (0.5, 1.0) for c2 in SCALES[2:]],
    "correlation, 10 to 40 latents": [
        correlated(n, c / math.sqrt(n), n) for n in (10, 20, 40) for c in (0.3, 0.5, 0.7, 1.0, 1.5)
    ],
    "mixture": [mixture(w, d, c2) for w in (0.1, 0.3) for d in (1.0, 1.5, 2.0, 2.5) for c2 in (1.0, 1.5, 2.5)],
    "easy and hard data": [mixed(seed, 0.0) for seed in range(6)],
    "easy and hard, a tenth hopeless": [mixed(seed, 0.1) for seed in range(6)],
    UNSEEN: [mixture(w, 9.0, 1.0) for w in (0.1, 0.3, 0.5)],
}
BANANAS = [(b, noise, stretch) for b in (0.2, 0.5, 1.0) for noise in (0.5, 1.0) for stretch in (1.0, 1.3)]
ANNEALED: dict[str, list[Problem]] = {
    "wrong mean": [annealed(t, (10, 1.0, s)) for t in (5, 20, 100) for s in (1.0, 3.0, 6.0)],
    "wrong scale, all of 10 or 40 latents": [
        annealed(t, (n, c2, 0.0)) for t in (5, 20, 100) for n in (10, 40) for c2 in (0.2, 0.5, 1.5)
    ],
    "wrong scale, 1 or 3 latents": [
        annealed(t, (n, c2, 0.0)) for t in (5, 20, 100) for n in (1, 3) for c2 in (0.2, 0.5, 1.5)
    ],
    "mean and scale, 20 latents": [annealed(t, (20, c2, 2.0)) for t in (5, 20, 100) for c2 in (0.3, 0.7, 1.3)],
}


def simulated(seed: int, repeats: int) -> Iterator[tuple[str, str, int, list[Outcome]]]:
    """Rows whose log-weights are drawn from their law."""
    generator = torch.Generator().manual_seed(seed)
    families = dict(FAMILIES)
    families["banana"] = [Banana(*settings).problem(DATA, seed=0) for settings in BANANAS]
    for method, rows, sizes in (("log_marginal", families, DRAWS), ("ais", ANNEALED, CHAINS)):
        for family, problems in rows.items():
            for size in sizes:
                outcomes = []
                for i, problem in enumerate(problems):
                    cv = np.broadcast_to(np.asarray(problem.squared_cv), DATA)
                    good = cv / size < GOOD if method == "log_marginal" else 1.0 / (1.0 + cv) > 0.5
                    if family == UNSEEN or size < FEW_CHAINS:
                        good = np.zeros(DATA, dtype=bool)
                    for _ in range(repeats * REPEATS[size]):
                        estimate = sampled if method == "log_marginal" else chains
                        result: Result = estimate(problem, size, generator)
                        outcomes.append(Outcome(f"{i}", result, np.zeros(DATA), good))
                if outcomes:
                    yield method, family, size, outcomes


def linear(latents: int, coupling: float, guide: Any, **options: float) -> LinearGaussian:
    generator = torch.Generator().manual_seed(latents)
    w = coupling / math.sqrt(latents) * torch.randn(2 * latents, latents, generator=generator)
    return LinearGaussian(w, torch.zeros(2 * latents), 1.0, guide=guide, **options)


def modes(distance: float, stretch: float) -> LinearMixture:
    means = torch.tensor([[0.0, 0.0], [distance, 0.0]])
    return LinearMixture(torch.tensor([0.7, 0.3]), means, 0.5, torch.eye(2), torch.zeros(2), 1.0, stretch)


def squared_cv(model: LinearGaussian) -> float:
    """True relative variance of the weights for any guide of a :class:`LinearGaussian` but the exact one."""
    precision = model.precision().detach().double()
    noise = precision.diagonal() / model.stretch**2  # precision of q, whose mean is off by the shift
    square = 2.0 * precision - noise.diag()
    if torch.linalg.eigvalsh(square)[0] <= 0:
        return math.inf
    pull = -noise * model.shift  # p²/q ∝ exp(-½ zᵀ (2Λ - Q) z - zᵀ Q s + ½ sᵀ Q s)
    log_square = precision.logdet() - 0.5 * (noise.log().sum() + square.logdet())
    log_square = log_square + 0.5 * (pull @ torch.linalg.solve(square, pull) + noise.sum() * model.shift**2)
    return math.expm1(min(log_square.item(), 700.0))


LINEAR = [
    *(linear(n, c, "mean_field") for n in (10, 20, 40) for c in (0.4, 0.8)),
    *(linear(n, 0.3, "detuned", shift=s, stretch=t) for n in (10, 40) for s in (0.0, 0.15) for t in (0.8, 0.9, 1.15)),
]


def run(seed: int, repeats: int) -> Iterator[tuple[str, str, int, list[Outcome]]]:
    """Rows that the estimators themselves draw."""
    quiet: dict[str, Any] = {"progress": False, "seed": seed}
    for size in DRAWS[1:]:
        outcomes = []
        for i, model in enumerate(LINEAR):
            x = model.sample(DATA, seed=i)
            result = pv.log_marginal(model, x, num_samples=size, **quiet)
            good = np.full(DATA, squared_cv(model) / size < GOOD)
            outcomes.append(Outcome(f"{i}", result, model.exact_log_px(x).numpy(), good))
        yield "log_marginal", "linear-Gaussian models, run", size, outcomes
    outcomes = []
    for i, model in enumerate(LINEAR):
        x = model.sample(DATA, seed=i)
        result = pv.log_marginal(model, x, num_samples=5000, target_mc_se=0.05, **quiet)
        good = np.full(DATA, squared_cv(model) / 200 < GOOD)
        outcomes.append(Outcome(f"{i}", result, model.exact_log_px(x).numpy(), good))
    yield "log_marginal", "the same, target_mc_se=0.05", 5000, outcomes
    bent = [Banana(*settings) for settings in BANANAS[1::3]]
    for family, models in (
        ("linear-Gaussian models, run", LINEAR[::4]),
        ("banana, run", bent),
        ("mixture, run", [modes(d, 1.3) for d in (1.0, 2.0, 3.0)]),
    ):
        outcomes, size = [], 16
        for i, model in enumerate(models):
            x = model.sample(DATA, seed=i)
            exact = model.exact_log_px(x)
            for t in (2, 10, 30):
                walked = pv.ais(model, x, num_temperatures=t, num_chains=size, **quiet)
                p = walked.pointwise
                # E w² over all data: from the chains of one datum it is too unsure.
                square = ((p["log_px"] - exact.numpy()).mul(2.0).map(math.exp) / p["ess"]).mean() * size
                outcomes.append(Outcome(f"{i} T={t}", walked, exact.numpy(), np.full(DATA, square < 2.0)))
        yield "ais", family, size, outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args = arguments(parser, repeats=1)
    start, rows = time.perf_counter(), []
    for kind in (simulated, run):
        for method, family, size, outcomes in kind(0, args.repeats):
            rows.append({"method": method, "family": family, "size": size, **row(outcomes)})
            print(markdown(rows[-1]), flush=True)
    facts = {"rows": rows, "seconds": time.perf_counter() - start, "args": vars(args)}
    print(write("calibration", facts))


def markdown(r: dict[str, Any]) -> str:
    """A row of the table in the guide."""

    def percent(name: str) -> str:
        return f"{100 * r[name]:.0f}" if name in r and math.isfinite(r[name]) else ""

    def bias(name: str) -> str:
        if name not in r:
            return ""
        if r["family"] == UNSEEN:
            return f"{r['bias_nats']:+.2f} nats"
        return f"{r[name]:+.2f} ± {2 * r[f'{name}_se']:.2f}"

    missed = [name for name in ("coverage", "bias", "good") if r.get(f"meets_{name}") is False]
    cells = [
        r["method"],
        r["family"],
        str(r["size"]),
        percent("coverage"),
        percent("reliable"),
        percent("reliable_coverage"),
        bias("bias"),
        bias("jackknife_bias"),
        percent("good_reliable"),
        f"{percent('results_stated')}: {percent('mean_covered')}",
        ", ".join(missed),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
