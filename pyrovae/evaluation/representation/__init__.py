"""What the codes are good for: disentanglement, and latent spaces that one can walk in."""
