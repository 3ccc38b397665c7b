"""Compiled computations: Pyro's handlers run once, their arithmetic runs ever after.

The computation (the whole gradient of a step: guide, model, ELBO, backward) is executed once under a tracer, which
writes down every tensor operation as one graph; Inductor compiles the graph, which then runs without any Python of
Pyro's.

What the graph reads besides the batch (parameters, buffers, a KL weight that a schedule updates in place) becomes an
input that is passed by reference, so its new values count. What Python decided while tracing is guarded: numbers and
flags on the modules, and values that were asked of tensors. The first runs of every graph, and a few later ones, are
compared with the eager computation. Where a guard fails, or tracing, or the comparison, the computation runs eagerly,
after one warning that says why: slower, never wrong.

On a GPU the kernels of the graph, and of what finishes it (the optimizer's step), are recorded as one CUDA graph.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ppvae._internals import handlers
from ppvae.compile.arguments import Arguments, TooLongError, UncompilableError
from ppvae.compile.cuda_graph import recordable
from ppvae.compile.graph import Answers, Finish, Graph, Kind, first_line, what_is_new
from ppvae.compile.guards import Contents, Kept, fingerprint, modules_that_run, state_unchanged
from ppvae.compile.inductor import build_headers
from ppvae.compile.tracing import MAX_OPERATIONS, Computation, Traced, check_same, trace
from ppvae.compile.verification import AUTOCAST, Label, first_difference, nudged
from ppvae.params import baselines, baselines_kept

MAX_GRAPHS = 4
"""Kinds of arguments (shapes, dtypes, absent labels) that are compiled when they first come."""

MAX_FREQUENT_GRAPHS = 32
"""Kinds of arguments that are compiled in all."""

FREQUENT = 200
"""How often a kind of arguments comes before it is compiled, where there are `MAX_GRAPHS`."""

MAX_KINDS = 1000
"""How many kinds of arguments, and of values that were read of them, are counted."""

LONG = 2000
"""Operations from which on a graph takes so long to compile that somebody wonders. One of twice as many is made where
its kind of arguments came four times, one of ten times as many at the hundredth: it is to repay what it costs."""

MAX_RETRACES = 8
"""How often graphs are made anew because an attribute of a module changed."""

MAX_MISSES = 20
"""How much more often than not Python may decide otherwise than it did while tracing."""


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
        self._kinds: dict[Any, Kind] = {}
        self._retraces = 0
        self._hits = 0
        self._misses = 0
        self._longest = 0
        self._num_operations = 0
        self._full = False
        self._told = False
        self._news = ""
        self._eager = False
        self._is_steady = False
        self._last: tuple[Arguments, Graph] | None = None

    def __call__(self, values: tuple[Any, ...]) -> tuple[Sequence[Tensor], Any]:
        """What the computation gives, finished. It is the caller's: no later call writes over it."""
        found = None
        if not self._eager:
            try:
                found = self._compiled(values)
            except _FailedEagerly as failed:
                raise failed.error from None
            except Exception as error:  # a compiler can fail in many ways, and the eager way is always there
                self._eager = True
                self._news = f"not compiled, runs eagerly: {first_line(error)}"
        if self._news:
            news, self._news = self._news, ""
            warnings.warn(news, stacklevel=4)
        if found is None:
            with self._bookkeeping():
                outputs, layout = self._compute(values)
            return self._finished(outputs, layout), layout
        graph, outputs, is_finished = found
        finished = outputs if is_finished else self._finished(outputs, graph.layout)
        return (finished if graph.recording is None else _copies(finished)), graph.layout

    @property
    def num_graphs(self) -> int:
        """How many graphs are in use; none where the computation runs eagerly for good."""
        return 0 if self._eager else len(self._graphs)

    @property
    def _graphs(self) -> list[Graph]:
        return [graph for known in self._kinds.values() for graph in known.graphs]

    @contextmanager
    def steady(self) -> Iterator[None]:
        """Context in which nothing changes between calls but arguments, and the values of tensors.

        What a graph takes for granted is then looked at where arguments of another kind come, and not at every call.
        """
        self._is_steady, self._last = True, None
        try:
            yield
        finally:
            self._is_steady, self._last = False, None

    def distrust(self) -> None:
        """Uses a graph again only after a new run of the computation's Python did the same as it."""
        self._last = None
        for graph in self._graphs:
            graph.trusted = False

    def _finished(self, outputs: Sequence[Tensor], layout: Any) -> Sequence[Tensor]:
        return outputs if self._finish is None else self._finish(outputs, layout)

    def _compiled(self, values: tuple[Any, ...]) -> tuple[Graph, Sequence[Tensor], bool] | None:
        """A graph, what it gives, and whether that is finished; None where the computation is to run eagerly."""
        args, graph, answers = self._as_before(values) or self._chosen(values)
        if graph is None:
            return None
        if not graph.accepts(answers):  # what was compiled just now is of other values than were read before
            return None
        due = graph.is_due
        outputs = self._verified(graph, args, answers) if due else graph.run(args, answers, self._finish)
        self._hits += outputs is not None
        graph.uses += outputs is not None
        if outputs is None:
            self._misses += 1
            if self._misses > MAX_MISSES + self._hits:
                line = graph.reader(answers)
                raise UncompilableError(f"what is read at {line} keeps changing, and is known too late")
            return None
        return graph, outputs, graph.finishes and not due

    def _verified(self, graph: Graph, args: Arguments, answers: Answers) -> Sequence[Tensor] | None:
        """Compares a run of a graph with the eager computation.

        Where they differ, what rounding alone can do to this computation is found out: its own of nudged parameters. A
        discrete draw may fall otherwise where its probability is rounded otherwise: it takes two differences, on two
        calls in a row, to find a compiler wrong.

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

        found = self._run_where(graph, args, answers, agree)
        graph.verified = found is not None
        if tried and not graph.verified:
            difference = differs(tried[0], nudged_once=self._nudged(args, graph.written))
            graph.verified = difference is None
            graph.differences = 0 if difference is None else graph.differences + 1
            if graph.differences > 1:
                raise UncompilableError(f"compiled, {difference} differs from what it is eagerly")
            found = self._run_where(graph, args, answers, lambda _: True) if graph.verified else None
        return found

    def _run_where(
        self, graph: Graph, args: Arguments, answers: Answers, accepts: Callable[[Sequence[Tensor]], bool]
    ) -> Sequence[Tensor] | None:
        """Runs a graph; only where its outputs, and what it left in tensors, are accepted it has run."""
        inside = self._written()
        with state_unchanged(self._modules, [], [*graph.written, *inside]) as keep:
            before = [tensor.detach().clone() for tensor in inside]
            found = graph.run(args, answers, None, record=False)
            if found is None or not accepts([*found, *(tensor.detach().clone() for tensor in graph.written)]):
                return None
            if inside and self._finish is not None:
                difference = self._finish.differs(found, graph.layout, before)
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

    def _as_before(self, values: tuple[Any, ...]) -> tuple[Arguments, Graph, Answers] | None:
        """The graph of the call before, where nothing can have changed since but the values of tensors."""
        if self._last is None or (args := self._last[0].renewed(values)) is None:
            return None
        graph = self._last[1]
        answers = graph.ask(args)
        return (args, graph, answers) if graph.accepts(answers) else None

    def _chosen(self, values: tuple[Any, ...]) -> tuple[Arguments, Graph | None, Answers]:
        args = Arguments(values, self._names)
        graph = self._graph(args)
        self._last = (args, graph) if self._is_steady and graph is not None else None
        return args, graph, () if graph is None else graph.ask(args)

    def _graph(self, args: Arguments) -> Graph | None:
        """A graph that is right of these arguments; None where they are to be run eagerly."""
        known = self._known(args)
        known.calls += 1
        unread: list[tuple[Graph, Answers]] = []
        for graph in [graph for graph in known.graphs if graph.takes(args.numbers)]:
            if not self._is_current(graph, args):
                known.graphs.remove(graph)
                continue
            answers = graph.ask(args)
            if graph.accepts(answers):
                return graph
            unread.append((graph, answers))
        if unread and not self._comes_back(known, unread):
            return None
        for graph, _ in unread:
            if graph.adopt(self._trace(args, graph.lifted)):
                return graph
        return self._new_graph(known, args)

    def _known(self, args: Arguments) -> Kind:
        """What there is for this kind of arguments."""
        kind = self._kind(args)
        if (known := self._kinds.get(kind)) is not None:
            return known
        if self._has_room():
            self._settle(args)
            kind = self._kind(args)
        if len(self._kinds) >= MAX_KINDS and kind not in self._kinds:
            return Kind()
        return self._kinds.setdefault(kind, Kind())

    def _comes_back(self, known: Kind, unread: list[tuple[Graph, Answers]]) -> bool:
        """Whether what is read was read before: what never comes back is not worth a look at what Python does then."""
        answers = tuple(answers for _, answers in unread)
        if answers in known.met:
            return True
        if len(known.met) < MAX_KINDS:
            known.met.add(answers)
        self._misses += 1
        if self._misses > MAX_MISSES + self._hits:
            line = unread[0][0].reader(unread[0][1])
            self._tell(f"what is read at {line} is another value at nearly every call")
        return False

    def _is_current(self, graph: Graph, args: Arguments) -> bool:
        """Whether nothing has changed that a graph takes for granted.

        Raises:
            UncompilableError: where it changed too often.
        """
        changed = graph.changed()
        if changed is None:
            return graph.trusted or graph.confirm(self._trace(args, graph.lifted))
        self._retraces += 1
        if self._retraces > MAX_RETRACES:
            raise UncompilableError(changed)
        return False

    def _has_room(self, limit: int = MAX_GRAPHS) -> bool:
        """Whether there may be one more graph; one that is not trusted gives way."""
        if len(self._graphs) == limit:
            for known in self._kinds.values():
                if old := [graph for graph in known.graphs if not graph.trusted]:
                    known.graphs.remove(old[0])
                    break
        return not self._full and len(self._graphs) < limit

    def _new_graph(self, known: Kind, args: Arguments) -> Graph | None:
        """Compiles for these arguments; None where there are too many graphs, or too few calls for a long one."""
        if not self._has_room(MAX_GRAPHS if known.calls < FREQUENT else MAX_FREQUENT_GRAPHS):
            self._tell(f"{what_is_new(args, self._graphs)} than are compiled")
            return None
        enough = LONG * known.calls**0.5
        if enough < self._longest:
            return None
        lifted = known.changing(args.numbers)
        try:
            traced = self._trace(args, lifted)
            self._longest = max(self._longest, traced.num_operations)
            if enough < traced.num_operations:
                return None
            graph = self._compile(traced, args, lifted)
        except TooLongError as error:
            self._full = True
            self._tell(str(error))
            return None
        except Exception:
            if not lifted:
                raise
            known.fixed.update(lifted)  # the pair's code takes nothing but a plain number
            return self._new_graph(known, args)
        of_one_number = [other for other in known.graphs if other.lifted != graph.lifted and graph.takes(other.numbers)]
        known.graphs = [graph, *(other for other in known.graphs if other not in of_one_number)]
        return graph

    def _tell(self, reason: str) -> None:
        """Says once that some calls run eagerly, and why."""
        if self._names and not self._told:
            self._told = True
            self._news = f"not compiled for every call, the others run eagerly: {reason}"

    def _settle(self, args: Arguments) -> None:
        """Runs the computation once in vain: that settles things, such as a guessed nesting of plates."""
        if not any(tensor.is_cuda for tensor in args.tensors):
            build_headers()
        with self._unchanged(), modules_that_run(self._modules):
            try:
                self._compute(args.values)
            except Exception as error:
                raise _FailedEagerly(error) from error

    def _kind(self, args: Arguments) -> Any:
        """What a graph is made for: arguments, precision, the handlers around, and what the caller guards."""
        precision = [(d, torch.is_autocast_enabled(d) and torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")]
        return (args.kind(), *precision, tuple(map(fingerprint, handlers())), self._guarded())

    def _trace(self, args: Arguments, lifted: Sequence[int]) -> Traced:
        with self._unchanged():
            before = baselines()
            then = None if self._finish is None else self._finish.inside
            limit = MAX_OPERATIONS - self._num_operations
            traced = trace(self._compute, args, then=then, lifted=lifted, limit=limit)
            after = baselines()
            if before.keys() != after.keys() or any(before[name] is not value for name, value in after.items()):
                raise UncompilableError("TraceGraph_ELBO keeps running averages in Pyro's store, past any graph")
            return traced

    @contextmanager
    def _bookkeeping(self) -> Iterator[None]:
        """What the computation's Python leaves on modules inside is as good for graphs as it was while tracing."""
        current = [graph for graph in self._graphs if graph.contents.changed() is None]
        yield
        for graph in current:
            graph.contents = Contents(self._modules)

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Whatever runs inside leaves no trace: not in the random state, nor in any tensor that modules hold."""
        tensors = [*Contents(self._modules).tensors(), *self._written()]
        vain = nullcontext() if self._finish is None else self._finish.in_vain()
        with self._bookkeeping(), baselines_kept(), state_unchanged(self._modules, self._parameters(), tensors), vain:
            yield

    def _compile(self, first: Traced, args: Arguments, lifted: Sequence[int]) -> Graph:
        before = Contents(self._modules)
        second = self._trace(args, lifted)
        check_same(first, second)  # what differs between two runs on the same arguments is no function of the tensors
        if (name := before.counted()) is not None:  # a graph does not, and what reads it may do otherwise some day
            raise UncompilableError(f"{name} of a module changes at every run; make it a buffer")
        inputs = second.lift_tensors()
        apart = [b for a, b in zip(first.lift_tensors(), inputs, strict=True) if a is b]
        self._num_operations += second.num_operations
        if second.num_operations > LONG:
            tqdm.write(f"ppvae: compiling a graph of {second.num_operations:,} operations", file=sys.stderr)
        device = recordable([*args.tensors, *apart, *second.tape.tensors.values()])
        return Graph(second, inputs, args, lifted, self._modules, on_one_device=device)


def _copies(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Tensors that the next replay of a CUDA graph does not write over; of single numbers, by one launch."""
    if len({(t.dtype, t.device) for t in tensors}) == 1 and all(t.dim() == 0 for t in tensors):
        return list(torch.stack(list(tensors)))
    return [tensor.clone() for tensor in tensors]
