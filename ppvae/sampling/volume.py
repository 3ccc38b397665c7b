"""Whether the `log_density` of a Delta is the change of volume that it has to be.

A guide that draws u and makes z = f(u) of it has log q(z) = log q(u) − log |det df/du|. The first is the density of
the site u; the second is what the Delta at z has to hold. Pyro's autoguides see to that, and whoever writes
`Delta(u.exp())` by hand may not: log p(x) is then another number, with the best of diagnostics.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import biject_to

from ppvae.traces import Site, leaf, sites

MOST = 512
"""Coordinates of a datum of which the determinant is looked at: each takes a backward pass."""

ROUNDING = 1e-3
"""What may be missing, for each coordinate."""


class _Leaves(Messenger):
    """Makes draws what the rest of the run is differentiated by."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self._names = names

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self._names:
            msg["value"] = msg["value"].detach().requires_grad_()


def differentiable(names: Collection[str]) -> AbstractContextManager[Any]:
    """Context in which a guide's draws at these sites are leaves of autograd: what is made of them has a Jacobian."""
    return _Leaves(names)


def wrong_volumes(
    run: Callable[[], Trace], makers: Collection[str], made: Collection[str], latents: Mapping[str, Site]
) -> str:
    """What is said where the Deltas at some latents do not hold the change of volume; nothing where they do.

    Args:
        run: gives a run of the guide on one datum, with its log-probabilities.
        makers: the continuous sites that the guide draws.
        made: the latents that it makes of these, as many coordinates in all.
        latents: of the model, whose supports say what the coordinates are.
    """
    with torch.enable_grad(), differentiable(makers):
        of_guide = sites(run())
        coordinates, change = [], torch.zeros((), dtype=torch.float64)
        for name in made:
            site, to_support = of_guide[name], biject_to(leaf(latents[name].fn).support)
            y = to_support.inv(site.value)
            coordinates.append(y.flatten())
            change = change + to_support.log_abs_det_jacobian(y, site.value).double().sum()
        y, us = torch.cat(coordinates), [of_guide[name].value for name in makers]
        if len(y) > MOST or not y.isfinite().all():
            return ""
        change = change + torch.linalg.slogdet(_jacobian(y, us)).logabsdet
    held = torch.stack([torch.as_tensor(of_guide[name].log_prob).double().sum() for name in made]).sum()
    if not abs(float(held + change)) > ROUNDING * len(y) + ROUNDING * abs(float(held)):
        return ""
    return (
        f"the guide makes the latents {list(made)} of {list(makers)} by a Delta whose log_density is not the change of "
        f"volume: {float(held):.4g} for a datum where it has to be -log |det dz/du| = {-float(change):.4g}. Write "
        "Delta(z, log_density=-log |det dz/du|), e.g. Delta(u.exp(), log_density=-u), or draw the latents of a "
        "TransformedDistribution, which has its own density"
    )


def _jacobian(y: Tensor, us: list[Tensor]) -> Tensor:
    """The derivatives of all elements of y by all of us, (m, m); zero where one is not made of the other."""
    rows = []
    for element in y:
        if element.requires_grad:
            found = torch.autograd.grad(element, us, retain_graph=True, allow_unused=True, materialize_grads=True)
            rows.append(torch.cat([gradient.flatten() for gradient in found]))
        else:
            rows.append(torch.zeros(len(y), device=y.device))
    return torch.stack(rows).double()
