"""What the compiler gets wrong is spelt otherwise in the graphs that it is given.

Inductor's patterns that fuse a sum into a matrix product do not look at `alpha`: of `m.add(a @ b, alpha=0.1)` torch
2.14.1 makes `addmm(m, a, b)`. So no sum in a traced graph has an `alpha`, no product an `alpha` or a `beta`: each is
written as products and sums of its own. `lerp` is one of them, since Inductor would itself make a sum with an `alpha`
of it. What processors compute slowly is spelt by what they compute quickly (`elementary`). A bias is added after its
product, in one pass with what comes next: torch's `addmm` on a CPU writes it to every row first, and the product reads
that back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppvae.compile.elementary import ELEMENTARY, is_exact_on_cpu

Number = bool | int | float
"""A factor of an operation."""

aten = torch.ops.aten


def _scaled(tensor: Tensor, factor: Number, like: Tensor) -> Tensor:
    """The tensor times a factor, in the precision of the sum that it belongs to: with `like`."""
    return tensor if factor == 1 else tensor.to(torch.result_type(tensor, like)) * factor


def _add(a: Tensor, b: Tensor | Number, alpha: Number = 1) -> Any:
    if alpha == 1:
        return NotImplemented
    return a + (_scaled(b, alpha, a) if isinstance(b, Tensor) else alpha * b)


def _sub(a: Tensor, b: Tensor | Number, alpha: Number = 1) -> Any:
    if alpha == 1:
        return NotImplemented
    return a - (_scaled(b, alpha, a) if isinstance(b, Tensor) else alpha * b)


def _rsub(a: Tensor, b: Tensor | Number, alpha: Number = 1) -> Any:
    if alpha == 1:
        return NotImplemented
    return b - (_scaled(a, alpha, b) if isinstance(b, Tensor) else a * alpha)


def _add_product(product: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    """Of `beta · m + alpha · product(a, b)`; with a beta of zero even a NaN of m does not count."""

    def added(m: Tensor, a: Tensor, b: Tensor, *, beta: Number = 1, alpha: Number = 1) -> Any:
        if beta == 1 and alpha == 1:
            return NotImplemented
        result = product(a, b)
        result = result if alpha == 1 else result * alpha
        if beta == 0:
            return result
        return (m if beta == 1 else m * beta) + result

    return added


def _add_bias(m: Tensor, a: Tensor, b: Tensor, *, beta: Number = 1, alpha: Number = 1) -> Any:
    if m.dim() > 1 or not is_exact_on_cpu(m) or (beta, alpha) != (1, 1):
        return _add_product(torch.mm)(m, a, b, beta=beta, alpha=alpha)
    return torch.mm(a, b) - (-m)  # the same to the last bit; of a sum Inductor would make `addmm` again


def _lerp(start: Tensor, end: Tensor, weight: Tensor | Number) -> Tensor:
    if isinstance(weight, Tensor):
        return torch.where(weight.abs() < 0.5, start + weight * (end - start), end - (end - start) * (1 - weight))
    return start + weight * (end - start) if abs(weight) < 0.5 else end - (end - start) * (1 - weight)


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same, written over the first argument."""

    def written(target: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = function(target, *args, **kwargs)
        return result if result is NotImplemented else target.copy_(result)

    return written


def _table() -> dict[Any, Callable[..., Any]]:
    products: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "addmv": torch.mv,
        "baddbmm": torch.bmm,
        "addbmm": lambda a, b: torch.bmm(a, b).sum(0),
        "addr": torch.outer,
    }
    sums: dict[str, Callable[..., Any]] = {"add": _add, "sub": _sub, "lerp": _lerp}
    forms = {(name, kind): function for name, function in sums.items() for kind in ("Tensor", "Scalar")}
    forms |= {(name, "default"): _add_product(product) for name, product in products.items()}
    forms["addmm", "default"] = _add_bias
    table: dict[Any, Callable[..., Any]] = {aten.rsub.Tensor: _rsub, aten.rsub.Scalar: _rsub}
    for (name, kind), function in forms.items():
        table[getattr(getattr(aten, name), kind)] = function
        table[getattr(getattr(aten, f"{name}_"), kind)] = _in_place(function)
    return table


FACTORS = _table()
"""Those of sums and products."""
DECOMPOSITIONS = FACTORS | ELEMENTARY
"""From operations of torch to functions that compute the same by others, or say `NotImplemented` and leave them."""
