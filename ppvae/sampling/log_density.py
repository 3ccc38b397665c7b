"""Log p(x, u) at many positions of each datum, with gradients or the guide's density, in blocks that fit memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppvae.compile.compiled import Compiled
from ppvae.compile.verification import Label
from ppvae.sampling.eval_mode import validation
from ppvae.sampling.posterior_draws import Latents, PosteriorSampler
from ppvae.sampling.sampler import PROBE_SAMPLES
from ppvae.sampling.unconstrained import Source, Unconstrained


class LogDensity:
    """The density of a pair on its data in the coordinates of `Unconstrained`, for use inside its context.

    Args:
        posterior: the pair on its data.
        compile: whether to compile densities and gradients, see `ppvae.compile.compiled`.

    Attributes:
        scores: whether the guide knows the density of what it has not drawn, so that it can be part of a proposal.

    Raises:
        ValueError: as `Unconstrained`.
    """

    def __init__(self, posterior: PosteriorSampler, *, compile: bool) -> None:
        self._space = Unconstrained(posterior, proper=True)
        modules, coarse = [posterior.sampler.pair], posterior.sampler.autocast is not None
        self._values = Compiled(self._compute, modules, labels=_of_values, autocast=coarse) if compile else None
        self._gradients = (
            Compiled(self._differentiate, modules, labels=_of_gradients, autocast=coarse) if compile else None
        )
        self._validated = False
        self._space.draw(self._space.probe(), PROBE_SAMPLES, "prior")
        try:
            self._space.check_scores()
            self.scores = True
        except ValueError:  # a point mass, a flow without an inverse, an auxiliary variable
            self.scores = False

    def draw(self, part: PosteriorSampler, s: int, source: Source) -> tuple[Tensor, Tensor]:
        """`s` draws of the guide or the prior, (s, n, k), and which of them the prior excludes, (s, n)."""
        found = [self._space.draw(part, stop - start, source) for start, stop in self._blocks(part, s)]
        outside = [torch.zeros_like(u[..., 0], dtype=torch.bool) if out is None else out for u, out in found]
        return torch.cat([u for u, _ in found]), torch.cat(outside)

    def latents_at(self, part: PosteriorSampler, u: Tensor) -> Latents:
        """The latents at u, (s, n, k)."""
        return self._space.latents_at(part, u)

    def log_joint(self, part: PosteriorSampler, u: Tensor) -> Tensor:
        """Log p(x, u), (s, n), for u of shape (s, n, k)."""
        return self.both(part, u)[0]

    def both(self, part: PosteriorSampler, u: Tensor) -> tuple[Tensor, Tensor]:
        """Log p(x, u), and log q(u|x) of the guide where it `scores`, else −inf: each (s, n)."""
        found = [self._run(self._values, self._compute, u[i:j], part) for i, j in self._blocks(part, len(u))]
        joint, guide = (torch.cat(of) for of in zip(*found, strict=True))
        return joint, guide

    def gradient(self, part: PosteriorSampler, u: Tensor) -> tuple[Tensor, Tensor]:
        """Log p(x, u), (s, n), and its gradient in u, (s, n, k); zero where it is not finite."""
        found = [self._run(self._gradients, self._differentiate, u[i:j], part) for i, j in self._blocks(part, len(u))]
        joint, gradient = (torch.cat(of) for of in zip(*found, strict=True))
        return joint, gradient.nan_to_num(0.0, 0.0, 0.0)

    def _blocks(self, part: PosteriorSampler, s: int) -> list[tuple[int, int]]:
        """The (start, stop) of blocks of s samples, about equal, that stay within the memory budget."""
        count = -(-s // max(1, part.sampler.rows // len(part)))
        size = -(-s // count)
        return [(start, min(start + size, s)) for start in range(0, s, size)]

    def _run(self, compiled: Compiled | None, compute: Any, u: Tensor, part: PosteriorSampler) -> Sequence[Tensor]:
        args = (u, *part.data)
        with validation(not self._validated):
            outputs, _ = compute(args) if compiled is None or not self._validated else compiled(args)
        self._validated = True
        return outputs

    def _compute(self, args: tuple[Any, ...]) -> tuple[Sequence[Tensor], Any]:
        u, *data = args
        part = replace(self._space.posterior, data=tuple(data))
        joint, guide = self._space.log_densities(part, u, "guide" if self.scores else None)
        return [joint, guide if self.scores else torch.full_like(guide, -torch.inf)], None

    def _differentiate(self, args: tuple[Any, ...]) -> tuple[Sequence[Tensor], Any]:
        u, *data = args
        part = replace(self._space.posterior, data=tuple(data))
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            joint = self._space.log_densities(part, u, None)[0] + 0 * u.sum(-1)  # it may be the same everywhere
            (gradient,) = torch.autograd.grad(joint.sum(), u)
        return [joint.detach(), gradient], None


def _of_values(layout: Any) -> list[Label]:
    return [("log of", "p(x, z)"), ("log of", "the guide")]


def _of_gradients(layout: Any) -> list[Label]:
    return [("log of", "p(x, z)"), ("the gradient of log", "p(x, z)")]
