"""The state of training that a checkpoint holds besides the weights: how far it came, and the random generators."""

from __future__ import annotations

import copy
import math
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm


@dataclass
class Progress:
    """How far training has come; all of it goes into a checkpoint.

    Attributes:
        epoch: epochs finished.
        step: steps finished in the running epoch.
        sums: of each term over the running epoch, and of the data ("data").
        counts: the data whose minibatches had each of these terms: not every one needs to have every site.
        history: the finished epochs.
        best: the best validation ELBO so far.
        best_epoch: the epoch that reached it.
        epoch_rng: the random state with which the running epoch began.
        seconds: spent training, all starts of the run together.
    """

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best: float = -math.inf
    best_epoch: int | None = None
    epoch_rng: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def time(self, step: int, steps_per_epoch: int | None) -> float:
        """The time in epochs at a step, for schedules; whole where the length of an epoch is not known."""
        return self.epoch + (step / steps_per_epoch if steps_per_epoch else 0.0)

    @classmethod
    def of(cls, state: Any, *, source: str) -> Progress:
        """What a checkpoint holds of it; one of an older version holds no time, and no counts: all had every term.

        Raises:
            ValueError: naming what is none of a run's, and the file, which is the source.
        """
        names = set(cls.__dataclass_fields__)
        if not isinstance(state, dict) or not names - {"counts", "seconds"} <= set(state) <= names:
            raise ValueError(f"{source}: progress must hold {sorted(names)}")
        counts = state.get("counts", dict.fromkeys(state["sums"], 1.0) if _is_table(state["sums"]) else {})
        of = cls(**{**state, "counts": counts})
        if "counts" not in state and _is_table(of.sums):
            of.counts = dict.fromkeys(of.sums, of.sums.get("data", 0.0))
        best = of.best_epoch
        right = {
            "epoch": _is_count(of.epoch),
            "step": _is_count(of.step),
            "sums": _is_table(of.sums) and all(map(math.isfinite, of.sums.values())),
            "counts": _is_table(of.counts)
            and _is_table(of.sums)
            and of.counts.keys() == of.sums.keys()
            and all(of.counts.values()),
            "history": isinstance(of.history, list) and all(map(_is_table, of.history)),
            "best": isinstance(of.best, float) and not math.isnan(of.best),
            "best_epoch": best is None or (_is_count(best) and 1 <= best <= len(of.history)),
            "epoch_rng": isinstance(of.epoch_rng, dict),
            "seconds": isinstance(of.seconds, float) and 0 <= of.seconds < math.inf,
        }
        if wrong := [name for name, is_right in right.items() if not is_right]:
            raise ValueError(f"{source}: progress.{wrong[0]} is none of a run's: {getattr(of, wrong[0])!r:.80}")
        if of.epoch != len(of.history):
            raise ValueError(f"{source}: progress.history has {len(of.history)} rows after {of.epoch} epochs")
        return of

    def add_step(self, n: int, terms: dict[str, float]) -> None:
        """Adds the terms of a step on n data: one step at a time, so that an interruption changes no rounding."""
        for name, value in {"data": n, **terms}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0.0) + n

    def means(self) -> dict[str, float]:
        """The mean of each term over the data of the running epoch that have it."""
        return {name: total / self.counts[name] for name, total in self.sums.items() if name != "data"}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _is_table(value: Any) -> bool:
    """Whether these are numbers by name."""
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, int | float) for k, v in value.items())


def check_like(found: Any, expected: Any, name: str) -> None:
    """Checks that nested state has the names, the kinds, and of tensors the dtypes and shapes, of another.

    Raises:
        ValueError: naming what has not.
    """
    if isinstance(expected, Tensor):
        if not isinstance(found, Tensor) or (found.dtype, found.shape) != (expected.dtype, expected.shape):
            raise ValueError(f"{name} must be {_kind(expected)}, got {_kind(found)}")
    elif isinstance(expected, dict):
        if not isinstance(found, dict) or found.keys() != expected.keys():
            names = list(found) if isinstance(found, dict) else _kind(found)
            raise ValueError(f"{name} must hold {list(expected)}, got {names!r:.200}")
        for key, value in expected.items():
            check_like(found[key], value, f"{name}.{key}")
    elif isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            raise ValueError(f"{name} must have {len(expected)} entries, got {found!r:.80}")
        for i, value in enumerate(expected):
            check_like(found[i], value, f"{name}[{i}]")
    elif type(found) is not type(expected):
        raise ValueError(f"{name} must be of type {type(expected).__name__}, got {found!r:.80}")


def check_optimizer_state(state: Any, optimizer: torch.optim.Optimizer) -> None:
    """Checks that a state is one that this optimizer makes: kernels trust its shapes.

    What it makes is seen on a copy that takes a step of gradient zero.

    Raises:
        ValueError: naming what is another: an option, a parameter's moment.
    """
    twin = copy.deepcopy(optimizer)
    for parameter in (p for group in twin.param_groups for p in group["params"]):
        parameter.grad = torch.zeros_like(parameter)
    twin.step()
    made = twin.state_dict()
    if not isinstance(state, dict) or state.keys() != made.keys():
        raise ValueError(f"optimizer must hold {list(made)}")
    _check_options(*_groups(state, made))
    if not isinstance(state["state"], dict) or not state["state"].keys() <= made["state"].keys():
        raise ValueError("optimizer.state must hold moments of the parameters, by their number")
    if made["state"] and not state["state"]:
        raise ValueError("optimizer.state is empty, after steps that have moved parameters")
    for key, moments in state["state"].items():  # a parameter that never had a gradient has none
        check_like(moments, made["state"][key], f"optimizer.state.{key}")


def _check_options(groups: list[dict[str, Any]], of_optimizer: list[dict[str, Any]]) -> None:
    """Checks that groups of parameters have the options of the optimizer, but for the learning rate."""
    free = {"lr", "initial_lr", *_DEVICES_OPTIONS}
    held, own = ([{k: v for k, v in g.items() if k not in free} for g in of] for of in (groups, of_optimizer))
    check_like(held, own, "optimizer.param_groups")
    if held != own:
        raise ValueError(f"optimizer.param_groups has other options than the optimizer: {held} for {own}")
    for i, group in enumerate(groups):
        lr = group.get("lr")
        lr = lr.item() if isinstance(lr, Tensor) and lr.dim() == 0 else lr
        if not isinstance(lr, int | float) or isinstance(lr, bool) or not 0 <= lr < math.inf:
            raise ValueError(f"optimizer.param_groups[{i}].lr must be a number >= 0, got {lr!r:.80}")
        for name in _DEVICES_OPTIONS:
            if not isinstance(group.get(name), bool | None):
                raise ValueError(f"optimizer.param_groups[{i}].{name} must be a bool or None, got {group[name]!r:.80}")


_DEVICES_OPTIONS = ("capturable", "fused", "foreach")
"""Options of an optimizer that another device sets otherwise."""


def _groups(*states: Any) -> list[list[dict[str, Any]]]:
    for state in states:
        groups = state["param_groups"]
        if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
            raise ValueError("optimizer.param_groups must be a list of options by name")
    return [state["param_groups"] for state in states]


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    return f"of type {type(value).__name__}"


def progress_bar(progress: Progress, steps_per_epoch: int | None, epochs: int, *, show: bool) -> Any:
    """A bar over the steps of a run, from where it stands."""
    length = steps_per_epoch or 0
    done = progress.epoch * length + progress.step
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules  # a notebook has a bar of its own
    often = 0.2 if watched else 30.0  # a log file wants few lines
    options: dict[str, Any] = {"disable": not show, "dynamic_ncols": True, "mininterval": often}
    return tqdm(total=length * epochs or None, initial=done, unit="step", **options)


def to_cpu(state: Any) -> Any:
    """A copy of nested state with its tensors on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: to_cpu(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(to_cpu(value) for value in state)
    return state
