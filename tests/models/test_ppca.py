import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO

import ppvae
from ppvae.models import PPCA
from tests.reference import ppca

GUIDES = ["exact", "amortized"]


@torch.no_grad()
def moments(pair, x):
    """W, b, σ², M⁻¹ and the posterior mean M⁻¹Wᵀ(x − b), in float64."""
    weight, bias = pair.p_x_given_z.net[0].weight.double(), pair.p_x_given_z.net[0].bias.double()
    variance = pair.p_x_given_z.location_scale(torch.zeros(weight.shape[1]))[1].double() ** 2
    inverse = (weight.T @ weight + variance * torch.eye(weight.shape[1])).inverse()
    return weight, bias, variance, inverse, (x.double() - bias) @ weight @ inverse


def test_log_prob_and_posterior_are_bayes():
    reference = ppca(guide="exact")
    pair, x = reference.pair, reference.data[0]
    torch.testing.assert_close(pair.log_prob(x).double().detach(), reference.log_prob, rtol=1e-5, atol=1e-4)
    _, _, variance, inverse, mean = moments(pair, x)
    posterior = pair.posterior(x)
    torch.testing.assert_close(posterior.mean.double().detach(), mean, rtol=1e-4, atol=1e-5)
    expected = (variance * inverse).expand(11, 2, 2)
    torch.testing.assert_close(posterior.covariance_matrix.double().detach(), expected, rtol=1e-4, atol=1e-5)
    z = torch.randn(4, 11, 2)
    joint = pair.p_z().log_prob(z) + pair.decode(z).log_prob(x)
    torch.testing.assert_close(joint - posterior.log_prob(z), pair.log_prob(x).expand(4, 11), rtol=1e-4, atol=1e-4)


def test_leading_dims_of_the_exact_answers():
    pair, x = ppca(guide="exact").pair, torch.randn(3, 5, 6)
    assert pair.log_prob(x).shape == (3, 5)
    torch.testing.assert_close(pair.log_prob(x)[1], pair.log_prob(x[1]))
    assert pair.posterior(x).batch_shape == (3, 5)
    torch.testing.assert_close(pair.posterior(x).mean[2], pair.posterior(x[2]).mean)


@pytest.mark.parametrize("guide", GUIDES)
def test_sites_and_invariances(guide):
    reference = ppca(guide=guide)
    pair, (x,) = reference.pair, reference.data
    guide_trace = poutine.trace(pair.guide).get_trace(x)
    model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(x)
    assert set(model_trace.stochastic_nodes) - {"data"} == {"z"} == set(guide_trace.stochastic_nodes) - {"data"}
    assert model_trace.observation_nodes == ["x"]
    assert model_trace.nodes["z"]["value"].shape == (11, 2)


@pytest.mark.parametrize("guide", GUIDES)
def test_gradients_reach_every_parameter(guide):
    reference = ppca(guide=guide)
    pair = reference.pair
    loss = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    loss.differentiable_loss(pair.model, pair.guide, *reference.data).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pair.parameters())


def test_exact_guide_has_no_parameters_of_its_own():
    assert {k for k, _ in PPCA(6, 2).named_parameters()} == {
        "p_x_given_z.raw_scale",
        "p_x_given_z.net.0.weight",
        "p_x_given_z.net.0.bias",
    }


def test_elbo_with_the_exact_guide_is_maximum_likelihood():
    torch.manual_seed(0)
    true = ppca(guide="exact").pair
    x = true.sample(500)
    fitted = PPCA(6, 2)
    ppvae.fit(fitted, x, epochs=40, batch_size=100, lr=3e-2, progress=False)
    # Tipping & Bishop: the optimum's noise is the mean of the eigenvalues left out
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T.double(), correction=0))
    _, _, variance, _, _ = moments(fitted, x)
    assert float(variance) == pytest.approx(float(eigenvalues[:4].mean()), rel=0.1)
    assert float(fitted.log_prob(x).detach().mean()) > float(true.log_prob(x).detach().mean()) - 0.02


def test_overfits_a_tiny_set():
    torch.manual_seed(0)
    pair, x = PPCA(6, 2, guide="amortized"), torch.randn(3, 6)
    before = ppvae.elbo(pair, x, num_samples=100).mean()
    ppvae.fit(pair, x, epochs=150, lr=5e-2, progress=False)
    assert ppvae.elbo(pair, x, num_samples=100).mean() > before + 3


@pytest.mark.parametrize("guide", GUIDES)
def test_state_round_trip(guide, tmp_path):
    reference = ppca(guide=guide)
    path = ppvae.save(reference.pair, tmp_path / "ppca.safetensors")
    fresh = ppvae.load(PPCA(6, 2, guide=guide), path)
    estimate = partial(ppvae.log_marginal, num_samples=5)
    assert torch.equal(estimate(fresh, *reference.data).values, estimate(reference.pair, *reference.data).values)


@pytest.mark.parametrize("guide", GUIDES)
def test_queries_are_exact(guide):
    reference = ppca(guide=guide)
    pair, (x,) = reference.pair, reference.data
    weight, bias, _, _, mean = moments(pair, x)
    expected = mean @ weight.T + bias
    torch.testing.assert_close(pair.reconstruct(x).double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pair.encode(x).mean.double().detach(), mean, rtol=1e-4, atol=1e-4)
    path = pair.interpolate(x[:3], x[3:6], 5)
    assert path.shape == (3, 5, 6)
    torch.testing.assert_close(path[:, 0], pair.reconstruct(x[:3]))
    torch.testing.assert_close(path[:, -1], pair.reconstruct(x[3:6]))
    torch.testing.assert_close(path[:, 2], (path[:, 0] + path[:, -1]) / 2)
    assert not path.requires_grad


def test_queries_take_leading_dims():
    pair, x = ppca().pair, torch.randn(2, 3, 6)
    assert pair.reconstruct(x).shape == x.shape
    torch.testing.assert_close(pair.reconstruct(x)[1], pair.reconstruct(x[1]))
    assert pair.interpolate(x, x + 1).shape == (2, 3, 9, 6)
    assert pair.reconstruct(x[0, 0]).shape == (6,)


def test_samples_have_the_model_s_moments():
    pair = ppca().pair
    torch.manual_seed(0)
    weight, bias, variance, _, _ = moments(pair, torch.zeros(1, 6))
    covariance = weight @ weight.T + variance * torch.eye(6)
    n = 50_000
    x = pair.sample(n).double()
    standard = covariance.diagonal().sqrt()
    assert (((x.mean(0) - bias) / standard).abs() * math.sqrt(n)).max() < 4
    torch.testing.assert_close(
        torch.cov(x.T) / standard / standard[:, None], covariance / standard / standard[:, None], rtol=0, atol=0.03
    )
    means = pair.sample(n, mean=True).double()
    torch.testing.assert_close(
        torch.cov(means.T) / standard / standard[:, None],
        weight @ weight.T / standard / standard[:, None],
        rtol=0,
        atol=0.03,
    )


def test_double_precision():
    pair = PPCA(6, 2).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    estimate = ppvae.log_marginal(pair, x, num_samples=3)
    torch.testing.assert_close(estimate.values, pair.log_prob(x).detach(), rtol=0, atol=1e-9)


def test_constructor():
    with pytest.raises(ValueError, match="guide must be 'exact' or 'amortized', got 'other'"):
        PPCA(6, 2, guide="other")
    for sizes in ((0, 2), (6, 0), (6, 2.5)):
        with pytest.raises((ValueError, TypeError)):
            PPCA(*sizes)


def test_one_dimension_recovers_its_closed_form_solution():
    """x ~ N(μ, σ²): trained, q = N(ax + b, ·) is the posterior of p = N(cz + d, s²), and c² + s² the variance."""
    torch.manual_seed(0)
    x = 1.5 + 2.0 * torch.randn(2000, 1)
    pair = PPCA(1, 1, guide="amortized")
    ppvae.fit(pair, x, epochs=60, batch_size=200, lr=2e-2, progress=False)
    weight, bias, variance, inverse, mean = moments(pair, x)
    marginal = dist.Normal(x.double().mean(), x.double().std(correction=0))
    assert float(bias) == pytest.approx(float(marginal.mean), abs=0.1)
    assert float(weight.square() + variance) == pytest.approx(float(marginal.variance), rel=0.07)
    with torch.no_grad():
        q_z = pair.encode(x)
        torch.testing.assert_close(q_z.mean.double(), mean, rtol=0, atol=0.15)
        assert float(q_z.variance.mean()) == pytest.approx(float(variance * inverse), rel=0.25, abs=0.02)
