"""Tables of what each posterior and prior can do: asked of the families themselves, so that they are always true."""

import torch

import pyrovae as pv
from pyrovae.distributions import Flow, capabilities

DIM = 4
HOW = {"exact": "yes", "numerical": "by search", None: "no"}


def pages() -> dict[str, str]:
    """The tables in Markdown, of all that is registered, by the name of the file."""
    return {
        "posterior": table("posterior", {name: of_posterior(name) for name in pv.posteriors.POSTERIORS}),
        "prior": table("prior", {name: of_prior(name) for name in pv.priors.PRIORS}),
    }


def table(head: str, rows: dict[str, dict[str, str]]) -> str:
    lines = [[head, *next(iter(rows.values()))], ["---"] * (1 + len(next(iter(rows.values()))))]
    lines += [[f"`{name}`", *cells.values()] for name, cells in rows.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def yes(answer: bool) -> str:
    return "yes" if answer else "no"


def of_posterior(name: str) -> dict[str, str]:
    vae = pv.VAE((6,), DIM, posterior=name, hidden=(8,))
    q = vae.q(torch.zeros(2, 6))
    can = capabilities(q)
    z = q.rsample()
    from_jacobian = isinstance(q, Flow) and q.score(z) is not None
    return {
        "scored at any z": HOW[can.inverse],
        "mean": "in closed form" if can.mean else "of draws",
        "KL to N(0, I)": closed(vae),
        "`stl`, `dreg`": "from the Jacobian" if from_jacobian else "at the draw",
        "`score`, `vimco`": yes(can.inverse is not None),
        "under a `vamp` prior": yes(can.inverse is not None),
        "as a `flow` prior": yes(isinstance(vae.posterior, pv.posteriors.FlowPosterior) and can.inverse is not None),
    }


def of_prior(name: str) -> dict[str, str]:
    options = {"exemplars": False} if name == "vamp" else None
    vae = pv.VAE((6,), DIM, prior=name, prior_options=options, hidden=(8,))
    prior = vae.prior
    return {
        "learnt": yes(any(p.requires_grad for p in prior.parameters())),
        "KL of `mean_field` to it": closed(vae),
        "mean": "in closed form" if capabilities(prior(vae.q)).mean else "of draws",
        "made of the posterior": yes(prior.uses_posterior),
    }


def closed(vae: pv.VAE) -> str:
    known = vae.log_terms(torch.zeros(2, 6)).closed_form_kl("z") is not None
    return "in closed form" if known else "by Monte Carlo"
