"""The quantiser against its formulas, computed by hand."""

import math

import pytest
import torch

from pyrovae.networks import VectorQuantizer, code_counts, perplexity


def quantizer(codebook: list[list[float]], **options) -> VectorQuantizer:
    q = VectorQuantizer(len(codebook), len(codebook[0]), **options)
    q.codebook.copy_(torch.tensor(codebook))
    return q


def test_the_nearest_code_by_brute_force() -> None:
    torch.manual_seed(0)
    q = VectorQuantizer(13, 5).double().eval()
    v = torch.randn(7, 3, 4, 5, dtype=torch.float64)
    expected = (v.unsqueeze(-2) - q.codebook).square().sum(-1).argmin(-1)
    out = q(v)
    assert torch.equal(out.codes, expected)
    assert torch.equal(out.vectors, q.codebook[expected])  # to the last bit
    torch.testing.assert_close(out.commitment, (v - q.codebook[expected]).square().sum(-1))


def test_the_gradient_passes_straight_through() -> None:
    torch.manual_seed(0)
    q = VectorQuantizer(6, 3).double()
    v = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, dtype=torch.float64)
    q.eval()
    (gradient,) = torch.autograd.grad((q(v).vectors * weight).sum(), v)
    assert torch.equal(gradient, weight)  # d vectors / d v is the identity
    jacobian = torch.autograd.functional.jacobian(lambda u: q(u).vectors, v)
    assert torch.equal(jacobian.reshape(12, 12), torch.eye(12, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(q(v).commitment.sum(), v)
    torch.testing.assert_close(gradient, 2.0 * (v - q.codebook[q.nearest(v)]).detach())


def test_running_means_by_hand() -> None:
    q = quantizer([[0.0, 0.0], [10.0, 0.0], [99.0, 99.0]], decay=0.75, dead_below=0.0)
    q.counts.copy_(torch.tensor([2.0, 4.0, 1.0]))
    q.sums.copy_(q.counts.unsqueeze(-1) * q.codebook)
    out = q(torch.tensor([[1.0, 1.0], [3.0, -1.0], [8.0, 4.0]]))
    assert out.codes.tolist() == [0, 0, 1]
    assert out.vectors.tolist() == [[0.0, 0.0], [0.0, 0.0], [10.0, 0.0]]  # the codebook before it moved
    # N = 0.75 N + 0.25 n; m = 0.75 m + 0.25 s
    torch.testing.assert_close(q.counts, torch.tensor([2.0, 3.25, 0.75]))
    torch.testing.assert_close(q.sums, torch.tensor([[1.0, 0.0], [32.0, 1.0], [74.25, 74.25]]))
    torch.testing.assert_close(q.codebook, torch.tensor([[0.5, 0.0], [32 / 3.25, 1 / 3.25], [99.0, 99.0]]))


def test_the_running_mean_converges_to_the_mean_of_its_vectors() -> None:
    torch.manual_seed(0)
    q = quantizer([[-1.0], [1.0]], decay=0.9, dead_below=0.0)
    v = torch.cat([torch.randn(50, 1) - 8.0, torch.randn(30, 1) + 5.0])
    for _ in range(200):
        q(v)
    torch.testing.assert_close(q.codebook, torch.stack([v[:50].mean(0), v[50:].mean(0)]))
    torch.testing.assert_close(q.counts, torch.tensor([50.0, 30.0]))


def test_nothing_changes_in_evaluation() -> None:
    torch.manual_seed(0)
    q = VectorQuantizer(4, 2).eval()
    before = {name: value.clone() for name, value in q.state_dict().items()}
    v = torch.randn(50, 2)
    random = torch.get_rng_state()
    q(v)
    assert all(torch.equal(before[name], value) for name, value in q.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_the_first_batch_fills_the_codebook() -> None:
    torch.manual_seed(0)
    q = VectorQuantizer(8, 2, decay=0.99)
    v = 100.0 + torch.randn(64, 2)
    q(v)
    assert (torch.cdist(q.codebook, v).amin(-1) < 1.0).all()  # randn would be a hundred away


def test_dead_codes_restart_on_vectors_of_the_batch_and_live_ones_stay() -> None:
    torch.manual_seed(0)
    q = quantizer([[0.0, 0.0], [1.0, 1.0], [500.0, 500.0]], decay=0.9, dead_below=0.1)
    v = torch.rand(30, 2)  # an equal share is 10: dead is under 1
    q.counts.copy_(torch.tensor([10.0, 1.01, 0.99]))
    q.sums.copy_(q.counts.unsqueeze(-1) * q.codebook)
    out = q(v)
    assert (out.vectors[out.codes == 2].unsqueeze(1) == v).all(-1).any(-1).all()  # it lay on a vector of the batch
    n = torch.bincount(out.codes, minlength=3)
    assert n[2] > 0
    torch.testing.assert_close(q.counts, 0.9 * torch.tensor([10.0, 1.01, 10.0]) + 0.1 * n)
    s = v[out.codes == 1].sum(0)
    torch.testing.assert_close(q.codebook[1], (0.9 * 1.01 + 0.1 * s) / (0.9 * 1.01 + 0.1 * n[1]))


def test_an_unused_code_dies_and_restarts() -> None:
    torch.manual_seed(0)
    q = quantizer([[0.0], [50.0]], decay=0.9, dead_below=0.1)
    v = torch.rand(20, 1)
    q.counts.fill_(10.0)
    q.sums.copy_(q.counts.unsqueeze(-1) * q.codebook)
    # 10 · 0.9ⁿ < 0.1 · 10 from n = 22 on.
    for _ in range(22):
        q(v)
        assert q.codebook[1] == pytest.approx(50.0)
    q(v)
    assert 0.0 <= q.codebook[1] <= 1.0


def test_without_restarts_an_unused_code_stays_where_it_is_for_good() -> None:
    q = quantizer([[0.0], [50.0]], decay=0.0, dead_below=0.0)
    for _ in range(3):
        q(torch.ones(4, 1))
    assert q.counts.tolist() == [4.0, 0.0]
    assert q.codebook.tolist() == [[1.0], [50.0]]


def test_perplexity_and_counts_of_known_codes() -> None:
    codes = torch.tensor([[0, 0], [1, 1], [3, 3], [2, 2]])
    assert code_counts(codes, 6).tolist() == [2, 2, 2, 2, 0, 0]
    assert perplexity(code_counts(codes, 6)) == pytest.approx(4.0)
    assert perplexity(torch.tensor([7, 0, 0])) == pytest.approx(1.0)
    assert perplexity(torch.tensor([3, 1])) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    for bad in (torch.tensor([6]), torch.tensor([-1]), torch.tensor([0.5])):
        with pytest.raises(ValueError, match="integers from 0 to 5"):
            code_counts(bad, 6)
    with pytest.raises(ValueError, match="all zero"):
        perplexity(torch.zeros(3))


def test_bfloat16_does_not_reach_the_codebook() -> None:
    torch.manual_seed(0)
    a, b = VectorQuantizer(8, 4), VectorQuantizer(8, 4)
    b.load_state_dict(a.state_dict())
    v = torch.randn(100, 4)
    torch.manual_seed(1)
    a(v)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        b(v)
    assert torch.equal(a.codebook, b.codebook)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"num_codes": 1}, "num_codes"),
        ({"code_dim": 0}, "code_dim"),
        ({"decay": 1.0}, "decay"),
        ({"decay": -0.1}, "decay"),
        ({"dead_below": 1.0}, "dead_below"),
    ],
)
def test_bad_options_are_named(options: dict, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        VectorQuantizer(**{"num_codes": 4, "code_dim": 2} | options)
