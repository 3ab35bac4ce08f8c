"""Models whose log p(x) is known, to check estimators against: in closed form, by enumeration or by quadrature."""

import math
from typing import Any, Literal, get_args

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrovae._checks import (
    as_data,
    require_at_least,
    require_instance,
    require_not_negative,
    require_one_dtype,
    require_one_of,
    require_positive,
    require_tensors,
    require_within,
)
from pyrovae._random import restored_on_error
from pyrovae.model import VAEModel

Guide = Literal["exact", "mean_field", "detuned"]


class LinearGaussian(VAEModel):
    """z ~ N(0, I), x ~ N(W z + b, σ² I): everything about it is known.

    With Λ = I + WᵀW/σ² the posterior is N(Λ⁻¹Wᵀ(x-b)/σ², Λ⁻¹), and the best mean-field posterior has the same mean
    and variances 1/Λᵢᵢ.

    Args:
        w: ``(D, Z)``.
        b: ``(D,)``.
        noise: σ.
        guide: ``"exact"`` posterior, best ``"mean_field"``, or ``"detuned"``: the best mean-field one with its mean
            moved by ``shift`` and its scales multiplied by ``stretch``.
        shift: see ``guide``.
        stretch: see ``guide``.
    """

    def __init__(
        self,
        w: Float[Tensor, "d z"],
        b: Float[Tensor, "d"],
        noise: float,
        *,
        guide: Guide = "exact",
        shift: float = 0.3,
        stretch: float = 1.3,
    ) -> None:
        super().__init__()
        require_one_of(get_args(Guide), guide=guide)
        require_positive(noise=noise, stretch=stretch)
        require_within("(-inf, inf)", shift=shift)
        _check_lines(w, b)
        self.event_shape = (len(w),)
        self.w, self.b, self.noise = nn.Parameter(w), nn.Parameter(b), noise
        self.guide_kind = guide
        self.shift, self.stretch = (shift, stretch) if guide == "detuned" else (0.0, 1.0)

    @classmethod
    @torch.no_grad()
    def maximum_likelihood(
        cls, x: Float[Tensor, "data d"], latent_dim: int, *, noise: float | None = None, guide: Guide = "mean_field"
    ) -> "LinearGaussian":
        """Probabilistic PCA: the model of highest likelihood for ``x`` (Tipping & Bishop 1999, eqs. 7 and 8).

        With eigenvalues λ and eigenvectors U of the data's covariance, W = U max(λ - σ², 0)^½ and σ² is the mean of
        the eigenvalues left out. The columns of W are orthogonal, so the posterior is factorised: the mean-field guide
        is exact. A column is zero, and its latent not used, where λ ≤ σ². Computed in float64.

        Args:
            x: data ``(N, D)``.
            latent_dim: Z.
            noise: σ, where it is given and not found.
            guide: as in the constructor.

        Raises:
            ValueError: no eigenvalue over that is left out, or all of these are 0: the likelihood has no maximum.
        """
        require_at_least(1, latent_dim=latent_dim)
        require_one_of(get_args(Guide), guide=guide)
        if noise is not None:
            require_positive(noise=noise)
        x = as_data(x, "x")
        if x.dim() != 2:
            raise ValueError(f"x must have shape (N, D); got {tuple(x.shape)}.")
        d = x.shape[1]
        if latent_dim > d or (latent_dim == d and noise is None):
            raise ValueError(f"latent_dim must be under {d}, the dimension of x, for σ² to be found; got {latent_dim}.")
        values, vectors = torch.linalg.eigh(torch.cov(x.double().T, correction=0).reshape(d, d))
        values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)[:, :latent_dim]
        variance = values[latent_dim:].mean() if noise is None else torch.tensor(float(noise)).double().square()
        if not variance > 1e-12 * values[0]:
            raise ValueError(
                f"x has data in {latent_dim} dimensions or fewer, so that the likelihood grows without bound as σ "
                f"goes to 0: take a smaller latent_dim, or give noise a positive value."
            )
        w = vectors * (values[:latent_dim] - variance).clamp(min=0.0).sqrt()
        return cls(w.to(x.dtype), x.double().mean(0).to(x.dtype), variance.sqrt().item(), guide=guide)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.w.new_zeros(self.w.shape[1]), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.w.T + self.b, self.noise).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        precision, mean = self.precision(), self.posterior_mean(x)
        if self.guide_kind == "exact":
            q = dist.MultivariateNormal(mean, precision_matrix=precision)
        else:
            q = dist.Normal(mean + self.shift, self.stretch * precision.diagonal().rsqrt()).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", q)

    def precision(self) -> Float[Tensor, "z z"]:
        """Λ, the posterior's precision matrix."""
        identity = torch.eye(self.w.shape[1], dtype=self.w.dtype, device=self.w.device)
        return identity + self.w.T @ self.w / self.noise**2

    def posterior_mean(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch z"]:
        """Λ⁻¹Wᵀ(x-b)/σ²."""
        return torch.linalg.solve(self.precision(), ((x - self.b) @ self.w / self.noise**2).T).T

    @torch.no_grad()
    def exact_log_px(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch"]:
        """log N(x; b, WWᵀ + σ²I), computed in float64."""
        w, b = self.w.double(), self.b.double()
        covariance = w @ w.T + self.noise**2 * torch.eye(len(w), dtype=w.dtype, device=w.device)
        return torch.distributions.MultivariateNormal(b, covariance).log_prob(x.double())

    @torch.no_grad()
    def approximation_gap(self) -> float:
        """log p(x) - ELBO of the best mean-field posterior: ½ (Σ ln Λᵢᵢ - ln |Λ|), the same for every x."""
        precision = self.precision().double()
        return 0.5 * (precision.diagonal().log().sum() - precision.logdet()).item()

    @torch.no_grad()
    def squared_cv(self) -> float:
        """Relative variance of the best mean-field posterior's importance weights, |Λ|/√(|D| |2Λ-D|) - 1 with
        D = diag Λ; infinite unless 2Λ - D is positive definite.
        """
        precision = self.precision().double()
        diagonal = precision.diagonal().diag()
        difference = 2.0 * precision - diagonal
        if torch.linalg.eigvalsh(difference)[0] <= 0:
            return math.inf
        log_ratio = precision.logdet() - 0.5 * (diagonal.logdet() + difference.logdet())
        return math.expm1(log_ratio.item())


class BetaBernoulli(VAEModel):
    """θ ~ Beta(a, b), n coin flips x: a conjugate model whose latent is neither normal nor a vector.

    Args:
        n: flips per datum.
        a: prior successes.
        b: prior failures.
        detune: added to both parameters of the guide's Beta; 0 for the exact posterior.
    """

    def __init__(self, n: int, a: float = 2.0, b: float = 3.0, detune: float = 0.0) -> None:
        super().__init__()
        require_at_least(1, n=n)
        require_positive(a=a, b=b)
        require_not_negative(detune=detune)
        self.event_shape = (n,)
        self.prior = nn.Parameter(torch.tensor([a, b]))
        self.detune = detune

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            theta = pyro.sample("theta", dist.Beta(self.prior[0], self.prior[1]))
            pyro.sample("x", dist.Bernoulli(theta.unsqueeze(-1)).expand([*theta.shape, x.shape[-1]]).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        heads = x.sum(-1)
        with pyro.plate("data", len(x)):
            a = self.prior[0] + heads + self.detune
            pyro.sample("theta", dist.Beta(a, self.prior[1] + x.shape[-1] - heads + self.detune))

    @torch.no_grad()
    def exact_log_px(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch"]:
        """ln B(a + heads, b + tails) - ln B(a, b), in float64."""
        a, b = self.prior.double()
        heads = x.double().sum(-1)
        return _log_beta(a + heads, b + x.shape[-1] - heads) - _log_beta(a, b)


class DiscreteMixture(VAEModel):
    """k ~ Categorical(π), x ~ Bernoulli(pₖ): a discrete latent, summed over exactly.

    Args:
        log_weights: unnormalised ln π, ``(K,)``.
        logits: of the Bernoullis, ``(K, D)``.
    """

    def __init__(self, log_weights: Float[Tensor, "k"], logits: Float[Tensor, "k d"]) -> None:
        super().__init__()
        require_tensors(finite=True, log_weights=log_weights, logits=logits)
        require_one_dtype(log_weights=log_weights, logits=logits)
        if logits.dim() != 2 or log_weights.shape != logits.shape[:1] or not logits.numel():
            came = f"{tuple(log_weights.shape)} and {tuple(logits.shape)}"
            raise ValueError(f"log_weights and logits must have shapes (K,) and (K, D); got {came}.")
        self.event_shape = (logits.shape[1],)
        self.log_weights, self.logits = nn.Parameter(log_weights), nn.Parameter(logits)
        self.encoder = nn.Linear(logits.shape[1], logits.shape[0])

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=self.log_weights))
            pyro.sample("x", dist.Bernoulli(logits=self.logits[k]).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=self.encoder(x)))

    def exact_log_px(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch"]:
        """ln Σ_k πₖ p(x | k), in float64, with gradients."""
        log_likelihood = dist.Bernoulli(logits=self.logits.double()).to_event(1).log_prob(x.double().unsqueeze(1))
        return (log_likelihood + self.log_weights.double().log_softmax(0)).logsumexp(1)


class LinearMixture(VAEModel):
    """z ~ Σ_k π_k N(μ_k, τ² I), x ~ N(W z + b, σ² I): a posterior with as many modes, known exactly.

    The guide is one normal: the exact posterior of the first component alone, its scales multiplied by ``stretch``.

    Args:
        weights: π, ``(K,)``.
        means: μ, ``(K, Z)``.
        spread: τ.
        w: ``(D, Z)``.
        b: ``(D,)``.
        noise: σ.
        stretch: see above.
    """

    def __init__(
        self,
        weights: Float[Tensor, "k"],
        means: Float[Tensor, "k z"],
        spread: float,
        w: Float[Tensor, "d z"],
        b: Float[Tensor, "d"],
        noise: float,
        stretch: float = 1.0,
    ) -> None:
        super().__init__()
        require_positive(spread=spread, noise=noise, stretch=stretch)
        _check_lines(w, b)
        require_tensors(finite=True, weights=weights, means=means)
        require_one_dtype(weights=weights, means=means, w=w, b=b)
        if weights.dim() != 1 or means.shape != (*weights.shape, w.shape[1]):
            came = f"{tuple(weights.shape)} and {tuple(means.shape)}"
            raise ValueError(f"weights and means must have shapes (K,) and (K, {w.shape[1]}); got {came}.")
        self.event_shape = (len(w),)
        self.weights, self.means, self.spread = nn.Parameter(weights), nn.Parameter(means), spread
        self.w, self.b, self.noise, self.stretch = nn.Parameter(w), nn.Parameter(b), noise, stretch

    def model(self, x: Tensor) -> None:
        component = dist.Normal(self.means, self.spread).to_event(1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(self.weights), component))
            pyro.sample("x", dist.Normal(z @ self.w.T + self.b, self.noise).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        identity = torch.eye(self.w.shape[1], dtype=self.w.dtype, device=self.w.device)
        precision = identity / self.spread**2 + self.w.T @ self.w / self.noise**2
        pull = (x - self.b) @ self.w / self.noise**2 + self.means[0] / self.spread**2
        mean = torch.linalg.solve(precision, pull.T).T
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(mean, precision_matrix=precision / self.stretch**2))

    @torch.no_grad()
    def exact_log_px(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch"]:
        """log Σ_k π_k N(x; W μ_k + b, τ² WWᵀ + σ² I), in float64."""
        w = self.w.double()
        covariance = self.spread**2 * w @ w.T + self.noise**2 * torch.eye(len(w), dtype=w.dtype, device=w.device)
        centres = self.means.double() @ w.T + self.b.double()
        terms = torch.distributions.MultivariateNormal(centres, covariance).log_prob(x.double().unsqueeze(1))
        return (terms + self.weights.double().log() - self.weights.double().sum().log()).logsumexp(1)


@torch.no_grad()
def grid_log_px(
    model: VAEModel, x: Float[Tensor, "batch *event"], *, site: str = "z", half_width: float = 6.0, points: int = 301
) -> Float[Tensor, "batch"]:
    """log p(x) by the trapezoidal rule over a square of a two-dimensional latent, in float64.

    The rule converges faster than any power of the spacing as long as p(x, z) is smooth on that scale and vanishes
    at the edge; compare two spacings to see that it has.

    Args:
        model: a model with one latent site of event shape ``(2,)``.
        x: data ``(B, *event_shape)``.
        site: the latent site.
        half_width: the square is [-half_width, half_width]².
        points: grid points per side.
    """
    require_instance(VAEModel, model=model)
    require_positive(half_width=half_width)
    require_at_least(2, points=points)
    require_instance(str, site=site)
    x = as_data(x, "x", model.event_shape, dtype=model.placement.dtype)
    half_width = float(half_width)
    axis = torch.linspace(-half_width, half_width, points, device=x.device, dtype=x.dtype)
    grid = torch.cartesian_prod(axis, axis).unsqueeze(1)  # (points², 1, 2)
    total = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
    with restored_on_error():
        model.log_joint(x[:1], latents={site: grid[:1].expand(-1, 1, -1)})  # draws what site does not name, and fails
    for part in grid.split(max(1, 2**21 // x.numel())):
        latents = {site: part.expand(-1, len(x), -1)}
        total = torch.logaddexp(total, model.log_joint(x, latents=latents).double().logsumexp(0))
    return total + 2.0 * math.log(2.0 * half_width / (points - 1))


def _check_lines(w: Any, b: Any) -> None:
    """Raise unless these are a matrix ``(D, Z)`` and a vector ``(D,)``."""
    require_tensors(finite=True, w=w, b=b)
    require_one_dtype(w=w, b=b)
    if w.dim() != 2 or b.shape != w.shape[:1] or not w.numel():
        raise ValueError(f"w and b must have shapes (D, Z) and (D,); got {tuple(w.shape)} and {tuple(b.shape)}.")


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
