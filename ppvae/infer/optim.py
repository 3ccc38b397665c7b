"""Between the gradient and the parameters: a hook, clipping, and one torch optimizer for all of them."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor

from ppvae._internals import has_gradient_hooks, hooked_steps, note_step
from ppvae._validate import check_number, check_takes
from ppvae.infer.arithmetic import Arithmetic, is_known, signature
from ppvae.infer.fused import align, fuses
from ppvae.infer.pyro_optim import PyroOptimizers
from ppvae.objectives.schedule import Schedule, as_schedule
from ppvae.processes import sum_gradients

OptimizerFactory = Callable[[Iterable[Any]], torch.optim.Optimizer]
"""From parameters, or groups of them, to a torch optimizer, e.g. `partial(torch.optim.Adam, lr=1e-3)`."""

ParamGroups = Mapping[str, Mapping[str, Any]]
"""Options of the optimizer by patterns of parameters' names: `{"*.bias": {"weight_decay": 0.0}}`. A parameter has those
of every pattern that it matches (as file names do: `*`, `?`, `[ab]`); where two differ the later counts."""

OnGradients = Callable[[Sequence[Tensor]], None]
"""Is given the parameters, their gradients in place, before these are clipped."""

Named = Sequence[tuple[str, Tensor]]
"""Parameters with their names, in a fixed order."""


class Stepper:
    """The one place where gradients that are there become a step: a hook on them, clipping, the optimizer.

    Eager and compiled steps go through it, and so does what a CUDA graph records.

    Args:
        optim: a function from parameters to a torch optimizer, or a `pyro.optim` object, whose optimizers one torch
            optimizer steps. Where torch has a fused kernel, and nothing else was asked for, it is used.
        clip_norm: the gradient is scaled down to this global norm where it is longer.
        param_groups: options by names of parameters; "lr" may be a schedule.
        on_gradients: is called before clipping: a collective among processes, gradients that are looked at.
        capturable: make the step one that a CUDA graph can hold, where the optimizer can and its parameters are on a
            GPU: its learning rate is then a tensor there.

    Attributes:
        optimizer: the torch optimizer, once it is made.
        inside: the next step as operations that a graph can hold; None where the optimizer is to take it itself.

    Raises:
        TypeError: where `optim` cannot be called, or is an object of Pyro's together with `param_groups`.
    """

    def __init__(
        self,
        optim: OptimizerFactory | PyroOptim,
        clip_norm: float | None = None,
        *,
        param_groups: ParamGroups | None = None,
        on_gradients: OnGradients | None = None,
        capturable: bool,
    ) -> None:
        if not callable(optim):
            raise TypeError(f"optim must be a function from parameters to an optimizer, got {optim!r}")
        if on_gradients is not None:
            check_takes("on_gradients", on_gradients, "parameters")
        self.clip_norm = None if clip_norm is None else check_number("clip_norm", clip_norm, above=0)
        self.param_groups = check_groups(param_groups)
        self.on_gradients = on_gradients
        self.optimizer: torch.optim.Optimizer | None = None
        self._optim: Any = optim
        self._pyro = PyroOptimizers(optim) if isinstance(optim, PyroOptim) else None
        if self.param_groups and self._pyro is not None:
            raise TypeError("param_groups go with torch optimizers: an object of pyro.optim takes a function of names")
        self._capturable = capturable
        self._own_rates: list[Schedule | None] = []
        self._rates: list[Tensor] = []
        self._joined: Sequence[Tensor] = ()
        self._arithmetic: Arithmetic | None = None
        self._signature: Any = None
        self._is_right = True
        self._parts = self._missing = 1
        self._sums: dict[int, Tensor] = {}
        self.inside: Arithmetic | None = None

    def prepare(self, named: Named) -> None:
        """Makes the optimizer.

        Raises:
            TypeError: where `optim` gives no torch optimizer.
            ValueError: where there is nothing to train, or a pattern of `param_groups` matches no parameter.
        """
        if self._pyro is not None:
            self._join(lambda: named, [parameter for _, parameter in named])
            return
        if not named:
            raise ValueError(
                "there is nothing to train: the pair has no parameter that requires a gradient (networks that plain "
                "functions use are named by Pair(model, guide, modules=[net]))"
            )
        self._check_patterns(named)
        groups = self._groups(named)
        try:
            optimizer = self._optim(groups if self.param_groups else [parameter for _, parameter in named])
        except (TypeError, ValueError) as error:
            raise type(error)(f"optim makes no optimizer of the parameters: {error}") from error
        _check_optimizer(optimizer)
        self.optimizer = optimizer
        self._settle()

    def add(self, named: Named) -> None:
        """Adds the parameters that the optimizer does not have yet."""
        if self.optimizer is not None and self._pyro is None:
            known = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
            if new := [(name, p) for name, p in named if id(p) not in known]:
                for group in self._groups(new):
                    self.optimizer.add_param_group(group)
                self._settle()

    def expect(self, parts: int) -> None:
        """Lets the next step wait for as many gradients, those of a minibatch's parts, and drops what waits already."""
        self._parts = self._missing = parts
        self._sums.clear()

    def step(self, named: Callable[[], Named], parameters: Sequence[Tensor]) -> None:
        """Takes the step from the gradients on the parameters; where more are expected, these are put by.

        Args:
            named: gives the parameters with their names, where the optimizer is yet to be made: with those that they
                have in Pyro where `optim` is an object of Pyro's.
            parameters: the same parameters.
        """
        if self._parts > 1 and not self._summed(parameters):
            return
        if self.on_gradients is not None:
            self.on_gradients(parameters)
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        if self._pyro is not None:
            self._join(named, parameters)
        elif self.optimizer is None:
            self.prepare(named())
        self._take_step(parameters)
        for parameter in parameters:
            parameter.grad = None  # what optimizer.zero_grad() does, without its bookkeeping

    @torch.no_grad()
    def _summed(self, parameters: Sequence[Tensor]) -> bool:
        """Adds a part's gradients to those before it; whether all have come, and their sums are on the parameters."""
        for parameter in parameters:
            if (gradient := parameter.grad) is not None:
                before = self._sums.get(id(parameter))
                # A copy: the next replay of a recorded gradient writes over this one.
                self._sums[id(parameter)] = gradient.clone() if before is None else before.add_(gradient)
                parameter.grad = None
        self._missing -= 1
        if self._missing:
            return False
        for parameter in parameters:
            parameter.grad = self._sums.get(id(parameter))
        self.expect(self._parts)
        return True

    def settled(self, named: Callable[[], Named], parameters: Sequence[Tensor]) -> Arithmetic | None:
        """The next step as operations on tensors, with the options and states of now: `inside`."""
        self.inside = None
        if self._steps_alone(named, parameters):
            return None
        assert self.optimizer is not None
        clips = self.clip_norm is not None
        if (now := signature(self.optimizer, clips=clips)) != self._signature:
            self._signature = now
            self._arithmetic = Arithmetic(self.optimizer, clips=clips) if is_known(self.optimizer) else None
        if self._arithmetic is not None:
            self._arithmetic.settle(self.optimizer, self.clip_norm)
        self.inside = self._arithmetic
        return self.inside

    def _steps_alone(self, named: Callable[[], Named], parameters: Sequence[Tensor]) -> bool:
        """Whether something happens between gradients and parameters that only the optimizer's own step does."""
        if self._parts > 1 or not self._is_right or self.on_gradients is not None:
            return True
        if any(map(has_gradient_hooks, parameters)):
            return True
        if self._pyro is not None:
            self._join(named, parameters)
        elif self.optimizer is None:
            self.prepare(named())
        if self.optimizer is None or hooked_steps(self.optimizer):
            return True
        return self._pyro is not None and self._pyro.clips(parameters)

    def distrust(self) -> None:
        """Lets the optimizer take every step itself: `inside` was found to differ from it."""
        self.inside, self._is_right = None, False

    def taken(self, trained: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
        """Does what is left to do of a step of some of the parameters that a graph took, and lets schedules know."""
        assert self.optimizer is not None
        assert self.inside is not None
        note_step(self.optimizer)
        self.inside.passed(self.optimizer, trained)
        if self._pyro is not None:
            self._pyro.stepped(parameters)

    @contextmanager
    def counts_kept(self, parameters: Sequence[Tensor]) -> Iterator[None]:
        """Puts back what Python counts of a step inside: learning rates, and numbers among the states."""
        assert self.optimizer is not None
        rates = [group["lr"] for group in self.optimizer.param_groups]
        numbers = [
            (state, {name: value for name, value in state.items() if not isinstance(value, Tensor)})
            for state in self.optimizer.state.values()
        ]
        yield
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        for state, before in numbers:
            state |= before
        if self._pyro is not None:
            self._pyro.stepped(parameters)

    def complete(self, parameters: Sequence[Tensor]) -> None:
        """Gives parameters that were met without a gradient the one that they have in Pyro, if its object is used."""
        if self._pyro is not None:
            self._pyro.complete(parameters)

    def set_rates(self, epoch: float, schedule: Schedule | None) -> None:
        """Sets the learning rates of a time in epochs: of `schedule`, but for groups with an `lr` of their own."""
        assert self.optimizer is not None
        rates = [own or schedule for own in self._own_rates]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if rate is not None:
                group["lr"] = rate(epoch)
        if self.inside is not None and any(rates):
            self.inside.fill(self.optimizer)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads the optimizer's state, also one that was saved where another device trained."""
        assert self.optimizer is not None
        for group, own in zip(state["param_groups"], self.optimizer.param_groups, strict=False):
            group |= {"fused": True} if own.get("fused") else {}  # its state then lies where the kernel wants it
        on_gpu = all(p.is_cuda for group in self.optimizer.param_groups for p in group["params"])
        records = self._records
        for group in state["param_groups"]:
            if "capturable" in group and group["capturable"] != records and (records or not on_gpu):
                group |= {"capturable": records, "lr": float(group["lr"])}
        self.optimizer.load_state_dict(state)
        self._settle()

    def held(self, trained: Sequence[Tensor]) -> Held | None:
        """What a recorded step takes for granted; None where the step cannot be recorded."""
        if self._pyro is not None and self.optimizer is not None:
            self._join(list, self._joined)
        optimizer = self.optimizer
        if optimizer is None or hooked_steps(optimizer) or self._parts > 1 or self.on_gradients is sum_gradients:
            return None  # a sum over parts, or a collective, is not recorded
        groups, states = optimizer.param_groups, [optimizer.state.get(p, {}) for p in trained]
        if not all(group.get("capturable") for group in groups) or not all(states):
            return None  # a state that does not exist yet would be made anew at every replay
        self._settle_rates()
        options = [{name: option for name, option in group.items() if name != "params"} for group in groups]
        objects = [self.on_gradients, *(value for state in states for value in state.values())]
        return Held(objects, [self.clip_norm, *options])

    def _groups(self, named: Named) -> list[dict[str, Any]]:
        """The parameters as groups of equal options, and what learning rates of their own these have."""
        groups: list[dict[str, Any]] = []
        for name, parameter in named:
            own: dict[str, Any] = {}
            for pattern, options in self.param_groups.items():
                own |= options if fnmatchcase(name, pattern) else {}
            group = next((g for g in groups if {k: v for k, v in g.items() if k != "params"} == own), None)
            if group is None:
                groups.append(group := {**own, "params": []})
            group["params"].append(parameter)
        for group in groups:
            own_rate = as_schedule(group["lr"], name="lr of param_groups") if "lr" in group else None
            self._own_rates.append(own_rate)
            group |= {} if own_rate is None else {"lr": own_rate(0.0)}
        return groups

    def _check_patterns(self, named: Named) -> None:
        for pattern in self.param_groups:
            if not any(fnmatchcase(name, pattern) for name, _ in named):
                names = [name for name, _ in named]
                raise ValueError(f"param_groups[{pattern!r}] matches none of the parameters {names}")

    def _join(self, named: Callable[[], Named], parameters: Sequence[Tensor]) -> None:
        """Brings the optimizer that steps those of a `pyro.optim` object up to date with them."""
        assert self._pyro is not None
        joint = self._pyro.joint(parameters, named)
        if joint is not self.optimizer:
            self.optimizer, self._joined = joint, parameters
            if joint is not None:
                self._settle()

    def _take_step(self, parameters: Sequence[Tensor]) -> None:
        if self.optimizer is None:
            assert self._pyro is not None
            self._pyro.step(parameters)
            return
        if self._pyro is not None:
            self._pyro.clip(parameters)
        align(self.optimizer)
        self._settle_rates()
        self.optimizer.step()
        if self._pyro is not None:
            self._pyro.stepped(parameters)

    @property
    def _records(self) -> bool:
        """Whether a GPU's graph is to hold the step."""
        assert self.optimizer is not None
        return self._capturable and all(p.is_cuda for group in self.optimizer.param_groups for p in group["params"])

    def _settle(self) -> None:
        """Takes the fused kernel where there is one, and lets a GPU's graph hold the step where the optimizer can."""
        assert self.optimizer is not None
        records = self._records
        fused = fuses(self.optimizer, [p for group in self.optimizer.param_groups for p in group["params"]])
        for group in self.optimizer.param_groups:
            group |= {"fused": True} if fused else {}
            group |= {"capturable": True} if records and "capturable" in group else {}
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


def check_groups(groups: Any) -> dict[str, Mapping[str, Any]]:
    """The options by names of parameters, checked to be such.

    Raises:
        TypeError: where they are not.
    """
    if not isinstance(groups, Mapping | None):
        raise TypeError(f"param_groups must be a dict from patterns of names to options, got {groups!r}")
    for pattern, options in (groups or {}).items():
        if not isinstance(pattern, str) or not isinstance(options, Mapping):
            raise TypeError(f"param_groups must map patterns of names to dicts, got {pattern!r}: {options!r}")
    return dict(groups or {})


def _check_optimizer(optimizer: Any) -> None:
    """Checks that this is an optimizer, and one whose step asks for nothing but gradients."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optim must return a torch.optim.Optimizer, got {type(optimizer).__name__}")
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(
            f"optim {type(optimizer).__name__} evaluates the loss several times at a step, which stochastic gradients "
            "do not allow: take one that steps from a gradient, such as torch.optim.Adam"
        )


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
