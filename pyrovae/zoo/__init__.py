"""The systems of the VAE lecture: recipes where parts suffice, classes where the structure is new."""

from pyrovae.zoo import autoencoder
from pyrovae.zoo._beta_vae import beta_vae
from pyrovae.zoo._code_prior import PixelCNNPrior, UniformCodes
from pyrovae.zoo._delta_vae import delta_vae
from pyrovae.zoo._hierarchical import HierarchicalVAE, LadderVAE
from pyrovae.zoo._linear_vae import linear_vae
from pyrovae.zoo._non_amortized import NonAmortizedVAE
from pyrovae.zoo._nvae import NVAE
from pyrovae.zoo._pixel import PixelCNN, PixelDecoder, PixelVAE
from pyrovae.zoo._vqvae import VQVAE
from pyrovae.zoo.autoencoder import *  # noqa: F403

__all__ = [
    "NVAE",
    "VQVAE",
    "HierarchicalVAE",
    "LadderVAE",
    "NonAmortizedVAE",
    "PixelCNN",
    "PixelCNNPrior",
    "PixelDecoder",
    "PixelVAE",
    "UniformCodes",
    "beta_vae",
    "delta_vae",
    "linear_vae",
    *autoencoder.__all__,
]
