"""The step of an optimizer as operations on tensors: what a compiled graph holds after the gradient.

Options (learning rates, betas, the norm that gradients are clipped to) are numbers in tables that are filled where they
have changed; states, the count of steps among them, are the optimizer's own tensors, written in place. So schedules,
options and states that are set between steps count, and a step by the optimizer itself goes on from where the graph
stands. What an optimizer counts in Python (Pyro's `ClippedAdam`: its steps, a learning rate that decays) goes on there,
after each step.

Every parameter adds some twenty operations to a graph, which a compiler takes its time for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor

from ppvae.infer.fused import is_dense

Options = dict[str, Any]
"""A group of an optimizer's parameters."""

Flags = tuple[bool, ...]
"""What of a group decides which operations there are."""

MAX_PARAMETERS = 32
"""Of more, the optimizer takes the step itself: a large net's step is long, and so would be the compilation."""


@dataclass(frozen=True)
class Formula:
    """The arithmetic of one kind of optimizer.

    Attributes:
        flags: of a group; None where the operations are not known.
        states: the names of the states that a group with these flags has.
        numbers: what a step takes of a group.
        rates: what it takes of a group in double precision.
        paces: from the rates and the number of the step, a vector of each over the parameters, what depends on both.
        update: takes the step of a parameter: its gradient, states, numbers, paces and flags.
        in_python: whether Python counts the steps, and lets the learning rate decay.
    """

    flags: Callable[[Options], Flags | None]
    states: Callable[[Flags], tuple[str, ...]]
    numbers: Callable[[Options], list[float]]
    rates: Callable[[Options], list[float]]
    paces: Callable[[Sequence[Tensor], Tensor], list[Tensor]]
    update: Callable[[Tensor, Tensor, dict[str, Tensor], Sequence[Tensor], Sequence[Tensor], Flags], None]
    in_python: bool = False


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


def _adam_numbers(group: Options) -> list[float]:
    (beta1, beta2), rate, decay = map(float, group["betas"]), float(group["lr"]), float(group["weight_decay"])
    return [1 - beta1, beta2, 1 - beta2, group["eps"], decay, 1 - rate * decay]


def _adam_rates(group: Options) -> list[float]:
    return [float(group["lr"]), *(math.log(beta) if beta else -math.inf for beta in map(float, group["betas"]))]


def _adam_paces(rates: Sequence[Tensor], step: Tensor) -> list[Tensor]:
    # exp, not pow: what Inductor computes once for all elements of a parameter, and not at each.
    rate, log1, log2 = rates
    return [rate / (1 - (step * log1).exp()), (1 - (step * log2).exp()).rsqrt()]


def _adam(
    parameter: Tensor,
    gradient: Tensor,
    state: dict[str, Tensor],
    numbers: Sequence[Tensor],
    paces: Sequence[Tensor],
    flags: Flags,
) -> None:
    amsgrad, maximizes, decays, decoupled = flags
    weight1, beta2, weight2, eps, decay, kept = numbers
    size, correction = paces
    gradient = -gradient if maximizes else gradient
    before = parameter * kept if decoupled else parameter
    if decays and not decoupled:
        gradient = gradient + decay * parameter
    mean = _normal(state["exp_avg"] + weight1 * (gradient - state["exp_avg"]))
    square = beta2 * state["exp_avg_sq"] + weight2 * gradient * gradient
    largest = torch.maximum(state["max_exp_avg_sq"], square) if amsgrad else square
    parameter.copy_(before - size * mean / (largest.sqrt() * correction + eps))
    state["exp_avg"].copy_(mean)
    state["exp_avg_sq"].copy_(square)
    if amsgrad:
        state["max_exp_avg_sq"].copy_(largest)


def _clipped_adam_numbers(group: Options) -> list[float]:
    beta1, beta2 = map(float, group["betas"])
    return [1 - beta1, beta2, 1 - beta2, group["eps"], group["weight_decay"], group["clip_norm"]]


def _clipped_adam_rates(group: Options) -> list[float]:
    rate, *logarithms = _adam_rates(group)
    return [rate * group["lrd"], *logarithms]


def _clipped_adam_paces(rates: Sequence[Tensor], step: Tensor) -> list[Tensor]:
    size, correction = _adam_paces(rates, step)
    return [size / correction]


def _clipped_adam(
    parameter: Tensor,
    gradient: Tensor,
    state: dict[str, Tensor],
    numbers: Sequence[Tensor],
    paces: Sequence[Tensor],
    flags: Flags,
) -> None:
    (decays,) = flags
    weight1, beta2, weight2, eps, decay, limit = numbers
    gradient = torch.clamp(gradient, -limit, limit)
    if decays:
        gradient = gradient + decay * parameter
    mean = _normal(state["exp_avg"] + weight1 * (gradient - state["exp_avg"]))
    square = beta2 * state["exp_avg_sq"] + weight2 * gradient * gradient
    parameter.copy_(parameter - paces[0] * mean / (square.sqrt() + eps))
    state["exp_avg"].copy_(mean)
    state["exp_avg_sq"].copy_(square)


def _sgd_flags(group: Options) -> Flags | None:
    if group["differentiable"] or (group["momentum"] != 0 and group["dampening"] != 0):
        return None  # where the momentum of a first step is not damped, one of zero is no start
    return group["momentum"] != 0, group["maximize"], group["weight_decay"] != 0, group["nesterov"]


def _sgd_numbers(group: Options) -> list[float]:
    return [float(group["lr"]), group["momentum"], group["weight_decay"]]


def _sgd(
    parameter: Tensor,
    gradient: Tensor,
    state: dict[str, Tensor],
    numbers: Sequence[Tensor],
    paces: Sequence[Tensor],
    flags: Flags,
) -> None:
    has_momentum, maximizes, decays, nesterov = flags
    rate, momentum, decay = numbers
    gradient = -gradient if maximizes else gradient
    if decays:
        gradient = gradient + decay * parameter
    if has_momentum:
        velocity = _normal(momentum * state["momentum_buffer"] + gradient)
        gradient = gradient + momentum * velocity if nesterov else velocity
        state["momentum_buffer"].copy_(velocity)
    parameter.copy_(parameter - rate * gradient)


_ADAM = Formula(_adam_flags, _adam_states, _adam_numbers, _adam_rates, _adam_paces, _adam)
_SGD = Formula(
    _sgd_flags,
    lambda flags: ("momentum_buffer",) if flags[0] else (),
    _sgd_numbers,
    lambda group: [],
    lambda rates, step: [],
    _sgd,
)
_CLIPPED_ADAM = Formula(
    lambda group: (group["weight_decay"] != 0,),
    lambda flags: ("exp_avg", "exp_avg_sq"),
    _clipped_adam_numbers,
    _clipped_adam_rates,
    _clipped_adam_paces,
    _clipped_adam,
    in_python=True,
)
FORMULAS: dict[type, Formula] = {
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
    torch.optim.SGD: _SGD,
    ClippedAdam: _CLIPPED_ADAM,
}
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
        groups = list(enumerate(optimizer.param_groups))
        self._parameters: list[Tensor] = [p for _, group in groups for p in group["params"]]
        self._group_of = [i for i, group in groups for _ in group["params"]]
        self._places = {id(parameter): i for i, parameter in enumerate(self._parameters)}
        self._flags = [self._formula.flags(group) or () for _, group in groups]
        self._steps = torch.zeros(len(self._parameters))
        self._states = [self._new_state(i, optimizer.state[p]) for i, p in enumerate(self._parameters)]
        self._dtype = torch.float64 if any(p.dtype == torch.float64 for p in self._parameters) else torch.float32
        self._filled = self._tables(optimizer)
        self._numbers = torch.tensor(self._filled[0], dtype=self._dtype)
        self._rates = torch.tensor(self._filled[1], dtype=torch.float64)
        if self._formula.in_python:
            self._steps = torch.tensor(self._filled[2])
        self._limit = torch.zeros((), dtype=self._dtype)

    def settle(self, optimizer: torch.optim.Optimizer, clip_norm: float | None) -> None:
        """Takes over the options and states that the optimizer has now."""
        for parameter, mine in zip(self._parameters, self._states, strict=True):
            state = optimizer.state[parameter]
            for name, tensor in mine.items():
                if (other := state.get(name)) is not tensor:
                    tensor.zero_() if other is None else tensor.copy_(other)
                    state[name] = tensor
            if self._formula.in_python:
                state.setdefault("step", 0)
        self.fill(optimizer)
        if clip_norm is not None:
            self._limit.fill_(clip_norm)

    def fill(self, optimizer: torch.optim.Optimizer) -> None:
        """Takes over the options that the optimizer has now, and what it counts in Python."""
        tables = self._tables(optimizer)
        for tensor, table, filled in zip((self._numbers, self._rates, self._steps), tables, self._filled, strict=False):
            if table != filled:
                tensor.copy_(torch.tensor(table, dtype=tensor.dtype))
        self._filled = tables

    def passed(self, optimizer: torch.optim.Optimizer, trained: Sequence[Tensor]) -> None:
        """Does in Python what the optimizer does there at a step of these parameters, once a graph took it."""
        if self._formula.in_python:
            for group in optimizer.param_groups:
                group["lr"] *= group["lrd"]
            for parameter in trained:
                optimizer.state[parameter]["step"] += 1
            self.fill(optimizer)

    def _tables(self, optimizer: torch.optim.Optimizer) -> list[list[Any]]:
        """The numbers and the rates of each group, and how many steps each parameter has had, where Python counts."""
        groups = optimizer.param_groups
        tables: list[list[Any]] = [
            [of(group) for group in groups] for of in (self._formula.numbers, self._formula.rates)
        ]
        if self._formula.in_python:
            tables.append([float(optimizer.state[p].get("step", 0)) for p in self._parameters])
        return tables

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
        numbers = [row.unbind() for row in self._numbers.unbind()]
        of_each = self._rates[torch.tensor(self._group_of)].unbind(1)
        paces = [pace.to(self._dtype) for pace in self._formula.paces(of_each, self._steps.double() + 1)]
        counts = [0.0] * len(self._parameters)
        for parameter, gradient in zip(trained, gradients, strict=True):
            i = self._places[id(parameter)]
            group, counts[i] = self._group_of[i], 1.0
            clipped, pace = gradient if share is None else gradient * share, [column[i] for column in paces]
            self._formula.update(parameter, clipped, self._states[i], numbers[group], pace, self._flags[group])
        if not self._formula.in_python:
            self._steps.add_(torch.tensor(counts))

    def written(self) -> list[tuple[str, Tensor, Tensor]]:
        """What a step writes to: what it is, of which parameter, and the tensor."""
        found: list[tuple[str, Tensor, Tensor]] = [("value", parameter, parameter) for parameter in self._parameters]
        for parameter, state in zip(self._parameters, self._states, strict=True):
            found += [(name, parameter, tensor) for name, tensor in state.items()]
        return found

    def _new_state(self, place: int, state: dict[str, Any]) -> dict[str, Tensor]:
        """The tensors of a parameter's state: those that there are, or zeros; the counts of all steps lie in one."""
        parameter, found = self._parameters[place], dict[str, Tensor]()
        for name in self._formula.states(self._flags[self._group_of[place]]):
            old = state.get(name)
            if isinstance(old, Tensor) and (old.shape, old.dtype) == (parameter.shape, parameter.dtype):
                found[name] = old
            else:
                found[name] = torch.zeros_like(parameter, requires_grad=False)
        return found | ({"step": self._steps[place]} if "step" in found else {})


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
    """Whether there is a formula for what an optimizer does, and its parameters are few, and such as it is for."""
    formula = FORMULAS.get(type(optimizer))
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    return (
        formula is not None
        and count <= MAX_PARAMETERS
        and all(
            formula.flags(group) is not None and all(map(_is_plain, group["params"]))
            for group in optimizer.param_groups
        )
    )


def _is_plain(parameter: Tensor) -> bool:
    """Whether a parameter is on the CPU, of full precision, and no two of its elements share memory."""
    return parameter.is_cpu and is_dense(parameter) and parameter.dtype in (torch.float32, torch.float64)
