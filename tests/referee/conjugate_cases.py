"""Random pairs of conjugate families, in inner plates to depth three, with guides that are the posterior or flatter.

One latent for each place of some of the plates, and one observation for each place of all of them: the posterior of a
latent is of its family, and log p(x) a ratio of normalisers. A flatter guide has a share of every parameter of it.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import kl_divergence

from tests.referee.case import Case, N

Parameters = tuple[Tensor, ...]


@dataclass(frozen=True)
class Family:
    """A conjugate pair of distributions.

    Attributes:
        latent: the family of the latent, from its parameters.
        observed: that of an observation given it.
        prior: the parameters.
        statistics: what an observation adds to each parameter.
        log_base: log of the part of p(x|z) that does not depend on z.
        log_normaliser: of the latent's family, from its parameters.
    """

    latent: Callable[..., dist.TorchDistribution]
    observed: Callable[[Tensor], dist.TorchDistribution]
    prior: tuple[float, ...]
    statistics: Callable[[Tensor], Parameters]
    log_base: Callable[[Tensor], Tensor]
    log_normaliser: Callable[..., Tensor]


def _log_gamma(a: Tensor, b: Tensor) -> Tensor:
    return a.lgamma() - a * b.log()


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return a.lgamma() + b.lgamma() - (a + b).lgamma()


FAMILIES = {
    "gamma-Poisson": Family(
        dist.Gamma, dist.Poisson, (2.5, 1.2), lambda x: (x, torch.ones_like(x)), lambda x: -(x + 1).lgamma(), _log_gamma
    ),
    "gamma-exponential": Family(
        dist.Gamma, dist.Exponential, (2.0, 1.5), lambda x: (torch.ones_like(x), x), torch.zeros_like, _log_gamma
    ),
    "beta-Bernoulli": Family(dist.Beta, dist.Bernoulli, (2.0, 3.0), lambda x: (x, 1 - x), torch.zeros_like, _log_beta),
    "beta-geometric": Family(
        dist.Beta, dist.Geometric, (2.5, 2.0), lambda x: (torch.ones_like(x), x), torch.zeros_like, _log_beta
    ),
    "Dirichlet-categorical": Family(
        lambda *alpha: dist.Dirichlet(torch.stack(alpha, -1)),
        dist.Categorical,
        (1.5, 2.0, 1.2),
        lambda x: tuple((x == i).to(torch.float64) for i in range(3)),
        lambda x: torch.zeros_like(x, dtype=torch.float64),
        lambda *alpha: sum(a.lgamma() for a in alpha) - sum(alpha).lgamma(),
    ),
}


@contextmanager
def within(plates: list[pyro.plate]) -> Iterator[None]:
    """All of these plates."""
    with ExitStack() as stack:
        for plate in plates:
            stack.enter_context(plate)
        yield


class Conjugate(nn.Module):
    """Some families side by side, each with a latent `z` and an observation `x` of its own number.

    Arguments: what each observes, (n, *sizes), and which observations count, (n, *sizes).
    """

    def __init__(self, names: list[str], sizes: list[int], depths: list[int], share: float, backwards: bool) -> None:
        super().__init__()
        self.names, self.sizes, self.depths, self.share, self.backwards = names, sizes, depths, share, backwards
        self.log_share = nn.Parameter(torch.tensor(share).log())

    def components(self):
        """Number, family, and how many of the plates, from the outermost, the latent lies in."""
        return [(i, FAMILIES[name], depth) for i, (name, depth) in enumerate(zip(self.names, self.depths, strict=True))]

    def plates(self) -> list[pyro.plate]:
        """The inner plates, the outermost first: dims -1 - len(sizes), ..., -2."""
        return [pyro.plate(f"plate{i}", size, dim=i - 1 - len(self.sizes)) for i, size in enumerate(self.sizes)]

    def model(self, *args):
        *xs, keep = args
        plates = self.plates()
        with pyro.plate("data", len(keep)):
            for i, family, depth in self.components():
                with within(plates[:depth]):
                    prior = [torch.tensor(value, dtype=self.log_share.dtype) for value in family.prior]
                    z = pyro.sample(f"z{i}", family.latent(*prior))
                with within(plates), poutine.mask(mask=keep.movedim(0, -1)):
                    pyro.sample(f"x{i}", family.observed(z), obs=xs[i].movedim(0, -1))

    def guide(self, *args):
        *xs, keep = args
        plates = self.plates()
        with pyro.plate("data", len(keep)):
            components = self.components()
            for i, family, depth in components[::-1] if self.backwards else components:
                posterior = self.posterior(family, depth, xs[i], keep)
                with within(plates[:depth]):
                    parameters = [(self.log_share.exp() * value).to(self.log_share.dtype) for value in posterior]
                    pyro.sample(f"z{i}", family.latent(*parameters))

    def posterior(self, family: Family, depth: int, x: Tensor, keep: Tensor) -> list[Tensor]:
        """The parameters of p(z|x), (*plates of the latent, 1, ..., n): the places of the other plates have size 1."""
        places = list(range(depth + 1, len(self.sizes) + 1))
        found = []
        for prior, statistic in zip(family.prior, family.statistics(x.double()), strict=True):
            total = torch.where(keep, statistic, 0.0)
            total = total.sum(places, keepdim=True) if places else total
            value = (prior + total).movedim(0, -1)
            while depth == 0 and value.dim() > 1:
                value = value[0]
            found.append(value)
        return found

    def exact(self, *args) -> tuple[Tensor, Tensor, Tensor]:
        """Log p(x), the ELBO and log E_q[(w / p(x))²]."""
        *xs, keep = args
        log_p, kl, spread = torch.zeros(3, len(keep)).double()
        for i, family, depth in self.components():
            posterior = self.posterior(family, depth, xs[i], keep)
            prior = torch.tensor(family.prior, dtype=torch.float64).unbind()
            ratio = family.log_normaliser(*posterior) - family.log_normaliser(*prior)
            base = torch.where(keep, family.log_base(xs[i].double()), 0.0)
            log_p = log_p + ratio.reshape(-1, len(keep)).sum(0) + base.reshape(len(keep), -1).sum(1)
            q, p = family.latent(*(self.share * value for value in posterior)), family.latent(*posterior)
            kl = kl + kl_divergence(q, p).reshape(-1, len(keep)).sum(0)
            normaliser = [
                family.log_normaliser(*(t * value for value in posterior)) for t in (2 - self.share, self.share, 1)
            ]
            spread = spread + (normaliser[0] + normaliser[1] - 2 * normaliser[2]).reshape(-1, len(keep)).sum(0)
        return log_p, log_p - kl, spread


def conjugate(rng: random.Random) -> Case:
    """A random one."""
    sizes = [2] * rng.randint(0, 3)
    names = rng.sample(list(FAMILIES), rng.randint(1, 2 if len(sizes) < 3 else 1))
    depths = [rng.randint(0, min(2, len(sizes))) for _ in names]
    share, dtype = rng.choice([1.0, 0.9, 0.8]), rng.choice([torch.float32, torch.float64])
    masked = rng.random() < 0.5
    pair = Conjugate(names, sizes, depths, share, rng.random() < 0.5).to(dtype)
    keep = torch.rand(N, *sizes) < (0.7 if masked else 2.0)
    xs = []
    for name in names:
        family = FAMILIES[name]
        prior = torch.tensor(family.prior, dtype=torch.float64).unbind()
        x = family.observed(family.latent(*prior).expand([N]).sample()).sample(tuple(sizes)).movedim(-1, 0)
        xs.append(x if name.endswith("categorical") else x.to(dtype))
    args = (*xs, keep)
    log_p, elbo, spread = pair.exact(*args)
    shown = f"{names}, plates {sizes}, latents in {depths} of them, share {share}, masked {masked}, {dtype}"
    return Case(shown, pair, args, log_p, elbo, spread, share == 1.0, aligned=False)
