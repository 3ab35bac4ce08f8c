"""Work on one batch after another by the best means there are: what fails is left out, one thing at a time."""

import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from pyrovae._capture import CannotRecord, Capture
from pyrovae._distributed import rank
from pyrovae._graph import first_line, is_worthwhile, users_line
from pyrovae.model.modes import full_precision
from pyrovae.objectives import Objective
from pyrovae.training.engines.program import Program, Untraceable
from pyrovae.training.engines.task import Task
from pyrovae.training.engines.work import Results, Work
from pyrovae.training.trainable import NothingTrains

Means = Literal["graph", "code", "capture"]
_LOST = {
    "graph": "training goes through Pyro step by step, because this step cannot be traced",
    "code": "the step is a graph without machine code, because that cannot be made of it",
    "capture": "the step is not captured as a CUDA graph, because it cannot be",
}
_PERTURBED = 3  # runs that measure what rounding does to a loss
_ROUNDING = 16.0  # units in the last place that a sum may be off
_STRAY = 10.0  # times that, by which two equal runs may differ, through sums in another order
_MARGIN = 50.0  # of rounding everywhere, some units in the last place at each operation, over that of parameters alone


class Engine:
    """A piece of :class:`Work`, done again and again.

    It is traced as a graph, the graph is lowered to machine code, and that is captured as one CUDA graph, as far as
    this is wanted and works. Every epoch the graph is checked against Pyro at the same draws; batches of another size
    than most (the ragged last) go through Pyro.

    Args:
        task: what the work is done on.
        work: the work.
        means: what is wanted: a ``"graph"``, machine ``"code"`` of it, its ``"capture"``.
        name: as the user knows the engine.
        calls: how often it will be done, where machine code is only wanted if it pays; else ``None``.
        batch_size: rows of a whole batch, where that is known.
    """

    def __init__(
        self,
        task: Task,
        work: Work,
        means: Iterable[Means],
        name: str,
        calls: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.task, self.work, self.means, self.name = task, work, set(means), name
        self.calls, self._batch_size = calls, batch_size
        self.seconds = 0.0  # that making it took
        self._shape: Any = None
        self._program: Program | None = None
        self._capture: Capture | None = None
        self._recorded: Any = None  # what the capture was made of
        self._rounding: tuple[float, float] | None = None
        self._unchecked = True
        self._difference = "not compared"
        if "capture" in self.means and task.device.type != "cuda":
            self._lose("capture", Untraceable(f"CUDA graphs need a CUDA device, and the model is on {task.device}"))

    @property
    def in_use(self) -> str:
        """``"off"`` (Pyro), ``"graph"``, ``"inductor"``, ``"cudagraph(graph)"`` or ``"cudagraph"``."""
        if "graph" not in self.means or self._program is None:
            return "off"
        if "capture" in self.means:
            return "cudagraph" if self._program.is_code else "cudagraph(graph)"
        return "inductor" if self._program.is_code else "graph"

    def begin_epoch(self) -> None:
        """Take note of whatever may have changed since the last batch."""
        self._unchecked = True
        self.work.begin_epoch()

    def __call__(self, *raw: Tensor) -> None:
        """Do the work on a batch.

        Raises:
            NotFinite: see :meth:`Work.finish`.
        """
        if "graph" in self.means and self._is_whole(*raw) and self._unchecked:
            with self._timed():
                self._check(*raw)
        if "graph" not in self.means or not self._is_whole(*raw):
            self.work.finish(self.work.eager(*raw), *raw)
        elif "capture" not in self.means:
            self._compute(*raw)
        else:
            self._launch(*raw)

    def _is_whole(self, *raw: Tensor) -> bool:
        """Whether the batch has the shape that is traced: that of a whole batch, whichever comes first."""
        shape = [(t.shape, t.dtype) for t in raw]
        if self._shape is None and self._batch_size in (None, len(raw[0])):
            self._shape = shape
        return shape == self._shape

    def _compute(self, *raw: Tensor) -> None:
        assert self._program is not None
        self._program.fill()
        self.work.finish(self._program(*raw), *raw)

    def _launch(self, *raw: Tensor) -> None:
        """The work as one CUDA graph."""
        assert self._program is not None
        self._program.fill()
        made_of = self._program, self._program.is_code, self.work.numbers
        if self._capture is None or made_of != self._recorded:
            self._capture = Capture(
                self._all_of_it if self.work.finish_is_recordable else self._program, self.task.device
            )
            self._recorded = made_of
        try:
            with self._timed(not self._capture.is_recorded):
                results = self._capture(*raw)
        except CannotRecord as error:
            self._capture = None
            self._lose("capture", error.reason)
            return self._compute(*raw)
        if not self.work.finish_is_recordable:
            self.work.finish(results, *raw)
        return None

    def _all_of_it(self, *raw: Tensor) -> None:
        assert self._program is not None
        self.work.finish(self._program(*raw), *raw)

    # -- making and checking it ----------------------------------------------------------------------------

    def _check(self, *raw: Tensor) -> None:
        """Trace what is not traced yet, or no longer what Pyro computes; do without what does not help."""
        self._unchecked = False
        try:
            if self._program is not None and not self._program.is_stale and self._agrees(*raw):
                return
            self._build(*raw)  # for the first time, or because something was changed between epochs, by a callback say
        except NothingTrains:
            with self._nothing_changes():
                self.work.eager(*raw)  # says so as well, unless it is the graph alone
            self._lose("graph", Untraceable("its loss depends on parameters, and that of the graph on none"))
        except Exception as error:
            self._lose("graph", error)

    def _build(self, *raw: Tensor) -> None:
        self._program, self._capture = Program(self.task, self.work.pure, *raw), None
        self.task.optimizer.zero_grad(set_to_none=True)  # no gradients of what is no longer trained
        if "code" in self.means and (self.calls is None or is_worthwhile(self._program.module, self.calls)):
            try:
                self._program.compile(*raw)
                self._require_agreement(*raw)
            except Exception as error:
                self._lose("code", error)
                self._program.uncompile()
            else:
                return
        self._require_agreement(*raw)

    def _lose(self, means: Means, error: Exception) -> None:
        """Do without from now on, with a warning."""
        self.means -= {"graph", "code", "capture"} if means == "graph" else {means}
        if means == "graph":
            self._program = self._capture = None
            if self.name == "auto" and not isinstance(self.task.objective, (Objective, type(None))):
                return  # of Pyro's objectives nobody expects it
        if rank() > 0:
            return
        cause = str(error) if isinstance(error, Untraceable) else f"{first_line(error)}{users_line(error)}"
        warnings.warn(f"compile={self.name!r}: {_LOST[means]}: {cause}", stacklevel=2)

    @contextmanager
    def _timed(self, really: bool = True) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if really:
            if self.task.device.type == "cuda":
                torch.cuda.synchronize(self.task.device)
            self.seconds += time.perf_counter() - start

    @contextmanager
    def _nothing_changes(self) -> Iterator[None]:
        """Random state, buffers and gradients are put back: those of a captured step stay where it writes them."""
        before = [(p, p.grad) for p in self.task.model.parameters()]
        try:
            with self.task.nothing_changes():
                yield
        finally:
            for p, gradient in before:
                p.grad = gradient

    def _require_agreement(self, *raw: Tensor) -> None:
        if not self._agrees(*raw):
            raise Untraceable(
                f"its loss or gradient differs from Pyro's at the same draws ({self._difference}): something in the "
                f"model, the objective or batch_transform changes from call to call other than through torch"
            )

    def _agrees(self, *raw: Tensor) -> bool:
        """Whether the program's loss and gradients are Pyro's, at the same draws, up to rounding."""
        assert self._program is not None
        self._program.fill()
        with _reproducible(), self._nothing_changes():
            theirs = _copied(self.work.eager(*raw))
        with _reproducible(), self._nothing_changes():
            ours = self._program(*raw)
        if [r is None for r in ours] != [r is None for r in theirs]:
            self._difference = "in which parameters it depends on"
            return False
        loss = theirs[0]
        assert loss is not None
        if not bool(loss.isfinite()):
            return bool(torch.allclose(ours[0], loss, equal_nan=True))  # type: ignore[arg-type]
        off = _distance(ours, theirs)
        self._difference = f"by {off[0]:.2g} nats, and {off[1]:.2g} in the gradient"
        if off == (0.0, 0.0):
            return True
        known = self._rounding
        if known is not None and all(d <= m for d, m in zip(off, known, strict=True)):
            return True
        measured = self._rounding = self._measure(theirs, *raw)  # at these weights
        if all(d <= m for d, m in zip(off, measured, strict=True)):
            return True
        self._difference += f", where rounding explains {measured[0]:.2g} and {measured[1]:.2g}"
        return False

    def _measure(self, theirs: Results, *raw: Tensor) -> tuple[float, float]:
        """How far rounding can move the loss, and the gradient: how far they move when every parameter moves to a
        neighbouring number. Nowhere, if they do not stay put when nothing moves.
        """
        dtype = torch.bfloat16 if self.task.autocast else self.task.model.like().dtype
        eps, size = (
            torch.finfo(dtype).eps,
            _distance(theirs, [None if r is None else torch.zeros_like(r) for r in theirs]),
        )
        least = [_ROUNDING * eps * s for s in size]
        with _reproducible(), self._nothing_changes():
            again = _distance(self.work.eager(*raw), theirs)
        if any(d > _STRAY * m for d, m in zip(again, least, strict=True)):
            return least[0], least[1]
        most = least
        parameters = [p for p in self.task.parameters if p.is_floating_point()]
        before = [p.detach().clone() for p in parameters]
        generator = torch.Generator().manual_seed(0)
        for _ in range(_PERTURBED):
            with torch.no_grad():
                for p, own in zip(parameters, before, strict=True):
                    sign = torch.randint(0, 2, p.shape, generator=generator).to(p) * 2.0 - 1.0
                    p.copy_(own * (1.0 + eps * sign))
            try:
                with _reproducible(), self._nothing_changes():
                    moved = _distance(self.work.eager(*raw), theirs)
            finally:
                with torch.no_grad():
                    for p, own in zip(parameters, before, strict=True):
                        p.copy_(own)
            most = [max(m, _MARGIN * d) for m, d in zip(most, moved, strict=True)]
        return most[0], most[1]


def _copied(results: Results) -> Results:
    return [None if r is None else r.detach().clone() for r in results]


def _distance(a: Results, b: Results) -> tuple[float, float]:
    """Of two losses, and of all else together."""
    squares = [
        torch.zeros((), dtype=torch.float64) if x is None or y is None else (x.double() - y.double()).square().sum()
        for x, y in zip(a, b, strict=True)
    ]
    rest = [s.to(squares[0].device) for s in squares[1:]]
    both = torch.stack([squares[0], sum(rest, torch.zeros_like(squares[0]))]).sqrt().tolist()
    return both[0], both[1]


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
