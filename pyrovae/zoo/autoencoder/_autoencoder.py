"""``Autoencoder``: an encoder and a decoder that are trained on reconstruction."""

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrovae._checks import (
    as_data,
    as_sizes,
    lookup,
    require_at_least,
    require_flag,
    require_instance,
    require_one_of,
    require_seed,
)
from pyrovae.model import LossModel
from pyrovae.model._modes import inference
from pyrovae.networks import MLP
from pyrovae.zoo.autoencoder._parts import ACTIVATIONS, CORRUPTIONS, ERRORS, Corruption, Transposed, affine_layers
from pyrovae.zoo.autoencoder._penalties import PENALTIES, Penalty, hutchinson, squared_jacobian_norm

_JACOBIAN_BATCH = 256  # data whose Jacobians are in memory together


class Autoencoder(LossModel):
    """An autoencoder: x ↦ code h ↦ reconstruction of x, by two multilayer perceptrons that mirror each other.

    The linear, deep, denoising, sparse and contractive autoencoders are this class with other parts; the functions
    beside it (:func:`linear_autoencoder`, ...) choose them. ``pv.fit(model, data)`` trains it.

    Args:
        event_shape: shape of one datum, e.g. ``(784,)`` or ``(1, 28, 28)``.
        code_dim: size of the code.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them. Empty: one layer each.
        activation: after every hidden layer: a name in ``zoo.autoencoder.ACTIVATIONS``.
        code_activation: after the code; a name of the same.
        reconstruction: the error of a datum. ``"squared_error"``: ½‖x − x̂‖², which is −log N(x; x̂, 1) in nats without
            its constant. ``"bernoulli"``: −Σ x log x̂ + (1 − x) log(1 − x̂) in nats, for data in [0, 1].
        tied: the decoder's weights are the encoder's, transposed.
        corruption: noise on what is encoded, in training mode only; the error is against x without noise.
            ``"gaussian"`` (:class:`GaussianNoise`), ``"masking"`` (:class:`MaskingNoise`), or a :class:`Corruption`.
        penalty: added to the error, in training and in validation. ``"l1"`` (:class:`L1Penalty`), ``"kl"``
            (:class:`KLPenalty`), ``"contraction"`` (:class:`ContractionPenalty`), or a :class:`Penalty`.
        corruption_options: options of a corruption given by name.
        penalty_options: options of a penalty given by name.

    Raises:
        ValueError: an unknown name, sizes that are not positive, options that a part does not have or that are
            out of range, a penalty that the code's activation does not allow.
        TypeError: a part that is neither a name nor a module of its class.
    """

    encoder: nn.Sequential
    decoder: nn.Sequential

    def __init__(
        self,
        event_shape: Sequence[int],
        code_dim: int,
        *,
        hidden: Sequence[int] = (),
        activation: str = "relu",
        code_activation: str = "identity",
        reconstruction: str = "squared_error",
        tied: bool = False,
        corruption: str | Corruption | None = None,
        penalty: str | Penalty | None = None,
        corruption_options: dict[str, Any] | None = None,
        penalty_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = as_sizes(event_shape, "event_shape")
        require_at_least(1, code_dim=code_dim)
        hidden = as_sizes(hidden, "hidden", empty=True)
        require_one_of(tuple(ERRORS), reconstruction=reconstruction)
        require_flag(tied=tied)
        names = {name: name for name in ACTIVATIONS}
        activation = lookup(names, activation, "activation")
        code_activation = lookup(names, code_activation, "code_activation")
        self.code_dim, self.reconstruction = int(code_dim), reconstruction
        self.code_activation, self.code_activation_name = ACTIVATIONS[code_activation].layer(), code_activation
        require_instance(Mapping | None, corruption_options=corruption_options, penalty_options=penalty_options)
        noise = cost = None  # which draw nothing
        if corruption is not None or corruption_options:
            noise = CORRUPTIONS.build(corruption, corruption_options)
        if penalty is not None or penalty_options:
            cost = PENALTIES.build(penalty, penalty_options)
        if cost is not None and code_activation not in cost.code_activations:
            allowed = " or ".join(map(repr, cost.code_activations))
            raise ValueError(
                f"{type(cost).__name__} needs code_activation {allowed}, whose values are those of a "
                f"probability; got {code_activation!r}."
            )
        layer = ACTIVATIONS[activation].layer
        self.encoder = MLP(prod(self.event_shape), hidden, self.code_dim, activation=layer)
        if tied:
            layers: list[nn.Module] = []
            for linear in reversed(affine_layers(self.encoder)):
                layers += [Transposed(cast(nn.Linear, linear)), layer()]
            self.decoder = nn.Sequential(*layers[:-1])
        else:
            self.decoder = MLP(self.code_dim, hidden[::-1], prod(self.event_shape), activation=layer)
        self.corruption, self.penalty = noise, cost

    def loss(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch"]:
        """The error of the reconstruction plus the penalty, one value for each datum."""
        given = x if self.corruption is None or not self.training else self.corruption(x)
        pre_activation = self.encoder(given.flatten(1))
        loss = ERRORS[self.reconstruction](self.decoder(self.code_activation(pre_activation)), x.flatten(1))
        if self.penalty is not None:
            loss = loss + self.penalty.weight * self.penalty(self, given.flatten(1), pre_activation)
        return loss

    def check_values(self, x: Float[Tensor, "batch *event"], name: str = "x") -> None:
        if self.reconstruction == "bernoulli" and not bool(((x >= 0) & (x <= 1)).all()):
            raise ValueError(
                f"{name} holds values from {float(x.min()):g} to {float(x.max()):g}; reconstruction='bernoulli' needs "
                f"data in [0, 1]. Rescale them, or use reconstruction='squared_error'."
            )

    # -- in evaluation mode, without gradients -------------------------------------------------------------

    def transform(self, x: Float[Tensor, "data *event"] | Any) -> Float[Tensor, "data code"]:
        """Encode data, in evaluation mode; the codes are on the model's device.

        Args:
            x: data ``(N, *event_shape)``: tensor, array or DataFrame.

        Raises:
            ValueError: integer, empty or NaN data, or of a wrong shape.
        """
        x = self._data(x, "x")
        with inference(self, None):
            return self._encode(x.flatten(1))

    def inverse_transform(self, code: Float[Tensor, "data code"] | Any) -> Float[Tensor, "data *event"]:
        """Decode codes, in evaluation mode; with Bernoulli errors, to probabilities.

        Args:
            code: codes ``(N, code_dim)``: tensor, array or DataFrame.

        Raises:
            ValueError: integer, empty or NaN codes, or of a wrong shape.
        """
        code = as_data(code, "code", (self.code_dim,), dtype=self.placement.dtype).to(self.placement)
        with inference(self, None):
            out = self.decoder(code)
            out = out.sigmoid() if self.reconstruction == "bernoulli" else out
        return out.unflatten(-1, cast(tuple[int, ...], self.event_shape))

    encode, decode = transform, inverse_transform  # as a VAE calls them

    def reconstruct(self, x: Float[Tensor, "data *event"] | Any) -> Float[Tensor, "data *event"]:
        """Encode data and decode their codes."""
        return self.inverse_transform(self.transform(x))

    def reconstruction_error(
        self, x: Float[Tensor, "data *event"] | Any, *, given: Float[Tensor, "data *event"] | Any = None
    ) -> Float[Tensor, "data"]:
        """The error of every datum's reconstruction, without penalty, as ``reconstruction`` defines it.

        Args:
            x: data ``(N, *event_shape)``.
            given: what is encoded in place of ``x``, such as ``x`` with noise.

        Raises:
            ValueError: bad data, or as many of one as of the other are missing.
        """
        x = self._data(x, "x")
        self.check_values(x)
        given = x if given is None else self._data(given, "given")
        if len(given) != len(x):
            raise ValueError(f"given has {len(given)} rows and x has {len(x)}; they must match.")
        with inference(self, None):
            return ERRORS[self.reconstruction](self.decoder(self._encode(given.flatten(1))), x.flatten(1))

    def squared_jacobian_norm(
        self, x: Float[Tensor, "data *event"] | Any, *, num_probes: int | None = None, seed: int | None = 0
    ) -> Float[Tensor, "data"]:
        """The squared norm ‖∂code/∂x‖²_F at every datum: how far codes move with the data.

        Args:
            x: data ``(N, *event_shape)``.
            num_probes: ``None`` for the exact norm, with ``code_dim`` passes back; a number for the mean over so many
                of Hutchinson's estimates.
            seed: seed of the estimate.

        Raises:
            ValueError: bad data, ``num_probes < 1``.
        """
        require_seed(seed=seed)
        x = self._data(x, "x").flatten(1)
        if num_probes is not None:
            require_at_least(1, num_probes=num_probes)
        norm = squared_jacobian_norm if num_probes is None else partial(hutchinson, num_probes=num_probes)
        with inference(self, seed):
            return torch.cat([norm(self._encode, part) for part in x.split(_JACOBIAN_BATCH)]).detach()

    def _data(self, x: Any, name: str) -> Tensor:
        return as_data(x, name, self.event_shape, self.columns, dtype=self.placement.dtype).to(self.placement)

    def _encode(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch code"]:
        return self.code_activation(self.encoder(x))
