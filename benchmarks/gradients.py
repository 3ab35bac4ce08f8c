"""How the signal-to-noise ratio of the guide's gradient goes with K: as K^-½ for the importance-weighted bound's own
(Rainforth et al. 2018, arXiv:1802.04537), as K^½ for the doubly reparameterised one (Tucker et al. 2019,
arXiv:1810.04152).

z ~ N(0, I) in D dimensions, x | z ~ N(z, I), and a guide N(x/2 + loc, (2/3) I), which is off the posterior by
its shift and its width. The gradient is that of a shift for every datum, each of which is a draw of its own. Both
estimators have one expectation, taken from the less noisy one; exponents are slopes of log ratios over log K.

    python -m benchmarks.gradients
"""

import argparse
import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyrovae as pv
from benchmarks._timing import arguments, write
from pyrovae.objectives import Objective

DRAWS = tuple(4**i for i in range(6))  # K
ASYMPTOTIC = 64  # from which K on the exponent is taken
ESTIMATORS = {
    "reparameterized": lambda k: pv.IWAE(k),
    "dreg": lambda k: pv.IWAE(k, gradient="dreg"),
    "stl": lambda k: pv.IWAE(k, gradient="stl"),
}
ROWS = {"one dimension": 1, "twenty dimensions": 20}


class Shifted(pv.VAEModel):
    """A guide with a shift ``loc`` of its own for every datum, so that one backward pass gives as many gradients."""

    def __init__(self, num_data: int, dim: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.full((num_data, dim), 0.1, dtype=torch.float64))
        self.scale = math.sqrt(2 / 3)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + self.loc, self.scale).to_event(1))


def draws_of(objective: Objective, dim: int, num: int, at_once: int) -> Tensor:
    """Independent draws of the gradient of the bound with respect to the shift, ``(num, dim)``."""
    found = []
    for _ in range(-(-num // at_once)):
        model = Shifted(at_once, dim)
        x = torch.linspace(-1.0, 1.0, dim, dtype=torch.float64).expand(at_once, dim)
        objective.differentiable_loss(model.model, model.guide, x).backward()
        assert model.loc.grad is not None
        found.append(-model.loc.grad)
    return torch.cat(found)[:num]


def exponent(ratios: dict[int, float]) -> float:
    k = np.array([k for k in ratios if k >= ASYMPTOTIC])
    return float(np.polyfit(np.log(k), np.log([ratios[i] for i in k]), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=10_000, help="draws of the gradient")
    args = arguments(parser)
    rows: dict[str, dict[str, Any]] = {}
    for row, dim in ROWS.items():
        ratios: dict[str, dict[int, float]] = {name: {} for name in ESTIMATORS}
        for k in DRAWS:
            at_once = max(1, min(args.num, 4_000_000 // (k * dim)))
            drawn = {name: draws_of(make(k), dim, args.num, at_once) for name, make in ESTIMATORS.items()}
            means = {name: drawn["dreg" if name != "stl" else "stl"].mean(0) for name in drawn}
            for name, g in drawn.items():
                ratios[name][k] = float((means[name].abs() / g.std(0)).mean())
        rows[row] = {"ratio": ratios, "exponent": {name: exponent(found) for name, found in ratios.items()}}
        print(row)
        for name, slope in rows[row]["exponent"].items():
            print(f"  {name:16}", *(f"{k}: {r:.3g}" for k, r in ratios[name].items()), f"exponent {slope:+.3f}")
    write("gradients", {"num": args.num, "rows": rows})


if __name__ == "__main__":
    main()
