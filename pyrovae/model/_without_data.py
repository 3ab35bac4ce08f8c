"""Runs of a model where no data are known: it may use x for its length alone, and must know which site x stands at."""

import copy
from collections.abc import Container, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrovae._checks import as_covariates, rows_of
from pyrovae._compat.pyro import reason
from pyrovae._random import seeded
from pyrovae.distributions._capabilities import capabilities, center
from pyrovae.model._log_terms import Sites, sample_sites

_NUM_ROWS = 16  # data in a run that shows what a model is


def placeholder(model: Any, n: int) -> Tensor:
    """Zeros of the data's shape, for a model that is run without observing."""
    if model.event_shape is None:
        raise ValueError(
            f"{type(model).__name__} does not know the shape of its data: set self.event_shape in __init__."
        )
    return model.placement.new_zeros(n, *tuple(model.event_shape))


def data_site(model: Any, sites: Sites, x: Tensor, given: Container[str] = ()) -> str:
    """The name of the site that stands for the data, among those observed and not ``given``."""
    observed = {name: site for name, site in sites.items() if site["is_observed"] and name not in given}
    alike = [n for n, s in observed.items() if tuple(s["fn"].event_shape) == tuple(model.event_shape or ())]
    candidates = [n for n, s in observed.items() if s["value"] is x] or alike or list(observed)
    if candidates and observed[candidates[0]]["value"].shape == x.shape:
        return candidates[0]
    raise ValueError(
        f"no observed site of the model has values of shape (n, {', '.join(map(str, model.event_shape or ()))}), "
        f"as the data have: where x is rearranged before it is observed, sample and decode with Pyro's handlers."
    )


def sites_without_data(
    model: Any, covariates: tuple[Any, ...], *, data: bool = True, labels: bool = False
) -> tuple[str, Sites]:
    """The name of the data's site, and the model's sites where data are unknown.

    Args:
        model: a :class:`~pyrovae.VAEModel` in evaluation mode.
        covariates: as in the model, for any number of data.
        data: whether the distribution of the data matters.
        labels: whether those of other observed sites do.

    Raises:
        ValueError: a distribution that matters depends on the values of x, or a label's on what is drawn before it.
    """
    x = placeholder(model, _NUM_ROWS)
    generator, by_row = torch.Generator().manual_seed(0), (-1, *[1] * (x.dim() - 1))
    # Lookups take zeros and ones. Normal rows, of sizes from 0.1 to 1000, tell apart what agrees there.
    binary = torch.rand(x.shape, generator=generator) < torch.linspace(0, 1, _NUM_ROWS).reshape(by_row)
    normal = torch.randn(x.shape, generator=generator) * torch.logspace(-1, 3, _NUM_ROWS).reshape(by_row)
    sites, others = _run(model, x, covariates), _run(model, binary.to(x), covariates)
    name = data_site(model, sites, x)
    at: dict[str, list[Tensor]] = {}
    for site, run in sites.items():
        if not run["is_observed"]:
            at[site] = []
        elif data if site == name else labels:  # at its mean, too: where 0 and 1 are impossible they tell nothing
            middle = None if capabilities(run["fn"]).discrete else center(run["fn"])
            at[site] = [v for v in (run["value"], others[site]["value"], middle) if v is not None]
    _check_same(sites, others, at)
    if labels and any(run["is_observed"] for site, run in sites.items() if site != name):
        _check_labels(sites, _run(model, x, covariates, seed=1), name)
    first = sites
    try:
        if x.device.type != "cpu":  # CUDA does not recover from a lookup out of range
            model, covariates = copy.deepcopy(model).cpu(), as_covariates(covariates, None, x.cpu())
            first = _run(model, x.cpu(), covariates)
        second = _run(model, normal.to(model.placement), covariates)
    except Exception:  # whatever a model says of numbers that it was not made for
        return name, sites
    _check_same(first, second, at)
    return name, sites


def _run(model: Any, x: Tensor, covariates: tuple[Any, ...], *, seed: int = 0) -> Sites:
    """Run a model on made-up data, and on a few rows of the covariates, over and over: its sites."""
    shortest = min((len(c) for c in covariates if isinstance(c, Tensor) and c.dim()), default=1)
    some = rows_of(covariates, torch.arange(_NUM_ROWS) % shortest)
    with seeded(seed), pyro.distributions.validation_enabled(False):
        try:
            return sample_sites(poutine.trace(model.model).get_trace(x, *some))
        except (IndexError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"the model fails without data, on an x of zeros or ones of shape {tuple(x.shape)} and {x.dtype}: "
                f"{reason(error)} Use x in it for its length alone, and pass what else it needs as a covariate."
            ) from error


def _check_same(sites: Sites, others: Sites, values: Mapping[str, list[Tensor]]) -> None:
    """Raise a ``ValueError`` where the distribution of a site differs between two runs on different x: of an observed
    one at the values given, of a latent one as its draws show.
    """
    for name, at in values.items():
        site, other = sites[name], others[name]
        same = site["is_observed"] or torch.equal(site["value"], other["value"])
        if not (same and all(_same_density(site, other, value) for value in at)):
            raise ValueError(
                f"the distribution of site {name!r} depends on the values of x, which are not known where data are "
                f"drawn or latents decoded. Pass what it needs as a covariate; where dimensions are drawn given "
                f"those before them, use pyrovae.distributions.Autoregressive."
            )


def _check_labels(sites: Sites, others: Sites, data: str) -> None:
    """Raise a ``ValueError`` where another observed site's distribution differs between two runs of different draws."""
    for name, site in sites.items():
        if site["is_observed"] and name != data and not _same_density(site, others[name], site["value"]):
            raise ValueError(
                f"site {name!r} is observed and depends on what is drawn before it: data given {name!r} need draws "
                f"from p(z | {name}), which drawing site by site does not give. Give the model obs=None for it, and "
                f"it is drawn too, or let the latents depend on {name!r} instead."
            )


def _same_density(site: dict[str, Any], other: dict[str, Any], value: Tensor) -> bool:
    """Whether two sites give a value the same log-density."""
    a, b = (s["fn"].log_prob(value.to(site["value"].device)) for s in (site, other))
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, equal_nan=True)
