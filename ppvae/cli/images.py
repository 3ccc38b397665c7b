"""Images as an example's likelihood wants them, and the likelihood that the flags name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ppvae.cli.flags import ImageArgs
from ppvae.data import DataSet, binarize, load, quantize
from ppvae.distributions import (
    ConditionalBernoulli,
    ConditionalCategorical,
    ConditionalContinuousBernoulli,
    ConditionalDiscretizedLogistic,
    ConditionalNormal,
)


@dataclass(frozen=True)
class ImageData:
    """A data set as a likelihood wants it.

    Attributes:
        train: training images (n, c, h, w), before any dynamic binarization, and their labels.
        valid: held-out images and labels, as test images are.
        test: test images, binarized once where pixels are binary, and labels.
        intensities: test images in grey or colour, in [0, 1], whatever the likelihood is of.
        num_classes: number of classes of the labels.
        levels: number of grey levels of a pixel.
        event_shape: (c, h, w).
        dynamic: whether training images are binarized anew in every epoch.
    """

    train: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    intensities: Tensor
    num_classes: int
    levels: int
    event_shape: tuple[int, ...]
    dynamic: bool = False

    fingerprint: ClassVar[str] = ""

    @property
    def labels(self) -> Tensor:
        """Those of the test images."""
        return self.test[1]

    def describe(self) -> str:
        """Shape, levels and classes of the images, and how many there are of each split."""
        shape = "×".join(map(str, self.event_shape))
        return (
            f"images of {shape}, {self.levels} levels, {self.num_classes} classes: {len(self.train[0])} to train on, "
            f"{len(self.valid[0])} for validation, {len(self.test[0])} for testing"
        )

    def training(self, limit: int | None = None, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        """The first training images, binarized once where pixels are binary, and labels."""
        x, y = (t[:limit] for t in self.train)
        return (binarize(x, seed=seed) if self.dynamic else x), y


def load_images(args: ImageArgs, *, download: bool = True) -> ImageData:
    """The data set of `args`, in the form that its likelihood is defined on.

    Args:
        args: the flags.
        download: whether files that are missing may be fetched.
    """
    data: DataSet = load(
        args.dataset, args.data_root, num_valid=args.num_valid, seed=0, download=download, size=args.image_size
    )
    keep = 256 if args.smoke else None
    discrete = args.likelihood == "categorical"

    def prepare(x: Tensor, *, fixed: bool, seed: int) -> Tensor:
        if discrete:
            return quantize(x, data.levels)
        return binarize(x, seed=seed) if args.binarize != "none" and fixed else x

    splits = [
        (prepare(split.x[:keep], fixed=fixed, seed=seed), split.y[:keep])
        for seed, (split, fixed) in enumerate(
            [(data.test, True), (data.valid, True), (data.train, args.binarize == "static")]
        )
    ]
    return ImageData(
        train=splits[2],
        valid=splits[1],
        test=splits[0],
        intensities=data.test.x[:keep],
        num_classes=data.num_classes,
        levels=data.levels,
        event_shape=tuple(data.event_shape),
        dynamic=args.binarize == "dynamic",
    )


@torch.no_grad()
def start_at_mean(decoder: nn.Module, x: Tensor) -> None:
    """Sets the output bias to the log-odds of the mean image, as the code of Burda et al. 2016 does.

    Args:
        decoder: an MLP from z, and perhaps a condition, to logits (..., c, h, w).
        x: training images (n, c, h, w) with values in [0, 1].
    """
    *_, last = (layer for layer in decoder.modules() if isinstance(layer, nn.Linear))
    last.bias.copy_(torch.logit(x.mean(0).flatten(), eps=1e-3))


def likelihood(args: ImageArgs, decoder: nn.Module, levels: int) -> nn.Module:
    """p(x|z) of the family that `--likelihood` names."""
    if args.likelihood == "bernoulli":
        return ConditionalBernoulli(decoder)
    if args.likelihood == "gaussian":
        return ConditionalNormal(decoder, scale="learned", min_scale=1e-2)
    if args.likelihood == "categorical":
        return ConditionalCategorical(decoder, num_classes=levels)
    if args.likelihood == "continuous-bernoulli":
        return ConditionalContinuousBernoulli(decoder)
    return ConditionalDiscretizedLogistic(decoder, num_levels=levels)
