"""Networks: tensors ``(..., features)`` in, tensors out, with any leading dimensions."""

from pyrovae.networks._architectures import NETWORKS
from pyrovae.networks._conv import ConvDecoder, ConvEncoder
from pyrovae.networks._grid import GridDecoder, GridEncoder
from pyrovae.networks._mlp import MLP, GatedMLP
from pyrovae.networks._pixelcnn import GatedPixelCNN
from pyrovae.networks._quantizer import Quantized, VectorQuantizer, code_counts, perplexity
from pyrovae.networks._residual import ConvCell, DepthwiseCell, SqueezeExcitation
from pyrovae.networks._rowgru import RowGRU
from pyrovae.networks._spectral import SpectralSum
from pyrovae.networks._strided import StridedDecoder, StridedEncoder

__all__ = [
    "MLP",
    "NETWORKS",
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
