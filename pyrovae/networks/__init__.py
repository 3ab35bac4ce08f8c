"""Networks: tensors ``(..., features)`` in, tensors out, with any leading dimensions."""

from pyrovae.networks.conv import ConvDecoder, ConvEncoder
from pyrovae.networks.mlp import MLP, GatedMLP
from pyrovae.networks.pixelcnn import GatedPixelCNN
from pyrovae.networks.rowgru import RowGRU

__all__ = ["MLP", "ConvDecoder", "ConvEncoder", "GatedMLP", "GatedPixelCNN", "RowGRU"]
