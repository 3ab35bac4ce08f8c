"""Penalties on the code of an autoencoder: sparse codes, and codes that move little with the data."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrovae._checks import require_at_least, require_positive, require_within
from pyrovae._parts import Registry
from pyrovae.zoo.autoencoder._parts import ACTIVATIONS, CodeNetworks, affine_layers


class Penalty(nn.Module, ABC):
    """A penalty on the code, added to the reconstruction error of every datum, times ``weight``.

    Args:
        weight: λ.
    """

    code_activations: ClassVar[tuple[str, ...]] = tuple(ACTIVATIONS)  # for which it makes sense

    def __init__(self, *, weight: float) -> None:
        super().__init__()
        require_positive(weight=weight)
        self.weight = float(weight)

    @abstractmethod
    def forward(
        self, networks: CodeNetworks, x: Float[Tensor, "batch features"], pre_activation: Float[Tensor, "batch code"]
    ) -> Tensor:
        """The penalty without its weight: ``(batch,)``, or one number for the whole batch.

        Args:
            networks: the autoencoder.
            x: what was encoded.
            pre_activation: its code before the activation.
        """


class L1Penalty(Penalty):
    """An L1 penalty on the code: Σ_j |h_j| ‖d_j‖, where d_j are the decoder's weights from unit j of the code.

    With ‖d_j‖ the penalty cannot be escaped by a smaller code and larger decoder weights: for a decoder of one layer,
    the loss depends on h_j d_j alone.

    Args:
        weight: λ.
    """

    def __init__(self, *, weight: float = 0.05) -> None:
        super().__init__(weight=weight)

    def forward(self, networks: CodeNetworks, x: Tensor, pre_activation: Tensor) -> Float[Tensor, "batch"]:
        sizes = affine_layers(networks.decoder)[0].weight.norm(dim=0)
        return (networks.code_activation(pre_activation).abs() * sizes).sum(-1)


class KLPenalty(Penalty):
    """A sparsity penalty: Σ_j KL(Bernoulli(ρ) ‖ Bernoulli(ρ̂_j)) in nats, where ρ̂_j is the mean activation of unit j
    over the batch.

    Ng 2011, CS294A lecture notes, "Sparse autoencoder". Activations must lie between 0 and 1: a sigmoid's.

    Args:
        weight: β in the notes.
        target: ρ.
    """

    code_activations = ("sigmoid",)

    def __init__(self, *, weight: float = 1.0, target: float = 0.05) -> None:
        super().__init__(weight=weight)
        require_within("(0, 1)", target=target)
        self.target = float(target)

    def forward(self, networks: CodeNetworks, x: Tensor, pre_activation: Tensor) -> Float[Tensor, ""]:
        # By logarithms: a unit that is off for the whole batch has a finite KL and a gradient.
        off_by = math.log(len(pre_activation))
        on = nn.functional.logsigmoid(pre_activation).logsumexp(0) - off_by
        off = nn.functional.logsigmoid(-pre_activation).logsumexp(0) - off_by
        p = self.target
        return (p * (math.log(p) - on) + (1 - p) * (math.log1p(-p) - off)).sum()


class ContractionPenalty(Penalty):
    """The contractive penalty ‖∂h/∂x‖²_F, the squared Frobenius norm of the encoder's Jacobian.

    For an encoder of one layer by its formula, Σ_j s'(a_j)² ‖W_j‖² (Rifai et al. 2011, ICML, eq. 7); for a deep one by
    Hutchinson's unbiased estimate E‖Jᵀv‖² over random signs v. Tie the weights, or the decoder will make up for a code
    that is only smaller.

    Args:
        weight: λ.
        num_probes: vectors v per datum, for a deep encoder.
    """

    def __init__(self, *, weight: float = 0.1, num_probes: int = 1) -> None:
        super().__init__(weight=weight)
        require_at_least(1, num_probes=num_probes)
        self.num_probes = num_probes

    def forward(self, networks: CodeNetworks, x: Tensor, pre_activation: Tensor) -> Float[Tensor, "batch"]:
        if len(networks.encoder) == 1:
            slopes = ACTIVATIONS[networks.code_activation_name].derivative(pre_activation)
            return slopes.square() @ affine_layers(networks.encoder)[0].weight.square().sum(1)
        return hutchinson(lambda given: networks.code_activation(networks.encoder(given)), x, self.num_probes)


def hutchinson(
    function: Callable[[Tensor], Tensor], x: Float[Tensor, "batch features"], num_probes: int
) -> Float[Tensor, "batch"]:
    """An unbiased estimate of ‖∂f/∂x‖²_F for every datum: the mean of ‖Jᵀv‖² over vectors v of random signs.

    Args:
        function: ``(batch, features) -> (batch, code)``, each row from the same row.
        x: where.
        num_probes: vectors per datum.
    """
    out, pull, *_ = torch.func.vjp(function, x)
    signs = 2.0 * torch.randint(2, (num_probes, *out.shape), device=out.device).to(out.dtype) - 1.0
    return torch.vmap(pull)(signs)[0].square().sum(-1).mean(0)


def squared_jacobian_norm(
    function: Callable[[Tensor], Tensor], x: Float[Tensor, "batch features"]
) -> Float[Tensor, "batch"]:
    """The exact ‖∂f/∂x‖²_F for every datum, by one backward pass for each output."""
    out, pull, *_ = torch.func.vjp(function, x)
    units = torch.eye(out.shape[1], dtype=out.dtype, device=out.device)
    return sum((pull(unit.expand_as(out))[0].square().sum(-1) for unit in units), torch.zeros_like(out[:, 0]))


PENALTIES: Registry[Penalty] = Registry("penalty", Penalty, l1=L1Penalty, kl=KLPenalty, contraction=ContractionPenalty)
