"""Products in a narrower dtype: densities keep their own, and what the estimate loses by it is measured and said."""

import math

import pytest
import torch
from torch import nn

import ppvae
from ppvae.distributions import ConditionalNormal, StandardNormal
from ppvae.evaluate import Adaptive, Annealed, Importance
from ppvae.models import VAE

METHODS = [Importance(400), Adaptive(400), Annealed(num_chains=2, num_temperatures=5)]


def linear(weight):
    """x = w z + noise of standard deviation 0.1, exactly: log p(x) is known, and the guide is the posterior."""
    net, of_x = nn.Linear(1, 3, bias=False), nn.Linear(3, 1, bias=False)
    precision = 1 + 3 * weight**2 / 0.01
    with torch.no_grad():
        net.weight.fill_(weight)
        of_x.weight.fill_(weight / 0.01 / precision)
    return VAE(
        p_z=StandardNormal(1),
        p_x_given_z=ConditionalNormal(net, scale=0.1, event_dim=1),
        q_z_given_x=ConditionalNormal(of_x, scale=precision**-0.5, event_dim=1),
    )


def exact(weight, x):
    covariance = weight**2 * torch.ones(3, 3) + 0.01 * torch.eye(3)
    return torch.distributions.MultivariateNormal(torch.zeros(3), covariance).log_prob(x).double()


@pytest.fixture
def x():
    return torch.randn(40, 1) * 1.25 + 0.1 * torch.randn(40, 3)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_without_it_nothing_is_measured_and_with_it_every_method_says_what_it_did(method, x):
    pair = linear(1.2578)
    fine = ppvae.log_marginal(pair, x, method=method)
    coarse = ppvae.log_marginal(pair, x, method=method, autocast=torch.bfloat16)
    assert fine.rounding is None
    assert "autocast" not in fine.summary()
    assert coarse.rounding.shape == (32,)
    assert 0 < coarse.rounding.abs().max() < 0.5
    assert (coarse.values - exact(1.2578, x)).abs().max() < 0.5
    assert f"autocast moved log p(x) of the first 32 data by {coarse.rounding.mean():+.3f}" in coarse.summary()


def test_the_error_that_is_measured_is_the_error_that_was_made(x):
    weight = 1.2578  # 1.2578125 in half precision: it is the products that are rounded, to 8 bits
    pair, few = linear(weight), x[:32]
    coarse = ppvae.log_marginal(pair, few, num_samples=400, autocast=torch.bfloat16)
    fine = ppvae.log_marginal(pair, few, num_samples=400)
    torch.testing.assert_close(fine.values, exact(weight, few), rtol=0, atol=1e-3)  # the guide is the posterior
    torch.testing.assert_close(coarse.rounding, coarse.values - exact(weight, few), rtol=0, atol=1e-3)
    assert coarse.rounding.abs().max() > 3e-3


def test_a_model_without_products_loses_nothing(x):
    identity = linear(1.0)
    identity.p_x_given_z.net, identity.q_z_given_x.net = Repeat(), Mean()
    estimate = ppvae.log_marginal(identity, x, num_samples=100, autocast=torch.bfloat16)
    assert torch.equal(estimate.rounding, torch.zeros(32, dtype=torch.float64))


class Repeat(nn.Module):
    """z three times."""

    def forward(self, z):
        return z.expand(*z.shape[:-1], 3)


class Mean(nn.Module):
    """The mean of x."""

    def forward(self, x):
        return x.mean(-1, keepdim=True)


def test_graphs_of_one_precision_are_not_those_of_another(x):
    pair = linear(1.2578)
    plain = ppvae.log_marginal(pair, x, num_samples=200, compile=True).values
    coarse = ppvae.log_marginal(pair, x, num_samples=200, compile=True, autocast=torch.bfloat16)
    again = ppvae.log_marginal(pair, x, num_samples=200, compile=True).values
    assert torch.equal(plain, again)
    eager = ppvae.log_marginal(pair, x, num_samples=200, compile=False, autocast=torch.bfloat16)
    torch.testing.assert_close(coarse.values, eager.values, rtol=0, atol=0.05)
    assert not math.isclose(float(coarse.mean()), float(plain.mean()), abs_tol=1e-3)


def test_other_dtypes_are_refused(x):
    with pytest.raises(
        ValueError, match=r"autocast must be torch\.bfloat16, torch\.float16 or None, got torch\.float32"
    ):
        ppvae.log_marginal(linear(1.0), x, autocast=torch.float32)
