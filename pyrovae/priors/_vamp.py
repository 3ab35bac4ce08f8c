"""The VampPrior, Tomczak & Welling (2018, arXiv:1705.07120), of learnt pseudo-inputs or of exemplars."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae._checks import as_sizes, require_at_least, require_flag, require_tensors
from pyrovae.distributions._mixture import SharedMixture
from pyrovae.priors._base import PosteriorAt, Prior

_EDGE = 0.01  # how near to 0 and 1 learnt pseudo-inputs start, beyond which they would hardly move


class VampPrior(Prior):
    """A mixture of posteriors at K pseudo-inputs, p(z) = 1/K Σ_k q(z | u_k) (eq. 9): learnt ones in [0, 1], or data.

    Needs a posterior that can be scored at a point it did not draw (``can_score``). With ``exemplars`` the mixture is
    that of the exemplar VAE (Norouzi et al. 2020, arXiv:2004.04795), but for its one variance for all. Exemplars that
    are also trained on lie next to their own z: take few of many data, or some that are held out.

    Args:
        latent_dim: Z.
        event_shape: shape of one datum.
        num_pseudo_inputs: K.
        exemplars: whether pseudo-inputs are data, which stay as they are: those given to :meth:`start_at`.
    """

    uses_posterior = True
    zeros: Tensor

    def __init__(
        self, latent_dim: int, *, event_shape: Sequence[int], num_pseudo_inputs: int = 500, exemplars: bool = False
    ) -> None:
        super().__init__(latent_dim)
        require_at_least(1, num_pseudo_inputs=num_pseudo_inputs)
        require_flag(exemplars=exemplars)
        self.event_shape = as_sizes(event_shape, "event_shape")
        self.learnt = self._ready = not exemplars
        raw = torch.randn(num_pseudo_inputs, *self.event_shape)
        if self.learnt:
            self.raw = nn.Parameter(raw)
        else:
            self.register_buffer("raw", torch.full_like(raw, torch.nan))
        self.register_buffer("zeros", torch.zeros(num_pseudo_inputs), persistent=False)
        self.register_load_state_dict_post_hook(_find_out)

    @property
    def pseudo_inputs(self) -> Tensor:
        """The pseudo-inputs, shape ``(K, *event_shape)``."""
        if not self._ready:
            raise ValueError("this VampPrior has no exemplars yet: call prior.start_at(data), e.g. with data.train.")
        return self.raw.sigmoid() if self.learnt else self.raw

    def start_at(self, data: Tensor) -> None:
        """Put the pseudo-inputs on K data chosen at random; learnt ones move on from there.

        Args:
            data: at least K, shape ``(N, *event_shape)``.
        """
        require_tensors(finite=True, data=data)
        if data.shape[1:] != self.event_shape or len(data) < len(self.zeros):
            raise ValueError(
                f"data must be at least {len(self.zeros)} of shape {self.event_shape}; got shape {tuple(data.shape)}."
            )
        if self.learnt and not bool(((data >= 0) & (data <= 1)).all()):
            raise ValueError("data must lie in [0, 1], as learnt pseudo-inputs do: scale them, or take exemplars=True.")
        chosen = data[torch.randperm(len(data), device=data.device)[: len(self.zeros)]]
        with torch.no_grad():
            self.raw.copy_(chosen.clamp(_EDGE, 1 - _EDGE).logit() if self.learnt else chosen)
        self._ready = True

    def forward(self, posterior_at: PosteriorAt | None = None) -> dist.Distribution:
        if posterior_at is None:
            raise ValueError("VampPrior needs posterior_at, the function from data to q(z|x).")
        return SharedMixture(dist.Categorical(logits=self.zeros), posterior_at(self.pseudo_inputs))


def _find_out(prior: VampPrior, _: Any) -> None:
    """Whether a prior that was read has exemplars: those of a model that had none are not numbers."""
    prior._ready = bool(prior.raw.isfinite().all())
