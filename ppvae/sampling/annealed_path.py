"""A path of densities from where Markov chains start to a pair's joint, with gradients, in coordinates without bounds.

    log π_β(u) = (1 − β) log q(z|x) + β log p(x, z) + log |∂z/∂u|,   z = T(u),   0 ≤ β ≤ 1,

with T the bijection from the reals onto the support of each latent. All latents of a datum are one vector u, so that
what moves along the path needs to know nothing about sites and plates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints

from ppvae._internals import mask_of_distribution
from ppvae.compile.compiled import Compiled
from ppvae.compile.verification import Label
from ppvae.pair import take
from ppvae.sampling.eval_mode import validation
from ppvae.sampling.latent import Latent
from ppvae.sampling.posterior_draws import Latents, PosteriorSampler, num_samples
from ppvae.sampling.sampler import PROBE_DATA, PROBE_SAMPLES
from ppvae.traces import Site, carries_more, sites

Start = Literal["guide", "prior"]
"""Where chains start: at draws from the guide, or from the prior."""


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


@dataclass(frozen=True)
class _Coordinates:
    """Where one site lies in u: its shape there is (s, *plates, n, *event)."""

    plates: torch.Size
    event: torch.Size
    plate_dims: int
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return math.prod((*self.plates, *self.event))


class GeometricPath:
    """The path of a pair on its data.

    Args:
        posterior: the pair on its data; the path is for use inside its context.
        start: "guide" for log π_0 = log q(z|x), "prior" for log p(z).
        compile: whether to compile densities and gradients, see `ppvae.compile.compiled`.

    Raises:
        ValueError: naming the site of a discrete latent, or one without a support; where there is no latent, or the
            guide cannot tell the density of one that it did not draw just then.
    """

    def __init__(self, posterior: PosteriorSampler, start: Start, *, compile: bool) -> None:
        if start not in ("guide", "prior"):
            raise ValueError(f'start must be "guide" or "prior", got {start!r}')
        if not posterior.latents:
            raise ValueError("the model has no latents: there is nothing to anneal")
        self._posterior = posterior
        self._start = start
        self._compiled = Compiled(self._compute, [posterior.sampler.pair], labels=_labels) if compile else None
        self._checked: set[torch.Size] = set()
        self._coordinates: dict[str, _Coordinates] = {}
        probe = replace(posterior, data=take(posterior.data, slice(0, PROBE_DATA)))
        if start == "guide":
            _check_scores(probe)
        self.unconstrained(probe, self._draw(probe, PROBE_SAMPLES))

    def draw(self, part: PosteriorSampler, s: int) -> tuple[Tensor, Tensor | None]:
        """`s` draws from π_0 for every datum, as u, (s, n, k), and which of them π_1 gives no density, (s, n).

        Those have another u than their own, which has none.
        """
        latents = self._draw(part, s)
        trace = part.model_trace(latents)
        return self._unconstrained(part, sites(trace), s), part.sampler.outside(trace, s)

    def unconstrained(self, part: PosteriorSampler, latents: Latents) -> Tensor:
        """The u of these latents, (s, n, k)."""
        return self._unconstrained(part, sites(part.model_trace(latents)), num_samples(latents))

    def _unconstrained(self, part: PosteriorSampler, at: Mapping[str, Site], s: int) -> Tensor:
        found = []
        for name in part.latents:
            check_movable(name, at[name].value)
            transform = to_support(name, at[name].fn)
            in_reals = replace(at[name], value=transform.inv(at[name].value), fn=transform.domain)
            u = part.sampler.value(in_reals, s)
            shape, dim = u.value.shape, u.data_dim
            self._coordinates[name] = _Coordinates(shape[1:dim], shape[dim + 1 :], u.plate_dims, u.value.dtype)
            found.append(u.value.movedim(dim, 1).reshape(s, len(part), -1))
        return torch.cat(found, -1)

    def __call__(self, part: PosteriorSampler, position: Tensor) -> Point:
        """The densities and their gradients at u, (s, n, k)."""
        args = (position, *part.data)
        first = position.shape not in self._checked
        with validation(first):
            outputs, _ = self._compute(args) if first or self._compiled is None else self._compiled(args)
        self._checked.add(position.shape)
        return Point(position, *outputs)

    def _draw(self, part: PosteriorSampler, s: int) -> Latents:
        if self._start == "guide":
            return {name: z for name, z in part.draw(s)[0].items() if name in part.latents}
        drawn = sites(part.sampler.model(part.data, s, {}, {}))
        part.check_sites(drawn)
        return {name: part.sampler.value(drawn[name], s) for name in part.latents}

    def _compute(self, args: tuple[Any, ...]) -> tuple[Sequence[Tensor], Any]:
        """Both densities at u and their gradients, as a computation that can be compiled."""
        position, *data = args
        part = replace(self._posterior, data=tuple(data))
        with torch.enable_grad():
            position = position.detach().requires_grad_()
            nothing = 0 * position.sum(-1)  # a density may be the same everywhere
            densities = [density + nothing for density in self._log_probs(part, position)]
            gradients = [
                torch.autograd.grad(density.sum(), position, retain_graph=True, materialize_grads=True)[0]
                for density in densities
            ]
        return [*(density.detach() for density in densities), *gradients], None

    def _log_probs(self, part: PosteriorSampler, position: Tensor) -> tuple[Tensor, Tensor]:
        """Log π_0 and log π_1, each (s, n)."""
        sampler, s = part.sampler, len(position)
        with _Constrain(self._values(position), sampler.plate_dim) as constrain:
            trace = sampler.model(part.data, s, {}, {})
        at = sites(trace)
        part.check_sites(at)
        log_likelihood, log_prior_of = sampler.joint(trace, s)
        volume = _sum(sampler.log_prob(replace(at[z], log_prob=v), s) for z, v in constrain.log_volume.items())
        log_start = log_prior = _sum(log_prior_of.values())
        if self._start == "guide":
            latents = {name: sampler.value(at[name], s) for name in part.latents}
            log_start = _sum(part.log_posterior(latents).values())
        return log_start + volume, log_likelihood + log_prior + volume

    def _values(self, position: Tensor) -> Latents:
        """The values of u that belong to each site."""
        s, n, _ = position.shape
        parts = position.split([place.numel for place in self._coordinates.values()], -1)
        found = {}
        for part, (name, place) in zip(parts, self._coordinates.items(), strict=True):
            value = part.to(place.dtype).reshape(s, n, *place.plates, *place.event)
            found[name] = Latent(value.movedim(1, 1 + len(place.plates)), len(place.event), place.plate_dims)
        return found


def _labels(layout: Any) -> list[Label]:
    """What the outputs of a path are called."""
    return [(kind, which) for kind in ("log of", "the gradient of log") for which in ("the start", "p(x, z)")]


class _Constrain(Messenger):
    """Gives latent sites z = T(u), each with the support that it has there, and notes log |∂z/∂u|."""

    def __init__(self, values: Latents, plate_dim: int | None) -> None:
        super().__init__()
        self._values = {n: u.folded() if plate_dim is None else u.plated(plate_dim) for n, u in values.items()}
        self.log_volume: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and msg["name"] in self._values:
            name, fn, u = msg["name"], msg["fn"], self._values[msg["name"]]
            transform = to_support(name, fn)
            msg["value"], msg["done"] = transform(u), True
            log_volume = transform.log_abs_det_jacobian(u, msg["value"])
            # Where a latent is masked its density counts for one, and so does the volume.
            self.log_volume[name] = scale_and_mask(log_volume, mask=mask_of_distribution(fn))


def check_movable(name: str, value: Tensor) -> None:
    """Checks that what chains move is all that the model sees of a latent, and its density too.

    Raises:
        ValueError: naming the site, where its value carries more than its numbers.
    """
    if carries_more(value):
        raise ValueError(
            f"the values of the latent {name!r} carry more than their numbers, as straight-through relaxations do: "
            "their density is that of one tensor and the model sees another, which chains cannot move"
        )


def to_support(name: str, fn: Any) -> Transform:
    """The bijection from the reals onto the support of a latent site.

    Raises:
        ValueError: naming the site, where its support is discrete or there is no such bijection.
    """
    try:
        support = fn.support
        support = getattr(support, "base_constraint", support) if _is_mixture(support) else support
        if support.is_discrete:
            raise ValueError(
                f"the latent {name!r} is discrete ({type(fn).__name__}): annealing moves along gradients, which only "
                "continuous latents have; log_marginal sums over latents that are marked for enumeration"
            )
        return biject_to(support)
    except (NotImplementedError, AttributeError) as error:
        raise ValueError(
            f"the support of the latent {name!r} ({type(fn).__name__}) is not known to torch.distributions.biject_to"
        ) from error


def _sum(log_probs: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(log_probs)).sum(0)


def _is_mixture(support: Any) -> bool:
    return isinstance(support, constraints.MixtureSameFamilyConstraint)  # that of its components


def _check_scores(probe: PosteriorSampler) -> None:
    """Checks that the guide knows the density of latents that it has not drawn just then.

    Raises:
        ValueError: where it does not.
    """
    probe.check_density()
    latents, drawn = probe.draw(PROBE_SAMPLES)
    # Those of another sample are as good as its own, but no cache knows them.
    others = {name: replace(latents[name], value=latents[name].value.roll(1, 0)) for name in probe.latents}
    why = "its answer is another one"
    try:
        again = _sum(probe.log_posterior(others).values())
        expected = _sum(drawn.values()).roll(1, 0)
        if torch.allclose(again, expected, rtol=1e-3, atol=1e-3, equal_nan=True):
            return
    except Exception as error:  # whatever a flow without an inverse raises
        why = str(error).strip().split("\n")[0] or type(error).__name__
    raise ValueError(
        "the guide cannot score latents other than those that it has just drawn, as annealing from it needs "
        f'({why}): use start="prior"'
    )
