"""Nothing that is passed by mistake surprises: it is refused at once, by one sentence that names the argument.

Every public callable has a recipe (``recipes.py``), which says what each argument takes. Whatever else is passed must
raise a ``ValueError`` or ``TypeError`` of the package's own, with nothing changed; what is right must go through.
``PYROVAE_FUZZ=full`` passes everything to every argument; otherwise it is a sample. The counts:
``python -m tests.fuzz.test_bad_inputs``.
"""

import inspect
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyrovae as pv
from tests.api import PACKAGES, exported
from tests.fuzz.kinds import GENERATED, POOL, Kind, of_shape
from tests.fuzz.recipes import CASES, KINDS, Case

FULL = os.environ.get("PYROVAE_FUZZ") == "full"
SECONDS = float(os.environ.get("PYROVAE_FUZZ_SECONDS", 30))  # after which a call has hung
PACKAGE = str(Path(pv.__file__).parent)

# Called at every step, or by what the package has checked: a check would cost, or come twice.
STEPS = {
    "a density's or a network's work on a tensor, at every step": (
        "forward log_prob rsample expand model guide loss p q transforms orthonormal distribution embed nearest "
        "quantize "
        "logits call_and_ladj log_abs_det_jacobian steps locate log_base exact_log_px posterior_mean check_values step "
        "softplus_scale"
    ),
    "an objective's, of terms that are checked": (
        "per_datum weights surrogate surrogate_loss bound_loss differentiable_loss loss_and_grads decompose weight "
        "settled check"
    ),
    "for authors of estimators, inside the run that has checked": (
        "advance average block_bytes collect draws graph part plan reseed within rows unflattened of same_density"
    ),
    "a mode of torch's": "train",
}
# Made by the package, for users to read.
RECORDS = {
    "AISResult",
    "BDMCResult",
    "Calibration",
    "CollapseReport",
    "Disentanglement",
    "ElboTerms",
    "FitResult",
    "GapsResult",
    "LogTerms",
    "MarginalResult",
    "NonFiniteLoss",
    "Data",
    "Capabilities",
    "Provenance",
    "Result",
    "Latents",
    "Quantized",
    "RateParts",
    "DCI",
    "CheckpointError",
}
# Not called as they are: subclasses that are go through their constructors.
ABSTRACT = {
    "VAEModel",
    "LossModel",
    "Chart",
    "Objective",
    "Schedule",
    "Likelihood",
    "Posterior",
    "FlowPosterior",
    "Prior",
    "Corruption",
    "Penalty",
}
# Arguments whose names may stand in any sentence.
PROSE = re.compile(
    "a|b|x|n|p|q|w|z|by|end|start|data|prior|posterior|models?|network|encoder|decoder|values?|name|path|weight|scale|"
    "function|shift|reference|results?|report|target|columns?|steps|like|support|base|codes?|title|noise|root|given|"
    "options|parts|every|keep|likelihood|counts|latents"
)
ELSEWHERE = {
    "pyrovae.CollapseMonitor.load_state_dict": "a checkpoint's, which has been read and checked",
    "pyrovae.model.log_terms": "the waist, at every step; VAEModel.log_terms checks",
    "pyrovae.distributions.MultivariateNormal": "Pyro's constructor",
    "pyrovae.distributions.Autoregressive.sample": "a density's work, at every step",
    "pyrovae.distributions.ContinuousBernoulli.sample": "a density's work, at every step",
    "pyrovae.distributions.DiscretizedLogistic.sample": "a density's work, at every step",
    "pyrovae.distributions.Levels.sample": "a density's work, at every step",
    "pyrovae.distributions.PointMass.sample": "a density's work, at every step",
}


def public() -> Iterator[tuple[str, Any]]:
    """Everything public that takes arguments, once each, by its first name."""
    seen: set[Any] = set()
    for package in PACKAGES:
        module = import_module(f"pyrovae.{package}".rstrip("."))
        for name in exported(module):
            thing = getattr(module, name)
            if isinstance(thing, (ModuleType, dict)) or not callable(thing) or id(thing) in seen:
                continue
            seen.add(id(thing))
            yield f"{module.__name__}.{name}", thing
            for member in sorted(dir(thing)) if inspect.isclass(thing) else ():
                own = inspect.getattr_static(thing, member)
                method = getattr(own, "__func__", own)
                known = not inspect.isfunction(method) or not method.__module__.startswith("pyrovae") or method in seen
                if not member.startswith("_") and not known and len(inspect.signature(method).parameters) > 1:
                    seen.add(method)
                    yield f"{module.__name__}.{name}.{member}", method


def exempt(path: str, thing: Any) -> bool:
    name = path.rsplit(".", 1)[1]
    steps = {member for members in STEPS.values() for member in members.split()}
    is_method = path.count(".") > (2 if path.split(".")[1] in PACKAGES else 1)
    if is_method or name == "softplus_scale":
        return (name in steps or path in ELSEWHERE) and path not in CASES
    return name in RECORDS | ABSTRACT or path in ELSEWHERE or (callable(thing) and not arguments_of(thing))


def arguments_of(thing: Any) -> list[str]:
    return [name for name in inspect.signature(thing).parameters if name not in ("self", "cls", "_instance")]


def target(path: str, case: Case) -> Callable[..., Any]:
    """What a recipe calls."""
    owner, name = path.rsplit(".", 1)
    if case.of is not None:
        return getattr(case.of(), name)
    return getattr(import_module(owner), name)


def kind_of(case: Case, argument: str) -> Kind:
    return case.kinds[argument] if argument in case.kinds else KINDS[argument]


def call(path: str, case: Case, argument: str, value: Any) -> tuple[Callable[[], Any], list[Any]]:
    """The recipe's call, with one argument replaced, and the modules that it is about."""
    function, chosen = target(path, case), case.given()
    modules = [m for m in (*chosen.values(), getattr(function, "__self__", None)) if isinstance(m, torch.nn.Module)]
    parameters = inspect.signature(function).parameters
    if "progress" in parameters or path in (
        "pyrovae.refit_posterior",
        "pyrovae.refit_prior",
        "pyrovae.zoo.pretrain",
        "pyrovae.zoo.VQVAE.fit_prior",
    ):
        chosen.setdefault("progress", False)
    positional: list[Any] = []
    starred = next((p.name for p in parameters.values() if p.kind is p.VAR_POSITIONAL), None)
    if starred is not None:
        before = [p for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        positional = [value if p.name == argument else chosen.pop(p.name, p.default) for p in before]
        chosen = {name: v for name, v in chosen.items() if name not in {p.name for p in before}}
        if argument == starred:
            chosen.pop(starred, None)
            positional.append(value)
        elif starred in chosen:
            positional.append(chosen.pop(starred))
    if argument in {p.name for p in parameters.values() if p.kind is p.VAR_KEYWORD}:
        chosen["nonsense"] = value
    elif argument != starred and (starred is None or argument not in {p.name for p in before}):
        chosen[argument] = value
    for p in parameters.values():
        if p.kind is p.POSITIONAL_ONLY and p.name in chosen:
            positional.append(chosen.pop(p.name))
    return lambda: function(*positional, **chosen), modules


def state(modules: list[Any]) -> list[Any]:
    """All that a refused call must leave as it is."""
    return [
        torch.get_rng_state().numpy().tobytes(),
        np.random.get_state()[1].tobytes(),  # noqa: NPY002
        hash(random.getstate()),
        list(pyro.get_param_store()),
        pyro.settings.get(),
        torch.distributions.Distribution._validate_args,
        torch.is_grad_enabled(),
        plt.get_fignums(),
        sorted(Path().rglob("*")),
        [(m.training, {name: v.clone().tolist() for name, v in m.state_dict().items()}) for m in modules],
    ]


def too_long(*_: Any) -> None:
    raise TimeoutError(f"it ran for more than {SECONDS} seconds")


def is_named(name: str, message: str) -> bool:
    """Whether a message is about an argument: where its name is a word of ordinary prose, by more than that word."""
    word = re.escape(name)
    if not PROSE.fullmatch(name):
        return name in message if not name.isidentifier() else re.search(rf"\b{word}\b", message) is not None
    alone = rf"^{word}\b|['\"`]{word}['\"`]|^the shapes of\b.*\b{word}\b|\bunknown {word}\b"
    says = rf"\b{word}(=|\[| of shape\b|(, \w+)*( and \w+)? (must|holds?|has|have|is|are)\b)"
    return re.search(f"{alone}|{says}", message) is not None


def fault(path: str, case: Case, argument: str, value: Any) -> str | None:
    """What goes wrong when a value is passed to an argument; ``None`` where all is well."""
    kind = kind_of(case, argument)
    right = kind.takes(value)
    if right is None:
        return None
    make, modules = call(path, case, argument, value)
    before = [] if right else state(modules)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            signal.setitimer(signal.ITIMER_REAL, SECONDS, SECONDS)  # again, should it be caught
            make()
    except (ValueError, TypeError, *case.errors) as error:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if right:
            return f"refused, and it is {kind.why}: {type(error).__name__}: {error}"
        frames = traceback.extract_tb(error.__traceback__)
        names = (argument, *kind.called, *([str(value)] if isinstance(error, case.errors) else []))
        if not frames[-1].filename.startswith(PACKAGE):
            return f"an error of {Path(frames[-1].filename).name}: {type(error).__name__}: {str(error)[:100]}"
        if not any(is_named(name, str(error)) for name in names) or "\n" in str(error):
            return f"an error that does not name it: {type(error).__name__}: {str(error)[:150]}"
        if changed := [i for i, (a, b) in enumerate(zip(state(modules), before, strict=True)) if a != b]:
            return f"refused too late, when something had changed: {changed}"
        return None
    except Exception as error:  # the faults that are looked for
        frames = traceback.extract_tb(error.__traceback__)
        return f"{type(error).__name__} of {Path(frames[-1].filename).name}: {str(error)[:100]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        plt.close("all")
        if right:
            for made in Path().iterdir():
                shutil.rmtree(made) if made.is_dir() else made.unlink()
    return None if right else "accepted"


def values_for(kind: Kind, right: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield from POOL.items()
    yield from of_shape(right).items()
    for near in kind.near:
        yield f"near: {near!r:.60}", lambda near=near: near


def everything(names: Iterator[str] | list[str] | None = None) -> Iterator[tuple[str, str, str, Callable[[], Any]]]:
    for path, thing in public():
        if path in CASES and (names is None or path in names):
            given = CASES[path].given()
            for argument in arguments_of(thing):
                for label, make in values_for(kind_of(CASES[path], argument), given.get(argument)):
                    yield path, argument, label, make


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where paths that are made up lead
    signal.signal(signal.SIGALRM, too_long)


def test_everything_public_has_a_recipe() -> None:
    every = dict(public())
    missing = [path for path, thing in every.items() if path not in CASES and not exempt(path, thing)]
    assert not missing, f"no recipe for {missing}"
    assert not CASES.keys() - every.keys(), "recipes of what is not there"
    without = [
        f"{path}({name})"
        for path in CASES
        for name in arguments_of(every[path])
        if name not in CASES[path].kinds and name not in KINDS
    ]
    assert not without, f"no kind for {without}"


@pytest.mark.parametrize("path", CASES)
def test_the_recipes_are_right(path: str) -> None:
    case = CASES[path]
    function = target(path, case)
    chosen = case.given()
    first = next(iter(arguments_of(dict(public())[path])), None)
    if chosen and first in chosen:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(path, case, first, chosen[first])[0]()
    else:
        function()
    plt.close("all")


@pytest.mark.parametrize(
    ("name", "message", "named"),
    [
        ("data", "the likelihood is of counts, and the data are flags.", True),
        ("data", "integers are no data for a Bernoulli.", False),
        ("n", "n must be at least 1; got 0.", True),
        ("n", "(n, 4) is needed.", False),
        ("prior", "unknown prior 'a'. Registered: b.", True),
        ("prior", "a draw from the prior failed.", False),
        ("r", "q, r, r_tilde and b must have one dtype.", True),
        ("num_samples", "pass num_samples.", True),
    ],
)
def test_a_word_of_prose_is_no_name(name: str, message: str, named: bool) -> None:
    assert is_named(name, message) == named


def report(faults: list[str]) -> str:
    return f"{len(faults)} faults:\n" + "\n".join(faults[:40])


@pytest.mark.skipif(not FULL, reason="PYROVAE_FUZZ is not 'full'")
@pytest.mark.parametrize("path", CASES)
def test_whatever_is_passed_is_refused_by_name_or_right(path: str) -> None:
    faults = []
    for _, argument, label, make in everything([path]):
        if found := fault(path, CASES[path], argument, make()):
            faults.append(f"{argument} = {label}: {found}")
    assert not faults, report(faults)


SAMPLE = 6000 if FULL else 500


def test_a_sample_of_everything() -> None:
    """The same one in every run. What is right is not run here, as it takes its time."""
    faults, generator = [], random.Random(0)
    every = list(everything())
    for path, argument, label, make in generator.sample(every, SAMPLE):
        value = make()
        wrong = kind_of(CASES[path], argument).takes(value) is False
        if wrong and (found := fault(path, CASES[path], argument, value)):
            faults.append(f"{path}({argument} = {label}): {found}")
    assert not faults, report(faults)


ARGUMENTS = [(path, name) for path, thing in public() if path in CASES for name in arguments_of(thing)]


@settings(derandomize=True, deadline=None, max_examples=2000 if FULL else 200, database=None)
@given(st.sampled_from(ARGUMENTS), GENERATED)
def test_what_nobody_thought_of(which: tuple[str, str], value: Any) -> None:
    path, argument = which
    if kind_of(CASES[path], argument).takes(value) is False:
        found = fault(path, CASES[path], argument, value)
        assert found is None, f"{path}({argument} = {value!r:.200}): {found}"


def main() -> None:
    """Count, by what goes wrong; with names of callables, list the faults of these."""
    signal.signal(signal.SIGALRM, too_long)
    names = sys.argv[1:] or None
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for path, argument, label, make in everything(names):
            value = make()
            right = kind_of(CASES[path], argument).takes(value)
            found = fault(path, CASES[path], argument, value)
            outcome = "well" if found is None else re.split(" of |:|, ", found)[0]
            sort = {None: "left to others", True: "right", False: "bad"}[right]
            counts[sort] += 1
            counts[f"{sort}, {outcome}"] += 1
            if found is not None:
                print(f"{path}\t{argument}\t{label}\t{found}".replace("\n", " "), flush=True)
    for outcome, count in sorted(counts.items()):
        print(f"{count:6d}  {outcome}", file=sys.stderr)


if __name__ == "__main__":
    main()
