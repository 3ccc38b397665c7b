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
from ppvae.nn.sequence_coding import Patches, SequenceDecoder, SequenceEncoder
from ppvae.nn.shapes import Batched, Log1p, Rescale, Reshape, as_shape
from ppvae.nn.temporal import TemporalConv
from ppvae.nn.transformer import Transformer

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
    "Patches",
    "Rescale",
    "Reshape",
    "ResidualBlock",
    "ResidualMLP",
    "SequenceDecoder",
    "SequenceEncoder",
    "SequenceNet",
    "TemporalConv",
    "Transformer",
    "activation",
    "as_shape",
    "check_context",
    "check_labels",
    "check_lengths",
    "within",
]
