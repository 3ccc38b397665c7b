"""The optimizer's side of a step: one torch optimizer for all parameters, or a Pyro optimizer as it is."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

OptimizerFactory = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
"""From parameters to a torch optimizer, e.g. `partial(torch.optim.Adam, lr=1e-3)`."""


class Stepper:
    """Clips gradients, steps the optimizer and clears the gradients.

    Args:
        optim: a function from parameters to a torch optimizer, or a `pyro.optim` object. A plain one of these becomes
            one torch optimizer.
        clip_norm: the gradient is scaled down to this global norm where it is longer.
        capturable: make the step one that a CUDA graph can hold, where the optimizer can and its parameters are on a
            GPU: its learning rate is then a tensor there.

    Attributes:
        optimizer: the torch optimizer, once it is made.

    Raises:
        TypeError: where `optim` cannot be called.
    """

    def __init__(self, optim: OptimizerFactory | PyroOptim, clip_norm: float | None, *, capturable: bool) -> None:
        if not callable(optim):
            raise TypeError(f"optim must be a function from parameters to an optimizer, got {optim!r}")
        self.clip_norm = clip_norm
        self.optimizer: torch.optim.Optimizer | None = None
        self._optim: Any = one_optimizer(optim)
        self._capturable = capturable
        self._rates: list[Tensor] = []

    def prepare(self, parameters: Sequence[Tensor]) -> None:
        """Makes the optimizer.

        Raises:
            TypeError: where `optim` gives no torch optimizer.
            ValueError: where there is nothing to train.
        """
        if isinstance(self._optim, PyroOptim):
            return
        if not parameters:
            raise ValueError("there is nothing to train: the pair has no parameter that requires a gradient")
        self.optimizer = self._optim(parameters)
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            raise TypeError(f"optim must return a torch.optim.Optimizer, got {type(self.optimizer).__name__}")
        self._capturable = self._capturable and all(parameter.is_cuda for parameter in parameters)
        self._settle()

    def add(self, parameters: Iterable[Tensor]) -> None:
        """Adds the parameters that the optimizer does not have yet."""
        if self.optimizer is not None:
            known = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
            if new := [p for p in parameters if id(p) not in known]:
                self.optimizer.add_param_group({"params": new})
                self._settle()

    def step(self, parameters: Sequence[Tensor]) -> None:
        """Takes the step from the gradients on the parameters."""
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        if isinstance(self._optim, PyroOptim):
            self._optim(parameters)
            pyro.infer.util.zero_grads(parameters)
            return
        if self.optimizer is None:
            self.prepare(parameters)
        assert self.optimizer is not None
        self._settle_rates()
        self.optimizer.step()
        for parameter in parameters:
            parameter.grad = None  # what optimizer.zero_grad() does, without its bookkeeping

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads the optimizer's state, also one that was saved where another device trained."""
        assert self.optimizer is not None
        on_gpu = all(p.is_cuda for group in self.optimizer.param_groups for p in group["params"])
        for group in state["param_groups"]:
            if "capturable" in group and group["capturable"] != self._capturable and (self._capturable or not on_gpu):
                group |= {"capturable": self._capturable, "lr": float(group["lr"])}
        self.optimizer.load_state_dict(state)
        self._settle()

    def held(self, trained: Sequence[Tensor]) -> Held | None:
        """What a recorded step takes for granted; None where the step cannot be recorded."""
        optimizer = self.optimizer
        if optimizer is None or optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
            return None
        if _global_optimizer_pre_hooks or _global_optimizer_post_hooks:
            return None
        groups, states = optimizer.param_groups, [optimizer.state.get(p, {}) for p in trained]
        if not all(group.get("capturable") for group in groups) or not all(states):
            return None  # a state that does not exist yet would be made anew at every replay
        self._settle_rates()
        options = [{name: option for name, option in group.items() if name != "params"} for group in groups]
        return Held([value for state in states for value in state.values()], [self.clip_norm, *options])

    def _settle(self) -> None:
        """Lets a GPU's graph hold the step, where the optimizer can."""
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            if self._capturable and "capturable" in group:
                group["capturable"] = True
        self._settle_rates()

    def _settle_rates(self) -> None:
        """Puts learning rates that were set since into the tensors that a graph refers to."""
        assert self.optimizer is not None
        for i, group in enumerate(self.optimizer.param_groups):
            if i == len(self._rates) and group.get("capturable"):
                self._rates.append(torch.empty((), device=group["params"][0].device))
            if i < len(self._rates) and group["lr"] is not self._rates[i]:
                self._rates[i].fill_(float(group["lr"]))
                group["lr"] = self._rates[i]


class Held:
    """Objects and options that a recorded step refers to.

    Args:
        objects: compared by identity.
        options: compared by value.
    """

    def __init__(self, objects: list[Any], options: list[Any]) -> None:
        self.objects = objects
        self.options = options

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Held)
            and len(self.objects) == len(other.objects)
            and all(map(operator.is_, self.objects, other.objects))
            and self.options == other.options
        )


def one_optimizer(optim: Any) -> Any:
    """A plain `pyro.optim` object as one torch optimizer; any other as it is."""
    plain = type(optim) is PyroOptim and isinstance(optim.pt_optim_args, dict)
    if plain and not optim.pt_clip_args and not optim._state_waiting_to_be_consumed:
        return partial(optim.pt_optim_constructor, **optim.pt_optim_args)
    return optim
