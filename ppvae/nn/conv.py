"""Convolutional encoder and decoder for images of any size and any number of channels."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from ppvae._validate import check_count
from ppvae.nn.layers import Layers, Norm
from ppvae.nn.residual import ConvResidualBlock
from ppvae.nn.shapes import Batched, Net, Reshape, as_shape, as_sizes


class ConvEncoder(Net):
    """A convolutional net from images ``(..., c, h, w)`` to ``(..., *out_shape)``.

    One 3×3 convolution of stride 2 per entry of ``channels``, each to half the size rounded up, with residual
    blocks after it if asked for; then one affine map of all that is left.

    Args:
        in_shape: Image shape ``(c, h, w)``, of any size.
        channels: Output channels of each halving, from fine to coarse.
        out_shape: Event shape of the output; an int means one dimension.
        activation: Name of the activation, see :func:`ppvae.nn.activation`.
        norm: Normalisation before each activation: ``"batch"``, ``"layer"`` (over an image's channels and
            pixels) or None.
        dropout: Probability of dropping a channel, in [0, 1).
        spectral_norm: Whether each weight, as a matrix with one row per output, is divided by its largest
            singular value.
        num_residual: Number of :class:`ppvae.nn.ConvResidualBlock` after each halving.

    Raises:
        ValueError: If a shape or an option is not one of the above, or if there are more halvings than the
            image size allows.

    References:
        Unsupervised Representation Learning with DCGANs (Radford et al. 2016), arXiv 1511.06434.

    Example:
        >>> import torch
        >>> net = ConvEncoder((3, 33, 17), (32, 64), (2, 20))
        >>> net(torch.zeros(5, 128, 3, 33, 17)).shape
        torch.Size([5, 128, 2, 20])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        channels: int | Sequence[int],
        out_shape: int | Sequence[int],
        *,
        activation: str = "relu",
        norm: Norm | None = None,
        dropout: float = 0.0,
        spectral_norm: bool = False,
        num_residual: int = 0,
    ) -> None:
        in_shape, out_shape = as_shape(in_shape, "in_shape"), as_shape(out_shape, "out_shape")
        if len(in_shape) != 3:
            raise ValueError(f"in_shape must be an image shape (c, h, w), got {in_shape}")
        channels = as_sizes(channels, "channels")
        make = Layers(activation, norm, dropout, spectral_norm)
        coarsest = _halvings(in_shape[1:], len(channels))[-1]
        layers: list[nn.Module] = []
        for c_in, c_out in pairwise((in_shape[0], *channels)):
            layers.append(make.weight(nn.Conv2d(c_in, c_out, 3, 2, padding=1, bias=make.hidden_bias)))
            layers += _finish(c_out, make, num_residual)
        d = math.prod(((in_shape[0], *channels)[-1], *coarsest))
        layers += [nn.Flatten(), make.weight(nn.Linear(d, math.prod(out_shape)))]
        super().__init__(Batched(nn.Sequential(*layers), in_shape, out_shape))
        self.in_shape, self.out_shape = in_shape, out_shape


class ConvDecoder(Net):
    """A convolutional net from ``(..., *in_shape)`` to images ``(..., *out_shape)``.

    The mirror of :class:`ConvEncoder`: one affine map to the coarsest feature map, then a doubling per entry
    of ``channels``, through exactly the sizes that the encoder halves through, the last one to the output.

    Args:
        in_shape: Event shape of the input; an int means one dimension.
        channels: Channels of the feature map before each doubling, from coarse to fine.
        out_shape: Image shape ``(c, h, w)``, of any size, after any parameter dimensions: ``(2, c, h, w)``
            for a mean and a scale of each pixel. Parameters are more channels of the last convolution.
        activation: Name of the activation, see :func:`ppvae.nn.activation`.
        norm: Normalisation before each activation: ``"batch"``, ``"layer"`` (over an image's channels and
            pixels) or None.
        dropout: Probability of dropping a channel, in [0, 1).
        spectral_norm: Whether each weight, as a matrix with one row per output, is divided by its largest
            singular value.
        num_residual: Number of :class:`ppvae.nn.ConvResidualBlock` before each doubling.

    Raises:
        ValueError: If a shape or an option is not one of the above, or if there are more doublings than the
            image size allows.

    References:
        Unsupervised Representation Learning with DCGANs (Radford et al. 2016), arXiv 1511.06434.

    Example:
        >>> import torch
        >>> net = ConvDecoder(20, (64, 32), (2, 3, 33, 17))
        >>> net(torch.zeros(5, 128, 20)).shape
        torch.Size([5, 128, 2, 3, 33, 17])
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        channels: int | Sequence[int],
        out_shape: Sequence[int],
        *,
        activation: str = "relu",
        norm: Norm | None = None,
        dropout: float = 0.0,
        spectral_norm: bool = False,
        num_residual: int = 0,
    ) -> None:
        in_shape, out_shape = as_shape(in_shape, "in_shape"), as_shape(out_shape, "out_shape")
        if len(out_shape) < 3:
            raise ValueError(f"out_shape must end in an image shape (c, h, w), got {out_shape}")
        channels = (*as_sizes(channels, "channels"), math.prod(out_shape[:-2]))
        make = Layers(activation, norm, dropout, spectral_norm)
        *finer, coarsest = _halvings(out_shape[-2:], len(channels) - 1)
        d, first = math.prod(in_shape), (channels[0], *coarsest)
        linear = make.weight(nn.Linear(d, math.prod(first)))
        layers = [Reshape(in_shape, d), linear, Reshape(math.prod(first), first)]
        for (c_in, c_out), size in zip(pairwise(channels), reversed(finer), strict=True):
            bias = make.hidden_bias or size == out_shape[-2:]  # no norm takes the output's bias off again
            conv = make.weight(nn.ConvTranspose2d(c_in, c_out, 4, 2, padding=1, bias=bias))
            layers += [*_finish(c_in, make, num_residual), _Double(conv, size)]
        super().__init__(Batched(nn.Sequential(*layers), in_shape, out_shape))
        self.in_shape, self.out_shape = in_shape, out_shape


class _Double(nn.Module):
    """A transposed convolution to about twice the size, cut to exactly ``size``.

    A kernel of 4 at stride 2 reaches each output pixel through 2×2 taps. A kernel of 3 would make odd sizes
    without a cut, but reaches its pixels through one, two or four taps, which draws a checkerboard (Odena et
    al. 2016, distill.pub/2016/deconv-checkerboard). Upsampling before a 3×3 convolution takes 9 taps for 4.
    """

    def __init__(self, conv: nn.Module, size: tuple[int, ...]) -> None:
        super().__init__()
        self.conv, self.size = conv, size

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(n, c_in, ceil(h / 2), ceil(w / 2))`` to ``(n, c_out, h, w)``."""
        h, w = self.size
        return self.conv(x)[..., :h, :w]


def _finish(channels: int, make: Layers, num_residual: int) -> list[nn.Module]:
    """Returns what follows a convolution: residual blocks, then norm, activation and dropout."""
    check_count("num_residual", num_residual, at_least=0)
    blocks = [
        ConvResidualBlock(
            channels,
            activation=make.activation,
            norm=make.norm,
            dropout=make.dropout,
            spectral_norm=make.spectral_norm,
        )
        for _ in range(num_residual)
    ]
    return [*blocks, *make.image(channels)]


def _halvings(size: tuple[int, ...], times: int) -> list[tuple[int, ...]]:
    """Returns the sizes ``(h, w)`` from fine to coarse, each half the one before, rounded up."""
    possible = (max(size) - 1).bit_length()
    if times > possible:
        raise ValueError(
            f"channels has {times} entries, each for one halving of the image, "
            f"but {size[0]}×{size[1]} can be halved {possible} times at most"
        )
    return [tuple(math.ceil(side / 2**i) for side in size) for i in range(times + 1)]
