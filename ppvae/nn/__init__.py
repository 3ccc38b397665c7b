"""Networks with declared event shapes that accept any number of leading dimensions."""

from ppvae.nn.conv import ConvDecoder, ConvEncoder
from ppvae.nn.layers import activation
from ppvae.nn.mlp import MLP
from ppvae.nn.residual import ConvResidualBlock, ResidualBlock, ResidualMLP
from ppvae.nn.shapes import Batched, Rescale, Reshape, as_shape

__all__ = [
    "MLP",
    "Batched",
    "ConvDecoder",
    "ConvEncoder",
    "ConvResidualBlock",
    "Rescale",
    "Reshape",
    "ResidualBlock",
    "ResidualMLP",
    "activation",
    "as_shape",
]
