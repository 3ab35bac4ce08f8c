"""The systems of the VAE lecture: recipes where parts suffice, classes where the structure is new."""

from pyrovae.zoo.autoencoder_parts import GaussianNoise, MaskingNoise
from pyrovae.zoo.autoencoder_recipes import (
    contractive_autoencoder,
    deep_autoencoder,
    denoising_autoencoder,
    linear_autoencoder,
    pretrain,
    sparse_autoencoder,
)
from pyrovae.zoo.autoencoders import Autoencoder
from pyrovae.zoo.beta_vae import beta_vae
from pyrovae.zoo.code_penalties import ContractionPenalty, KLPenalty, L1Penalty
from pyrovae.zoo.code_prior import PixelCNNPrior, UniformCodes
from pyrovae.zoo.delta_vae import delta_vae
from pyrovae.zoo.hierarchical import HierarchicalVAE, LadderVAE
from pyrovae.zoo.linear_vae import linear_vae
from pyrovae.zoo.non_amortized import NonAmortizedVAE
from pyrovae.zoo.nvae import NVAE
from pyrovae.zoo.pixel import PixelCNN, PixelDecoder, PixelVAE
from pyrovae.zoo.vqvae import VQVAE

__all__ = [
    "NVAE",
    "VQVAE",
    "Autoencoder",
    "ContractionPenalty",
    "GaussianNoise",
    "HierarchicalVAE",
    "KLPenalty",
    "L1Penalty",
    "LadderVAE",
    "MaskingNoise",
    "NonAmortizedVAE",
    "PixelCNN",
    "PixelCNNPrior",
    "PixelDecoder",
    "PixelVAE",
    "UniformCodes",
    "beta_vae",
    "contractive_autoencoder",
    "deep_autoencoder",
    "delta_vae",
    "denoising_autoencoder",
    "linear_autoencoder",
    "linear_vae",
    "pretrain",
    "sparse_autoencoder",
]
