"""What `fit` calls after every epoch: functions of the user's, and TensorBoard as one of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from torch import nn

from ppvae._validate import check_takes
from ppvae.infer.run_folder import Row
from ppvae.processes import is_first

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Callback = Callable[[Row, nn.Module, int], object]
"""Called as `f(row, pair, epoch)`: the history's new row, the pair in eval mode, the epochs finished. True stops. Every
one of many processes calls it: what prints or writes asks `ppvae.processes.is_first()`."""


def check_callbacks(callbacks: Any) -> tuple[Callback, ...]:
    """The callbacks as a tuple.

    Raises:
        TypeError: where they are no sequence of functions.
    """
    wrong = [f for f in callbacks if not callable(f)] if isinstance(callbacks, Sequence) else [callbacks]
    if wrong or isinstance(callbacks, str):
        raise TypeError(f"callbacks must be a list of functions f(row, pair, epoch), got {(wrong or [callbacks])[0]!r}")
    for i, callback in enumerate(callbacks):
        check_takes(f"callbacks[{i}]", callback, "row", "pair", "epoch")
    return tuple(callbacks)


class TensorBoard:
    """Logs every column of the history for TensorBoard: `fit(..., callbacks=[TensorBoard("runs/vae")])`.

    A run that is resumed with the same folder goes on with the same curves.

    Args:
        folder: where the event files go, e.g. the run folder.

    Raises:
        ValueError: where TensorBoard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        if find_spec("tensorboard") is None:
            raise ValueError("tensorboard is not installed: pip install 'ppvae[tensorboard]'")
        self.folder = os.fspath(folder)
        self._writer: SummaryWriter | None = None

    def __call__(self, row: Row, pair: nn.Module, epoch: int) -> None:
        """Logs the row of an epoch; the first one makes the file. Of many processes the first alone does."""
        if not is_first():
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self.folder)
        for name, value in row.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()
