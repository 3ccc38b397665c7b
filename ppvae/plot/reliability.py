"""Whether a classifier is as often right as it is sure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ppvae.plot.figure import DPI, PALETTE, Array, house_style, plain_axes, to_numpy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def reliability_diagram(confidence: Array, accuracy: Array, count: Array) -> Figure:
    """Draws accuracy against confidence for each bin of confidence, below it how many data each bin holds.

    Args:
        confidence: Mean confidence of each bin, shape (b,), bins of equal width over [0, 1]; ignored where empty.
        accuracy: Share of right predictions, (b,); ignored where the bin is empty.
        count: Numbers of data, (b,).

    Returns:
        A figure of two axes; the diagonal of the upper is perfect calibration, its title the calibration error.

    Raises:
        ValueError: If a shape is none of those above, there are no data, or a value of a bin with data is not in
            [0, 1].

    Example:
        >>> import torch
        >>> bins = torch.tensor([0.25, 0.75]), torch.tensor([0.5, 0.75]), torch.tensor([10, 30])
        >>> reliability_diagram(*bins).axes[0].get_title()
        'calibration error 6.2%'
    """
    from ppvae.plot.picture import Picture

    data = to_numpy("count", count)
    if data.ndim != 1 or not data.sum() > 0 or (data < 0).any():
        raise ValueError(f"count: got shape {data.shape}, sum {data.sum():g}, expected (b,) with some data")
    full = data > 0
    sure, right = (_shares(*named, full) for named in (("confidence", confidence), ("accuracy", accuracy)))
    share = data[full] / data.sum()
    error = float((share * np.abs(right - sure)).sum())
    edges = np.linspace(0, 1, len(data) + 1)[:-1]
    with house_style():
        figure = Picture(figsize=(2.2, 2.6), dpi=DPI, layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color=PALETTE[8], linewidth=0.7, linestyle="--")
        upper.plot(sure, right, color=PALETTE[0], marker="o", markersize=2.5)
        upper.set(
            xlim=(0, 1),
            ylim=(0, 1.02),
            ylabel="accuracy",
            title=f"calibration error {100 * error:.1f}%",
        )
        lower.bar(edges, data / data.sum(), width=1 / len(data), align="edge", color=PALETTE[0], linewidth=0)
        lower.set(xlabel="confidence", ylabel="share\nof data")
        for axes in (upper, lower):
            plain_axes(axes)
    return figure


def _shares(name: str, values: Array, full: np.ndarray) -> np.ndarray:
    """Returns the values of the bins with data, which must lie in [0, 1]."""
    try:
        array = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)
    except ValueError as error:
        raise ValueError(f"{name}: got no array, {error}") from error
    if array.shape != full.shape:
        raise ValueError(f"{name}: got shape {array.shape}, expected that of count, {full.shape}")
    array = to_numpy(name, array[full])
    if (array < 0).any() or (array > 1).any():
        raise ValueError(f"{name}: got values from {array.min():g} to {array.max():g}, expected shares in [0, 1]")
    return array
