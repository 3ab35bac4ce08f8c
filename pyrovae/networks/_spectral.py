"""The spectral regulariser: the largest singular values of a network's weights."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrovae._checks import require_at_least, require_instance
from pyrovae._compat.torch import ConvNd

_INITIAL_ITERATIONS = 20  # at least, on the initial weights


class SpectralSum(nn.Module):
    """The sum Σ σ_max(W) over the linear and convolutional layers of a network: the spectral regularisation of NVAE
    (Vahdat & Kautz 2020, arXiv:2007.03898, sec. 3.2, after Yoshida & Miyato 2017).

    A convolution's weight is taken as the matrix ``(out, in · height · width)``. Every call makes a few power
    iterations from where the last one stopped, so that the estimate follows weights that change slowly. It is
    σ = uᵀ W v at unit vectors, never above the true value; no gradient passes through u and v, so W gets u vᵀ. Where
    the penalty has pressed several singular values together it lags: some percent in tests that train by nothing else.
    Weights of one shape are multiplied together.

    Args:
        network: whose layers; the weights stay its own.
        iterations: power iterations per call.

    Raises:
        ValueError: a network without such layers.
    """

    def __init__(self, network: nn.Module, *, iterations: int = 4) -> None:
        super().__init__()
        require_instance(nn.Module, network=network)
        require_at_least(1, iterations=iterations)
        self.iterations = iterations
        self.names: dict[tuple[int, int], list[str]] = {}
        for name, layer in network.named_modules():
            if isinstance(layer, (nn.Linear, ConvNd)):
                rows, columns = layer.weight.flatten(1).shape
                self.names.setdefault((rows, columns), []).append(name)
        if not self.names:
            raise ValueError(
                f"network, a {type(network).__name__}, has no linear or convolutional layer to be regularised."
            )
        for (rows, columns), names in self.names.items():
            v = nn.functional.normalize(torch.randn(len(names), columns, 1), dim=1)
            self.register_buffer(f"v_{rows}x{columns}", v)
        with torch.no_grad():
            for _ in range(0 if v.is_meta else -(-_INITIAL_ITERATIONS // iterations)):  # there, shapes alone are wanted
                self(network)

    def forward(self, network: nn.Module) -> Float[Tensor, ""]:
        """The sum Σ σ_max(W) for the weights that ``network`` has now."""
        terms = []
        for (rows, columns), names in self.names.items():
            layers: list[Any] = [network.get_submodule(name) for name in names]
            w = torch.stack([layer.weight.flatten(1) for layer in layers])
            buffer = self.get_buffer(f"v_{rows}x{columns}")
            u, v = _iterate(w.detach(), buffer, self.iterations)
            buffer.copy_(v)  # u and v themselves are kept for the backward pass
            terms.append((u.mT @ w @ v).sum())
        return torch.stack(terms).sum()


@torch.no_grad()
def _iterate(w: Tensor, v: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Power iterations from ``v``: the leading left and right singular vectors."""
    for _ in range(iterations):
        u = nn.functional.normalize(w @ v, dim=1)
        back = w.mT @ u
        # A weight of zeros sends v to zero, from where there is no return.
        v = torch.where(back.norm(dim=1, keepdim=True) > 0, nn.functional.normalize(back, dim=1), v)
    return u, v
