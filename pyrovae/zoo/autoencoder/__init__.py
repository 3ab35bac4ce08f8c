"""Autoencoders: models without a density, trained on reconstruction."""

from pyrovae.zoo.autoencoder._autoencoder import Autoencoder
from pyrovae.zoo.autoencoder._parts import ACTIVATIONS, CORRUPTIONS, Corruption, GaussianNoise, MaskingNoise
from pyrovae.zoo.autoencoder._penalties import PENALTIES, ContractionPenalty, KLPenalty, L1Penalty, Penalty
from pyrovae.zoo.autoencoder._recipes import (
    contractive_autoencoder,
    deep_autoencoder,
    denoising_autoencoder,
    linear_autoencoder,
    pretrain,
    sparse_autoencoder,
)

__all__ = [
    "ACTIVATIONS",
    "CORRUPTIONS",
    "PENALTIES",
    "Autoencoder",
    "ContractionPenalty",
    "Corruption",
    "GaussianNoise",
    "KLPenalty",
    "L1Penalty",
    "MaskingNoise",
    "Penalty",
    "contractive_autoencoder",
    "deep_autoencoder",
    "denoising_autoencoder",
    "linear_autoencoder",
    "pretrain",
    "sparse_autoencoder",
]
