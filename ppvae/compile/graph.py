"""One compiled graph: when it is right of a call, and how it runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ppvae.compile.arguments import Arguments
from ppvae.compile.cuda_graph import Recording
from ppvae.compile.guards import Contents, state_unchanged
from ppvae.compile.inductor import compile_graph
from ppvae.compile.reads import Answer, answer_of
from ppvae.compile.scalars import Real, same_number
from ppvae.compile.stored import Stored
from ppvae.compile.tracing import Traced

Answers = tuple[Answer, ...]
"""What Python reads, in order."""


COMPARED_AGAIN = (2, 10, 100, 1000)
"""The runs of a graph that are compared with eager ones, besides the first: what counts later alone shows there."""


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

    def in_vain(self) -> AbstractContextManager[None]:
        """Context for runs of the computation that are to leave nothing behind; it raises where one would have to."""


class Graph:
    """A compiled computation for one kind of arguments.

    Args:
        traced: a run of the computation, its tensors lifted.
        inputs: these tensors.
        args: the arguments of that run.
        lifted: which of the numbers among them may be others; all the rest are constants.
        modules: what holds state that a run in vain must not change.

    Attributes:
        contents: what the modules held.
        trusted: whether the computation's Python is known to do what it did.
        verified: whether its numbers were the eager ones when they were last compared.
        uses: how many calls it has answered.
        written: tensors that the computation writes to.
        kind: of the arguments of that run.
        numbers: among them.
    """

    def __init__(
        self,
        traced: Traced,
        inputs: list[Tensor],
        args: Arguments,
        lifted: Sequence[int],
        modules: list[nn.Module],
        *,
        on_one_device: bool,
    ) -> None:
        self.traced = traced
        self.layout = traced.layout
        self.contents = Contents(modules)
        self.lifted = tuple(lifted)
        self.numbers = dict(args.numbers)
        self.trusted = True
        self.verified = False
        self.uses = 0
        self.differences = 0
        self.written: list[Tensor] = []
        self.finishes = False
        self.recording: Recording | None = None
        self.kind = args.kind()
        self._readers = [read.line for read in traced.reads]
        self._inputs = inputs
        self._stored = Stored(inputs)
        self._modules = modules
        self._recordable = on_one_device
        self._runs = 0
        self._code = self._code_of(traced)  # before the compiler works on it
        self._asked, self._early = traced.take_early_reads()
        self._accepted = dict([self._split(traced.answers)])
        self._function: Callable[..., Any] = compile_graph(traced.module, [*args.tensors, *inputs])

    @property
    def is_due(self) -> bool:
        """Whether its next run is to be compared with the eager computation."""
        return not self.verified or self.uses + 1 in COMPARED_AGAIN

    def changed(self) -> str | None:
        """What keeps it from being used, where something was put in the place of what it is of, and what to do."""
        if (name := self.contents.changed()) is not None:
            return f"{name} of a module keeps changing; make it a buffer"
        if (name := self._stored.changed()) is not None:
            return f"pyro.param {name!r} keeps being replaced; write into it"
        return None

    def takes(self, numbers: Mapping[int, Real]) -> bool:
        """Whether it is right of the numbers among some arguments."""
        constant = all(same_number(numbers[i], n) for i, n in self.numbers.items() if i not in self.lifted)
        return constant and self.traced.tape.replay([numbers[i] for i in self.lifted]) is not None

    def ask(self, args: Arguments) -> Answers:
        """Takes the numbers among these arguments, and gives what Python would read as far as arguments decide it."""
        self.traced.tape.fill([args.numbers[i] for i in self.lifted])
        if not self._early:
            return ()
        with torch.no_grad():
            return tuple(map(answer_of, self._asked(*args.tensors, *self._inputs)))

    def accepts(self, answers: Answers) -> bool:
        """Whether it is what Python does after it read these."""
        return answers in self._accepted

    def reader(self, answers: Answers) -> str:
        """The line of code that read what was read of none before; without any, one that reads what is computed."""
        new = (i for place, i in enumerate(self._early) if all(a[place] != answers[place] for a in self._accepted))
        late = (i for i in range(len(self._readers)) if i not in self._early)
        return self._readers[next(new, next(late, 0))]

    def adopt(self, again: Traced) -> bool:
        """Whether a new run of the computation did what this graph does, whatever it read: it may be read again."""
        inputs = again.lift_tensors()
        found = (again.layout, again.tape, self._code_of(again))
        if found != (self.layout, self.traced.tape, self._code) or not _same_inputs(inputs, self._inputs):
            return False
        early, late = self._split(again.answers)
        self._accepted[early] = late
        return True

    def confirm(self, again: Traced) -> bool:
        """Whether a new run of the computation did what this graph does; of what that read it is trusted again."""
        self._accepted = {}
        self.trusted = self.adopt(again)
        return self.trusted

    def run(
        self, args: Arguments, answers: Answers, finish: Finish | None, *, record: bool = True
    ) -> Sequence[Tensor] | None:
        """Runs the graph; where it `finishes` itself, also what comes after.

        Args:
            args: arguments that it takes.
            answers: what Python reads of them.
            finish: what comes after.
            record: whether to run as a recording, where that is possible.

        Returns:
            What was computed; None where Python would have read other values than it did while tracing. Nothing has
            then changed, not even the random state.
        """
        tensors, late = args.tensors, self._accepted[answers]
        self._runs += 1
        if not late:
            if record:
                self._record(tensors, finish)
            recorded = self.recording if record else None
            with torch.no_grad():
                return self._function(*tensors, *self._inputs) if recorded is None else recorded(tensors)
        with torch.no_grad(), state_unchanged(self._modules, [], self.written) as keep:
            outputs = self._function(*tensors, *self._inputs)
            if tuple(map(answer_of, outputs[-len(late) :])) != late:
                return None
            keep.append(True)
        return outputs[: -len(late)]

    def _split(self, answers: Answers) -> tuple[Answers, Answers]:
        """What is read of the arguments, and what only the graph computes."""
        early = tuple(answers[i] for i in self._early)
        return early, tuple(answer for i, answer in enumerate(answers) if i not in self._early)

    def _code_of(self, traced: Traced) -> str:
        kinds = [(tensor.dtype, tensor.shape, tensor.stride(), tensor.device) for tensor in self._inputs]
        return f"{traced.module.graph}{kinds}"

    def _record(self, tensors: list[Tensor], finish: Finish | None) -> None:
        """Sees to a recording of what a run does, from the second run on: the first loads the kernels."""
        if self._runs == 1 or not self._recordable:
            return
        held = None if finish is None else finish.held(self.layout)
        if self.recording is not None and self.recording.holds(held):
            return
        self.recording = None  # its memory is free for the next
        self.finishes = held is not None

        def run(arguments: list[Tensor]) -> Sequence[Tensor]:
            outputs = self._function(*arguments, *self._inputs)
            return outputs if finish is None or held is None else finish(outputs, self.layout)

        try:
            with torch.no_grad():
                self.recording = Recording(run, tensors, self._inputs, held)
        except Exception as error:  # the device refuses to record some things, each in its own way
            self._recordable = self.finishes = False
            warnings.warn(f"not recorded as a CUDA graph: {first_line(error)}", stacklevel=6)


@dataclass
class Kind:
    """Arguments that differ in nothing but the values of tensors and numbers.

    Attributes:
        graphs: those that are right of some of them.
        calls: how often they came.
        met: what was read of them and led to none of the graphs.
        lifted: which numbers changed.
        fixed: which of these the pair's code takes as plain numbers alone.
    """

    graphs: list[Graph] = field(default_factory=list)
    calls: int = 0
    met: set[Any] = field(default_factory=set)
    lifted: set[int] = field(default_factory=set)
    fixed: set[int] = field(default_factory=set)

    def changing(self, numbers: Mapping[int, Real]) -> list[int]:
        """Which numbers are to be inputs: those that are others than they were."""
        for graph in self.graphs:
            self.lifted |= {i for i, n in numbers.items() if not same_number(n, graph.numbers[i])}
        return sorted(self.lifted - self.fixed)


def what_is_new(args: Arguments, graphs: Sequence[Graph]) -> str:
    """What sets some arguments apart from those that graphs were made for."""
    if not graphs:
        return "there are more kinds of arguments"
    place = args.difference(graphs[-1].kind, graphs[-1].numbers)
    if place is None:
        return "what surrounds the computation takes more forms"
    if place not in args.numbers:
        return f"{args.name(place)} comes in more kinds (shapes, keys, absent values, attributes)"
    lines = sorted({line for graph in graphs for line in graph.traced.tape.readers.values()})
    return f"{args.name(place)} takes more values{f', which are read at {lines[0]},' if lines else ''}"


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def _same_inputs(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether these are the same tensors, or constants of the same values."""
    return len(a) == len(b) and all(
        x is y or (x.dtype == y.dtype and x.device == y.device and torch.equal(x, y)) for x, y in zip(a, b, strict=True)
    )
