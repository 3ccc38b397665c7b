"""Images of which some quadrants are given: the task of Sohn et al. 2015, and what a CVAE is compared with there.

"Learning structured output representation using deep conditional generative models". The quadrants are those of
Pyro's CVAE tutorial: each number of them holds the smaller one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor, nn

from ppvae.cli.images import ImageData
from ppvae.data import Binarize
from ppvae.examples.figures import pixels
from ppvae.means import mean_of
from ppvae.models import CVAE


class Quadrants:
    """Cuts images into the pixels that are given and the rest, each a flat vector in the order of the image.

    Args:
        event_shape: (c, h, w) of an image.
        num_given: quadrants that are given: 1, the bottom left one; 2, the left half; 3, all but the bottom right one.
        device: of the images.
    """

    def __init__(self, event_shape: Sequence[int], num_given: int, device: torch.device | None = None) -> None:
        _, height, width = self.event_shape = tuple(event_shape)
        given = torch.zeros(self.event_shape, dtype=torch.bool)
        given[:, height // 2 :, : width // 2] = True
        if num_given >= 2:
            given[:, : height // 2, : width // 2] = True
        if num_given == 3:
            given[:, : height // 2] = True
        self.rest, self.given = (mask.flatten().nonzero()[:, 0].to(device) for mask in (~given, given))

    def split(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """From images (..., c, h, w) to the rest (..., d) and what is given (..., d of y)."""
        flat = images.flatten(-3)
        return flat.index_select(-1, self.rest), flat.index_select(-1, self.given)

    def join(self, rest: Tensor, given: Tensor) -> Tensor:
        """The images (..., c, h, w) that `split` cut."""
        flat = torch.cat([rest, given], -1)
        order = torch.cat([self.rest, self.given]).argsort()
        return flat.index_select(-1, order).unflatten(-1, self.event_shape)


@dataclass(frozen=True)
class BinarizeAndSplit:
    """Dynamic binarization of whole images, which are then cut into x and y: for `Batches`."""

    quadrants: Quadrants

    def __call__(self, generator: torch.Generator, *batch: Tensor) -> tuple[Tensor, ...]:
        """Pixels 0 or 1 of the rest and of what is given."""
        (images,) = Binarize()(generator, *batch)
        return self.quadrants.split(images)

    def check(self, *tensors: Tensor) -> None:
        """Refuses data that are not probabilities."""
        Binarize().check(*tensors)


class Baseline(nn.Module):
    """A network without a latent, as a pair: x ~ p(x|y), and nothing to infer.

    Args:
        p_x_given_y: likelihood, a module `y -> p(x|y)` that factorises over the pixels of x.
    """

    def __init__(self, p_x_given_y: nn.Module) -> None:
        super().__init__()
        self.p_x_given_y = p_x_given_y

    def model(self, x: Tensor, y: Tensor) -> None:
        """X ~ p(x|y)."""
        with pyro.plate("data", len(x)):
            pyro.sample("x", self.p_x_given_y(y), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """Samples nothing."""


class Completion(nn.Module):
    """A CVAE of the rest of images, with the baseline that it is compared with beside it: as a pair, it is the CVAE.

    The baseline is no part of the module, neither of its parameters nor of its state: the two are trained one after
    the other, and each can be continued without the other.
    """

    def __init__(self, cvae: CVAE, baseline: Baseline) -> None:
        super().__init__()
        self.cvae = cvae
        self._beside = (baseline,)  # what a tuple holds is not registered

    @property
    def beta(self) -> float:
        """Weight of the CVAE's KL term."""
        return self.cvae.beta

    @property
    def baseline(self) -> Baseline:
        """The network without a latent."""
        return self._beside[0]

    def model(self, x: Tensor, y: Tensor) -> None:
        """The CVAE's model."""
        self.cvae.model(x, y)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """The CVAE's guide."""
        self.cvae.guide(x, y)


@torch.no_grad()
def completions(pair: Completion, quadrants: Quadrants, data: ImageData, *, num_samples: int = 6) -> dict[str, Tensor]:
    """Intensities of images (c, channels, h, w), one of each class, by the name of their column.

    Args:
        pair: a trained pair.
        quadrants: what is given of an image.
        data: what it was trained on; the images are test images.
        num_samples: columns of E[x|z,y], each with its own z ~ p(z|y).
    """
    pair.eval()
    pair.baseline.eval()
    device = next(pair.parameters()).device
    images, labels = data.test
    first = torch.stack([(labels == c).nonzero()[0, 0] for c in range(data.num_classes)])
    x, y = quadrants.split(images[first])
    given = pixels(data, y)

    def whole(rest: Tensor) -> Tensor:
        return quadrants.join(pixels(data, rest), given)

    torch.manual_seed(0)
    columns = {"y": quadrants.join(torch.full(x.shape, 0.5), given)}
    columns |= {f"{i + 1}": whole(pair.cvae.sample(y.to(device), mean=True)) for i in range(num_samples)}
    columns["baseline"] = whole(mean_of(pair.baseline.p_x_given_y(y.to(device))))
    return columns | {"x, y": whole(x)}
