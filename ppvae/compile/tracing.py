"""Tracing: one run of a computation in Pyro, written down as a graph of tensor operations."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from ppvae._internals import TorchDispatchMode, modes_off, scalar_read
from ppvae.compile.arguments import Arguments, UncompilableError
from ppvae.compile.decompositions import DECOMPOSITIONS

Computation = Callable[[tuple[Any, ...]], tuple[Sequence[Tensor], Any]]
"""From arguments to tensors, and to whatever says what these are."""


@dataclass
class Traced:
    """One traced run of a computation.

    Attributes:
        module: the graph: from the tensors among the arguments to the computed ones and those of the decisions.
        layout: what says what the computed tensors are.
        decisions: the values that Python asked of tensors.
    """

    module: GraphModule
    layout: Any
    decisions: list[float]

    def lift_tensors(self) -> list[Tensor]:
        """Makes the tensors that the graph refers to inputs after the arguments, and returns them."""
        graph = self.module.graph
        inputs: list[Tensor] = []
        places: dict[int, Node] = {}
        last = next((node for node in reversed(graph.nodes) if node.op == "placeholder"), None)
        for node in [node for node in graph.nodes if node.op == "get_attr"]:
            tensor = getattr(self.module, str(node.target))
            if id(tensor) not in places:
                first = next(iter(graph.nodes))
                with graph.inserting_before(first) if last is None else graph.inserting_after(last):
                    last = places[id(tensor)] = graph.placeholder(f"input_{len(inputs)}")
                last.meta = dict(node.meta)
                inputs.append(tensor)
            node.replace_all_uses_with(places[id(tensor)])
            graph.erase_node(node)
        self.module.recompile()
        return inputs


def trace(
    compute: Computation, args: Arguments, *, then: Callable[[Sequence[Tensor], Any], Any] | None = None
) -> Traced:
    """Runs a computation, without Pyro's validation, and writes down its tensor operations.

    Args:
        compute: the computation.
        args: its arguments.
        then: what is done with its outputs, from them and their layout to another layout. Not where Python asked for
            values: a run in which they are others is undone.
    """
    layout: list[Any] = []
    decisions: list[float] = []

    def traced(*tensors: Tensor) -> list[Tensor]:
        with _ItemsStay(), _Reads() as reads:
            outputs, what = compute(args.with_tensors(tensors))
            if then is not None and not reads.decisions:
                what = then(outputs, what)
        layout.append(what)
        decisions.extend(value for _, value in reads.decisions)
        return [*outputs, *(tensor for tensor, _ in reads.decisions)]

    with pyro.validation_enabled(False):
        # New aliases: a tensor that is given twice, or that the pair refers to as well, is an argument of its own.
        module = make_fx(traced, decomposition_table=DECOMPOSITIONS)(
            *(t if t.requires_grad else t.detach() for t in args.tensors)
        )
    return Traced(module, layout[0], decisions)


_READERS = (Tensor.tolist, Tensor.numpy, Tensor.__array__)
"""What reads a tensor's values past every mode that could note them."""


class _ItemsStay(TorchFunctionMode):
    """Lets the numbers that Pyro reads for its loss stay tensors, and refuses reads of whole tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asked_by = sys._getframe(1).f_globals.get("__name__", "")
        if func is Tensor.item and asked_by.startswith("pyro.infer."):
            return args[0].detach()
        by_value = func in (torch.tensor_split, Tensor.tensor_split) and any(isinstance(a, Tensor) for a in args[1:])
        if func in _READERS or by_value:
            raise UncompilableError(f"{func.__name__} reads values of a tensor")
        return func(*args, **(kwargs or {}))


class _Reads(TorchDispatchMode):
    """Answers what Python asks of tensors, and refuses what a graph of fixed shapes cannot hold.

    Pyro's NaN checks are left to the caller of the step. Where Pyro leaves out enumerated values of probability zero
    they stay in: zero times their cost, which changes nothing, or makes the loss NaN where the cost is infinite. Any
    other value that is read is a decision, noted with the tensor that it was read from.
    """

    def __init__(self) -> None:
        super().__init__()
        self.decisions: list[tuple[Tensor, float]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scalar_read():
            module, function = _asked_by(sys._getframe(1))
            if module == "pyro.util" and "warn_if" in function:
                return False
            if (module, function) == ("pyro.infer.util", "compute_expectation"):
                return True
            with modes_off():
                value = args[0].item()
            self.decisions.append((args[0], value))
            return value
        by_value = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(func.tags)
        if by_value and not (func is torch.ops.aten.index.Tensor and not _has_mask(args[1])):
            raise UncompilableError(f"{func} gives a shape or a Python value that depends on values of tensors")
        return func(*args, **(kwargs or {}))


def _asked_by(frame: FrameType | None) -> tuple[str, str]:
    """The module and the function whose code asked torch for a value."""
    between = ("torch.", __name__)  # the tracer's own frames
    while frame is not None and frame.f_globals.get("__name__", "").startswith(between):
        frame = frame.f_back
    return ("", "") if frame is None else (frame.f_globals.get("__name__", ""), frame.f_code.co_name)


def _has_mask(indices: Any) -> bool:
    return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in indices)


def check_same(first: Traced, second: Traced) -> None:
    """Checks that two traced runs on one batch did the same.

    Raises:
        UncompilableError: where they did not: the pair's Python draws or counts something itself.
    """
    same = str(first.module.graph) == str(second.module.graph) and first.decisions == second.decisions
    for node in first.module.graph.nodes if same else ():
        if node.op == "get_attr":
            a, b = getattr(first.module, str(node.target)), getattr(second.module, str(node.target))
            same = same and (a is b or (a.shape == b.shape and bool(torch.equal(a, b))))
    if not same:
        raise UncompilableError("two runs of the pair on one batch differ: it uses a state that is no tensor")
