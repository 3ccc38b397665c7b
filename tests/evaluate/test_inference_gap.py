"""The inference gap and its parts, against pairs whose best guide is known in closed form."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms as T
from pyro.distributions.transforms import Planar
from torch import nn

import ppvae
from ppvae.evaluate.inference_gap import Offsets, inference_gap
from ppvae.models import PPCA
from ppvae.sampling.posterior_draws import posterior_sampler
from tests.reference import (
    LinearGaussian,
    autoguide,
    beta_bernoulli,
    concatenating,
    gamma_poisson,
    hierarchy,
    linear_gaussian,
    masked_series,
    mixture,
    ppca,
    published_style_vae,
    pyro_params,
    scaled,
)


def kl(q, p):
    return torch.distributions.kl_divergence(q, p).detach().double()


def test_an_exact_encoder_has_no_gap():
    reference = ppca(guide="exact")
    gap = inference_gap(reference.pair, *reference.data, num_samples=100, num_steps=200)
    torch.testing.assert_close(gap.elbo, reference.log_prob, rtol=0, atol=1e-4)
    for part in (gap.amortization, gap.approximation, gap.total):
        assert part.abs().max() < 0.01


def wrong_encoder(dtype=torch.float64):
    """The linear pair with a mean and a scale that are wrong for every datum, and its posterior."""
    pair = LinearGaussian().to(dtype)
    x = torch.linspace(-3, 3, 11, dtype=dtype)
    with torch.no_grad():
        posterior = dist.Normal(pair.a * x + pair.b, pair.log_t.exp() / 1.3)
        pair.a.mul_(0.7)
        pair.b.add_(0.3)
        pair.log_t.add_(0.5)
        return pair, x, posterior, dist.Normal(pair.a * x + pair.b, pair.log_t.exp().expand(len(x)))


def test_a_wrong_encoder_of_the_right_family_costs_its_divergence():
    pair, x, posterior, q = wrong_encoder()
    gap = inference_gap(pair, x, num_samples=4000)
    expected = kl(q, posterior)
    assert expected.min() > 0.1
    assert ((gap.amortization - expected).abs() < 4 * gap.amortization_std_error + 2e-3).all()
    assert (gap.amortization_std_error < 0.1 * expected + 0.02).all()
    assert (gap.approximation.abs() < 4 * gap.approximation_std_error + 2e-3).all()
    torch.testing.assert_close(gap.log_marginal, pair.exact(x), rtol=0, atol=0.05)
    assert gap.converged.all()


def correlated():
    """PPCA whose posterior is correlated, with a diagonal guide, and the best diagonal normal for each datum."""
    reference = ppca()
    pair, (x,) = reference.pair, reference.data
    weight, bias = (t.detach() for t in (pair.p_x_given_z.net[0].weight, pair.p_x_given_z.net[0].bias))
    precision = weight.T @ weight + torch.eye(2)
    mean = torch.linalg.solve(precision, weight.T @ (x - bias).T).T
    posterior = dist.MultivariateNormal(mean, precision_matrix=precision)
    # KL(N(m, D) ‖ N(m, Λ⁻¹)) is least at D = 1 / diag Λ
    best = dist.MultivariateNormal(mean, covariance_matrix=torch.diag(1 / precision.diagonal()))
    return reference, posterior, best


def test_the_wrong_family_costs_what_its_best_member_does():
    reference, posterior, best = correlated()
    pair, (x,) = reference.pair, reference.data
    expected = kl(best, posterior)
    assert expected.min() > 0.1
    gap = inference_gap(pair, x, num_samples=4000)
    assert ((gap.approximation - expected).abs() < 4 * gap.approximation_std_error + 5e-3).all()
    q = pair.encode(x)
    q = dist.MultivariateNormal(q.mean, q.variance.diag_embed())
    expected = kl(q, posterior) - expected
    assert ((gap.amortization - expected).abs() < 4 * gap.amortization_std_error + 5e-3).all()


def test_the_best_encoder_of_its_family_has_no_amortization_gap():
    reference, posterior, best = correlated()
    pair, (x,) = reference.pair, reference.data
    with torch.no_grad():
        scale = best.variance[0].sqrt()
        pair.q_z_given_x.net[0].bias[2:] = (scale - pair.q_z_given_x.min_scale).expm1().log()
    gap = inference_gap(pair, x, num_samples=1000)
    assert gap.amortization.abs().max() < 0.01
    assert ((gap.approximation - kl(best, posterior)).abs() < 4 * gap.approximation_std_error + 5e-3).all()


class Related(nn.Module):
    """z2 ~ N(0, 1), z1 ~ N(z2, 1), x ~ N(z1, 1): q(z1|x) and q(z2|z1) are exact but for a shift and the scales."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(()), 1.0))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
            pyro.sample("x", dist.Normal(z1, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(2 * x / 3 + 0.4, 1.0))
            pyro.sample("z2", dist.Normal(z1 / 2 - 0.5, 0.4))


def test_a_hierarchical_guide_is_shifted_alike_for_all_upper_draws():
    x = torch.linspace(-2, 2, 7)
    gap = inference_gap(Related(), x, num_samples=3000)
    first = kl(dist.Normal(torch.tensor(0.4), 1.0), dist.Normal(0.0, torch.tensor(2 / 3).sqrt()))
    second = kl(dist.Normal(torch.tensor(-0.5), 0.4), dist.Normal(0.0, torch.tensor(0.5).sqrt()))
    assert ((gap.amortization - first - second).abs() < 4 * gap.amortization_std_error + 5e-3).all()
    assert (gap.approximation.abs() < 4 * gap.approximation_std_error + 5e-3).all()


@pytest.mark.parametrize("make", [gamma_poisson, beta_bernoulli, masked_series])
def test_other_families_and_nested_plates_reach_their_posterior(make):
    reference = make()
    gap = inference_gap(reference.pair, *reference.data, num_samples=2000)
    torch.testing.assert_close(gap.log_marginal, reference.log_prob, rtol=0, atol=0.05)
    assert (gap.approximation.abs() < 4 * gap.approximation_std_error + 0.03).all()
    before = (reference.log_prob - gap.elbo).mean()
    assert (reference.log_prob - gap.best_elbo).mean() < 0.4 * before


@pytest.mark.parametrize("make", [concatenating, scaled, pyro_params])
def test_the_form_of_the_pair_changes_nothing(make):
    """The same story in three ways of writing it."""
    reference = make()
    gap = inference_gap(reference.pair, *reference.data, num_samples=500)
    expected = kl(dist.Normal(torch.tensor(0.0), 1.3), dist.Normal(0.0, 1.0))
    assert (gap.approximation.abs() < 4 * gap.approximation_std_error + 0.01).all()
    assert float(gap.amortization.mean()) == pytest.approx(float(expected), abs=0.02)


def test_published_code_and_autoguides_run():
    for make in (published_style_vae, autoguide):
        reference = make()
        gap = inference_gap(reference.pair, *reference.data, num_samples=500, num_steps=300)
        torch.testing.assert_close(gap.log_marginal, reference.log_prob, rtol=0, atol=0.1)
        assert gap.amortization.min() > 0


class Flow(LinearGaussian):
    """The linear pair with a guide through a transform."""

    def __init__(self, transform):
        super().__init__()
        self.transform = transform

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.c * z.squeeze(-1) + self.d, self.log_s.exp()), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            base = dist.Normal((self.a * x + self.b).unsqueeze(-1), 0.6).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [self.transform]))


@pytest.mark.parametrize("make", [lambda: T.AffineTransform(0.3, 1.5), lambda: Planar(1)], ids=["affine", "planar"])
def test_of_a_flow_the_base_is_shifted(make):
    torch.manual_seed(0)
    pair, x = Flow(make()), torch.linspace(-2, 2, 7)
    gap = inference_gap(pair, x, num_samples=1000)
    torch.testing.assert_close(gap.log_marginal, pair.exact(x), rtol=0, atol=0.05)
    assert (gap.approximation.abs() < 4 * gap.approximation_std_error + 0.02).all()
    assert gap.amortization.mean() > 0.1


def test_log_p_is_good_where_the_encoder_s_weights_are_not():
    pair, x, *_ = wrong_encoder()
    with torch.no_grad():
        pair.log_t.sub_(3.0)
        pair.b.add_(2.0)
    gap = inference_gap(pair, x, num_samples=500)
    torch.testing.assert_close(gap.log_marginal, pair.exact(x), rtol=0, atol=0.02)
    with torch.no_grad():
        from_encoder = (gap.elbo - gap.log_marginal).mean()
    assert from_encoder < -5


def test_a_method_takes_the_place_of_the_estimate():
    reference = linear_gaussian()
    gap = inference_gap(reference.pair, *reference.data, num_samples=50, num_steps=20, log_marginal="adaptive")
    adaptive = ppvae.log_marginal(reference.pair, *reference.data, method="adaptive")
    assert torch.equal(gap.log_marginal, adaptive.values)


def test_known_log_marginals_take_the_place_of_the_estimate():
    pair, x, *_ = wrong_encoder()
    exact = pair.exact(x)
    gap = inference_gap(pair, x, num_samples=300, num_steps=100, log_marginal=exact + 1)
    assert torch.equal(gap.log_marginal, exact + 1)
    assert (gap.approximation > 0.9).all()
    assert (gap.approximation_std_error > 0).all()


def test_nothing_of_the_pair_or_the_global_state_changes():
    pair = PPCA(6, 2)
    x = torch.randn(11, 6, generator=torch.Generator().manual_seed(0))
    before, rng = copy.deepcopy(pair.state_dict()), torch.get_rng_state()
    first = inference_gap(pair, x, num_samples=20, num_steps=60)
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in pair.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in pair.parameters())
    assert pair.training
    again, other = (inference_gap(pair, x, num_samples=20, num_steps=60, seed=seed) for seed in (0, 1))
    assert torch.equal(first.best_elbo, again.best_elbo)
    assert not torch.equal(first.best_elbo, other.best_elbo)
    assert not first.converged.any()


def test_blocks_of_data_give_the_same_gap(monkeypatch):
    pair, x, posterior, q = wrong_encoder()
    monkeypatch.setattr("ppvae.sampling.sampler.ROW_BLOCK", {"cpu": 40, "cuda": 40})
    gap = inference_gap(pair, x, num_samples=2000)
    assert ((gap.amortization - kl(q, posterior)).abs() < 4 * gap.amortization_std_error + 5e-3).all()


def test_summary():
    pair, x, *_ = wrong_encoder()
    gap = inference_gap(pair, x, num_samples=20, num_steps=10)
    text = gap.summary()
    for number in (gap.total, gap.approximation, gap.amortization, gap.log_marginal, gap.best_elbo, gap.elbo):
        assert f"{float(number.mean()):.3f}" in text
    assert "over 11 data; for 11 data the best ELBO still rose at the last step" in text
    torch.testing.assert_close(gap.total, gap.approximation + gap.amortization)


# Offsets.


@pytest.mark.parametrize(
    "make_fn",
    [
        lambda x: dist.Normal(x, 0.3),
        lambda x: dist.LogNormal(x, 0.3),
        lambda x: dist.StudentT(4.0, x, 0.5),
        lambda x: dist.Gamma(x.exp(), 2.0),
        lambda x: dist.Beta(x.exp(), 2.0),
        lambda x: dist.Kumaraswamy(x.exp(), torch.tensor(2.0)),
        lambda x: dist.Laplace(x, 0.2),
        lambda x: dist.Normal(x.unsqueeze(-1), torch.ones(3)).to_event(1),
        lambda x: dist.Normal(x.unsqueeze(-1), torch.ones(3)).to_event(1).mask(torch.arange(x.shape[-1]) % 7 < 5),
        lambda x: dist.Dirichlet(torch.ones(3) + x.exp().unsqueeze(-1)),
        lambda x: dist.MultivariateNormal(x.unsqueeze(-1).expand(*x.shape, 2), scale_tril=torch.eye(2) / 2),
        lambda x: dist.MultivariateNormal(torch.zeros(2), covariance_matrix=torch.eye(2) / 2),
        lambda x: dist.LowRankMultivariateNormal(torch.zeros(3), torch.ones(3, 1), torch.ones(3)),
        lambda x: dist.RelaxedOneHotCategorical(torch.tensor(0.7), logits=torch.stack([x, -x], -1)),
        lambda x: dist.TransformedDistribution(dist.Normal(x, 1.0), [T.ExpTransform(), T.AffineTransform(1.0, 2.0)]),
    ],
)
@pytest.mark.parametrize("plated", [True, False])
def test_offsets_of_zero_change_nothing_and_others_change_one_datum(make_fn, plated):
    x = torch.linspace(-1, 1, 7)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", make_fn(torch.zeros_like(x)))
            pyro.sample("x", dist.Normal(z.flatten(x.dim()).sum(-1) if z.dim() > x.dim() else z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", make_fn(x))

    with posterior_sampler(ppvae.Pair(model, guide), (x,)) as c:
        if not plated:
            c = type(c)(type(c.sampler)(c.sampler.pair, None, c.sampler.rows), c.data, c.latents, c.observed)
        latents, log_q = c.draw(4)
        offsets = Offsets(c)
        with offsets:
            torch.testing.assert_close(c.log_posterior(latents)["z"], log_q["z"], rtol=1e-3, atol=1e-3)
            assert offsets.values
            for value in offsets.values.values():
                assert value.shape[0] == 7
                with torch.no_grad():
                    value[2] += 0.5 * torch.arange(1, value[2].numel() + 1).view(value[2].shape)
            moved = (c.log_posterior(latents)["z"] - log_q["z"]).abs() > 2e-3
    assert moved[:, 2].all()
    assert not moved[:, [0, 1, 3, 4, 5, 6]].any()


# Errors.


def only_deltas():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(x))

    return ppvae.Pair(model, guide)


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (lambda: inference_gap(mixture().pair, *mixture().data), ValueError, r"'y' has no reparameterized .*Categ"),
        (lambda: inference_gap(only_deltas(), torch.randn(6)), ValueError, r"\['z'\] one value"),
        (lambda: inference_gap(PPCA(4, 2), torch.zeros(0, 4)), ValueError, "empty"),
        (lambda: inference_gap(PPCA(4, 2), torch.zeros(5, 4), num_steps=0), ValueError, "num_steps must be a whole"),
        (lambda: inference_gap(PPCA(4, 2), torch.zeros(5, 4), num_samples=1.5), ValueError, "num_samples must be"),
        (lambda: inference_gap(PPCA(4, 2), torch.zeros(5, 4), num_particles=0), ValueError, "num_particles must be"),
        (lambda: inference_gap(PPCA(4, 2), torch.zeros(5, 4), log_marginal=[1.0]), TypeError, "a tensor or a method"),
        (
            lambda: inference_gap(PPCA(4, 2), torch.zeros(5, 4), log_marginal=torch.zeros(4)),
            ValueError,
            r"shape \(5,\), one value per datum, got \(4,\)",
        ),
        (lambda: inference_gap(nn.Linear(2, 2), torch.zeros(3)), TypeError, "pair must be"),
    ],
)
def test_wrong_arguments(run, error, message):
    with pytest.raises(error, match=message):
        run()


def test_a_nan_is_named():
    pair = linear_gaussian().pair
    x = torch.linspace(-1, 1, 9)
    x[7] = torch.nan
    with (
        pyro.validation_enabled(False),
        pytest.raises(ValueError, match=r"data\[0\] holds NaN or infinite values, first in row 7"),
    ):
        inference_gap(pair, x, num_samples=5, num_steps=5)


def test_hierarchies_of_many_dimensions():
    reference = hierarchy()
    gap = inference_gap(reference.pair, *reference.data, num_samples=1000)
    torch.testing.assert_close(gap.log_marginal, reference.log_prob, rtol=0, atol=0.2)
    assert (gap.amortization > 0.5).all()
    assert (gap.approximation > 0).all()
