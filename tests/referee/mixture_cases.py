"""Random pairs with discrete latents: summed over by the guide, by the model alone, or drawn.

Given the joint value c of all categories everything is normal, z ~ N(a_c, τ² I) and x ~ N(W z + v_c, σ² I), so that
p(x) is a sum over c. The categories lie one below the other, or side by side in an inner plate.
"""

import itertools
import math
import random
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from tests.referee.case import Case, N

K = 3
"""Values of a category."""


@dataclass(frozen=True)
class Shape:
    """How a pair is built.

    Attributes:
        plated: whether the categories lie in an inner plate, each with its part of x, or y2 below y1.
        count: how many there are.
        mode: "guide" and "model" sum over them, in the guide or in the model alone; "drawn" draws.
        latent: dims of z; 0 is none.
        data: dims of x, of each part in a plate.
        first: whether the guide draws z before the categories, and the model after them.
        masked: whether parts in the plate may be left out.
    """

    plated: bool
    count: int
    mode: str
    latent: int
    data: int
    first: bool
    masked: bool
    flat: float


class Mixture(nn.Module):
    """The pair. Arguments: x, (n, count, d) where the categories lie in a plate, else (n, d); the mask (n, count)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        parts = shape.count if shape.plated else 1
        self.logits = nn.Parameter(torch.randn(K))
        self.below = nn.Parameter(torch.randn(K, K))
        self.prior_loc = nn.Parameter(torch.randn(*(K,) * (1 if shape.plated else shape.count), shape.latent))
        self.data_loc = nn.Parameter(1.5 * torch.randn(*(K,) * (1 if shape.plated else shape.count), shape.data))
        self.weight = nn.Parameter(0.7 * torch.randn(parts, shape.data, shape.latent))
        self.register_buffer("joint", torch.tensor(list(itertools.product(range(K), repeat=shape.count))))
        self.tau, self.sigma = 0.8, 0.9

    # Everything by the joint value c, in float64.

    def of_joint(self, x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log p(c) and log p(x|c), (n, C); mean (n, C, k) and covariance (n, k, k) of p(z|x, c)."""
        s, c = self.shape, self.joint
        x, keep = x.double().reshape(len(x), -1), keep.double()
        log_p = self.logits.double().log_softmax(-1)
        if s.plated:
            log_prior = (log_p[c] * keep.unsqueeze(1) - (1 - keep.unsqueeze(1)) * math.log(K)).sum(-1)
            prior_loc = torch.zeros(len(c), s.latent, dtype=torch.float64)
            data_loc = self.data_loc.double()[c].flatten(1)
        else:
            log_prior = log_p[c[:, 0]].expand(len(x), -1)
            if s.count == 2:
                log_prior = log_prior + self.below.double().log_softmax(-1)[c[:, 0], c[:, 1]]
            prior_loc, data_loc = self.prior_loc.double()[tuple(c.T)], self.data_loc.double()[tuple(c.T)]
        weight = self.weight.double().flatten(0, 1)
        counts = keep.repeat_interleave(s.data, -1) if s.plated else torch.ones_like(x)
        precision = torch.eye(s.latent, dtype=torch.float64) / self.tau**2
        precision = precision + (weight.T * counts.unsqueeze(1)) @ weight / self.sigma**2
        covariance = torch.linalg.inv(precision)
        residual = (x.unsqueeze(1) - data_loc - prior_loc @ weight.T) * counts.unsqueeze(1)
        pull = residual @ weight / self.sigma**2
        mean = prior_loc + pull @ covariance
        log_x = dist.Normal(torch.zeros_like(residual), self.sigma).log_prob(residual) * counts.unsqueeze(1)
        log_x = log_x.sum(-1) + 0.5 * ((pull @ covariance) * pull).sum(-1)
        if s.latent:
            log_x = log_x - 0.5 * (precision.logdet() + 2 * s.latent * math.log(self.tau)).unsqueeze(-1)
        return log_prior, log_x, mean, covariance

    def plate(self):
        return pyro.plate("parts", self.shape.count, dim=-2)

    def categories(self, probs, keep: Tensor, mode: str, plate) -> list[Tensor]:
        """Samples the categories; `probs` gives the distribution of each from those before it."""
        infer = {"enumerate": "parallel"} if mode == self.shape.mode else {}
        if self.shape.plated:
            with plate, poutine.mask(mask=keep.T):
                return [pyro.sample("y", probs([]), infer=infer)]
        values: list[Tensor] = []
        for i in range(self.shape.count):
            values.append(pyro.sample(f"y{i + 1}", probs(values), infer=infer))
        return values

    def model(self, x, keep):
        s = self.shape
        with pyro.plate("data", len(x)):
            below = lambda y: dist.Categorical(logits=self.below[y[0]] if y else self.logits)  # noqa: E731
            z, plate = None, self.plate()
            y = self.categories(below, keep, "model", plate)
            if s.latent:
                loc = self.prior_loc.new_zeros(s.latent) if s.plated else self.prior_loc[tuple(y)]
                z = pyro.sample("z", dist.Normal(loc, self.tau).to_event(1))
            if not s.plated:
                mean = self.data_loc[tuple(y)]
                mean = mean if z is None else mean + z @ self.weight[0].T
                pyro.sample("x", dist.Normal(mean, self.sigma).to_event(1), obs=x)
                return
            with plate, poutine.mask(mask=keep.T):
                mean = self.data_loc[y[0]]
                if z is not None:  # z: (*lead, 1?, n, k) against the parts at dim -2
                    z = z if z.dim() > 2 else z.unsqueeze(0)
                    mean = mean + (self.weight[:, None] @ z.unsqueeze(-1)).squeeze(-1)
                pyro.sample("x", dist.Normal(mean, self.sigma).to_event(1), obs=x.transpose(0, 1))

    def guide(self, x, keep):
        s = self.shape
        with torch.no_grad():
            log_prior, log_x, mean, covariance = self.of_joint(x, keep)
            q = self.of_guide(log_prior, log_x)
        with pyro.plate("data", len(x)):
            if s.latent and (s.mode == "model" or s.first):
                self.draw_wide(q, mean, covariance)
            if s.mode != "model":
                y = self.categories(self.conditionals(q), keep, "guide", self.plate())
            if s.latent and s.mode != "model" and not s.first:
                self.draw_given(y, mean, covariance)

    def of_guide(self, log_prior: Tensor, log_x: Tensor) -> Tensor:
        """q(c|x), (n, C): the posterior, flatter."""
        q = ((1 - self.shape.flat) * (log_prior + log_x)).softmax(-1)
        if self.shape.plated:  # factorised over the plate
            table = q.unflatten(-1, (K,) * self.shape.count)
            parts = [table.sum([d + 1 for d in range(self.shape.count) if d != i]) for i in range(self.shape.count)]
            q = torch.stack([part[:, self.joint[:, i]] for i, part in enumerate(parts)]).prod(0)
        return q

    def conditionals(self, q: Tensor):
        """The guide's distributions of the categories."""
        table = q.unflatten(-1, (K,) * self.shape.count).to(self.logits.dtype)
        if self.shape.plated:
            parts = [table.sum([d + 1 for d in range(self.shape.count) if d != i]) for i in range(self.shape.count)]
            return lambda y: dist.Categorical(torch.stack(parts))
        if self.shape.count == 1:
            return lambda y: dist.Categorical(table)
        rows = torch.arange(len(q))
        return lambda y: dist.Categorical(table[rows, y[0]] if y else table.sum(-1))

    def draw_wide(self, q: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
        """z from a normal that covers all c."""
        loc, scale = _covering(q, mean, covariance)
        return pyro.sample("z", dist.Normal(loc.to(self.logits.dtype), scale.to(self.logits.dtype)).to_event(1))

    def draw_given(self, y: list[Tensor], mean: Tensor, covariance: Tensor) -> Tensor:
        """z from p(z|x, c)."""
        rows = torch.arange(len(mean))
        if self.shape.plated:
            value, c = y[0].movedim(-2, -1), torch.zeros_like(y[0][..., 0, :])
            for i in range(self.shape.count):
                c = c * K + value[..., i]
            c = c if c.dim() == 1 else c.unsqueeze(-2)
        else:
            c = y[0] if self.shape.count == 1 else y[0] * K + y[1]
        loc = mean.to(self.logits.dtype)[rows, c]
        factor = torch.linalg.cholesky(covariance).to(loc.dtype)
        return pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=factor))

    @torch.no_grad()
    def exact(self, x, keep) -> tuple[Tensor, Tensor | None, Tensor | None, bool]:
        """Log p(x), the ELBO and log E_q[(w / p(x))²] where they are known, and whether every weight is p(x)."""
        log_prior, log_x, _, _ = self.of_joint(x, keep)
        log_p, log_q, s = (log_prior + log_x).logsumexp(-1), self.of_guide(log_prior, log_x).log(), self.shape
        if s.latent and (s.mode == "model" or s.first):
            return log_p, None, None, False
        zero = torch.zeros_like(log_p)
        if s.mode == "model":
            return log_p, log_p, zero, True
        elbo = (log_q.exp() * (log_prior + log_x - log_q)).sum(-1)  # of what is left out, both are uniform
        spread = (2 * (log_prior + log_x) - log_q).logsumexp(-1) - 2 * log_p
        return log_p, elbo, zero if s.mode == "guide" else spread, s.mode == "guide"


def _covering(q: Tensor, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale of a normal wider than the mixture over c, (n, k)."""
    loc = (q.unsqueeze(-1) * mean).sum(1)
    between = (q.unsqueeze(-1) * (mean - loc.unsqueeze(1)).square()).sum(1)
    return loc, 1.3 * (covariance.diagonal(dim1=-2, dim2=-1) + 1.5 * between + 0.05).sqrt()


def mixture(rng: random.Random) -> Case:
    """A random one."""
    plated = rng.random() < 0.5
    shape = Shape(
        plated=plated,
        count=rng.randint(2, 3) if plated else rng.randint(1, 2),
        mode=rng.choice(["guide", "model", "drawn"]),
        latent=rng.choice([0, 1, 2]),
        data=rng.randint(1, 3),
        first=rng.random() < 0.3,
        masked=plated and rng.random() < 0.5,
        flat=rng.choice([0.0, 0.2, 0.4]),
    )
    dtype, pair = rng.choice([torch.float32, torch.float64]), Mixture(shape)
    x = 2 * torch.randn(N, *((shape.count,) if plated else ()), shape.data)
    keep = torch.rand(N, shape.count) < (0.7 if shape.masked else 2.0)
    x = torch.where(keep.unsqueeze(-1), x, 50.0) if plated else x
    pair, x = pair.to(dtype), x.to(dtype)
    log_p, elbo, spread, exact = pair.exact(x, keep)
    return Case(
        f"{shape}, {dtype}",
        pair,
        (x, keep),
        log_p,
        elbo,
        spread,
        exact,
        reparameterized=False,
        rare=shape.mode == "drawn",
    )
