r"""Functions that processors compute slowly, spelt by quick ones in the graphs that the compiler is given.

On a CPU torch 2.14 takes some twenty times as long for `log1p` and `expm1` as for `exp` and `log`, and the density of
Bernoulli variables has one for each pixel. Both follow from the others without loss (Kahan's rounding trick). With the
rounded u = 1 + x, what was lost of x is (u − 1) − x, and log(1 + x) = log u − ((u − 1) − x) / u. In the same way
exp(x) − 1 = (u − 1) · (x / log u) with the rounded u = exp(x), where x is small.

References:
    What every computer scientist should know about floating-point arithmetic (Goldberg 1991), theorem 4.
    Accuracy and stability of numerical algorithms (Higham 2002), section 1.14.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def log1p(x: Tensor) -> Tensor:
    """Log(1 + x), to the last bits at any x."""
    u = 1 + x
    return torch.where((u > 0) & (u < torch.inf), _corrected(u, x), u.log())


def _corrected(u: Tensor, x: Tensor) -> Tensor:
    """Log(1 + x), where u = 1 + x is rounded, positive and finite."""
    return u.log() - ((u - 1) - x) / u


def expm1(x: Tensor) -> Tensor:
    """Exp(x) − 1, to the last bits at any x."""
    u = x.exp()
    rest = u - 1
    corrected = torch.where(rest == 0, x, rest * (x / u.log()))
    return torch.where(x.abs() < 1, corrected, rest)


def softplus(x: Tensor) -> Tensor:
    """Log(1 + exp(x))."""
    e = (-x.abs()).exp()
    return x.clamp_min(0) + _corrected(1 + e, e)


def is_exact_on_cpu(x: Tensor) -> bool:
    """Whether these are numbers of single or double precision on a CPU."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _quickly(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Any]:
    return lambda x: function(x) if is_exact_on_cpu(x) else NotImplemented


def _softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Any:
    if not is_exact_on_cpu(x):
        return NotImplemented
    return torch.where(x * beta > threshold, x, softplus(x * beta) / beta)


def _log_sigmoid(x: Tensor) -> Any:
    """With what its gradient takes on a CPU."""
    if not is_exact_on_cpu(x):
        return NotImplemented
    e = (-x.abs()).exp()
    return x.clamp_max(0) - _corrected(1 + e, e), e


def _binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: int = 1,
) -> Any:
    if not is_exact_on_cpu(logits) or not is_exact_on_cpu(target) or pos_weight is not None:
        return NotImplemented
    loss = softplus(logits) - target * logits
    loss = loss if weight is None else loss * weight
    return (loss, loss.mean(), loss.sum())[reduction] if reduction else loss


ELEMENTARY: dict[Any, Callable[..., Any]] = {
    aten.log1p.default: _quickly(log1p),
    aten.expm1.default: _quickly(expm1),
    aten.softplus.default: _softplus,
    aten.log_sigmoid_forward.default: _log_sigmoid,
    aten.binary_cross_entropy_with_logits.default: _binary_cross_entropy,
}
"""From operations of torch to functions that compute the same by quicker ones, or say `NotImplemented`."""
