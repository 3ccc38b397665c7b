"""The latent space seen in two dimensions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ppvae.plot.figure import DPI, PALETTE, Array, house_style, plain_axes, to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NDArray = np.ndarray[Any, Any]


def latent_scatter(z: Array, labels: Array | None = None) -> Figure:
    """Draws latent points, coloured by class; beyond two dimensions, their first two principal components.

    Args:
        z: Latent points of shape (n, k), k at least 2.
        labels: Their classes as integers of shape (n,); one colour without them.

    Returns:
        A figure with one axes of equal aspect; the legend, one entry per class, stands outside it.

    Raises:
        ValueError: If a shape is none of those above, the labels are not integers, or a value is not finite.

    Example:
        >>> import torch
        >>> figure = latent_scatter(torch.randn(100, 2), torch.arange(100) % 3)
        >>> [entry.get_text() for entry in figure.axes[0].get_legend().get_texts()]
        ['0', '1', '2']
    """
    from matplotlib.figure import Figure

    points, names = _two_dimensions(z)
    classes, index = _classes(labels, len(points))
    palette = _palette(len(classes))
    # A fixed shuffle of the drawing order: data sorted by class would hide the first classes under the last.
    order = np.random.default_rng(0).permutation(len(points))
    dot = float(np.clip(5000 / len(points), 0.8, 8.0))  # points², so that the ink stays about the same
    with house_style():
        figure = Figure(figsize=(3.4, 2.9), dpi=DPI, layout="constrained")
        axes = figure.add_subplot()
        x, y = points[order].T
        axes.scatter(x, y, s=dot, c=palette[index[order]], alpha=0.8, linewidths=0, rasterized=True)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set(xlabel=names[0], ylabel=names[1])
        plain_axes(axes)
        if labels is not None:
            _legend(axes, classes, palette)
    return figure


def _two_dimensions(z: Array) -> tuple[_NDArray, list[str]]:
    """Returns the points (n, 2), projected if they have more dimensions, and the names of the two axes."""
    points = to_numpy("z", z)
    if points.ndim != 2 or points.shape[1] < 2 or len(points) == 0:
        raise ValueError(f"z: got shape {points.shape}, expected (n, k) with n at least 1 and k at least 2")
    if points.shape[1] == 2:
        return points, ["$z_1$", "$z_2$"]
    points, explained = _principal_components(points)
    return points, [f"principal component {i + 1} ({part:.0%} of variance)" for i, part in enumerate(explained)]


def _classes(labels: Array | None, n: int) -> tuple[_NDArray, _NDArray]:
    """Returns the classes (c,) in order, and for each of n points the index of its class."""
    if labels is None:
        return np.zeros(1, int), np.zeros(n, int)
    array = to_numpy("labels", labels)
    if array.shape != (n,):
        raise ValueError(f"labels: got shape {array.shape}, expected one label per point, {(n,)}")
    if array.dtype.kind == "f":
        raise ValueError(f"labels: got values of type {array.dtype}, expected integers")
    return np.unique(array.astype(np.int64), return_inverse=True)


def _palette(num_classes: int) -> _NDArray:
    """Returns that many colours (c, 3): the house's ten, or beyond ten an even walk through viridis."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgba_array

    if num_classes <= len(PALETTE):
        return to_rgba_array(PALETTE[:num_classes])[:, :3]
    return colormaps["viridis"](np.linspace(0, 1, num_classes))[:, :3]


def _principal_components(points: _NDArray) -> tuple[_NDArray, _NDArray]:
    """Returns the points (n, 2) along their first two principal axes, and the parts of variance explained."""
    centred = points.astype(np.float64) - points.mean(axis=0, dtype=np.float64)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    if len(singular) < 2:  # a single point has one direction only: the second explains nothing
        singular, axes = np.append(singular, 0.0), np.vstack([axes, np.zeros_like(axes)])
    # An axis has no sign of its own: the largest loading is made positive, so that a picture can be redrawn.
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1, keepdims=True), axis=1)
    projected = centred @ (axes * np.where(largest < 0, -1.0, 1.0))[:2].T
    total = float((singular**2).sum())
    return projected, singular[:2] ** 2 / (total or 1.0)


def _legend(axes: Axes, classes: _NDArray, palette: _NDArray) -> None:
    """Puts one dot per class to the right of the axes, twenty to a column."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=4, markeredgewidth=0, color=colour, label=str(label))
        for label, colour in zip(classes, palette, strict=True)
    ]
    axes.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        ncols=math.ceil(len(handles) / 20),
        handletextpad=0.1,
        columnspacing=0.8,
    )
