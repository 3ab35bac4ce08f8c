"""The systems of the VAE lecture: recipes where parts suffice, classes where the structure is new."""

from pyrovae.zoo.delta_vae import delta_vae
from pyrovae.zoo.pixel import PixelCNN, PixelDecoder, PixelVAE

__all__ = ["PixelCNN", "PixelDecoder", "PixelVAE", "delta_vae"]
