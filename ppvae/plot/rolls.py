"""Piano rolls: keys against steps, one under the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ppvae.plot.figure import DPI, PALETTE, TEXT_SIZE, Array, house_style, plain_axes, to_numpy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def rolls(named: Mapping[str, Array], *, lowest: int = 21) -> Figure:
    """Draws piano rolls one under the other, on one scale of keys: those that any of them uses.

    Args:
        named: rolls of shape (steps, keys) by what to call them, clipped to [0, 1]: what sounds, or how probably.
        lowest: MIDI number of the first key, for the axis.

    Returns:
        A figure with an axes for each roll.

    Raises:
        ValueError: If there is none, one is of another shape, or holds a value that is not finite.

    Example:
        >>> import torch
        >>> figure = rolls({"data": torch.eye(12).repeat(4, 1), "sample": torch.rand(40, 12)})
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['data', 'sample']
    """
    arrays = {name: to_numpy(f"named[{name!r}]", roll).clip(0, 1) for name, roll in named.items()}
    if not arrays:
        raise ValueError("named: got no roll, expected at least one")
    keys = {roll.shape[1] if roll.ndim == 2 and roll.size else 0 for roll in arrays.values()}
    if len(keys) != 1 or 0 in keys:
        shapes = {name: roll.shape for name, roll in arrays.items()}
        raise ValueError(f"named: got rolls of shapes {shapes}, expected (steps, keys) with as many keys each")
    used = np.flatnonzero(np.concatenate([*arrays.values()]).max(0) > 0.05)
    low, high = (int(used[0]), int(used[-1])) if len(used) else (0, keys.pop() - 1)
    longest = max(len(roll) for roll in arrays.values())
    with house_style():
        from matplotlib.colors import LinearSegmentedColormap

        from ppvae.plot.picture import Picture

        shades = LinearSegmentedColormap.from_list("rolls", ["white", PALETTE[0]])
        figure = Picture(figsize=(6.0, 0.35 + 1.15 * len(arrays)), dpi=DPI, layout="constrained")
        for axes, (name, roll) in zip(
            figure.subplots(len(arrays), squeeze=False, sharex=True)[:, 0], arrays.items(), strict=True
        ):
            extent = (0, len(roll), lowest + low - 0.5, lowest + high + 0.5)
            part = roll[:, low : high + 1].T
            axes.imshow(part, cmap=shades, vmin=0, vmax=1, origin="lower", aspect="auto", extent=extent)
            axes.set(xlim=(0, longest), ylabel=name)
            plain_axes(axes)
        axes.set_xlabel("step", fontsize=TEXT_SIZE)
    return figure
