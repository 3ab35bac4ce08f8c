"""Networks: tensors ``(..., features)`` in, tensors out, with any leading dimensions."""

from pyrovae.networks.conv import ConvDecoder, ConvEncoder
from pyrovae.networks.grid import GridDecoder, GridEncoder
from pyrovae.networks.mlp import MLP, GatedMLP
from pyrovae.networks.residual import ConvCell, DepthwiseCell, SqueezeExcitation
from pyrovae.networks.spectral import SpectralSum

__all__ = [
    "MLP",
    "ConvCell",
    "ConvDecoder",
    "ConvEncoder",
    "DepthwiseCell",
    "GatedMLP",
    "SpectralSum",
    "SqueezeExcitation",
]
from pyrovae.networks.strided import StridedDecoder, StridedEncoder

__all__ = ["MLP", "ConvDecoder", "ConvEncoder", "GatedMLP", "StridedDecoder", "StridedEncoder"]
from pyrovae.networks.pixelcnn import GatedPixelCNN
from pyrovae.networks.quantizer import Quantized, VectorQuantizer, code_counts, perplexity
from pyrovae.networks.rowgru import RowGRU

__all__ = [
    "MLP",
    "ConvDecoder",
    "ConvEncoder",
    "GatedMLP",
    "GatedPixelCNN",
    "GridDecoder",
    "GridEncoder",
    "Quantized",
    "RowGRU",
    "VectorQuantizer",
    "code_counts",
    "perplexity",
]
