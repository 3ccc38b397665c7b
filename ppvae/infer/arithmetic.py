"""The step of torch's own optimizers as operations on tensors: what a compiled graph holds after the gradient.

What changes from step to step (learning rates, bias corrections, the norm that gradients are clipped to) are numbers in
a table that is filled before each step; states are the optimizer's own tensors, written in place. So schedules, options
and states that are set between steps count, and a step by the optimizer itself goes on from where the graph stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppvae.infer.fused import is_dense

Options = dict[str, Any]
"""A group of an optimizer's parameters."""

Flags = tuple[bool, ...]
"""What of a group decides which operations there are."""

COLUMNS = 8
"""How many numbers the step of a parameter takes at most."""


@dataclass(frozen=True)
class Formula:
    """The arithmetic of one kind of optimizer.

    Attributes:
        flags: of a group; None where the operations are not known.
        states: the names of the states that a group with these flags has.
        numbers: what a step takes: of a group, and of how many steps there are with it.
        update: takes the step of a parameter: its gradient, states, numbers and flags.
    """

    flags: Callable[[Options], Flags | None]
    states: Callable[[Flags], tuple[str, ...]]
    numbers: Callable[[Options, float], list[float]]
    update: Callable[[Tensor, Tensor, dict[str, Tensor], Sequence[Tensor], Flags], None]


def _normal(tensor: Tensor) -> Tensor:
    """Zero in place of denormal numbers, where moments without a gradient end: a CPU is slow with them."""
    return torch.where(tensor.abs() < torch.finfo(tensor.dtype).tiny, 0.0, tensor)


def _adam_flags(group: Options) -> Flags | None:
    if group["differentiable"] or group["capturable"]:
        return None
    decays = group["weight_decay"] != 0
    return group["amsgrad"], group["maximize"], decays, decays and group["decoupled_weight_decay"]


def _adam_states(flags: Flags) -> tuple[str, ...]:
    return ("step", "exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if flags[0] else ()))


def _adam_numbers(group: Options, step: float) -> list[float]:
    rate, decay, (beta1, beta2) = float(group["lr"]), float(group["weight_decay"]), map(float, group["betas"])
    size, root = rate / (1 - beta1**step), (1 - beta2**step) ** 0.5
    return [1 - beta1, beta2, 1 - beta2, size, 1 / root, group["eps"], decay, 1 - rate * decay]


def _adam(
    parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], numbers: Sequence[Tensor], flags: Flags
) -> None:
    amsgrad, maximizes, decays, decoupled = flags
    weight1, beta2, weight2, size, of_root, eps, decay, kept = numbers
    gradient = -gradient if maximizes else gradient
    before = parameter * kept if decoupled else parameter
    if decays and not decoupled:
        gradient = gradient + decay * parameter
    mean = _normal(state["exp_avg"] + weight1 * (gradient - state["exp_avg"]))
    square = _normal(beta2 * state["exp_avg_sq"] + weight2 * gradient * gradient)
    largest = torch.maximum(state["max_exp_avg_sq"], square) if amsgrad else square
    parameter.copy_(before - size * mean / (largest.sqrt() * of_root + eps))
    new = {"step": state["step"] + 1, "exp_avg": mean, "exp_avg_sq": square, "max_exp_avg_sq": largest}
    for name, tensor in state.items():
        tensor.copy_(new[name])


def _sgd_flags(group: Options) -> Flags | None:
    if group["differentiable"] or (group["momentum"] != 0 and group["dampening"] != 0):
        return None  # where the momentum of a first step is not damped, one of zero is no start
    return group["momentum"] != 0, group["maximize"], group["weight_decay"] != 0, group["nesterov"]


def _sgd_numbers(group: Options, step: float) -> list[float]:
    return [float(group["lr"]), group["momentum"], group["weight_decay"]]


def _sgd(
    parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], numbers: Sequence[Tensor], flags: Flags
) -> None:
    has_momentum, maximizes, decays, nesterov = flags
    rate, momentum, decay = numbers[:3]
    gradient = -gradient if maximizes else gradient
    if decays:
        gradient = gradient + decay * parameter
    if has_momentum:
        velocity = _normal(momentum * state["momentum_buffer"] + gradient)
        gradient = gradient + momentum * velocity if nesterov else velocity
        state["momentum_buffer"].copy_(velocity)
    parameter.copy_(parameter - rate * gradient)


_ADAM = Formula(_adam_flags, _adam_states, _adam_numbers, _adam)
_SGD = Formula(_sgd_flags, lambda flags: ("momentum_buffer",) if flags[0] else (), _sgd_numbers, _sgd)
FORMULAS: dict[type, Formula] = {torch.optim.Adam: _ADAM, torch.optim.AdamW: _ADAM, torch.optim.SGD: _SGD}
"""The optimizers whose arithmetic is known."""


class Arithmetic:
    """The step of an optimizer that `is_known`.

    Args:
        optimizer: its options and states are taken over before each step, by `settle`.
        clips: whether gradients are clipped.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, clips: bool) -> None:
        self._formula = FORMULAS[type(optimizer)]
        self._clips = clips
        self._parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        self._places = {id(parameter): i for i, parameter in enumerate(self._parameters)}
        self._flags = [self._formula.flags(group) or () for group in optimizer.param_groups for _ in group["params"]]
        self._states = [self._new_state(p, flags) for p, flags in zip(self._parameters, self._flags, strict=True)]
        for parameter, mine in zip(self._parameters, self._states, strict=True):
            for name, tensor in mine.items():
                old = optimizer.state[parameter].get(name)
                if isinstance(old, Tensor) and (old.shape, old.dtype) == (tensor.shape, tensor.dtype):
                    mine[name] = old
        self._dtype = torch.float64 if any(p.dtype == torch.float64 for p in self._parameters) else torch.float32
        self._table = torch.zeros(len(self._parameters), COLUMNS, dtype=self._dtype)
        self._limit = torch.zeros((), dtype=self._dtype)
        self._rows: list[list[float]] = []

    def settle(self, optimizer: torch.optim.Optimizer, clip_norm: float | None) -> None:
        """Takes over the options and states that the optimizer has now."""
        rows: list[list[float]] = []
        known: dict[tuple[int, float], list[float]] = {}
        place = 0
        for i, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                mine, state = self._states[place], optimizer.state[parameter]
                for name, tensor in mine.items():
                    if state.get(name) is not tensor:
                        tensor.zero_() if state.get(name) is None else tensor.copy_(state[name])
                        state[name] = tensor
                step = float(mine["step"]) + 1 if "step" in mine else 0.0
                if (i, step) not in known:
                    numbers = self._formula.numbers(group, step)
                    known[i, step] = numbers + [0.0] * (COLUMNS - len(numbers))
                rows.append(known[i, step])
                place += 1
        if rows != self._rows:
            self._table.copy_(torch.tensor(rows, dtype=self._dtype))
            self._rows = rows
        if clip_norm is not None:
            self._limit.fill_(clip_norm)

    def covers(self, parameters: Sequence[Tensor]) -> bool:
        """Whether all these are the optimizer's."""
        return all(id(parameter) in self._places for parameter in parameters)

    @torch.no_grad()
    def take(self, trained: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Takes the step of the parameters that have a gradient, which stays as it is."""
        share: Tensor | None = None
        if self._clips and gradients:
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
            share = (self._limit / (norm + 1e-6)).clamp(max=1.0)
        for parameter, gradient in zip(trained, gradients, strict=True):
            i = self._places[id(parameter)]
            clipped = gradient if share is None else gradient * share
            self._formula.update(parameter, clipped, self._states[i], self._table[i].unbind(), self._flags[i])

    def written(self) -> list[tuple[str, Tensor, Tensor]]:
        """What a step writes to: what it is, of which parameter, and the tensor."""
        found: list[tuple[str, Tensor, Tensor]] = [("value", parameter, parameter) for parameter in self._parameters]
        for parameter, state in zip(self._parameters, self._states, strict=True):
            found += [(name, parameter, tensor) for name, tensor in state.items()]
        return found

    def _new_state(self, parameter: Tensor, flags: Flags) -> dict[str, Tensor]:
        return {
            name: torch.zeros(()) if name == "step" else torch.zeros_like(parameter, requires_grad=False)
            for name in self._formula.states(flags)
        }


def signature(optimizer: torch.optim.Optimizer, *, clips: bool) -> tuple[Any, ...] | None:
    """What decides which operations the step of an optimizer is; None where they are not known."""
    if (formula := FORMULAS.get(type(optimizer))) is None:
        return None
    groups = (
        (formula.flags(group), *[(id(p), p.is_cpu, p.dtype) for p in group["params"]])
        for group in optimizer.param_groups
    )
    return (type(optimizer), clips, *groups)


def is_known(optimizer: torch.optim.Optimizer) -> bool:
    """Whether there is a formula for what an optimizer does, and its parameters are on the CPU, of full precision."""
    formula = FORMULAS.get(type(optimizer))
    return formula is not None and all(
        formula.flags(group) is not None and all(map(_is_plain, group["params"])) for group in optimizer.param_groups
    )


def _is_plain(parameter: Tensor) -> bool:
    """Whether a parameter is on the CPU, of full precision, and no two of its elements share memory."""
    return parameter.is_cpu and is_dense(parameter) and parameter.dtype in (torch.float32, torch.float64)
