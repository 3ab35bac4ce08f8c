"""The page ``reference.md``, made of what the packages export: complete because nobody keeps it."""

import inspect
from importlib import import_module
from types import ModuleType
from typing import Any

PACKAGES = ("model", "training", "objectives", "evaluation", "posteriors", "priors", "likelihoods", "networks")
PACKAGES += ("distributions", "datasets", "plots", "zoo", "testing", "")
LEFT_OUT = "__init__, forward, model, guide, extra_repr"  # of models and their parts: the guide says what they are
HEAD = """# Reference

Everything that takes a `seed` is reproducible from it and leaves torch's generators as they were. Densities, losses and
bounds are in nats.
"""


def page() -> str:
    """The page in MyST: a section for every package, and in it whatever it exports, under its shortest name."""
    top, seen, out = import_module("pyrovae"), set[int](), [HEAD]
    for name in PACKAGES:
        package = import_module(f"pyrovae.{name}".rstrip("."))
        out += [f"## {package.__name__}", "", "```{eval-rst}", f".. automodule:: {package.__name__}", ""]
        for member, thing in exported(package).items():
            home = top if vars(top).get(member) is thing else package
            if id(thing) not in seen:
                out += [*entry(thing, f"{home.__name__}.{member}"), ""]
            seen.add(id(thing))
        out += ["```", ""]
    return "\n".join(out)


def exported(module: ModuleType) -> dict[str, Any]:
    """What a package exports, or a module defines, by name."""
    own = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__ and n[0] != "_"]
    things = {name: getattr(module, name) for name in getattr(module, "__all__", own)}
    return {name: thing for name, thing in things.items() if not isinstance(thing, ModuleType)}


def entry(thing: Any, path: str) -> list[str]:
    """The directive for one name."""
    if isinstance(thing, dict):
        return [f".. py:data:: {path}", "", f"   By name: {', '.join(by_name(thing, path.rpartition('.')[0]))}."]
    if not inspect.isclass(thing):
        return [f".. {'autofunction' if callable(thing) else 'autodata'}:: {path}"]
    if issubclass(thing, Exception):
        return [f".. autoexception:: {path}"]
    return [f".. autoclass:: {path}", "   :members:", f"   :exclude-members: {LEFT_OUT}"]


def by_name(registry: dict[str, Any], package: str) -> list[str]:
    """The names in a registry, each with the classes of ours that it stands for."""
    out = []
    for name, of in registry.items():
        classes = [c for c in (of if isinstance(of, tuple) else (of,)) if c.__module__.startswith("pyrovae")]
        links = dict.fromkeys(f":class:`~{package}.{c.__name__}`" for c in classes if inspect.isclass(c))
        out.append(f"``{name}`` ({', '.join(links)})" if links else f"``{name}``")
    return out
