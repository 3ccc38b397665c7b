"""Grids of images: samples, reconstructions, interpolations, traversals.

Each picture is one array drawn once. A data pixel covers a whole number of dots, so nothing is resampled, and
the gaps between the images are transparent, so the page shows through. A hairline around each image shows where it
ends, on white paper too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from ppvae.plot.figure import DPI, PALETTE, TEXT_SIZE, Array, house_style, plain_axes, to_numpy, whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NDArray = np.ndarray[Any, Any]
_Ticks = tuple[Sequence[float], Sequence[str]]

# In inches. Images have the usual side, but a larger one in a narrow grid and a smaller one in a wide grid.
_SIDE, _MAX_SIDE = 0.5, 1.0
_MIN_WIDTH, _MAX_WIDTH = 2.4, 6.0
_NO_TICKS: _Ticks = ((), ())
_HAIRLINE: dict[str, Any] = {
    "edgecolor": PALETTE[8],
    "facecolor": "none",
    "linewidth": 72 / DPI,
    "clip_on": False,
    "snap": False,
}
"""Of the frames: one dot wide."""


def samples(images: Array, *, num_columns: int | None = None) -> Figure:
    """Draws images in a grid, row by row.

    Args:
        images: Grey or colour images of shape (n, h, w), (n, 1, h, w) or (n, 3, h, w), clipped to [0, 1].
        num_columns: Images per row; by default the grid is as square as possible.

    Returns:
        A figure with one axes that holds one image: the grid.

    Raises:
        ValueError: If the shape is none of those above, a value is not finite, or `num_columns` is below 1.

    Example:
        >>> import torch
        >>> figure = samples(torch.rand(12, 1, 28, 28), num_columns=6)
        >>> figure.axes[0].images[0].get_array().shape  # 2 rows, 6 columns, gaps of one pixel, RGBA
        (57, 173, 4)
    """
    cells = _cells("images", images, "n")
    if num_columns is None:
        num_columns = math.ceil(math.sqrt(len(cells)))
    grid = _wrap(cells, whole("num_columns", num_columns))
    return _draw(_tile(grid, gap=_gap(grid)), scale=_scale(grid))


def reconstructions(x: Array, x_mean: Array, *, num_columns: int = 10) -> Figure:
    """Draws data above their reconstructions, in as many pairs of rows as they need.

    Args:
        x: Data of shape (n, h, w), (n, 1, h, w) or (n, 3, h, w), clipped to [0, 1].
        x_mean: Their reconstructions E[x|z], of the same shape; a grey channel may be left out of either.
        num_columns: Images per row.

    Returns:
        A figure with one axes; each pair of rows is labelled "x" and "E[x|z]" at the left.

    Raises:
        ValueError: If a shape is none of those above, the two differ, a value is not finite, or `num_columns`
            is below 1.

    Example:
        >>> import torch
        >>> x = torch.rand(8, 1, 28, 28)
        >>> figure = reconstructions(x, 0.9 * x)
        >>> len(figure.axes[0].get_yticklabels())  # one pair of rows
        2
    """
    above, below = _cells("x", x, "n"), _cells("x_mean", x_mean, "n")
    if above.shape != below.shape:
        raise ValueError(f"x_mean: got shape {tuple(x_mean.shape)}, expected that of x, {tuple(x.shape)}")
    num_columns = min(whole("num_columns", num_columns), len(above))
    above, below = _wrap(above, num_columns), _wrap(below, num_columns)
    height, gap = above.shape[2], _gap(above)
    pairs = np.stack([_tile(np.stack(pair), gap=gap) for pair in zip(above, below, strict=True)])
    wide_gap = max(3 * gap, height // 4)
    tops = np.arange(len(pairs)) * (pairs.shape[1] + wide_gap)
    centres = np.stack([tops, tops + height + gap], axis=1).ravel() + (height - 1) / 2
    rows = centres.tolist(), [r"$x$", r"$\mathrm{E}[x\,|\,z]$"] * len(pairs)
    return _draw(_tile(pairs[:, None], gap=wide_gap), scale=_scale(above), rows=rows)


def samples_beside_data(images: Array, data: Array, *, num_columns: int = 8) -> Figure:
    """Draws samples of a model in a grid to the right of one of data.

    Args:
        images: Samples of shape (n, h, w), (n, 1, h, w) or (n, 3, h, w), clipped to [0, 1].
        data: Data of the same size, as many.
        num_columns: Images per row of each grid.

    Returns:
        A figure with one axes, whose two columns are labelled "data" and "samples".

    Raises:
        ValueError: If a shape is none of those above, the two differ, a value is not finite, or `num_columns`
            is below 1.

    Example:
        >>> import torch
        >>> figure = samples_beside_data(torch.rand(16, 8, 8), torch.rand(16, 8, 8))
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['data', 'samples']
    """
    right, left = _cells("images", images, "n"), _cells("data", data, "n")
    if left.shape != right.shape:
        raise ValueError(f"data: got shape {tuple(data.shape)}, expected that of images, {tuple(images.shape)}")
    num_columns = min(whole("num_columns", num_columns), len(left))
    grids = [_wrap(cells, num_columns) for cells in (left, right)]
    gap, width = _gap(grids[0]), grids[0].shape[3]
    both = np.stack([_tile(grid, gap=gap) for grid in grids])
    wide_gap = max(3 * gap, width // 2)
    centres = [i * (both.shape[2] + wide_gap) + (both.shape[2] - 1) / 2 for i in range(2)]
    scale = _scale(np.concatenate(grids, 1))
    return _draw(_tile(both[None], gap=wide_gap), scale=scale, columns=(centres, ["data", "samples"]))


def interpolation(rows: Array, ends: tuple[Array, Array] | None = None) -> Figure:
    """Draws paths between pairs of latent points, one row each, between the images that these points are the codes of.

    Args:
        rows: Decoded images along each path, of shape (r, steps, h, w), (r, steps, 1, h, w) or
            (r, steps, 3, h, w) with at least two steps, clipped to [0, 1].
        ends: The images whose codes the paths begin with and end at, of shape (r, h, w), (r, 1, h, w) or
            (r, 3, h, w) each; they stand apart, to the left and to the right, labelled "x" and "x′".

    Returns:
        A figure with one axes, in which the first step is labelled 0 and the last 1.

    Raises:
        ValueError: If the shape is none of those above, or a value is not finite.

    Example:
        >>> import torch
        >>> figure = interpolation(torch.rand(3, 9, 1, 28, 28), (torch.rand(3, 28, 28), torch.rand(3, 28, 28)))
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['x', '0', '1', 'x′']
    """
    grid = _cells("rows", rows, "r, steps")
    if grid.shape[1] < 2:
        raise ValueError(f"rows: got {grid.shape[1]} step, expected at least 2: both ends of each path")
    gap, centres = _gap(grid), _centres(grid, axis=1)
    image, places, labels = _tile(grid, gap=gap), [centres[0], centres[-1]], ["0", "1"]
    if ends is None:
        return _draw(image, scale=_scale(grid), columns=(places, labels))
    given = [_cells(f"ends[{i}]", end, "r") for i, end in enumerate(ends)]
    for i, cells in enumerate(given):
        if cells.shape != grid[:, 0].shape:
            raise ValueError(f"ends[{i}]: got {len(cells)} images of {cells.shape[1:3]}, expected one for each path")
    apart = np.zeros((len(image), 3 * gap, 4), image.dtype)
    left, right = (_tile(cells[:, None], gap=gap) for cells in given)
    image = np.concatenate([left, apart, image, apart, right], axis=1)
    shift, half = left.shape[1] + 3 * gap, (left.shape[1] - 1) / 2
    places = [half, *(place + shift for place in places), image.shape[1] - 1 - half]
    wide = np.concatenate([given[0][:, None], grid, given[1][:, None]], axis=1)  # as many columns as are drawn
    return _draw(image, scale=_scale(wide), columns=(places, ["x", *labels, "x′"]))


def traversal(images: Array, values: Array, *, units: Sequence[int] | None = None) -> Figure:
    """Draws what each latent dimension does when it alone is swept.

    Args:
        images: Decoded images of shape (k, steps, h, w), (k, steps, 1, h, w) or (k, steps, 3, h, w) with at
            least two steps, clipped to [0, 1]; a row sweeps one latent dimension.
        values: The values swept, of shape (steps,), in prior standard deviations.
        units: Which dimension each row sweeps, k numbers from 0; by default the first k.

    Returns:
        A figure with one axes: rows are labelled z[0] … z[k − 1], and columns by their value where there is room.

    Raises:
        ValueError: If a shape is none of those above, the numbers of steps or rows differ, or a value is not finite.

    Example:
        >>> import torch
        >>> figure = traversal(torch.rand(4, 7, 1, 28, 28), torch.linspace(-3, 3, 7))
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['z[0]', 'z[1]', 'z[2]', 'z[3]']
    """
    grid, swept = _cells("images", images, "k, steps"), to_numpy("values", values)
    steps = grid.shape[1]
    if steps < 2:
        raise ValueError(f"images: got {steps} step, expected at least 2: a sweep")
    if swept.shape != (steps,):
        raise ValueError(f"values: got shape {swept.shape}, expected one value per step, {(steps,)}")
    names = range(len(grid)) if units is None else units
    if not isinstance(names, Sequence) or not all(isinstance(j, Integral) for j in names):
        raise TypeError(f"units: got {units!r}, expected a list of numbers of dimensions")
    if len(names) != len(grid):
        raise ValueError(f"units: got {len(names)}, expected one per row, {len(grid)}")
    labels = [f"{round(float(value), 2) + 0.0:g}".replace("-", "−") for value in swept]
    scale = _scale(grid)
    # As many labels as have room, evenly spaced, with both ends among them.
    needed = (_text_width(labels) + 0.05) * DPI / scale / (grid.shape[3] + _gap(grid))
    stride = next(i for i in range(1, steps) if (steps - 1) % i == 0 and i >= min(needed, steps - 1))
    columns = _centres(grid, axis=1)[::stride], labels[::stride]
    rows = _centres(grid, axis=0), [f"z[{j}]" for j in names]
    figure = _draw(_tile(grid, gap=_gap(grid)), scale=scale, rows=rows, columns=columns, foot=0.3)
    figure.axes[0].set_xlabel("prior standard deviations", labelpad=1)
    return figure


def by_condition(images: Array, *, labels: Sequence[str], x: Array | None = None) -> Figure:
    """Draws what each latent point looks like under each condition: rows share z, columns share y.

    Many points under few conditions are drawn the other way around, wide in place of tall, with the names at the left.

    Args:
        images: Decoded images of shape (r, c, h, w), (r, c, 1, h, w) or (r, c, 3, h, w), clipped to [0, 1].
        labels: The c names of the conditions, one for each column.
        x: The datum that each row's z came from, of shape (r, h, w), (r, 1, h, w) or (r, 3, h, w), drawn as a
            first column; None where z was drawn from the prior.

    Returns:
        A figure with one axes.

    Raises:
        ValueError: If a shape is none of those above, numbers differ, or a value is not finite.

    Example:
        >>> import torch
        >>> figure = by_condition(torch.rand(4, 3, 1, 28, 28), labels=["0", "1", "2"], x=torch.rand(4, 1, 28, 28))
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['x', '0', '1', '2']
    """
    grid = _cells("images", images, "r, c")
    if not isinstance(labels, Sequence):
        raise TypeError(f"labels: got {labels!r}, expected a list of names")
    names = list(labels)
    if len(names) != grid.shape[1]:
        raise ValueError(f"labels: got {len(names)}, expected one per column, {grid.shape[1]}")
    if x is not None:
        data = _cells("x", x, "r")
        if data.shape[0] != grid.shape[0] or data.shape[1:3] != grid.shape[2:4]:
            raise ValueError(f"x: got {len(data)} images of {data.shape[1:3]}, expected one for each row of images")
        grid, names = np.concatenate([data[:, None], grid], 1), ["x", *names]
    if 2 * grid.shape[1] <= len(grid):
        grid = grid.swapaxes(0, 1)
        return _draw(_tile(grid, gap=_gap(grid)), scale=_scale(grid), rows=(_centres(grid, axis=0), names))
    columns = _centres(grid, axis=1), names
    return _draw(_tile(grid, gap=_gap(grid)), scale=_scale(grid), columns=columns)


def _cells(name: str, images: Array, leading: str) -> _NDArray:
    """Returns the images as RGBA cells (leading, h, w, 4) in [0, 1]; a grey image may lack its channel."""
    array = to_numpy(name, images)
    shape, num_leading = array.shape, leading.count(",") + 1
    if array.ndim == num_leading + 2:
        array = np.expand_dims(array, -3)
    if array.ndim != num_leading + 3 or array.shape[-3] not in (1, 3) or array.size == 0:
        raise ValueError(
            f"{name}: got shape {shape}, expected ({leading}, h, w), ({leading}, 1, h, w) or "
            f"({leading}, 3, h, w), none of them zero"
        )
    if array.dtype.kind in "iu" and array.max() > 1:
        raise ValueError(f"{name}: got integers up to {array.max()}, expected values in [0, 1]")
    array = np.moveaxis(array, -3, -1).astype(np.float64).clip(0, 1).astype(np.float32)
    colours = np.broadcast_to(array, (*array.shape[:-1], 3))
    return np.concatenate([colours, np.ones_like(colours[..., :1])], axis=-1)


def _wrap(cells: _NDArray, num_columns: int) -> _NDArray:
    """Breaks (n, h, w, 4) into (rows, columns, h, w, 4); what is left of the last row is transparent."""
    missing = -len(cells) % num_columns
    cells = np.concatenate([cells, np.zeros((missing, *cells.shape[1:]), cells.dtype)])
    return cells.reshape(-1, num_columns, *cells.shape[1:])


def _tile(grid: _NDArray, *, gap: int) -> _NDArray:
    """Lays (rows, columns, h, w, 4) out as one image, with transparent gaps of that many pixels."""
    rows, columns, height, width, _ = grid.shape
    framed = np.pad(grid, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)))
    image = framed.swapaxes(1, 2).reshape(rows * (height + gap), columns * (width + gap), 4)
    return image[:-gap, :-gap]


def _frames(image: _NDArray, scale: int) -> list[tuple[float, float, float, float]]:
    """Returns left and upper edge, width and height, in data pixels, of lines along the dots just outside an image."""
    there = image[..., 3] > 0
    rows, columns = (_runs(np.asarray(there.any(axis=axis))) for axis in (1, 0))
    dot = 1 / scale
    return [
        (left - 0.5 - dot / 2, top - 0.5 - dot / 2, right - left + dot, bottom - top + dot)
        for top, bottom in rows
        for left, right in columns
        if there[top, left]
    ]


def _runs(flags: _NDArray) -> list[tuple[int, int]]:
    """Returns where runs of true begin, and where they have ended."""
    changes = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return list(zip(changes[::2].tolist(), changes[1::2].tolist(), strict=True))


def _gap(grid: _NDArray) -> int:
    """Returns the width of the gap in data pixels: about a thirtieth of an image."""
    return max(1, round(max(grid.shape[2:4]) / 32))


def _scale(grid: _NDArray) -> int:
    """Returns how many dots wide a data pixel is drawn: a whole number, so that all pixels are alike."""
    columns, pixels = grid.shape[1], max(grid.shape[2:4]) + _gap(grid)
    side = min(max(_SIDE, _MIN_WIDTH / columns), _MAX_WIDTH / columns, _MAX_SIDE)
    return max(1, int(DPI * side / pixels))


def _centres(grid: _NDArray, *, axis: int) -> list[float]:
    """Returns the centre of each row (axis 0) or column (axis 1) of the tiled grid, in data pixels."""
    side = grid.shape[axis + 2]
    return [i * (side + _gap(grid)) + (side - 1) / 2 for i in range(grid.shape[axis])]


def _text_width(texts: Sequence[str]) -> float:
    """Returns the width in inches of the widest of some labels, zero if there are none."""
    from matplotlib.textpath import TextPath

    # of nothing but blanks there is no path
    written = {text for text in texts if text.strip()}
    widths = (TextPath((0, 0), text, size=TEXT_SIZE).get_extents().width for text in written)
    return max(widths, default=0.0) / 72


def _draw(
    image: _NDArray, *, scale: int, rows: _Ticks = _NO_TICKS, columns: _Ticks = _NO_TICKS, foot: float = 0.19
) -> Figure:
    """Draws one RGBA image dot by dot; labelled columns need a foot of so many inches under it."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    from ppvae.plot.picture import Picture

    edge = DPI // 50
    left = edge + round(DPI * (_text_width(rows[1]) + 0.06)) * bool(rows[1])
    bottom = edge + round(DPI * foot) * bool(columns[1])
    height, width = image.shape[0] * scale, image.shape[1] * scale
    # The last column may be narrower than its label.
    last = max(columns[0], default=0.0) * scale + round(DPI * _text_width(columns[1]) / 2)
    right = edge + max(0, math.ceil(last) - width)
    # Half a dot more: the canvas rounds down, and inches times dots per inch may fall below a whole number.
    full_width, full_height = left + width + right + 0.5, bottom + height + edge + 0.5
    box = left / full_width, bottom / full_height, width / full_width, height / full_height
    with house_style():
        figure = Picture(figsize=(full_width / DPI, full_height / DPI), dpi=DPI)
        axes = figure.add_axes(box)
        axes.imshow(image, interpolation="nearest", aspect="auto")
        frames = [Rectangle((x, y), width, height) for x, y, width, height in _frames(image, scale)]
        axes.add_collection(PatchCollection(frames, **_HAIRLINE), autolim=False)
        plain_axes(axes, spines=())
        axes.set_xticks(*columns)
        axes.set_yticks(*rows)
        axes.tick_params(length=0, pad=3)
        axes.tick_params(axis="y", labelsize=TEXT_SIZE)
    return figure
