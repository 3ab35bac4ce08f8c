"""Networks: tensors ``(..., features)`` in, tensors out, with any leading dimensions."""

from pyrovae.networks.conv import ConvDecoder, ConvEncoder
from pyrovae.networks.grid import GridDecoder, GridEncoder
from pyrovae.networks.mlp import MLP, GatedMLP
from pyrovae.networks.pixelcnn import GatedPixelCNN
from pyrovae.networks.quantizer import Quantized, VectorQuantizer, code_counts, perplexity
from pyrovae.networks.residual import ConvCell, DepthwiseCell, SqueezeExcitation
from pyrovae.networks.rowgru import RowGRU
from pyrovae.networks.spectral import SpectralSum
from pyrovae.networks.strided import StridedDecoder, StridedEncoder

__all__ = [
    "MLP",
    "ConvCell",
    "ConvDecoder",
    "ConvEncoder",
    "DepthwiseCell",
    "GatedMLP",
    "GatedPixelCNN",
    "GridDecoder",
    "GridEncoder",
    "Quantized",
    "RowGRU",
    "SpectralSum",
    "SqueezeExcitation",
    "StridedDecoder",
    "StridedEncoder",
    "VectorQuantizer",
    "code_counts",
    "perplexity",
]
