"""Networks with declared event shapes that accept any number of leading dimensions."""

from ppvae.nn.causal import CausalTransformer
from ppvae.nn.concat import ConcatInputs
from ppvae.nn.conditional_mlp import ConditionalMLP, ConditionalSequential
from ppvae.nn.conditioning import Concat, ConditionalBatchNorm, Conditioning, CrossAttention, FiLM, check_context
from ppvae.nn.context import OneHot, check_labels
from ppvae.nn.conv import ConvDecoder, ConvEncoder
from ppvae.nn.layers import activation
from ppvae.nn.markov import Combiner, GatedTransition
from ppvae.nn.mlp import MLP
from ppvae.nn.residual import ConvResidualBlock, ResidualBlock, ResidualMLP
from ppvae.nn.sequence import RNN, SequenceNet, check_lengths, within
from ppvae.nn.shapes import Batched, Log1p, Rescale, Reshape, as_shape

__all__ = [
    "MLP",
    "RNN",
    "Batched",
    "CausalTransformer",
    "Combiner",
    "Concat",
    "ConcatInputs",
    "ConditionalBatchNorm",
    "ConditionalMLP",
    "ConditionalSequential",
    "Conditioning",
    "ConvDecoder",
    "ConvEncoder",
    "ConvResidualBlock",
    "CrossAttention",
    "FiLM",
    "GatedTransition",
    "Log1p",
    "OneHot",
    "Rescale",
    "Reshape",
    "ResidualBlock",
    "ResidualMLP",
    "SequenceNet",
    "activation",
    "as_shape",
    "check_context",
    "check_labels",
    "check_lengths",
    "within",
]
