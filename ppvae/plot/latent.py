"""The latent space seen in two dimensions, and how much of it is in use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any

import numpy as np

from ppvae.plot.figure import DPI, PALETTE, Array, house_style, plain_axes, to_numpy
from ppvae.plot.projection import FEWEST_FOR_TSNE, principal_components, tsne_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NDArray = np.ndarray[Any, Any]

_LOOKED_AT = 500
"""Points of a class among which its densest place is found."""

_NAMED = 24
"""The most bars that have room for their indices."""

_PRIOR_POSTERIOR = (PALETTE[4], PALETTE[0])  # grey lies beneath blue


def latent_scatter(
    z: Array,
    labels: Array | None = None,
    *,
    names: Sequence[str] | None = None,
    active: Array | None = None,
    tsne: bool = False,
) -> Figure:
    """Draws latent points, coloured by class; beyond two dimensions, their first two principal components.

    Classes have colours, and their names where most of their points lie: in print without colours too. Where a name has
    more than two characters, which would hide the points, a letter stands for each, and the legend says for which.

    t-SNE (van der Maaten & Hinton 2008) keeps neighbours together: it shows groups that a plane hides, and neither
    their distances nor their sizes. It starts at the principal components, so that the same points give the same
    picture, and takes seconds for a thousand of them.

    Args:
        z: Latent points of shape (n, k), k at least 2.
        labels: Their classes as integers of shape (n,); one colour without them.
        names: What the classes are called, in their order; by default by their integers.
        active: Which units are active, of shape (k,): the others hold nothing of the data and are left out, where at
            least two are.
        tsne: Whether t-SNE stands to the right of the principal components; of at least five points of more than two
            dimensions.

    Returns:
        A figure with one axes of equal aspect, or two; the legend, one entry per class, stands outside.

    Raises:
        ValueError: If a shape is none of those above, the labels are not integers, there are not as many names as
            classes, or a value is not finite.

    Example:
        >>> import torch
        >>> figure = latent_scatter(torch.randn(100, 2), torch.arange(100) % 3)
        >>> [entry.get_text() for entry in figure.axes[0].get_legend().get_texts()]
        ['0', '1', '2']
    """
    from ppvae.plot.picture import Picture

    z, units = _active_units(to_numpy("z", z), active)
    (points,), axis_names = _two_dimensions(z, units=units)
    classes, index = _classes(labels, len(points))
    if names is not None and len(names) != len(classes):
        raise ValueError(f"names: got {len(names)} names, expected one for each of the {len(classes)} classes")
    palette, (marks, entries) = _palette(len(classes)), _marks(names or [str(label) for label in classes])
    # A fixed shuffle of the drawing order: data sorted by class would hide the first classes under the last.
    order = np.random.default_rng(0).permutation(len(points))
    dot = float(np.clip(5000 / len(points), 0.8, 8.0))  # points², so that the ink stays about the same
    panels = [(points, axis_names)]
    if tsne and z.shape[1] > 2 and len(points) >= FEWEST_FOR_TSNE:
        panels.append((tsne_of(z, points), ["t-SNE", ""]))
    with house_style():
        figure = Picture(figsize=(3.4 if len(panels) == 1 else 6.1, 2.9), dpi=DPI, layout="constrained")
        for i, (panel, (xlabel, ylabel)) in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), i + 1)
            x, y = panel[order].T
            axes.scatter(x, y, s=dot, c=palette[index[order]], alpha=0.8, linewidths=0, rasterized=True)
            axes.set_aspect("equal", adjustable="datalim")
            axes.set(xlabel=xlabel, ylabel=ylabel)
            plain_axes(axes, spines=() if i else ("left", "bottom"))
            if i:  # its coordinates mean nothing
                axes.set(xticks=[], yticks=[])
            if labels is not None:
                _name_classes(axes, panel, marks, index)
        if labels is not None:
            _legend(axes, entries, palette)
    return figure


def aggregated_posterior(z: Array, prior: Array) -> Figure:
    """Draws points of the aggregated posterior q(z) over points of the prior p(z): they should fill the same space.

    One dimension is drawn as two histograms, two as points, more along the principal axes of the posterior's points.

    Args:
        z: Draws of q(z), one from each datum's posterior, of shape (n, k) or (n,).
        prior: Draws of p(z), of shape (m, k) or (m,).

    Returns:
        A figure with one axes and a legend.

    Raises:
        ValueError: If a shape is none of those above, k differs, or a value is not finite.

    Example:
        >>> import torch
        >>> figure = aggregated_posterior(0.5 * torch.randn(100, 3), torch.randn(100, 3))
        >>> [entry.get_text() for entry in figure.axes[0].get_legend().get_texts()]
        ['p(z)', 'q(z)']
    """
    from ppvae.plot.picture import Picture

    sets = {"p(z)": _points("prior", prior), "q(z)": _points("z", z)}
    k, expected = sets["p(z)"].shape[1], sets["q(z)"].shape[1]
    if k != expected:
        raise ValueError(f"prior: got {k} dimensions, expected {expected} as in z")
    with house_style():
        figure = Picture(figsize=(3.0, 2.6), dpi=DPI, layout="constrained")
        axes = figure.add_subplot()
        (_draw_histograms if k == 1 else _draw_clouds)(axes, sets)
        plain_axes(axes)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2.0, handlelength=1.0)
    return figure


def kl_per_dimension(kl: Array, active: Array | None = None) -> Figure:
    """Draws the KL of each latent dimension as a bar with its index, the largest first, inactive units in grey.

    Args:
        kl: KL of each dimension in nats, of any shape.
        active: Whether each is active, of the same shape; one colour without it.

    Returns:
        A figure with one axes; its title counts the active units.

    Raises:
        ValueError: If there is no dimension, the shapes differ, or a value is not finite.

    Example:
        >>> import torch
        >>> figure = kl_per_dimension(torch.tensor([0.0, 1.5, 0.7]), torch.tensor([False, True, True]))
        >>> figure.axes[0].get_title()
        '2 of 3 units active'
    """
    from ppvae.plot.picture import Picture

    values = to_numpy("kl", kl)
    if values.size == 0:
        raise ValueError(f"kl: got shape {values.shape}, expected at least one dimension")
    used = np.ones(values.shape, bool) if active is None else to_numpy("active", active)
    if used.shape != values.shape:
        raise ValueError(f"active: got shape {used.shape}, expected that of kl, {values.shape}")
    order = np.argsort(-values, axis=None, kind="stable")
    colours = [PALETTE[0] if each else PALETTE[4] for each in used.ravel()[order]]
    with house_style():
        figure = Picture(figsize=(3.4, 1.9), dpi=DPI, layout="constrained")
        axes = figure.add_subplot()
        axes.bar(np.arange(1, values.size + 1), values.ravel()[order], width=0.8, color=colours)
        axes.set(xlabel="latent dimension, by KL", ylabel="KL (nats)", xlim=(0.4, values.size + 0.6))
        axes.set_xticks(np.arange(1, values.size + 1) if values.size <= _NAMED else [])
        axes.set_xticklabels(order.tolist() if values.size <= _NAMED else [])
        if active is not None:
            axes.set_title(f"{int(used.sum())} of {used.size} units active")
        plain_axes(axes)
    return figure


def _draw_histograms(axes: Axes, sets: dict[str, _NDArray]) -> None:
    """Draws sets of points (n, 1) as densities, with common bins."""
    edges = np.histogram_bin_edges(np.concatenate(list(sets.values())), bins=40).tolist()
    for (name, points), colour in zip(sets.items(), _PRIOR_POSTERIOR, strict=True):
        axes.hist(points[:, 0], edges, density=True, label=name, color=colour, alpha=0.6)
    axes.set(xlabel="$z$", ylabel="density")


def _draw_clouds(axes: Axes, sets: dict[str, _NDArray]) -> None:
    """Draws sets of points (n, k) along the same two directions, the principal axes of the last."""
    *others, last = sets.values()
    (last, *others), names = _two_dimensions(last, *others)
    for name, points, colour in zip(sets, [*others, last], _PRIOR_POSTERIOR, strict=True):
        dot = float(np.clip(5000 / len(points), 0.8, 8.0))
        axes.scatter(
            points[:, 0], points[:, 1], s=dot, color=colour, label=name, alpha=0.6, linewidths=0, rasterized=True
        )
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xlabel=names[0], ylabel=names[1])


def _points(name: str, values: Array) -> _NDArray:
    """Returns draws (n, k)."""
    points = to_numpy(name, values)
    if points.ndim == 1:
        points = points[:, None]
    if points.ndim != 2 or 0 in points.shape:
        raise ValueError(f"{name}: got shape {points.shape}, expected (n, k) or (n,) with n and k at least 1")
    return points


def _active_units(z: _NDArray, active: Array | None) -> tuple[_NDArray, _NDArray]:
    """Returns the points (n, a) without units that are not active, and the numbers of the units that stay."""
    if active is None or z.ndim != 2:
        return z, np.arange(z.shape[-1] if z.ndim else 0)
    used = to_numpy("active", active)
    if used.shape != z.shape[1:] or used.dtype != bool:
        raise ValueError(
            f"active: got {used.dtype} of shape {used.shape}, expected a flag for each unit, {z.shape[1:]}"
        )
    used = used if used.sum() > 1 else np.ones_like(used)
    return z[:, used], np.flatnonzero(used)


def _marks(names: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Returns what stands for each class among its points, nothing where there are too many, and its legend's entry."""
    if len(names) > len(PALETTE):
        return (), names
    if max(map(len, names)) <= 2:
        return names, names
    letters = ascii_lowercase[: len(names)]
    return letters, [f"{letter}  {name}" for letter, name in zip(letters, names, strict=True)]


def _name_classes(axes: Axes, points: _NDArray, marks: Sequence[str], index: _NDArray) -> None:
    """Writes the mark of each class where its points are densest, in black on a rim of white."""
    from matplotlib.patheffects import withStroke

    for i, mark in enumerate(marks):
        text = axes.text(*_densest(points[index == i]), mark, ha="center", va="center", weight="bold")
        text.set_path_effects([withStroke(linewidth=1.5, foreground="white")])


def _densest(points: _NDArray) -> tuple[float, float]:
    """Returns the mean of the quarter of the points (n, 2) that lie closest together; of many, of the first."""
    few = points[:_LOOKED_AT]
    distance = np.linalg.norm(few[:, None] - few, axis=-1)
    radius = np.sort(distance, axis=1)[:, math.ceil(len(few) / 4) - 1]
    centre = int(radius.argmin())
    x, y = few[distance[centre] <= radius[centre]].mean(axis=0)
    return float(x), float(y)


def _two_dimensions(z: Array, *others: _NDArray, units: _NDArray | None = None) -> tuple[list[_NDArray], list[str]]:
    """Returns the points (n, 2), projected if they have more dimensions, others alike, and the axes' names."""
    points = to_numpy("z", z)
    if points.ndim != 2 or points.shape[1] < 2 or len(points) == 0:
        raise ValueError(f"z: got shape {points.shape}, expected (n, k) with n at least 1 and k at least 2")
    if points.shape[1] == 2:
        return [points, *others], [f"z[{i}]" for i in (range(2) if units is None else units)]
    mean, basis, explained = principal_components(points)
    projected = [(each - mean) @ basis for each in (points, *others)]
    return projected, [f"principal component {i + 1} ({part:.0%} of variance)" for i, part in enumerate(explained)]


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


def _legend(axes: Axes, entries: Sequence[str], palette: _NDArray) -> None:
    """Puts one dot per class to the right of the axes, twenty to a column."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=4, markeredgewidth=0, color=colour, label=entry)
        for entry, colour in zip(entries, palette, strict=True)
    ]
    axes.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        ncols=math.ceil(len(handles) / 20),
        handletextpad=0.1,
        columnspacing=0.8,
    )
