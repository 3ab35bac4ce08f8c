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
from pyrovae.zoo.autoencoder import (
    Autoencoder,
    ContractionPenalty,
    Corruption,
    GaussianNoise,
    KLPenalty,
    L1Penalty,
    MaskingNoise,
    Penalty,
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
    "Corruption",
    "GaussianNoise",
    "HierarchicalVAE",
    "KLPenalty",
    "L1Penalty",
    "LadderVAE",
    "MaskingNoise",
    "NonAmortizedVAE",
    "Penalty",
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
