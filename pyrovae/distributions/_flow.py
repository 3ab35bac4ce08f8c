"""A normalizing flow used as a posterior: drawn and scored in one pass, in its sampling direction."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints

from pyrovae._checks import require_flag, require_instance, shown
from pyrovae._compat import zuko  # gives every Transform its call_and_ladj
from pyrovae.distributions._own_draw import KeepsLastDraw

_FEW_PASSES = 2


class Flow(KeepsLastDraw, TorchDistribution):
    """The law of ``z = T(u)``, ``u ~ base``: log q(z) = log base(u) - log |det ∂T/∂u| (Rezende & Mohamed 2015).

    The log-density of the last draw is kept, so scoring a draw costs nothing and inverts nothing. Any
    other point is scored through ``T⁻¹``, where there is one, and so is a draw made without gradients once
    gradients are wanted.

    Args:
        base: distribution with event shape ``(Z,)``.
        transforms: transforms applied in order, base to latent space. Their parameters have batch
            dimensions that broadcast with the base's.
        can_score: whether ``T⁻¹`` can be evaluated at a point this distribution did not draw.

    Raises:
        NotImplementedError: from ``log_prob`` of a point that was not the last draw, if not ``can_score``.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, base: Distribution, transforms: list[Transform], *, can_score: bool) -> None:
        require_instance(Distribution, base=base)
        require_flag(can_score=can_score)
        if not isinstance(transforms, (list, tuple)) or not transforms:
            raise TypeError(f"transforms must be a list of at least one transform; got {shown(transforms)}.")
        for transform in transforms:
            require_instance(Transform, transforms=transform)
        self.base = base
        self.transform = zuko.transforms.ComposedTransform(*transforms)
        self.can_score = can_score
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def expand(self, batch_shape: tuple[int, ...] | list[int], _instance: Any = None) -> "Flow":
        return Flow(self.base.expand(batch_shape), list(self.transform.transforms), can_score=self.can_score)

    def rsample(self, sample_shape: tuple[int, ...] | list[int] = ()) -> Tensor:
        u = self.base.rsample(sample_shape)
        z, log_det = self.transform.call_and_ladj(u)
        return self._keep(z, (u, self.base.log_prob(u) - log_det))

    def log_prob(self, value: Tensor) -> Tensor:
        if (known := self._kept(value)) is not None:
            return known[1]
        if not self.can_score:
            raise NotImplementedError(
                "this flow has no inverse in closed form, so log q(z) is known only at its own last draw (and its "
                "gradient only if that was drawn by rsample with gradients on). "
                "Use a posterior whose can_score is True: 'mean_field', 'full_rank', 'mixture', 'iaf' or 'realnvp'."
            )
        u, log_det = self.transform.inv.call_and_ladj(value)
        return self.base.log_prob(u) + log_det

    def score(self, value: Tensor) -> Tensor | None:
        """The gradient of the log-density at the last draw z = T(u), found without T⁻¹ from the Jacobian of T:
        (∂T/∂u)⁻ᵀ ∂/∂u [log base(u) - log |det ∂T/∂u|] (Vaitl et al. 2022, arXiv:2206.09016). ``None`` where it is
        another value, or where T⁻¹ costs little.
        """
        require_instance(Tensor, value=value)
        known, transforms = self._kept(value), self.transform.transforms
        if known is None or (self.can_score and all(_passes(t) <= _FEW_PASSES for t in transforms)):
            return None
        with torch.enable_grad():
            u = known[0].detach().requires_grad_()
            z, log_det = self.transform.call_and_ladj(u)
            rows = [torch.autograd.grad(z[..., d].sum(), u, retain_graph=True)[0] for d in range(z.shape[-1])]
            (slope,) = torch.autograd.grad((self.base.log_prob(u) - log_det).sum(), u)
        return torch.linalg.solve(torch.stack(rows, -1), slope)


def _passes(transform: Transform) -> int:
    """Through how many of its networks, one after another, a transform is undone."""
    return int(getattr(transform, "passes", 1))
