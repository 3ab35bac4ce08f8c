"""Annealed chains between a start and p(x, z), moved by Hamiltonian Monte Carlo with frozen step sizes."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool1d, interpolate

from pyrovae._capture import replayed
from pyrovae._graph import Compile, Graph
from pyrovae.model._base_space import BaseSpace

SETTLING = 20  # moves at the start before the pilot run
_GAIN = 0.3  # of the pilot's step sizes towards the wanted acceptance
_SMOOTHING = 11  # temperatures of the pilot over which its step sizes are averaged
_JITTER = 0.2  # of the step size, so that no trajectory closes on itself (Neal 2011, sec. 5.3.3)


def linear(t: Float[Tensor, "times"]) -> Float[Tensor, "times"]:
    """β(t) = t."""
    return t


def sigmoid(t: Float[Tensor, "times"]) -> Float[Tensor, "times"]:
    """β(t) ∝ σ(4 (2t - 1)), dense at both ends (Grosse et al. 2015, arXiv:1511.02543)."""
    s = torch.sigmoid(4.0 * (2.0 * t - 1.0))
    return (s - s[0]) / (s[-1] - s[0])


def logarithmic(t: Float[Tensor, "times"]) -> Float[Tensor, "times"]:
    """β(t) log-spaced from 1e-4 to 1, after 0: dense at the start, for one that is far wider than the target."""
    out = 10.0 ** (-4.0 * (1.0 - t))
    return torch.cat([torch.zeros_like(out[:1]), out[1:]])


SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {"linear": linear, "sigmoid": sigmoid, "log": logarithmic}


class Annealing:
    """Chains of B data along π_β ∝ start^(1-β) p(x, z)^β (Neal 2001), all data and chains at once.

    Step sizes are tuned, for each datum along the path, by a pilot run of its own whose draws are thrown away: tuning
    them inside the run would break the estimate's unbiasedness.

    Args:
        space: where the chains move.
        betas: 0 = β_0 < … < β_T = 1.
        num_leapfrog: leapfrog steps a move.
        target_acceptance: what the pilot aims at.
        pilot: temperatures of the pilot.
        moved: called after every move.
        compile: whether the densities and their gradients become machine code.
        calls: how often those will be computed, by this and other annealings of the same shape.
    """

    def __init__(
        self,
        space: BaseSpace,
        betas: Float[Tensor, "temperatures"],
        *,
        num_leapfrog: int,
        target_acceptance: float,
        pilot: int,
        moved: Callable[[], Any],
        compile: Compile = "off",
        calls: int = 0,
    ) -> None:
        self._space, self._betas, self._num_leapfrog = space, betas, num_leapfrog
        self._leap, self._moved = Graph(self._leapfrog, compile=compile, calls=calls), moved
        self._trajectory = replayed(self._leapfrogs, betas.device)
        self._log_step = self._tune(target_acceptance, pilot)

    def forward(self) -> tuple[Float[Tensor, "chains batch"], Float[Tensor, "batch"]]:
        """Log-weights of chains from the start, with E[w] = p(x), and the mean acceptance."""
        state = self._at(self._space.draw())
        log_weight = torch.zeros_like(state.log_start, dtype=torch.float64)
        accepted = torch.zeros_like(state.log_start[0])
        last = len(self._betas) - 1
        for i in range(1, last + 1):
            log_weight = log_weight + state.increment(self._betas[i] - self._betas[i - 1])
            if i < last:
                state, acceptance = self._move(state, self._betas[i], self._log_step[i])
                accepted = accepted + acceptance.mean(0)
        return log_weight, accepted / max(last - 1, 1)

    def reverse(
        self, u: Float[Tensor, "chains batch dim"]
    ) -> tuple[Float[Tensor, "chains batch"], Float[Tensor, "batch"]]:
        """Log-weights of chains that start at an exact draw from p(z | x), with E[1/w] = 1/p(x), and the mean
        acceptance.
        """
        state = self._at(u)
        log_weight = torch.zeros_like(state.log_start, dtype=torch.float64)
        accepted = torch.zeros_like(state.log_start[0])
        last = len(self._betas) - 1
        for i in range(last, 0, -1):
            log_weight = log_weight + state.increment(self._betas[i] - self._betas[i - 1])
            if i > 1:
                state, acceptance = self._move(state, self._betas[i - 1], self._log_step[i - 1])
                accepted = accepted + acceptance.mean(0)
        return log_weight, accepted / max(last - 1, 1)

    def _tune(self, target: float, pilot: int) -> Float[Tensor, "temperatures batch"]:
        """Logarithms of the step sizes along the path."""
        state = self._at(self._space.draw())
        log_step = torch.full_like(state.log_start[0], -0.25 * math.log(state.u.shape[2]))
        at = torch.linspace(0, len(self._betas) - 1, pilot).round().long()
        steps = []
        for i, beta in enumerate([*self._betas[:1].repeat(SETTLING), *self._betas[at.to(self._betas.device)]]):
            state, acceptance = self._move(state, beta, log_step)
            log_step = log_step + _GAIN * (acceptance.mean(0) - target)
            if i >= SETTLING:
                steps.append(log_step)
        path = torch.stack(steps, dim=1).unsqueeze(1)  # (batch, 1, pilot)
        width = min(_SMOOTHING, pilot - 1 + pilot % 2)
        path = avg_pool1d(torch.nn.functional.pad(path, 2 * (width // 2,), mode="replicate"), width, 1)
        return interpolate(path, size=len(self._betas), mode="linear", align_corners=True)[:, 0].T

    def _move(self, state: "_State", beta: Tensor, log_step: Tensor) -> tuple["_State", Float[Tensor, "chains batch"]]:
        """One Hamiltonian move of every chain at β, and the probability with which it was accepted."""
        self._moved()
        *new, acceptance = self._trajectory(*state.tensors, beta, log_step)
        return _State(*new), acceptance

    def _leapfrogs(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """A move, all leapfrog steps of it, on tensors: a state, β, and the logarithm of the step sizes."""
        *tensors, beta, log_step = arguments
        state = new = _State(*tensors)
        jitter = 1.0 + _JITTER * (2.0 * torch.rand_like(state.log_start) - 1.0)
        step = (log_step.exp() * jitter).unsqueeze(2)
        p = torch.randn_like(state.u)
        energy = state.log_density(beta) - 0.5 * p.square().sum(2)
        kick = 0.5 * step * state.gradient(beta)
        for _ in range(self._num_leapfrog):
            p, kick, *moved = self._leap(p, kick, new.u, step, beta)
            new = _State(*moved)
        p = p + 0.5 * kick
        ratio = new.log_density(beta) - 0.5 * p.square().sum(2) - energy
        acceptance = torch.where(ratio.isnan(), 0.0, ratio.exp().clamp(max=1.0))
        return *state.replaced(new, torch.rand_like(acceptance) < acceptance).tensors, acceptance

    def _leapfrog(self, p: Tensor, kick: Tensor, u: Tensor, step: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
        """The momentum after a kick, the next kick, and the state that the momentum leads to."""
        p = p + kick
        new = self._at(u + step * p)
        return p, step * new.gradient(beta), *new.tensors

    def _at(self, u: Tensor) -> "_State":
        return _State(u, *self._space.with_gradients(u))


class _State:
    """Where the chains are, with both log-densities and their gradients there: good for every temperature."""

    def __init__(self, u: Tensor, log_start: Tensor, log_target: Tensor, start: Tensor, target: Tensor) -> None:
        self.tensors = u, log_start, log_target, start, target
        self.u, self.log_start, self.log_target = u, log_start, log_target
        self._start, self._target = start, target

    def log_density(self, beta: Tensor) -> Float[Tensor, "chains batch"]:
        # At β = 0 a target of zero density does not count: 0 · ∞ would be NaN.
        return (1.0 - beta) * self.log_start + torch.where(beta > 0, beta * self.log_target, 0.0)

    def gradient(self, beta: Tensor) -> Float[Tensor, "chains batch dim"]:
        return (1.0 - beta) * self._start + beta * self._target

    def increment(self, difference: Tensor) -> Float[Tensor, "chains batch"]:
        return difference.double() * (self.log_target.double() - self.log_start.double())

    def replaced(self, new: "_State", where: Tensor) -> "_State":
        wide = where.unsqueeze(2)
        return _State(
            torch.where(wide, new.u, self.u),
            torch.where(where, new.log_start, self.log_start),
            torch.where(where, new.log_target, self.log_target),
            torch.where(wide, new._start, self._start),
            torch.where(wide, new._target, self._target),
        )
