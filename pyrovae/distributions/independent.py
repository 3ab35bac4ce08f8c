"""What lies under ``Independent``."""

from typing import Any

from torch.distributions import Independent


def innermost(p: Any) -> Any:
    """The distribution that ``p`` declares independent dimensions of, however often."""
    while isinstance(p, Independent):
        p = p.base_dist
    return p
