"""The systems of the VAE lecture: recipes where parts suffice, classes where the structure is new."""

from pyrovae.zoo.code_prior import PixelCNNPrior, UniformCodes
from pyrovae.zoo.vqvae import VQVAE

__all__ = ["VQVAE", "PixelCNNPrior", "UniformCodes"]
