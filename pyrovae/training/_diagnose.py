"""Where a loss that is not finite comes from."""

import torch
from torch import Tensor

from pyrovae.model import LossModel, VAEModel
from pyrovae.model._pairing import NotAPair
from pyrovae.training._batches import Batch


def broken_parameters(model: VAEModel | LossModel) -> list[str]:
    """Names of the trained parameters that hold NaN or infinite values."""
    return [name for name, p in model.named_parameters() if p.requires_grad and not bool(p.isfinite().all())]


def broken_buffers(model: VAEModel | LossModel) -> list[str]:
    """Names of the buffers, running means say, that hold NaN: infinities may be meant."""
    return [name for name, b in model.named_buffers() if bool(b.isnan().any())]


@torch.no_grad()
def explain(model: VAEModel | LossModel, batch: Batch, *, own_loss: bool = False) -> str:
    """One sentence: the parameters that are broken, or else the sites whose terms are, in order of computation.

    Args:
        model: the model.
        batch: ``(x, *covariates)``.
        own_loss: whether the model's ``loss`` is what was minimised.
    """
    broken = broken_parameters(model)
    if broken:
        return f"an update made parameters non-finite ({', '.join(broken[:3])}{', …' if len(broken) > 3 else ''})."
    if own_loss:
        loss: Tensor = model.loss(*batch)
        if not bool(loss.isfinite().all()):
            bad = int((~loss.isfinite()).sum())
            return f"{type(model).__name__}.loss is {_kind(loss)} for {bad} of {len(loss)} data."
    if not isinstance(model, VAEModel):
        return "it is finite at the same draws."
    try:
        terms = model.log_terms(*batch)
    except NotAPair as error:  # under one of Pyro's objectives
        return f"it has no terms by site ({error})"
    found = [
        f"{label} at site {site!r} is {_kind(term)} for {int((~term.isfinite()).any(0).sum())} of {term.shape[1]} data"
        for label, group in (
            ("log q(z|x)", terms.log_posterior),
            ("log p(z)", terms.log_prior),
            ("log p(x|z)", terms.log_likelihood),
        )
        for site, term in group.items()
        if not bool(term.isfinite().all())
    ]
    return "; ".join(found) + "." if found else "every site is finite at the same draws, so the objective is at fault."


def _kind(term: Tensor) -> str:
    return "NaN" if bool(term.isnan().any()) else "infinite"
