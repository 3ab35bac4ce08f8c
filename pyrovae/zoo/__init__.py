"""The systems of the VAE lecture: recipes where parts suffice, classes where the structure is new."""

from pyrovae.zoo.linear_vae import linear_vae
from pyrovae.zoo.non_amortized import NonAmortizedVAE

__all__ = ["NonAmortizedVAE", "linear_vae"]
