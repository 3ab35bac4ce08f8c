"""The systems of the VAE lecture: recipes where parts suffice, classes where the structure is new."""

from pyrovae.zoo.delta_vae import delta_vae

__all__ = ["delta_vae"]
