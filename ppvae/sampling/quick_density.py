r"""Sums of log-probabilities that torch computes slowly, by quick ones: Bernoulli variables, one for each pixel.

    log p(x|η) = Σ_i x_i η_i − softplus(η_i),      Σ softplus(η_i) = Σ max(η_i, 0) + Σ_g log Π_{i∈g} (1 + e^{−|η_i|}),

with groups g of at most eight. Torch takes a `log1p` of each element, some twenty times the price of an `exp`; here
each group takes one `log`. Factors lie in (1, 2], so that no product overflows. The rounding of each costs at most a
unit in the last place of 1: no more than the rounding of a sum of so many terms.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import broadcast_shape, scale_and_mask
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ppvae._internals import checks_support, is_traced

GROUP = 8
"""The most factors of one product."""
LANES = 16
"""Numbers of a processor's vector, at most: products of so many at a time leave no rest."""


def score_quickly(trace: Trace) -> None:
    """Fills in the log-probabilities of a trace for which there is a quick sum; `trace.compute_log_prob` adds the rest.

    These are vectors and images of Bernoulli variables on a CPU, whoever made them. Under Pyro's validation too, so
    that the numbers do not depend on which blocks are validated; what it refuses is left to it.

    Args:
        trace: of a model or a guide.

    Example:
        >>> import pyro
        >>> image = dist.Bernoulli(logits=torch.zeros(3, 784), validate_args=False).to_event(1)
        >>> trace = pyro.poutine.trace(lambda: pyro.sample("x", image, obs=torch.ones(3, 784))).get_trace()
        >>> score_quickly(trace)
        >>> trace.nodes["x"]["log_prob"].round(decimals=2)
        tensor([-543.4300, -543.4300, -543.4300])
    """
    for node in trace.nodes.values():
        if node["type"] == "sample" and "log_prob" not in node and _is_quick(node["fn"], node["value"]):
            logits, x = node["fn"].base_dist.logits, node["value"]
            found = bernoulli_log_prob(logits, x, event_dim=node["fn"].event_dim)
            node["unscaled_log_prob"] = found
            node["log_prob"] = scale_and_mask(found, node["scale"], node["mask"])
            node["log_prob_sum"] = node["log_prob"].sum()


def bernoulli_log_prob(logits: Tensor, x: Tensor, *, event_dim: int) -> Tensor:
    """Log p(x) of independent Bernoulli variables, with its gradient in the logits.

    Args:
        logits: η, (..., *event).
        x: (..., *event), of the same dtype; the leading dims broadcast.
        event_dim: how many dims belong to one event, at least 1.

    Returns:
        Nats, (...).
    """
    event = broadcast_shape(logits.shape[-event_dim:], x.shape[-event_dim:])
    flat = [t.expand(*t.shape[:-event_dim], *event).flatten(-event_dim) for t in (logits, x)]
    found: Tensor = _LogProb.apply(flat[0].expand(broadcast_shape(flat[0].shape, flat[1].shape)), flat[1])
    return found


def _is_quick(fn: Any, x: Any) -> bool:
    if type(fn) is not dist.Independent or type(fn.base_dist) is not dist.Bernoulli or fn.event_dim < 1:
        return False
    if not isinstance(x, Tensor) or x.requires_grad:
        return False
    logits = fn.base_dist.logits
    if not logits.is_cpu or logits.dtype != x.dtype or logits.dtype not in (torch.float32, torch.float64):
        return False
    return not (checks_support(fn) or checks_support(fn.base_dist)) or _is_valid(fn, x)


def _is_valid(fn: Any, x: Tensor) -> bool:
    """Whether Pyro's validation takes a value."""
    return x.shape[-fn.event_dim :] == fn.event_shape and bool(fn.base_dist.support.check(x).all())


class _LogProb(torch.autograd.Function):
    """Of vectors η, (..., d), and x, which may lack leading dims.

    Torch's own gradient of the products would take longer than all else.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(logits, x)
        above = logits.clamp_min(0).sub_(_products(x, logits)).sum(-1) + (0 * x).sum(-1)  # NaN where x is no number
        factors = logits.abs().neg_().exp_().add_(1)
        return -(above + factors.unflatten(-1, (_group(factors.shape[-1]), -1)).prod(-2).log_().sum(-1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        logits, x = ctx.saved_tensors
        return grads[0].unsqueeze(-1) * (x - logits.sigmoid()), None


def _products(x: Tensor, logits: Tensor) -> Tensor:
    """X η, and 0 where x is 0, of an infinite η too."""
    if is_traced():
        return (x * logits).masked_fill_(x == 0, 0)  # fused with what follows; else it takes as long as all of that
    return (x * logits).nan_to_num_(nan=0.0, posinf=math.inf, neginf=-math.inf)


def _group(d: int) -> int:
    """The largest divisor of d up to `GROUP`: of those that leave whole vectors, where there are any."""
    divisors = [g for g in range(1, GROUP + 1) if d % g == 0]
    return max([g for g in divisors if d // g % LANES == 0] or divisors)
