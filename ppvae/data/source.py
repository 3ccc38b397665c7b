"""What gives the minibatches of training, and an iterable of a user's own as such."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from ppvae.inputs import Column, as_minibatch
from ppvae.pair import Batch, usable
from ppvae.processes import gather, world
from ppvae.rng import RandomState, forked_rng
from ppvae.storage import digest_of


class Source(ABC):
    """What gives the minibatches of training, epoch after epoch: `Batches`, `JointBatches`, or one of your own.

    A source of your own is a subclass with an `epoch`. All else has a default that means "not known": what a source
    does know, training checks before it begins, writes to the run folder, and holds a resumed run to.

    Attributes:
        device: where the minibatches are to be; `fit` sets it by `to`. None leaves them where they are.
        batch_size: data per minibatch.
        num_data: data in all.
        num_batches: minibatches in an epoch.
        last_rows: rows of the last minibatch, where it is shorter than the others; else 0.
        is_cut: whether a minibatch is a part of the data only: pairs that need all of them at once are then refused.
        whole: all data as one minibatch, as `epoch` gives them; None where they are not in memory, or drawn anew.
        shapes: of data in memory.
        generators: those that `epoch` draws from, besides torch's global ones; checkpoints hold their states.
        sets: the data sets of which every minibatch holds one minibatch each; none where there is one set alone.
        divided: whether each of many processes is given minibatches of its own, which together are one.
        weights: what the sum over the minibatch of each of the `sets` is multiplied with. Its loss is then that of all
            `num_data`.

    Example:
        >>> import torch
        >>> from ppvae.data import Source
        >>> class Endless(Source):
        ...     '''New data in every epoch.'''
        ...
        ...     num_batches = 10
        ...
        ...     def epoch(self, index):
        ...         generator = torch.Generator().manual_seed(index)
        ...         for _ in range(self.num_batches):
        ...             yield (torch.randn(16, 8, generator=generator).to(self.device),)
        >>> import ppvae
        >>> from ppvae.models import PPCA
        >>> len(ppvae.fit(PPCA(8, 2), Endless(), epochs=2, progress=False).history)
        2
    """

    device: torch.device | None = None
    batch_size: int | None = None
    num_data: int | None = None
    num_batches: int | None = None
    last_rows: int = 0
    is_cut: bool = True
    whole: Batch | None = None
    shapes: list[Any] | None = None
    generators: Sequence[Generator] = ()
    sets: Sequence[Source] = ()
    divided: bool = False
    weights: tuple[float, ...] | None = None

    @abstractmethod
    def epoch(self, index: int) -> Iterator[Batch]:
        """The minibatches of one epoch: tuples of a pair's arguments, tensors (n, ...) or None, on `device`.

        A run that is killed resumes bit for bit where they are a function of the number alone, or of `generators`.

        Args:
            index: number of the epoch, from 0.
        """

    def to(self, device: torch.device | str) -> Source:
        """The same source with its minibatches on another device."""
        moved = copy.copy(self)
        moved.device = torch.device(device)
        return moved

    def digest(self) -> str | None:
        """A hash of the data, by which a resumed run knows them; None where they cannot be known."""
        return None

    def settings(self) -> dict[str, Any]:
        """How minibatches are made of the data, by name: what a resumed run is held to besides."""
        return {}


class IterableSource(Source):
    """An iterable of minibatches, a `DataLoader` for example, that is passed once an epoch.

    Of many processes each takes its rows of every minibatch. Where a `DataLoader` has a `DistributedSampler`, or an
    `IterableDataset` that gives every process other data, the minibatches of all together are one.

    Args:
        data: what is iterated; its minibatches are tensors or arrays, tuples or lists of these and None, or dicts.
        name: what errors call it.
        device: where its minibatches go.
        columns: which parts of a minibatch are the pair's arguments, in its order: places in a tuple, or names in a
            dict. None is all of a tuple.

    Raises:
        TypeError: where the data cannot be iterated once an epoch, or the columns are none.

    Example:
        >>> import torch
        >>> images_and_labels = [(torch.zeros(16, 8), torch.zeros(16)), (torch.zeros(4, 8), torch.zeros(4))]
        >>> source = IterableSource(images_and_labels, columns=(0,))
        >>> [len(x) for (x,) in source.epoch(0)]
        [16, 4]
    """

    def __init__(
        self,
        data: Iterable[Any],
        *,
        name: str = "data",
        device: torch.device | str | None = None,
        columns: Sequence[Column] | None = None,
    ) -> None:
        self.data = data
        self.columns = _checked_columns(columns)
        self.name = name
        self.device = None if device is None else torch.device(device)
        self.batch_size = getattr(data, "batch_size", None)
        self.num_batches = _length(data)
        self.is_cut = isinstance(data, DataLoader) and self.num_batches != 1  # a list may hold all data many times
        self.generators = _generators(data)
        self.divided = self._is_divided()
        self.last_rows = 0 if self.divided or not self.is_cut else _last_rows(data)

    def epoch(self, index: int) -> Iterator[Batch]:
        """The minibatches of the next pass, whatever its number.

        Raises:
            TypeError: where one is something other than a tensor, or a tuple of tensors and None.
        """
        sampler = getattr(self.data, "sampler", None)
        if isinstance(sampler, DistributedSampler):
            sampler.set_epoch(index)  # it shuffles by this number
        for item in self.data:
            batch = as_minibatch(self.name, item, self.columns)
            yield tuple(usable(t.to(self.device, non_blocking=True)) if isinstance(t, Tensor) else t for t in batch)

    def digest(self) -> str | None:
        """A hash of the first minibatch; None where that is another every time, by randomness that torch has not."""
        first, second = self._digest_of_first(), self._digest_of_first()
        return first if first == second else None

    def settings(self) -> dict[str, Any]:
        """What a `DataLoader` was made with."""
        loader = self.data if isinstance(self.data, DataLoader) else None
        options: dict[str, Any] = {
            name: getattr(loader, name) for name in ("batch_size", "num_workers", "drop_last") if loader
        }
        sampler = type(loader.sampler).__name__ if loader else None
        picked = {} if self.columns is None else {"columns": list(self.columns)}
        return {
            "of": type(self.data).__name__,
            "num_batches": self.num_batches,
            "sampler": sampler,
            **picked,
            **options,
        }

    def _is_divided(self) -> bool:
        if world() == 1 or not isinstance(self.data, DataLoader):
            return False
        if isinstance(self.data.dataset, IterableDataset):
            return len(set(gather(self._digest_of_first()))) > 1
        return isinstance(self.data.sampler, DistributedSampler)

    def _digest_of_first(self) -> str:
        with RandomState(torch.device("cpu"), self.generators).kept(), forked_rng(torch.device("cpu"), 0):
            first = next(iter(self.data), ())
        batch = as_minibatch(self.name, first, self.columns)
        return digest_of(*(t for t in batch if isinstance(t, Tensor)))


def _checked_columns(columns: Any) -> tuple[Column, ...] | None:
    """Which parts of a minibatch are arguments, checked.

    Raises:
        TypeError: where they are no places or names.
    """
    if columns is None:
        return None
    if isinstance(columns, str) or not isinstance(columns, Iterable):
        raise TypeError(f"columns must be a list of places or names, e.g. (0,), got {columns!r}")
    chosen = tuple(columns)
    if not chosen or not all(isinstance(c, int | str) and not isinstance(c, bool) for c in chosen):
        raise TypeError(f"columns must be a list of places or names, e.g. (0,), got {columns!r}")
    return chosen


def _last_rows(data: Any) -> int:
    """The rows of a loader's last minibatch, where it is shorter than the others and known; else 0."""
    if data.batch_size is None or data.drop_last or isinstance(data.dataset, IterableDataset):
        return 0
    n = _length(data.sampler)
    return 0 if n is None else n % int(data.batch_size)


def _length(data: Any) -> int | None:
    """Its length, where it has one."""
    try:
        return len(data)
    except TypeError:  # a DataLoader over a data set without one has none either
        return None


def _generators(data: Any) -> list[Generator]:
    """The generators that a `DataLoader` or its sampler was given."""
    own = [getattr(holder, "generator", None) for holder in (data, getattr(data, "sampler", None))]
    return list({id(g): g for g in own if isinstance(g, Generator)}.values())
