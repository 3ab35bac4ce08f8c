"""Whether data lie where the likelihood has mass."""

from typing import Any

import torch

from pyrovae.distributions.independent import innermost
from pyrovae.model.log_terms import LogTerms


def check_support(terms: LogTerms, name: str = "x") -> None:
    """Raise a ``ValueError`` if an observed value lies outside its likelihood's support."""
    for site, p in terms.likelihood.items():
        element = innermost(p)
        try:
            support: Any = element.support
        except NotImplementedError:  # a distribution that does not state it
            continue
        value = terms.observed[site]
        inside = support.check(value)
        if not bool(inside.all()):
            bad = value[~inside] if inside.shape == value.shape else value
            fix = ""
            if isinstance(element, torch.distributions.Bernoulli):
                fix = " Binarise the data (datasets.load(..., binarize=...)) or use another likelihood."
            raise ValueError(
                f"{name} holds {int((~inside).sum())} value(s) outside the support of the likelihood at site "
                f"{site!r} ({type(element).__name__}: {support}), e.g. {bad.flatten()[0].item():.6g}.{fix}"
            )


def is_discrete(p: Any) -> bool:
    """Whether a distribution is a probability mass function, as far as it states its support."""
    try:
        return bool(p.support.is_discrete)
    except (NotImplementedError, AttributeError):
        return False
