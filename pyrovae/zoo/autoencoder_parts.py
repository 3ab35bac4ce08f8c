"""What an autoencoder is made of besides its two networks: activations, errors, corruptions, penalties, tied layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrovae._checks import lookup

if TYPE_CHECKING:
    from pyrovae.zoo.autoencoders import Autoencoder


class Activation(NamedTuple):
    """A layer and, for the Jacobian by formula, its derivative as a function of what comes in."""

    layer: Callable[[], nn.Module]
    derivative: Callable[[Tensor], Tensor]


ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(nn.Identity, torch.ones_like),
    "relu": Activation(nn.ReLU, lambda a: (a > 0).to(a)),
    "sigmoid": Activation(nn.Sigmoid, lambda a: a.sigmoid() * (-a).sigmoid()),
    "softplus": Activation(nn.Softplus, torch.sigmoid),
    "tanh": Activation(nn.Tanh, lambda a: 1.0 - a.tanh().square()),
}


def squared_error(out: Float[Tensor, "batch features"], x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch"]:
    """½‖x − out‖²: −log N(x; out, 1) in nats, without its constant."""
    return 0.5 * (out - x).square().sum(-1)


def bernoulli_error(out: Float[Tensor, "batch features"], x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch"]:
    """−log p(x) in nats under Bernoullis with logits ``out``."""
    return nn.functional.binary_cross_entropy_with_logits(out, x, reduction="none").sum(-1)


ERRORS = {"squared_error": squared_error, "bernoulli": bernoulli_error}


class Transposed(nn.Module):
    """An affine layer with the transposed weights of another one and a bias of its own."""

    def __init__(self, of: nn.Linear) -> None:
        super().__init__()
        self.of = of
        self.bias = nn.Parameter(torch.zeros(of.in_features))

    @property
    def weight(self) -> Tensor:
        """``(out_features, in_features)``, as a ``Linear`` has it."""
        return self.of.weight.T

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


# -- corruptions ---------------------------------------------------------------------------------------------


class Corruption(nn.Module):
    """Noise that a denoising autoencoder is trained to undo (Vincent et al. 2008, ICML). Calling it always corrupts;
    an :class:`Autoencoder` calls it in training mode only.
    """

    @abstractmethod
    def forward(self, x: Float[Tensor, "*batch_event"]) -> Float[Tensor, "*batch_event"]:
        """``x`` with noise, drawn by torch's generator."""


class GaussianNoise(Corruption):
    """x + ε, ε ~ N(0, scale²) for every number.

    Args:
        scale: standard deviation, in the data's unit.
    """

    def __init__(self, *, scale: float = 0.3) -> None:
        super().__init__()
        self.scale = positive("scale", scale)

    def forward(self, x: Float[Tensor, "*batch_event"]) -> Float[Tensor, "*batch_event"]:
        return x + self.scale * torch.randn_like(x)


class MaskingNoise(Corruption):
    """Every number becomes 0 with probability ``fraction``: dropout on the input, without its rescaling.

    Args:
        fraction: of the numbers that are lost.
    """

    def __init__(self, *, fraction: float = 0.3) -> None:
        super().__init__()
        self.fraction = between("fraction", fraction)

    def forward(self, x: Float[Tensor, "*batch_event"]) -> Float[Tensor, "*batch_event"]:
        return x * (torch.rand_like(x) >= self.fraction)


# -- penalties -----------------------------------------------------------------------------------------------


class Penalty(nn.Module):
    """What is added to the reconstruction error of every datum, times ``weight``.

    Args:
        weight: λ.
    """

    code_activations: ClassVar[tuple[str, ...]] = tuple(ACTIVATIONS)  # for which it makes sense

    def __init__(self, *, weight: float) -> None:
        super().__init__()
        self.weight = positive("weight", weight)

    @abstractmethod
    def forward(
        self, model: Autoencoder, x: Float[Tensor, "batch features"], before: Float[Tensor, "batch code"]
    ) -> Tensor:
        """``(batch,)``, or a number for all, without the weight.

        Args:
            model: the autoencoder.
            x: what was encoded.
            before: the code before its activation.
        """


class L1Penalty(Penalty):
    """Σ_j |h_j| ‖d_j‖, where d_j is what unit j of the code feeds into the decoder's first layer.

    With ‖d_j‖ the penalty cannot be escaped by a smaller code and larger decoder weights: for a decoder of one layer,
    the loss depends on h_j d_j alone.

    Args:
        weight: λ.
    """

    def __init__(self, *, weight: float = 0.05) -> None:
        super().__init__(weight=weight)

    def forward(self, model: Autoencoder, x: Tensor, before: Tensor) -> Float[Tensor, "batch"]:
        sizes = model.decoder[0].weight.norm(dim=0)
        return (model.code_activation(before).abs() * sizes).sum(-1)


class KLPenalty(Penalty):
    """Σ_j KL(Bernoulli(ρ) ‖ Bernoulli(ρ̂_j)) in nats, where ρ̂_j is the mean activation of unit j over the batch.

    Ng 2011, CS294A lecture notes, "Sparse autoencoder". Activations must lie between 0 and 1: a sigmoid's.

    Args:
        weight: β in the notes.
        target: ρ.
    """

    code_activations = ("sigmoid",)

    def __init__(self, *, weight: float = 1.0, target: float = 0.05) -> None:
        super().__init__(weight=weight)
        self.target = between("target", target)

    def forward(self, model: Autoencoder, x: Tensor, before: Tensor) -> Float[Tensor, ""]:
        # By logarithms: a unit that is off for the whole batch has a finite KL and a gradient.
        off_by = torch.tensor(float(len(before))).log()
        on = nn.functional.logsigmoid(before).logsumexp(0) - off_by
        off = nn.functional.logsigmoid(-before).logsumexp(0) - off_by
        p = torch.tensor(self.target, dtype=before.dtype, device=before.device)
        return (p * (p.log() - on) + (1 - p) * ((-p).log1p() - off)).sum()


class ContractionPenalty(Penalty):
    """‖∂h/∂x‖²_F, the squared Frobenius norm of the encoder's Jacobian.

    For an encoder of one layer by its formula, Σ_j s'(a_j)² ‖W_j‖² (Rifai et al. 2011, ICML, eq. 7); for a deep one by
    Hutchinson's unbiased estimate E‖Jᵀv‖² over random signs v. Tie the weights, or the decoder will make up for a code
    that is only smaller.

    Args:
        weight: λ.
        num_probes: vectors v per datum, for a deep encoder.
    """

    def __init__(self, *, weight: float = 0.1, num_probes: int = 1) -> None:
        super().__init__(weight=weight)
        if isinstance(num_probes, bool) or not isinstance(num_probes, int) or num_probes < 1:
            raise ValueError(f"num_probes must be an integer of at least 1; got {num_probes!r}.")
        self.num_probes = num_probes

    def forward(self, model: Autoencoder, x: Tensor, before: Tensor) -> Float[Tensor, "batch"]:
        if len(model.encoder) == 1:
            slopes = ACTIVATIONS[model.code_activation_name].derivative(before)
            return slopes.square() @ model.encoder[0].weight.square().sum(1)
        return hutchinson(lambda given: model.code_activation(model.encoder(given)), x, self.num_probes)


def hutchinson(
    function: Callable[[Tensor], Tensor], x: Float[Tensor, "batch features"], num_probes: int
) -> Float[Tensor, "batch"]:
    """An unbiased estimate of ‖∂f/∂x‖²_F for every datum: the mean of ‖Jᵀv‖² over vectors v of random signs.

    Args:
        function: ``(batch, features) -> (batch, code)``, each row from the same row.
        x: where.
        num_probes: vectors per datum.
    """
    out, pull = torch.func.vjp(function, x)
    signs = 2.0 * torch.randint(2, (num_probes, *out.shape), device=out.device).to(out.dtype) - 1.0
    return torch.vmap(pull)(signs)[0].square().sum(-1).mean(0)


def squared_jacobian_norm(
    function: Callable[[Tensor], Tensor], x: Float[Tensor, "batch features"]
) -> Float[Tensor, "batch"]:
    """‖∂f/∂x‖²_F for every datum, exactly: one pass back for each number that comes out."""
    out, pull = torch.func.vjp(function, x)
    units = torch.eye(out.shape[1], dtype=out.dtype, device=out.device)
    return sum((pull(unit.expand_as(out))[0].square().sum(-1) for unit in units), torch.zeros_like(out[:, 0]))


# -- by name -------------------------------------------------------------------------------------------------

CORRUPTIONS: dict[str, type[Corruption]] = {"gaussian": GaussianNoise, "masking": MaskingNoise}
PENALTIES: dict[str, type[Penalty]] = {"l1": L1Penalty, "kl": KLPenalty, "contraction": ContractionPenalty}


def build(registry: dict, kind: str, name: str | None, options: dict | None) -> nn.Module | None:
    """The part called ``name`` with its options, or ``None`` for ``None``.

    Raises:
        ValueError: an unknown name, an unknown option, a value out of range.
    """
    if name is None:
        if options:
            raise ValueError(f"{kind}_options are given without a {kind}: name one of {', '.join(registry)}.")
        return None
    cls = lookup(registry, name, kind)
    try:
        return cls(**(options or {}))
    except TypeError as error:
        raise ValueError(f"{kind}_options do not fit {kind} {name!r}: {error}") from error


def positive(name: str, value: float) -> float:
    """The value as a float, or a ``ValueError``."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite; got {value}.")
    return float(value)


def between(name: str, value: float) -> float:
    """The value as a float, or a ``ValueError`` unless it lies strictly between 0 and 1."""
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1, without either; got {value}.")
    return float(value)
