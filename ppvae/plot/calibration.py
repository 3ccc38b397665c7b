"""Whether a model's data look like the data, and its guide like the posterior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ppvae.plot.figure import DPI, PALETTE, Array, house_style, line_style, plain_axes, to_numpy, whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NDArray = np.ndarray[Any, Any]

_GREY, _PALE = PALETTE[8], PALETTE[4]
_MAX_PANELS = 24


def ppc(observed: Array | float, replicated: Array, *, name: str = "T(x)") -> Figure:
    """Draws the histogram of a statistic over replicates of the data, and the data's own as a line.

    Args:
        observed: T(x), one number.
        replicated: T(x_rep) of shape (s,).
        name: What the statistic is, for the axis.

    Returns:
        A figure with one axes; its title is the tail probability P(T(x_rep) ≥ T(x)), ties counted by half.

    Raises:
        ValueError: If a shape is none of those above, or a value is not finite.

    Example:
        >>> import torch
        >>> figure = ppc(0.0, torch.tensor([-1.0, 0.5, 1.0, 2.0]))
        >>> figure.axes[0].get_title()
        'tail probability 0.750'
    """
    from ppvae.plot.picture import Picture

    single, values = to_numpy("observed", observed), _vector("replicated", replicated)
    if single.size != 1:
        raise ValueError(f"observed: got shape {single.shape}, expected one number")
    value = float(single.reshape(()))
    tail = float(np.mean(values > value) + np.mean(values == value) / 2)
    with house_style():
        figure = Picture(figsize=(3.2, 1.7), dpi=DPI, layout="constrained")
        axes = figure.add_subplot()
        axes.hist(values, bins=_bins(values), color=_PALE, label="replicates")
        axes.axvline(value, color=PALETTE[1], label="data")
        axes.set(xlabel=name, yticks=[], title=f"tail probability {tail:.3f}")
        plain_axes(axes, spines=("bottom",))
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.2)
    return figure


def sbc_ecdf(ranks: Array, low: Array, high: Array, *, names: Sequence[str] | None = None) -> Figure:
    """Draws the distribution functions of ranks less that of uniform ones, within their simultaneous band.

    A curve that leaves the band is coloured and named, with a dot where it is furthest from uniform outside of it. A
    hump upwards on the left and downwards on the right means a guide that is too narrow, the reverse one that is too
    wide; a curve above zero one that lies too high.

    Args:
        ranks: Integers from 0 to l, of shape (n,) or, for several dimensions, (n, k).
        low: The lowest values within the band at the ranks 0, …, l, of shape (l + 1,), as `ecdf_band` gives them.
        high: The highest ones.
        names: Of the dimensions, k of them; by default their numbers.

    Returns:
        A figure with one axes.

    Raises:
        ValueError: If a shape is none of those above, or a value is out of range.

    Example:
        >>> import torch
        >>> from ppvae.evaluate.sbc import ecdf_band
        >>> figure = sbc_ecdf(torch.arange(100) % 10, *ecdf_band(100, 9))
        >>> figure.axes[0].get_xlabel()
        'rank / 9'
    """
    from ppvae.plot.picture import Picture

    lower, upper = _vector("low", low), _vector("high", high)
    if lower.shape != upper.shape or len(lower) < 2:
        raise ValueError(f"low, high: got shapes {lower.shape} and {upper.shape}, expected both (l + 1,)")
    columns, labels = _ranks(ranks, len(lower) - 1, names)
    k = len(lower)
    uniform = np.arange(1, k + 1) / k
    curves = np.stack([np.bincount(column, minlength=k).cumsum() / len(column) for column in columns.T])
    beyond = (curves < lower - 1e-9) | (curves > upper + 1e-9)  # the band came through float division
    outside = beyond.any(axis=1)
    x = np.arange(k) / (k - 1)
    with house_style():
        figure = Picture(figsize=(3.6, 2.2), dpi=DPI, layout="constrained")
        axes = figure.add_subplot()
        axes.fill_between(x, lower - uniform, upper - uniform, step="mid", color=_PALE, alpha=0.35, linewidth=0)
        axes.axhline(0, color=_GREY, linewidth=0.6)
        for curve in curves[~outside]:
            axes.step(x, curve - uniform, where="mid", color=_GREY, linewidth=0.7)
        for i, place in enumerate(np.flatnonzero(outside)):
            excess = curves[place] - uniform
            axes.step(x, excess, where="mid", label=labels[place], linewidth=0.9, **line_style(i))
            furthest = np.where(beyond[place], np.abs(excess), -1).argmax()
            axes.plot(x[furthest], excess[furthest], "o", color=PALETTE[i % len(PALETTE)], markersize=3, zorder=3)
        axes.set(xlabel=f"rank / {k - 1}", ylabel="ECDF − uniform")
        plain_axes(axes)
        if outside.any():
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=math.ceil(outside.sum() / 12))
    return figure


def rank_histogram(ranks: Array, num_samples: int, *, num_bins: int = 20, names: Sequence[str] | None = None) -> Figure:
    """Draws histograms of ranks, one panel per dimension, with the range of 99 % of uniform ones in each bin.

    Args:
        ranks: Integers from 0 to `num_samples`, of shape (n,) or (n, k), k at most 24.
        num_samples: l, the largest rank.
        num_bins: Bins, about; the nearest number that divides l + 1, so that none holds more ranks than another.
        names: Of the dimensions, k of them; by default their numbers.

    Returns:
        A figure with k axes.

    Raises:
        ValueError: If a shape is none of those above, or a value is out of range.

    Example:
        >>> import torch
        >>> len(rank_histogram(torch.arange(300).reshape(100, 3) % 10, 9).axes)
        3
    """
    from scipy.stats import binom

    from ppvae.plot.picture import Picture

    whole("num_samples", num_samples)
    whole("num_bins", num_bins)
    columns, labels = _ranks(ranks, num_samples, names)
    n, k = columns.shape
    if k > _MAX_PANELS:
        raise ValueError(f"ranks: got {k} dimensions, expected at most {_MAX_PANELS}: choose some")
    divisors = [b for b in range(1, num_samples + 2) if (num_samples + 1) % b == 0]
    bins = min(divisors, key=lambda b: abs(math.log(b / num_bins)))
    edges = (np.linspace(0, num_samples + 1, bins + 1) - 0.5).tolist()
    width = min(k, 4)
    with house_style():
        figure = Picture(figsize=(1.7 * width, 1.3 * math.ceil(k / width)), dpi=DPI, layout="constrained")
        for i, label in enumerate(labels):
            axes = figure.add_subplot(math.ceil(k / width), width, i + 1)
            axes.axhspan(*binom.interval(0.99, n, 1 / bins), color=_PALE, alpha=0.35, linewidth=0)
            axes.hist(columns[:, i], bins=edges, color=PALETTE[0], alpha=0.8)
            axes.axhline(n / bins, color=_GREY, linewidth=0.6)
            axes.set(title=label, xlabel="rank", yticks=[])
            plain_axes(axes, spines=("bottom",))
    return figure


def guide_against_nuts(guide: Array, nuts: Array, *, names: Sequence[str] | None = None) -> Figure:
    """Draws one datum's posterior as the guide and as NUTS have it.

    One dimension as two histograms, two or more as points of the first two with the ellipses that hold 50 % and 95 %
    of normals of the same mean and covariance.

    Args:
        guide: Draws of shape (s,) or (s, k) from q(z|x).
        nuts: Draws of shape (t,) or (t, k) from p(z|x).
        names: Of the dimensions, k of them; by default z[0], z[1], ...

    Returns:
        A figure with one axes.

    Raises:
        ValueError: If a shape is none of those above, or a value is not finite.

    Example:
        >>> import torch
        >>> figure = guide_against_nuts(torch.randn(100, 2), torch.randn(200, 2))
        >>> [entry.get_text() for entry in figure.axes[0].get_legend().get_texts()]
        ['guide', 'NUTS']
    """
    from ppvae.plot.picture import Picture

    draws = {"guide": _matrix("guide", guide), "NUTS": _matrix("nuts", nuts)}
    k = draws["guide"].shape[1]
    if draws["NUTS"].shape[1] != k or min(len(values) for values in draws.values()) < 2:
        shapes = " and ".join(str(values.shape) for values in draws.values())
        raise ValueError(f"guide, nuts: got shapes {shapes}, expected (s, k) and (t, k), s and t at least 2")
    labels = _names(names, [f"z[{i}]" for i in range(k)])
    with house_style():
        figure = Picture(figsize=(2.6, 2.2), dpi=DPI, layout="constrained")
        axes = figure.add_subplot()
        if k == 1:
            bins = _bins(np.concatenate([values[:, 0] for values in draws.values()]))
            for (label, values), colour in zip(draws.items(), PALETTE, strict=False):
                axes.hist(values[:, 0], bins=bins, density=True, histtype="step", color=colour, label=label)
            axes.set(xlabel=labels[0], yticks=[])
        else:
            for (label, values), colour in zip(draws.items(), PALETTE, strict=False):
                _cloud(axes, values[:, :2], colour, label)
            axes.set(xlabel=labels[0], ylabel=labels[1])
        plain_axes(axes, spines=("bottom",) if k == 1 else ("left", "bottom"))
        axes.legend(loc="best", handlelength=1.2)
    return figure


def _cloud(axes: Axes, points: _NDArray, colour: str, label: str) -> None:
    """Draws points (s, 2) and the ellipses of 50 % and 95 % of the normal of their mean and covariance."""
    size = float(np.clip(2000 / len(points), 0.8, 8.0))
    axes.scatter(points[:, 0], points[:, 1], s=size, color=colour, alpha=0.3, linewidths=0, rasterized=True)
    values, vectors = np.linalg.eigh(np.cov(points.T))
    angle = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    axis = vectors * np.sqrt(values.clip(0))
    for mass, entry in ((0.5, label), (0.95, None)):
        radius = math.sqrt(-2 * math.log(1 - mass))  # of a standard normal in two dimensions
        axes.plot(*(points.mean(0)[:, None] + radius * axis @ circle), color=colour, label=entry)


def _bins(values: _NDArray) -> Sequence[float]:
    """Edges of bins: one per value where they are few and whole, as counts are, else some thirty."""
    distinct = np.unique(values)
    if len(distinct) <= 30 and (distinct == np.round(distinct)).all() and distinct[-1] - distinct[0] <= 60:
        return (np.arange(distinct[0], distinct[-1] + 2) - 0.5).tolist()
    return np.histogram_bin_edges(values, bins=30).tolist()


def _vector(name: str, values: Array) -> _NDArray:
    array = to_numpy(name, values)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"{name}: got shape {array.shape}, expected one dimension, not empty")
    return array


def _matrix(name: str, values: Array) -> _NDArray:
    array = to_numpy(name, values)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name}: got shape {array.shape}, expected (n,) or (n, k), not empty")
    return array


def _ranks(ranks: Array, num_samples: int, names: Sequence[str] | None) -> tuple[_NDArray, list[str]]:
    """Returns integer ranks (n, k) and the names of the dimensions."""
    array = _matrix("ranks", ranks)
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > num_samples:
        raise ValueError(
            f"ranks: got values of type {array.dtype} from {array.min()} to {array.max()}, expected integers from 0 "
            f"to {num_samples}"
        )
    return array, _names(names, [str(i) for i in range(array.shape[1])])


def _names(names: Sequence[str] | None, default: list[str]) -> list[str]:
    if names is not None and len(names) != len(default):
        raise ValueError(f"names: got {len(names)}, expected one for each of {len(default)} dimensions")
    return default if names is None else list(names)
