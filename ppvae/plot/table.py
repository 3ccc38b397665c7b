"""Tables: the columns of data beside those of a model, and what was hidden beside what was drawn in its place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ppvae.plot.figure import DPI, PALETTE, Array, house_style, plain_axes, to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NDArray = np.ndarray[Any, Any]
_ACROSS = 4
_BINS = 24
_NAMED, _TICKS = 14, 10
_ABREAST = 26
"""Characters that have room side by side below a panel."""


def columns_beside_data(
    data: Sequence[Array], samples: Sequence[Array], names: Sequence[str], levels: Sequence[Sequence[str]]
) -> Figure:
    """Draws each column of a table as a histogram, over that of samples of a model.

    Args:
        data: Of each column the values that are there, (n_j,).
        samples: Of each column draws of the model, (s,).
        names: Of the columns.
        levels: Labels of the levels of each column, whose values are their numbers; none for numbers. Beyond
            fourteen they are numbered.

    Returns:
        A figure with a panel for each column, four in a row; samples are bars, data a line.

    Raises:
        ValueError: If there is no column, or their numbers differ, or one has no values.

    Example:
        >>> import torch
        >>> figure = columns_beside_data([torch.randn(50)], [torch.randn(200)], ["size"], [()])
        >>> figure.axes[0].get_title()
        'size'
    """
    from ppvae.plot.picture import Picture

    if not names or not len(data) == len(samples) == len(names) == len(levels):
        sizes = [len(given) for given in (data, samples, names, levels)]
        raise ValueError(f"data, samples, names and levels: got {sizes} columns, expected as many of each, at least 1")
    down = math.ceil(len(names) / _ACROSS)
    with house_style():
        figure = Picture(figsize=(1.65 * min(_ACROSS, len(names)), 1.3 * down), dpi=DPI, layout="constrained")
        panels = figure.subplots(down, min(_ACROSS, len(names)), squeeze=False).ravel()
        for j, axes in enumerate(panels):
            if j >= len(names):
                axes.set_axis_off()
                continue
            of_data, of_model = (
                _values(f"{kind} of {names[j]}", given[j]) for kind, given in (("data", data), ("samples", samples))
            )
            _draw_column(axes, of_data, of_model, levels[j])
            axes.set_title(_short(names[j], 18))
            plain_axes(axes, spines=("bottom",))
            axes.set_yticks([])
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def filled_in(truth: Array, low: Array, middle: Array, high: Array) -> Figure:
    """Draws numbers that were drawn in the place of hidden ones against these, with their intervals.

    Args:
        truth: What was hidden, (m,), in standard deviations of its column.
        low: Lower ends of the intervals, (m,).
        middle: Means of the draws, (m,).
        high: Upper ends, (m,).

    Returns:
        A figure whose title says how many intervals hold the truth; those that do not are red.

    Raises:
        ValueError: If there are none, or the shapes differ.

    Example:
        >>> import torch
        >>> x = torch.randn(20)
        >>> filled_in(x, x - 1, x, x + 1).axes[0].get_title()
        '20 of 20 intervals hold the truth'
    """
    from ppvae.plot.picture import Picture

    given = {"truth": truth, "low": low, "middle": middle, "high": high}
    x, lower, mean, upper = (to_numpy(name, values) for name, values in given.items())
    if x.ndim != 1 or not x.size or len({each.shape for each in (x, lower, mean, upper)}) > 1:
        shapes = [each.shape for each in (x, lower, mean, upper)]
        raise ValueError(f"truth, low, middle, high: got shapes {shapes}, expected (m,) of all, m at least 1")
    holds = (lower <= x) & (x <= upper)
    ends = [float(min(x.min(), lower.min())), float(max(x.max(), upper.max()))]
    with house_style():
        figure = Picture(figsize=(2.8, 2.8), dpi=DPI, layout="constrained")
        axes = figure.add_subplot()
        axes.plot(ends, ends, color=PALETTE[8], linewidth=0.7, linestyle="--")
        for of, colour in ((holds, PALETTE[0]), (~holds, PALETTE[1])):
            axes.vlines(x[of], lower[of], upper[of], color=colour, linewidth=0.5, alpha=0.5)
            axes.plot(x[of], mean[of], color=colour, marker="o", markersize=1.8, linestyle="none")
        axes.set(xlabel="hidden value (s.d. of its column)", ylabel="drawn: mean and 90 % interval")
        axes.set_title(f"{int(holds.sum())} of {holds.size} intervals hold the truth")
        plain_axes(axes)
    return figure


def spread_of_counts(data: Array, samples: Array) -> Figure:
    """Draws the variance of each column of counts against its mean, of data and of samples of a model.

    Args:
        data: Counts, (n, d).
        samples: Draws of the model, (s, d).

    Returns:
        A figure with logarithmic axes; the line is Poisson's, variance and mean alike. Columns that are always zero
        are left out.

    Raises:
        ValueError: If a shape is another, or no column of either varies.

    Example:
        >>> import torch
        >>> x = torch.poisson(torch.linspace(1, 9, 20).expand(50, -1))
        >>> spread_of_counts(x, x.flip(0)).axes[0].get_xlabel()
        'mean of a column'
    """
    from ppvae.plot.picture import Picture

    both = {"data": to_numpy("data", data), "model": to_numpy("samples", samples)}
    for name, values in both.items():
        if values.ndim != 2 or not values.size or not (values.var(0) > 0).any():
            raise ValueError(f"{name}: got shape {values.shape}, expected counts (n, d) of which some column varies")
    with house_style():
        figure = Picture(figsize=(2.8, 2.4), dpi=DPI, layout="constrained")
        axes = figure.add_subplot()
        ends = []
        for (name, values), colour, marker in zip(both.items(), (PALETTE[0], PALETTE[2]), "ox", strict=True):
            mean, variance = values.mean(0), values.var(0)
            varies = variance > 0
            ends += [mean[varies].min(), mean[varies].max()]
            axes.plot(mean[varies], variance[varies], marker, color=colour, markersize=3, label=name, alpha=0.8)
        axes.plot(
            [min(ends), max(ends)], [min(ends), max(ends)], "--", color=PALETTE[8], linewidth=0.7, label="Poisson"
        )
        axes.set(xscale="log", yscale="log", xlabel="mean of a column", ylabel="its variance")
        axes.legend()
        plain_axes(axes)
    return figure


def _values(name: str, values: Array) -> _NDArray:
    array = to_numpy(name, values)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name}: got shape {array.shape}, expected (n,), n at least 1")
    return array


def _draw_column(axes: Axes, data: _NDArray, samples: _NDArray, levels: Sequence[str]) -> None:
    """Draws one column: bars of the samples, a line of the data, or dots of its levels."""
    if levels:
        numbers = np.arange(len(levels))
        shares = [np.array([(values == k).mean() for k in numbers]) for values in (samples, data)]
        axes.bar(numbers, shares[0], width=0.8, color=PALETTE[4], label="model")
        axes.plot(numbers, shares[1], color=PALETTE[0], marker="o", markersize=3, linestyle="none", label="data")
        named = len(levels) <= _NAMED
        shown = numbers if named else numbers[:: math.ceil(len(levels) / _TICKS)]
        texts = [_short(level) if named else f"{k}" for k, level in zip(shown, np.take(levels, shown), strict=True)]
        axes.set_xticks(shown, texts, rotation=90 if sum(len(text) + 1 for text in texts) > _ABREAST else 0)
        axes.set_ylim(0, None)
        return
    low, high = np.quantile(np.concatenate([data, samples]), [0.001, 0.999])
    low, high = min(low, data.min()), max(high, data.max())
    if all((values == values.round()).all() for values in (data, samples)):
        # of whole numbers each bar has as many: the others would be a comb that is neither's
        width = math.ceil((high - low + 1) / _BINS)
        edges = np.arange(math.floor(low), high + width + 1, width) - 0.5
    else:
        edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    axes.hist(samples, edges.tolist(), density=True, color=PALETTE[4], label="model")
    axes.hist(data, edges.tolist(), density=True, color=PALETTE[0], histtype="step", linewidth=1.0, label="data")


def _short(label: str, most: int = 9) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"
