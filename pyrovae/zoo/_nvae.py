"""NVAE: groups of spatial latents between residual cells."""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrovae._checks import as_sizes, require_at_least, require_not_negative
from pyrovae.distributions import residual_normal
from pyrovae.likelihoods import LIKELIHOODS, Likelihood
from pyrovae.model import VAEModel
from pyrovae.networks._conv import as_image_shape, over_leading
from pyrovae.networks._residual import ConvCell, DepthwiseCell
from pyrovae.networks._spectral import SpectralSum

_MAX_LOG_SCALE = 5.0  # no scale leaves (e⁻⁵, e⁵), however far a head drifts


class NVAE(VAEModel):
    """NVAE (Vahdat & Kautz 2020, arXiv:2007.03898) at a size that trains on a CPU.

    Latents are groups of maps, at resolutions that double from the top down; the last is half the image's. A path of
    depthwise-separable residual cells leads from a learnt constant through all groups to the image, and model and guide
    share it. A group's prior is a normal read off the path. Its posterior is that normal shifted and stretched
    (:func:`~pyrovae.distributions.residual_normal`) by what the path and the encoder's features say, so every group's
    KL has a closed form given the draws above it.

    ``fit`` adds ``spectral_weight`` times the sum of the largest singular values of all weights to the loss of every
    datum (:meth:`penalty`): it bounds how much the networks stretch, and with it the KL's jumps early in training.

    Differences to the paper: normalisation by groups of channels of one image instead of the batch's
    (:class:`~pyrovae.networks.DepthwiseCell` says why), hence no penalty on batch-norm scales; no flows in the
    posterior; ``fit``'s Adam. Sites are numbered upwards as in the zoo's other hierarchies, ``z1`` next to the data,
    where the paper counts from the top.

    Args:
        event_shape: ``(C, H, W)``; H and W divisible by 2 to the power of ``len(groups)``.
        groups: numbers of groups by resolution, from the top: ``(1, 2)`` is one at a quarter of the image's resolution
            and two at half of it.
        latent_channels: channels of one group's latents.
        channels: of the networks at the finest resolution of latents; every halving doubles them.
        expansion: of the depthwise cells.
        cells: residual cells per group, in the encoder and on the path.
        likelihood: a name in ``likelihoods.LIKELIHOODS``, or a :class:`~pyrovae.likelihoods.Likelihood`.
        likelihood_options: options of a likelihood given by name.
        spectral_weight: λ in nats; 0 leaves the regularisation out.

    Raises:
        TypeError: a likelihood that is neither a name nor a module of its class.
        ValueError: an image that the halvings do not divide, no groups, sizes that are not positive, a
            ``spectral_weight`` that is negative, NaN or infinite, an unknown likelihood, options that it does not have,
            a built one for data of other dimensions.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        groups: Sequence[int] = (1, 2),
        *,
        latent_channels: int = 4,
        channels: int = 16,
        expansion: int = 3,
        cells: int = 1,
        likelihood: str | Likelihood = "bernoulli",
        likelihood_options: dict[str, Any] | None = None,
        spectral_weight: float = 1e-2,
    ) -> None:
        super().__init__()
        groups = as_sizes(groups, "groups")
        halvings = len(groups)
        shrunk = 2**halvings
        needs = f" with height and width divisible by {shrunk}, for {halvings} resolutions"
        self.event_shape = as_image_shape(event_shape, shrunk, needs=needs, fix=", pad them, or pass fewer groups")
        image_channels, height, width = self.event_shape
        require_at_least(1, latent_channels=latent_channels, channels=channels, expansion=expansion, cells=cells)
        require_not_negative(spectral_weight=spectral_weight)
        self.spectral_weight = float(spectral_weight)
        self.likelihood = LIKELIHOODS.build(likelihood, likelihood_options, event_dim=3)

        widths = [channels * 2**i for i in reversed(range(halvings))]  # from the top
        self.start = nn.Parameter(0.1 * torch.randn(widths[0], height // shrunk, width // shrunk))
        self.stem = nn.Conv2d(image_channels, channels, 3, stride=2, padding=1)
        path: list[nn.Module] = []
        encoder: list[nn.Module] = []  # in the path's order, against the order of computation
        for i, (count, wide) in enumerate(zip(groups, widths, strict=True)):
            for j in range(count):
                grown = widths[i - 1] if i and not j else None
                path.append(_Group(latent_channels, wide, grown, i + j == 0, expansion, cells))
                finer = widths[i + 1] if i + 1 < halvings and j + 1 == count else None
                down = [] if finer is None else [nn.Conv2d(finer, wide, 3, stride=2, padding=1)]
                encoder.append(nn.Sequential(*down, *(ConvCell(wide) for _ in range(cells))))
        self.path, self.encoder = nn.ModuleList(path), nn.ModuleList(encoder)
        self.out = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, self.likelihood.num_params * image_channels, 3, padding=1),
        )
        self.sites = tuple(f"z{i}" for i in range(len(path), 0, -1))  # from the top, as they are drawn
        self.spectral = SpectralSum(self) if spectral_weight else None

    def penalty(self) -> Tensor | None:
        """The spectral regulariser λ Σ σ_max(W), in nats."""
        return None if self.spectral is None else self.spectral_weight * self.spectral(self)

    def model(self, x: Tensor) -> None:
        h: Tensor = self.start
        with pyro.plate("data", len(x)):
            for site, group in self._groups():
                h = group.grow(h)
                h = group.merge(h, pyro.sample(site, group.prior(h, x)))
            out = over_leading(self.out, h, 3)
            pyro.sample("x", self.likelihood.distribution(out, h.shape[:-3], x.shape[1:]), obs=x)

    def guide(self, x: Tensor) -> None:
        features = self._features(x)
        h: Tensor = self.start
        with pyro.plate("data", len(x)):
            for (site, group), feature in zip(self._groups(), features, strict=True):
                h = group.grow(h)
                z = pyro.sample(site, group.posterior(h, feature, x))
                if site != self.sites[-1]:
                    h = group.merge(h, z)

    def _groups(self) -> list[tuple[str, "_Group"]]:
        """The path's groups with their sites, from the top."""
        path: Any = self.path
        return list(zip(self.sites, path, strict=True))

    def _features(self, x: Float[Tensor, "batch c h w"]) -> list[Tensor]:
        """The encoder's features for every group, from the top."""
        h, features = self.stem(2.0 * x - 1.0), []
        for stage in reversed(self.encoder):
            h = stage(h)
            features.append(h)
        return features[::-1]


class _Group(nn.Module):
    """A group of latents on the path, ``channels`` wide. ``grown`` is the width above, where the resolution doubles."""

    def __init__(
        self, latents: int, channels: int, grown: int | None, is_top: bool, expansion: int, cells: int
    ) -> None:
        super().__init__()
        self.grower = None
        if grown is not None:
            self.grower = nn.Sequential(nn.Conv2d(grown, channels, 1), nn.Upsample(scale_factor=2))
        self.prior_head = None if is_top else _head(channels, latents, 1)
        self.latents = latents
        self.of_path = nn.Conv2d(channels, channels, 1)
        self.delta_head = _head(channels, latents, 3)
        self.merger = nn.Sequential(
            nn.Conv2d(channels + latents, channels, 1),
            *(DepthwiseCell(channels, expansion=expansion) for _ in range(cells)),
        )

    def grow(self, h: Tensor) -> Tensor:
        """Bring the path to this group's resolution."""
        return h if self.grower is None else over_leading(self.grower, h, 3)

    def prior(self, h: Tensor, like: Tensor) -> dist.Distribution:
        """The prior of the group given the groups above, read off the path; N(0, I) at the top."""
        if self.prior_head is None:
            return dist.Normal(like.new_zeros(self.latents, *h.shape[-2:]), 1.0).to_event(3)
        loc, scale = _loc_and_scale(over_leading(self.prior_head, h, 3))
        return dist.Normal(loc, scale).to_event(3)

    def posterior(self, h: Tensor, feature: Tensor, like: Tensor) -> dist.Distribution:
        """The posterior of the group given the groups above and x, relative to the prior."""
        # The path may have particles, which the encoder's features lack.
        both = feature + over_leading(self.of_path, h, 3)
        return residual_normal(self.prior(h, like), *_loc_and_scale(over_leading(self.delta_head, both, 3)))

    def merge(self, h: Tensor, z: Tensor) -> Tensor:
        """Continue the path with the group's draw."""
        lead = torch.broadcast_shapes(h.shape[:-3], z.shape[:-3])
        h, z = h.expand(*lead, *h.shape[-3:]), z.expand(*lead, *z.shape[-3:])
        return over_leading(self.merger, torch.cat([h, z], -3), 3)


def _head(channels: int, latents: int, kernel_size: int) -> nn.Module:
    """A layer that gives the parameters of a normal over maps, near N(0, 1) at the start."""
    last: Any = nn.Conv2d(channels, 2 * latents, kernel_size, padding=kernel_size // 2)
    with torch.no_grad():
        last.weight.mul_(0.1)
        last.bias.zero_()
    return nn.Sequential(nn.ELU(), last)


def _loc_and_scale(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Location and scale of a normal over maps, from their head."""
    loc, log_scale = raw.chunk(2, -3)
    return loc, (_MAX_LOG_SCALE * (log_scale / _MAX_LOG_SCALE).tanh()).exp()
