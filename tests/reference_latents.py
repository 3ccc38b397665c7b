"""References with several latents, with discrete, positive and bounded ones, in nested plates, under masks."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from tests.exact import N, Reference, diagonal, gaussian

# Several latent dimensions and sites.


class FactorAnalysis(nn.Module):
    """z ~ N(0, I), x ~ N(Wz, diag(ψ)): each dimension has its own noise."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 2))
        self.noise = nn.Parameter(torch.rand(5) + 0.3)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight.T, self.noise.sqrt()).to_event(1), obs=x)

    def guide(self, x):
        scaled = self.weight / self.noise.unsqueeze(-1)
        covariance = (torch.eye(2) + self.weight.T @ scaled).inverse()
        with pyro.plate("data", len(x)):
            pyro.sample("z", diagonal(x @ scaled @ covariance, covariance))


def factor_analysis() -> Reference:
    """Factor analysis."""
    torch.manual_seed(5)
    pair, x = FactorAnalysis(), 2 * torch.randn(N, 5)
    covariance = pair.weight.double() @ pair.weight.double().T + pair.noise.double().diag()
    return Reference(pair, (x,), gaussian(x, covariance.detach()))


class Hierarchy(nn.Module):
    """z2 ~ N(0, I), z1 ~ N(Az2, I/4), x ~ N(Bz1, I/4); guide q(z1|x) q(z2|z1)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(4, 3))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(self.a.new_zeros(2), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(z2 @ self.a.T, 0.5).to_event(1))
            pyro.sample("x", dist.Normal(z1 @ self.b.T, 0.5).to_event(1), obs=x)

    def guide(self, x):
        prior = (self.a @ self.a.T + torch.eye(3) / 4).inverse()
        covariance1 = (prior + 4 * self.b.T @ self.b).inverse()
        covariance2 = (torch.eye(2) + 4 * self.a.T @ self.a).inverse()
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", diagonal(4 * x @ self.b @ covariance1, covariance1))
            pyro.sample("z2", diagonal(4 * z1 @ self.a @ covariance2, covariance2))


def hierarchy() -> Reference:
    """Two latent sites."""
    torch.manual_seed(6)
    pair, x = Hierarchy().double(), 2 * torch.randn(N, 4, dtype=torch.float64)
    a, b = pair.a.detach(), pair.b.detach()
    inner = a @ a.T + torch.eye(3, dtype=torch.float64) / 4
    return Reference(pair, (x,), gaussian(x, b @ inner @ b.T + torch.eye(4, dtype=torch.float64) / 4))


class Mixture(nn.Module):
    """y ~ Categorical(π), x ~ N(μ_y, I): a discrete latent, which the guide samples."""

    probs = torch.tensor([0.2, 0.5, 0.3])

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(2 * torch.randn(3, 2))

    def joint(self, x: Tensor) -> Tensor:
        """Log p(x, y), shape (n, 3)."""
        return dist.Normal(self.loc, 1.0).to_event(1).log_prob(x.unsqueeze(-2)) + self.probs.log()

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(self.probs))
            pyro.sample("x", dist.Normal(self.loc[y], 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(0.8 * self.joint(x).softmax(-1) + 0.2 / 3))


def mixture() -> Reference:
    """A discrete latent."""
    torch.manual_seed(7)
    pair, x = Mixture(), 2 * torch.randn(N, 2)
    return Reference(pair, (x,), pair.joint(x).double().logsumexp(-1).detach())


# Latents that are not Gaussian.


class GammaPoisson(nn.Module):
    """z ~ Gamma(2, 1/2), x ~ Poisson(z): p(x) is negative binomial."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(2.0, 0.5))
            pyro.sample("x", dist.Poisson(z), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(0.9 * (2.0 + x), 0.8 * 1.5))


def gamma_poisson() -> Reference:
    """A positive latent, and a pair without a single parameter."""
    torch.manual_seed(8)
    x = torch.poisson(torch.full((N,), 4.0))
    exact = dist.NegativeBinomial(torch.tensor(2.0, dtype=torch.float64), probs=1 / 1.5).log_prob(x.double())
    return Reference(GammaPoisson(), (x,), exact)


class BetaBernoulli(nn.Module):
    """z ~ Beta(2, 3), five x ~ Bernoulli(z)."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Beta(2.0, 3.0))
            probs = z.unsqueeze(-1).expand(*z.shape, 5)
            pyro.sample("x", dist.Bernoulli(probs).to_event(1), obs=x)

    def guide(self, x):
        heads = x.sum(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Beta(0.8 * (2 + heads), 0.8 * (3 + 5 - heads)))


def beta_bernoulli() -> Reference:
    """A latent in the unit interval."""
    torch.manual_seed(9)
    x = torch.bernoulli(torch.full((N, 5), 0.4))
    heads = x.sum(-1).double()

    def log_beta(a: Tensor, b: Tensor) -> Tensor:
        return a.lgamma() + b.lgamma() - (a + b).lgamma()

    two, three = torch.tensor([2.0, 3.0], dtype=torch.float64)
    return Reference(BetaBernoulli(), (x,), log_beta(2 + heads, 8 - heads) - log_beta(two, three))


# Nested plates, masks and factors.


class MaskedSeries(nn.Module):
    """Series of unequal lengths: z ~ N(0, 1), w_t ~ N(z, 1/4), x_t ~ N(w_t, 1) for t below the length.

    The time plate lies inside the data plate, at dim -2; what is beyond the length is masked. The guide has a factor
    that is no density.
    """

    def model(self, x, length):
        t = torch.arange(x.shape[1]).unsqueeze(-1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("time", x.shape[1], dim=-2), poutine.mask(mask=t < length):
                w = pyro.sample("w", dist.Normal(z, 0.5))
                pyro.sample("x", dist.Normal(w, 1.0), obs=x.T)

    def guide(self, x, length):
        t = torch.arange(x.shape[1]).unsqueeze(-1)
        total = torch.where(t < length, x.T, 0.0).sum(0)
        with pyro.plate("data", len(x)):
            precision = 1 + length / 1.25
            z = pyro.sample("z", dist.Normal(total / 1.25 / precision, 1.2 * precision.rsqrt()))
            pyro.factor("auxiliary", 5.0 * total, has_rsample=False)
            with pyro.plate("time", x.shape[1], dim=-2), poutine.mask(mask=t < length):
                pyro.sample("w", dist.Normal((4 * z + x.T) / 5, 1.2 * math.sqrt(1 / 5)))


def masked_series() -> Reference:
    """A nested plate with masked latents and data; masked values are garbage that must not matter."""
    torch.manual_seed(10)
    length = torch.randint(1, 5, (N,))
    x = torch.randn(N, 4)
    x = torch.where(torch.arange(4) < length.unsqueeze(-1), x, 1e3)
    exact = [gaussian(x[i, :m], 1.25 * torch.eye(m) + 1) for i, m in enumerate(length.tolist())]
    return Reference(MaskedSeries(), (x, length), torch.stack(exact))
