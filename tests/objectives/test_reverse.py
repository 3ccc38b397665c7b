"""A guide with auxiliary variables is trained on the bound that the estimators report."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

import ppvae
from ppvae.objectives import IWAE, FreeBitsELBO

AUXILIARY = {"is_auxiliary": True}


class Auxiliary(nn.Module):
    """x|z ~ N(z, 1), z|u ~ N(x/2 + u/2, 1/2) and r(u|z, x) = N(a (z − x/2), exp(s)): exact where a = 1."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.0))
        self.s = nn.Parameter(torch.tensor(0.0))

    def model(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(torch.zeros(len(x)), 1.0), infer=AUXILIARY)
            pyro.sample("z", dist.Normal(x / 2 + u / 2, 0.5))

    def reverse(self, x, z):
        with pyro.plate("data", len(x)):
            pyro.sample("u", dist.Normal(self.a * (z - x / 2), self.s.exp()), infer=AUXILIARY)


@pytest.fixture
def x():
    return torch.randn(400) * 2**0.5


@pytest.mark.parametrize("loss", [None, Trace_ELBO(), FreeBitsELBO(0.0), IWAE(1)])
def test_the_history_holds_the_bound_of_the_estimators(x, loss):
    pair = Auxiliary()
    bound = ppvae.elbo(pair, x, num_samples=2000)
    row = ppvae.fit(pair, x, epochs=1, batch_size=400, lr=1e-12, loss=loss, progress=False).history[0]
    one = ppvae.elbo(pair, x, num_samples=50)
    error = float(one.std_error.square().sum().sqrt()) * 50**0.5 / len(x)
    assert abs(-row["loss"] - bound.mean()) < 5 * error
    if loss is None:
        assert row["kl_u"] + row["kl_z"] - row["reconstruction"] == pytest.approx(row["loss"], abs=1e-4)


def test_training_finds_the_reverse_model(x):
    pair = Auxiliary()
    before = ppvae.elbo(pair, x, num_samples=500).mean()
    run = ppvae.fit(pair, x, valid=x, epochs=60, batch_size=200, lr=0.05, progress=False)
    # The posterior of u under the guide: precision 1 + 1, mean (z − x/2).
    assert pair.a.item() == pytest.approx(1.0, abs=0.1)
    assert pair.s.exp().item() == pytest.approx(0.5**0.5, abs=0.1)
    bound = ppvae.elbo(pair, x, num_samples=500)
    assert bound.mean() > before + 0.1
    assert run.history[-1]["valid_elbo"] == pytest.approx(bound.mean(), abs=0.15)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).double()
    estimate = ppvae.log_marginal(pair, x, num_samples=2000)
    assert (estimate.values - exact).mean().abs() < 5 * estimate.std_error.square().sum().sqrt() / len(x)


def test_a_method_of_that_name_is_left_alone_where_the_guide_draws_nothing_else(x):
    class Ordinary(Auxiliary):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.a * x, 1.0))

        def reverse(self, *args, **kwargs):
            raise AssertionError

    ppvae.fit(Ordinary(), x, epochs=1, progress=False)
