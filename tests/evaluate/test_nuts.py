import math
import warnings
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppvae.distributions import ConditionalNormal, MixturePrior
from ppvae.evaluate.nuts import _diagnose, compare_with_nuts
from ppvae.models import VAE
from ppvae.nn import MLP
from tests.reference import LinearGaussian, factor_analysis, gamma_poisson, linear_gaussian, masked_series, mixture


@pytest.fixture(scope="module")
def case():
    """Factor analysis on two data: the comparison, and the posterior's means (n, k) and covariance (k, k)."""
    reference = factor_analysis()
    pair, x = reference.pair, reference.data[0][:2]
    with torch.no_grad():
        scaled = pair.weight / pair.noise.unsqueeze(-1)
        covariance = (torch.eye(2) + pair.weight.T @ scaled).inverse()
        return (
            compare_with_nuts(pair, x, num_samples=300, warmup=60, num_chains=2),
            x @ scaled @ covariance,
            covariance,
        )


def test_moments_of_the_chains_are_those_of_the_exact_posterior(case):
    comparison, mean, covariance = case
    z, ess = comparison.nuts["z"], comparison.ess["z"]
    std = covariance.diagonal().sqrt()
    assert z.shape == (600, 2, 2)
    assert ess.shape == comparison.r_hat["z"].shape == (2, 2)
    assert (ess > 150).all()
    assert ((z.mean(0) - mean).abs() < 4 * std / ess.sqrt()).all()
    assert ((z.std(0) / std - 1).abs() < 0.15).all()
    for datum in range(2):
        assert torch.allclose(torch.cov(z[:, datum].T), covariance, rtol=0.3, atol=0.05)
    assert (comparison.r_hat["z"] - 1).abs().max() < 0.03
    assert comparison.converged()


def test_the_guide_is_as_much_wider_as_it_was_made(case):
    comparison, *_ = case
    assert comparison.guide["z"].shape == (600, 2, 2)
    assert ((comparison.std_ratio()["z"] - 1.3).abs() < 0.2).all()
    assert (comparison.shift()["z"].abs() < 4 * comparison.shift_error()["z"]).all()
    assert (comparison.shift_error()["z"] < 0.1).all()
    # Of normals that differ in their scale alone: E|z| times the difference of the scales.
    assert comparison.wasserstein()["z"].mean() == pytest.approx(0.3 * math.sqrt(2 / math.pi), abs=0.08)


def test_a_positive_latent_is_sampled_where_it_lives():
    reference = gamma_poisson()
    x = reference.data[0][:2]
    comparison = compare_with_nuts(reference.pair, x, num_samples=250, warmup=60, seed=1)
    z, ess = comparison.nuts["z"], comparison.ess["z"]
    exact = dist.Gamma(2.0 + x, torch.tensor(1.5))
    assert (z > 0).all()
    assert ((z.mean(0) - exact.mean).abs() < 4 * exact.stddev / ess.sqrt()).all()
    assert ((z.std(0) / exact.stddev - 1).abs() < 0.2).all()


def test_summary_says_how_far_the_guide_is_off_and_where(case):
    comparison, *_ = case
    guide = comparison.guide["z"].clone()
    guide[:, 1, 0] = guide[:, 1, 0] + 5 * comparison.nuts["z"][:, 1, 0].std()
    guide[:, 0, 1] = guide[:, 0, 1].mean() + 0.1 * (guide[:, 0, 1] - guide[:, 0, 1].mean())
    text = replace(comparison, guide={"z": guide}).summary()
    assert "on 2 data" in text
    assert "mean off by up to 5." in text or "mean off by up to 4.9" in text
    assert "(datum 1, z[0]; error of the draws 0." in text
    assert "standard deviation from 0.1" in text
    assert "(datum 0, z[1]) to 1." in text
    assert "not converged" not in text


@pytest.mark.parametrize(
    "change",
    [{"num_divergences": 1}, {"ess": {"z": torch.full((2, 2), 50.0)}}, {"r_hat": {"z": torch.full((2, 2), 1.2)}}],
)
def test_chains_that_have_not_converged_are_no_standard(case, change):
    comparison = replace(case[0], **change)
    assert not comparison.converged()
    assert "NUTS has not converged: do not judge the guide by it" in comparison.summary()


def test_a_chain_that_never_moves_has_not_converged(case):
    r_hat, ess = _diagnose(torch.ones(1, 10, 2, 2))
    assert r_hat.isnan().all()
    assert ess.shape == (2, 2)
    assert not replace(case[0], r_hat={"z": r_hat}).converged()


def test_diagnostics_see_chains_in_different_places_and_slow_ones():
    torch.manual_seed(0)
    apart = torch.randn(2, 200, 1) + torch.tensor([0.0, 3.0]).reshape(2, 1, 1)
    slow = torch.randn(1, 400, 1).cumsum(1)
    (together, many), (far, _), (_, few) = (_diagnose(chains) for chains in (torch.randn(2, 200, 1), apart, slow))
    assert together < 1.05 < 1.5 < far
    assert few < 20 < 250 < many


def test_plates_come_by_datum():
    reference = masked_series()
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    comparison = compare_with_nuts(reference.pair, x, torch.full((2,), 3), num_samples=10, warmup=10)
    assert comparison.nuts["z"].shape == comparison.guide["z"].shape == (10, 2)
    assert comparison.nuts["w"].shape == comparison.guide["w"].shape == (10, 2, 3)
    assert comparison.ess["w"].shape == (2, 3)


def test_draws_are_of_the_seed_and_leave_everything_else_alone():
    reference = linear_gaussian()
    pair, x = reference.pair, reference.data[0][:1]
    pair.train()
    before, validates = torch.get_rng_state(), pyro.distributions.is_validation_enabled()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        a, b, c = (compare_with_nuts(pair, x, num_samples=5, warmup=5, seed=seed) for seed in (0, 0, 1))
    assert [str(warning.message) for warning in caught] == []
    assert torch.equal(a.nuts["z"], b.nuts["z"])
    assert not torch.equal(a.nuts["z"], c.nuts["z"])
    assert torch.equal(before, torch.get_rng_state())
    assert pyro.distributions.is_validation_enabled() == validates
    assert pair.training
    assert all(p.grad is None for p in pair.parameters())


class FixedEnd(LinearGaussian):
    """A latent whose support is the argument `end` of the datum's, or another latent's value."""

    def __init__(self, depends):
        super().__init__()
        self.depends = depends

    def model(self, x):
        with pyro.plate("data", len(x)):
            w = pyro.sample("w", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("z", dist.Uniform(w.exp() * 0 if not self.depends else w - 9, 10.0))
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("w", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("z", dist.Uniform(x * 0 + 1, 10.0))


def test_supports_must_not_move():
    comparison = compare_with_nuts(FixedEnd(depends=False), torch.zeros(2), num_samples=5, warmup=5)
    assert (comparison.nuts["z"] > 0).all()
    with pytest.raises(ValueError, match="NUTS needs fixed supports, but that of 'z' depends on other latents"):
        compare_with_nuts(FixedEnd(depends=True), torch.zeros(2), num_samples=5, warmup=5)


class Lacking(LinearGaussian):
    def guide(self, x):
        pass


class Outside(LinearGaussian):
    """The guide draws what the model says is impossible."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.factor("never", torch.full_like(z, -math.inf))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_errors():
    pair, x = linear_gaussian().pair, torch.zeros(3)
    for option in ("num_samples", "warmup", "num_chains"):
        with pytest.raises(ValueError, match=f"{option} must be a whole number >= 1, got 0"):
            compare_with_nuts(pair, x, **{option: 0})
    with pytest.raises(ValueError, match="num_samples must be at least 4 for diagnostics of the chains, got 3"):
        compare_with_nuts(pair, x, num_samples=3)
    with pytest.raises(ValueError, match="data is empty"):
        compare_with_nuts(pair, torch.zeros(0))
    with pytest.raises(TypeError, match="pair must be"):
        compare_with_nuts(nn.Linear(1, 1), x)
    with pytest.raises(ValueError, match="the guide misses the latent site 'z'"):
        compare_with_nuts(Lacking(), x)
    with pytest.raises(ValueError, match=r"NUTS needs continuous latents, but \['y'\] are discrete"):
        compare_with_nuts(mixture().pair, torch.zeros(3, 2))
    reference = masked_series()
    with pytest.raises(ValueError, match=r"a mask leaves out some of \['w'\]"):
        compare_with_nuts(reference.pair, *reference.data)
    with pytest.raises(ValueError, match="is -inf at a draw from the guide"):
        compare_with_nuts(Outside(), x)


def test_a_mixture_prior_has_the_support_of_its_components():
    torch.manual_seed(0)
    pair = VAE(MixturePrior(3, 1), ConditionalNormal(MLP(1, (), 2), scale=0.5), ConditionalNormal(MLP(2, (4,), (2, 1))))
    comparison = compare_with_nuts(pair, torch.randn(2, 2), num_samples=20, warmup=20)
    assert comparison.nuts["z"].isfinite().all()
