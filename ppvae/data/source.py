"""What gives the minibatches of training, and an iterable of a user's own as such."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader

from ppvae.pair import Batch


class Source(ABC):
    """What gives the minibatches of training, epoch after epoch: `Batches`, `JointBatches`, or one of your own.

    A source of your own is a subclass with an `epoch`. All else has a default that means "not known": what a source
    does know, training checks before it begins, writes to the run folder, and holds a resumed run to.

    Attributes:
        device: where the minibatches are to be; `fit` sets it by `to`. None leaves them where they are.
        batch_size: data per minibatch.
        num_data: data in all.

    Example:
        >>> import torch
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

    @property
    def num_batches(self) -> int | None:
        """Minibatches in an epoch."""
        return None

    @property
    def is_cut(self) -> bool:
        """Whether a minibatch is a part of the data only: pairs that need all of them at once are then refused."""
        return self.num_batches != 1

    @property
    def last_rows(self) -> int:
        """Rows of the last minibatch, where it is shorter than the others; else 0."""
        return 0

    @property
    def whole(self) -> Batch | None:
        """All data as one minibatch, as `epoch` gives them; None where they are not in memory, or drawn anew."""
        return None

    @property
    def sets(self) -> Sequence[Source]:
        """The data sets of which every minibatch holds one minibatch each; a source of one set is its own."""
        return (self,)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """What the sum over the minibatch of each of the `sets` is multiplied with; None for one set alone.

        A minibatch is then a tuple of minibatches, and its loss that of all `num_data`.
        """
        return None

    @property
    def shapes(self) -> list[Any] | None:
        """The shapes of data in memory."""
        return None

    def digest(self) -> str | None:
        """A hash of the data, by which a resumed run knows them."""
        return None

    @property
    def generators(self) -> Sequence[Generator]:
        """The generators that `epoch` draws from, besides torch's global ones."""
        return ()


class IterableSource(Source):
    """An iterable of minibatches, a `DataLoader` for example, that is passed once an epoch.

    Args:
        data: what is iterated; its minibatches are tensors, or tuples or lists of tensors and None.
        name: what errors call it.
        device: where its minibatches go.
    """

    def __init__(self, data: Iterable[Any], *, name: str = "data", device: torch.device | str | None = None) -> None:
        self.data = data
        self.name = name
        self.device = None if device is None else torch.device(device)
        self.batch_size = getattr(data, "batch_size", None)

    def epoch(self, index: int) -> Iterator[Batch]:
        """The minibatches of the next pass, whatever its number.

        Raises:
            TypeError: where one is something other than a tensor, or a tuple of tensors and None.
        """
        for item in self.data:
            batch = (item,) if isinstance(item, Tensor) else item
            if not isinstance(batch, tuple | list):
                raise TypeError(
                    f"{self.name} must give minibatches that are tensors or tuples of them, got {type(item).__name__}"
                )
            yield tuple(t.to(self.device, non_blocking=True) if isinstance(t, Tensor) else t for t in batch)

    @property
    def num_batches(self) -> int | None:
        """Minibatches in an epoch."""
        try:
            return len(self.data)  # type: ignore[arg-type]
        except TypeError:  # no length, or a DataLoader over a data set without one
            return None

    @property
    def is_cut(self) -> bool:
        """True of a `DataLoader`; a list may hold all data again and again."""
        return isinstance(self.data, DataLoader) and super().is_cut

    @property
    def generators(self) -> Sequence[Generator]:
        """Those that a `DataLoader` or its sampler was given."""
        holders = (self.data, getattr(self.data, "sampler", None))
        own = [getattr(holder, "generator", None) for holder in holders]
        return list({id(g): g for g in own if isinstance(g, Generator)}.values())
