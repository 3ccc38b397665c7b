"""Pre-activation residual blocks for vectors and for images, and a net of them."""

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from ppvae._validate import check_count
from ppvae.nn.layers import Layers, Norm
from ppvae.nn.shapes import Net, as_shape, between


class ResidualBlock(nn.Module):
    r"""A pre-activation residual block on vectors ``(..., dim)``.

    .. math:: y = x + W_2\, a(W_1\, a(x))

    with the normalisation, where there is one, before each activation, and dropout after the second one.

    Args:
        dim: Size of the vectors.
        activation: Name of the activation, see :func:`ppvae.nn.activation`.
        norm: Normalisation before each activation: ``"batch"``, ``"layer"`` or None.
        dropout: Probability of dropping a unit, in [0, 1).
        spectral_norm: Whether each weight matrix is divided by its largest singular value.

    Raises:
        ValueError: If the size or an option is not one of the above.

    References:
        Identity Mappings in Deep Residual Networks (He et al. 2016), arXiv 1603.05027.

    Example:
        >>> import torch
        >>> ResidualBlock(64, norm="layer")(torch.zeros(5, 128, 64)).shape
        torch.Size([5, 128, 64])
    """

    def __init__(
        self,
        dim: int,
        *,
        activation: str = "relu",
        norm: Norm | None = None,
        dropout: float = 0.0,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        self.in_shape = self.out_shape = (check_count("dim", dim),)
        make = Layers(activation, norm, dropout, spectral_norm)
        self.body = nn.Sequential(
            *replace(make, dropout=0.0).vector(dim),
            make.weight(nn.Linear(dim, dim, bias=make.hidden_bias)),
            *make.vector(dim),
            make.weight(nn.Linear(dim, dim, bias=make.hidden_bias)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(..., dim)`` to ``(..., dim)``."""
        return x + self.body(x)


class ConvResidualBlock(nn.Module):
    """A pre-activation residual block of two 3×3 convolutions on images ``(n, channels, h, w)`` of any size.

    .. math:: y = x + W_2 * a(W_1 * a(x))

    The image size is free, so there is no event shape to tell the leading dimensions by: as a convolution, it
    takes exactly one, and :class:`ppvae.nn.Batched` gives it others.

    Args:
        channels: Number of channels, kept.
        activation: Name of the activation, see :func:`ppvae.nn.activation`.
        norm: Normalisation before each activation: ``"batch"``, ``"layer"`` or None.
        dropout: Probability of dropping a channel, in [0, 1).
        spectral_norm: Whether each kernel, as a matrix of output by input × taps, is divided by its largest
            singular value.

    Raises:
        ValueError: If the number of channels or an option is not one of the above.

    References:
        Identity Mappings in Deep Residual Networks (He et al. 2016), arXiv 1603.05027.

    Example:
        >>> import torch
        >>> ConvResidualBlock(16)(torch.zeros(2, 16, 7, 5)).shape
        torch.Size([2, 16, 7, 5])
    """

    def __init__(
        self,
        channels: int,
        *,
        activation: str = "relu",
        norm: Norm | None = None,
        dropout: float = 0.0,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        c = check_count("channels", channels)
        make = Layers(activation, norm, dropout, spectral_norm)
        self.body = nn.Sequential(
            *replace(make, dropout=0.0).image(c),
            make.weight(nn.Conv2d(c, c, 3, padding=1, bias=make.hidden_bias)),
            *make.image(c),
            make.weight(nn.Conv2d(c, c, 3, padding=1, bias=make.hidden_bias)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(n, channels, h, w)`` to ``(n, channels, h, w)``."""
        return x + self.body(x)


class ResidualMLP(Net):
    """A residual net from ``(..., *in_shape)`` to ``(..., *out_shape)``: affine, blocks, activation, affine.

    Args:
        in_shape: Event shape of the input, flattened before the first layer; an int means one dimension.
        hidden_dim: Width of the residual stream.
        num_blocks: Number of :class:`ResidualBlock`, at least one.
        out_shape: Event shape of the output; an int means one dimension.
        activation: Name of the activation, see :func:`ppvae.nn.activation`.
        norm: Normalisation before each activation: ``"batch"``, ``"layer"`` or None.
        dropout: Probability of dropping a unit, in the blocks and before the last layer, in [0, 1).
        spectral_norm: Whether each weight matrix is divided by its largest singular value.

    Raises:
        ValueError: If a shape, a size or an option is not one of the above.

    References:
        Identity Mappings in Deep Residual Networks (He et al. 2016), arXiv 1603.05027.

    Example:
        >>> import torch
        >>> ResidualMLP(20, 64, 2, (1, 28, 28))(torch.zeros(5, 128, 20)).shape
        torch.Size([5, 128, 1, 28, 28])
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        hidden_dim: int,
        num_blocks: int,
        out_shape: int | Sequence[int],
        *,
        activation: str = "relu",
        norm: Norm | None = None,
        dropout: float = 0.0,
        spectral_norm: bool = False,
    ) -> None:
        in_shape, out_shape = as_shape(in_shape, "in_shape"), as_shape(out_shape, "out_shape")
        d = check_count("hidden_dim", hidden_dim)
        make = Layers(activation, norm, dropout, spectral_norm)
        blocks = [
            ResidualBlock(d, activation=activation, norm=norm, dropout=dropout, spectral_norm=spectral_norm)
            for _ in range(check_count("num_blocks", num_blocks))
        ]
        layers = [
            make.weight(nn.Linear(math.prod(in_shape), d, bias=make.hidden_bias)),
            *blocks,
            *make.vector(d),
            make.weight(nn.Linear(d, math.prod(out_shape))),
        ]
        super().__init__(*between(in_shape, layers, out_shape))
        self.in_shape, self.out_shape = in_shape, out_shape
