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
from pyrovae.objectives import Objective
from pyrovae.training._optimizers import NothingTrains
from pyrovae.training.batches import Batch
from pyrovae.training.engines._check import Check
from pyrovae.training.engines._program import Program, Untraceable
from pyrovae.training.engines._work import Work

Means = Literal["graph", "code", "capture"]
_CALLS_BETWEEN_CHECKS = 100  # at least: a check costs as much as three steps through Pyro
_WARNINGS = {
    "graph": "{} goes through Pyro step by step, because this step cannot be traced",
    "code": "{} goes by a graph without machine code, because that cannot be made of it",
    "capture": "{} is not captured as a CUDA graph, because it cannot be",
}


class Engine:
    """A piece of :class:`Work`, done again and again.

    It is traced as a graph, the graph is lowered to machine code, and that is captured as one CUDA graph, as far as
    this is wanted and works. Every epoch the graph is checked against Pyro at the same draws, in short epochs without
    callbacks every few of them; batches of another size than most (the ragged last) go through Pyro.

    Args:
        work: the work.
        means: what is wanted: a ``"graph"``, machine ``"code"`` of it, its ``"capture"``.
        name: as the user knows the engine.
        calls: how often it will be done, where machine code is only wanted if it pays; else ``None``.
        watched: whether callbacks may change anything between epochs.
    """

    def __init__(
        self, work: Work, means: Iterable[Means], name: str, calls: int | None = None, watched: bool = True
    ) -> None:
        self.watched = watched
        self.task, self.work, self.means, self.name, self.calls = work.task, work, set(means), name, calls
        self.seconds = 0.0  # that making it took
        self._shape: Any = None
        self._program: Program | None = None
        self._capture: Capture | None = None
        self._recorded: Any = None  # what the capture was made of
        self._pyro = Check(work)
        self._unchecked, self._calls_since = True, 0
        device = work.task.device
        if "capture" in self.means and device.type != "cuda":
            self._lose("capture", Untraceable(f"CUDA graphs need a CUDA device, and the model is on {device}"))

    @property
    def in_use(self) -> str:
        """``"off"`` (Pyro), ``"graph"``, ``"inductor"``, ``"cudagraph(graph)"`` or ``"cudagraph"``."""
        if "graph" not in self.means or self._program is None:
            return "off"
        if "capture" in self.means:
            return "cudagraph" if self._program.code else "cudagraph(graph)"
        return "inductor" if self._program.code else "graph"

    def begin_epoch(self) -> None:
        """Take note of whatever may have changed since the last batch."""
        self._unchecked = True
        self.work.begin_epoch()

    def __call__(self, batch: Batch) -> None:
        """Do the work on a batch.

        Raises:
            NotFinite: see :meth:`Update.finish`.
        """
        whole = "graph" in self.means and self._is_whole(*batch.raw)
        if whole and self._unchecked:
            with self._timed():
                self._check(*batch.raw)
        self._calls_since += whole
        if not whole or (program := self._program) is None:
            self.work.finish(self.work.eager(*batch.raw), batch)
            return
        if "capture" not in self.means or not self._launch(program, batch):
            self.work.finish(program(*batch.raw), batch)

    def _is_whole(self, *raw: Tensor) -> bool:
        """Whether the batch has the shape that is traced: that of a whole batch, whichever comes first."""
        shape = [(t.shape, t.dtype) for t in raw]
        if self._shape is None and self.work.batches.size in (None, len(raw[0])):
            self._shape = shape
        return shape == self._shape

    def _launch(self, program: Program, batch: Batch) -> bool:
        """Do the work as one CUDA graph, if it can be."""

        def all_of_it(*raw: Tensor) -> None:
            self.work.finish(program(*raw), Batch(raw, len(raw[0])))  # with several processes it is not recordable

        program.fill()  # which a launch does not
        made_of = program, program.code, self.work.numbers
        if self._capture is None or made_of != self._recorded:
            recordable = all_of_it if self.work.finish_is_recordable else program
            self._capture, self._recorded = Capture(recordable, self.task.device), made_of
        try:
            with self._timed(self._capture.graph is None):
                results = self._capture(*batch.raw)
        except CannotRecord as error:
            self._capture = None
            self._lose("capture", error.args[0])
            return False
        if not self.work.finish_is_recordable:
            self.work.finish(results, batch)
        return True

    def _check(self, *raw: Tensor) -> None:
        """Trace what is not traced yet, or no longer what Pyro computes; do without what does not help."""
        self._unchecked = False
        try:
            if self._program is not None and not self._program.is_stale:
                if not self.watched and self._calls_since < _CALLS_BETWEEN_CHECKS:
                    return
                self._calls_since = 0
                if self._pyro.agrees(self._program, *raw):
                    return
            self._build(*raw)  # for the first time, or because something was changed between epochs, by a callback say
        except NothingTrains:
            with self.task.nothing_changes():
                self.work.eager(*raw)  # says so as well, unless it is the graph alone
            self._lose("graph", Untraceable("its loss depends on parameters, and that of the graph on none"))
        except Exception as error:
            self._lose("graph", error)

    def _build(self, *raw: Tensor) -> None:
        program, self._capture = Program(self.task, self.work.pure, *raw), None
        self._program = program
        if "code" in self.means and (self.calls is None or is_worthwhile(program.module, self.calls)):
            try:
                program.compile(*raw)
                self._require_agreement(program, *raw)
            except Exception as error:
                self._lose("code", error)
                program.code = None
            else:
                return
        self._require_agreement(program, *raw)

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
        warnings.warn(f"compile={self.name!r}: {_WARNINGS[means].format(self.work.name)}: {cause}", stacklevel=2)

    @contextmanager
    def _timed(self, really: bool = True) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if really:
            if self.task.device.type == "cuda":
                torch.cuda.synchronize(self.task.device)
            self.seconds += time.perf_counter() - start

    def _require_agreement(self, program: Program, *raw: Tensor) -> None:
        if not self._pyro.agrees(program, *raw):
            raise Untraceable(
                f"its loss or gradient differs from Pyro's at the same draws ({self._pyro.difference}): something in "
                f"the model, the objective or batch_transform changes from call to call other than through torch"
            )
