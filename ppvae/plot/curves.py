"""How training went."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ppvae.plot.figure import DPI, PALETTE, house_style, line_style, plain_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NDArray = np.ndarray[Any, Any]
_Curves = list[tuple[str, _NDArray]]

_TRANSIENT = 0.1  # the part of the epochs, at the start, that may run out of a panel
_KL = "KL divergence"  # the title of the last panel
_GREY = PALETTE[8]
_BEST = {("valid", "ELBO"): np.nanargmax, ("valid", "loss"): np.nanargmin}
"""The curves by which training keeps weights, and where they are best."""


def training_curves(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws a training history: the ELBO, the reconstruction term, and the KL of each latent site.

    Columns are drawn by name: `elbo` and `valid_elbo`; `reconstruction` and `valid_reconstruction`; `loss` beside
    `valid_loss`; one line for each `kl_<site>`, and `kl_weight` dashed on an axis of its own unless it is 1 throughout.
    A circle marks the best validation value, whose weights `fit` keeps. A panel without data is left out. The first
    tenth of the epochs runs out of a panel whose range it would triple.

    Args:
        history: One row per epoch: numbers by column name, in nats per datum. `epoch` numbers the rows, else
            they count from 1. A value may be missing, None or not finite: its line then passes over it.

    Returns:
        A figure with the panels side by side, and a twin of the last for the KL weight, where shown.

    Raises:
        ValueError: If a value is not a number, or no panel has data.

    Example:
        >>> history = [{"epoch": i, "elbo": -100 - 50 / i, "kl_z": 20 - 10 / i} for i in range(1, 21)]
        >>> [axes.get_title() for axes in training_curves(history).axes]
        ['ELBO', 'KL divergence']
    """
    from ppvae.plot.picture import Picture

    columns = _columns(history)
    panels = _panels(columns)
    if not panels:
        raise ValueError(
            f"history: got {len(history)} rows with values in columns {sorted(columns)}, expected values in "
            "one of elbo, valid_elbo, reconstruction, valid_reconstruction, valid_loss, kl_<site>"
        )
    epochs = _epochs(columns, len(history))
    with house_style():
        figure = Picture(figsize=(2.2 * len(panels), 1.9), dpi=DPI, layout="constrained")
        all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, curves) in zip(all_axes, panels.items(), strict=True):
            _draw_panel(axes, epochs, curves, title=title)
        all_axes[0].set_ylabel("nats per datum")
        weight = columns.get("kl_weight", np.array([]))
        known = weight[~np.isnan(weight)]
        if _KL in panels and len(known) > 1 and np.any(known != 1):  # a line of one epoch would be none
            _draw_weight(all_axes[-1], epochs, weight)
    return figure


def compare_curves(
    histories: Mapping[str, Sequence[Mapping[str, Any]]], column: str = "elbo", *, unit: str = "nats per datum"
) -> Figure:
    """Draws one column of the histories of several runs over the epochs, on a logarithmic axis from twenty on.

    Args:
        histories: training histories as for `training_curves` by the name of their run, e.g.
            `{name: RunFolder(f"runs/{name}").read_history() for name in names}`.
        column: what to draw: `elbo`, `valid_elbo`, `loss`, `kl_<site>`, ...
        unit: what it is in; "" for a number without one.

    Returns:
        A figure with one panel, and a legend where there are several runs.

    Raises:
        ValueError: If there is no history, one has no values in that column, or a value is not a number.

    Example:
        >>> history = [{"epoch": i, "elbo": -100 - 50 / i} for i in range(1, 21)]
        >>> compare_curves({"VAE": history, "IWAE": history[:5]}).axes[0].get_ylabel()
        'elbo, nats per datum'
    """
    from ppvae.plot.picture import Picture

    if not isinstance(histories, Mapping):
        raise TypeError(f"histories: got {histories!r}, expected training histories by the name of their run")
    if not histories:
        raise ValueError("histories: got none, expected the history of at least one run")
    if not isinstance(unit, str):
        raise TypeError(f"unit: got {unit!r}, expected a text")
    with house_style():
        figure = Picture(figsize=(3.4, 2.2), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        curves = []
        for i, (name, history) in enumerate(histories.items()):
            columns = _columns(history, f"histories[{name!r}]")
            if column not in columns:
                raise ValueError(f"column: got {column!r}, expected one with values in {name!r}, of {sorted(columns)}")
            curves.append((name, _epochs(columns, len(history)), columns[column]))
            _draw_curve(axes, i, *curves[-1])
        plain_axes(axes)
        axes.set(xlabel="epoch", ylabel=f"{column}, {unit}" if unit else column)
        union = np.unique(np.concatenate([epochs for _, epochs, _ in curves]))
        if union[-1] < 20 * union[0]:  # a logarithmic axis would have one tick or none
            _count_epochs(axes, union)
        else:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
        settled = [curve[len(curve) // 10 :] for _, _, curve in curves]
        axes.set_ylim(_limits(np.concatenate(settled)[None], with_zero=False))
        if len(curves) > 1:
            axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), handlelength=1.2, labelspacing=0.3)
    return figure


def _columns(history: Sequence[Mapping[str, Any]], name: str = "history") -> dict[str, _NDArray]:
    """Returns the columns (epochs,) that hold a finite value, with nan where a row has none."""
    rows = isinstance(history, Sequence) and not isinstance(history, str)
    if not rows or not all(isinstance(row, Mapping) for row in history):
        raise TypeError(f"{name}: got {history!r}, expected a list of rows, numbers by column name")
    columns: dict[str, _NDArray] = {}
    for place, row in enumerate(history):
        for column, value in row.items():
            try:
                number = math.nan if value is None else float(value)
            except (TypeError, ValueError):
                raise ValueError(
                    f"{name}: got {value!r} in row {place}, column {column!r}, expected a number or None"
                ) from None
            if math.isfinite(number):
                columns.setdefault(column, np.full(len(history), math.nan))[place] = number
    return columns


def _epochs(columns: dict[str, _NDArray], num_rows: int) -> _NDArray:
    """Returns the rows' numbers: their epochs where all are known, else 1, 2 and so on."""
    epochs = columns.get("epoch")
    return np.arange(1.0, num_rows + 1) if epochs is None or np.isnan(epochs).any() else epochs


def _panels(columns: dict[str, _NDArray]) -> dict[str, _Curves]:
    """Returns the labelled curves of each panel that has some."""
    sites = [name for name in columns if name.startswith("kl_") and name != "kl_weight"]
    layout = {
        "ELBO": {"elbo": "train", "valid_elbo": "valid"},
        "reconstruction": {"reconstruction": "train", "valid_reconstruction": "valid"},
        "loss": {"loss": "train", "valid_loss": "valid"} if "valid_loss" in columns else {},
        _KL: {name: _site_label(name.removeprefix("kl_")) for name in sites},
    }
    panels = {
        title: [(label, columns[name]) for name, label in labels.items() if name in columns]
        for title, labels in layout.items()
    }
    return {title: curves for title, curves in panels.items() if curves}


def _site_label(site: str) -> str:
    """Writes a letter and its number, as z2, like mathematics; leaves other names as they are."""
    parts = re.fullmatch(r"([a-zA-Z])_?(\d*)", site)
    if parts is None:
        return site.lstrip("_")  # matplotlib keeps labels that start with an underscore out of legends
    letter, index = parts.groups()
    return f"${letter}_{{{index}}}$" if index else f"${letter}$"


def _draw_panel(axes: Axes, epochs: _NDArray, curves: _Curves, *, title: str) -> None:
    """Draws curves over the epochs, with a legend where there are several or a site has to be named."""
    is_kl = title == _KL
    for i, (label, curve) in enumerate(curves):
        _draw_curve(axes, i, label, epochs, curve)
        if (label, title) in _BEST:
            best = int(_BEST[label, title](curve))
            axes.plot(epochs[best], curve[best], "o", color=PALETTE[i], markersize=3.5, fillstyle="none", zorder=3)
    plain_axes(axes)
    axes.set(xlabel="epoch", title=title)
    axes.set_ylim(_limits(np.stack([curve for _, curve in curves]), with_zero=is_kl))
    _count_epochs(axes, epochs)
    if is_kl or len(curves) > 1 or curves[0][0] != "train":
        columns = math.ceil(len(curves) / 5)
        axes.legend(loc="best", ncols=columns, handlelength=1.2, labelspacing=0.2, columnspacing=1.0)


def _count_epochs(axes: Axes, epochs: _NDArray) -> None:
    """Sets the ticks of an axis of epochs: whole numbers, and one of a single epoch."""
    from matplotlib.ticker import MaxNLocator

    if len(epochs) == 1:
        axes.set(xlim=(epochs[0] - 0.5, epochs[0] + 0.5), xticks=epochs)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _draw_curve(axes: Axes, i: int, label: str, epochs: _NDArray, curve: _NDArray) -> None:
    """Draws the known values of the i-th curve of a panel."""
    known = ~np.isnan(curve)
    line = axes.plot(epochs[known], curve[known], label=label, **line_style(i))[0]
    if known.sum() <= 10:  # a line through one point would be invisible
        line.set(marker="o", markersize=2.5)


def _limits(curves: _NDArray, *, with_zero: bool) -> tuple[float, float]:
    """Returns limits for curves (c, epochs), without the first tenth if that would triple the range.

    All epochs after it stay in view: an early transient need not be seen, a late collapse must be.
    """
    low, high = float(np.nanmin(curves)), float(np.nanmax(curves))
    tail = curves[:, math.ceil(_TRANSIENT * curves.shape[1]) :]
    if np.isfinite(tail).sum(axis=1).max() > 2:
        tail_low, tail_high = float(np.nanmin(tail)), float(np.nanmax(tail))
        if high - low > 3 * (tail_high - tail_low) > 0:
            low, high = tail_low, tail_high
    if with_zero:  # a KL is read against none
        low, high = min(low, 0.0), max(high, 0.0)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    return low - margin, high + margin


def _draw_weight(axes: Axes, epochs: _NDArray, weight: _NDArray) -> None:
    """Draws the KL weight, thin and dashed, on a twin axis whose zero is that of the KL."""
    known = ~np.isnan(weight)
    twin = axes.twinx()
    twin.plot(epochs[known], weight[known], linestyle="--", linewidth=0.7, color=_GREY)
    twin.set_ylim(_limits(weight[None], with_zero=True))
    twin.set_ylabel("KL weight", color=_GREY)
    plain_axes(twin, spines=("right",))
