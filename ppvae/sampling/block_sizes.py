"""How draws of many data are cut into blocks of a certain number of rows: so many data, so many samples of each."""

from __future__ import annotations

SAMPLE_BLOCK = 64
"""Samples of one datum that are drawn at once, where there are many data: so many that an encoding is cheap beside."""

VALIDATION_BLOCK = 16
"""Up to so many samples of a datum are drawn in one block, eagerly and under Pyro's validation."""


def block_sizes(n: int, num_samples: int, *, rows: int) -> tuple[int, list[int]]:
    """The data of a block, and the samples that they are given one block after another.

    Args:
        n: data in all.
        num_samples: of each datum.
        rows: the most (sample, datum) rows of a block.

    Example:
        >>> block_sizes(64, 1000, rows=2000)
        (16, [8, 124, 124, 124, 124, 124, 124, 124, 124])
    """
    size = _equal(n, max(1, rows // min(SAMPLE_BLOCK, num_samples)))
    return size, _parts(num_samples, max(1, rows // size))


def _equal(n: int, size: int) -> int:
    """The size of blocks of n data, at most `size`: equal ones if that takes less than twice as many."""
    count = -(-n // size)
    return -(-n // next((i for i in range(count, min(2 * count, n + 1)) if n % i == 0), count))


def _parts(total: int, size: int) -> list[int]:
    """`total` samples in blocks of at most `size`: a small one to validate with, and others that are all equal."""
    if total <= min(VALIDATION_BLOCK, size):
        return [total]
    each = (total - 1) // -(-(total - 1) // size)
    parts = (total - 1) // each
    return [total - parts * each, *[each] * parts]
