"""Counts against SciPy's probabilities in float64, in float32 too; sums, moments, gradients, nets."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn

import ppvae
from ppvae.distributions import (
    ConditionalMultinomial,
    ConditionalNegativeBinomial,
    ConditionalNormal,
    ConditionalPoisson,
    Multinomial,
    NegativeBinomial,
    Poisson,
    StandardNormal,
)
from ppvae.models import CVAE, VAE
from ppvae.nn import MLP, ConditionalMLP, Log1p

COUNTS = [0.0, 1.0, 25.0, 2900.0, 1e5]
MEANS = [1e-3, 0.5, 20.0, 3000.0, 1e5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mean", MEANS)
def test_poisson_is_scipys(mean, dtype):
    log_rate = torch.tensor(mean, dtype=torch.float64).log().to(dtype)
    x = torch.tensor(COUNTS, dtype=dtype)
    expected = stats.poisson.logpmf(np.array(COUNTS), log_rate.double().exp().numpy())
    found = Poisson(log_rate).log_prob(x)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=1e-6 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("theta", [1e-2, 1.0, 1e2, 1e4, 1e6, 1e9])
@pytest.mark.parametrize("mean", MEANS)
def test_negative_binomial_is_scipys(mean, theta, dtype):
    """The other forms of it are off by 43 nats at θ = 1e8 in float32."""
    log_mean, log_theta = (torch.tensor(v, dtype=torch.float64).log().to(dtype) for v in (mean, theta))
    x = torch.tensor(COUNTS, dtype=dtype)
    mu, n = log_mean.double().exp().item(), log_theta.double().exp().item()
    if theta < 1e7:
        expected = stats.nbinom.logpmf(np.array(COUNTS), n, n / (n + mu))
    else:  # SciPy's own loses digits there; Poisson with a correction of order 1/θ is exact to 1/θ²
        k = np.array(COUNTS)
        expected = stats.poisson.logpmf(k, mu) + (k * (k - 1) / 2 - k * mu + mu**2 / 2) / n
    found = NegativeBinomial(log_mean, log_theta).log_prob(x).double().numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-5 if theta > 1e5 else 1e-6)


@pytest.mark.parametrize(("theta", "off"), [(1e6, 0.38), (1e8, 43.0)])
def test_pyros_own_loses_nats_there(theta, off):
    """The figures of docs/your-own-data.md, in float32."""
    mu, x = torch.tensor([0.5, 20.0, 3000.0]), torch.tensor([0.0, 25.0, 2900.0])
    exact = stats.nbinom.logpmf(x.numpy(), theta, theta / (theta + mu.double().numpy()))
    pyros = dist.NegativeBinomial(torch.tensor(theta), logits=(mu / theta).log()).log_prob(x)
    assert float(np.abs(pyros.double().numpy() - exact).max()) == pytest.approx(off, rel=0.05)
    ours = NegativeBinomial(mu.log(), torch.tensor(theta).log()).log_prob(x)
    assert float(np.abs(ours.double().numpy() - exact).max()) < 1e-3


NB = ConditionalNegativeBinomial
PMFS = {
    "poisson": (ConditionalPoisson, {}, [[1.2]]),
    "zero-inflated poisson": (ConditionalPoisson, {"zero_inflated": True}, [[[1.2], [0.4]]]),
    "negative binomial": (NB, {"inverse_dispersion": 2.0}, [[1.2]]),
    "zero-inflated negative binomial": (
        NB,
        {"inverse_dispersion": "conditional", "zero_inflated": True},
        [[[1.2], [0.3], [-0.4]]],
    ),
}


@pytest.mark.parametrize("name", PMFS)
def test_probabilities_sum_to_one_with_the_moments_of_the_draws(name):
    cls, options, params = PMFS[name]
    fn = cls(nn.Identity(), **options)(torch.tensor(params))
    k = torch.arange(600.0).reshape(-1, 1, 1)
    p = fn.log_prob(k).exp().squeeze(-1).double()
    mean = (k.reshape(-1) * p).sum()
    variance = ((k.reshape(-1) - mean) ** 2 * p).sum()
    assert float(p.sum()) == pytest.approx(1, abs=1e-6)
    assert float(fn.mean) == pytest.approx(float(mean), rel=1e-5)
    assert float(fn.variance) == pytest.approx(float(variance), rel=1e-4)
    draws = fn.sample((20_000,)).squeeze()
    assert abs(float(draws.mean() - mean)) < 5 * math.sqrt(float(variance) / 20_000)
    share = float((draws == 0).double().mean())
    assert abs(share - float(p[0])) < 5 * math.sqrt(float(p[0]) / 20_000)


def test_multinomial_is_scipys_and_sums_to_one_over_all_of_a_total():
    logits = torch.tensor([0.3, -1.0, 2.0])
    pi = logits.double().softmax(-1).numpy()
    all_of_five = [(i, j, 5 - i - j) for i in range(6) for j in range(6 - i)]
    x = torch.tensor(all_of_five, dtype=torch.float32)
    fn = Multinomial(logits, torch.tensor(5.0))
    found = fn.log_prob(x)
    np.testing.assert_allclose(found.numpy(), stats.multinomial.logpmf(all_of_five, 5, pi), rtol=1e-5, atol=1e-6)
    assert float(found.exp().sum()) == pytest.approx(1, abs=1e-6)
    assert float(fn.log_prob(torch.tensor([1.0, 1.0, 1.0]))) == -math.inf


def test_each_multinomial_has_a_total_of_its_own():
    total = torch.tensor([0, 3, 1000])
    fn = ConditionalMultinomial(nn.Identity())(torch.zeros(3, 4), total)
    draws = fn.sample((50,))
    assert draws.shape == (50, 3, 4)
    assert torch.equal(draws.sum(-1), total.float().expand(50, 3))
    assert float((draws[:, 2].mean(0) - fn.mean[2]).abs().max()) < 5 * math.sqrt(float(fn.variance[2].max()) / 50)
    long = torch.tensor([2000.0, 3000.0, 1.0, 0.0])
    expected = stats.multinomial.logpmf(long.numpy(), 5001, [0.25] * 4)
    assert float(Multinomial(torch.zeros(4), torch.tensor(5001)).log_prob(long)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("make", [lambda p: Poisson(p), lambda p: NegativeBinomial(p, p.detach() * 0 + 18.0)])
def test_gradients_are_finite_far_out(make):
    for at in (-80.0, 0.0, 40.0):
        p = torch.tensor(at, requires_grad=True)
        make(p).log_prob(torch.tensor(3.0)).backward()
        assert p.grad.isfinite()


@pytest.mark.parametrize("cls", [ConditionalPoisson, ConditionalNegativeBinomial])
def test_a_size_multiplies_the_means_for_any_leading_dims(cls):
    net = MLP(2, (4,), 3)
    plain, sized = cls(net), cls(net, sized=True)
    z, size = torch.randn(5, 7, 2), torch.rand(7) * 100 + 1
    torch.testing.assert_close(sized(z, size).mean, plain(z).mean * size.unsqueeze(-1))
    with pytest.raises(TypeError, match=r"sized=True\) takes \(\*context, size\), got 1"):
        sized(z)


def test_options_are_checked():
    with pytest.raises(ValueError, match=r"inverse_dispersion must be 'learned', .* or a number > 0, got 'x'"):
        ConditionalNegativeBinomial(MLP(2, (), 3), inverse_dispersion="x")
    with pytest.raises(ValueError, match="inverse_dispersion must be a finite number > 0, got -1"):
        ConditionalNegativeBinomial(MLP(2, (), 3), inverse_dispersion=-1)
    with pytest.raises(ValueError, match="needs a net that declares its out_shape"):
        ConditionalNegativeBinomial(nn.Identity())
    with pytest.raises(ValueError, match="net must declare an out_shape"):
        ConditionalPoisson(MLP(2, (), 3), zero_inflated=True, event_dim=1)
    assert ConditionalNegativeBinomial(MLP(2, (), (2, 3)), zero_inflated=True).log_inverse_dispersion.shape == (3,)


def counts(n=40, d=5):
    generator = torch.Generator().manual_seed(0)
    return torch.poisson(torch.rand(n, d, generator=generator) * 8, generator=generator)


def test_counts_train_and_are_scored_in_a_vae_and_with_sizes_in_a_cvae():
    x = counts()
    encoder = nn.Sequential(Log1p(), MLP(5, (8,), (2, 2)))
    vae = VAE(StandardNormal(2), ConditionalNegativeBinomial(MLP(2, (8,), 5)), ConditionalNormal(encoder))
    run = ppvae.fit(vae, x, epochs=2, batch_size=20, progress=False)
    assert math.isfinite(run.history[-1]["loss"])
    assert ppvae.log_marginal(vae, x, num_samples=20).values.isfinite().all()
    size = torch.rand(40) * 10 + 1
    cvae = CVAE(
        StandardNormal(2),
        ConditionalPoisson(MLP(2, (8,), 5), sized=True),
        ConditionalNormal(ConditionalMLP(5, 1, (8,), (2, 2), embed=AsColumn())),
    )
    ppvae.fit(cvae, (x, size), epochs=1, batch_size=20, progress=False)
    assert cvae.sample(size).shape == x.shape


class AsColumn(nn.Module):
    """A size as a vector of one element, which a net takes."""

    in_shape, out_shape = (), (1,)

    def forward(self, size):
        return size.log().unsqueeze(-1)


def test_log_p_x_of_counts_is_exact():
    """One Poisson count whose log rate is a + b z: against quadrature over z."""
    net = nn.Linear(1, 1)
    with torch.no_grad():
        net.weight.fill_(0.5)
        net.bias.fill_(2.0)
    encoder = nn.Sequential(Log1p(), nn.Linear(1, 2), nn.Unflatten(-1, (2, 1)))
    vae = VAE(StandardNormal(1), ConditionalPoisson(net, event_dim=1), ConditionalNormal(encoder))
    x = torch.tensor([[0.0], [7.0], [30.0]])
    z = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    rate = (2.0 + 0.5 * z).exp()
    log_joint = stats.norm.logpdf(z) + stats.poisson.logpmf(x.numpy(), rate.numpy())
    exact = torch.logsumexp(torch.from_numpy(log_joint), -1) + math.log(18 / 20_000)
    found = ppvae.log_marginal(vae, x, num_samples=40_000)
    assert float(((found.values - exact).abs() / found.std_error.clamp(min=1e-3)).max()) < 5
