"""Priors over grids of codes: a uniform one, and a PixelCNN."""

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyrovae._checks import as_sizes, require_at_least, shown
from pyrovae._random import restored_on_error
from pyrovae.distributions import Autoregressive
from pyrovae.model import LossModel
from pyrovae.networks import GatedPixelCNN


def _checked(grid_shape: tuple[int, int], num_codes: int) -> tuple[int, int]:
    """The grid's sides; a ``ValueError`` unless they are positive and there are at least two codes."""
    require_at_least(2, num_codes=num_codes)
    match as_sizes(grid_shape, "grid_shape"):
        case (height, width):
            return height, width
    raise ValueError(f"grid_shape must be (height, width); got {shown(grid_shape)}.")


class UniformCodes(nn.Module):
    """The uniform prior over grids of codes: p(z) = K^(-H·W).

    Args:
        grid_shape: ``(H, W)``.
        num_codes: K.

    Raises:
        ValueError: bad sizes.
    """

    logits: Tensor

    def __init__(self, grid_shape: tuple[int, int], num_codes: int) -> None:
        super().__init__()
        self.grid_shape, self.num_codes = _checked(grid_shape, num_codes), num_codes
        self.register_buffer("logits", torch.zeros(*grid_shape, num_codes), persistent=False)

    def forward(self) -> dist.Distribution:
        """The distribution p(z): batch ``()``, event ``(H, W)``."""
        return dist.Categorical(logits=self.logits).to_event(2)


class PixelCNNPrior(LossModel):
    """An autoregressive prior over grids of codes, p(z) = Π p(z_ij | codes before it in raster order), by a
    :class:`~pyrovae.networks.GatedPixelCNN`: the second stage of a VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937,
    sec. 3.2).

    ``fit`` trains it on codes by maximum likelihood: its loss is -log p(z), exact, in nats. Codes go in as floats,
    as all data do, ``fit(prior, codes.float())``.

    Args:
        grid_shape: ``(H, W)``.
        num_codes: K.
        embedding_dim: size of the vector that the network is given for each code.
        hidden: channels of the network.
        num_layers: gated layers.
        kernel_size: width of its convolutions.

    Raises:
        ValueError: bad sizes.
    """

    def __init__(
        self,
        grid_shape: tuple[int, int],
        num_codes: int,
        *,
        embedding_dim: int = 16,
        hidden: int = 48,
        num_layers: int = 4,
        kernel_size: int = 3,
    ) -> None:
        super().__init__()
        require_at_least(1, embedding_dim=embedding_dim)
        self.grid_shape, self.num_codes = _checked(grid_shape, num_codes), num_codes
        self.event_shape = self.grid_shape
        with restored_on_error():
            self.embedding = nn.Embedding(num_codes, embedding_dim)
            self.network = GatedPixelCNN(
                embedding_dim, num_codes, hidden=hidden, num_layers=num_layers, kernel_size=kernel_size
            )

    def logits(self, codes: Int[Tensor, "*batch rows width"]) -> Float[Tensor, "*batch codes rows width"]:
        """Logits of the code at every position given those before it, for the whole grid or its uppermost rows."""
        return self.network(self.embedding(codes).movedim(-1, -3))

    def forward(self) -> Autoregressive:
        """The distribution p(z): batch ``()``, event ``(H, W)``."""
        return Autoregressive(
            self._conditional,
            self.grid_shape,
            support=dist.constraints.integer_interval(0, self.num_codes - 1),
            like=torch.empty(0, dtype=torch.long, device=self.embedding.weight.device),
        )

    def _conditional(self, codes: Int[Tensor, "*batch rows width"]) -> dist.Distribution:
        return dist.Categorical(logits=self.logits(codes).movedim(-3, -1), validate_args=False).to_event(2)

    def loss(self, x: Float[Tensor, "batch height width"]) -> Float[Tensor, "batch"]:
        """The negative log-probability of codes, -log p(z), in nats."""
        return -self().log_prob(x.long())
