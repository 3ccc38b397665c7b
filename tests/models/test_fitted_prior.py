"""Priors fitted to codes: what they come to, and what works with them."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppvae
from ppvae.distributions import ConditionalBernoulli, ConditionalDelta, MixturePrior, StandardNormal
from ppvae.evaluate import Annealed, expected_log_likelihood
from ppvae.models import PPCA, VAE, fit_prior
from ppvae.nn import MLP
from tests.infer.pairs import D, K, binary, same, small_vae, state


def autoencoder(*, norm=None, dropout=0.0):
    torch.manual_seed(0)
    encoder = MLP(D, (8,), K, norm=norm, dropout=dropout)
    return VAE(StandardNormal(K), ConditionalBernoulli(MLP(K, (8,), D)), ConditionalDelta(encoder))


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_one_component_is_the_normal_with_the_moments_of_the_codes(covariance):
    codes = torch.randn(200, 3) @ torch.randn(3, 3) + torch.tensor([1.0, -2.0, 0.5])
    p_z = MixturePrior(1, 3, covariance=covariance).fit_to(codes)()
    expected = torch.cov(codes.T, correction=0)
    torch.testing.assert_close(p_z.mean, codes.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(p_z.variance, expected.diag(), rtol=1e-4, atol=1e-4)
    if covariance == "full":
        normal = dist.MultivariateNormal(codes.mean(0), expected)
        torch.testing.assert_close(p_z.log_prob(codes), normal.log_prob(codes), rtol=1e-4, atol=1e-3)
    draws = p_z.sample((20_000,))
    torch.testing.assert_close(draws.mean(0), codes.mean(0), rtol=0, atol=0.1)


def test_clusters_are_found_with_weights_and_covariances():
    factor = torch.tensor([[1.0, 0.0], [0.9, 0.3]])
    codes = torch.cat([torch.randn(600, 2) @ factor.T - 5, 0.5 * torch.randn(200, 2) + 5])
    prior = MixturePrior(2, 2, covariance="full").fit_to(codes)
    order = prior.loc[:, 0].argsort()
    torch.testing.assert_close(prior.logits.softmax(0)[order], torch.tensor([0.75, 0.25]), rtol=0, atol=1e-3)
    covariance = prior().component_distribution.covariance_matrix[order]
    torch.testing.assert_close(covariance[0], factor @ factor.T, rtol=0, atol=0.15)
    torch.testing.assert_close(covariance[1], 0.25 * torch.eye(2), rtol=0, atol=0.08)


def test_codes_of_several_event_dims():
    prior = MixturePrior(2, (2, 3)).fit_to(torch.randn(50, 2, 3))
    assert prior().sample((4,)).shape == (4, 2, 3)
    scalar = MixturePrior(1, ()).fit_to(3 + 0.1 * torch.randn(500))
    assert float(scalar().mean.detach()) == pytest.approx(3.0, abs=0.05)


def test_a_scale_below_the_least_one_is_the_least_one():
    prior = MixturePrior(1, 2, covariance="full", min_scale=0.1).fit_to(torch.ones(10, 2))
    assert bool(prior().variance.isfinite().all())
    assert bool((prior().variance.sqrt() >= 0.1).all())


def test_it_is_of_draws_in_eval_mode_and_changes_nothing_else():
    pair, x = autoencoder(norm="batch", dropout=0.3), binary(60)
    pair.eval()
    expected = pair.encode(x).mean
    pair.train()
    before = {name: value for name, value in state(pair).items() if not name.startswith("p_z")}
    rng = torch.get_rng_state()
    assert fit_prior(pair, x) is pair
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(module.training for module in pair.q_z_given_x.modules())
    assert same({name: value for name, value in state(pair).items() if not name.startswith("p_z")}, before)
    torch.testing.assert_close(pair.p_z().mean, expected.mean(0), rtol=1e-4, atol=1e-4)
    vae = small_vae()
    variance = fit_prior(vae, binary(2000)).p_z().variance
    assert bool((variance > vae.encode(binary(2000)).mean.var(0)).all())  # of draws, and not of the means


def test_sampling_and_likelihoods_are_with_the_fitted_prior():
    pair, x = autoencoder(), binary(60)
    fit_prior(pair, x, num_components=2)
    assert pair.sample(7).shape == (7, D)
    annealed = Annealed(num_chains=64, num_temperatures=50, start="prior")
    estimate = ppvae.log_marginal(pair, x[:3], method=annealed).values
    z = pair.p_z().sample((200_000,))
    log_p = pair.decode(z).log_prob(x[:3].unsqueeze(1)).double().logsumexp(-1) - torch.tensor(200_000.0).log()
    torch.testing.assert_close(estimate, log_p.detach(), rtol=0, atol=0.1)


def test_a_fitted_prior_is_saved_and_loaded(tmp_path):
    pair, other = fit_prior(autoencoder(), binary(60), num_components=3), autoencoder()
    ppvae.save(pair, tmp_path / "pair.safetensors")
    other.p_z = MixturePrior(3, K, covariance="full")
    ppvae.load(other, tmp_path / "pair.safetensors")
    assert same(state(other), state(pair))


def test_a_vae_gains_by_a_prior_that_is_its_aggregated_posterior():
    pair, x = PPCA(D, K, guide="amortized"), torch.randn(300, D)
    with torch.no_grad():
        pair.q_z_given_x.net[0].bias[:K] = 2.0
    before = ppvae.elbo(pair, x, num_samples=5).mean()
    assert ppvae.elbo(fit_prior(pair, x), x, num_samples=5).mean() > before + 1


def test_the_expected_log_likelihood_is_that_of_the_code():
    pair, x = autoencoder(), binary(12)
    found = expected_log_likelihood(pair, x)
    expected = pair.decode(pair.encode(x).mean).log_prob(x).double()
    torch.testing.assert_close(found.values, expected.detach(), rtol=1e-5, atol=1e-5)
    assert found.points == ("z",)
    assert found.num_dims == D
    assert "no ELBO" in found.summary()
    vae = small_vae()
    terms = ppvae.elbo(vae, x, num_samples=4000)
    other = expected_log_likelihood(vae, x, num_samples=4000, seed=3)
    torch.testing.assert_close(other.values, terms.reconstruction, rtol=0, atol=0.1)
    assert other.points == ()
    assert "no ELBO" not in other.summary()


def test_likelihoods_by_the_guide_are_refused_in_words():
    pair, x = autoencoder(), binary(12)
    for refused in (ppvae.elbo, ppvae.log_marginal):
        with pytest.raises(ValueError, match=r"the guide gives the continuous latents \['z'\] one value .*Annealed"):
            refused(pair, x)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fit_prior(nn.Linear(2, 2), binary()), TypeError, "model must have modules p_z and q_z_given_x"),
        (lambda: fit_prior(autoencoder(), [1]), TypeError, "x must be a torch.Tensor"),
        (lambda: fit_prior(autoencoder(), binary()[:0]), ValueError, r"x must be training data .* got shape \(0, 6\)"),
        (lambda: fit_prior(autoencoder(), binary(), num_components=0), ValueError, "num_components must be"),
        (
            lambda: fit_prior(autoencoder(), binary(5), num_components=6),
            ValueError,
            r"codes must be .* at least 6, got",
        ),
        (lambda: fit_prior(autoencoder(), binary(), covariance="x"), ValueError, "covariance must be 'diagonal' or"),
        (lambda: fit_prior(autoencoder(), binary(), seed=-1), ValueError, "seed must be"),
        (lambda: MixturePrior(2, (2, 2), covariance="full"), ValueError, "'full' is of one event dimension"),
        (lambda: MixturePrior(2, 2).fit_to(torch.randn(9, 3)), ValueError, r"shape \(n, 2,\) .* got \(9, 3\)"),
        (lambda: MixturePrior(2, 2).fit_to(torch.full((9, 2), torch.nan)), ValueError, "codes must be finite"),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
