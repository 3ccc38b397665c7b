"""What every picture shares: type sizes, colours, arrays checked on the way in, files written whole."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = torch.Tensor | np.ndarray[Any, Any]

DPI = 200
"""Dots per inch of every figure and file."""

TEXT_SIZE = 8.0
"""Size of all text in points; tick labels are one point smaller."""

LONGEST = 200
"""Characters of a file's name, which becomes longer while it is written."""

PALETTE = (
    "#3f90da",  # blue
    "#bd1f01",  # red
    "#ffa90e",  # amber
    "#832db6",  # purple
    "#94a4a2",  # pale grey
    "#a96b59",  # brown
    "#e76300",  # orange
    "#b9ac70",  # khaki
    "#717581",  # dark grey
    "#92dadd",  # cyan
)
"""Ten colours that stay apart under colour blindness (M. A. Petroff, arXiv:2107.02270)."""

_DASHES = ("-", "--", ":", "-.")

_STYLE: dict[Any, Any] = {
    "font.size": TEXT_SIZE,
    "axes.labelsize": TEXT_SIZE,
    "axes.labelpad": 2.5,
    "axes.titlesize": TEXT_SIZE,
    "axes.titlepad": 4.0,
    "axes.linewidth": 0.6,
    "axes.grid": False,
    "lines.linewidth": 1.0,
    "legend.fontsize": TEXT_SIZE - 1,
    "legend.frameon": False,
    # Who has these on would have the image grids laid out anew, and resampled.
    "figure.autolayout": False,
    "figure.constrained_layout.use": False,
}


def house_style() -> AbstractContextManager[None]:
    """Returns a context in which new figures get the house type sizes and line widths; it leaves no trace.

    Returns:
        A context manager: matplotlib's settings are as before once it has ended.

    Example:
        >>> import matplotlib
        >>> before = matplotlib.rcParams["font.size"]
        >>> with house_style():
        ...     matplotlib.rcParams["font.size"]
        8.0
        >>> matplotlib.rcParams["font.size"] == before
        True
    """
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def line_style(i: int) -> dict[str, Any]:
    """Returns the colour and the dashes of the i-th line of a panel: no two of forty are alike, dashed in print too.

    Example:
        >>> line_style(0), line_style(11)["linestyle"]
        ({'color': '#3f90da', 'linestyle': '-'}, '-.')
    """
    colours, kinds = len(PALETTE), len(_DASHES)
    return {"color": PALETTE[i % colours], "linestyle": _DASHES[(i + i // (2 * colours)) % kinds]}


def plain_axes(axes: Axes, *, spines: tuple[str, ...] = ("left", "bottom")) -> None:
    """Keeps only some of the frame's sides and fixes the size of the tick labels.

    Args:
        axes: The axes, changed in place.
        spines: The sides of the frame that stay: of "left", "bottom", "right", "top".

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure().add_subplot()
        >>> plain_axes(axes)
        >>> axes.spines["top"].get_visible()
        False
    """
    for side, spine in axes.spines.items():
        spine.set_visible(side in spines)
    # Ticks are made when the figure is drawn; house_style is over by then, so their sizes are set here.
    axes.tick_params(labelsize=TEXT_SIZE - 1, width=0.6, length=2.5, pad=2)


def to_numpy(name: str, values: Array | float) -> np.ndarray[Any, Any]:
    """Returns the values as a numpy array of finite numbers.

    Args:
        name: The argument's name, for the error.
        values: A tensor on any device, or an array, of any shape.

    Returns:
        The same values and shape on the host.

    Raises:
        ValueError: If the values are not real numbers, or some of them are not finite.

    Example:
        >>> to_numpy("z", torch.ones(2, requires_grad=True))
        array([1., 1.], dtype=float32)
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        # numpy knows neither bfloat16 nor the 8-bit floats
        values = (values.float() if values.is_floating_point() and values.itemsize < 4 else values).numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name}: got no array, {error}") from error
    if array.dtype.kind not in "buif":
        raise ValueError(f"{name}: got values of type {array.dtype}, expected real numbers")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = array.size - int(np.isfinite(array).sum())
        raise ValueError(f"{name}: got {bad} nan or infinite values of {array.size}, expected finite ones")
    return array


def whole(name: str, value: Any) -> int:
    """Returns a count, checked to be one.

    Raises:
        ValueError: If it is no whole number, or below 1.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
        raise ValueError(f"{name}: got {value!r}, expected a whole number >= 1")
    return int(value)


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure to a file at 200 dots per inch, whole or not at all.

    The picture is written beside its destination and then takes its name, so that a reader never meets half a
    file and a failure leaves the old one. Folders are not created.

    Args:
        figure: The figure.
        path: The file; its suffix chooses the format (".png", ".pdf", ".svg").

    Raises:
        ValueError: If the suffix is none of the three.
        FileNotFoundError: If the folder does not exist.

    Example:
        >>> import tempfile
        >>> from ppvae.plot import samples
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(samples(torch.rand(4, 8, 8)), f"{folder}/samples.png")
        ...     os.listdir(folder)
        ['samples.png']
    """
    import matplotlib

    if not hasattr(figure, "savefig"):
        raise TypeError(f"figure: got {figure!r}, expected a matplotlib Figure")
    if not isinstance(path, str | os.PathLike) or "\0" in os.fspath(path) or len(Path(path).name) > LONGEST:
        raise ValueError(f"path: got {path!r}, expected the path of a file")
    path = Path(path)
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ValueError(f"path: got {str(path)!r}, expected a name that ends in .png, .pdf or .svg")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: got {str(path)!r}, but there is no folder {str(path.parent)!r}")
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # Type 42 embeds fonts as TrueType: many publishers refuse matplotlib's default, Type 3.
        with matplotlib.rc_context({"pdf.fonttype": 42, "savefig.bbox": None}), partial.open("wb") as file:
            figure.savefig(file, format=path.suffix[1:].lower(), dpi=DPI)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
