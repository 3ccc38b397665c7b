"""`pyro.optim` objects: an optimizer for each parameter, as Pyro has it, and one that takes the steps of all of them.

The optimizers that the object made stay what they are: their options and states are what `get_state`, `save`,
`optim_objs` and schedulers show and set, also between two SVIs that share the object. Where torch has a fused kernel
for their kind, and for `ClippedAdam`, one more refers to the same states, and steps them all by one call.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from pyro.optim import PyroOptim
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor

from ppvae._internals import hooked_steps, make_optimizer, note_step, parameters_named, steps_as_pyro_does
from ppvae.infer.fused import fuses


class PyroOptimizers:
    """The optimizers of a `pyro.optim` object.

    Args:
        optim: the object. It learns the names of parameters that are on modules, and not in Pyro's store.
    """

    def __init__(self, optim: PyroOptim) -> None:
        self._optim: Any = optim
        self._known: _Known = vars(optim).setdefault("_ppvae_known", _Known())
        vars(optim).setdefault("get_state", partial(_named_state, optim))
        self._joint: torch.optim.Optimizer | None = None
        self._options: list[dict[str, Any]] = []
        self._states: list[dict[str, Any]] = []

    def complete(self, parameters: Sequence[Tensor]) -> None:
        """Gives a gradient of zero to the parameters that have none but had one before: their momentum goes on."""
        for parameter in parameters:
            if parameter.grad is not None:
                self._known.trained.add(parameter)
            elif parameter in self._known.trained:
                parameter.grad = torch.zeros_like(parameter)

    def joint(
        self, parameters: Sequence[Tensor], named: Callable[[], Sequence[tuple[str, Tensor]]]
    ) -> torch.optim.Optimizer | None:
        """One optimizer with the options and states of these parameters as they are now; makes what is missing.

        Args:
            parameters: which.
            named: gives all parameters with their names in Pyro.

        Returns:
            None where each parameter is to step on its own: there is no fused kernel, or something else was asked for.
        """
        if not steps_as_pyro_does(self._optim):
            self._known.names |= {p: name for name, p in named()}
            return None
        if any(p not in self._optim.optim_objs for p in parameters):
            self._known.names |= {p: name for name, p in named()}
            for parameter in parameters:
                if parameter not in self._optim.optim_objs:
                    make_optimizer(self._optim, parameter, self._known.names[parameter])
        optimizers = [_plain(self._optim.optim_objs[p]) for p in parameters]
        sparse = any(p.grad is not None and p.grad.is_sparse for p in parameters)
        if not optimizers or sparse or any(map(hooked_steps, optimizers)):
            return None
        options = [optimizer.param_groups[0] for optimizer in optimizers]
        states = [optimizer.state[p] for optimizer, p in zip(optimizers, parameters, strict=True)]
        if options != self._options or not all(map(operator.is_, states, self._states)):
            fused = all(fuses(optimizer, [p]) for optimizer, p in zip(optimizers, parameters, strict=True))
            joins = fused or all(type(optimizer) is ClippedAdam for optimizer in optimizers)
            self._joint = _joined(type(optimizers[0]), parameters, options, states, fused) if joins else None
            self._options, self._states = [dict(group) for group in options], states
        return self._joint

    def clips(self, parameters: Sequence[Tensor]) -> bool:
        """Whether the object was asked to clip the gradient of any."""
        return any(self._optim.grad_clip[parameter] is not None for parameter in parameters)

    def clip(self, parameters: Sequence[Tensor]) -> None:
        """Clips the gradient of each parameter as the object was asked to."""
        for parameter in parameters:
            if (clip := self._optim.grad_clip[parameter]) is not None:
                clip(parameter)

    def stepped(self, parameters: Sequence[Tensor]) -> None:
        """Lets schedulers know that the steps were taken, and each optimizer the learning rate after its own."""
        optimizers = [_plain(self._optim.optim_objs[parameter]) for parameter in parameters]
        for optimizer in optimizers:
            note_step(optimizer)
        if isinstance(self._joint, ClippedAdam):  # a step of it lets the learning rate decay
            rates = {p: group["lr"] for group in self._joint.param_groups for p in group["params"]}
            for parameter, optimizer, options in zip(parameters, optimizers, self._options, strict=True):
                optimizer.param_groups[0]["lr"] = options["lr"] = rates[parameter]

    def step(self, parameters: Sequence[Tensor]) -> None:
        """Takes the step as Pyro does."""
        with parameters_named(self._known.names):
            self._optim(parameters)


@dataclass
class _Known:
    """What a `pyro.optim` object is told of parameters: their names, and which ever had a gradient."""

    names: dict[Tensor, str] = field(default_factory=dict)
    trained: set[Tensor] = field(default_factory=set)


def _named_state(optim: Any) -> dict[str, Any]:
    """What `PyroOptim.get_state` gives, also for parameters that are not in Pyro's store."""
    with parameters_named(vars(optim)["_ppvae_known"].names):
        state: dict[str, Any] = type(optim).get_state(optim)
    return state


def _plain(optimizer: Any) -> Any:
    """The optimizer itself, of one inside a scheduler."""
    return getattr(optimizer, "optimizer", optimizer)


def _joined(
    kind: type, parameters: Sequence[Tensor], options: list[dict[str, Any]], states: list[dict[str, Any]], fused: bool
) -> torch.optim.Optimizer:
    """One optimizer, where that can be fused, with these options and states, in groups of equal options."""
    groups: list[dict[str, Any]] = []
    for parameter, option, state in zip(parameters, options, states, strict=True):
        own = {**option, "params": [], **({"fused": True} if fused else {})}
        group = next((g for g in groups if {**g, "params": []} == own), own)
        if group is own:
            groups.append(group)
        group["params"].append(parameter)
        if isinstance(state.get("step"), Tensor):  # a file may have it where a step that is not fused wants it
            state["step"] = state["step"].to(parameter.device, torch.float32)
    joint: torch.optim.Optimizer = kind(list(parameters))
    joint.param_groups = groups
    joint.state = defaultdict(dict, zip(parameters, states, strict=True))
    return joint
