"""What the approximate posterior loses, and what another one would gain."""
