"""Small models used by several tests."""

from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyrovae as pv


def from_elsewhere(result: Any, **changes: Any) -> Any:
    """A result with another provenance, and whatever else is to be changed."""
    own = {name: changes.pop(name) for name in list(changes) if hasattr(result.provenance, name)}
    return replace(result, provenance=replace(result.provenance, **own), **changes)


class TwoSites(pv.VAEModel):
    """z2 ~ N(0, I), z1 | z2, x | z1; the guide draws z2 first, as the model does, or z1 first (``bottom_up``)."""

    event_shape = (6,)

    def __init__(self, *, bottom_up: bool = False) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        self.middle = nn.Linear(2, 6)
        self.decoder = nn.Linear(3, 6)
        self.encode_2, self.encode_1 = nn.Linear(6 + 3 * bottom_up, 4), nn.Linear(6 + 2 * (not bottom_up), 6)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            loc, raw = self.middle(z2).chunk(2, -1)
            z1 = pyro.sample("z1", dist.Normal(loc, (0.3 * raw).exp()).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z1)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        def draw(name: str, head: nn.Linear, parent: Tensor | None) -> Tensor:
            h = x if parent is None else torch.cat([x.expand(*parent.shape[:-1], 6), parent], -1)
            loc, raw = head(h).chunk(2, -1)
            return pyro.sample(name, dist.Normal(loc, (0.3 * raw).exp()).to_event(1))

        with pyro.plate("data", len(x)):
            if self.bottom_up:
                draw("z2", self.encode_2, draw("z1", self.encode_1, None))
            else:
                draw("z1", self.encode_1, draw("z2", self.encode_2, None))


class Conditional(pv.VAEModel):
    """A model with a covariate y of two columns."""

    event_shape = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.encoder = nn.Linear(4, 6), nn.Linear(8, 4)

    def model(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            logits = self.decoder(torch.cat([z, y.expand(*z.shape[:-1], 2)], -1))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        loc, raw = self.encoder(torch.cat([x, y], -1)).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


def binary(n: int = 20, d: int = 6) -> Tensor:
    return (torch.rand(n, d) < 0.4).float()
