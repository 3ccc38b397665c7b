"""The part of a training that is one process's: its rows of each minibatch, its own noise, and what all add up to.

With n data in a minibatch, process r minimises the loss of its rows times c_r / n, and the gradients are summed: c_r is
1 where the loss is a sum over data, and n_r / n where that of every part stands for all of them (a plate that scales
the data). With one process a minibatch is taken whole, and nothing is added.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro.infer
from pyro import poutine
from torch import Tensor, nn

from ppvae import processes
from ppvae.data import Source
from ppvae.infer.nonfinite import NonFiniteError
from ppvae.infer.preflight import NORMALISED
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

Steps = list[tuple[int, float, dict[str, float]]]
"""Of each step the data of its minibatch, what this process's part counts, and the terms of this part."""


class Shards:
    """This process's part of every minibatch.

    Args:
        seed: of the run.
        random: the generators that all processes share.
        data: the training data.

    Attributes:
        averages: whether the loss of a part stands for all data, as that of the whole minibatch does.
    """

    def __init__(self, seed: int, random: RandomState, data: Source) -> None:
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
        if self.world == 1:
            return
        called = f"in {self.world} processes"
        if mixes_data(objective):
            name = type(getattr(objective, "elbo", objective)).__name__
            raise ValueError(
                f"loss {name} is no sum over the data of a minibatch, which cannot be computed {called} of its parts: "
                "train in one process"
            )
        _check_norms({"pair": pair, **networks_of(objective, beside=[pair])}, called)
        data, batches = self._data, first if self._data.sets else (first,)
        if not data.divided:
            processes.check_same("the first minibatch of train", digest_of(*(t for batch in batches for t in batch)))
        if valid is not None:
            processes.check_same("the first minibatch of valid", digest_of(*next(valid.epoch(0))))
        for batch in batches:
            least = 2 if data.divided else self.world
            if (n := check_batch(batch)) < least:
                raise ValueError(f"batch_size must be at least {least} {called}, got {n}")
        kinds = {adds_up(pair, batch) for batch in batches}
        if len(kinds) > 1 or (data.sets and kinds == {False}):
            raise ValueError(f"the data sets are scaled by plates otherwise, which cannot be trained {called}")
        self.averages = kinds == {False}
        self._spare = take(batches[0], slice(0, 1))

    def of(self, batch: Any, n: int) -> tuple[Any, int, float]:
        """This process's rows of a minibatch that stands for n data, or of one of each set; n of all; what they count.

        Where there are none, it runs on the first datum, which counts zero times.

        Raises:
            ValueError: where there are data sets, and one has a minibatch with fewer rows than there are processes.
        """
        if self.world == 1:
            return batch, n, 1.0
        if not self._data.sets:
            rows = self._rows(n)
            if self._data.divided:
                rows, n = slice(0, self._counts[0]), self._counts[1]
            part = take(batch, rows if rows.start < rows.stop else slice(0, 1))
            return part, n, (rows.stop - rows.start) / n if self.averages else float(rows.start < rows.stop)
        parts = []
        for i, of in enumerate(batch):
            rows = self._rows(check_batch(of))
            if check_batch(of) < self.world:
                raise ValueError(
                    f"train.sets[{i}] has a minibatch of {check_batch(of)} data, fewer than the {self.world} "
                    "processes: choose another batch_size, or drop_last=True"
                )
            parts.append(take(of, rows))
        return tuple(parts), n, 1.0

    def _rows(self, n: int) -> slice:
        return slice(self.rank * n // self.world, (self.rank + 1) * n // self.world)

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

    def summed(self, steps: Steps) -> list[tuple[int, dict[str, float]]]:
        """The terms of the whole minibatches, by step: in every process the same.

        All but the loss are sums over data, without scales.
        """
        if self.world == 1:
            return [(n, terms) for n, _, terms in steps]
        whole = []
        for parts in zip(*processes.gather(steps), strict=True):
            total: dict[str, float] = {}
            for _, share, terms in parts:
                for name, value in terms.items() if share else ():
                    total[name] = total.get(name, 0.0) + (share * value if name == "loss" else value)
            whole.append((parts[0][0], total))
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


def _check_norms(modules: Mapping[str, nn.Module], called: str) -> None:
    """Checks that no module has batch norm.

    Raises:
        ValueError: naming the one that has.
    """
    for of, module in modules.items():
        if names := [name for name, part in module.named_modules() if isinstance(part, NORMALISED)]:
            raise ValueError(
                f"{of} has batch norm, {names[0]}, whose statistics are those of a whole minibatch, and {called} each "
                "sees its rows: use layer or group norm, or train in one process"
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


def adds_up(pair: Any, batch: Batch) -> bool:
    """Whether a pair's loss is the sum over parts of a minibatch; False where it is their mean, weighted by their data.

    Seen on a minibatch and its first half, by which sites lie in the data plate, and how they are scaled.

    Raises:
        ValueError: where it is neither, naming a site.
    """
    n = check_batch(batch)
    half = n // 2
    whole = _scored(pair, batch)
    try:
        part = _scored(pair, take(batch, slice(0, half)))
    except Exception as error:
        raise ValueError(f"the pair fails on {half} of {n} data, as many processes give it: {error}") from error
    kinds: dict[str, str] = {}
    for name in whole.keys() & part.keys():
        kinds[_kind(whole[name], n, part[name], half)] = name
    if "other" in kinds:
        raise ValueError(
            f"the site {kinds['other']} is scaled otherwise in a part of a minibatch: train in one process"
        )
    if "once" in kinds and "mean" not in kinds:
        raise ValueError(
            f"the site {kinds['once']} does not lie in the data plate: each of many processes would count it in full. "
            "Scale the data by pyro.plate(name, their number, subsample_size=len(x)), or train in one process"
        )
    if {"sum", "mean"} <= kinds.keys():
        raise ValueError(f"a plate scales the site {kinds['mean']}, and not {kinds['sum']}: train in one process")
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
