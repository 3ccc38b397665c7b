"""Pairs in which everything is normal, so that log p(x), the posterior and the ELBO are matters of linear algebra.

A model is a directed graph of sites, each an affine function of its parents plus noise: chains, hierarchies, series. A
guide draws the latents in an order of its own, each from what the posterior says of it given x, and given the draws
before it or not; with or without correlations; shifted and widened or not. So the latents are jointly normal under it.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import transforms

TRANSFORMS = {
    "exp": transforms.ExpTransform(),
    "affine": transforms.AffineTransform(0.5, -2.0),
    "softplus": transforms.SoftplusTransform(),
}


@dataclass(frozen=True)
class Node:
    """A site. Its elements are ordered by the places in the inner plates, the leftmost first, then by the event.

    `shape` has the sizes of all inner plates of the story, from the leftmost to dim -2, with 1 for those around others.
    """

    name: str
    observed: bool
    shape: tuple[int, ...]
    event: tuple[int, ...]
    parents: tuple[str, ...]
    transform: str | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape) * math.prod(self.event)

    @property
    def plates(self) -> list[int]:
        """Dims of the inner plates that it lies in, from the outermost."""
        return [i - len(self.shape) - 1 for i, size in reversed(list(enumerate(self.shape))) if size > 1]

    def places(self) -> Tensor:
        """The place of each element in each inner plate, (size, plates); -1 in those that it does not lie in."""
        grid = torch.cartesian_prod(*map(torch.arange, (*self.shape, math.prod(self.event)))).reshape(self.size, -1)
        absent = torch.tensor([size == 1 for size in self.shape], dtype=torch.bool)
        return grid[:, :-1].masked_fill(absent, -1)


@dataclass(frozen=True)
class Story:
    """The graph; weights (D, D) from each element to each, and scales (D,) of the noise, over all elements."""

    nodes: tuple[Node, ...]
    weight: Tensor
    scale: Tensor

    @cached_property
    def parts(self) -> dict[str, slice]:
        """Where the elements of each site lie."""
        found, start = {}, 0
        for node in self.nodes:
            found[node.name] = slice(start, start := start + node.size)
        return found

    def index(self, *, observed: bool) -> Tensor:
        """The elements of all latents, or of all that is observed."""
        all_of_them = torch.arange(len(self.scale))
        return torch.cat([all_of_them[self.parts[node.name]] for node in self.nodes if node.observed == observed])

    def precision(self, keep: Tensor) -> Tensor:
        """Of the joint of each datum, (n, D, D); what is left out is independent of the rest."""
        residual = torch.eye(len(self.scale), dtype=torch.float64) - self.weight
        return residual.T @ ((keep / self.scale**2).unsqueeze(-1) * residual) + torch.diag_embed(1 - keep)

    def mean(self, offset: Tensor) -> Tensor:
        """Of the joint, (D,)."""
        return torch.linalg.solve(torch.eye(len(self.scale), dtype=torch.float64) - self.weight, offset.double())


@dataclass(frozen=True)
class Plan:
    """How a guide goes about it: its order, what looks at the draws before it, has correlations, is made by a Delta."""

    order: tuple[str, ...]
    looks_back: frozenset[str] = frozenset()
    correlated: frozenset[str] = frozenset()
    by_delta: frozenset[str] = frozenset()
    shift: float = 0.0
    width: float = 1.0


@dataclass(frozen=True)
class Manner:
    """How the code is written: how it takes leading dims ("any"; "loud" raises; "silent" is wrong), and what is around.

    `event_mask` masks observed elements inside the distribution; `scaled` puts all under a scale.
    """

    style: str = "any"
    event_mask: bool = False
    scaled: bool = False


@dataclass
class Posterior:
    """p(z|x) of each datum, and what the guide makes of it; over all latent elements, in float64."""

    mean: Tensor
    covariance: Tensor
    steps: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=dict)
    """By site: its elements, those it looks back at, the slopes in these (n, d, p), and its covariance (n, d, d)."""


class Gaussian(nn.Module):
    """A story as a pair. Arguments: what each site observes, (n, *plates, *event), and which elements count, (n, D)."""

    def __init__(self, story: Story, plan: Plan, manner: Manner) -> None:
        super().__init__()
        self.story, self.plan, self.manner = story, plan, manner
        self.offset = nn.Parameter(0.5 * torch.randn(len(story.scale)))
        self.delta = nn.Parameter(plan.shift * torch.randn(len(story.index(observed=False))))
        self.log_width = nn.Parameter(torch.tensor(math.log(plan.width)))

    # Values of sites as rows of elements, and back, whatever leading dims there are.

    def rows(self, node: Node, value: Tensor, n: int) -> Tensor:
        """(*lead, *plates, n, *event) as (*lead, n, size)."""
        if self.manner.style == "loud":
            return value.reshape(n, node.size)
        value = value.reshape(*value.shape[: value.dim() - len(node.event)], -1)
        value = value[(None,) * (len(node.shape) + 2 - value.dim())]
        return value.movedim(-2, -2 - len(node.shape)).flatten(-1 - len(node.shape))

    def values(self, node: Node, rows: Tensor, event: tuple[int, ...] | None = None) -> Tensor:
        """(*lead, n, size) as (*lead, *plates, n, *event)."""
        event, lead = node.event if event is None else event, rows.dim() - 2
        value = rows.reshape(*rows.shape[:-1], *node.shape, *event).movedim(lead, lead + len(node.shape))
        nesting = max([1, *(-dim for dim in node.plates)])
        return value if lead else value[(0,) * (value.dim() - len(event) - nesting)]

    @contextmanager
    def around(self, node: Node, plates: dict[int, pyro.plate], keep: Tensor | None) -> Iterator[None]:
        """The inner plates of a site, and its mask."""
        with ExitStack() as stack:
            for dim in node.plates:
                stack.enter_context(plates[dim])
            if keep is not None and not (self.manner.event_mask and node.observed):
                of_elements = self.values(node, keep[:, self.story.parts[node.name]])
                of_batch = of_elements[(..., *(0,) * len(node.event))]
                stack.enter_context(poutine.mask(mask=of_batch))
            yield

    def inner_plates(self) -> dict[int, pyro.plate]:
        """The plates inside the data plate, by their dim."""
        sizes = {dim: node.shape[dim + 1] for node in self.story.nodes for dim in node.plates}
        return {dim: pyro.plate(f"plate{-dim}", size, dim=dim) for dim, size in sizes.items()}

    def arguments(self, args: tuple[Tensor, ...]) -> tuple[dict[str, Tensor], Tensor | None]:
        """What each observed site observes, as rows, and what the masks leave in."""
        names = [node.name for node in self.story.nodes if node.observed]
        keep = args[-1] if len(args) > len(names) else None
        return {name: x.reshape(len(x), -1) for name, x in zip(names, args, strict=False)}, keep

    def model(self, *args):
        with poutine.scale(scale=2.5 if self.manner.scaled else 1.0), pyro.plate("data", len(args[0])):
            seen, keep = self.arguments(args)
            plates = self.inner_plates()
            at: dict[str, tuple[Tensor, int]] = {}
            for node in self.story.nodes:
                fn = self.p_of(node, at, keep, len(args[0]))
                with self.around(node, plates, keep):
                    obs = self.values(node, seen[node.name]) if node.observed else None
                    value = pyro.sample(node.name, fn, obs=obs)
                length = len(value)
                if node.transform:
                    value = TRANSFORMS[node.transform].inv(value)
                at[node.name] = self.rows(node, value, len(args[0])), length

    def p_of(self, node: Node, at: dict[str, tuple[Tensor, int]], keep: Tensor | None, n: int):
        """The distribution of a site given its parents."""
        part = self.story.parts[node.name]
        mean = self.offset[part].expand(n, node.size)
        for parent in node.parents:
            value, length = at[parent]
            mean = mean + value @ self.story.weight[part, self.story.parts[parent]].to(value.dtype).T
            if self.manner.style == "silent":
                mean = mean + 0.5 * (length / n - 1)  # zero, unless the first dim is another than the data's
        scale = self.story.scale[part].to(mean.dtype).expand(mean.shape)
        fn = dist.Normal(self.values(node, mean), self.values(node, scale))
        if keep is not None and self.manner.event_mask and node.observed:
            fn = fn.mask(self.values(node, keep[:, part]))
        fn = fn.to_event(len(node.event))
        return dist.TransformedDistribution(fn, [TRANSFORMS[node.transform]]) if node.transform else fn

    def guide(self, *args):
        with poutine.scale(scale=2.5 if self.manner.scaled else 1.0), pyro.plate("data", len(args[0])):
            _, keep = self.arguments(args)
            plates = self.inner_plates()
            posterior = self.posterior(*args)
            nodes = {node.name: node for node in self.story.nodes}
            drawn: dict[str, Tensor] = {}
            for name, (here, before, slopes, covariance) in posterior.steps.items():
                mean = (posterior.mean[:, here] + self.delta[here]).to(self.delta.dtype)
                if len(before):
                    offset = torch.cat([drawn[other] for other in drawn], -1) - posterior.mean[:, before].to(mean.dtype)
                    mean = mean + (slopes.to(mean.dtype) @ offset.unsqueeze(-1)).squeeze(-1)
                with self.around(nodes[name], plates, keep):
                    drawn[name] = self.rows(nodes[name], self.draw(nodes[name], mean, covariance), len(args[0]))

    def draw(self, node: Node, mean: Tensor, covariance: Tensor) -> Tensor:
        """Draws a latent and returns it before its transform."""
        name, event, width = node.name, node.event, self.log_width.exp()
        transform = [TRANSFORMS[node.transform]] if node.transform else []
        if name in self.plan.correlated:
            flat = (math.prod(event),)
            blocks = _blocks(node, covariance)  # (n, places, e, e)
            factor = torch.linalg.cholesky(blocks).to(mean.dtype).flatten(1)
            factor = self.values(node, factor, (*flat, *flat)) * width
            loc = self.values(node, mean, flat)
            base = dist.MultivariateNormal(loc, scale_tril=factor)
            fn = dist.TransformedDistribution(base, [transforms.ReshapeTransform(flat, event), *transform])
        else:
            scale = covariance.diagonal(dim1=-2, dim2=-1).sqrt().to(mean.dtype).expand(mean.shape) * width
            fn = dist.Normal(self.values(node, mean), self.values(node, scale)).to_event(len(event))
            if name in self.plan.by_delta:
                return self.draw_by_delta(node, fn)
            fn = dist.TransformedDistribution(fn, transform) if transform else fn
        value = pyro.sample(name, fn)
        return TRANSFORMS[node.transform].inv(value) if node.transform else value

    def draw_by_delta(self, node: Node, fn) -> Tensor:
        """As Pyro's autoguides: an auxiliary draw, and a point mass that holds the change of volume."""
        before = pyro.sample(f"{node.name}_unconstrained", fn, infer={"is_auxiliary": True})
        value, log_density = before, torch.zeros(())
        if node.transform:
            transform = TRANSFORMS[node.transform]
            value, volume = transform(before), transform.log_abs_det_jacobian(before, transform(before))
            log_density = -volume.expand(value.shape)
            log_density = log_density.reshape(*value.shape[: value.dim() - len(node.event)], -1).sum(-1)
        pyro.sample(node.name, dist.Delta(value, log_density=log_density, event_dim=len(node.event)))
        return before

    # What is known.

    @torch.no_grad()
    def posterior(self, *args) -> Posterior:
        """Exact moments given x, and the guide's steps."""
        seen, keep = self.arguments(args)
        story, x = self.story, torch.cat(list(seen.values()), -1).double()
        z_index, x_index = story.index(observed=False), story.index(observed=True)
        keep = torch.ones(len(x), len(story.scale)).double() if keep is None else keep.double()
        precision, mean = story.precision(keep), story.mean(self.offset)
        covariance = torch.linalg.inv(precision[:, z_index][:, :, z_index])
        pull = precision[:, z_index][:, :, x_index] @ (x - mean[x_index]).unsqueeze(-1)
        posterior = Posterior(mean[z_index] - (covariance @ pull).squeeze(-1), covariance)
        place = {int(element): i for i, element in enumerate(z_index)}
        nodes = {node.name: node for node in story.nodes}
        before = torch.tensor([], dtype=torch.long)
        for name in self.plan.order:
            part = story.parts[name]
            here = torch.tensor([place[i] for i in range(part.start, part.stop)])
            used = before if name in self.plan.looks_back else before[:0]
            cross = covariance[:, here][:, :, used]
            slopes = torch.linalg.solve(covariance[:, used][:, :, used], cross.mT).mT
            of_site = covariance[:, here][:, :, here] - slopes @ cross.mT
            posterior.steps[name] = here, used, slopes, _used(nodes[name], of_site, name in self.plan.correlated)
            before = torch.cat([before, here])
        return posterior

    @torch.no_grad()
    def exact(self, *args) -> tuple[Tensor, Tensor, Tensor]:
        """Log p(x), KL(q(z|x) ‖ p(z|x)) and log E_q[(w / p(x))²], infinite for light tails, of each datum."""
        seen, keep = self.arguments(args)
        story, x = self.story, torch.cat(list(seen.values()), -1).double()
        z_index, x_index = story.index(observed=False), story.index(observed=True)
        keep = torch.ones(len(x), len(story.scale), dtype=torch.bool) if keep is None else keep
        mean, covariance = story.mean(self.offset), torch.linalg.inv(story.precision(keep.double()))
        posterior = self.posterior(*args)
        of_guide = self.joint_of_guide(posterior)
        found = []
        for i in range(len(x)):
            kept = x_index[keep[i, x_index]]
            block = covariance[i][kept][:, kept]
            log_p = torch.zeros((), dtype=torch.float64)
            if len(kept):
                log_p = dist.MultivariateNormal(mean[kept], block).log_prob(x[i, keep[i, x_index]])
            of_latents = keep[i, z_index]
            p, q = (
                dist.MultivariateNormal(m[i][of_latents], s[i][of_latents][:, of_latents])
                for m, s in ((posterior.mean, posterior.covariance), of_guide)
            )
            found.append(torch.stack([log_p, torch.distributions.kl_divergence(q, p), _spread(p, q)]))
        return tuple(torch.stack(found).unbind(-1))

    def joint_of_guide(self, posterior: Posterior) -> tuple[Tensor, Tensor]:
        """The mean and the covariance of all latents under the guide."""
        n, d = posterior.mean.shape
        slopes, noise = torch.zeros(n, d, d).double(), torch.zeros(n, d, d).double()
        for here, before, of_before, covariance in posterior.steps.values():
            slopes[:, here.unsqueeze(-1), before] = of_before
            noise[:, here.unsqueeze(-1), here] = covariance * (2 * self.log_width.double()).exp()
        solver = torch.linalg.inv(torch.eye(d, dtype=torch.float64) - slopes)
        return posterior.mean + solver @ self.delta.double(), solver @ noise @ solver.mT


def _blocks(node: Node, covariance: Tensor) -> Tensor:
    """The covariance within each place of the inner plates, (n, places, e, e)."""
    places, e = math.prod(node.shape), math.prod(node.event)
    return covariance.reshape(len(covariance), places, e, places, e).diagonal(dim1=1, dim2=3).movedim(-1, 1)


def _used(node: Node, covariance: Tensor, correlated: bool) -> Tensor:
    """What of the covariance of a site its distribution has: that of each place, or the variances alone."""
    places = torch.arange(node.size) // math.prod(node.event) if correlated else torch.arange(node.size)
    return covariance * (places.unsqueeze(-1) == places)


def _spread(p: dist.MultivariateNormal, q: dist.MultivariateNormal) -> Tensor:
    """Log ∫ p² / q."""
    a = 2 * p.precision_matrix - q.precision_matrix
    if not len(a):
        return torch.zeros((), dtype=torch.float64)
    if float(torch.linalg.eigvalsh(a).min()) <= 0.3 * float(torch.linalg.eigvalsh(p.precision_matrix).min()):
        return torch.tensor(math.inf, dtype=torch.float64)
    pull = q.precision_matrix @ (q.mean - p.mean)
    logdets = p.precision_matrix.logdet() - 0.5 * (q.precision_matrix.logdet() + a.logdet())
    return logdets + 0.5 * (pull @ torch.linalg.solve(a, pull) + pull @ (q.mean - p.mean))
