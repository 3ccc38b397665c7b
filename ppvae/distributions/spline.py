"""Autoregressive rational splines without masked assignments, which Pyro's have: the step with them compiles."""

from functools import partial
from typing import Any

import torch
from pyro.distributions.conditional import ConditionalTransformModule
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from torch.nn import functional as F

BOUND = 3.0
LEAST = 1e-3
"""The least width and height of a bin, as a part of all, and the least slope at a knot."""


class AutoregressiveSpline(ConditionalTransformModule):
    r"""Monotonic rational-quadratic splines, the one of each dimension given those before it and a context.

    .. math:: y_i = g(x_i;\, \theta_i(x_{<i}, c)), \qquad g : [-3, 3] \to [-3, 3], \text{ the identity elsewhere}

    Args:
        net: An autoregressive net from x, and a keyword ``context``, to ``(..., 3 B - 1, k)`` for B bins: widths,
            heights and slopes, such as ``pyro.nn.ConditionalAutoRegressiveNN``.

    References:
        Neural Spline Flows (Durkan et al. 2019), arXiv 1906.04032, equations 4 to 8.

    Example:
        >>> from pyro.nn import ConditionalAutoRegressiveNN
        >>> net = ConditionalAutoRegressiveNN(2, 3, [8], param_dims=[3 * 8 - 1])
        >>> transform = AutoregressiveSpline(net).condition(torch.ones(3))
        >>> y = torch.tensor([0.3, -0.5])
        >>> torch.allclose(transform(transform.inv(y)), y, atol=1e-5)
        True
    """

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def condition(self, context: Tensor) -> Transform:
        """Returns the transform for a context ``(..., c)``, which keeps its last value."""
        return _AutoregressiveSpline(partial(self.net, context=context))


class _AutoregressiveSpline(Transform):
    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, net: Any) -> None:
        super().__init__(cache_size=1)
        self._net = net
        self._log_det: Tensor | None = None

    def _call(self, x: Tensor) -> Tensor:
        y, log_det = _spline(x, self._net(x))
        self._log_det = log_det.sum(-1)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x = log_det = torch.zeros_like(y)
        for _ in range(y.shape[-1]):  # each run gets one more dimension right, in the net's order
            x, log_det = _spline(y, self._net(x), inverse=True)
        self._log_det = log_det.sum(-1)
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns log |det dy/dx| of the last value, or of x after it is computed anew."""
        last_x, last_y = self._cached_x_y
        if x is not last_x or y is not last_y:
            self(x)
        assert self._log_det is not None
        return self._log_det


def _spline(value: Tensor, params: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Maps values ``(..., k)`` by splines of parameters ``(..., 3 B - 1, k)``, and gives log dy/dx.

    The names are those of the paper: knots (x, y), slopes δ at them, s of the secant, θ the place within a bin.
    """
    bins = (params.shape[-2] + 1) // 3
    widths, heights, slopes = params.transpose(-1, -2).split([bins, bins, bins - 1], -1)
    knots_x, knots_y = _knots(widths), _knots(heights)
    # A slope of one at both ends, where the identity begins; one where the net gives zero.
    delta = F.pad(F.softplus(slopes + 0.5413) + LEAST, (1, 1), value=1.0)
    inside = value.abs() < BOUND
    at = value.clamp(-BOUND, BOUND)
    place = (at.unsqueeze(-1) >= (knots_y if inverse else knots_x)[..., 1:-1]).sum(-1, keepdim=True)
    ends = torch.stack([place, place + 1]).unsqueeze(1)
    knots = torch.stack([knots_x, knots_y, delta])
    (x0, y0, d0), (x1, y1, d1) = knots.expand(2, *knots.shape).gather(-1, ends.expand(-1, 3, *place.shape)).squeeze(-1)
    s = (y1 - y0) / (x1 - x0)
    if inverse:
        rest = (at - y0) * (d0 + d1 - 2 * s)
        a, b, c = (y1 - y0) * (s - d0) + rest, (y1 - y0) * d0 - rest, -s * (at - y0)
        theta = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())
        mapped = x0 + theta * (x1 - x0)
    else:
        theta = (at - x0) / (x1 - x0)
    both = theta * (1 - theta)
    denominator = s + (d0 + d1 - 2 * s) * both
    if not inverse:
        mapped = y0 + (y1 - y0) * (s * theta.square() + d0 * both) / denominator
    slope = d1 * theta.square() + 2 * s * both + d0 * (1 - theta).square()
    log_det = 2 * s.log() + slope.log() - 2 * denominator.log()
    return torch.where(inside, mapped, value), torch.where(inside, log_det, 0.0)


def _knots(sizes: Tensor) -> Tensor:
    """The B + 1 ends of bins that fill [-3, 3], from numbers of any sign."""
    parts = LEAST + (1 - LEAST * sizes.shape[-1]) * sizes.softmax(-1)
    inner = 2 * BOUND * parts.cumsum(-1)[..., :-1] - BOUND
    return F.pad(F.pad(inner, (1, 0), value=-BOUND), (0, 1), value=BOUND)
