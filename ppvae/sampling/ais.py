"""Chains that follow a path of densities, and the weights that they gather on it.

Step sizes adapt to a target acceptance. A chain whose own past chose its steps would no longer leave the densities as
they are, so a few chains of each datum, the pilots, run along for the step sizes alone, and the others take these as
given: their weights are unbiased, and independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ppvae._validate import check_count
from ppvae.sampling.annealed_path import GeometricPath, Point
from ppvae.sampling.hmc import transition
from ppvae.sampling.posterior_draws import Latents, PosteriorSampler
from ppvae.sampling.unconstrained import spread

TARGET_ACCEPTANCE = 0.8
"""Costs little where 0.65 is best, in many dimensions, and in few keeps steps off the limit where they only swing
around the mode (Betancourt et al. 2014, "Optimizing the integrator step size for Hamiltonian Monte Carlo", 1411.6669).
"""

PILOTS = 4
"""Chains of each datum that only find the step sizes."""

SPREAD_DRAWS = 64
"""Draws of each datum whose spread gives the ratios between the steps in the coordinates."""

ADAPTATION = 0.5
"""What a difference in acceptance of one adds to the log step size: less is later to follow, more is noisier."""

SCHEDULE_SLOPE = 4.0
"""How much denser temperatures lie at both ends than between (δ of Wu et al. 2017, 1611.04273). It matters from the
prior, and little from a guide."""


@dataclass(frozen=True)
class Chains:
    """What chains have gathered on the path.

    Attributes:
        log_weight: of each chain, shape (s, n), float64, nats.
        acceptance: mean acceptance probability of the moves, (n,), float64; NaN where there are none.
        scale: what the steps in each coordinate are multiples of, (n, k).
        steps: the step size at each temperature strictly between the ends, (num_temperatures − 1, n).
        share_outside: of the chains, how many began outside the support of the prior, with weight zero, (n,), float64.
    """

    log_weight: Tensor
    acceptance: Tensor
    scale: Tensor
    steps: Tensor
    share_outside: Tensor


@dataclass(frozen=True)
class Annealing:
    """How chains follow a path.

    Args:
        num_chains: s, chains of each datum.
        num_temperatures: steps in β from 0 to 1.
        num_leapfrog: gradients in each move.

    Raises:
        ValueError: where one of them is no whole number >= 1.
    """

    num_chains: int
    num_temperatures: int
    num_leapfrog: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_count(name, value)

    @property
    def num_parallel(self) -> int:
        """Chains of a datum that run at once."""
        return self.num_chains + PILOTS * (self.num_temperatures > 1)

    @property
    def num_gradients(self) -> int:
        """Evaluations of the gradient in one run."""
        return (self.num_temperatures - 1) * self.num_leapfrog

    def betas(self) -> list[float]:
        """β_0 = 0 < β_1 < … < 1: a sigmoid between its values at ±`SCHEDULE_SLOPE`, rescaled."""
        t = torch.linspace(-SCHEDULE_SLOPE, SCHEDULE_SLOPE, self.num_temperatures + 1, dtype=torch.float64).sigmoid()
        return ((t - t[0]) / (t[-1] - t[0])).tolist()

    def forward(
        self, path: GeometricPath, part: PosteriorSampler, *, first: int = 0, tick: Callable[[int], Any]
    ) -> Chains:
        """Runs chains from draws of π_0 to π_1: the mean of w estimates p(x).

        Args:
            path: the path.
            part: a block of data.
            first: the index of its first datum, for errors.
            tick: called with the data that are a temperature further.

        Raises:
            ValueError: where a weight is NaN or infinite, naming the datum.
        """
        position, outside = path.draw(part, self.num_chains)
        scale, steps = torch.ones_like(position[0]), []
        if self.num_temperatures > 1:
            others, _ = path.draw(part, SPREAD_DRAWS)
            scale = spread(others)
            position = torch.cat([position, others[:PILOTS]])
        run = _Run(path, part, position, first)
        log_step = torch.full_like(position[0, :, 0], -0.25 * math.log(position.shape[-1]))
        for t, (before, after) in enumerate(pairwise(self.betas()), 1):
            run.weigh(after - before)
            tick(len(part))
            if t < self.num_temperatures:
                steps.append(log_step.exp())
                accepted = run.move(after, steps[-1].unsqueeze(-1) * scale, self.num_leapfrog)
                difference = accepted[self.num_chains :].mean(0) - TARGET_ACCEPTANCE
                log_step = log_step + ADAPTATION * difference
        return run.chains(self.num_chains, scale, steps, outside)

    def backward(
        self,
        path: GeometricPath,
        part: PosteriorSampler,
        latents: Latents,
        forward: Chains,
        *,
        first: int = 0,
        tick: Callable[[int], Any],
    ) -> Chains:
        """Runs chains from exact draws of π_1 to π_0, in the steps of `forward`: the mean of w estimates 1/p(x).

        Args:
            path: the path.
            part: a block of data.
            latents: a draw from the posterior for each datum; every chain starts there.
            forward: a run of the same data that these latents had no part in.
            first: the index of the block's first datum, for errors.
            tick: called with the data that are a temperature further.
        """
        one = path.unconstrained(part, latents)
        run = _Run(path, part, one.expand(self.num_chains, -1, -1).contiguous(), first)
        steps = list(reversed(forward.steps))
        for t, (before, after) in enumerate(pairwise(reversed(self.betas()))):
            run.weigh(after - before)
            tick(len(part))
            if t < len(steps):
                run.move(after, steps[t].unsqueeze(-1) * forward.scale, self.num_leapfrog)
        return run.chains(self.num_chains, forward.scale, steps)


class _Run:
    """Chains on their way."""

    def __init__(self, path: GeometricPath, part: PosteriorSampler, position: Tensor, first: int) -> None:
        self._density: Callable[[Tensor], Point] = lambda u: path(part, u)
        self._point = path(part, position)
        self._first = first
        self._log_weight = torch.zeros_like(self._point.log_joint, dtype=torch.float64)
        self._accepted = torch.zeros_like(self._log_weight)
        self._moves = 0
        self._check(self._point.log_ratio())

    def weigh(self, step: float) -> None:
        """Adds to the weights what a step in β from here to there brings."""
        self._log_weight += step * self._point.log_ratio().double()

    def move(self, beta: float, step: Tensor, num_leapfrog: int) -> Tensor:
        """Moves every chain under π_β; gives the probabilities with which they accepted, (s, n)."""
        self._point, accepted = transition(self._density, self._point, beta, step, num_leapfrog)
        self._accepted += accepted
        self._moves += 1
        return accepted

    def chains(self, s: int, scale: Tensor, steps: list[Tensor], outside: Tensor | None = None) -> Chains:
        """What the first `s` chains have gathered; those of them that began `outside` have weight zero."""
        log_weight = self._log_weight[:s]
        self._check(log_weight)
        if outside is not None:
            log_weight = torch.where(outside, -math.inf, log_weight)
        acceptance = self._accepted[:s].mean(0) / (self._moves or math.nan)
        share = torch.zeros_like(acceptance) if outside is None else outside.double().mean(0)
        return Chains(log_weight, acceptance, scale, torch.stack(steps) if steps else scale.new_empty(0), share)

    def _check(self, log_weight: Tensor) -> None:
        """Checks that every weight is a number below infinity."""
        bad = ~(log_weight < math.inf)
        if bool(bad.any()):
            chain, datum = bad.nonzero()[0].tolist()
            at = {"log p(x, z)": self._point.log_joint, "log of the start's density": self._point.log_start}
            found = ", ".join(f"{name} = {float(value[chain, datum]):g}" for name, value in at.items())
            raise ValueError(
                f"the log weight of datum {self._first + datum} is {float(log_weight[chain, datum]):g}, where a chain "
                f"has {found}: check that datum and the weights of the pair"
            )
