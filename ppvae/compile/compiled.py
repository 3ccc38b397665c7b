"""Compiled computations: Pyro's handlers run once, their arithmetic runs ever after.

The computation (the whole gradient of a step: guide, model, ELBO, backward) is executed once under a tracer, which
writes down every tensor operation as one graph; Inductor compiles the graph, which then runs without any Python of
Pyro's.

What the graph reads besides the batch (parameters, buffers, a KL weight that a schedule updates in place) becomes an
input that is passed by reference, so its new values count. What Python decided while tracing is guarded: numbers and
flags on the modules, and values that were asked of tensors. The first run of every graph is compared with the eager
computation. Where a guard fails, or tracing, or the comparison, the computation runs eagerly, after one warning that
says why: slower, never wrong.

On a GPU the kernels of the graph, and of what finishes it (the optimizer's step), are recorded as one CUDA graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ppvae._internals import handlers
from ppvae.compile.arguments import Arguments, UncompilableError
from ppvae.compile.cuda_graph import Recording, recordable
from ppvae.compile.guards import Contents, Kept, fingerprint, modules_that_run, state_unchanged
from ppvae.compile.inductor import build_headers, compile_graph
from ppvae.compile.tracing import Computation, Traced, check_same, trace
from ppvae.compile.verification import AUTOCAST, Label, first_difference, nudged
from ppvae.params import baselines, baselines_kept

Compile = bool | Literal["auto"]
"""Whether to compile: always, never, or where it repays itself."""

COST = 10_000.0
"""Milliseconds that compiling a graph takes, roughly."""

MAX_GRAPHS = 4
"""Kinds of arguments (shapes, dtypes, absent labels) that are compiled; any further one runs eagerly."""

MAX_RETRACES = 8
"""How often graphs are made anew because an attribute of a module changed."""

MAX_MISSES = 20
"""How often a computation may run eagerly because Python would have decided otherwise than it did while tracing."""


def check_compile(compile: Compile) -> None:
    """Checks the argument `compile`.

    Raises:
        ValueError: where it is neither a bool nor "auto".
    """
    if compile not in (True, False, "auto"):
        raise ValueError(f"compile must be True, False or 'auto', got {compile!r}")


def repays(compile: Compile, calls: float, *, saved: float) -> bool:
    """Whether to compile: as it was asked for, or for "auto" where so many calls repay what it costs.

    Args:
        compile: what was asked for.
        calls: how often the computation will run.
        saved: milliseconds that a compiled call saves, roughly. No clock is asked: the same run compiles every time.
    """
    return bool(compile) if compile != "auto" else calls * saved >= COST


class Finish(Protocol):
    """What is done with the outputs of a computation each time, e.g. an optimizer's step."""

    def __call__(self, outputs: Sequence[Tensor], layout: Any) -> Sequence[Tensor]:
        """What the caller gets in place of the outputs."""

    def held(self, layout: Any) -> Any:
        """What it takes for granted, compared by `==`; None where a CUDA graph cannot hold it: it then follows one."""

    def inside(self, outputs: Sequence[Tensor], layout: Any) -> Any:
        """Does the same by operations on tensors, where it can, for a graph to hold; the layout that then says so."""

    def written(self) -> list[Tensor]:
        """The tensors that `inside` writes to."""

    def differs(self, outputs: Sequence[Tensor], layout: Any, before: Sequence[Tensor]) -> str | None:
        """Does it from `before` on, what `written` held; the name of what a graph that did it left otherwise there."""


class _FailedEagerly(Exception):
    """The computation fails as it is, without any compiler."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def _places(layout: Any) -> list[Label]:
    """No names: the places of the outputs."""
    return []


class Compiled:
    """A computation that is compiled for each kind of arguments that it meets.

    Args:
        compute: the eager computation.
        modules: what they hold is guarded; the list may grow before the first compilation.
        parameters: gives the tensors that it leaves gradients on.
        guarded: gives what else the computation depends on, hashable.
        finish: what is done with the outputs.
        names: what the arguments are called, for the warning that names one.
        labels: from the layout of the outputs to what each is called, for the warning that names one.
        autocast: whether products are computed in half precision, which rounds more.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> layer = Compiled(lambda args: ([net(args[0])], None), [net])
        >>> (y,), _ = layer((torch.ones(5, 3),))
        >>> torch.allclose(y, net(torch.ones(5, 3)), atol=1e-6)
        True
    """

    def __init__(
        self,
        compute: Computation,
        modules: list[nn.Module],
        *,
        parameters: Callable[[], list[Tensor]] = list,
        guarded: Callable[[], Any] = tuple,
        finish: Finish | None = None,
        names: Sequence[str] = (),
        labels: Callable[[Any], Sequence[Label]] = _places,
        autocast: bool = False,
    ) -> None:
        self._compute = compute
        self._modules = modules
        self._parameters = parameters
        self._guarded = guarded
        self._finish = finish
        self._names = names
        self._labels = labels
        self._tolerance = AUTOCAST if autocast else 1.0
        self._graphs: dict[Any, _Graph] = {}
        self._retraces = 0
        self._misses = 0
        self._eager = False

    def __call__(self, values: tuple[Any, ...]) -> tuple[Sequence[Tensor], Any]:
        """What the computation gives, finished. It is the caller's: no later call writes over it."""
        graph, outputs = None, None
        if not self._eager:
            try:
                args = Arguments(values, self._names)
                graph = self._graph(args)
                outputs = None if graph is None else self._run(graph, args)
            except _FailedEagerly as failed:
                raise failed.error from None
            except Exception as error:  # a compiler can fail in many ways, and the eager way is always there
                self._eager = True
                warnings.warn(f"not compiled, runs eagerly: {_first_line(error)}", stacklevel=4)
        if graph is None or outputs is None:
            outputs, layout = self._compute(values)
            return self._finished(outputs, layout), layout
        layout = graph.traced.layout
        finished = outputs if graph.finishes else self._finished(outputs, layout)
        return (finished if graph.recording is None else _copies(finished)), layout

    @property
    def num_graphs(self) -> int:
        """How many graphs are in use; none where the computation runs eagerly for good."""
        return 0 if self._eager else len(self._graphs)

    def distrust(self) -> None:
        """Uses a graph again only after a new run of the computation's Python did the same as it."""
        for graph in self._graphs.values():
            graph.trusted = False

    def _finished(self, outputs: Sequence[Tensor], layout: Any) -> Sequence[Tensor]:
        return outputs if self._finish is None else self._finish(outputs, layout)

    def _run(self, graph: _Graph, args: Arguments) -> Sequence[Tensor] | None:
        """Runs a graph, the first time beside the eager computation; None where that is to be taken in its place."""
        outputs = graph.run(args, self._finish) if graph.verified else self._verified(graph, args)
        if outputs is None:
            self._misses += 1
            if self._misses > MAX_MISSES:
                raise UncompilableError("the pair's Python code depends on values of tensors, which keep changing")
        return outputs

    def _verified(self, graph: _Graph, args: Arguments) -> Sequence[Tensor] | None:
        """Compares the first run of a graph with the eager computation.

        Where they differ, what rounding alone can do to this computation is found out: its own of nudged parameters. A
        discrete draw may fall otherwise where its probability is rounded otherwise: it takes two differences, on two
        calls, to find a compiler wrong.

        Raises:
            UncompilableError: where they differ for the second time.
        """
        held = [(name, Kept(tensor)) for name, tensor in self._tensors_held()]
        with self._unchanged():
            outputs, layout = self._compute(args.values)
            written = [(name, kept.tensor) for name, kept in held if kept.is_written]
            graph.written = [tensor for _, tensor in written]
            expected = [t.detach().clone() for t in (*outputs, *graph.written)]
        labels = list(self._labels(layout)) or [("output", str(i)) for i in range(len(outputs))]
        labels += [("what is left in", name) for name, _ in written]
        differs = partial(first_difference, labels, expected, tolerance=self._tolerance)
        tried: list[Sequence[Tensor]] = []

        def agree(tensors: Sequence[Tensor]) -> bool:
            tried.append(tensors)
            return differs(tensors) is None

        found = self._run_where(graph, args, agree)
        graph.verified = found is not None
        if tried and not graph.verified:
            difference = differs(tried[0], nudged_once=self._nudged(args, graph.written))
            graph.verified = difference is None
            graph.differences += difference is not None
            if graph.differences > 1:
                raise UncompilableError(f"compiled, {difference} differs from what it is eagerly")
            found = self._run_where(graph, args, lambda _: True) if graph.verified else None
        graph.contents = Contents(self._modules)  # what Python left on modules is bookkeeping, as it was while tracing
        return found

    def _run_where(
        self, graph: _Graph, args: Arguments, accepts: Callable[[Sequence[Tensor]], bool]
    ) -> Sequence[Tensor] | None:
        """Runs a graph; only where its outputs, and what it left in tensors, are accepted it has run."""
        inside = self._written()
        with state_unchanged(self._modules, [], [*graph.written, *inside]) as keep:
            before = [tensor.detach().clone() for tensor in inside]
            found = graph.run(args, None)
            if found is None or not accepts([*found, *(tensor.detach().clone() for tensor in graph.written)]):
                return None
            if inside and self._finish is not None:
                difference = self._finish.differs(found, graph.traced.layout, before)
                if difference is not None:
                    raise UncompilableError(f"compiled, {difference} differs from what it is eagerly")
            keep.append(True)
        return found

    def _written(self) -> list[Tensor]:
        return [] if self._finish is None else self._finish.written()

    def _nudged(self, args: Arguments, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What the eager computation gives, and leaves in tensors, of parameters that are rounded otherwise."""
        parameters = {id(p): p for p in self._parameters()}
        parameters |= {id(p): p for module in self._modules for p in module.parameters()}
        with nudged(list(parameters.values())), self._unchanged():
            outputs, _ = self._compute(args.values)
            return [t.detach().clone() for t in (*outputs, *tensors)]

    def _tensors_held(self) -> list[tuple[str, Tensor]]:
        """The tensors that a computation may write to, buffers of modules and others that they hold, by name."""
        buffers = {id(b): (name, b) for module in self._modules for name, b in module.named_buffers()}
        others = {id(t): ("a tensor that a module holds", t) for t in Contents(self._modules).tensors()}
        return [(name, tensor) for name, tensor in (others | buffers).values() if not tensor.is_inference()]

    def _graph(self, args: Arguments) -> _Graph | None:
        """The compiled graph for this kind of arguments; None where there are too many kinds."""
        kind = self._kind(args)
        if kind not in self._graphs and len(self._graphs) >= MAX_GRAPHS:
            self._graphs.pop(next((k for k, graph in self._graphs.items() if not graph.trusted), None), None)
        if kind not in self._graphs and len(self._graphs) < MAX_GRAPHS:
            if not any(tensor.is_cuda for tensor in args.tensors):
                build_headers()
            with self._unchanged(), modules_that_run(self._modules):
                try:
                    self._compute(args.values)  # a first run may settle things, such as a guessed nesting of plates
                except Exception as error:
                    raise _FailedEagerly(error) from error
            kind = self._kind(args)
        graph = self._graphs.get(kind)
        if graph is not None:
            changed = graph.contents.changed()
            if changed is None and (graph.trusted or graph.confirm(self._trace(args))):
                return graph
            self._retraces += changed is not None
            if self._retraces > MAX_RETRACES:
                raise UncompilableError(f"{changed} of a module keeps changing; make it a buffer")
        elif len(self._graphs) >= MAX_GRAPHS:
            return None
        self._graphs[kind] = self._compile(args)
        return self._graphs[kind]

    def _kind(self, args: Arguments) -> Any:
        """What a graph is made for: arguments, precision, the handlers around, and what the caller guards."""
        precision = [(d, torch.is_autocast_enabled(d) and torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")]
        return (args.kind(), *precision, tuple(map(fingerprint, handlers())), self._guarded())

    def _trace(self, args: Arguments) -> Traced:
        with self._unchanged():
            before = baselines()
            traced = trace(self._compute, args, then=None if self._finish is None else self._finish.inside)
            after = baselines()
            if before.keys() != after.keys() or any(before[name] is not value for name, value in after.items()):
                raise UncompilableError("TraceGraph_ELBO keeps running averages in Pyro's store, past any graph")
            return traced

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Whatever runs inside leaves no trace: not in the random state, nor in any tensor that modules hold."""
        tensors = [*Contents(self._modules).tensors(), *self._written()]
        with baselines_kept(), state_unchanged(self._modules, self._parameters(), tensors):
            yield

    def _compile(self, args: Arguments) -> _Graph:
        runs = [self._trace(args), self._trace(args)]
        check_same(*runs)  # what differs between two runs on the same arguments is no function of the tensors
        first, inputs = (run.lift_tensors() for run in runs)
        graph = _Graph(runs[-1], inputs, self._modules, Contents(self._modules))
        constants_apart = [b for a, b in zip(first, inputs, strict=True) if a is b]
        graph.recordable = recordable([*args.tensors, *constants_apart])
        graph.compile(args)
        return graph


@dataclass
class _Graph:
    """A compiled computation for one kind of arguments."""

    traced: Traced
    inputs: list[Tensor]
    modules: list[nn.Module]
    contents: Contents
    function: Callable[..., Any] | None = None
    code: str = ""
    trusted: bool = True
    recordable: bool = False
    recording: Recording | None = None
    finishes: bool = False
    runs: int = 0
    verified: bool = False
    differences: int = 0
    written: list[Tensor] = field(default_factory=list)

    def confirm(self, again: Traced) -> bool:
        """Whether a new run of the computation does what this graph does; it is trusted from then on."""
        self.trusted = _same_inputs(again.lift_tensors(), self.inputs) and (
            (again.layout, again.decisions, self._code(again)) == (self.traced.layout, self.traced.decisions, self.code)
        )
        return self.trusted

    def _code(self, traced: Traced) -> str:
        kinds = [(tensor.dtype, tensor.shape, tensor.stride(), tensor.device) for tensor in self.inputs]
        return f"{traced.module.graph}{kinds}"

    def compile(self, args: Arguments) -> None:
        """Compiles for arguments like these."""
        self.code = self._code(self.traced)  # before the compiler works on it
        self.function = compile_graph(self.traced.module, [*args.tensors, *self.inputs])

    def run(self, args: Arguments, finish: Finish | None) -> Sequence[Tensor] | None:
        """Runs the graph; where it `finishes` itself, also what comes after.

        Returns:
            What was computed; None where Python would have decided otherwise than it did while tracing. Nothing has
            then changed, not even the random state.
        """
        assert self.function is not None
        tensors, decisions = args.tensors, self.traced.decisions
        self.runs += 1
        if not decisions:
            self._record(tensors, finish)
            with torch.no_grad():
                return self.recording(tensors) if self.recording is not None else self.function(*tensors, *self.inputs)
        with torch.no_grad(), state_unchanged(self.modules, [], self.written) as keep:
            outputs = self.function(*tensors, *self.inputs)
            if [value.item() for value in outputs[-len(decisions) :]] != decisions:
                return None
            keep.append(True)
        return outputs[: -len(decisions)]

    def _record(self, tensors: list[Tensor], finish: Finish | None) -> None:
        """Sees to a recording of what a run does, from the second run on: the first loads the kernels."""
        if self.runs == 1 or not self.recordable:
            return
        layout = self.traced.layout
        held = None if finish is None else finish.held(layout)
        if self.recording is not None and self.recording.holds(held):
            return
        self.recording = None  # its memory is free for the next
        self.finishes = held is not None

        def run(arguments: list[Tensor]) -> Sequence[Tensor]:
            assert self.function is not None
            outputs = self.function(*arguments, *self.inputs)
            return outputs if finish is None or held is None else finish(outputs, layout)

        try:
            with torch.no_grad():
                self.recording = Recording(run, tensors, self.inputs, held)
        except Exception as error:  # the device refuses to record some things, each in its own way
            self.recordable = self.finishes = False
            warnings.warn(f"not recorded as a CUDA graph: {_first_line(error)}", stacklevel=6)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _same_inputs(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether these are the same tensors, or constants of the same values."""
    return len(a) == len(b) and all(
        x is y or (x.dtype == y.dtype and x.device == y.device and torch.equal(x, y)) for x, y in zip(a, b, strict=True)
    )


def _copies(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Tensors that the next replay of a CUDA graph does not write over; of single numbers, by one launch."""
    if len({(t.dtype, t.device) for t in tensors}) == 1 and all(t.dim() == 0 for t in tensors):
        return list(torch.stack(list(tensors)))
    return [tensor.clone() for tensor in tensors]
