"""What makes a step of a compiled gradient: it is taken inside the graph, or after it by the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from ppvae._internals import has_gradient_hooks, put_gradient
from ppvae.compile.arguments import UncompilableError
from ppvae.compile.guards import Same, fingerprint
from ppvae.compile.verification import first_difference
from ppvae.infer.optim import Held, Named, Stepper

_SETTLED = {"max_plate_nesting"}
"""What Pyro's ELBOs set on themselves, at their first run."""


@dataclass(frozen=True)
class StepFromOutputs:
    """Takes the step from the gradients of a compiled graph, where the graph has not taken it; the terms are left.

    The layout of the graph's outputs: the names of the terms, the parameters with a gradient, and the arithmetic of the
    step where the graph holds it.

    Args:
        stepper: takes the step.
        named: gives the parameters, with the names that the optimizer goes by.
        parameters: gives the parameters.
        objective: what is minimised.
    """

    stepper: Stepper
    named: Callable[[], Named]
    parameters: Callable[[], Sequence[Tensor]]
    objective: Any

    def __call__(self, outputs: Sequence[Tensor], layout: Any) -> Sequence[Tensor]:
        """The terms, after the step."""
        names, trained, inside = layout
        if inside is not None:
            self.stepper.taken(trained, self.parameters())
        else:
            self._step(trained, outputs[len(names) :])
        return outputs[: len(names)]

    def held(self, layout: Any) -> Held | None:
        """What a recorded step takes for granted; None where it is not recorded."""
        _, trained, inside = layout
        return None if inside is not None or any(map(has_gradient_hooks, trained)) else self.stepper.held(trained)

    def inside(self, outputs: Sequence[Tensor], layout: Any) -> Any:
        """Takes the step by operations on tensors, where it can; the layout that then says so."""
        names, trained, _ = layout
        inside = self.stepper.inside
        if inside is None or not inside.covers(trained):
            return layout
        inside.take(trained, outputs[len(names) :])
        return names, trained, inside

    @contextmanager
    def in_vain(self) -> Iterator[None]:
        """Puts back what the objective sets on itself inside, and refuses it: no graph would set it at the next step.

        Raises:
            UncompilableError: naming the attribute.
        """
        held = [(vars(part), dict(vars(part)), _seen(part)) for part in _made_of(self.objective)]
        try:
            yield
            for now, (_, _, seen) in zip(map(_seen, _made_of(self.objective)), held, strict=True):
                if now != seen:
                    name = next(name for name in seen | now if name not in now or seen.get(name) != now[name])
                    raise UncompilableError(f"the objective sets its attribute {name!r} at every run")
        finally:
            for attributes, before, _ in held:
                settled = {name: value for name, value in attributes.items() if name in _SETTLED}
                attributes.clear()
                attributes.update(before | settled)

    def written(self) -> list[Tensor]:
        """The tensors that the step inside a graph writes to."""
        inside = self.stepper.inside
        return [] if inside is None else [tensor for _, _, tensor in inside.written()]

    def differs(self, outputs: Sequence[Tensor], layout: Any, before: Sequence[Tensor]) -> str | None:
        """Takes the step of a graph once more, from what was there before, by the optimizer itself, to compare.

        Returns:
            The name of what changed otherwise than in the graph; None where all agree.
        """
        names, trained, inside = layout
        if inside is None:
            return None
        what = inside.written()
        left = [tensor.detach().clone() for _, _, tensor in what]
        found = [new - value for new, value in zip(left, before, strict=True)]
        _put_back(what, before)
        with self.stepper.counts_kept(self.parameters()):
            self._step(trained, [gradient.clone() for gradient in outputs[len(names) :]])
        expected = [tensor.detach() - value for (_, _, tensor), value in zip(what, before, strict=True)]
        called = {id(parameter): name for name, parameter in self.named()}
        difference = first_difference(
            [(f"the step's {name} of", called.get(id(parameter), "a parameter")) for name, parameter, _ in what],
            expected,
            found,
            # A change is rounded as much as the number that changes.
            nudged_once=[a + v.abs() * torch.finfo(v.dtype).eps for a, v in zip(expected, before, strict=True)],
        )
        _put_back(what, left)  # the graph's own numbers, as at every other step: a resumed run has the same
        if difference is not None:
            self.stepper.distrust()
        return difference

    def _step(self, trained: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        for parameter, gradient in zip(trained, gradients, strict=True):
            put_gradient(parameter, gradient)
        self.stepper.step(self.named, self.parameters())


@torch.no_grad()
def _put_back(what: Sequence[tuple[str, Tensor, Tensor]], values: Sequence[Tensor]) -> None:
    for (_, _, tensor), value in zip(what, values, strict=True):
        tensor.copy_(value)


def _made_of(objective: Any) -> list[Any]:
    """An objective and, after it, the ELBOs that it is made of."""
    parts = [objective] if hasattr(objective, "__dict__") else []
    for part in parts:
        held = chain(*(value if isinstance(value, tuple | list) else [value] for value in vars(part).values()))
        parts += [value for value in held if isinstance(value, ELBO) and not any(value is other for other in parts)]
    return parts


def _seen(part: Any) -> dict[str, Any]:
    """What its attributes are, to compare; of ELBOs among them, which they are."""
    return {name: _seen_of(value) for name, value in vars(part).items() if name not in _SETTLED}


def _seen_of(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(map(_seen_of, value))
    return Same(value) if isinstance(value, ELBO) else fingerprint(value)
