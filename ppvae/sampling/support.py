"""Draws of a guide outside the support of a latent's prior: they are found, and the model goes on from another value.

p(z) is zero there, whatever a family's formula says, and with it the weight p(x, z) / q(z|x). What the model makes of
such a z (the rate of a Poisson, say) may not even exist, so that it is given one that is possible in its place.

Likewise p(x|z) is zero where a latent moves the support of x away from the datum: x ~ Uniform(0, z) at a z below x.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from pyro.distributions import SineBivariateVonMises, SineSkewed, TransformedDistribution, VonMises
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints
from torch.distributions.transforms import ComposeTransform, IndependentTransform

from ppvae.traces import carrying, leaf, site_of, sites

SIMPLEX_ROUNDING = 1e-4
"""How far from one the sum of a point of a simplex may be: it is rounded, and torch's 1e-6 is for few elements."""

_CIRCLE = constraints.interval(-math.pi - 1e-6, math.pi + 1e-6)
"""Where angles are drawn, but for rounding: Pyro's families of them call every real number their support."""

_EVERYTHING = tuple(type(base) for base in (constraints.real, constraints.dependent))
"""Supports that hold every draw, or that are not known."""


class _Image(constraints.Constraint):
    """What transforms make of a bounded support, where torch takes all of their codomain: an exponential, shifted."""

    is_discrete = False

    def __init__(self, family: TransformedDistribution, base: Any) -> None:
        self.base, self.transforms, self.event_dim = base, family.transforms, family.event_dim
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Which values lie in it."""
        inside = self.base.check(self.origin(value))
        dims = self.event_dim - self.base.event_dim
        return inside.flatten(-dims).all(-1) if dims else inside

    def origin(self, value: Tensor) -> Tensor:
        """What was transformed."""
        for transform in reversed(self.transforms):
            value = transform.inv(value)
        return value

    def from_reals(self) -> Transform:
        """The bijection from the reals onto it."""
        base = self.base.from_reals() if isinstance(self.base, _Image) else biject_to(self.base)
        return ComposeTransform([base, *self.transforms])


def within_support(fn: Any, value: Tensor) -> tuple[Tensor, Tensor | None]:
    """Values of a latent that its prior allows.

    Args:
        fn: the prior.
        value: of a guide, (*batch, *event).

    Returns:
        The values, others where they lie outside the support; and where they do, in the shape of the draws of
        `leaf(fn)`, None for a prior whose support has no bounds.
    """
    support = support_of(fn)
    if support is None:
        return value, None
    inside = _contains(support, value)
    place = inside.reshape((*inside.shape, *[1] * support.event_dim))
    point = _point(support, value)
    allowed = value if point is None else torch.where(place, value, point)
    if allowed.shape != value.shape:  # of other plates than the prior's, which is an error elsewhere
        return value, None
    return carrying(allowed, value, lambda extra: extra), ~inside


def support_of(fn: Any) -> Any:
    """The support of a family; None where it is everything, or unknown."""
    family = leaf(fn)
    if isinstance(family, VonMises | SineBivariateVonMises | SineSkewed):
        return constraints.independent(_CIRCLE, family.event_dim)
    if type(family) is TransformedDistribution and all(transform.bijective for transform in family.transforms):
        base = support_of(family.base_dist)
        if base is not None and not base.is_discrete:
            return _Image(family, base)
    try:
        support = family.support
    except (NotImplementedError, AttributeError):
        return None
    return None if isinstance(_base(support), _EVERYTHING) else support


def bounds_of(support: Any) -> list[Tensor]:
    """The tensors that a support is made of, one number for each datum or draw; none where it is always the same."""
    if support is None:
        return []
    if isinstance(support, _Image):
        own = [value for transform in support.transforms for value in vars(transform).values()]
        return [value for value in own if isinstance(value, Tensor) and value.dim()] + bounds_of(support.base)
    return [value for value in vars(_base(support)).values() if isinstance(value, Tensor) and value.dim()]


def moved_by_latents(trace: Trace, again: Callable[[], Trace], times: int) -> tuple[str, ...]:
    """The observed sites whose support depends on latents: its bounds are others at other draws.

    Args:
        trace: of a model on some data.
        again: runs it on these with other latents.
        times: how often that is done, where a support has bounds that may move at all.
    """

    def bounds(trace: Trace) -> dict[str, list[Tensor]]:
        return {name: bounds_of(support_of(site.fn)) for name, site in sites(trace).items() if not site.is_drawn}

    first, found = bounds(trace), set()
    for _ in range(times if any(first.values()) else 0):
        others = bounds(again())
        found |= {name for name in first if not all(map(torch.equal, first[name], others.get(name, [])))}
    return tuple(found)


def to_support(fn: Any, *, turn: bool = False) -> Transform:
    """The bijection from the reals onto the support of a continuous family.

    Args:
        fn: the family.
        turn: whether angles stay within one turn; else they move on all reals, where their density repeats.

    Raises:
        NotImplementedError: where there is none.
    """
    support = support_of(fn)
    if isinstance(support, _Image):
        transform = support.from_reals()
    elif turn and _base(support) is _CIRCLE:
        transform = biject_to(support)
    else:
        support = fn.support
        support = support.base_constraint if isinstance(support, constraints.MixtureSameFamilyConstraint) else support
        return biject_to(support)
    dims = fn.event_dim - transform.codomain.event_dim
    return IndependentTransform(transform, dims) if dims else transform


def score_within(trace: Trace, moved: Collection[str] | None) -> None:
    """Fills in the log-probabilities of what a model observes where latents move its support, −inf outside of it.

    Args:
        trace: of the model.
        moved: the sites of which that is known; None for all whose support is not always the same.
    """
    for name, site in sites(trace).items():
        if site.is_drawn or not (bounds_of(support_of(site.fn)) if moved is None else name in moved):
            continue
        node, shape = trace.nodes[name], torch.broadcast_shapes(site.value.shape, site.fn.shape())
        value, node["outside"] = within_support(site.fn, site.value.expand(shape))
        node["unscaled_log_prob"] = site.fn.log_prob(value)
        node["unscaled_log_prob"] = site_of(node).density()
        node["log_prob"] = scale_and_mask(node["unscaled_log_prob"], scale=node["scale"])
        node["log_prob_sum"] = node["log_prob"].sum()


def _base(support: Any) -> Any:
    """A support without what is wrapped around it."""
    while isinstance(support, constraints.independent | constraints.MixtureSameFamilyConstraint):
        support = support.base_constraint
    return support


def _contains(support: Any, value: Tensor) -> Tensor:
    """Which values lie in a support, without its event dims."""
    if isinstance(support, type(constraints.simplex)):
        return (value >= 0).all(-1) & ((value.sum(-1) - 1).abs() < SIMPLEX_ROUNDING)
    return support.check(value)


def _point(support: Any, value: Tensor) -> Tensor | None:
    """A value in a support, which broadcasts with the others; None where none is known."""
    if getattr(support, "is_discrete", False):
        point = torch.zeros_like(value)
        if isinstance(support, type(constraints.one_hot)):
            point[..., 0] = 1
        low = getattr(support, "lower_bound", 0)
        return point + low if not isinstance(low, Tensor) else point + low.to(value.dtype)
    base = support.base_constraint if isinstance(support, constraints.MixtureSameFamilyConstraint) else support
    try:
        from_reals = support.from_reals() if isinstance(support, _Image) else biject_to(base)
        shape = from_reals.inverse_shape(value.shape)
        return from_reals(value.new_zeros(shape)).to(value.dtype)
    except (NotImplementedError, ValueError, RuntimeError):
        return None
