"""Small pairs whose log p(x) is known exactly: in closed form, or by quadrature over a latent of one dimension.

Each function builds a `Reference` from a fixed seed: a pair, its data, and log p of every datum in float64. The guides
are not the exact posteriors (except where a name says so) but have heavier tails than they do, so that the
importance weights have a finite variance and standard errors mean something. Between them the pairs use what users'
code uses: several latents, discrete and bounded ones, nested plates, masks, scales, factors, Pyro's own parameter
statements, an autoguide, and code that does not broadcast over an outer plate, loudly or silently.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.distributions import constraints

import ppvae
from ppvae.models import PPCA

N = 11
"""Data of each reference: more than the trial runs of the estimators take, and no multiple of them."""


@dataclass(frozen=True)
class Reference:
    """A pair, its data, log p of each datum (n,), and how the estimators have to run it."""

    pair: nn.Module
    data: tuple[Any, ...]
    log_prob: Tensor
    broadcasts: bool = True


def quadrature(log_joint: Callable[[Tensor], Tensor], *, low: float = -12.0, high: float = 12.0) -> Tensor:
    """Log ∫ exp(log_joint(z)) dz by the trapezoid rule, exact to rounding for smooth densities on the line.

    Args:
        log_joint: from points (m, 1) to log p(x, z), shape (m, n).
        low: where the integral begins.
        high: where it ends.
    """
    z = torch.linspace(low, high, 4001, dtype=torch.float64)
    return torch.logsumexp(log_joint(z.unsqueeze(-1)), 0) + math.log(float(z[1] - z[0]))


def diagonal(loc: Tensor, covariance: Tensor, inflation: float = 1.3) -> dist.TorchDistribution:
    """A diagonal normal around `loc`, wider than a normal of this covariance."""
    return dist.Normal(loc, inflation * covariance.diagonal().sqrt()).to_event(1)


def gaussian(x: Tensor, covariance: Tensor, mean: Tensor | float = 0.0) -> Tensor:
    """Log N(x; mean, covariance) in float64."""
    loc = torch.zeros(x.shape[-1], dtype=torch.float64) + mean
    return dist.MultivariateNormal(loc, covariance.double()).log_prob(x.double())


# Probabilistic PCA.


def ppca(*, guide: str = "amortized", data_dim: int = 6, latent_dim: int = 2) -> Reference:
    """PPCA with fixed weights; the amortized guide is affine, near the posterior and wider."""
    torch.manual_seed(0)
    pair = PPCA(data_dim, latent_dim, guide=guide)
    with torch.no_grad():
        pair.p_x_given_z.net[0].weight.normal_()
        pair.p_x_given_z.net[0].bias.normal_()
        x = pair.sample(N)
        weight, bias = pair.p_x_given_z.net[0].weight, pair.p_x_given_z.net[0].bias
        if guide == "amortized":
            m = weight.T @ weight + torch.eye(latent_dim)
            slope, encoder = torch.linalg.solve(m, weight.T), pair.q_z_given_x.net[0]
            scale = 1.3 * m.inverse().diagonal().sqrt()
            encoder.weight.copy_(torch.cat([slope, torch.zeros_like(slope)]))
            encoder.bias.copy_(torch.cat([-slope @ bias, scale.expm1().log()]))
    covariance = weight.double() @ weight.double().T + torch.eye(data_dim)
    return Reference(pair, (x,), gaussian(x, covariance.detach(), bias.detach().double()))


# One dimension.


class LinearGaussian(nn.Module):
    """z ~ N(0, 1), x ~ N(cz + d, s²); guide N(ax + b, t²). All of shape (n,)."""

    def __init__(self, c: float = 1.5, d: float = -0.5, s: float = 0.7) -> None:
        super().__init__()
        self.c, self.d, self.log_s = (nn.Parameter(torch.tensor(v)) for v in (c, d, math.log(s)))
        variance = s**2 / (c**2 + s**2)
        self.a = nn.Parameter(torch.tensor(c / (c**2 + s**2)))
        self.b = nn.Parameter(torch.tensor(-d * c / (c**2 + s**2)))
        self.log_t = nn.Parameter(torch.tensor(math.log(1.3 * math.sqrt(variance))))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.c), 1.0))
            pyro.sample("x", dist.Normal(self.c * z + self.d, self.log_s.exp()), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.a * x + self.b, self.log_t.exp()))

    def exact(self, x: Tensor) -> Tensor:
        variance = self.c.double() ** 2 + (2 * self.log_s.double()).exp()
        return dist.Normal(self.d.double(), variance.sqrt()).log_prob(x.double()).detach()


def linear_gaussian() -> Reference:
    """A line through one latent dimension."""
    torch.manual_seed(1)
    pair, x = LinearGaussian(), 2 * torch.randn(N)
    return Reference(pair, (x,), pair.exact(x))


class Scaled(LinearGaussian):
    """The same story under `poutine.scale` and a KL weight: neither is part of log p(x)."""

    def model(self, x):
        with poutine.scale(scale=3.0), ppvae.KLWeight(0.2):
            super().model(x)

    def guide(self, x):
        with poutine.scale(scale=3.0), ppvae.KLWeight(0.2):
            super().guide(x)


def scaled() -> Reference:
    """A pair whose training objective is scaled."""
    torch.manual_seed(2)
    pair, x = Scaled(), 2 * torch.randn(N)
    return Reference(pair, (x,), pair.exact(x))


def pyro_params() -> Reference:
    """The same story as plain functions whose parameters are `pyro.param` statements."""
    torch.manual_seed(3)
    exact, x = LinearGaussian(), 2 * torch.randn(N)

    def model(x):
        c = pyro.param("c", torch.tensor(1.5))
        s = pyro.param("s.scale", torch.tensor(0.7), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(c * z - 0.5, s), obs=x)

    def guide(x):
        a = pyro.param("a", lambda: exact.a.detach().clone())
        t = pyro.param("t", exact.log_t.detach().exp(), constraint=constraints.interval(0.0, 5.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(a * (x + 0.5), t))

    return Reference(ppvae.Pair(model, guide), (x,), exact.exact(x))


def autoguide() -> Reference:
    """An autoguide with parameters for each of 60 data, told by their indices which ones it is given."""
    torch.manual_seed(4)
    x, index = 2 * torch.randn(60), torch.arange(60)

    def plate(x, index):
        return pyro.plate("data", 60, subsample=index, dim=-1)

    def model(x, index):
        with plate(x, index):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    with pyro.settings.context(module_local_params=True):
        guide = AutoNormal(model, init_loc_fn=lambda site: x / 1.25, init_scale=0.6, create_plates=plate)
        guide(x, index)
    x, index = x[7 : 7 + N], index[7 : 7 + N]
    return Reference(ppvae.Pair(model, guide), (x, index), dist.Normal(0.0, 1.25**0.5).log_prob(x).double())


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


# Code that does not broadcast over an outer plate of samples.


class Concatenating(LinearGaussian):
    """The linear story, its line written as a matrix product of (z, 1): raises with leading dims."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            features = torch.cat([z, torch.ones(len(x), 1)], -1)
            pyro.sample("x", dist.Normal(features @ torch.stack([self.c, self.d]), self.log_s.exp()), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc = (self.a * x + self.b).unsqueeze(-1)
            pyro.sample("z", dist.Normal(loc, self.log_t.exp()).to_event(1))


def concatenating() -> Reference:
    """A pair that raises in an outer plate."""
    torch.manual_seed(11)
    pair, x = Concatenating(), 2 * torch.randn(N)
    return Reference(pair, (x,), pair.exact(x), broadcasts=False)


class WrongSoftmax(nn.Module):
    """z ~ N(0, I) of two dims, y ~ Categorical(softmax(z + b)), over dim 1: in an outer plate, over the data."""

    offset = torch.tensor([0.7, -0.4])

    def model(self, y):
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Categorical((z + self.offset).softmax(dim=1)), obs=y)

    def guide(self, y):
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.2).to_event(1))


def wrong_softmax() -> Reference:
    """A pair that is silently wrong in an outer plate."""
    torch.manual_seed(12)
    y = torch.randint(2, (N,))
    sign = 1 - 2 * y.double()
    difference = dist.Normal(torch.tensor(1.1, dtype=torch.float64), math.sqrt(2.0))
    exact = quadrature(lambda z: difference.log_prob(z) + nn.functional.logsigmoid(sign * z))
    return Reference(WrongSoftmax(), (y,), exact, broadcasts=False)


# The idiom of Pyro's published VAE.


class PublishedStyleVAE(nn.Module):
    """A VAE in the idiom of Pyro's own example (examples/vae/vae.py, Apache-2.0), statement for statement.

    `pyro.module`, a prior expanded by hand to (n, k) with `new_zeros`, `x.reshape(-1, d)`, Bernoulli probabilities
    rather than logits. Written anew with one latent dimension, so that log p(x) is a quadrature.
    """

    def __init__(self, data_dim: int = 9, z_dim: int = 1) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(data_dim, 8), nn.Softplus(), nn.Linear(8, 2 * z_dim))
        self.decoder = nn.Sequential(nn.Linear(z_dim, 8), nn.Softplus(), nn.Linear(8, data_dim), nn.Sigmoid())
        self.data_dim, self.z_dim = data_dim, z_dim

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = x.new_zeros(torch.Size((x.shape[0], self.z_dim)))
            z_scale = x.new_ones(torch.Size((x.shape[0], self.z_dim)))
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            loc_img = self.decoder(z)
            pyro.sample("obs", dist.Bernoulli(loc_img).to_event(1), obs=x.reshape(-1, self.data_dim))

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, raw = self.encoder(x.reshape(-1, self.data_dim)).chunk(2, -1)
            pyro.sample("latent", dist.Normal(z_loc, 1.0 + torch.exp(raw - 2)).to_event(1))


def published_style_vae() -> Reference:
    """Pyro's tutorial VAE, on images (n, 3, 3)."""
    torch.manual_seed(13)
    pair, x = PublishedStyleVAE(), torch.bernoulli(torch.full((N, 3, 3), 0.5))
    with torch.no_grad():
        for parameter in pair.decoder.parameters():
            parameter.mul_(3)

    @torch.no_grad()
    def log_joint(z: Tensor) -> Tensor:
        likelihood = dist.Bernoulli(pair.decoder(z.float()).double().unsqueeze(1)).to_event(1)
        return dist.Normal(0.0, 1.0).log_prob(z) + likelihood.log_prob(x.reshape(N, 9).double())

    return Reference(pair, (x,), quadrature(log_joint))


REFERENCES: dict[str, Callable[[], Reference]] = {
    function.__name__: function
    for function in (
        ppca,
        linear_gaussian,
        scaled,
        pyro_params,
        autoguide,
        factor_analysis,
        hierarchy,
        mixture,
        gamma_poisson,
        beta_bernoulli,
        masked_series,
        concatenating,
        wrong_softmax,
        published_style_vae,
    )
}
