"""Proposals fitted to the posterior of each datum, and the weights of draws from them.

    q(u|x) = (1 − g) Σ_j α_j t_ν(u; m_j, C_j) + g q_guide(u|x),       w = p(x, u) / q(u|x),

a component for each mode, from a search and a Gaussian fit, and a share of the guide, which keeps every weight below
1/g of what the guide alone would give it (the deterministic mixture of Owen & Zhou 2000, "Safe and effective importance
sampling", JASA 95). Where pilot draws show that this does not do, population rounds fit shares, means and scales to
their weights (Cappé et al. 2008, "Adaptive importance sampling in general mixture classes", arXiv 0710.4242), smoothed
by a power so that a few large ones do not decide (Koblents & Míguez 2015, arXiv 1208.5600).

How many draws a datum takes is decided by its pilots. The draws that count are others: given the proposal and their
number they are independent, and the mean of w has the expectation p(x).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppvae.sampling.gaussian_fit import fit
from ppvae.sampling.log_density import LogDensity
from ppvae.sampling.modes import distinct, search, starts
from ppvae.sampling.posterior_draws import PosteriorSampler
from ppvae.sampling.student_mixture import DEGREES, StudentMixture
from ppvae.sampling.unconstrained import spread

FIRST_DRAWS = 64
"""Draws of the guide from which searches start, and whose spread is the unit of each coordinate."""
GUIDE_SHARE = 0.05
"""The probability with which a draw is the guide's, where that knows its density."""
WIDER = 1.08
"""How much wider the first components are than the Gaussians that were fitted."""
KEPT = 0.5
"""How much of the scales and shares before each round stays."""
SMOOTHED = 6.0
"""Weights are tempered until so large a part of the draws, one in six, is effective."""
LEAST_SHARE = 0.05
"""Of a component, so that none starves."""


@dataclass(frozen=True)
class Proposal:
    """What draws come from, fitted to n data.

    Attributes:
        density: of the pair.
        part: the n data.
        mixture: of Student distributions.
    """

    density: LogDensity
    part: PosteriorSampler
    mixture: StudentMixture

    @property
    def num_modes(self) -> Tensor:
        """Components of each datum, (n,)."""
        return (self.mixture.log_share > -math.inf).sum(0)

    def of_data(self, index: Tensor) -> Proposal:
        """The same for some of the data, by their numbers."""
        return replace(self, part=of_data(self.part, index), mixture=self.mixture.of_data(index))

    def with_data(self, index: Tensor, others: Proposal) -> Proposal:
        """The same with the proposals of some of the data, by their numbers, replaced."""
        return replace(self, mixture=self.mixture.with_data(index, others.mixture))

    def draw(self, s: int) -> tuple[Tensor, Tensor]:
        """`s` draws for every datum, (s, n, k), and their log weights, (s, n), float64, whose mean estimates p(x)."""
        u = self.mixture.draw(s)
        fitted, outside = 1.0, torch.zeros_like(u[..., 0], dtype=torch.bool)
        if self.density.scores:
            fitted = 1 - GUIDE_SHARE
            share = torch.full((len(self.part),), GUIDE_SHARE, dtype=u.dtype, device=u.device)
            count = torch.binomial(torch.full_like(share, s), share)  # each draw is the guide's with that probability
            others, excluded = self.density.draw(self.part, max(1, int(count.max())), "guide")
            theirs = torch.arange(len(others), device=u.device).unsqueeze(-1) < count
            u[: len(others)] = torch.where(theirs.unsqueeze(-1), others, u[: len(others)])
            outside[: len(others)] = theirs & excluded
        joint, guide = self.density.both(self.part, u)
        log_q = self.mixture.log_prob(u) + math.log(fitted)
        log_q = torch.logaddexp(log_q, guide + math.log(GUIDE_SHARE))  # −inf where the guide knows no density
        return u, torch.where(outside, -math.inf, joint.double() - log_q.double())

    def adapted(self, u: Tensor, log_weight: Tensor) -> Proposal:
        """The proposal after a population round, fitted to draws and their weights as `draw` gives them."""
        return replace(self, mixture=_fitted(self.mixture, u, _tempered(log_weight).to(u.dtype)))


def first_proposal(density: LogDensity, part: PosteriorSampler) -> Proposal:
    """Fits a component to each mode of each datum that a search from draws of the guide finds.

    Args:
        density: of the pair.
        part: the data.
    """
    draws, _ = density.draw(part, FIRST_DRAWS, "guide")
    unit = spread(draws)
    if bool((flat := unit <= torch.finfo(unit.dtype).tiny).any()):  # a point mass
        unit = torch.where(flat, spread(density.draw(part, FIRST_DRAWS, "prior")[0]), unit)
    u, value = search(density, part, starts(density, part, draws, unit), unit)
    order = value.argsort(0, descending=True)
    u, value = u.gather(0, order.unsqueeze(-1).expand_as(u)), value.gather(0, order)
    keep = distinct(density, part, u, value)
    return Proposal(density, part, _components(density, part, u, keep, unit))


def of_data(part: PosteriorSampler, index: Tensor) -> PosteriorSampler:
    """The pair on some of the data, by their numbers."""
    return replace(part, data=tuple(t if t is None else t[index] for t in part.data))


def _components(density: LogDensity, part: PosteriorSampler, u: Tensor, keep: Tensor, unit: Tensor) -> StudentMixture:
    """A component for each of the modes to keep, (j, n), their shares by the mass that each fit holds."""
    mode, datum = keep.nonzero(as_tuple=True)
    slot = (keep.cumsum(0) - 1)[mode, datum]
    theirs = of_data(part, datum)
    each = fit(density, theirs, u[mode, datum], unit[datum])
    mass = density.log_joint(theirs, each.loc)[0] - each.precision[0].log().sum(-1) / 2
    c, n = int(keep.sum(0).max()), len(part)
    loc, precision = u[:1].repeat(c, 1, 1), torch.ones_like(each.precision[:, :1]).repeat(c, n, 1)
    basis = torch.eye(*each.basis.shape[-2:], dtype=u.dtype, device=u.device).repeat(c, n, 1, 1)
    log_share = mass.new_full((c, n), -math.inf)  # in the precision of the likelihood, which may be a higher one
    loc[slot, datum], basis[slot, datum] = each.loc[0], each.basis[0]
    precision[slot, datum] = each.precision[0] / WIDER**2
    log_share[slot, datum] = mass.nan_to_num(0.0, 0.0, 0.0)
    return StudentMixture(loc, unit, basis, precision, _shares(log_share.softmax(0).to(u.dtype)))


def _shares(share: Tensor) -> Tensor:
    """Log of the shares (c, n), each that is not zero no less than `LEAST_SHARE`."""
    share = torch.where(share > 0, share.clamp_min(LEAST_SHARE), 0.0)
    return (share / share.sum(0)).log()


def _tempered(log_weight: Tensor) -> Tensor:
    """Normalized weights (s, n), to the highest power up to one at which one draw in `SMOOTHED` is effective."""
    power = torch.ones_like(log_weight[0])
    finite = log_weight.nan_to_num(-math.inf, -math.inf, -math.inf)
    for _ in range(30):
        weight = (finite * power).nan_to_num(-math.inf).softmax(0)
        few = weight.square().sum(0) > SMOOTHED / len(weight)
        power = torch.where(few, 0.8 * power, power)
    return (finite * power).softmax(0).nan_to_num(0.0)


def _fitted(mixture: StudentMixture, u: Tensor, weight: Tensor) -> StudentMixture:
    """One step of EM for the shares, the means, and the scales along the bases, with draws that count by a weight."""
    responsibility = mixture.log_components(u).softmax(0) * weight
    share = responsibility.sum(1)
    of_each = responsibility / share.unsqueeze(1).clamp_min(torch.finfo(share.dtype).tiny)
    counted = (share > 0).unsqueeze(-1)
    mean = torch.einsum("csn,snk->cnk", of_each, u)
    moved = replace(mixture, loc=torch.where(counted, torch.lerp(mean, mixture.loc, KEPT), mixture.loc))
    along = torch.stack([moved.standardized(j, u) for j in range(len(share))])
    variance = torch.einsum("csn,csnr->cnr", of_each, along.square()) * (DEGREES - 2) / DEGREES
    precision = 1 / (KEPT / mixture.precision + (1 - KEPT) * variance)
    share = torch.where(mixture.log_share > -math.inf, KEPT * mixture.log_share.exp() + (1 - KEPT) * share, 0.0)
    return replace(moved, precision=torch.where(counted, precision, mixture.precision), log_share=_shares(share))
