"""Data sets with fixed splits, in [0, 1], binarised on request."""

from pyrovae.datasets._load import DATASETS, Data, load

__all__ = ["DATASETS", "Data", "load"]
