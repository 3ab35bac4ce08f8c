"""Autoencoders: models without a density, trained by a loss of their own."""
