"""A folder of pictures that memory does not hold: decoded for each minibatch, while the one before is in use."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ppvae._validate import check_count, check_path, check_seed, check_takes
from ppvae.data.folder import decode, folder_of, listed
from ppvae.data.source import Source
from ppvae.data.transforms import Transform
from ppvae.pair import usable
from ppvae.rng import permutation, stream

Part = Literal["train", "valid", "test"]

AHEAD = 2
"""Minibatches that are decoded, or being decoded, while one is in use."""


class Pictures(Source):
    """Minibatches of the PNG and JPEG files of a folder, which no more than three minibatches of are in memory.

    The pictures, their form and their parts are those of `load("folder", root)`. The order of an epoch and its random
    transform are functions of (seed, epoch) alone, so that a killed run resumes bit for bit.

    Args:
        root: the folder, with a folder for each class, or `train` and `test`, or all in one.
        batch_size: pictures per minibatch.
        part: "train", in a new order in every epoch, or "valid" or "test", in one.
        size: height and width that they are scaled and cut to; None takes them as they are, all of one size.
        grey: whether colours are dropped; None is where no picture has any.
        num_valid: pictures held out for validation; by default a tenth of those to train on.
        transform: applied to every minibatch with the epoch's generator, such as `Binarize()`.
        seed: of the order.

    Attributes:
        files: the pictures of this part.
        labels: their classes, (n,), in the order of `files`.
        event_shape: (channels, height, width).

    Raises:
        FileNotFoundError: where there are no pictures.
        ValueError: where one cannot be read, or an option is out of range.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = tempfile.mkdtemp()
        >>> for i in range(20):
        ...     Image.new("L", (8, 8), 10 * i).save(f"{folder}/{i}.png")
        >>> train = Pictures(folder, batch_size=8)
        >>> [tuple(x.shape) for (x,) in train.epoch(0)]
        [(8, 1, 8, 8), (8, 1, 8, 8), (1, 1, 8, 8)]
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        batch_size: int,
        part: Part = "train",
        size: int | tuple[int, int] | None = None,
        grey: bool | None = None,
        num_valid: int | None = None,
        transform: Transform | None = None,
        seed: int = 0,
    ) -> None:
        self.batch_size: int = check_count("batch_size", batch_size)
        if part not in get_args(Part):
            raise ValueError(f"part must be one of {', '.join(get_args(Part))}, got {part!r}")
        self.part, self.seed, self.transform = part, check_seed(seed), transform
        if transform is not None:
            check_takes("transform", transform, "generator", "pictures")
        self.root = check_path("root", root).expanduser().absolute()
        files, labels, rest, test = listed(self.root)
        self._size, self._grey = folder_of(size, grey).form(files)
        rows = {"test": test, **_split(rest, num_valid)}[part]
        self.files: Sequence[Path] = [files[i] for i in rows.tolist()]
        self.labels = labels[rows]
        self.event_shape = torch.Size((1 if self._grey else 3, *self._size))
        self.num_data: int = len(self.files)
        self.num_batches: int = -(-self.num_data // self.batch_size)
        self.is_cut = self.num_batches > 1
        self.last_rows = self.num_data % self.batch_size if self.is_cut else 0
        self.shapes = [[self.num_data, *self.event_shape]]

    def __len__(self) -> int:
        return self.num_batches

    def epoch(self, index: int) -> Iterator[tuple[Any, ...]]:
        """The minibatches of one epoch: intensities in [0, 1], (batch_size, channels, height, width), float32.

        Raises:
            ValueError: on the way, naming a file that is damaged.
        """
        generator = stream(self.seed, check_count("index", index, at_least=0), device=self.device or "cpu")
        in_order = stream(self.seed, index, device="cpu")  # of any device the same
        order = (
            torch.randperm(self.num_data, generator=in_order) if self.part == "train" else torch.arange(self.num_data)
        )
        for x in self._ahead(order.split(self.batch_size)):
            batch = (usable(x.to(self.device) if self.device else x),)
            yield batch if self.transform is None else self.transform(generator, *batch)

    def digest(self) -> str:
        """A hash of the names of the files and of their sizes."""
        names = [f"{file.relative_to(self.root)} {file.stat().st_size}" for file in self.files]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        """What the minibatches of an epoch are a function of."""
        return {name: getattr(self, name) for name in ("batch_size", "part", "seed", "transform")}

    def _ahead(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """The pictures of each minibatch; those of the next are decoded meanwhile."""
        read = partial(decode, size=self._size, grey=self._grey)
        waiting: deque[list[Future[Any]]] = deque()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                for rows in batches:
                    waiting.append([pool.submit(read, self.files[i]) for i in rows.tolist()])
                    if len(waiting) > AHEAD:
                        yield _levels(waiting.popleft())
                while waiting:
                    yield _levels(waiting.popleft())
            finally:
                for futures in waiting:
                    for future in futures:
                        future.cancel()


def _levels(futures: list[Future[Any]]) -> Tensor:
    """Intensities of decoded pictures."""
    return torch.from_numpy(np.stack([future.result() for future in futures])).float().div_(255)


def _split(rest: Tensor, num_valid: int | None) -> dict[str, Tensor]:
    """The numbers of the pictures to train on and for validation, as `load` splits them.

    Raises:
        ValueError: where nothing is left to train on.
    """
    num = len(rest) // 10 if num_valid is None else check_count("num_valid", num_valid, at_least=0)
    cut = len(rest) - num
    if cut < 1:
        raise ValueError(f"num_valid={num_valid} leaves nothing of {len(rest)} pictures to train on")
    order = permutation(len(rest), 0)
    return {"train": rest[order[:cut]], "valid": rest[order[cut:]]}
