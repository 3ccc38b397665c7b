"""A matplotlib figure that a notebook shows."""

from __future__ import annotations

from io import BytesIO

from matplotlib.figure import Figure

_SMALLER = 1.5
"""How many dots of the picture one of the notebook's page takes the place of: print sizes look small on a screen."""


class Picture(Figure):
    """A figure made without pyplot, which notebooks would show as a line of text.

    Example:
        >>> data, size = Picture(figsize=(3.0, 2.0), dpi=150)._repr_png_()
        >>> data[1:4], size
        (b'PNG', {'width': 300, 'height': 200})
    """

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """The picture, and the size to show it at."""
        file = BytesIO()
        self.savefig(file, format="png", dpi=self.dpi)
        width, height = (round(side * self.dpi / _SMALLER) for side in self.get_size_inches())
        return file.getvalue(), {"width": width, "height": height}
