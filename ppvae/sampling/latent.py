"""Values of latents, in the two forms in which a pair is run, and how a model is given those of its guide."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from ppvae.pair import Running, same_shape, shown_plates
from ppvae.sampling.support import within_support
from ppvae.traces import carrying, vectorized

SAMPLES = "_samples"
"""Name of the outer plate."""


@dataclass(frozen=True)
class Latent:
    """Values of a latent site, shape (s, *plates, n, *event), whatever form the pair was run in.

    Attributes:
        value: the values.
        event_dim: how many dims the event has.
        plate_dims: how many of the dims of `plates` the site needs itself; further ones on the left are the places,
            of size 1, of plates that others lie in.
        plates: that the guide has drawn them in; empty where that is not known.
    """

    value: Tensor
    event_dim: int
    plate_dims: int
    plates: tuple[CondIndepStackFrame, ...] = ()

    @classmethod
    def of_all(cls, value: Tensor, event_dim: int, s: int) -> Latent:
        """The same value (*plates, n, *event) in each of `s` samples."""
        return cls(value.expand(s, *value.shape), event_dim, value.dim() - 1 - event_dim)

    @property
    def data_dim(self) -> int:
        """Where the data lie."""
        return self.value.dim() - 1 - self.event_dim

    def data(self, index: slice) -> Latent:
        """The values of some of the data."""
        before = (slice(None),) * self.data_dim
        return replace(self, value=reshaped(self.value, lambda value: value[(*before, index)]))

    def folded(self) -> Tensor:
        """The values with the samples repeated along the data: (*plates, s·n, *event)."""
        dim, right = self.data_dim, 1 + self.event_dim + self.plate_dims

        def fold(value: Tensor) -> Tensor:
            value = value.movedim(0, dim - 1).flatten(dim - 1, dim)
            return value.flatten(0, max(0, value.dim() - right))  # without others' places

        return reshaped(self.value, fold)

    def plated(self, plate_dim: int) -> Tensor:
        """The values with the samples at `plate_dim` of the batch: (s, *plates, n, *event)."""
        places = max(0, -plate_dim - (self.value.dim() - self.event_dim))  # of plates that this site does not lie in
        return reshaped(self.value, lambda value: value[(slice(None), *[None] * places)] if places else value)


Which = Literal["model", "guide", "reverse"]
"""The functions of a pair."""


class Replay(Running):
    """Gives latent sites the values in `values`, in a model others where these lie outside the support.

    Its trace then says where: no value outside the support of a prior has a density, see `ppvae.sampling.support`.

    Args:
        which: the function that runs inside.
        values: by site.
        drawn: the guide's draws among them: in a model the plates must be the same.
    """

    def __init__(self, which: Which, values: dict[str, Tensor], drawn: dict[str, Latent]) -> None:
        super().__init__("guide" if which == "guide" else "model")
        self.values = values
        self.drawn = drawn if which == "model" else None

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if not msg["is_observed"] and name in self.values:
            value = self.values[name]
            if self.drawn is not None:
                if name in self.drawn:
                    _check_plates(msg, self.drawn[name], value.shape)
                value, msg["outside"] = within_support(msg["fn"], value)
            msg["value"], msg["done"] = value, True


def reshaped(value: Tensor, reshape: Callable[[Tensor], Tensor]) -> Tensor:
    """A value in another shape, with what it carries besides its numbers."""
    return carrying(reshape(value), value, reshape)


def _check_plates(msg: Any, latent: Latent, shape: torch.Size) -> None:
    """Checks that the model draws a latent in the shape and the plates that the guide has drawn it in.

    A value that lacks an inner plate of the model would be broadcast over it: a number of another model.

    Args:
        msg: of the model's statement.
        latent: the guide's value.
        shape: that it has here.

    Raises:
        ValueError: naming the latent, and its plates in both.
    """
    ours, wanted = own_plates(msg["cond_indep_stack"]), msg["fn"].shape()
    depth = max((-frame.dim for frame in vectorized(msg["cond_indep_stack"])), default=0)
    wanted = wanted[max(0, len(wanted) - msg["fn"].event_dim - depth) :]  # values side by side lie left of all plates
    # A sampler's outer plate expands no site whose value is given.
    same = same_shape(shape, wanted) or same_shape(latent.value.shape[1:], wanted)
    dims = {plate.name: plate.dim for plate in ours}
    moved = any(plate.dim != dims.get(plate.name, plate.dim) for plate in latent.plates)
    if not any(plate.dim == -1 for plate in ours):
        return  # no data plate, which is said elsewhere
    if moved or not same or latent.event_dim != msg["fn"].event_dim:
        raise ValueError(
            f"the latent {msg['name']!r} is drawn in other plates in the guide than in the model: in the guide its "
            f"shape is {tuple(shape)} in {shown_plates(latent.plates)}, in the model {tuple(wanted)} in "
            f"{shown_plates(ours)}; event dims {latent.event_dim} and {msg['fn'].event_dim}"
        )


def own_plates(stack: Iterable[CondIndepStackFrame]) -> tuple[CondIndepStackFrame, ...]:
    """The plates of a pair's own, the vectorized ones."""
    return tuple(frame for frame in vectorized(stack) if frame.name != SAMPLES)
