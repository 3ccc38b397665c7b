"""Memory: what a run allocates, and whether a CPU keeps what tensors free for the next ones."""

from __future__ import annotations

import ctypes
import platform
from typing import Any

from torch import Tensor

from ppvae._internals import TorchDispatchMode, returns_view

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LIMITS = 2**31 - 1, 2**25  # the most that an int holds, and the most that glibc before 2.35 takes


def keep_freed_memory() -> bool:
    """Lets the process keep the memory of freed tensors on the CPU, for the next ones to use.

    By default glibc returns large blocks to the system, which fills every page of the next tensor with zeros: a model
    whose activations take megabytes (convolutions, many importance samples) spends a third of its time there. This is
    a setting of the whole process: call it once, as the program starts; every example does, and a graph that is
    compiled for a CPU does. The process stays as large as it was at its largest.

    Returns:
        Whether it had an effect: False where the C library is not glibc, which alone has the setting.

    References:
        `man 3 mallopt`, M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.

    Example:
        >>> keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
        True
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return any(mallopt(_MMAP_THRESHOLD, limit) for limit in _LIMITS) and bool(mallopt(_TRIM_THRESHOLD, _LIMITS[0]))


class Allocations(TorchDispatchMode):
    """Counts the bytes of every tensor that is computed anew: a bound on the memory that a run needs."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else (result,)
        for tensor, is_view in zip(results, returns_view(func), strict=False):
            if isinstance(tensor, Tensor) and not is_view:  # which takes no memory
                self.bytes += tensor.numel() * tensor.element_size()
        return result
