"""Minibatches of data held in memory, on the device that trains; of several data sets side by side."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ppvae._validate import check_count, check_flag, check_seed, check_takes, check_tensor, usable_device
from ppvae.data.source import Source
from ppvae.data.transforms import Transform
from ppvae.pair import usable
from ppvae.rng import stream
from ppvae.storage import digest_of


class Batches(Source):
    """Minibatches of tensors that live on one device, shuffled and indexed there.

    The order and the random transform of an epoch are functions of (seed, epoch) alone: the global generators
    are neither read nor changed, and a run that was killed replays any epoch by its number. Different devices
    draw different orders from the same seed. The tensors are not copied where they are on the device already;
    without shuffling the minibatches are views of them.

    Args:
        *tensors: the data, each of shape (n, ...), any real dtype, all finite; or None for an argument that a pair can
            do without, which every minibatch then has in its place.
        batch_size: rows per minibatch, at least 1.
        shuffle: whether to draw a new order in every epoch.
        drop_last: whether to leave out the last minibatch where it would be short.
        transform: applied to every minibatch with the epoch's generator (see `Transform`).
        device: where the data go; by default where the first tensor is.
        seed: what all randomness here comes from, at least 0.

    Attributes:
        tensors: the data, on `device`.
        num_data: number of rows n.
        batch_size: rows per minibatch.
        device: where the data are.

    Raises:
        TypeError: if something is not a tensor, is complex, or the transform cannot be called.
        ValueError: if there are no data, lengths differ, a value is not finite, or an option is out of range.

    Example:
        >>> import torch
        >>> batches = Batches(torch.arange(5), torch.arange(5) ** 2, batch_size=2, shuffle=False)
        >>> [(x.tolist(), y.tolist()) for x, y in batches]
        [([0, 1], [0, 1]), ([2, 3], [4, 9]), ([4], [16])]
        >>> len(batches), batches.num_data
        (3, 5)
    """

    def __init__(
        self,
        *tensors: Tensor | None,
        batch_size: int,
        shuffle: bool = True,
        drop_last: bool = False,
        transform: Transform | None = None,
        device: torch.device | str | None = None,
        seed: int = 0,
    ) -> None:
        first = _check_tensors(tensors)
        self.batch_size: int = check_count("batch_size", batch_size)
        self.seed = check_seed(seed)
        check_flag("shuffle", shuffle)
        check_flag("drop_last", drop_last)
        if drop_last and batch_size > len(first):
            raise ValueError(f"batch_size={batch_size} with drop_last=True leaves no minibatch of {len(first)} rows")
        if transform is not None:
            _check_transform(transform, tensors)
        self.device: torch.device = usable_device(first.device if device is None else device)
        self.tensors = tuple(None if tensor is None else usable(tensor.to(self.device)) for tensor in tensors)
        self.num_data: int = len(first)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.transform = transform
        self.whole = self.tensors if transform is None else None
        self.shapes = [None if tensor is None else list(tensor.shape) for tensor in self.tensors]
        self.num_batches: int = len(self)
        self.is_cut = self.num_batches > 1
        self.last_rows = self.num_data % self.batch_size if self.is_cut and not drop_last else 0
        self._next_epoch = 0

    def __len__(self) -> int:
        whole, rest = divmod(self.num_data, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor | None, ...]]:
        index, self._next_epoch = self._next_epoch, self._next_epoch + 1
        return self.epoch(index)

    def epoch(self, index: int) -> Iterator[tuple[Tensor | None, ...]]:
        """Return the minibatches of one epoch, the same at every call.

        Args:
            index: number of the epoch, from 0.

        Returns:
            An iterator over tuples of tensors of shape (batch_size, ...); the last one may be shorter.

        Raises:
            TypeError: on the way, if the transform does not return a tuple.
            ValueError: if `index` is no whole number >= 0.

        Example:
            >>> import torch
            >>> batches = Batches(torch.arange(100), batch_size=10, seed=7)
            >>> all(torch.equal(a, b) for (a,), (b,) in zip(batches.epoch(3), batches.epoch(3), strict=True))
            True
        """
        generator = stream(self.seed, check_count("index", index, at_least=0), device=self.device)
        batches = self._rows(generator)
        return batches if self.transform is None else _transformed(self.transform, generator, batches)

    def to(self, device: torch.device | str) -> Batches:
        """Return these minibatches on another device, to be iterated from the epoch that is next here.

        Args:
            device: where the data go.

        Returns:
            New `Batches`, sharing the tensors where they are there already.

        Raises:
            ValueError: if the device cannot be used.

        Example:
            >>> import torch
            >>> Batches(torch.zeros(3), batch_size=1).to("cpu").device
            device(type='cpu')
        """
        moved = copy.copy(self)
        moved.device = usable_device(device)
        moved.tensors = tuple(None if tensor is None else tensor.to(moved.device) for tensor in self.tensors)
        moved.whole = moved.tensors if self.transform is None else None
        return moved

    def digest(self) -> str:
        """A hash of all of the tensors, before the transform."""
        return digest_of(*self.tensors)

    def settings(self) -> dict[str, Any]:
        """What the minibatches of an epoch are a function of."""
        names = ("batch_size", "seed", "shuffle", "drop_last", "transform")
        return {name: getattr(self, name) for name in names}

    def _rows(self, generator: torch.Generator) -> Iterator[tuple[Tensor | None, ...]]:
        """Yield the minibatches before the transform."""
        stop = len(self) * self.batch_size
        if self.shuffle:
            order = torch.randperm(self.num_data, generator=generator, device=self.device)
            for rows in order[:stop].split(self.batch_size):
                # Three times quicker on a CPU than tensor[rows].
                yield tuple(None if tensor is None else tensor.index_select(0, rows) for tensor in self.tensors)
        else:
            for start in range(0, stop, self.batch_size):
                rows = slice(start, start + self.batch_size)
                yield tuple(None if tensor is None else tensor[rows] for tensor in self.tensors)


def _transformed(
    transform: Transform, generator: torch.Generator, batches: Iterator[tuple[Tensor | None, ...]]
) -> Iterator[tuple[Tensor | None, ...]]:
    """Yield the minibatches after the transform."""
    for batch in batches:
        changed = transform(generator, *batch)
        # A bare tensor would be unpacked along its rows without a word.
        if not isinstance(changed, tuple):
            raise TypeError(f"transform must return a tuple of tensors, got {type(changed).__name__}")
        yield changed


def _check_tensors(tensors: tuple[Tensor | None, ...]) -> Tensor:
    """Refuse data that cannot be cut into minibatches of finite numbers; return the first of them."""
    given = {i: tensor for i, tensor in enumerate(tensors) if tensor is not None}
    if not given:
        raise ValueError("tensors: at least one is needed, got none")
    for i, tensor in given.items():
        _check_kind(f"tensors[{i}]", tensor)
    first, of_first = next(iter(given.items()))
    for i, tensor in given.items():
        if len(tensor) != len(of_first):
            rows = f"tensors[{first}] has {len(of_first)} rows, tensors[{i}] {len(tensor)}"
            raise ValueError(f"tensors must be equally long, but {rows}")
    for i, tensor in given.items():
        if tensor.is_floating_point():
            _check_finite(f"tensors[{i}]", tensor)
    return of_first


def _check_kind(name: str, tensor: object) -> None:
    """Refuse what is not a dense real tensor with rows."""
    tensor = check_tensor(name, tensor)
    if tensor.numel() == 0 or tensor.ndim == 0:
        raise ValueError(f"{name} must have rows with values, got shape {tuple(tensor.shape)}")


def _check_finite(name: str, tensor: Tensor) -> None:
    """Refuse NaN and infinity, naming the first row that has one."""
    # The extremes are finite only if all is, and cost a thirtieth of isfinite over the data.
    if all(math.isfinite(bound.item()) for bound in torch.aminmax(tensor.detach())):
        return
    bad = ~torch.isfinite(tensor).reshape(len(tensor), -1).all(1)
    row = int(bad.nonzero()[0])
    missing = "; ppvae.data.split_missing makes a mask of NaN" if bool(tensor.isnan().any()) else ""
    raise ValueError(f"{name} must be finite, but {int(bad.sum())} of its rows are not, first row {row}{missing}")


def _check_transform(transform: Transform, tensors: tuple[Tensor | None, ...]) -> None:
    """Refuse what cannot be called, and let the transform look at the data once."""
    check_takes("transform", transform, "generator", *(f"tensors[{i}]" for i in range(len(tensors))))
    check = getattr(transform, "check", None)
    if check is not None:
        check(*tensors)


class JointBatches(Source):
    """One minibatch of each of several data sets at every step, e.g. one with labels and one without.

    An epoch is one pass over the set that has the most minibatches; the others start anew, in a new order, as often
    as it takes. As with `Batches`, everything in an epoch is a function of the sets' seeds and its number alone.

    Args:
        *sets: the data sets, all on one device.

    Attributes:
        sets: the data sets.
        num_data: data in all of them.
        weights: what each minibatch's sum is multiplied with to stand for its data set: N_j / n_j, n_j the mean size.

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
        self.sets: tuple[Batches, ...] = sets
        self.device: torch.device = sets[0].device
        self.shapes = [part.shapes for part in sets]
        self.num_batches: int = len(self)
        used = [min(part.num_data, len(part) * part.batch_size) for part in sets]
        self.weights: tuple[float, ...] = tuple(
            part.num_data * len(part) / rows for part, rows in zip(sets, used, strict=True)
        )
        self.num_data: int = sum(part.num_data for part in sets)
        self._next_epoch = 0

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
            ValueError: if `index` is no whole number >= 0.
        """
        index = check_count("index", index, at_least=0)
        steps = len(self)
        streams = [_steps(part, index * steps, (index + 1) * steps) for part in self.sets]
        return zip(*streams, strict=True)

    def to(self, device: torch.device | str) -> JointBatches:
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
