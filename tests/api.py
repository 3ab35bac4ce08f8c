"""The public interface as text: ``python -m tests.api > tests/api.txt``, whose difference a review sees."""

import inspect
from importlib import import_module
from types import ModuleType
from typing import Any

PACKAGES = ("", "datasets", "distributions", "evaluation", "likelihoods", "model", "networks", "objectives", "plots")
PACKAGES += ("posteriors", "priors", "testing", "training", "zoo")


def lines() -> list[str]:
    """One for every name that is exported, and for every public method and property of a class among them."""
    out: list[str] = []
    seen: set[int] = set()
    for package in PACKAGES:
        module = import_module(f"pyrovae.{package}".rstrip("."))
        for name in sorted(exported(module)):
            thing = getattr(module, name)
            path = f"{module.__name__}.{name}"
            if isinstance(thing, ModuleType):
                continue
            if id(thing) in seen:
                out.append(path)  # described where it came first
                continue
            seen.add(id(thing))
            out.append(f"{path}{signature(thing)}")
            if inspect.isclass(thing):
                members = {n: m for n, m in vars(thing).items() if not n.startswith("_")}
                out += [f"{path}.{n}{signature(m)}" for n, m in sorted(members.items()) if describes(m)]
            elif isinstance(thing, dict):
                out += [f"{path}[{key!r}]" for key in thing]
    return out


def exported(module: ModuleType) -> list[str]:
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        n for n, v in vars(module).items() if not n.startswith("_") and getattr(v, "__module__", "") == module.__name__
    ]


def describes(member: Any) -> bool:
    return callable(member) or isinstance(member, (property, staticmethod, classmethod))


def signature(thing: Any) -> str:
    """Names, kinds and defaults of arguments; types are mypy's business."""
    if isinstance(thing, (staticmethod, classmethod)):
        thing = thing.__func__
    try:
        parameters = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return ""
    bare = [p.replace(annotation=p.empty) for p in parameters]
    return str(inspect.Signature([p if p.default is p.empty else p.replace(default=Shown(p.default)) for p in bare]))


class Shown:
    """A default that prints the same in every process."""

    def __init__(self, value: Any) -> None:
        self._text = repr(value) if type(value).__repr__ is not object.__repr__ else f"<{type(value).__name__}>"

    def __repr__(self) -> str:
        return self._text if " at 0x" not in self._text else "..."


if __name__ == "__main__":
    print("\n".join(lines()))
