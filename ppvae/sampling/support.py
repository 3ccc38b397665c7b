"""Draws of a guide outside the support of a latent's prior: they are found, and the model goes on from another value.

p(z) is zero there, whatever a family's formula says, and with it the weight p(x, z) / q(z|x). What the model makes of
such a z (the rate of a Poisson, say) may not even exist, so that it is given one that is possible in its place.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import SineBivariateVonMises, VonMises
from torch import Tensor
from torch.distributions import biject_to, constraints

from ppvae.traces import carrying, leaf

SIMPLEX_ROUNDING = 1e-4
"""How far from one the sum of a point of a simplex may be: it is rounded, and torch's 1e-6 is for few elements."""

_CIRCLE = constraints.interval(-math.pi - 1e-6, math.pi + 1e-6)
"""Where angles are drawn, but for rounding: Pyro's families of them call every real number their support."""

_EVERYTHING = tuple(type(base) for base in (constraints.real, constraints.dependent))
"""Supports that hold every draw, or that are not known."""


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
    place = inside.reshape(*inside.shape, *[1] * support.event_dim)
    point = _point(support, value)
    allowed = value if point is None else torch.where(place, value, point)
    if allowed.shape != value.shape:  # of other plates than the prior's, which is an error elsewhere
        return value, None
    return carrying(allowed, value, lambda extra: extra), ~inside


def support_of(fn: Any) -> Any:
    """The support of a family; None where it is everything, or unknown."""
    family = leaf(fn)
    if isinstance(family, VonMises | SineBivariateVonMises):
        return constraints.independent(_CIRCLE, family.event_dim)
    try:
        support = family.support
    except (NotImplementedError, AttributeError):
        return None
    base = support
    while isinstance(base, constraints.independent | constraints.MixtureSameFamilyConstraint):
        base = base.base_constraint
    return None if isinstance(base, _EVERYTHING) else support


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
        to_support = biject_to(base)
        shape = to_support.inverse_shape(value.shape)
        return to_support(value.new_zeros(shape)).to(value.dtype)
    except (NotImplementedError, ValueError, RuntimeError):
        return None
