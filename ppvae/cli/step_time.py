"""What a training step takes beside the arithmetic of its nets, and what it takes as one compiled graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

SECONDS = 0.5
"""How long each of the ways is timed, roughly."""
MOST = 100
"""Rounds, in each of which every way has its turn: what else the machine does hits all alike."""
WARM = 2
"""Times that each is run before the first that counts."""


@dataclass(frozen=True)
class StepTime:
    """Milliseconds, the median of some rounds.

    Attributes:
        num_data: of the minibatch.
        eager: a training step: guide, model, loss, backward pass, optimizer.
        nets: the nets of the pair alone, forward and backward on what the step gave them; None where it called none.
        compiled: the step as one compiled graph; None where it is not compiled.
    """

    num_data: int
    eager: float
    nets: float | None
    compiled: float | None

    def summary(self) -> str:
        """A sentence or two."""
        text = f"a training step on {self.num_data} data takes {self.eager:.3g} ms"
        if self.nets is not None:
            rest = max(0.0, 1 - self.nets / self.eager)
            text += f", its nets alone, forward and backward, {self.nets:.3g} ms: {rest:.0%} goes on around them"
        if self.compiled is not None:
            text += f"; compiled it takes {self.compiled:.3g} ms"
        return text


@dataclass
class Call:
    """A call of a net, to be run again.

    Attributes:
        net: the net.
        inputs, options: what it was given, cut off from the graph; a gradient flows to what one flowed to.
    """

    net: nn.Module
    inputs: tuple[Any, ...]
    options: dict[str, Any]

    def run(self) -> None:
        """Forward and backward."""
        outputs = [out for out in _tensors(self.net(*self.inputs, **self.options)) if out.requires_grad]
        if outputs:
            torch.autograd.backward(outputs, [torch.ones_like(out) for out in outputs])


@contextmanager
def calls_of_nets(pair: nn.Module) -> Iterator[list[Call]]:
    """Notes the calls of outermost modules that have parameters, and give tensors and not distributions."""
    open_calls: list[list[Call]] = []
    found: list[Call] = []

    def before(net: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        open_calls.append([])

    def after(net: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        inner = open_calls.pop()
        whole = _tensors(output) and any(True for _ in net.parameters())
        given = tuple(map(_cut, inputs)), {name: _cut(value) for name, value in options.items()}
        (open_calls[-1] if open_calls else found).extend([Call(net, *given)] if whole else inner)

    handles = []
    for module in pair.modules():
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def time_step(
    step: Callable[[], object],
    compiled: Callable[[], object] | None,
    calls: Sequence[Call],
    *,
    num_data: int,
    device: torch.device,
) -> StepTime:
    """Times a step, its nets alone, and the compiled step, in turn.

    Args:
        step: makes one.
        compiled: makes one by a compiled graph, which is there already; None where there is none.
        calls: of the nets in one step.
        num_data: of the minibatch.
        device: where all of it runs.
    """
    parameters = {p for call in calls for p in call.net.parameters()}

    def nets() -> None:
        for call in calls:
            call.run()
        for p in parameters:
            p.grad = None

    ways = {"eager": step, **({"nets": nets} if calls else {}), **({"compiled": compiled} if compiled else {})}
    once = {name: min(_milliseconds(way, device) for _ in range(WARM)) for name, way in ways.items()}
    rounds = max(1, min(MOST, int(1000 * SECONDS / max(once.values()))))
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(_milliseconds(way, device))
    medians = {name: median(values) for name, values in found.items()}
    return StepTime(num_data, medians["eager"], medians.get("nets"), medians.get("compiled"))


def _milliseconds(run: Callable[[], object], device: torch.device) -> float:
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else None
    if wait:
        wait()
    began = time.perf_counter()
    run()
    if wait:
        wait()
    return 1000 * (time.perf_counter() - began)


def _tensors(values: Any) -> list[Tensor]:
    """The tensors in an output; none where it holds anything else."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, tuple | list) and values and all(isinstance(value, Tensor) for value in values):
        return list(values)
    return []


def _cut(value: Any) -> Any:
    return value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
