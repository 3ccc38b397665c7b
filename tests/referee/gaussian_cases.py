"""Random normal pairs: hierarchies and chains of sites in plates, with masks, transforms and guides of all kinds."""

import math
import random
from dataclasses import replace

import torch
from torch import Tensor

from tests.referee.case import Case, N, some
from tests.referee.gaussians import TRANSFORMS, Gaussian, Manner, Node, Plan, Story

LATENT, OBSERVED = 9, 14
"""The most elements of a datum that are latent, and observed."""

MOST_SPREAD = math.log(10.0)
"""The largest log E[(w / p(x))²] of a guide: heavier weights would take more draws than a test has."""


def hierarchy(rng: random.Random) -> Case:
    """Latents and data in a random graph, in up to three inner plates, with up to three event dims."""
    sizes = [rng.randint(2, 3) for _ in range(rng.choice([0, 0, 1, 1, 2, 3]))]
    nodes: list[Node] = []
    roles = [False] * rng.randint(1, 4) + [True] * rng.randint(1, 2)
    rng.shuffle(roles)
    roles.sort(key=lambda observed: observed and not rng.random() < 0.3)
    for observed in [False, *roles, True]:
        nodes.append(_node(rng, nodes, sizes, observed))
    return _case(rng, _fitting(nodes), "hierarchy")


def series(rng: random.Random) -> Case:
    """A linear state-space model, its time a loop of sites; series may be shorter than the longest."""
    k, d, steps = rng.randint(1, 2), rng.randint(1, 3), rng.randint(2, 4)
    event = () if k == 1 and rng.random() < 0.5 else (k,)
    nodes = []
    for t in range(steps):
        nodes.append(Node(f"z{t}", False, (), event, (f"z{t - 1}",) if t else (), None))
        nodes.append(Node(f"x{t}", True, (), (d,), (f"z{t}",)))
    return _case(rng, nodes, "series")


def _node(rng: random.Random, before: list[Node], sizes: list[int], observed: bool) -> Node:
    """A site that depends on some of those before it whose plates it lies in."""
    inside = some(rng, range(len(sizes)), least=len(sizes) if observed and rng.random() < 0.5 else 0)
    shape = tuple(size if i in inside else 1 for i, size in enumerate(sizes))
    event = tuple(rng.choice([1, 2, 2, 3]) for _ in range(rng.choice([0, 0, 1, 1, 1, 2, 3])))
    eligible = [node.name for node in before if all(a in (1, b) for a, b in zip(node.shape, shape, strict=True))]
    parents = tuple(some(rng, eligible, 3, least=1))
    transform = rng.choice([None, None, *TRANSFORMS]) if not observed else None
    return Node(f"{'x' if observed else 'z'}{len(before)}", observed, shape, event, parents, transform)


def _fitting(nodes: list[Node]) -> list[Node]:
    """The same with fewer elements, where they would be too many."""
    for most, observed in ((LATENT, False), (OBSERVED, True)):
        for i in range(len(nodes)):
            if sum(node.size for node in nodes if node.observed == observed) > most and nodes[i].observed == observed:
                nodes[i] = replace(nodes[i], event=())
    latents = [node for node in nodes if not node.observed]
    while sum(node.size for node in latents) > LATENT and len(latents) > 1:
        gone = max(latents, key=lambda node: node.size)
        latents.remove(gone)
        nodes = [
            replace(node, parents=tuple(parent for parent in node.parents if parent != gone.name))
            for node in nodes
            if node is not gone
        ]
        latents = [node for node in nodes if not node.observed]
    return nodes


def _story(nodes: list[Node], kind: str) -> Story:
    """Random weights; of a series the same at all times."""
    story = Story(tuple(nodes), torch.zeros(0), 0.5 + 0.7 * torch.rand(sum(node.size for node in nodes)).double())
    weight = torch.zeros(len(story.scale), len(story.scale), dtype=torch.float64)
    by_name, shared = {node.name: node for node in nodes}, {}
    for node in nodes:
        for parent in node.parents:
            a, b = node.places(), by_name[parent].places()
            together = ((b == -1) | (a.unsqueeze(1) == b)).all(-1)
            slopes = torch.randn(node.size, by_name[parent].size).double()
            if kind == "series":
                slopes = shared.setdefault((node.name[0], parent[0]), slopes)
            weight[story.parts[node.name], story.parts[parent]] = 0.9 * slopes * together / together.sum(1).max().sqrt()
    return replace(story, weight=weight)


def _masks(rng: random.Random, story: Story, kind: str) -> tuple[str, Tensor | None]:
    """Which elements count, (n, D): what depends on one that is left out is left out too."""
    keep = torch.ones(N, len(story.scale), dtype=torch.bool)
    parents = {parent for node in story.nodes for parent in node.parents}
    if kind == "series" and rng.random() < 0.6:
        lengths = torch.tensor([rng.randint(1, len(story.nodes) // 2) for _ in range(N)])
        lengths = lengths.sort(descending=rng.random() < 0.5).values
        for node in story.nodes:
            keep[:, story.parts[node.name]] = (int(node.name[1:]) < lengths).unsqueeze(-1)
        return "lengths", keep
    chosen = rng.choice(["none", "none", "plate", "batch", "event"])
    plates = sorted({dim for node in story.nodes for dim in node.plates})
    if chosen == "plate" and plates:
        dim = rng.choice(plates)
        size = max(node.shape[dim + 1] for node in story.nodes)
        lengths = torch.tensor([rng.randint(1, size) for _ in range(N)])
        for node in story.nodes:
            keep[:, story.parts[node.name]] = node.places()[:, dim + 1] < lengths.unsqueeze(-1)
        return f"mask of plate {dim}", keep
    if chosen in ("batch", "event"):
        for node in (node for node in story.nodes if node.observed and node.name not in parents):
            e = 1 if chosen == "event" else math.prod(node.event)
            keep[:, story.parts[node.name]] = (torch.rand(N, node.size // e) < 0.7).repeat_interleave(e, -1)
        return f"mask of {chosen}", keep
    return "no mask", None


def _plan(rng: random.Random, story: Story, mask: str) -> Plan:
    """A guide of some kind. What a mask may leave out is not looked back at by what it does not."""
    latents = [node.name for node in story.nodes if not node.observed]
    order = rng.choice([latents, latents[::-1], rng.sample(latents, len(latents))])
    kind = rng.choice(["exact", "mean-field", "any", "any"])
    if kind == "exact":
        return Plan(tuple(latents), frozenset(latents), frozenset(latents))
    free = [name for name in latents if rng.random() < 0.5] if kind == "any" else []
    correlated = [name for name in latents if rng.random() < 0.5] if kind == "any" else []
    return Plan(
        tuple(order),
        frozenset(free),
        frozenset(correlated),
        frozenset(name for name in latents if name not in correlated and rng.random() < 0.3),
        shift=rng.choice([0.0, 0.1, 0.3]),
        width=rng.choice([1.0, 1.1, 1.3]),
    )


def _case(rng: random.Random, nodes: list[Node], kind: str) -> Case:
    story = _story(nodes, kind)
    mask, keep = _masks(rng, story, kind)
    plain = all(not node.plates for node in nodes)
    style = rng.choice(["any", "any", "loud", "silent"]) if plain else "any"
    manner = Manner(style, event_mask=mask == "mask of event", scaled=rng.random() < 0.2)
    plan, dtype = _plan(rng, story, mask), rng.choice([torch.float32, torch.float64])
    x_index, mean = story.index(observed=True), story.mean(pair_offset := 0.5 * torch.randn(len(story.scale)))
    covariance = torch.linalg.inv(story.precision(torch.ones(1, len(story.scale)).double()))[0]
    x = torch.distributions.MultivariateNormal(mean[x_index], covariance[x_index][:, x_index]).sample((N,))
    x = x if keep is None else torch.where(keep[:, x_index], x, 100.0)
    args, start = [], 0
    for node in (node for node in nodes if node.observed):
        shape = (N, *(size for size in node.shape if size > 1), *node.event)
        args.append(x[:, start : start + node.size].reshape(shape).to(dtype))
        start += node.size
    args += [] if keep is None else [keep]
    for pair in _milder(story, plan, manner):
        pair.offset.data = pair_offset
        pair = pair.to(dtype)
        log_p, kl, spread = pair.exact(*args)
        if float(spread.max()) < MOST_SPREAD:
            break
    sites = [f"{n.name}{list(n.shape)}{list(n.event)} of {list(n.parents)} {n.transform or ''}" for n in nodes]
    shown = f"{kind}, {mask}, {manner}, {dtype}, {pair.plan}, {'; '.join(sites)}"
    return Case(shown, pair, tuple(args), log_p, log_p - kl, spread, exact=bool(kl.max() < 1e-10))


def _milder(story: Story, plan: Plan, manner: Manner):
    """The pair with this guide, then with ones that are nearer to the posterior."""
    delta = torch.randn(len(story.index(observed=False)))
    latents = frozenset(plan.order)
    for width in (plan.width, 1.15, 1.3, 1.5):
        for looks_back in (plan.looks_back, latents):
            for shift in (plan.shift, plan.shift / 3):
                pair = Gaussian(story, replace(plan, width=width, looks_back=looks_back, shift=shift), manner)
                pair.delta.data = shift * delta
                yield pair
    in_order = tuple(node.name for node in story.nodes if not node.observed)
    yield Gaussian(story, Plan(in_order, latents, latents), manner)
