"""How often the intervals of ``compare`` cover a true difference: of two models, and of seven at once.

Synthetic log p(x) of seed s and datum i: a seed's effect, a datum's and their interaction, all normal, about the true
mean of a model. ``ratio`` is the standard deviation between seeds, as far as it enters a difference, to that between
data; ``uneven`` models vary three times as much over seeds as the reference. Models differ datum by datum by ``own``,
seeds and data interact by ``interaction`` (standard deviations).

    python -m benchmarks.coverage
"""

import argparse
from itertools import product
from typing import Any

import numpy as np

from benchmarks._timing import write
from pyrovae.evaluation.marginal._paired import Difference, simultaneous

DESIGNS = ((1, 1), (3, 1), (1, 5), (5, 5), (3, 3), (2, 2), (3, 5), (2, 5), (10, 10))  # seeds: model, reference
RATIOS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
EFFECTS = ((0.3, 0.0), (0.05, 0.3), (0.3, 0.3))  # of the interaction, of each model's own at every datum


def coverage(
    seeds: tuple[int, int],
    *,
    models: int = 2,
    ratio: float = 1.0,
    uneven: bool = False,
    interaction: float = 0.3,
    own: float = 0.3,
    data: int = 200,
    replicates: int = 400,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, float]:
    """Fractions of replicates in which the interval of the first difference, and all simultaneous ones, cover zero."""
    rng = np.random.default_rng(seed)
    scale = np.sqrt((2 * own**2 + interaction**2 * (1 / seeds[0] + 1 / seeds[1])) / data)
    between = (seeds != (1, 1)) * ratio * scale / np.sqrt(1 / seeds[0] + 1 / seeds[1])  # the two parts of diff_se
    single, together, known = [], [], []

    def values(count: int, factor: float) -> np.ndarray:
        effects = factor * between * rng.normal(size=(count, 1)) + own * rng.normal(size=data)
        return common + effects + interaction * rng.normal(size=(count, data))

    for _ in range(replicates):
        common = rng.normal(size=data)
        base = values(seeds[1], 1.0)
        differences = [
            Difference.of(values(seeds[0], 3.0 if uneven else 1.0), base, together=False, pool_seeds=True)
            for _ in range(models - 1)
        ]
        errors = np.array([abs(d.values.mean()) for d in differences])
        level = simultaneous(differences, confidence)
        single.append(errors[0] <= differences[0].half_width(confidence))
        together.append(all(e <= d.half_width(level) for e, d in zip(errors, differences, strict=True)))
        known.append(np.isfinite(differences[0].se))
    if not all(known):
        return {"single": np.nan, "simultaneous": np.nan}
    return {"single": float(np.mean(single)), "simultaneous": float(np.mean(together))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=400)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for models, seeds, uneven in product((2, 7), DESIGNS, (False, True)):
        if (uneven and 1 in seeds) or (models > 2 and (uneven or seeds not in DESIGNS[:4])):
            continue  # no interval can know the variance of a single seed; seven at once take minutes
        found = []
        for ratio, (interaction, own) in product(RATIOS[:: models // 2] if seeds != (1, 1) else (0.0,), EFFECTS):
            setting = {"ratio": ratio, "uneven": uneven, "interaction": interaction, "own": own}
            result = coverage(seeds, models=models, replicates=args.replicates, **setting)  # type: ignore[arg-type]
            rows.append({"models": models, "seeds": seeds, **setting, **result})
            found.append(result["simultaneous"])
        print(
            f"{models} models, {seeds[0]}x{seeds[1]} seeds{', uneven' if uneven else ''}: "
            f"{min(found):.3f} to {max(found):.3f}, mean {np.mean(found):.3f}",
            flush=True,
        )
    print(write("coverage", {"rows": rows, "args": vars(args)}))


if __name__ == "__main__":
    main()
