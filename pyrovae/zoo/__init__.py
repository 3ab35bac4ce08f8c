"""The systems of the VAE lecture: recipes where parts suffice, classes where the structure is new."""

from pyrovae.zoo.hierarchical import HierarchicalVAE, LadderVAE
from pyrovae.zoo.nvae import NVAE

__all__ = ["NVAE", "HierarchicalVAE", "LadderVAE"]
