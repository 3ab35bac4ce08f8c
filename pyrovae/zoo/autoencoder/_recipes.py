"""Recipes for the autoencoders of the lecture, and greedy pretraining."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pyrovae._checks import as_data, require_at_least, require_one_of
from pyrovae.model import LossModel
from pyrovae.model._inputs import keep_columns
from pyrovae.model._modes import inference
from pyrovae.training import FitResult, fit
from pyrovae.training.batches import as_fields, with_splits
from pyrovae.zoo.autoencoder._autoencoder import Autoencoder
from pyrovae.zoo.autoencoder._parts import ERRORS, Corruption, affine_layers
from pyrovae.zoo.autoencoder._penalties import KLPenalty, Penalty


def linear_autoencoder(event_shape: Sequence[int], code_dim: int, **options: Any) -> Autoencoder:
    """Build an autoencoder of one affine layer each way and squared error, whose optimum spans the first principal
    components (Baldi & Hornik 1989, Neural Networks 2), though its codes are not theirs.

    Args:
        event_shape: shape of one datum.
        code_dim: number of components.
        options: of :class:`Autoencoder`, other than ``hidden`` and ``code_activation``.
    """
    return Autoencoder(event_shape, code_dim, hidden=(), code_activation="identity", **options)


def deep_autoencoder(
    event_shape: Sequence[int], code_dim: int, *, hidden: Sequence[int] = (256, 64), **options: Any
) -> Autoencoder:
    """Build an autoencoder of several layers each way (Hinton & Salakhutdinov 2006, Science 313), which
    :func:`pretrain` can stack.

    Args:
        event_shape: shape of one datum.
        code_dim: size of the code.
        hidden: widths of the encoder's hidden layers.
        options: of :class:`Autoencoder`.
    """
    return Autoencoder(event_shape, code_dim, hidden=hidden, **options)


def denoising_autoencoder(
    event_shape: Sequence[int],
    code_dim: int,
    *,
    corruption: str | Corruption = "gaussian",
    hidden: Sequence[int] = (256,),
    **options: Any,
) -> Autoencoder:
    """Build an autoencoder that is trained to undo noise (Vincent et al. 2008, ICML; 2010, JMLR 11).

    Args:
        event_shape: shape of one datum.
        code_dim: size of the code, which may be larger than the data's.
        corruption: ``"gaussian"``, ``"masking"``, or a :class:`Corruption`.
        hidden: widths of the encoder's hidden layers.
        options: of :class:`Autoencoder`, such as ``corruption_options``.
    """
    return Autoencoder(event_shape, code_dim, hidden=hidden, corruption=corruption, **options)


def sparse_autoencoder(
    event_shape: Sequence[int], code_dim: int, *, penalty: str | Penalty = "kl", **options: Any
) -> Autoencoder:
    """Build an autoencoder whose code has few active units at a time: by L1 on a rectified code, or by the KL of a
    sigmoid code's mean activations to a target.

    Args:
        event_shape: shape of one datum.
        code_dim: size of the code, which may be larger than the data's.
        penalty: ``"kl"``, ``"l1"``, or a :class:`Penalty`.
        options: of :class:`Autoencoder`, such as ``penalty_options``.
    """
    if isinstance(penalty, str):
        require_one_of(("kl", "l1"), penalty=penalty)
    by_kl = penalty == "kl" or isinstance(penalty, KLPenalty)
    options.setdefault("code_activation", "sigmoid" if by_kl else "relu")
    return Autoencoder(event_shape, code_dim, penalty=penalty, **options)


def contractive_autoencoder(event_shape: Sequence[int], code_dim: int, **options: Any) -> Autoencoder:
    """Build an autoencoder whose codes move little with the data (Rifai et al. 2011, ICML): sigmoid code, tied weights,
    and the squared norm of the encoder's Jacobian as penalty, exact for one layer and by Hutchinson's estimate for
    several.

    Args:
        event_shape: shape of one datum.
        code_dim: size of the code.
        options: of :class:`Autoencoder`, such as ``hidden`` and ``penalty_options``.
    """
    return Autoencoder(
        event_shape, code_dim, **{"code_activation": "sigmoid", "tied": True, "penalty": "contraction", **options}
    )


class _LayerPair(LossModel):
    """A layer of an autoencoder's encoder and its mirror image in the decoder, as an autoencoder of their own."""

    def __init__(self, model: Autoencoder, index: int) -> None:
        super().__init__()
        encoder, decoder = affine_layers(model.encoder), affine_layers(model.decoder)
        self.encoder, self.decoder = encoder[index], decoder[-1 - index]
        self.activation = model.code_activation if index == len(encoder) - 1 else model.encoder[1]
        self.output = nn.Identity() if index == 0 else model.encoder[1]  # as in the whole decoder
        self.error = ERRORS[model.reconstruction if index == 0 else "squared_error"]
        self.corruption = model.corruption

    def encode(self, x: Tensor) -> Tensor:
        return self.activation(self.encoder(x))

    def loss(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        given = x if self.corruption is None or not self.training else self.corruption(x)
        return self.error(self.output(self.decoder(self.encode(given))), x)


def pretrain(
    model: Autoencoder, data: Any, *, epochs: int = 20, seed: int | None = None, **options: Any
) -> list[FitResult]:
    """Pretrain an autoencoder greedily, layer by layer (Bengio et al. 2006, NeurIPS; with a corruption, Vincent et al.
    2010, JMLR 11).

    Layer by layer from the data inwards, each layer of the encoder and its mirror image in the decoder are trained
    to reconstruct what the layers before give out: the data by the model's own error, codes by squared error. A
    corruption applies to what every level encodes, the penalty to none. Then fine-tune: ``pv.fit(model, data)``.

    Args:
        model: an autoencoder, trained in place.
        data: tensor, array or DataFrame ``(N, *event_shape)``, or ``datasets.load(...)``, of which the training split.
        epochs: of every pair.
        seed: seed of every level's ``fit``.
        options: passed to ``fit``: ``learning_rate``, ``batch_size``, ``compile``, ``progress``, ...

    Returns:
        The runs, one for each layer.

    Raises:
        TypeError: ``model`` is no :class:`Autoencoder`.
        ValueError: bad data or arguments.
    """
    if not isinstance(model, Autoencoder):
        raise TypeError(f"pretrain needs a pyrovae.zoo.Autoencoder; got {type(model).__name__}.")
    require_at_least(0, epochs=epochs)
    data, _, transform = with_splits(data, transform=options.pop("batch_transform", None))
    with keep_columns(model, as_fields(data)):
        x = as_data(data, "data", model.event_shape, model.columns)
    model.check(x.to(model.placement), name="data")
    if options.get("validation") is not None:
        raise ValueError("pretrain takes no validation data, which deeper levels would need encoded: leave it out.")
    runs = []
    for index in range(len(affine_layers(model.encoder))):
        pair = _LayerPair(model, index)
        runs.append(fit(pair, x, epochs=epochs, seed=seed, batch_transform=transform, **options))
        with inference(pair, 0 if seed is None else seed):
            x = x.to(pair.placement)
            x = pair.encode((x if transform is None else transform(x)).flatten(1))
        transform = None
    return runs
