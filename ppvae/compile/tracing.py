"""Tracing: one run of a computation in Pyro, written down as a graph of tensor operations."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.ops.provenance import detach_provenance
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from ppvae._internals import argument_names, code_written_late, returns_view, undescribed, written_arguments
from ppvae.compile.arguments import Arguments, UncompilableError
from ppvae.compile.decompositions import DECOMPOSITIONS
from ppvae.compile.reads import Answer, Read, Reads
from ppvae.compile.scalars import Scalar, Tape

Computation = Callable[[tuple[Any, ...]], tuple[Sequence[Tensor], Any]]
"""From arguments to tensors, and to whatever says what these are."""


MAX_OPERATIONS = 20_000
"""How many operations the graphs of one computation may have, all of them together."""


@dataclass
class Traced:
    """One traced run of a computation.

    Attributes:
        module: the graph: from the tensors among the arguments to the computed ones and those that were read.
        layout: what says what the computed tensors are.
        reads: the values that Python asked of tensors.
        tape: what Python made of numbers among the arguments that may change.
    """

    module: GraphModule
    layout: Any
    reads: list[Read]
    tape: Tape

    @property
    def answers(self) -> tuple[Answer, ...]:
        """What Python read."""
        return tuple(read.answer for read in self.reads)

    @property
    def num_operations(self) -> int:
        """How long the graph is."""
        return len(self.module.graph.nodes)

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

    def take_early_reads(self) -> tuple[GraphModule, list[int]]:
        """Moves the reads of what inputs alone decide into a graph of their own: it is known before this one runs.

        Returns:
            That graph, and which of the reads these are.
        """
        graph = self.module.graph
        output = graph.output_node()
        results: list[Node] = list(output.args[0])  # type: ignore[arg-type]
        computed, read = results[: len(results) - len(self.reads)], results[len(results) - len(self.reads) :]
        written = {_base(node) for call in graph.nodes for node in _written(call)}
        ancestors = {node: _ancestors(node) for node in read}
        early = [
            i for i, node in enumerate(read) if not any(_base(a) in written or _is_random(a) for a in ancestors[node])
        ]
        needed = {a for i in early for a in ancestors[read[i]]}
        asked, copies = Graph(), dict[Node, Node]()
        for node in graph.nodes:
            if node.op == "placeholder" or node in needed:
                copies[node] = asked.node_copy(node, copies.__getitem__)
        asked.output(tuple(copies[read[i]] for i in early))
        output.args = ([*computed, *(node for i, node in enumerate(read) if i not in early)],)
        self.module.recompile()
        return GraphModule(self.module, asked), early


def _ancestors(node: Node) -> set[Node]:
    """A node, and all that it is computed from."""
    found: set[Node] = set()
    waiting = [node]
    while waiting:
        if (node := waiting.pop()) not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _base(node: Node) -> Node:
    """The node whose memory this one is a view of."""
    while node.op == "call_function" and (node.target is operator.getitem or any(returns_view(node.target))):
        node = node.all_input_nodes[0]
    return node


def _written(node: Node) -> list[Node]:
    """The arguments that an operation writes to."""
    if node.op != "call_function" or node.target is operator.getitem:
        return []
    names = argument_names(node.target)
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return [value for name in written_arguments(node.target) if isinstance(value := given.get(name), Node)]


def _has_effects(node: Node) -> bool:
    """Whether an operation does more than to give a result."""
    return node.op in ("placeholder", "output") or _is_random(node) or bool(_written(node))


def _is_random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def trace(
    compute: Computation,
    args: Arguments,
    *,
    then: Callable[[Sequence[Tensor], Any], Any] | None = None,
    lifted: Sequence[int] = (),
    limit: int = MAX_OPERATIONS,
) -> Traced:
    """Runs a computation, without Pyro's validation, and writes down its tensor operations.

    Args:
        compute: the computation.
        args: its arguments.
        then: what is done with its outputs, from them and their layout to another layout. Not where Python asked for
            values: a run in which they are others is undone.
        lifted: which of their leaves are numbers that may change.
        limit: how many operations it may have.
    """
    layout: list[Any] = []
    reads = Reads(limit)
    tape = Tape([args.leaves[place] for place in lifted])
    scalars = {place: Scalar(tape, i) for i, place in enumerate(lifted)}

    def traced(*tensors: Tensor) -> list[Tensor]:
        with reads.functions, reads.operations:
            outputs, what = compute(args.with_tensors(tensors, scalars))
            outputs = detach_provenance(list(outputs))  # of TraceGraph_ELBO; what wraps a tensor would be a constant
            if then is not None and not reads.found:
                what = then(outputs, what)
        layout.append(what)
        return [*outputs, *(read.tensor for read in reads.found)]

    with pyro.validation_enabled(False), undescribed(), code_written_late():
        # New aliases: a tensor that is given twice, or that the pair refers to as well, is an argument of its own.
        module = make_fx(traced, decomposition_table=DECOMPOSITIONS)(
            *(t if t.requires_grad else t.detach() for t in args.tensors)
        )
    # What nothing depends on goes, so that a number that Python reads and arithmetic does not need is in no graph.
    module.graph.eliminate_dead_code(_has_effects)
    return Traced(module, layout[0], reads.found, tape)


def check_same(first: Traced, second: Traced) -> None:
    """Checks that two traced runs on one batch did the same.

    Raises:
        UncompilableError: where they did not: the pair's Python draws or counts something itself.
    """
    same = str(first.module.graph) == str(second.module.graph) and (first.answers, first.tape) == (
        second.answers,
        second.tape,
    )
    for node in first.module.graph.nodes if same else ():
        if node.op == "get_attr":
            a, b = getattr(first.module, str(node.target)), getattr(second.module, str(node.target))
            same = same and (a is b or (a.shape == b.shape and bool(torch.equal(a, b))))
    if not same:
        raise UncompilableError("two runs of the pair on one batch differ: it uses a state that is no tensor")
