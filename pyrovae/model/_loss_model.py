"""``LossModel``, the base class of models that train by a loss and have no density, such as an autoencoder."""

from abc import ABC, abstractmethod
from typing import Any

from jaxtyping import Float
from torch import Tensor

from pyrovae._checks import as_covariates, as_tensor, require_at_least, require_instance, rows_of
from pyrovae.model._modes import inference
from pyrovae.model._saving import SaveableModule


class LossModel(SaveableModule, ABC):
    """A model that ``fit`` trains by ``loss(x, *covariates)`` and that gives no log p(x): every estimator refuses it.

    Data are ``x`` of shape ``(B, *event_shape)``.

    Attributes:
        event_shape: shape of one datum; ``fit`` fills it in where the subclass did not.
    """

    _program = "loss"

    @abstractmethod
    def loss(self, x: Float[Tensor, "batch *event"], *covariates: Any) -> Float[Tensor, "batch"]:
        """The loss to be minimised, one value for each datum."""

    def check_values(self, x: Float[Tensor, "batch *event"], name: str = "x") -> None:
        """Raise a ``ValueError`` where data hold values that the loss is not meant for; ``fit`` asks before training.

        Args:
            x: data ``(B, *event_shape)``.
            name: what the error calls them.
        """

    def check(self, x: Tensor, *covariates: Any, num_particles: int = 2, name: str = "x", numbers: Any = None) -> None:
        """Run the loss on two data, so that mistakes surface before a long run. Neither the model nor the random state
        changes.

        Args:
            x: data ``(B, *event_shape)``.
            covariates: passed to the loss.
            num_particles: without meaning here; as in :meth:`VAEModel.check`.
            name: what the error calls ``x``.
            numbers: of the rows, for errors.

        Raises:
            ValueError: a wrong shape, values that the loss is not meant for, or a loss that is not one number for each
                datum.
        """
        require_instance(Tensor, x=x)
        require_instance(str, name=name)
        as_tensor(x, "x")
        as_covariates(covariates, None)
        if not x.numel() or (self.event_shape is not None and tuple(x.shape[1:]) != tuple(self.event_shape)):
            raise ValueError(f"x has shape {tuple(x.shape)}; the model needs (N, *event_shape), {self.event_shape}.")
        require_at_least(1, num_particles=num_particles)
        self.check_values(x, name)
        head = rows_of(covariates, slice(2))
        with inference(self, 0):
            try:
                loss = self.loss(x[:2], *head)
            except RuntimeError as error:
                raise ValueError(f"the loss fails on {name} of shape {tuple(x.shape)}: {error}") from error
        require_instance(Tensor, **{f"what {type(self).__name__}.loss gives": loss})
        if loss.shape != (len(x[:2]),):
            raise ValueError(
                f"{type(self).__name__}.loss gives shape {tuple(loss.shape)} for {len(x[:2])} data; it must be one "
                f"number for each datum, ({len(x[:2])},). Sum over the dimensions of a datum, not over the batch."
            )
