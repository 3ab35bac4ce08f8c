import math

import numpy as np
import pytest
import torch

import pyrovae as pv
from pyrovae.evaluation import log_weights, pareto_khat
from pyrovae.evaluation.marginal import _weights as weights
from pyrovae.evaluation.marginal._tail import tail_length
from tests.models import Conditional, TwoSites, binary


@pytest.mark.parametrize("proposal", ["posterior", "prior"])
@pytest.mark.parametrize("chunks", [None, (2, 270)])
def test_are_those_that_log_marginal_sees(proposal: str, chunks, monkeypatch) -> None:
    if chunks:  # several parts of the data, several blocks of draws
        monkeypatch.setattr(weights, "plan", lambda *args: chunks)
    cases = (
        (pv.VAE((6,), 3, hidden=(16,), posterior="iaf"), (binary(5),)),
        (TwoSites(), (binary(5),)),
        (Conditional(), (binary(5), torch.randn(5, 2))),
    )
    for model, data in cases:
        options = {"num_samples": 1000, "proposal": proposal, "seed": 3}
        w = log_weights(model, *data, **options)
        assert w.shape == (1000, 5)
        assert w.dtype == torch.float64
        assert not w.requires_grad
        p = pv.log_marginal(model, *data, **options, progress=False).pointwise
        np.testing.assert_allclose(w.logsumexp(0) - math.log(1000), p["log_px"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(w.mean(0), p["elbo"], rtol=0, atol=1e-9)
        khat = pareto_khat(w.T.topk(tail_length(1000) + 1).values)
        np.testing.assert_allclose(khat, p["khat"], rtol=0, atol=1e-9)


def test_leaves_the_random_state_and_refuses() -> None:
    model, x = pv.VAE((6,), 3, hidden=(16,)), binary(5)
    model.train()
    state = torch.get_rng_state()
    first = log_weights(model, x, num_samples=20)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert torch.equal(log_weights(model, x, num_samples=20), first)
    assert not torch.equal(log_weights(model, x, num_samples=20, seed=1), first)
    with pytest.raises(TypeError, match=r"log_weights needs a pyrovae\.VAEModel"):
        log_weights(torch.nn.Linear(6, 6), x)
    with pytest.raises(ValueError, match="num_samples must be at least 1; got 0"):
        log_weights(model, x, num_samples=0)
    with pytest.raises(ValueError, match="proposal must be one of 'posterior', 'prior'; got 'q'"):
        log_weights(model, x, num_samples=5, proposal="q")
    with pytest.raises(ValueError, match="x has shape"):
        log_weights(model, binary(5, 4), num_samples=5)
