"""A compiler is not believed unseen: the first run of every graph is compared with the eager computation.

Both start from the same random state, buffers and parameters. What a computation returns and what it leaves behind in
buffers must agree up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDING = 3e-3
"""The largest difference that rounding explains, as a share of the largest element of a tensor."""

NOISE = 1e-4
"""The same as a share of the largest element of all tensors of a kind: gradients that are zero but for rounding."""

AUTOCAST = 30.0
"""How many times more that is where products are computed in half precision."""

Label = tuple[str, str]
"""What a tensor is: its kind ("the gradient of", "the buffer"), and its name."""


@torch.no_grad()
def first_difference(
    labels: Sequence[Label], expected: Sequence[Tensor], found: Sequence[Tensor], *, tolerance: float = 1.0
) -> str | None:
    """The name of the first tensor that differs by more than rounding; None where all agree.

    Args:
        labels: of the tensors.
        expected: as they were computed eagerly.
        found: as they were computed compiled.
        tolerance: how many times coarser than `ROUNDING` and `NOISE`.
    """
    largest: dict[str, float] = {}
    for (kind, _), tensor in zip(labels, expected, strict=True):
        largest[kind] = max(largest.get(kind, 0.0), _largest(tensor))
    for (kind, name), a, b in zip(labels, expected, found, strict=True):
        if a.shape != b.shape or a.is_floating_point() != b.is_floating_point():
            return f"{kind} {name}"  # of another precision it may be: Pyro's own numbers are Python's
        allowed = tolerance * max(ROUNDING * _largest(a), NOISE * largest[kind])
        if not _agree(a, b, allowed):
            return f"{kind} {name}"
    return None


def _largest(tensor: Tensor) -> float:
    """The largest finite magnitude among the elements."""
    if not tensor.numel() or not tensor.is_floating_point():
        return 0.0
    return float(torch.where(tensor.isfinite(), tensor, 0.0).abs().max())


def _agree(a: Tensor, b: Tensor, allowed: float) -> bool:
    """Whether two tensors are finite in the same places and no further apart there than allowed."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    finite = a.isfinite()
    same = torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()) and bool((b.isfinite() == finite).all())
    return same and bool(((a - b).abs()[finite] <= allowed).all())
