"""Room for data that memory does not hold: a file without a name, which the tensor reads as it is used."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from ppvae._validate import memory_bytes

SHARE = 0.4
"""The part of this machine's memory that one set of data may take."""


def room(shape: tuple[int, ...], dtype: torch.dtype, near: Path, *, name: str) -> Tensor:
    """An empty tensor in memory, or where it would take more than `SHARE` of that, in a file on disk.

    The file lies in the folder `near`, or where that cannot be written to in the one for temporary files. It has no
    name there: it is gone as soon as the tensor is, or the process, however that ends. The system reads and drops its
    pages as they are used.

    Args:
        shape: of the tensor.
        dtype: of the tensor.
        near: a folder on a disk with room.
        name: the argument that asks for it.

    Raises:
        ValueError: where the disk has no room either.

    Example:
        >>> room((3, 2), torch.float32, Path("."), name="root").shape
        torch.Size([3, 2])
    """
    numel = math.prod(shape)
    size = numel * dtype.itemsize
    if size <= SHARE * memory_bytes():
        return torch.empty(shape, dtype=dtype)
    folder = near if os.access(near, os.W_OK) else Path(tempfile.gettempdir())
    with tempfile.NamedTemporaryFile(dir=folder) as file:  # its name goes here, what it holds with the last use
        try:
            os.posix_fallocate(file.fileno(), 0, size)  # now, since a write to a full disk through memory kills
        except OSError as error:
            raise ValueError(
                f"{name}: the data take {size / 2**30:.3g} GiB, more than {SHARE:.0%} of this machine's memory, and "
                f"{folder} has no room for them: {error.strerror}; ppvae.data.Pictures takes none"
            ) from None
        return torch.from_file(file.name, shared=True, size=numel, dtype=dtype).view(shape)
