"""The two forms in which a pair is run, where plates, first runs or subsamples could make them differ."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppvae
from ppvae.evaluate import annealed_log_marginal, latent_report
from ppvae.infer import IWAE, sampler
from ppvae.infer.importance import evaluating
from ppvae.infer.sampler import choose_sampler


class Sum(nn.Module):
    """w_t ~ N(0, 1), x ~ N(Σ_t w_t, 1), in the inner plate of `steps`; its code counts dims from the left or right."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def model(self, x, steps):
        with pyro.plate("data", len(x)):
            with pyro.plate("time", steps.shape[1], dim=-2):
                w = pyro.sample("w", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(w.sum(self.dim), 1.0), obs=x)

    def guide(self, x, steps):
        size = steps.shape[1]
        with pyro.plate("data", len(x)), pyro.plate("time", size, dim=-2):
            pyro.sample("w", dist.Normal(x / (size + 1), 0.9))


@pytest.mark.parametrize("dim", [0, -2])
@pytest.mark.parametrize("size", [1, 2])
def test_an_inner_plate_of_one_is_a_plate(dim, size):
    pair, x, steps = Sum(dim), torch.tensor([0.3, -1.0, 2.0]), torch.zeros(3, size)
    exact = dist.Normal(0.0, (1 + size) ** 0.5).log_prob(x)
    estimate = ppvae.log_marginal(pair, x, steps, num_samples=4000)
    torch.testing.assert_close(estimate.values.float(), exact, rtol=0, atol=0.08)
    annealed = annealed_log_marginal(pair, x, steps, num_chains=64, num_temperatures=20)
    torch.testing.assert_close(annealed.values.float(), exact, rtol=0, atol=0.15)
    torch.manual_seed(0)
    assert -IWAE(500).loss(pair.model, pair.guide, x, steps) == pytest.approx(float(exact.sum()), abs=0.3)
    assert ppvae.elbo(pair, x, steps, num_samples=2000).values.sum() < exact.sum()
    assert latent_report(pair, x, steps, num_samples=50).summary()


class Flat(nn.Module):
    """A pair that does not broadcast, in a plate of `total` data with a subsample."""

    def __init__(self, total):
        super().__init__()
        self.total = total

    def plate(self, x):
        return pyro.plate("data", self.total, subsample_size=len(x))

    def model(self, x):
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0)).view(len(x))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with self.plate(x):
            pyro.sample("z", dist.Normal(x / 2, 0.6**0.5))


@pytest.mark.parametrize("num_samples", [4, 1000])
def test_a_plate_with_a_subsample_is_given_no_more_than_its_data(num_samples):
    x = torch.randn(20, generator=torch.Generator().manual_seed(0))
    values = ppvae.log_marginal(Flat(100), x, num_samples=num_samples).values.float()
    torch.testing.assert_close(values, dist.Normal(0.0, 2**0.5).log_prob(x), rtol=0, atol=0.4)


class Table(nn.Module):
    """Makes 8 MB when it first runs, and then 400 kB for each datum."""

    def __init__(self):
        super().__init__()
        self.table = None

    def model(self, x):
        if self.table is None:
            self.table = torch.ones(2_000_000)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            wide = z[..., None] * self.table[:100_000]
            pyro.sample("x", dist.Normal(wide.mean(-1), 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7))


def test_what_is_made_once_does_not_count_for_the_size_of_blocks():
    pair, x = Table(), torch.zeros(5)
    with evaluating(pair, 0):
        rows = [choose_sampler(pair, (x,), 10).rows for _ in range(2)]
    assert rows[0] == rows[1] <= sampler.CACHE["cpu"] / 400_000
