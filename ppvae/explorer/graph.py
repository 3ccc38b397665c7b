"""A decoder as a list of a few tensor operations with its weights, which a page runs in the browser.

`torch.export` writes the computation down in core ATen operations. What of it does not depend on the inputs is computed
here, once; the rest is a list that JSON holds:

    {"inputs": [names], "constants": [{"shape", "dtype", "data"}], "operations": [{"name", "args"}], "output": place}

Values are numbered: inputs first, then constants, then what each operation gives. A tensor among the arguments is
{"value": number}; the data of constants are little-endian float32, in base64. `interpreter.js` runs the same list.
"""

from __future__ import annotations

import base64
import math
import operator
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from ppvae._internals import declared_arguments

Graph = dict[str, Any]
"""What the module docstring shows."""

INTERPRETER = Path(__file__).parent / "interpreter.js"
PLACE = ("device", "layout", "memory_format", "pin_memory", "non_blocking")
"""Arguments that say where a result lies, and nothing of its values."""


class UnknownOperationError(ValueError):
    """A decoder needs an operation that the interpreter of the page does not have."""


@cache
def known_operations() -> frozenset[str]:
    """The operations of the interpreter, by their names in ATen: those of its table.

    Example:
        >>> "convolution.default" in known_operations()
        True
    """
    return frozenset(re.findall(r'^ +"([\w.]+)":', INTERPRETER.read_text(encoding="utf-8"), re.MULTILINE))


def graph_of(module: nn.Module, inputs: dict[str, Tensor]) -> Graph:
    """Writes down what a module computes of inputs of these shapes.

    Args:
        module: from the inputs, in their order, to a tensor.
        inputs: an example of each by its name; those that the result does not depend on are in no graph.

    Raises:
        UnknownOperationError: naming an operation that the interpreter does not have, or one that draws.
        ValueError: where the computation asks for values of tensors.

    Example:
        >>> graph = graph_of(nn.Linear(2, 3), {"z": torch.zeros(1, 2)})
        >>> graph["inputs"], [operation["name"] for operation in graph["operations"]]
        (['z'], ['addmm.default'])
    """
    with torch.no_grad():
        try:
            exported = torch.export.export(module, tuple(inputs.values()), strict=False).run_decompositions()
        except (RuntimeError, TypeError, AssertionError) as error:
            raise ValueError(f"the decoder is no fixed list of operations: {str(error).splitlines()[0]}") from error
        signature, state = exported.graph_signature, exported.state_dict | exported.constants
        held = signature.inputs_to_parameters | signature.inputs_to_buffers
        held |= signature.inputs_to_lifted_tensor_constants
        names = dict(zip(signature.user_inputs, inputs, strict=True))
        fold = _Folded(names)
        for node in exported.graph.nodes:
            if node.op == "placeholder" and node.name in held:
                fold.values[node] = state[held[node.name]]
            elif node.op == "call_function":
                fold.compute(node)
        (result,) = exported.graph.output_node().args[0]
        return _written(fold, result)


class _Folded:
    """The nodes of a graph that are constants, with their values.

    Args:
        names: of the inputs, by those of their nodes.
    """

    def __init__(self, names: dict[Any, str]) -> None:
        self.names = names
        self.values: dict[Node, Any] = {}

    def compute(self, node: Node) -> None:
        """Notes the value of a node all of whose inputs are constants."""
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            return
        if all(each in self.values for each in node.all_input_nodes):
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), self.values.__getitem__)
            self.values[node] = node.target(*args, **kwargs)  # type: ignore[operator]


def _written(fold: _Folded, result: Node) -> Graph:
    """The list of what the result needs."""
    order = _needed(result, fold)
    inputs = [node for node in order if node.op == "placeholder" and node not in fold.values]
    constants = [node for node in order if node in fold.values]
    calls = [node for node in order if node.op == "call_function" and node not in fold.values]
    for node in calls:
        _check_known(node)
    numbers = {node: i for i, node in enumerate([*inputs, *constants, *calls])}
    return {
        "inputs": [fold.names[node.name] for node in inputs],
        "constants": [packed(fold.values[node]) for node in constants],
        "operations": [{"name": _name(node), "args": _as_json(_all_args(node), numbers)} for node in calls],
        "output": numbers[result],
    }


def _needed(result: Node, fold: _Folded) -> list[Node]:
    """What a node is computed from, with itself last, in the order of the graph; constants end the search."""
    found: set[Node] = set()
    waiting = [result]
    while waiting:
        if (node := waiting.pop()) not in found:
            found.add(node)
            waiting += [] if node in fold.values else node.all_input_nodes
    return [node for node in result.graph.nodes if node in found]


def _name(node: Node) -> str:
    return "getitem" if node.target is operator.getitem else str(node.target).removeprefix("aten.")


def _check_known(node: Node) -> None:
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        raise UnknownOperationError(
            f"the decoder draws ({_name(node)}): one of its conditionals has no mean in closed form, and a file cannot "
            "show it; ppvae explore without --export does"
        )
    if (name := _name(node)) not in known_operations():
        raise UnknownOperationError(
            f"the decoder needs the operation {name}, which the page's interpreter does not have: ppvae explore "
            f"without --export runs it in Python; {INTERPRETER.name} is where it would be added"
        )


def _all_args(node: Node) -> list[Any]:
    """The arguments of a call in the order of its schema, defaults included, without those of place."""
    if node.target is operator.getitem:
        return list(node.args)
    given = dict(node.kwargs)
    args = []
    for i, argument in enumerate(declared_arguments(node.target)):
        if argument.name not in PLACE:
            args.append(node.args[i] if i < len(node.args) else given.get(argument.name, argument.default_value))
    return args


def _as_json(value: Any, numbers: dict[Node, int]) -> Any:
    """Arguments with nodes as their numbers; what JSON has no word for as a string."""
    if isinstance(value, Node):
        return {"value": numbers[value]}
    if isinstance(value, list | tuple):
        return [_as_json(each, numbers) for each in value]
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    return value


def packed(value: Tensor) -> dict[str, Any]:
    """A tensor as JSON holds it.

    Example:
        >>> packed(torch.zeros(1, 1))
        {'shape': [1, 1], 'dtype': 'float32', 'data': 'AAAAAA=='}
    """
    array = np.ascontiguousarray(value.detach().cpu().to(torch.float32).numpy(), dtype="<f4")
    return {
        "shape": list(value.shape),
        "dtype": str(value.dtype).removeprefix("torch."),
        "data": base64.b64encode(array.tobytes()).decode("ascii"),
    }


def unpacked(content: dict[str, Any]) -> Tensor:
    """The tensor of `packed`, float64 as float32.

    Example:
        >>> unpacked(packed(torch.tensor([1.5])))
        tensor([1.5000])
    """
    array = np.frombuffer(bytearray(base64.b64decode(content["data"])), dtype="<f4").reshape(content["shape"])
    dtype = getattr(torch, content["dtype"])
    return torch.from_numpy(array.astype(np.float32)).to(torch.float32 if dtype == torch.float64 else dtype)


def run(graph: Graph, inputs: dict[str, Tensor]) -> Tensor:
    """Runs a graph in torch: what the page must find too.

    Args:
        graph: of `graph_of`, perhaps by way of a file.
        inputs: by name, of the shapes of the examples; others than the graph's are left alone.

    Example:
        >>> net = nn.Linear(2, 3)
        >>> z = torch.randn(1, 2)
        >>> torch.allclose(run(graph_of(net, {"z": z}), {"z": z}), net(z), atol=1e-6)
        True
    """
    values: list[Any] = [unpacked(packed(inputs[name])) for name in graph["inputs"]]  # as the page holds them
    values += [unpacked(content) for content in graph["constants"]]
    for operation in graph["operations"]:
        args = _from_json(operation["args"], values)
        result = _function(operation["name"])(args)
        values.append(result.contiguous() if isinstance(result, Tensor) else result)  # as the page holds all values
    return values[graph["output"]]


def _from_json(value: Any, values: Sequence[Any]) -> Any:
    if isinstance(value, dict):
        return values[value["value"]] if "value" in value else float(value["number"].replace("Infinity", "inf"))
    return [_from_json(each, values) for each in value] if isinstance(value, list) else value


def _function(name: str) -> Callable[[list[Any]], Any]:
    """From the arguments as they are written to the result."""
    if name == "getitem":
        return lambda args: args[0][args[1]]
    packet, overload = name.split(".")
    function = getattr(getattr(torch.ops.aten, packet), overload)

    def call(args: list[Any]) -> Any:
        arguments = [argument for argument in declared_arguments(function) if argument.name not in PLACE]
        given = {argument.name: value for argument, value in zip(arguments, args, strict=True)}
        given |= {name: getattr(torch, dtype) for name, dtype in given.items() if name == "dtype" and dtype is not None}
        positional = [given.pop(argument.name) for argument in arguments if not argument.kwarg_only]
        return function(*positional, **given)

    return call
