"""Minibatches of several data sets side by side, for a pair that learns from all of them at once."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ppvae.data._checks import check_whole
from ppvae.data.batches import Batches


class JointBatches:
    """One minibatch of each of several data sets at every step, e.g. one with labels and one without.

    An epoch is one pass over the set that has the most minibatches; the others start anew, in a new order, as often
    as it takes. As with `Batches`, everything in an epoch is a function of the sets' seeds and its number alone.

    Args:
        *sets: the data sets, all on one device.

    Attributes:
        sets: the data sets.
        num_data: data in all of them.

    Raises:
        TypeError: if something is not `Batches`.
        ValueError: if there is no set, or the sets are on different devices.

    Example:
        >>> import torch
        >>> labelled = Batches(torch.zeros(2, 4), torch.tensor([0, 1]), batch_size=2)
        >>> unlabelled = Batches(torch.ones(6, 4), batch_size=3)
        >>> both = JointBatches(labelled, unlabelled)
        >>> [(tuple(x.shape), tuple(y.shape), tuple(x_u.shape)) for (x, y), (x_u,) in both]
        [((2, 4), (2,), (3, 4)), ((2, 4), (2,), (3, 4))]
        >>> both.num_data, both.weights
        (8, (1.0, 2.0))
    """

    def __init__(self, *sets: Batches) -> None:
        if not sets:
            raise ValueError("sets: at least one is needed, got none")
        for i, part in enumerate(sets):
            if not isinstance(part, Batches):
                raise TypeError(f"sets[{i}] must be Batches, got {type(part).__name__}")
        if len({part.device for part in sets}) > 1:
            raise ValueError(f"sets must be on one device, got {[str(part.device) for part in sets]}")
        self.sets = sets
        self.num_data = sum(part.num_data for part in sets)
        self._next_epoch = 0

    @property
    def device(self) -> torch.device:
        """Where the data are."""
        return self.sets[0].device

    @property
    def weights(self) -> tuple[float, ...]:
        """What each minibatch's sum is multiplied with to stand for its data set: N_j / n_j, n_j the mean size."""
        used = [min(part.num_data, len(part) * part.batch_size) for part in self.sets]
        return tuple(part.num_data * len(part) / rows for part, rows in zip(self.sets, used, strict=True))

    def __len__(self) -> int:
        return max(len(part) for part in self.sets)

    def __iter__(self) -> Iterator[tuple[tuple[Tensor | None, ...], ...]]:
        index, self._next_epoch = self._next_epoch, self._next_epoch + 1
        return self.epoch(index)

    def epoch(self, index: int) -> Iterator[tuple[tuple[Tensor | None, ...], ...]]:
        """Return the minibatches of one epoch, the same at every call.

        Args:
            index: number of the epoch, from 0.

        Returns:
            An iterator over tuples with one minibatch, a tuple of tensors, of each set.

        Raises:
            TypeError: if `index` is not an int.
            ValueError: if `index` is negative.
        """
        check_whole("index", index, at_least=0)
        steps = len(self)
        streams = [_steps(part, index * steps, (index + 1) * steps) for part in self.sets]
        return zip(*streams, strict=True)

    def to(self, device: torch.device | str) -> "JointBatches":
        """Return these minibatches on another device, sharing the tensors where they are there already."""
        moved = JointBatches(*(part.to(device) for part in self.sets))
        moved._next_epoch = self._next_epoch
        return moved


def _steps(part: Batches, start: int, stop: int) -> Iterator[tuple[Tensor | None, ...]]:
    """Yield the minibatches `start` to `stop` of the epochs of `part`, one after another."""
    step = start
    while step < stop:
        epoch, skip = divmod(step, len(part))
        for i, batch in enumerate(part.epoch(epoch)):
            if i >= skip and step < stop:
                step += 1
                yield batch
