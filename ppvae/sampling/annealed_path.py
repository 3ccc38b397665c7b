"""A path of densities from where Markov chains start to a pair's joint, with gradients, in coordinates without bounds.

    log π_β(u) = (1 − β) log q(u|x) + β log p(x, u),   0 ≤ β ≤ 1,

in the coordinates u of `ppvae.sampling.unconstrained`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from ppvae.compile.compiled import Compiled
from ppvae.compile.verification import Label
from ppvae.sampling.adaptive import first_proposal
from ppvae.sampling.eval_mode import validation
from ppvae.sampling.log_density import LogDensity
from ppvae.sampling.posterior_draws import Latents, PosteriorSampler
from ppvae.sampling.sampler import PROBE_SAMPLES
from ppvae.sampling.student_mixture import StudentMixture
from ppvae.sampling.unconstrained import Unconstrained

Start = Literal["guide", "prior", "adaptive"]
"""Where chains start: at draws from the guide, from the prior, or from proposals fitted to each datum."""


@dataclass(frozen=True)
class Point:
    """Where the chains are, and what is known of the path there.

    Attributes:
        position: u, shape (s, n, k).
        log_start: log π_0, (s, n).
        log_joint: log π_1, (s, n).
        grad_start: gradient of log π_0, (s, n, k).
        grad_joint: gradient of log π_1, (s, n, k).
    """

    position: Tensor
    log_start: Tensor
    log_joint: Tensor
    grad_start: Tensor
    grad_joint: Tensor

    def log_prob(self, beta: float) -> Tensor:
        """Log π_β, (s, n), for 0 < β < 1."""
        return (1 - beta) * self.log_start + beta * self.log_joint

    def gradient(self, beta: float) -> Tensor:
        """Gradient of log π_β, (s, n, k)."""
        return torch.lerp(self.grad_start, self.grad_joint, beta)

    def log_ratio(self) -> Tensor:
        """Log π_1 / π_0, the log importance weight, (s, n)."""
        return self.log_joint - self.log_start

    def where(self, keep: Tensor, other: Point) -> Point:
        """This point for the chains in `keep`, (s, n), and `other` for the rest."""
        pairs = ((a, getattr(other, name)) for name, a in vars(self).items())
        return Point(*(torch.where(keep if a.dim() == 2 else keep.unsqueeze(-1), a, b) for a, b in pairs))


class GeometricPath:
    """The path of a pair on its data.

    Args:
        posterior: the pair on its data; the path is for use inside its context.
        start: "guide" for log π_0 = log q(z|x), "prior" for log p(z), "adaptive" for the density of proposals, which
            `fitted` fits.
        compile: whether to compile densities and gradients, see `ppvae.compile.compiled`.

    Raises:
        ValueError: naming the site of a discrete latent, or one without a support; where there is no latent, or the
            guide cannot tell the density of one that it did not draw just then.
    """

    def __init__(self, posterior: PosteriorSampler, start: Start, *, compile: bool) -> None:
        if start not in ("guide", "prior", "adaptive"):
            raise ValueError(f'start must be "guide", "prior" or "adaptive", got {start!r}')
        self._posterior = posterior
        self._start = start
        self._space = Unconstrained(posterior, proper=start == "adaptive")
        coarse, modules = posterior.sampler.autocast is not None, [posterior.sampler.pair]
        self._compiled = Compiled(self._compute, modules, labels=_labels, autocast=coarse) if compile else None
        self._checked: set[torch.Size] = set()
        self._density = LogDensity(posterior, compile=False) if start == "adaptive" else None
        self._proposal: StudentMixture | None = None
        if start == "guide":
            self._space.check_scores()
        self._space.draw(self._space.probe(), PROBE_SAMPLES, "guide" if start == "guide" else "prior")

    def fitted(self, part: PosteriorSampler) -> Self:
        """The path for chains of these data: where they start at a proposal, the one that is fitted to them now."""
        if self._density is None:
            return self
        path = copy.copy(self)
        path._proposal = first_proposal(self._density, part).mixture
        return path

    def draw(self, part: PosteriorSampler, s: int) -> tuple[Tensor, Tensor | None]:
        """`s` draws from π_0 for every datum, as u, (s, n, k), and which of them π_1 gives no density, (s, n)."""
        if self._proposal is not None:
            return self._proposal.draw(s), None
        assert self._start != "adaptive", "fit it to the data first"
        return self._space.draw(part, s, self._start)

    def unconstrained(self, part: PosteriorSampler, latents: Latents) -> Tensor:
        """The u of these latents, (s, n, k)."""
        return self._space.position(part, latents)

    def __call__(self, part: PosteriorSampler, position: Tensor) -> Point:
        """The densities and their gradients at u, (s, n, k)."""
        proposal = () if self._proposal is None else tuple(vars(self._proposal).values())
        args = (position, proposal, part.data)
        first = position.shape not in self._checked
        with validation(first):
            outputs, _ = self._compute(args) if first or self._compiled is None else self._compiled(args)
        self._checked.add(position.shape)
        return Point(position, *outputs)

    def _compute(self, args: tuple[Any, ...]) -> tuple[Sequence[Tensor], Any]:
        """Both densities at u and their gradients, as a computation that can be compiled."""
        position, proposal, data = args
        part = replace(self._posterior, data=data)
        with torch.enable_grad():
            position = position.detach().requires_grad_()
            nothing = 0 * position.sum(-1)  # a density may be the same everywhere
            source = None if self._start == "adaptive" else self._start
            log_joint, log_start = self._space.log_densities(part, position, source)
            log_start = StudentMixture(*proposal).log_prob(position) if proposal else log_start
            densities = [density + nothing for density in (log_start, log_joint)]
            gradients = [
                torch.autograd.grad(density.sum(), position, retain_graph=True, materialize_grads=True)[0]
                for density in densities
            ]
        return [*(density.detach() for density in densities), *gradients], None


def _labels(layout: Any) -> list[Label]:
    """What the outputs of a path are called."""
    return [(kind, which) for kind in ("log of", "the gradient of log") for which in ("the start", "p(x, z)")]
