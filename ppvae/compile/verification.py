"""A compiler is not believed unseen: the first runs of a graph, and a few later ones, are compared with eager ones.

Both start from the same random state, buffers and parameters. What a computation returns and what it leaves behind in
buffers must agree up to rounding. How much rounding can make of a number that is a small difference of large ones, such
as a gradient where it vanishes, shows when the parameters are moved by as much as they are rounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

ROUNDING = 3e-3
"""The largest difference that rounding explains, as a share of the largest element of a tensor."""

NOISE = 1e-4
"""The same as a share of the largest element of all tensors of a kind: gradients that are zero but for rounding."""

AUTOCAST = 30.0
"""How many times more that is where products are computed in half precision."""

SENSITIVITY = 10.0
"""How many times more than by nudged parameters a tensor may change."""

Label = tuple[str, str]
"""What a tensor is: its kind ("the gradient of", "the buffer"), and its name."""


@torch.no_grad()
def first_difference(
    labels: Sequence[Label],
    expected: Sequence[Tensor],
    found: Sequence[Tensor],
    *,
    tolerance: float = 1.0,
    nudged_once: Sequence[Tensor] = (),
) -> str | None:
    """The name of the first tensor that differs by more than rounding; None where all agree.

    Args:
        labels: of the tensors.
        expected: as they were computed eagerly.
        found: as they were computed compiled.
        tolerance: how many times coarser than `ROUNDING` and `NOISE`.
        nudged_once: as they are computed eagerly inside `nudged`.
    """
    if len(expected) != len(found):
        return f"the number of tensors, {len(found)} in place of {len(expected)},"
    largest: dict[str, float] = {}
    for (kind, _), tensor in zip(labels, expected, strict=True):
        largest[kind] = max(largest.get(kind, 0.0), _largest(tensor))
    for i, ((kind, name), a, b) in enumerate(zip(labels, expected, found, strict=True)):
        if a.shape != b.shape or _is_exact(a) != _is_exact(b):
            return f"{kind} {name}"  # of another precision it may be: Pyro's own numbers are Python's
        allowed = tolerance * max(ROUNDING * _largest(a), NOISE * largest[kind])
        if nudged_once:
            allowed = max(allowed, SENSITIVITY * _largest(nudged_once[i] - a))
        if not _agree(a, b, allowed):
            return f"{kind} {name}"
    return None


@contextmanager
def nudged(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Moves every element by a unit in its last place, up or down, and back on leaving."""
    tensors = [tensor for tensor in tensors if not _is_exact(tensor)]
    before = [tensor.detach().clone() for tensor in tensors]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for tensor in tensors:
                up = torch.randint(2, tensor.shape, generator=generator).mul(2).sub(1).to(tensor)
                tensor.mul_(1 + up * torch.finfo(tensor.dtype).eps)
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)


def _is_exact(tensor: Tensor) -> bool:
    """Whether it holds integers or truth values, which nothing rounds."""
    return not (tensor.is_floating_point() or tensor.is_complex())


def _largest(tensor: Tensor) -> float:
    """The largest finite magnitude among the elements."""
    if not tensor.numel() or _is_exact(tensor):
        return 0.0
    return float(torch.where(tensor.isfinite(), tensor, 0.0).abs().max())


def _agree(a: Tensor, b: Tensor, allowed: float) -> bool:
    """Whether two tensors are finite in the same places and no further apart there than allowed."""
    if _is_exact(a):
        return torch.equal(a, b)
    if a.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    finite = a.isfinite()
    if not torch.equal(b.isfinite(), finite):
        return False
    of_a, of_b = (t[~finite].nan_to_num(nan=0.0, posinf=1.0, neginf=-1.0) for t in (a, b))
    return torch.equal(of_a, of_b) and bool(((a - b).abs()[finite] <= allowed).all())
