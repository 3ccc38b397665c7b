"""Texts as tensors of tokens and their lengths, and minibatches of sequences that are about as long."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor

from ppvae._validate import check_count, check_seed, check_tensor, usable_device
from ppvae.data.source import Source
from ppvae.nn import check_lengths
from ppvae.pair import usable
from ppvae.rng import stream
from ppvae.storage import digest_of

Unit = Literal["characters", "words"]

UNKNOWN = {"characters": "\N{REPLACEMENT CHARACTER}", "words": "<unknown>"}
"""What stands in a text for a token that the vocabulary does not have."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of texts: characters, or words between spaces; each is a number.

    A text is the tokens of its own, then one that ends it: 0, which also stands in the padding. 1 is whatever the
    vocabulary does not have.

    Attributes:
        symbols: the characters or words, from 2 upwards.
        unit: which of them.

    Example:
        >>> vocabulary = Vocabulary.of(["abba", "aha"])
        >>> x, lengths = vocabulary.encode(["ab", "aha", "ox"])
        >>> x.tolist(), lengths.tolist()
        ([[2, 3, 0, 0], [2, 4, 2, 0], [1, 1, 0, 0]], [3, 4, 3])
        >>> vocabulary.decode(x)
        ['ab', 'aha', '��']
    """

    symbols: tuple[str, ...]
    unit: Unit = "characters"

    end: ClassVar[int] = 0
    unknown: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise ValueError(f"unit must be 'characters' or 'words', got {self.unit!r}")
        if len(set(self.symbols)) < len(self.symbols):
            raise ValueError(f"symbols must be different from each other, got {self.symbols!r:.80}")

    @classmethod
    def of(cls, texts: Sequence[str], unit: Unit = "characters", *, min_count: int = 1) -> Self:
        """The vocabulary of some texts, the most frequent tokens first.

        Args:
            texts: of which the tokens are; the training texts.
            unit: "characters" or "words".
            min_count: how often a token must occur to be one; rarer ones are unknown.

        Raises:
            TypeError: where one is no text.
            ValueError: where an option is out of range, or no token is left.
        """
        check_count("min_count", min_count)
        new = cls((), unit)
        counts = Counter(token for text in _checked(texts) for token in new._tokens(text))
        symbols = sorted((s for s, count in counts.items() if count >= min_count), key=lambda s: (-counts[s], s))
        if not symbols:
            raise ValueError(f"texts must hold a token that occurs {min_count} times, got {len(texts)} without one")
        return cls(tuple(symbols), unit)

    def __len__(self) -> int:
        return 2 + len(self.symbols)

    def encode(self, texts: Sequence[str], *, num_steps: int | None = None) -> tuple[Tensor, Tensor]:
        """Texts as tokens, with the end of each.

        Args:
            texts: n of them.
            num_steps: t, what they are padded to; None is the longest, with its end.

        Returns:
            Tokens (n, t) and lengths (n,), ends included: the arguments of a `SequenceVAE`.

        Raises:
            TypeError: where one is no text.
            ValueError: where there is none, or one is longer than `num_steps`.
        """
        places = {symbol: number for number, symbol in enumerate(self.symbols, 2)}
        rows = [[places.get(t, self.unknown) for t in self._tokens(text)] + [self.end] for text in _checked(texts)]
        if not rows:
            raise ValueError("texts must hold at least one, got none")
        lengths = torch.tensor([len(row) for row in rows])
        longest = int(lengths.max())
        t = longest if num_steps is None else check_count("num_steps", num_steps)
        if longest > t:
            first = int((lengths > t).nonzero()[0])
            raise ValueError(
                f"num_steps={t} must be as many as the longest of texts has, with its end: {longest}; "
                f"texts[{first}] has {int(lengths[first])}"
            )
        return torch.tensor([row + [self.end] * (t - len(row)) for row in rows]), lengths

    def decode(self, x: Tensor, lengths: Tensor | None = None) -> list[str]:
        """Tokens (n, t) as texts, each up to its end, or to its length where that comes first.

        Raises:
            TypeError: where x is no tensor.
            ValueError: where x is not (n, t), or holds no tokens of this vocabulary.
        """
        if check_tensor("x", x).dim() != 2 or x.is_floating_point():
            raise ValueError(f"x must be whole numbers of shape (n, t), got {x.dtype} of shape {tuple(x.shape)}")
        if x.numel() and (int(x.min()) < 0 or int(x.max()) >= len(self)):
            raise ValueError(f"x must hold tokens from 0 to {len(self) - 1}, got {int(x.min())} to {int(x.max())}")
        names = ["", UNKNOWN[self.unit], *self.symbols]
        space = "" if self.unit == "characters" else " "
        stops = [x.shape[1]] * len(x) if lengths is None else lengths.tolist()
        texts = []
        for row, stop in zip(x.tolist(), stops, strict=True):
            before = row[:stop]
            kept = before[: before.index(self.end)] if self.end in before else before
            texts.append(space.join(names[token] for token in kept))
        return texts

    def _tokens(self, text: str) -> Sequence[str]:
        return text if self.unit == "characters" else text.split()


def _checked(texts: Any) -> Sequence[str]:
    """Texts, each of which is one."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise TypeError(f"texts must be a list of strings, got {type(texts).__name__}")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{i}] must be a string, got {type(text).__name__}")
    return texts


class LengthBuckets(Source):
    """Minibatches of sequences that are about as long, cut to one of a few numbers of steps.

    Every epoch has an order of its own: the rows of each bucket are shuffled, then the buckets laid one after the other
    and cut into minibatches, and these are shuffled. All have `batch_size` rows but one; there are as many shapes as
    buckets, and that of the short one, so that compiled graphs stay few. Order and rows are functions of (seed, epoch)
    alone.

    Args:
        x: padded sequences (n, t) or (n, t, ...).
        lengths: how many steps of each count, (n,).
        batch_size: rows of a minibatch.
        num_buckets: how many numbers of steps there are, at most: each bucket has about as many rows.
        device: where the data go; by default where x is.
        seed: what all randomness here comes from.

    Attributes:
        widths: the numbers of steps, the least first.

    Raises:
        TypeError: where data are no tensors, or lengths no integers.
        ValueError: where there is not one length, from 1 to t, for each sequence, or an option is out of range.

    Example:
        >>> x, lengths = torch.zeros(6, 10, dtype=torch.long), torch.tensor([3, 9, 4, 8, 3, 10])
        >>> buckets = LengthBuckets(x, lengths, batch_size=3, num_buckets=2)
        >>> sorted(tuple(x.shape) for x, _ in buckets.epoch(0)), buckets.widths
        ([(3, 4), (3, 10)], (4, 10))
    """

    def __init__(
        self,
        x: Tensor,
        lengths: Tensor,
        *,
        batch_size: int,
        num_buckets: int = 3,
        device: torch.device | str | None = None,
        seed: int = 0,
    ) -> None:
        check_tensor("x", x)
        if x.dim() < 2 or x.numel() == 0:
            raise ValueError(f"x must be sequences of shape (n, t, ...), got {tuple(x.shape)}")
        if not isinstance(lengths, Tensor) or lengths.shape != x.shape[:1]:
            got = tuple(lengths.shape) if isinstance(lengths, Tensor) else type(lengths).__name__
            raise ValueError(f"lengths must hold one number for each of {len(x)} sequences, got {got}")
        check_lengths(lengths, x.shape[1])
        self.batch_size: int = check_count("batch_size", batch_size)
        self.num_buckets, self.seed = check_count("num_buckets", num_buckets), check_seed(seed)
        self.device: torch.device = usable_device(x.device if device is None else device)
        self.x, self.lengths = usable(x.to(self.device)), usable(lengths.to(self.device))
        self.num_data: int = len(x)
        self.num_batches = -(-len(x) // batch_size)
        self.is_cut = self.num_batches > 1
        self.last_rows = self.num_data % self.batch_size if self.is_cut else 0
        ordered = lengths.sort().values.tolist()
        last = {-(-len(x) * (i + 1) // num_buckets) - 1 for i in range(num_buckets)}
        self.widths = tuple(sorted({ordered[place] for place in last}))
        self.shapes = [list(x.shape), list(lengths.shape)]
        self._bucket = torch.bucketize(self.lengths, torch.tensor(self.widths, device=self.device))

    def epoch(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The minibatches of one epoch, the same at every call.

        Args:
            index: number of the epoch, from 0.

        Raises:
            ValueError: if `index` is no whole number >= 0.
        """
        generator = stream(self.seed, check_count("index", index, at_least=0), device=self.device)
        order = torch.randperm(self.num_data, generator=generator, device=self.device)
        order = order[self._bucket[order].argsort(stable=True)]
        batches = order.split(self.batch_size)
        for i in torch.randperm(len(batches), generator=generator, device=self.device).tolist():
            rows = batches[i]
            width = self.widths[int(self._bucket[rows[-1]])]
            yield self.x[rows, :width], self.lengths[rows]

    def to(self, device: torch.device | str) -> LengthBuckets:
        """The same minibatches on another device, where their order is another one."""
        moved = copy.copy(self)
        moved.device = usable_device(device)
        moved.x, moved.lengths, moved._bucket = (t.to(moved.device) for t in (self.x, self.lengths, self._bucket))
        return moved

    def digest(self) -> str:
        """A hash of the data."""
        return digest_of(self.x, self.lengths)

    def settings(self) -> dict[str, Any]:
        """What the minibatches of an epoch are a function of."""
        return {name: getattr(self, name) for name in ("batch_size", "num_buckets", "seed")}
