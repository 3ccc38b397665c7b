"""Images that are a function of known factors: one for each combination of the factors' values.

```
load_factors("sprites") ──► FactorData ──► Batches(data.subset(n), transform=Render(data)) ──► a pair
```

Minibatches hold row numbers, and their images are made when they are needed, on the device: 737,280 sprites take a
table of 6.5 MB, and not 3 GB.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppvae._validate import check_count, check_seed, check_tensor
from ppvae.data.transforms import Transform
from ppvae.rng import permutation


class FactorData(ABC):
    """A full factorial of images, in the order of nested loops over the factors, the last one fastest.

    Args:
        sizes: how many values each factor has, by its name, in the order of the loops.
        categorical: names of the factors whose values have no order.
        event_shape: (c, h, w) of an image.
        levels: number of grey levels of a pixel.

    Attributes:
        names: of the factors, f of them.
    """

    def __init__(
        self, sizes: dict[str, int], *, categorical: Sequence[str], event_shape: Sequence[int], levels: int
    ) -> None:
        self.names = tuple(sizes)
        self.sizes = tuple(sizes.values())
        self.categorical = tuple(categorical)
        self.event_shape = torch.Size(event_shape)
        self.levels = levels

    def __len__(self) -> int:
        """How many images there are, N."""
        return math.prod(self.sizes)

    @abstractmethod
    def grey_levels(self, rows: Tensor) -> Tensor:
        """The images of these rows, uint8 of shape (n, c, h, w), on the device of `rows`, which are not checked."""

    def images(self, rows: Tensor) -> Tensor:
        """Intensities in [0, 1] of the images of these rows.

        Args:
            rows: numbers from 0 to N − 1, shape (n,).

        Returns:
            Shape (n, c, h, w), float32, on the device of `rows`.
        """
        self.check_rows(rows)
        return self.grey_levels(rows).float().div_(self.levels - 1)

    def factors(self, rows: Tensor) -> Tensor:
        """The factors' values, each counted from 0, of these rows.

        Args:
            rows: numbers from 0 to N − 1, shape (n,).

        Returns:
            Shape (n, f), int64.
        """
        self.check_rows(rows)
        values = []
        for size in reversed(self.sizes):
            values.append(rows % size)
            rows = rows // size
        return torch.stack(values[::-1], -1)

    def rows(self, factors: Tensor) -> Tensor:
        """The row numbers, shape (n,), of the images with these factors, integers of shape (n, f).

        Raises:
            ValueError: where the shape is another, or a factor has no such value.
        """
        factors, sizes = check_tensor("factors", factors), torch.tensor(self.sizes, device=factors.device)
        if factors.dim() != 2 or factors.shape[1] != len(self.sizes) or factors.is_floating_point():
            raise ValueError(
                f"factors must be integers of shape (n, {len(self.sizes)}), got {factors.dtype}, "
                f"shape {tuple(factors.shape)}"
            )
        if bool(((factors < 0) | (factors >= sizes)).any()):
            raise ValueError(f"factors must be at least 0 and below {self.sizes}, got others")
        rows = torch.zeros(len(factors), dtype=torch.int64, device=factors.device)
        for j, size in enumerate(self.sizes):
            rows = rows * size + factors[:, j]
        return rows

    def subset(self, num: int, *, seed: int = 0) -> Tensor:
        """Some of the rows at random, without repetition: their numbers, shape (num,), int64.

        Those of fewer are the first of those of more, for one seed.

        Args:
            num: how many.
            seed: which; the same on every machine.

        Raises:
            ValueError: where there are not so many.
        """
        check_count("num", num)
        if num > len(self):
            raise ValueError(f"num must be at most the {len(self)} images that there are, got {num}")
        return permutation(len(self), check_seed(seed))[:num]

    def check_rows(self, rows: Tensor) -> None:
        """Checks that these are row numbers.

        Raises:
            TypeError: where they are no integers.
            ValueError: where the shape is another, or there is no such row.
        """
        rows = check_tensor("rows", rows)
        if rows.is_floating_point() or rows.dtype == torch.bool:
            raise TypeError(f"rows must be integers, got {rows.dtype}")
        if rows.dim() != 1:
            raise ValueError(f"rows must have shape (n,), got {tuple(rows.shape)}")
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise ValueError(f"rows must be from 0 to {len(self) - 1}, got {int(rows.min())} to {int(rows.max())}")


class StoredFactors(FactorData):
    """Images in memory, of a file or of your own.

    Args:
        pixels: grey levels of all images in the order of the factors, shape (N, c, h, w), uint8.
        sizes: how many values each factor has, by its name, in the order of the loops, the last one fastest.
        categorical: names of the factors whose values have no order.
        levels: number of grey levels of a pixel.

    Raises:
        TypeError: where `pixels` are no uint8 tensor.
        ValueError: where there are not as many images as combinations.

    Example:
        >>> data = StoredFactors(torch.zeros(6, 1, 8, 8, dtype=torch.uint8), {"shape": 3, "x": 2})
        >>> data.factors(torch.tensor([0, 5])).tolist()
        [[0, 0], [2, 1]]
    """

    def __init__(
        self, pixels: Tensor, sizes: dict[str, int], *, categorical: Sequence[str] = (), levels: int = 256
    ) -> None:
        if check_tensor("pixels", pixels).dtype != torch.uint8:
            raise TypeError(f"pixels must be uint8, got {pixels.dtype}")
        if pixels.dim() != 4 or len(pixels) != math.prod(sizes.values()):
            raise ValueError(
                f"pixels must have shape ({math.prod(sizes.values())}, c, h, w), an image for each combination of "
                f"{sizes}, got {tuple(pixels.shape)}"
            )
        super().__init__(sizes, categorical=categorical, event_shape=pixels.shape[1:], levels=levels)
        self.pixels = pixels

    def grey_levels(self, rows: Tensor) -> Tensor:
        """The images of these rows."""
        if self.pixels.device != rows.device:
            self.pixels = self.pixels.to(rows.device)
        return self.pixels.index_select(0, rows)


@dataclass(frozen=True)
class Render:
    """Makes images of minibatches of row numbers: a transform for `Batches`.

    Args:
        data: where the images come from.
        then: what is done to them, e.g. `Binarize()`; None leaves the intensities.

    Example:
        >>> from ppvae.data import Batches, Sprites
        >>> data = Sprites(32)
        >>> batches = Batches(data.subset(1000), batch_size=128, transform=Render(data))
        >>> [x.shape for (x,) in batches][0]
        torch.Size([128, 1, 32, 32])
    """

    data: FactorData
    then: Transform | None = None

    def __call__(self, generator: torch.Generator, *batch: Tensor) -> tuple[Tensor, ...]:
        """The images of a minibatch, and what came with its rows."""
        rows, *others = batch
        images = self.data.grey_levels(rows).float().div_(self.data.levels - 1)
        return (images, *others) if self.then is None else self.then(generator, images, *others)

    def check(self, *tensors: Tensor) -> None:
        """Refuses what are no row numbers."""
        self.data.check_rows(tensors[0])
