"""The systems of the VAE lecture: recipes where parts suffice, classes where the structure is new."""

from pyrovae.zoo.beta_vae import beta_vae

__all__ = ["beta_vae"]
