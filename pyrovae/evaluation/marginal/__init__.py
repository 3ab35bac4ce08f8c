"""log p(x) with its errors: importance sampling, annealed importance sampling, and comparisons of models by them."""
