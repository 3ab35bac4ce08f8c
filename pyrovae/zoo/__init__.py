"""The systems of the VAE lecture: recipes where parts suffice, classes where the structure is new."""

from pyrovae.zoo._beta_vae import beta_vae
from pyrovae.zoo._code_prior import PixelCNNPrior, UniformCodes
from pyrovae.zoo._delta_vae import delta_vae
from pyrovae.zoo._hierarchical import HierarchicalVAE, LadderVAE
from pyrovae.zoo._linear_vae import linear_vae
from pyrovae.zoo._non_amortized import NonAmortizedVAE
from pyrovae.zoo._nvae import NVAE
from pyrovae.zoo._pixel import PixelCNN, PixelDecoder, PixelVAE
from pyrovae.zoo._vqvae import VQVAE
from pyrovae.zoo.autoencoder._autoencoder import Autoencoder
from pyrovae.zoo.autoencoder._parts import GaussianNoise, MaskingNoise
from pyrovae.zoo.autoencoder._penalties import ContractionPenalty, KLPenalty, L1Penalty
from pyrovae.zoo.autoencoder._recipes import (
    contractive_autoencoder,
    deep_autoencoder,
    denoising_autoencoder,
    linear_autoencoder,
    pretrain,
    sparse_autoencoder,
)

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
