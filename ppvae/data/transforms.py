"""Random and fixed maps between grey levels, intensities and binary pixels.

A `Transform` is applied by `Batches` to every minibatch, with a generator that belongs to the epoch:
`Binarize` and `Dequantize` are the two that image likelihoods ask for. `binarize`, `quantize` and
`dequantize` are functions of a whole tensor.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ppvae._validate import check_count, check_seed, check_tensor
from ppvae.rng import stream


class Transform(Protocol):
    """What `Batches` does to each minibatch: any callable of a generator and the batch's tensors.

    A transform may also have a method `check(*tensors)`, which `Batches` calls once with all its data. Values
    are checked there, because a check at every step would make a GPU wait.

    Example:
        >>> import torch
        >>> from ppvae.data import Batches
        >>> def jitter(generator, x):
        ...     return (x + 0.1 * torch.randn(x.shape, generator=generator, device=x.device),)
        >>> (x,) = next(iter(Batches(torch.zeros(4, 2), batch_size=4, transform=jitter)))
        >>> x.shape
        torch.Size([4, 2])
    """

    def __call__(self, generator: torch.Generator, *batch: Any) -> tuple[Any, ...]:
        """Return the minibatch to train on.

        Args:
            generator: the only source of randomness to use, on the batch's device.
            *batch: tensors with the same leading dimension n, and None where the data have none.

        Returns:
            The tensors of the new minibatch.
        """


@dataclass(frozen=True)
class Binarize:
    """Dynamic binarization: the first tensor of the batch becomes a fresh Bernoulli draw.

    b_ij ~ Bernoulli(x_ij), drawn anew at every visit; the other tensors pass through. That 0 <= x_ij <= 1 is
    checked once, by `check`, and not at each call.

    References:
        Burda, Grosse, Salakhutdinov (2016), Importance Weighted Autoencoders, arXiv 1509.00519.
        Salakhutdinov, Murray (2008), On the Quantitative Analysis of Deep Belief Networks.

    Example:
        >>> import torch
        >>> from ppvae.data import Batches, Binarize
        >>> batches = Batches(torch.full((8, 3), 0.5), batch_size=8, transform=Binarize())
        >>> (first,), (second,) = next(batches.epoch(0)), next(batches.epoch(1))
        >>> first.unique(), torch.equal(first, second)
        (tensor([0., 1.]), False)
    """

    def __call__(self, generator: torch.Generator, *batch: Tensor) -> tuple[Tensor, ...]:
        """Draw the binary pixels of one minibatch.

        Args:
            generator: source of the draw, on the batch's device.
            *batch: intensities in [0, 1], shape (n, ...), then whatever accompanies them.

        Returns:
            Pixels 0 or 1, with the shape and dtype of the intensities, then the other tensors as they came.
        """
        x, *others = batch
        # Four times quicker on a CPU than torch.bernoulli, and as exact: P(u < x) = x.
        pixels = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device) < x
        return pixels.to(x.dtype), *others

    def check(self, *tensors: Tensor) -> None:
        """Refuse data that are not probabilities.

        Args:
            *tensors: the data; the first holds the intensities.

        Raises:
            TypeError: if the first tensor is not floating.
            ValueError: if one of its values lies outside [0, 1].
        """
        _check_intensities("Binarize: the first tensor", tensors[0])


@dataclass(frozen=True)
class Dequantize:
    """Uniform dequantization: the first tensor of the batch gets noise that fills each grey level's bin.

    y = (k + u) / levels in [0, 1), where k = x (levels - 1) is the grey level and u ~ Uniform[0, 1). The log
    density of y, averaged over u, is then a lower bound of log P(k) + d log(levels) for d pixels.

    Args:
        levels: number of grey levels of the data, at least 2.

    Raises:
        ValueError: if `levels` is no whole number >= 2.

    References:
        Theis, van den Oord, Bethge (2016), A note on the evaluation of generative models, arXiv 1511.01844.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 0.5, 1.0]])
        >>> (y,) = Dequantize(levels=3)(torch.Generator().manual_seed(0), x)
        >>> (y * 3).floor()
        tensor([[0., 1., 2.]])
    """

    levels: int

    def __post_init__(self) -> None:
        check_count("levels", self.levels, at_least=2)

    def __call__(self, generator: torch.Generator, *batch: Tensor) -> tuple[Tensor, ...]:
        """Draw the continuous pixels of one minibatch.

        Args:
            generator: source of the noise, on the batch's device.
            *batch: intensities k / (levels - 1), shape (n, ...), then whatever accompanies them.

        Returns:
            Intensities in [0, 1), of the same shape and dtype, then the other tensors as they came.
        """
        x, *others = batch
        u = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        # Shrunk by a few ulps: the rounding of k + u must not reach the next bin, nor y the value 1.
        u *= 1 - self.levels * torch.finfo(x.dtype).eps
        return u.add_((x * (self.levels - 1)).round_()).div_(self.levels), *others

    def check(self, *tensors: Tensor) -> None:
        """Refuse data that are not grey levels of this number.

        Args:
            *tensors: the data; the first holds the intensities k / (levels - 1).

        Raises:
            TypeError: if the first tensor is neither float32 nor float64.
            ValueError: if one of its values lies outside [0, 1] or between two grey levels.
        """
        x = tensors[0]
        _check_intensities("Dequantize: the first tensor", x)
        if x.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"Dequantize: the first tensor must be float32 or float64, got {x.dtype}")
        k = x * (self.levels - 1)
        off_grid = (k - k.round()).abs_() > 4 * self.levels * torch.finfo(x.dtype).eps
        if off_grid.any():
            raise ValueError(
                f"Dequantize: the first tensor must hold k / {self.levels - 1} for k = 0..{self.levels - 1}, "
                f"got {x[off_grid][0].item():.6g}; is levels={self.levels} right for these data?"
            )


@dataclass(frozen=True)
class RandomPart:
    """Of each image a rectangle that is seen, drawn anew at every visit: what a partial encoder is trained on.

    Its height and width are uniform, up to those of the image, and so is its place.

    Args:
        then: a transform of the images that comes first, such as `Binarize()`; None is none.

    Example:
        >>> import torch
        >>> from ppvae.data import Batches, Binarize, RandomPart
        >>> batches = Batches(torch.rand(6, 1, 8, 8), batch_size=6, transform=RandomPart(Binarize()))
        >>> x, seen = next(iter(batches))
        >>> x.shape, seen.shape, seen.dtype
        (torch.Size([6, 1, 8, 8]), torch.Size([6, 1, 8, 8]), torch.bool)
    """

    then: Transform | None = None

    def __call__(self, generator: torch.Generator, *batch: Tensor) -> tuple[Tensor, ...]:
        """Return the images (n, channels, h, w), and which of their pixels are seen."""
        (x,) = batch if self.then is None else self.then(generator, *batch)
        height, width = x.shape[-2:]
        tall, wide, top, left = (torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) for _ in range(4))
        rows = (torch.arange(height, device=x.device) + 0.5).reshape(height, 1) / height
        columns = (torch.arange(width, device=x.device) + 0.5) / width
        down, across = top * (1 - tall), left * (1 - wide)
        seen = (rows >= down) & (rows < down + tall) & (columns >= across) & (columns < across + wide)
        return x, seen.expand(x.shape)

    def check(self, *tensors: Tensor) -> None:
        """Check once that the data are images, and all that the first transform checks."""
        if len(tensors) != 1 or tensors[0].dim() != 4:
            shapes = [tuple(tensor.shape) for tensor in tensors]
            raise ValueError(f"tensors must be images (n, channels, h, w) alone, got shapes {shapes}")
        if (check := getattr(self.then, "check", None)) is not None:
            check(*tensors)


def binarize(x: Tensor, *, seed: int = 0) -> Tensor:
    """Binarize intensities once and for all: b_ij ~ Bernoulli(x_ij), a function of `x` and `seed` only.

    The numbers are drawn on the CPU, so that every device sees the same pixels.

    Args:
        x: intensities in [0, 1], any shape, floating.
        seed: which draw, at least 0.

    Returns:
        Pixels 0 or 1, with the shape, dtype and device of `x`.

    Raises:
        TypeError: if `x` is not a floating tensor.
        ValueError: if a value of `x` lies outside [0, 1] or `seed` is no whole number >= 0.

    References:
        Salakhutdinov, Murray (2008), On the Quantitative Analysis of Deep Belief Networks.

    Example:
        >>> import torch
        >>> x = torch.full((2, 3), 0.5)
        >>> torch.equal(binarize(x, seed=1), binarize(x, seed=1))
        True
    """
    _check_intensities("x", x)
    check_seed(seed)
    (pixels,) = Binarize()(stream(seed), x.cpu())
    return pixels.to(x.device)


def quantize(x: Tensor, levels: int) -> Tensor:
    """Round intensities in [0, 1] to grey levels: k = round(x (levels - 1)).

    Args:
        x: intensities in [0, 1], any shape, floating.
        levels: number of grey levels, at least 2.

    Returns:
        Grey levels 0 .. levels - 1, the shape of `x`, int64.

    Raises:
        TypeError: if `x` is not a floating tensor.
        ValueError: if a value of `x` lies outside [0, 1] or `levels` is no whole number >= 2.

    Example:
        >>> import torch
        >>> quantize(torch.tensor([0.0, 0.4, 1.0]), 256)
        tensor([  0, 102, 255])
    """
    check_count("levels", levels, at_least=2)
    _check_intensities("x", x)
    return (x * (levels - 1)).round_().long()


def dequantize(k: Tensor, levels: int) -> Tensor:
    """Return the intensities of grey levels: x = k / (levels - 1), the inverse of `quantize`.

    Args:
        k: grey levels 0 .. levels - 1, any shape, integer.
        levels: number of grey levels, at least 2.

    Returns:
        Intensities in [0, 1], the shape of `k`, of the default floating type.

    Raises:
        TypeError: if `k` is not an integer tensor.
        ValueError: if a value of `k` is not a grey level or `levels` is no whole number >= 2.

    Example:
        >>> import torch
        >>> dequantize(torch.tensor([0, 102, 255]), 256)
        tensor([0.0000, 0.4000, 1.0000])
    """
    check_count("levels", levels, at_least=2)
    check_tensor("k", k)
    if k.is_floating_point() or k.is_complex() or k.dtype == torch.bool:
        raise TypeError(f"k must hold integer grey levels, got {k.dtype}")
    if k.numel():
        low, high = (bound.item() for bound in torch.aminmax(k))
        if low < 0 or high >= levels:
            raise ValueError(f"k must lie in 0..{levels - 1}, got values from {low} to {high}")
    return k / (levels - 1)


def _check_intensities(name: str, x: object) -> None:
    """Refuse anything but a floating tensor with values in [0, 1]."""
    x = check_tensor(name, x)
    if not x.is_floating_point():
        raise TypeError(f"{name} must hold floating intensities in [0, 1], got {x.dtype}")
    if x.numel():
        low, high = (bound.item() for bound in torch.aminmax(x.detach()))
        # Written so that NaN, which fails every comparison, is refused as well.
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{name} must lie in [0, 1], got values from {low:.6g} to {high:.6g}")
