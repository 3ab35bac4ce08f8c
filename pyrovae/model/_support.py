"""Checks that data lie where the likelihood has mass."""

from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution

from pyrovae.distributions._capabilities import capabilities, family, innermost, space, support_of, varies
from pyrovae.distributions._discrete import OnLevels
from pyrovae.model._log_terms import LogTerms, log_terms, sample_sites
from pyrovae.model._modes import local_parameters
from pyrovae.model._pairing import check_masks
from pyrovae.model._rows import BadRows, Numbers, as_fields, named


def checked_terms(
    model: Any,
    x: Tensor,
    *covariates: Any,
    num_particles: int = 1,
    name: str = "x",
    whole: Tensor | None = None,
    numbers: Numbers = None,
) -> LogTerms:
    """Compare data with the likelihood's support, and return the model's terms. Nothing is scored before, since torch
    indexes by data.

    Args:
        model: a :class:`~pyrovae.VAEModel`.
        x: data ``(B, *event_shape)``.
        covariates: passed to model and guide.
        num_particles: K.
        name: what errors call ``x``.
        whole: data that ``x`` is the beginning of, to be compared with the support too.
        numbers: of the rows, for errors; by default from 0.

    Raises:
        ValueError: an observed value outside its likelihood's support, latents that guide and model mask differently,
            what :func:`log_terms` finds.
    """
    with local_parameters():
        options = {"num_particles": num_particles, "max_plate_nesting": model.max_plate_nesting}
        terms = log_terms(model.model, model.guide, x, *covariates, **options)
        check_masks(terms.masks)
        names = {id(value): field for field, value in as_fields(x, covariates, name).items()}
        for site, p in terms.likelihood.items():
            value = terms.observed[site]
            of = names.get(id(value), name)
            check_values(site, p, value if whole is None or value is not x else whole, of, numbers)
        return terms.read()


def check_observed(model: Any, x: Tensor, *covariates: Any, name: str = "x", numbers: Numbers = None) -> None:
    """Raise a ``ValueError`` if an observed value lies outside its likelihood's support, of a model that need not be a
    pair with its guide.
    """
    with local_parameters():
        drawn = poutine.trace(model.guide).get_trace(x, *covariates)
        scored = poutine.trace(poutine.replay(model.model, trace=drawn)).get_trace(x, *covariates)
    names = {id(value): field for field, value in as_fields(x, covariates, name).items()}
    for site, found in sample_sites(scored).items():
        if found["is_observed"]:
            check_values(site, found["fn"], found["value"], names.get(id(found["value"]), name), numbers)


def check_densities(terms: LogTerms) -> None:
    """Raise a ``ValueError`` where log p(x, z) - log q(z | x) is no log-weight: the guide puts all mass on one point of
    a continuum, where log q(z | x) is infinite, or model and guide draw a site on different spaces.
    """
    made = any(site not in terms.prior for site in terms.posterior)  # of auxiliary draws, with their density
    for site, p in terms.prior.items():
        q = terms.posterior[site]
        of_p, of_q = capabilities(p), capabilities(q)
        known = all(can.support is not None and not can.point_mass for can in (of_p, of_q))
        if known and space(of_p.support) != space(of_q.support):
            raise ValueError(
                f"site {site!r} is {space(of_p.support)} in the model ({family(p)}) and "
                f"{space(of_q.support)} in the guide ({family(q)}): their densities do not compare. "
                f"Give the guide a distribution on the same space."
            )
        if of_q.point_mass and not made and not (of_p.discrete or of_p.point_mass):
            raise ValueError(
                f"site {site!r} of the guide is a point mass ({family(q)}) on a continuum, which has "
                f"no density: no log p(x) follows from it. Use a guide with a density, e.g. a narrow Normal."
            )


def check_values(site: str, likelihood: Distribution, value: Tensor, name: str = "x", numbers: Numbers = None) -> None:
    """Raise a ``ValueError`` if a value lies outside the support of the likelihood at ``site``. Where the support
    depends on the latents, such a value is possible, and has likelihood zero.
    """
    element = innermost(likelihood)
    support = support_of(element)
    if support is None or varies(support):
        return
    inside = support.check(value)
    if not bool(inside.all()):
        bad = value[~inside] if inside.shape == value.shape else value
        row = int((~inside).nonzero()[0, 0]) if inside.dim() else 0
        fix = ""
        if isinstance(element, torch.distributions.Bernoulli):
            fix = " Binarise the data (datasets.load(..., binarize=...)) or use another likelihood."
        shown = getattr(support, "base_constraint", support)  # a mixture's is its components'
        if isinstance(shown, OnLevels):
            fix = " Quantise the data, or set the likelihood's num_levels to what they have."
        raise BadRows(
            f"{name} holds {int((~inside).sum())} value(s) outside the support of the likelihood at site "
            f"{site!r} ({type(element).__name__}: {shown}), e.g. {bad.flatten()[0].item():.6g}."
            f" The first is in {named([row], numbers)}.{fix}"
        )


def fixed_support(terms: LogTerms, x: Tensor) -> tuple[str, Distribution] | None:
    """The observed site and its likelihood, if ``x`` itself is all that is observed and the support is a constant.

    Then other data can be checked without running the model.
    """
    match list(terms.likelihood.items()):
        case [(site, p)] if terms.observed[site] is x and not (terms.is_masked or varies(support_of(innermost(p)))):
            return site, p
    return None
