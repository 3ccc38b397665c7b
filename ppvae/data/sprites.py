"""A generated stand-in for dSprites: white shapes on black, of known shape, scale, orientation and position.

A shape is drawn once for each scale and orientation, in the middle of a window; positions are shifts of it by whole
pixels. So the whole data set is a table of 720 masks, and an image a gather.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppvae._validate import check_count
from ppvae.data.factors import FactorData

SHAPES = {"square": 11.2, "ellipse": 15.7, "heart": 15.0}
"""The shapes, and half of their width at scale 1 in 32nds of the window, whose edges no turn of them passes."""


class Sprites(FactorData):
    """Squares, ellipses and hearts, as in dSprites, at other positions of their outlines.

    Factors: shape (3), scale (6, from 0.5 to 1), orientation (40, by 9°), x and y (half as many positions as an image
    is wide, one pixel apart). With the defaults 737,280 images of 64×64 binary pixels, as many as dSprites has.

    The orientation is known modulo the symmetry of the shape: a square looks the same after 90°, an ellipse after 180°.
    So of 40 orientations a square has 10 that differ and an ellipse 20, some rows have the same image as others, and no
    code of the images can tell the orientation in full. (Those of dSprites are 40 from 0 to 2π, both included.) All
    other masks differ at 64×64; at 32×32 ten small ones are like others, see `distinct`.

    Args:
        size: height and width of an image, even, at least 16.
        num_scales: number of scales.
        num_orientations: number of orientations.
        num_positions: number of values of x and of y, size / 2 by default, or a divisor of that: they are then several
            pixels apart.

    Raises:
        ValueError: where a number is out of range.

    References:
        dSprites: disentanglement testing sprites dataset (Matthey et al. 2017), github.com/deepmind/dsprites-dataset.

    Example:
        >>> data = Sprites()
        >>> len(data), dict(zip(data.names, data.sizes))
        (737280, {'shape': 3, 'scale': 6, 'orientation': 40, 'x': 32, 'y': 32})
        >>> rows = data.subset(5)
        >>> data.images(rows).shape, data.factors(rows).shape
        (torch.Size([5, 1, 64, 64]), torch.Size([5, 5]))
    """

    def __init__(
        self, size: int = 64, *, num_scales: int = 6, num_orientations: int = 40, num_positions: int | None = None
    ) -> None:
        if check_count("size", size, at_least=16) % 2:
            raise ValueError(f"size must be even, got {size}")
        half = size // 2
        num_positions = half if num_positions is None else check_count("num_positions", num_positions)
        if num_positions > half or half % num_positions:
            raise ValueError(f"num_positions must divide size / 2 = {half}, got {num_positions}")
        check_count("num_scales", num_scales)
        check_count("num_orientations", num_orientations)
        sizes = {
            "shape": len(SHAPES),
            "scale": num_scales,
            "orientation": num_orientations,
            "x": num_positions,
            "y": num_positions,
        }
        super().__init__(sizes, categorical=["shape"], event_shape=(1, size, size), levels=2)
        self._step = half // num_positions
        masks = _masks(half + 1, num_scales, num_orientations)
        self._distinct = len(torch.unique(masks.flatten(1), dim=0))
        # With so wide a frame around it, the image of any position is a part of the table.
        self._margin = half - 1
        self._table = torch.nn.functional.pad(masks, (self._margin,) * 4)

    @property
    def distinct(self) -> int:
        """How many of the shapes, scales and orientations look different: all images are the positions of these."""
        return self._distinct

    def grey_levels(self, rows: Tensor) -> Tensor:
        """The images of these rows."""
        if self._table.device != rows.device:
            self._table = self._table.to(rows.device)
        size, positions = self.event_shape[-1], self.sizes[-1]
        pixel = torch.arange(size, device=rows.device)
        down = (self._margin - self._step * (rows % positions))[:, None] + pixel
        right = (self._margin - self._step * (rows // positions % positions))[:, None] + pixel
        mask = rows // positions**2
        width = self._table.shape[-1]
        at = (mask[:, None] * width + down)[:, :, None] * width + right[:, None, :]
        return self._table.view(-1).take(at).unsqueeze(1)


def _masks(window: int, num_scales: int, num_orientations: int) -> Tensor:
    """The shapes in the middle of a window, (shapes · scales · orientations, window, window), uint8."""
    grid = torch.arange(window, dtype=torch.float64) - window // 2
    angle = torch.arange(num_orientations, dtype=torch.float64) * (2 * math.pi / num_orientations)
    scale = torch.linspace(0.5, 1, num_scales, dtype=torch.float64) if num_scales > 1 else torch.ones(1).double()
    x, y, angle, scale = grid, grid[:, None], angle[:, None, None], scale[:, None, None, None]
    along, across = angle.cos() * x + angle.sin() * y, angle.cos() * y - angle.sin() * x
    masks = []
    for shape, half_width in SHAPES.items():
        unit = half_width / 32 * (window - 1) * scale
        masks.append(_inside(shape, along / unit, across / unit))
    return torch.stack(masks).to(torch.uint8).flatten(0, 2)


def _inside(shape: str, u: Tensor, v: Tensor) -> Tensor:
    """Whether points lie within the outline of a shape of half-width about 1."""
    if shape == "square":
        return torch.maximum(u.abs(), v.abs()) <= 1
    if shape == "ellipse":
        return u**2 + 4 * v**2 <= 1
    u, v = 1.18 * u, 0.12 - 1.18 * v
    return (u**2 + v**2 - 1) ** 3 <= u**2 * v**3
