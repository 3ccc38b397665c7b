"""The parts of a training: rows of each minibatch by process and, in each, one after another; what all add up to.

With n data in a minibatch, part j is the loss of n_j rows times c_j / n, and the gradients are summed: c_j is 1 where
the loss is a sum over data, and n_j / n where that of every part stands for all of them (a plate that scales the data).
A process has rows, and noise, of its own; it runs them in `accumulate` parts. In one process and one part a minibatch
is taken whole, and nothing is added.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import pyro.infer
from pyro import poutine
from torch import Tensor, nn

from ppvae import processes
from ppvae.data import Source
from ppvae.infer.nonfinite import NonFiniteError
from ppvae.infer.preflight import NORMALISED, written_from_data
from ppvae.objectives.base import networks_of
from ppvae.objectives.joint import JointELBO
from ppvae.pair import Batch, check_batch, take
from ppvae.rng import RandomState, forked_rng, seed_of
from ppvae.storage import digest_of
from ppvae.traces import Site, same_scale, sites

WHOLE_BATCH = (
    pyro.infer.RenyiELBO,
    pyro.infer.ReweightedWakeSleep,
    pyro.infer.TraceTailAdaptive_ELBO,
    pyro.infer.Trace_MMD,
    pyro.infer.EnergyDistance,
)
"""Pyro's objectives that are no sum over data: their weights, or distances, are those of a minibatch as a whole."""

T = TypeVar("T")
Step = tuple[int, list[tuple[float, T]]]
"""Of a step the data of its minibatch, and of each of this process's parts what it counts, and its terms."""


class Shards:
    """This process's rows of every minibatch, in parts.

    Args:
        seed: of the run.
        random: the generators that all processes share.
        data: the training data.
        accumulate: in how many parts, one after another, a process runs its rows.

    Attributes:
        averages: whether the loss of a part stands for all data, as that of the whole minibatch does.
    """

    def __init__(self, seed: int, random: RandomState, data: Source, accumulate: int = 1) -> None:
        self.accumulate = accumulate
        self.world, self.rank = processes.world(), processes.rank()
        self.averages = False
        self._seed, self._random, self._data = seed, random, data
        self._spare: Batch = ()
        self._counts = (0, 0)
        """The data of the minibatch at hand, of those that are divided: this process's, and all."""

    def steps_per_epoch(self) -> int | None:
        """Minibatches in an epoch, as far as they are known."""
        known = processes.gather(self._data.num_batches)
        return max((n for n in known if n is not None), default=None) if None not in known else None

    def check(self, pair: nn.Module, objective: Any, first: Any, valid: Source | None) -> None:
        """Checks that what is trained can be trained in parts, and that all processes train the same.

        Args:
            pair: a model/guide pair.
            objective: what is minimised.
            first: the first minibatch of the training data, or one of each set.
            valid: the validation data.

        Raises:
            ValueError: naming what mixes the data of a minibatch, or what differs between processes.
        """
        if self._is_whole:
            return
        called, otherwise = self._called()
        if mixes_data(objective):
            name = type(getattr(objective, "elbo", objective)).__name__
            raise ValueError(
                f"loss {name} is no sum over the data of a minibatch, which cannot be computed {called} of its parts: "
                f"{otherwise}"
            )
        _check_norms({"pair": pair, **networks_of(objective, beside=[pair])}, called, otherwise)
        data, batches = self._data, first if self._data.sets else (first,)
        if self.world > 1 and not data.divided:
            processes.check_same("the first minibatch of train", digest_of(*(t for batch in batches for t in batch)))
        if self.world > 1 and valid is not None:
            processes.check_same("the first minibatch of valid", digest_of(*next(valid.epoch(0))))
        for batch in batches:
            least = max(2, self._num_parts)
            if (n := check_batch(batch)) < least:
                raise ValueError(f"batch_size must be at least {least} {called}, got {n}")
            if self.accumulate > 1 and next(pair.buffers(), None) is not None:
                self._check_buffers(pair, batch)
        kinds = {adds_up(pair, batch, otherwise) for batch in batches}
        if len(kinds) > 1 or (data.sets and kinds == {False}):
            raise ValueError(f"the data sets are scaled by plates otherwise, which cannot be trained {called}")
        self.averages = kinds == {False}
        self._spare = take(batches[0], slice(0, 1))

    def of(self, batch: Any, n: int) -> tuple[list[tuple[Any, float]], int]:
        """The parts of a minibatch that stands for n data, or of one of each set, with what each counts; n of all.

        They are of this process's rows. A part without any is the first datum, which counts zero times.

        Raises:
            ValueError: where there are data sets, and one has a minibatch with fewer rows than there are parts.
        """
        if self._is_whole:
            return [(batch, 1.0)], n
        if self._data.sets:
            return [(part, 1.0) for part in zip(*map(self._of_set, range(len(batch)), batch), strict=True)], n
        own = _part(slice(0, n), self.rank, self.world)
        if self._divides:
            own, n = slice(0, self._counts[0]), self._counts[1]
        parts = []
        for rows in self._parts(own):
            m = rows.stop - rows.start
            parts.append((take(batch, rows if m else slice(0, 1)), m / n if self.averages else float(m > 0)))
        return parts, n

    def _of_set(self, i: int, batch: Batch) -> list[Batch]:
        """This process's parts of a data set's minibatch."""
        if (n := check_batch(batch)) < self._num_parts:
            raise ValueError(
                f"train.sets[{i}] has a minibatch of {n} data, fewer than the {self._num_parts} parts that it has "
                f"{self._called()[0]}: choose another batch_size, or drop_last=True"
            )
        return [take(batch, rows) for rows in self._parts(_part(slice(0, n), self.rank, self.world))]

    def _parts(self, own: slice) -> list[slice]:
        """Rows in the order in which they are run: of at most two numbers of data."""
        return [_part(own, i, self.accumulate) for i in range(self.accumulate)]

    @property
    def _is_whole(self) -> bool:
        return self.world == 1 and self.accumulate == 1

    @property
    def _divides(self) -> bool:
        """Whether each process has minibatches of its own, which together are one."""
        return self.world > 1 and self._data.divided

    @property
    def _num_parts(self) -> int:
        """The fewest data that a minibatch which this process reads may have, for none of its parts to be empty."""
        return self.accumulate * (1 if self._divides else self.world)

    def _called(self) -> tuple[str, str]:
        """How errors speak of the parts, and what to do instead."""
        called, otherwise = f"in {self.world} processes", "train in one process"
        if self.accumulate > 1:
            accumulated = f"accumulate={self.accumulate}"
            if self.world == 1:
                return f"with {accumulated}", "train with accumulate=1"
            return f"{called} with {accumulated}", f"{otherwise} with accumulate=1"
        return called, otherwise

    def _check_buffers(self, pair: nn.Module, batch: Batch) -> None:
        """Checks that the pair writes into no buffer what the data of a part are.

        Raises:
            ValueError: naming a buffer that two parts leave otherwise.
        """
        m = check_batch(batch) // self._num_parts
        if (name := written_from_data(pair, *(take(batch, slice(i * m, (i + 1) * m)) for i in range(2)))) is not None:
            raise ValueError(
                f"{name} is written from the data in training, of which each part {self._called()[0]} sees its rows "
                "alone: let the gradient train it, or train with accumulate=1"
            )

    def minibatches(self, batches: Iterator[Batch], stop: threading.Event) -> Iterator[Batch]:
        """Minibatches until one process has no more, or, after at least one, is asked to stop: all end together.

        Of divided data until none has more; who had its last one gets that again, and its data count zero times.
        """
        if self.world == 1:
            for batch in batches:
                yield batch
                if stop.is_set():
                    return
            return
        begun, last = False, self._spare
        while True:
            before = self._random.get()
            batch = next(batches, ())
            own = check_batch(batch) if self._data.divided and batch else 0
            counted, ended, stopped = processes.total(own, not batch, begun and stop.is_set())
            if stopped:
                self._random.set(before)  # as if the minibatch that is left out had not been drawn
            if stopped or (counted == 0 if self._data.divided else ended):
                return
            self._counts = (own, counted)
            last = batch or last
            yield last
            begun = True

    @contextmanager
    def noise(self, epoch: int, step: int) -> Iterator[None]:
        """Context of one step: the process's own random numbers, functions of the seed, the step and its number.

        What all share, such as the order of a `DataLoader`, goes on outside as in every other process.
        """
        if self.world == 1:
            yield
            return
        with forked_rng(self._random.device, seed_of(self._seed, epoch, step, self.rank)):
            yield

    def summed(self, steps: list[Step[dict[str, float]]]) -> list[tuple[int, dict[str, float]]]:
        """The terms of the whole minibatches, by step: in every process the same.

        All but the loss are sums over data, without scales.
        """
        whole = []
        for of_processes in zip(*processes.gather(steps), strict=True):
            total: dict[str, float] = {}
            for share, terms in (part for _, parts in of_processes for part in parts):
                for name, value in terms.items() if share else ():
                    counted = share * value if name == "loss" else value
                    total[name] = total[name] + counted if name in total else counted
            whole.append((of_processes[0][0], total))
        return whole

    def check_equal(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Checks that parameters and buffers are the same, bit for bit, in every process.

        Raises:
            ValueError: naming the first that is not.
        """
        if self.world == 1:
            return
        digests = {name: digest_of(tensor) for name, tensor in named}
        for other, found in enumerate(told := processes.gather(digests)):
            if differ := [name for name in told[0] if found.get(name) != told[0][name]]:
                raise ValueError(
                    f"{differ[0]} is another in process {other} than in process 0: what a step writes of the data "
                    "themselves (moving averages of a codebook, a counter) sees a process's rows alone. Let the "
                    "gradient train it, or train in one process"
                )


def _part(rows: slice, i: int, count: int) -> slice:
    """The i-th of as many parts of some rows, as equal as can be."""
    n = rows.stop - rows.start
    return slice(rows.start + i * n // count, rows.start + (i + 1) * n // count)


def _check_norms(modules: Mapping[str, nn.Module], called: str, otherwise: str) -> None:
    """Checks that no module has batch norm.

    Raises:
        ValueError: naming the one that has.
    """
    for of, module in modules.items():
        if names := [name for name, part in module.named_modules() if isinstance(part, NORMALISED)]:
            raise ValueError(
                f"{of} has batch norm, {names[0]}, whose statistics are those of a whole minibatch, and {called} each "
                f"sees its rows: use layer or group norm, or {otherwise}"
            )


def agreed(error: NonFiniteError | None) -> NonFiniteError | None:
    """What the first process that met a NaN has met; None where none has."""
    for number, text in enumerate(processes.gather(None if error is None else str(error))):
        if text is not None:
            return NonFiniteError(f"{text}, in process {number}")
    return None


def mixes_data(objective: Any) -> bool:
    """Whether an objective is more than a sum over the data of a minibatch."""
    if isinstance(objective, JointELBO):
        return mixes_data(objective.elbo)
    return isinstance(objective, WHOLE_BATCH) or bool(getattr(objective, "mixes_data", False))


def adds_up(pair: Any, batch: Batch, otherwise: str) -> bool:
    """Whether a pair's loss is the sum over parts of a minibatch; False where it is their mean, weighted by their data.

    Seen on a minibatch and its first half, by which sites lie in the data plate, and how they are scaled.

    Args:
        pair: a model/guide pair.
        batch: a minibatch.
        otherwise: what to do where it is neither.

    Raises:
        ValueError: where it is neither, naming a site.
    """
    n = check_batch(batch)
    half = n // 2
    whole = _scored(pair, batch)
    try:
        part = _scored(pair, take(batch, slice(0, half)))
    except Exception as error:
        raise ValueError(f"the pair fails on {half} of {n} data, {otherwise}: {error}") from error
    kinds: dict[str, str] = {}
    for name in whole.keys() & part.keys():
        kinds[_kind(whole[name], n, part[name], half)] = name
    if "other" in kinds:
        raise ValueError(f"the site {kinds['other']} is scaled otherwise in a part of a minibatch: {otherwise}")
    if "once" in kinds and "mean" not in kinds:
        raise ValueError(
            f"the site {kinds['once']} does not lie in the data plate: each part of a minibatch would count it in "
            f"full. Scale the data by pyro.plate(name, their number, subsample_size=len(x)), or {otherwise}"
        )
    if {"sum", "mean"} <= kinds.keys():
        raise ValueError(f"a plate scales the site {kinds['mean']}, and not {kinds['sum']}: {otherwise}")
    return "mean" not in kinds


def _scored(pair: Any, batch: Batch) -> Mapping[str, Site]:
    guide_trace = poutine.trace(pair.guide).get_trace(*batch)
    model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(*batch)
    traces = (("model", model_trace), ("guide", guide_trace))
    return {f"{name!r} of the {where}": site for where, trace in traces for name, site in sites(trace).items()}


def _kind(whole: Site, n: int, part: Site, half: int) -> str:
    """Whether a site is a "sum" over data, or of parts that stand for all the "mean"; or counts "once"; or "other"."""
    shrinks = whole.fn.batch_shape[-1:] == (n,) and part.fn.batch_shape[-1:] == (half,)
    a, b = whole.scale, part.scale
    if isinstance(a, Tensor) and a.shape[-1:] == (n,):
        a = a[..., :half]
    if same_scale(a, b):
        return "sum" if shrinks else "once"
    return "mean" if shrinks and same_scale(a * n, b * half) else "other"
