"""Data in whatever form they come, as batches on the device, epoch after epoch."""

from pyrovae.training.batches._base import Batch, Batches, Model, Tensors, Transform
from pyrovae.training.batches._data import as_batches, as_fields, hold_out, with_splits

__all__ = ["Batch", "Batches", "Model", "Tensors", "Transform", "as_batches", "as_fields", "hold_out", "with_splits"]
