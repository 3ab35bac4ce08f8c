"""Whether a graph computes what Pyro does: at the same draws, up to rounding, which is measured."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pyrovae._compat.torch import full_precision
from pyrovae.training.engines._work import Results, Work

# A kernel's functions are off by a few units in the last place, a sum by the square root of its terms: the loss and its
# gradient are the image of such errors at every operation. The image of one unit in every parameter is what can be
# measured, and the rest is bounded by the margin. A step that draws other numbers is off by a thousand times as much.
_MARGIN_RATIO = 50.0
_NUM_PERTURBATIONS = 3  # draws of the parameters' errors
_SUM_ROUNDING_ULPS = 16.0  # units in the last place that a sum may be off by itself
_MAX_STRAY_RATIO = 10.0  # times that, by which two equal runs may differ, through sums in another order

Distance = tuple[float, ...]  # of losses, of gradients, of buffers


class Check:
    """Comparison of a program with the same work through Pyro.

    Args:
        work: the work; what it is done on stays as it is.

    Attributes:
        difference: what the last comparison found, in words.
    """

    def __init__(self, work: Work) -> None:
        self._task, self._work = work.task, work
        self._rounding: Distance | None = None  # relative to what it was measured at
        self.difference = "not compared"

    def agrees(self, program: Callable[..., Results], *raw: Tensor) -> bool:
        """Whether loss, gradients and buffers after it are those of :meth:`Work.eager`."""
        theirs, ours = self._outcome(self._work.eager, *raw), self._outcome(program, *raw)
        if [r is None for r in ours[0]] != [r is None for r in theirs[0]]:
            self.difference = "in which parameters it depends on"
            return False
        loss = theirs[0][0]
        assert loss is not None
        if not bool(loss.isfinite()):
            return bool(torch.allclose(ours[0][0], loss, equal_nan=True))  # type: ignore[arg-type]
        off = _distance(ours, theirs)
        self.difference = f"by {off[0]:.2g} nats, {off[1]:.2g} in the gradient, {off[2]:.2g} in buffers"
        if not any(off):
            return True
        results, buffers = ([None if r is None else torch.zeros_like(r) for r in part] for part in theirs)
        size = _distance(theirs, (results, buffers))
        if self._rounding is not None and all(d <= r * s for d, r, s in zip(off, self._rounding, size, strict=True)):
            return True
        measured = self._measure(theirs, size, *raw)  # at these weights
        self._rounding = tuple(m / s if s else 0.0 for m, s in zip(measured, size, strict=True))
        self.difference += f", where rounding explains {', '.join(f'{m:.2g}' for m in measured)}"
        return all(d <= m for d, m in zip(off, measured, strict=True))

    def _outcome(self, compute: Callable[..., Results], *raw: Tensor) -> tuple[Results, Results]:
        """Results, and buffers after them."""
        with _reproducible(), self._task.nothing_changes():
            results = _copied(compute(*raw))
            return results, _copied(self._task.model.buffers())

    def _measure(self, theirs: tuple[Results, Results], size: Distance, *raw: Tensor) -> Distance:
        """How far rounding can move loss, gradients and buffers: how far they move when every parameter moves to a
        neighbouring number. Nowhere, if they do not stay put when nothing moves.
        """
        eps = torch.finfo(torch.bfloat16 if self._task.autocast else self._task.model.placement.dtype).eps
        most = tuple(_SUM_ROUNDING_ULPS * eps * s for s in size)
        again = _distance(self._outcome(self._work.eager, *raw), theirs)
        if any(d > _MAX_STRAY_RATIO * m for d, m in zip(again, most, strict=True)):
            return most
        parameters = [p for p in self._task.parameters if p.is_floating_point()]
        before = [p.detach().clone() for p in parameters]
        generator = torch.Generator().manual_seed(0)
        for _ in range(_NUM_PERTURBATIONS):
            try:
                for p, own in zip(parameters, before, strict=True):
                    sign = torch.randint(0, 2, p.shape, generator=generator).to(own) * 2.0 - 1.0
                    p.data.copy_(own * (1.0 + eps * sign))
                moved = _distance(self._outcome(self._work.eager, *raw), theirs)
            finally:
                for p, own in zip(parameters, before, strict=True):
                    p.data.copy_(own)
            most = tuple(max(m, _MARGIN_RATIO * d) for m, d in zip(most, moved, strict=True))
        return most


def _copied(tensors: Iterable[Tensor | None]) -> Results:
    return [None if t is None else t.detach().clone() for t in tensors]


def _distance(a: tuple[Results, Results], b: tuple[Results, Results]) -> Distance:
    """Of two losses, of all gradients together, of all buffers together."""

    def of(some: Results, others: Results) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for x, y in zip(some, others, strict=True):
            if x is not None and y is not None:
                x, y = (t.to_dense().to(torch.complex128 if t.is_complex() else torch.float64) for t in (x, y))
                equal = (x == y) | (x.isnan() & y.isnan())
                total = total.to(x.device) + torch.where(equal, 0.0, x - y).abs().square().sum()
        return total.sqrt()

    parts = ((a[0][:1], b[0][:1]), (a[0][1:], b[0][1:]), (a[1], b[1]))
    distances = [of(some, others) for some, others in parts]
    return tuple(torch.stack([d.to(distances[0].device) for d in distances]).tolist())


@contextmanager
def _reproducible() -> Iterator[None]:
    """What Pyro and a graph can agree on: no TF32, the same convolutions every time."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        with full_precision():
            yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
