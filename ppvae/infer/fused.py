"""torch's fused optimizers: one kernel for all parameters, and what it takes for granted of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FUSED: dict[type, tuple[str, ...]] = {
    torch.optim.Adam: ("cpu", "cuda"),
    torch.optim.AdamW: ("cpu", "cuda"),
    torch.optim.SGD: ("cpu", "cuda"),
    torch.optim.Adagrad: ("cpu",),
}
"""The optimizers of which torch has a fused kernel, and the devices that it runs on."""


def fuses(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> bool:
    """Whether torch has a fused kernel for an optimizer of these parameters, and nothing else was asked for."""
    devices = FUSED.get(type(optimizer), ())
    return (
        bool(devices)
        and all(
            group["fused"] is not False and not group["foreach"] and not group["differentiable"]
            for group in optimizer.param_groups
        )
        and all(
            p.is_floating_point()
            and p.device.type in devices
            and is_dense(p)
            and not (p.grad is not None and p.grad.is_sparse)
            for p in parameters
        )
    )


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements lie one beside the other in some order: no two share memory, and there are no gaps."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def align(optimizer: torch.optim.Optimizer) -> None:
    """Lays gradients and states out in memory as their parameters are: the kernel on a CPU goes by places alone."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("fused") else ():
            if parameter.grad is None:
                continue
            if parameter.grad.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
            shape, stride, state = parameter.shape, parameter.stride(), optimizer.state[parameter]
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == shape and value.stride() != stride:
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
