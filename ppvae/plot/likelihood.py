"""What is known of log p(x): its values, the bound against the number of samples, the tails of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ppvae.plot.figure import DPI, PALETTE, Array, house_style, plain_axes, to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NDArray = np.ndarray[Any, Any]

_GOOD = 0.7  # the largest k̂ of weights that can be trusted
_SIZE = (2.6, 1.9)
_GREY = PALETTE[8]
_POINTS: dict[str, Any] = {"color": PALETTE[0], "marker": "o", "markersize": 2.5, "capsize": 1.5, "elinewidth": 0.7}


def bound_curve(num_samples: Array, mean: Array, std_error: Array | None = None) -> Figure:
    """Draws the bound on log p(x) against the number of importance samples.

    Args:
        num_samples: Numbers of samples of shape (k,), rising, at least 1.
        mean: Mean bound with so many, (k,), in nats per datum.
        std_error: Standard errors of shape (k,), drawn as bars; to show how far the last steps of the rise are known,
            those of the paired differences to the last.

    Returns:
        A figure with one axes, whose samples are on a logarithmic scale.

    Raises:
        ValueError: If the shapes differ, or a value is out of range or not finite.

    Example:
        >>> import torch
        >>> bound_curve(torch.tensor([1, 10, 100]), torch.tensor([-95.0, -92.0, -91.0])).axes[0].get_xscale()
        'log'
    """
    samples, bound = to_numpy("num_samples", num_samples), to_numpy("mean", mean)
    if samples.ndim != 1 or not len(samples) or samples[0] < 1 or (np.diff(samples) <= 0).any():
        raise ValueError(f"num_samples: got {samples.tolist()}, expected rising numbers from 1, of shape (k,)")
    error = np.zeros(len(samples)) if std_error is None else to_numpy("std_error", std_error)
    for name, values in {"mean": bound, "std_error": error}.items():
        if values.shape != samples.shape:
            raise ValueError(f"{name}: got shape {values.shape}, expected that of num_samples, {samples.shape}")
    with house_style():
        figure, axes = _one_axes()
        axes.errorbar(samples, bound, yerr=None if std_error is None else error, **_POINTS)
        axes.set_xscale("log")
        axes.set(xlabel="importance samples", ylabel="bound on log p(x), nats")
        plain_axes(axes)
    return figure


def log_prob_histogram(values: Array, *, xlabel: str = "log p(x), nats") -> Figure:
    """Draws how log p(x) is distributed over the data, with their mean.

    Args:
        values: log p(x) of shape (n,), in nats.
        xlabel: What the values are.

    Returns:
        A figure with one axes; its title is the mean.

    Raises:
        ValueError: If the shape is not (n,) with n at least 1, or a value is not finite.

    Example:
        >>> import torch
        >>> figure = log_prob_histogram(torch.randn(100) - 90)
        >>> figure.axes[0].get_ylabel()
        'data'
    """
    array = _vector("values", values)
    with house_style():
        figure, axes = _one_axes()
        axes.hist(array, bins=_bins(array), color=PALETTE[0])
        mean = float(array.mean(dtype=np.float64))
        axes.axvline(mean, color=PALETTE[1], linewidth=1.0)
        axes.set(xlabel=xlabel, ylabel="data")
        axes.set_title(f"mean {mean:.2f}".replace("-", "−"), color=PALETTE[1])  # above the bars, as the line is
        plain_axes(axes)
    return figure


def pareto_k(k_hat: Array) -> Figure:
    """Draws k̂ of each datum's importance weights in rising order, and the limit of 0.7 beyond which they fail.

    Args:
        k_hat: k̂ of shape (n,); −inf (weights all alike) and +inf (no tail to fit) are drawn as triangles at the edge.

    Returns:
        A figure with one axes; its title counts the data beyond the limit.

    Raises:
        ValueError: If the shape is not (n,) with n at least 1, or a value is NaN.

    Example:
        >>> import torch
        >>> pareto_k(torch.tensor([0.2, 0.9, 0.5])).axes[0].get_title().split(" ", 1)[1]
        '> 0.7 for 1 of 3 data'
    """
    infinite = np.isinf(array := _extended(k_hat))
    finite = np.sort(array[~infinite])
    low, high = min([0.0, *finite[:1]]), max([1.0, *finite[-1:]])
    margin = 0.08 * (high - low)
    height = np.sort(np.clip(array, low - margin / 2, high + margin / 2))
    with house_style():
        figure, axes = _one_axes()
        place = np.arange(1, len(height) + 1) / len(height)
        good, known = height <= _GOOD, ~np.isinf(np.sort(array))
        for chosen, colour in ((good, PALETTE[0]), (~good, PALETTE[1])):
            axes.plot(place[chosen & known], height[chosen & known], ".", color=colour, markersize=3, rasterized=True)
            marker = "v" if chosen is good else "^"
            axes.plot(place[chosen & ~known], height[chosen & ~known], marker, color=colour, markersize=3)
        axes.axhline(_GOOD, color=_GREY, linewidth=0.7, linestyle="--")
        axes.set_ylim(low - margin, high + margin)
        title = rf"$\hat{{k}}$ > {_GOOD} for {int((~good).sum())} of {len(height)} data"
        axes.set(xlabel="share of the data", ylabel=r"$\hat{k}$", title=title)
        plain_axes(axes)
    return figure


def _one_axes() -> tuple[Figure, Axes]:
    from ppvae.plot.picture import Picture

    figure = Picture(figsize=_SIZE, dpi=DPI, layout="constrained")
    return figure, figure.add_subplot()


def _vector(name: str, values: Array) -> _NDArray:
    """Returns the values (n,), of which there must be some."""
    array = to_numpy(name, values)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name}: got shape {array.shape}, expected (n,) with n at least 1")
    return array


def _extended(k_hat: Array) -> _NDArray:
    """Returns k̂ (n,), whose values may be infinite but not NaN."""
    try:
        array = np.asarray(k_hat.detach().cpu() if isinstance(k_hat, torch.Tensor) else k_hat)
        array = array.astype(np.float64, casting="safe" if array.dtype.kind == "c" else "unsafe")
    except (TypeError, ValueError):
        raise ValueError(f"k_hat: got {type(k_hat).__name__}, expected real numbers") from None
    if np.isnan(array).any():
        raise ValueError(f"k_hat: got {int(np.isnan(array).sum())} nan values of {array.size}, expected none")
    _vector("k_hat", np.where(np.isinf(array), 0.0, array))
    return array


def _bins(array: _NDArray) -> int:
    """Returns a number of bins that grows with the data, like numpy's "sturges" and "fd" but bounded."""
    return int(np.clip(np.sqrt(len(array)), 5, 40))
