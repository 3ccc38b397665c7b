"""The two forms in which a pair is run, where plates, first runs or subsamples could make them differ."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import ppvae
from ppvae.distributions import ConditionalNormal, StandardNormal, VampPrior
from ppvae.evaluate import Annealed, latent_report
from ppvae.models import VAE
from ppvae.nn import MLP
from ppvae.objectives import IWAE
from ppvae.sampling import sampler
from ppvae.sampling.eval_mode import evaluating
from ppvae.sampling.sampler import choose_sampler


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
    annealed = ppvae.log_marginal(pair, x, steps, method=Annealed(num_chains=64, num_temperatures=20))
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


# Memory.


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that is computed."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.bytes = max(self.bytes, result.untyped_storage().nbytes())
        return result


def wide(hidden, data_dim=784):
    torch.manual_seed(0)
    return VAE(
        StandardNormal(2),
        ConditionalNormal(MLP(2, hidden, data_dim), scale=1.0),
        ConditionalNormal(MLP(data_dim, (), (2, 2))),
    )


def largest(pair, x, num_samples):
    with Largest() as tensors:
        ppvae.log_marginal(pair, x, num_samples=num_samples)
    return tensors.bytes


def test_memory_grows_with_neither_data_nor_samples():
    x = torch.zeros(1000, 784)
    few, many = largest(wide(()), x[:100], 20), largest(wide(()), x, 150)
    rows = sampler.ROW_BLOCK["cpu"]
    assert many <= max(rows * 784 * 4, x.untyped_storage().nbytes())  # a view of x has the storage of x
    assert few <= rows * 784 * 4


def test_a_budget_shrinks_the_blocks_of_a_wide_model(monkeypatch):
    x = torch.randn(8, 784)
    with evaluating(wide(()), 0):
        roomy = choose_sampler(wide(()), (x[:5],), 10).rows
        monkeypatch.setattr(sampler, "MEMORY_BUDGET", 2**20)
        tight = choose_sampler(wide(()), (x[:5],), 10).rows
    assert tight < roomy <= sampler.ROW_BLOCK["cpu"]
    assert 1 < tight * 784 * 4 < 2**20
    estimate = ppvae.log_marginal(wide(()), x, num_samples=300)
    assert estimate.values.isfinite().all()


def test_large_weights_do_not_count_against_the_rows(monkeypatch):
    pair, x = wide((4000,)), torch.zeros(5, 784)  # 12 MB of weights, 0.1 MB a row
    monkeypatch.setattr(sampler, "MEMORY_BUDGET", 2**25)
    with evaluating(pair, 0):
        assert choose_sampler(pair, (x,), 10).rows > 100


def test_what_all_rows_share_is_worth_more_rows(monkeypatch):
    pair, x = wide((16,)), torch.zeros(5, 784)
    pair.p_z = VampPrior(pair.q_z_given_x, torch.rand(2000, 784))  # 7 MB, encoded once a block
    with evaluating(pair, 0):
        rows = choose_sampler(pair, (x,), 10).rows
        monkeypatch.setattr(sampler, "SHARED", 0)
        assert 2 * choose_sampler(pair, (x,), 10).rows < rows <= sampler.ROW_BLOCK["cpu"]


class Counts(nn.Module):
    """z ~ N(0, 1), x ~ N(z, 1); its code takes the first dim of z for the data."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + len(z) / len(x) - 1, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))


@pytest.mark.parametrize("n", range(1, 8))
def test_no_number_of_data_hides_code_that_does_not_broadcast(n):
    """As many data as the trial runs take samples would: the two forms then agree."""
    x = torch.randn(n)
    estimate = ppvae.log_marginal(Counts(), x, num_samples=50)
    torch.testing.assert_close(estimate.values.float(), dist.Normal(0.0, 2**0.5).log_prob(x), rtol=0, atol=1e-4)
