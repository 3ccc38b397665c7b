"""CUDA graphs: what a computation launches on a GPU, recorded once and replayed by one launch.

A replay runs no Python and waits for nothing. It reads and writes the very tensors of the recording, so that these are
guarded: the arguments are copied into tensors of its own, and everything else must be where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Recording:
    """One CUDA graph.

    Args:
        function: launches the work, without waiting for the device; from the arguments to what is computed.
        arguments: tensors that every replay gets anew.
        referred: the other tensors that the work reads or writes.
        held: what else it takes for granted, compared by `==`.

    Raises:
        RuntimeError: where the work cannot be recorded.
    """

    def __init__(
        self,
        function: Callable[[list[Tensor]], Sequence[Tensor]],
        arguments: list[Tensor],
        referred: list[Tensor],
        held: Any,
    ) -> None:
        self._arguments = [argument.clone() for argument in arguments]
        if [a.stride() for a in self._arguments] != [a.stride() for a in arguments]:
            raise RuntimeError("an argument has elements that share memory")
        self._referred = referred
        self._addresses = [tensor.data_ptr() for tensor in referred]
        self._held = held
        device = next((tensor.device for tensor in (*self._arguments, *referred)), torch.device("cuda"))
        self._replay, self._outputs = capture(lambda: function(self._arguments), device)

    def holds(self, held: Any) -> bool:
        """Whether everything is still where it was recorded."""
        return self._addresses == [tensor.data_ptr() for tensor in self._referred] and self._held == held

    def __call__(self, arguments: list[Tensor]) -> Sequence[Tensor]:
        """What is computed; the next replay writes over it."""
        for own, argument in zip(self._arguments, arguments, strict=True):
            own.copy_(argument)
        self._replay()
        return self._outputs


def capture(
    function: Callable[[], Sequence[Tensor]], device: torch.device
) -> tuple[Callable[[], None], Sequence[Tensor]]:
    """Records what a function launches; returns what launches it again, and the tensors that it then writes."""
    graph = torch.cuda.CUDAGraph()
    with (
        torch.cuda.device(device),  # whichever is current: a capture sees the stream of one device alone
        torch.cuda.graph(graph, stream=torch.cuda.Stream(device), capture_error_mode="thread_local"),
    ):
        outputs = function()
    return graph.replay, outputs


def recordable(tensors: Sequence[Tensor]) -> bool:
    """Whether all these are on one GPU."""
    return all(tensor.is_cuda for tensor in tensors) and len({tensor.device for tensor in tensors}) == 1
