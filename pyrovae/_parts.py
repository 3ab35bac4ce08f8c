"""Registries of a model's parts, which come by name or built."""

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

from pyrovae._arguments import parameters
from pyrovae._checks import lookup, require_instance

Part = TypeVar("Part", bound=nn.Module)


class Registry(dict[str, type[Part]]):
    """A registry of the classes of one kind of part, by name, from which models build their parts.

    Args:
        kind: what the part is called: by errors, and by the arguments ``{kind}`` and ``{kind}_options`` of models.
        base: class of all of them.
        classes: by name.
    """

    def __init__(self, kind: str, base: Any, /, **classes: type[Part]) -> None:
        super().__init__(classes)
        self.kind, self.base = kind, base

    def build(self, part: Any, options: Mapping[str, Any] | None = None, /, **sizes: Any) -> Any:
        """Build the part that a name stands for, or check one that is built already.

        Args:
            part: a name or a module.
            options: keyword arguments of the class, for a part given by name.
            sizes: what the model decides: keyword arguments, to those classes that take them. A built part that has an
                attribute of that name needs the same value.

        Raises:
            TypeError: ``part`` is neither a name nor a module of this kind.
            ValueError: an unknown name, options that the class does not take, options of a part that is not given by
                name, a built part of another size.
        """
        kind = self.kind
        require_instance(Mapping | None, **{f"{kind}_options": options})
        if isinstance(part, str):
            cls = lookup(self, part, kind)
            names, takes_any, _ = parameters(cls)
            allowed = [name for name in names if name not in sizes]
            for name in options or {}:
                if name in sizes or not (takes_any or name in allowed):
                    why = ", which follows from the model's own arguments" if name in sizes and name in names else ""
                    raise ValueError(
                        f"{kind} {part!r} has options {', '.join(allowed) or '(none)'}; got {name!r}{why}."
                    )
            return cls(**{name: v for name, v in sizes.items() if takes_any or name in names}, **(options or {}))
        if options:
            raise ValueError(f"{kind}_options are for a {kind} given by name; got {type(part).__name__}.")
        if not isinstance(part, self.base):
            got = f"the class {part.__name__}: pass an instance" if isinstance(part, type) else type(part).__name__
            raise TypeError(f"{kind} must be a name or a {self.base.__name__}; got {got}.")
        check_sizes(kind, part, **sizes)
        return part


def check_sizes(kind: str, part: Any, **sizes: Any) -> None:
    """Raise a ``ValueError`` if a built part has an attribute of one of these names, and not that value."""
    for name, needed in sizes.items():
        if (size := getattr(part, name, needed)) != needed:
            raise ValueError(f"{kind} has {name}={size}; this model needs {needed}: build it with {name}={needed}.")
