"""Small pairs whose log p(x) is known exactly: in closed form, or by quadrature over a latent of one dimension.

Each function builds a `Reference` from a fixed seed: a pair, its data, and log p of every datum in float64. The guides
are not the exact posteriors (except where a name says so) but have heavier tails than they do, so that the
importance weights have a finite variance and standard errors mean something. Between them the pairs use what users'
code uses: several latents, discrete and bounded ones, nested plates, masks, scales, factors, Pyro's own parameter
statements, an autoguide, and code that does not broadcast over an outer plate, loudly or silently.
"""

import math
from collections.abc import Callable
from contextlib import contextmanager

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.distributions import constraints

import ppvae
from ppvae.models import PPCA
from ppvae.params import LocalParams, module_local
from tests.exact import N, Reference, gaussian, quadrature
from tests.reference_latents import beta_bernoulli, factor_analysis, gamma_poisson, hierarchy, masked_series, mixture

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


@contextmanager
def local_params(pair, *, attach=True):
    """Runs Pyro code as training does, or with `attach=False` as evaluation does: its parameters live on `pair`."""
    with module_local(), LocalParams(pair, attach=attach):
        yield
