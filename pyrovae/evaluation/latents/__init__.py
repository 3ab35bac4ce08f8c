"""The ELBO taken apart, and posterior collapse."""
