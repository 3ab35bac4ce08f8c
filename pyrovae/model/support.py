"""Whether data lie where the likelihood has mass."""

from typing import Any

import torch
from torch import Tensor

from pyrovae.model.log_terms import LogTerms


def check_support(terms: LogTerms, x: Tensor, name: str = "x") -> None:
    """Raise a ``ValueError`` if ``x`` has values outside the support of a likelihood of its shape."""
    for site, p in terms.likelihood.items():
        if p.event_shape != x.shape[1:]:
            continue
        element = p
        while isinstance(element, torch.distributions.Independent):
            element = element.base_dist
        support: Any = element.support
        inside = support.check(x)
        if not bool(inside.all()):
            bad = ~inside.expand(x.shape)
            fix = ""
            if isinstance(element, torch.distributions.Bernoulli):
                fix = " Binarise the data (datasets.load(..., binarize=...)) or use another likelihood."
            raise ValueError(
                f"{name} holds {int(bad.sum())} value(s) outside the support of the likelihood at site "
                f"{site!r} ({type(element).__name__}: {support}), e.g. {x[bad][0].item():.6g}.{fix}"
            )
