"""The systems of the VAE lecture: recipes where parts suffice, classes where the structure is new."""
