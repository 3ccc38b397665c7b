"""The multi-layer perceptron."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from ppvae.nn.layers import Layers, Norm
from ppvae.nn.shapes import Net, as_shape, as_sizes, between


class MLP(Net):
    r"""A multi-layer perceptron from ``(..., *in_shape)`` to ``(..., *out_shape)``.

    .. math:: h_{i+1} = a(W_i h_i + b_i), \qquad y = W_L h_L + b_L

    It is a plain sequence of layers on ``(..., d)``: events of one dimension cost no reshape, and only batch
    normalisation, whose statistics are over all leading dimensions, flattens them.

    Args:
        in_shape: Event shape of the input, flattened before the first layer; an int means one dimension.
        hidden_dims: Widths of the hidden layers; with none the net is one affine map.
        out_shape: Event shape of the output; an int means one dimension.
        activation: Name of the activation after each hidden layer, see :func:`ppvae.nn.activation`; or ``"gated"``,
            :math:`h_{i+1} = (A_i h_i + a_i) \odot \mathrm{sigmoid}(B_i h_i + b_i)`.
        norm: Normalisation before each activation: ``"batch"``, ``"layer"`` or None.
        dropout: Probability of dropping a hidden unit, in [0, 1).
        spectral_norm: Whether each weight matrix is divided by its largest singular value, which bounds the
            Lipschitz constant of every layer by one.

    Raises:
        ValueError: If a shape, a width or an option is not one of the above.

    References:
        Language Modeling with Gated Convolutional Networks (Dauphin et al. 2017), arXiv 1612.08083: the gate.
        Batch Normalization (Ioffe & Szegedy 2015), arXiv 1502.03167.
        Layer Normalization (Ba et al. 2016), arXiv 1607.06450.
        Spectral Normalization for Generative Adversarial Networks (Miyato et al. 2018), arXiv 1802.05957.

    Example:
        >>> import torch
        >>> net = MLP((1, 28, 28), (400,), (2, 20))  # mean and scale of 20 latents
        >>> net(torch.zeros(128, 1, 28, 28)).shape
        torch.Size([128, 2, 20])
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        hidden_dims: int | Sequence[int],
        out_shape: int | Sequence[int],
        *,
        activation: str = "relu",
        norm: Norm | None = None,
        dropout: float = 0.0,
        spectral_norm: bool = False,
    ) -> None:
        in_shape, out_shape = as_shape(in_shape, "in_shape"), as_shape(out_shape, "out_shape")
        make = Layers(activation, norm, dropout, spectral_norm, gates=True)
        dims = (math.prod(in_shape), *as_sizes(hidden_dims, "hidden_dims"))
        layers: list[nn.Module] = []
        for d_in, d_out in pairwise(dims):
            layers += [make.weight(nn.Linear(d_in, make.before(d_out), bias=make.hidden_bias)), *make.vector(d_out)]
        layers.append(make.weight(nn.Linear(dims[-1], math.prod(out_shape))))
        super().__init__(*between(in_shape, layers, out_shape))
        self.in_shape, self.out_shape = in_shape, out_shape
