"""The complete state of a training run on the disk: never half-written, never trusted blindly."""

import hashlib
import io
import math
import os
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from zipfile import BadZipFile, is_zipfile

import torch
from pyro.infer import ELBO as PyroELBO

from pyrovae._checks import as_path, require_at_least, require_one_of
from pyrovae._distributed import num_processes, rank
from pyrovae._files import check_regular, check_stored, locked, replaced
from pyrovae._untrusted import MALFORMED, is_deep
from pyrovae.model._state import state_of
from pyrovae.training._describe import code_fingerprint, fingerprint, has_generator
from pyrovae.training._result import Callback
from pyrovae.training.batches import Batches
from pyrovae.training.engines import Task

Resume = Literal["auto", "must", "never"]
_NAME = re.compile(r"checkpoint-\d{10}-[0-9a-f]{16}\.pt")  # steps done, digest
_FORMAT = 4
_OF_OPTIMIZERS = ("defaults", "state", "param_groups", "step")  # and not of one of them
_LOST = "in a way that checkpoints do not keep"
_CHANGES = {
    "order of the data": f"the sampler of the DataLoader changes as it is iterated, {_LOST}: let its order follow from "
    f"torch's generator alone, as that of shuffle=True does",
    "batch_transform": f"batch_transform changes as it is called, {_LOST}: let it work from its argument and torch's "
    f"generators alone",
    "attributes of the model": f"attributes of the model change as it is trained, {_LOST}: keep those in buffers",
}
_EPOCHS_COMPARED = (0.0, 0.5, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, math.inf)  # of schedules, in epochs


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, or does not belong to this run."""


@dataclass(frozen=True)
class Checkpoint:
    """Where ``fit`` keeps the complete state of a run, how often, and when it goes on from there.

    The state: weights, optimiser, schedules, random numbers, order of the data, history, best weights. Killed at any
    moment, the same call goes on from there, to the same weights on a CPU. SIGINT and SIGTERM save before they take
    effect. One run at a time has the folder: a lock in it ends with the process (where its file system has locks).

    The same call: that of the same model, data, objective, optimiser and so on, and of the same callbacks in the same
    order. Functions are compared by their code and the values that they work with (defaults, closures, globals),
    objects by their class and state, the model by its code and public attributes, callbacks by their code alone, a
    ``Dataset`` by its first thousand items or, where it has a length, by a thousand evenly among them.

    Args:
        folder: of this run alone; made when it is missing.
        every: epochs from one checkpoint to the next.
        keep: how many are kept. A damaged one is reported, and the one before it taken.
        resume: ``"auto"`` goes on where the folder has a checkpoint, ``"must"`` needs one, ``"never"`` refuses one.

    Raises:
        TypeError: ``folder`` is no path.
        ValueError: ``every`` or ``keep`` below 1, or an unknown ``resume``.
    """

    folder: str | os.PathLike[str]
    _: KW_ONLY
    every: int = 1
    keep: int = 3
    resume: Resume = "auto"

    def __post_init__(self) -> None:
        as_path(self.folder, "folder")
        require_at_least(1, every=self.every, keep=self.keep)
        require_one_of(get_args(Resume), resume=self.resume)


class CheckpointFolder:
    """The last few states of one run, in a folder of its own.

    A file's name holds the number of steps done and the first 16 hexadecimal digits of the SHA-256 of its content. It
    is written under another name, flushed to the disk, and renamed. Files are read as tensors, numbers, strings and
    containers of them alone: one that would run code on loading (a pickle payload) is refused.

    Args:
        settings: of the run; a path means ``Checkpoint(path)``.

    Raises:
        FileNotFoundError: ``resume="must"`` and there is none.
        CheckpointError: ``resume="never"`` and there are some.
    """

    def __init__(self, settings: Checkpoint | str | os.PathLike[str]) -> None:
        settings = settings if isinstance(settings, Checkpoint) else Checkpoint(as_path(settings, "checkpoint"))
        self.folder, self.every, self._keep = Path(settings.folder), settings.every, settings.keep
        self._read_back = False
        self._damaged: list[Path] = []  # passed over; of no use once there is a newer one
        found = self._files()
        if settings.resume == "must" and not found:
            raise FileNotFoundError(
                f"there is no checkpoint in {self.folder}. With resume='auto' training begins anew."
            )
        if settings.resume == "never" and found:
            raise CheckpointError(
                f"{self.folder} holds {len(found)} checkpoint(s), the newest {found[-1].name}: pass another folder, or "
                f"resume='auto' to go on from there."
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the folder.

        Raises:
            CheckpointError: one is in it; or the folder cannot be written to.
        """
        with ExitStack() as stack:
            try:
                if rank() == 0:
                    stack.enter_context(locked(self.folder / ".lock"))
            except BlockingIOError:
                raise CheckpointError(
                    f"another run writes its checkpoints to {self.folder}: pass another folder, or wait for its end."
                ) from None
            except (OSError, ValueError) as error:
                raise CheckpointError(f"no checkpoints can be written to {self.folder}: {error}") from error
            yield

    def save(self, step: int, identity: Mapping[str, Any], state: Mapping[str, Any]) -> Path:
        """Write a state, then remove all but the newest few.

        Args:
            step: steps done.
            identity: what the run is; see :meth:`load`.
            state: tensors, numbers, strings, and containers of them.

        Raises:
            CheckpointError: it cannot be written; the checkpoints before it are as they were.
            TypeError: the state holds something else.
        """
        buffer = io.BytesIO()
        torch.save({"format": _FORMAT, "step": step, "identity": dict(identity), "state": dict(state)}, buffer)
        content = buffer.getvalue()
        if not self._read_back:  # a checkpoint that cannot be read is worth nothing: better known now
            try:
                torch.load(io.BytesIO(content), weights_only=True)
            except pickle.UnpicklingError as error:
                raise TypeError(
                    f"the state of this run holds more than tensors, numbers and strings (in the optimiser, the "
                    f"scheduler, or what a callback's state_dict gives), so it could not be loaded safely: {error}"
                ) from error
            if is_deep(dict(state), len(content)):
                raise TypeError("the state of this run is nested to more than 64 levels, in what a callback gives.")
            self._read_back = True
        path = self.folder / f"checkpoint-{step:010d}-{_digest(content)}.pt"
        try:
            for stale in self.folder.glob("checkpoint-*.part"):  # of a run that was killed while it wrote
                stale.unlink(missing_ok=True)
            with replaced(path) as temporary:
                temporary.write_bytes(content)
        except (OSError, ValueError) as error:
            before = self._files()
            intact = f"The one before it, {before[-1].name}, is intact." if before else "There is none before it."
            raise CheckpointError(f"the checkpoint after step {step} cannot be written: {error}. {intact}") from error
        whole = [other for other in self._files() if other not in self._damaged]
        for old in (*self._damaged, *whole[: -self._keep]):
            old.unlink(missing_ok=True)
        self._damaged = []
        return path

    def load(self, identity: Mapping[str, Any]) -> dict[str, Any] | None:
        """The newest state that can be read, or ``None`` to begin anew. A damaged one is reported, and passed over.

        Args:
            identity: what this run is: names to numbers, strings, or containers of them.

        Raises:
            CheckpointError: the newest one that can be read is of another run (the message names every difference);
                or there are checkpoints, and none can be read.
        """
        found = self._files()
        for path in reversed(found):
            try:
                content = self._read(path)
            except (OSError, ValueError) as error:
                warnings.warn(f"the checkpoint {path} is passed over: {error}", stacklevel=2)
                self._damaged.append(path)
                continue
            if differences := _differences(content["identity"], identity):
                raise CheckpointError(
                    f"{path} is of another run: {'; '.join(differences)}. Pass another folder to "
                    f"checkpoint=, or the arguments of that run."
                )
            return content["state"]
        if found:
            raise CheckpointError(f"none of the {len(found)} checkpoint(s) in {self.folder} can be read.")
        return None

    def _files(self) -> list[Path]:
        """Checkpoints in the order of their steps."""
        return sorted(path for path in self.folder.glob("checkpoint-*") if _NAME.fullmatch(path.name))

    def _read(self, path: Path) -> dict[str, Any]:
        check_regular(path, "checkpoint")
        with open(path, "rb") as file:  # of what is no archive no digest is taken, which may be long in coming
            try:
                whole = is_zipfile(file) and file.seek(0) == 0
            except BadZipFile:  # of one that says that it is in several parts
                whole = False
            if not whole or not path.stem.endswith(hashlib.file_digest(file, "sha256").hexdigest()[:16]):
                raise ValueError("its content is not what was written (a damaged disk, or a file changed afterwards).")
        try:
            check_stored(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, EOFError, *MALFORMED) as error:
            raise ValueError(f"it holds something other than tensors, numbers and strings: {error}") from error
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            raise ValueError("it is not a checkpoint of this version.")
        parts = isinstance(state.get("identity"), dict) and isinstance(state.get("state"), dict)
        if not parts or is_deep(state, path.stat().st_size):
            raise ValueError("it does not hold the state of a run.")
        return state


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    out = []
    for name in dict.fromkeys([*theirs, *ours]):
        a, b = theirs.get(name, "nothing"), ours.get(name, "nothing")
        if isinstance(a, dict) and isinstance(b, dict):
            out += [f"{name}: {difference}" for difference in _differences(a, b)]
        elif a != b:
            out.append(f"{name} was {a} and is {b}")
    return out


def identity(
    task: Task,
    train: Batches,
    held_out: Batches | None,
    scheduler: Any,
    callbacks: Sequence[Callback],
    *,
    batch_size: int,
    seed: int | None,
) -> dict[str, Any]:
    """Everything that must be as it was for a run to go on: numbers, strings, and containers of them.

    Raises:
        TypeError: a callback that gives its state and does not take it back.
        ValueError: data whose order or items, or a transform whose draws, a checkpoint could not keep.
    """
    for callback in callbacks:
        if hasattr(callback, "state_dict") and not hasattr(callback, "load_state_dict"):
            raise TypeError(f"callback {type(callback).__name__} has a state_dict and no load_state_dict: give it one.")
    if has_generator(train.transform):
        raise ValueError(
            "batch_transform draws from a generator of its own, whose state checkpoints do not keep: let it draw from "
            "torch's own, which fit(seed=...) seeds."
        )
    lasts = lasting(task, train)
    for batches in (train, held_out):
        if batches is not None:
            batches.check_repeats()
    model, objective, optimizer, known = task.model, task.objective, task.optimizer, _known(task)
    own = {name: v for name, v in vars(optimizer).items() if not name.startswith("_") and name not in _OF_OPTIMIZERS}
    every = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        "model": {
            **{key: model.construction[key] for key in ("class", "arguments")},
            "weights": {name: list(value.shape) for name, value in model.state_dict().items()},
            "parts": {name: str(m) for name, m in model.named_modules() if not list(m.children())},
            "code": {c.__qualname__: fingerprint(c, known) for c in dict.fromkeys(map(type, model.modules()))},
        },
        "data": train.hash(),
        "validation": None if held_out is None else held_out.hash(),
        **lasts,
        "num_steps": train.num_steps,
        "objective": None if objective is None else _describe(objective, vars(objective), known),
        "optimizer": {
            **_describe(optimizer, optimizer.defaults | own, known),
            "groups": [_group(group, optimizer.defaults) for group in optimizer.param_groups],
            "order": {str(i): known.get(id(p), "") for i, p in enumerate(every)},  # which the moments go by
        },
        "lr_schedule": None if scheduler is None else _describe(scheduler, vars(scheduler), known),
        "callbacks": [code_fingerprint(callback) for callback in callbacks],
        "batch_size": batch_size,
        "clip_norm": task.clip_norm,
        "seed": seed,
        "precision": "bfloat16" if task.autocast else "float32",
        "processes": num_processes(),
    }


def _group(group: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The size of a group of an optimiser, and its options where they are not the default."""
    own = {name: fingerprint(value) for name, value in group.items() if name not in ("params", "initial_lr")}
    return {"size": len(group["params"]), **{n: v for n, v in own.items() if v != fingerprint(defaults.get(n))}}


def lasting(task: Task, train: Batches) -> dict[str, Any]:
    """The part of :func:`identity` that must be the same after any number of epochs."""
    return {
        "order of the data": train.order(),
        "batch_transform": fingerprint(train.transform, _known(task)),
        "attributes of the model": state_of(task.model),
    }


def check_lasts(before: Mapping[str, Any], task: Task, train: Batches) -> None:
    """Look at whether the next epoch is what it will be where a run goes on.

    Raises:
        CheckpointError: something has changed that a checkpoint does not keep.
    """
    for name, now in lasting(task, train).items():
        if before[name] != now:
            raise CheckpointError(f"{_CHANGES[name]}.")


def _known(task: Task) -> dict[int, str]:
    """What is described in a place of its own, and only named in others."""
    model = task.model
    known = {id(t): f"parameter {name}" for name, t in model.named_parameters()}
    known |= {id(t): f"buffer {name}" for name, t in model.named_buffers()}
    known |= {id(m): f"part {name}" for name, m in model.named_modules()}
    return known | {id(model): "model", id(task.optimizer): "optimizer", id(task.objective): "objective"}


def _describe(thing: Any, attributes: Mapping[str, Any], known: Mapping[int, str]) -> dict[str, Any]:
    """The class and the settings of an objective, optimiser or scheduler; schedules by their values, too."""
    out: dict[str, Any] = {"class": fingerprint(type(thing), known)}
    for name, value in attributes.items():
        if id(value) not in known:
            out[name] = fingerprint(value, known)
            if isinstance(thing, PyroELBO) and callable(value):
                out[name] = [*(float(value(t)) for t in _EPOCHS_COMPARED), out[name]]
    return out
