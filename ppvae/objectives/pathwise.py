"""Gradients along the draws alone: of what a guide's draws do, not of how likely the guide finds them.

A guide that is cut goes on from copies of its draws. What model and guide then give depends on the copies, and its
derivatives with respect to them are passed on to the draws by `pathwise`.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ppvae.traces import sites


class CutAtDraws(Messenger):
    """Lets a guide go on from a copy of each draw, which its graph does not reach; the draw is kept beside it."""

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if not msg["is_observed"] and isinstance(value, Tensor) and value.is_floating_point():
            msg["infer"] = {**msg["infer"], "_drawn": value}
            msg["value"] = value.detach().requires_grad_()


def pathwise(objective: Tensor, guide_trace: Trace) -> Tensor:
    """What has the objective's gradient along the draws, and no other.

    Args:
        objective: as it depends on the copies of the draws.
        guide_trace: of a guide that was cut at its draws.
    """
    cut = [site for site in sites(guide_trace).values() if "_drawn" in site.infer]
    copies = [site.value for site in cut]
    derivatives = list(torch.autograd.grad(objective, copies, retain_graph=True, materialize_grads=True))
    surrogate = torch.zeros_like(objective)
    for i in reversed(range(len(cut))):
        term = (derivatives[i] * cut[i].infer["_drawn"]).sum()
        surrogate = surrogate + term
        if i and term.requires_grad:  # the draw depends on those before it
            further = torch.autograd.grad(term, copies[:i], retain_graph=True, materialize_grads=True)
            derivatives[:i] = [a + b for a, b in zip(derivatives, further, strict=False)]
    return surrogate
