"""Small pairs and data that the tests of training share."""

from __future__ import annotations

import contextlib
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions import constraints

from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
from ppvae.models import VAE
from ppvae.nn import MLP

D, K = 6, 2
ADAM = partial(torch.optim.Adam, lr=0.01)


def binary(n=50, d=D, seed=0):
    """Binary data from two prototypes."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.tensor([0.15, 0.85])[torch.randint(2, (n, 1), generator=generator)].expand(n, d)
    return torch.bernoulli(p, generator=generator)


def small_vae(seed=0, *, beta=1.0, dropout=0.0, norm=None):
    """A Bernoulli VAE with MLPs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VAE(
            p_z=StandardNormal(K),
            p_x_given_z=ConditionalBernoulli(MLP(K, (8,), D, dropout=dropout, norm=norm)),
            q_z_given_x=ConditionalNormal(MLP(D, (8,), (2, K), dropout=dropout, norm=norm)),
            beta=beta,
        )


class TwoLatents(nn.Module):
    """z2 -> z1 -> x, with a mask over some of the pixels: several latent sites, hand-written."""

    def __init__(self, seed=0, masked=True):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.up1, self.up2 = nn.Linear(D, 2 * K), nn.Linear(K, 2)
            self.down1, self.down2 = nn.Linear(K, D), nn.Linear(1, K)
        self.masked = masked

    def model(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(self.down2(z2), 1.0).to_event(1))
            with pyro.poutine.mask(mask=x[:, 0] > 0) if self.masked else contextlib.nullcontext():
                pyro.sample("x", dist.Bernoulli(logits=self.down1(z1)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, raw = self.up1(x).chunk(2, -1)
            z1 = pyro.sample("z1", dist.Normal(loc, raw.exp()).to_event(1))
            loc, raw = self.up2(z1).chunk(2, -1)
            pyro.sample("z2", dist.Normal(loc, raw.exp()).to_event(1))


class Published(nn.Module):
    """A VAE in the form of Pyro's tutorials: `pyro.module` in both functions, the data reshaped inside."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = nn.Sequential(nn.Linear(D, 8), nn.Softplus(), nn.Linear(8, 2 * K))
            self.decoder = nn.Sequential(nn.Linear(K, 8), nn.Softplus(), nn.Linear(8, D), nn.Sigmoid())

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = x.new_zeros(torch.Size((x.shape[0], K)))
            z_scale = x.new_ones(torch.Size((x.shape[0], K)))
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            pyro.sample("obs", dist.Bernoulli(self.decoder(z)).to_event(1), obs=x.reshape(-1, D))

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_log_scale = self.encoder(x.reshape(-1, D)).chunk(2, -1)
            pyro.sample("latent", dist.Normal(z_loc, z_log_scale.exp()).to_event(1))


class Store(nn.Module):
    """Everything by `pyro.param`, one of them constrained; x of shape (n,)."""

    def model(self, x):
        scale = pyro.param("scale", torch.tensor(1.5), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(pyro.param("shift", torch.tensor(0.5)) + z, scale), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.1)) * x, 0.7))


class Scalar(nn.Module):
    """x ~ N(cz + d, s²), z ~ N(0, 1), q(z|x) = N(ax + b, σ²), all scalar, s fixed."""

    def __init__(self, scale=0.5):
        super().__init__()
        self.scale = scale
        self.a, self.b, self.c, self.d, self.log_sigma = (
            nn.Parameter(torch.tensor(v)) for v in (0.1, 0.0, 0.5, 0.0, 0.0)
        )

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.c * z + self.d, self.scale), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.a * x + self.b, self.log_sigma.exp()))


def state(pair):
    """A copy of all parameters and buffers."""
    return {name: value.clone() for name, value in pair.state_dict().items()}


def same(a, b):
    """Whether two nested states are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(v, w) for v, w in zip(a, b, strict=True))
    return a == b


def twenty_steps(svi, *args):
    pyro.set_rng_seed(3)
    return [svi.step(*args) for _ in range(20)]


class Noise(dist.TorchDistribution):
    """A normal whose draw is given."""

    arg_constraints = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, loc, scale, eps):
        self.normal, self.eps = dist.Normal(loc, scale).to_event(1), eps
        super().__init__(self.normal.batch_shape, self.normal.event_shape, validate_args=False)

    support = dist.constraints.real_vector

    def rsample(self, shape=torch.Size()):  # noqa: B008
        return self.normal.base_dist.loc + self.normal.base_dist.scale * self.eps

    def log_prob(self, value):
        return self.normal.log_prob(value)

    def expand(self, shape, _instance=None):
        return self


class FixedNoise(nn.Module):
    """A VAE whose noise is data, so that whoever runs it draws the same; `y` is an argument that it can do without."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.p_x_given_z = ConditionalBernoulli(MLP(K, (8,), D))
            self.q_z_given_x = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 2 * K))
            self.p_y_given_z = nn.Linear(K, 1)

    def model(self, x, eps, y=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(K), 1.0).to_event(1))
            pyro.sample("x", self.p_x_given_z(z), obs=x)
            if y is not None:
                pyro.sample("y", dist.Bernoulli(logits=self.p_y_given_z(z).squeeze(-1)), obs=y)

    def guide(self, x, eps, y=None):
        loc, raw = self.q_z_given_x(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", Noise(loc, raw.exp(), eps))


def noise(n=67, seed=1):
    """Noise for `FixedNoise`."""
    return torch.randn(n, K, generator=torch.Generator().manual_seed(seed))


def summary(pair, run):
    """Weights and history of a run."""
    return state(pair), run.history
