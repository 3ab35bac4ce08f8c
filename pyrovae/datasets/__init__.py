"""Data sets in [0, 1] with fixed splits, binarised on request."""

from pyrovae.datasets._load import DATASETS, Data, load

__all__ = ["DATASETS", "Data", "load"]
