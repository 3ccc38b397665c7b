"""Adaptive proposals against log p(x) that is known: unbiased, with error bars that mean what they say."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppvae
from ppvae.distributions import ConditionalDelta
from ppvae.evaluate import Adaptive, Annealed, ParetoWarning
from ppvae.models import PPCA
from ppvae.sampling.adaptive import Proposal, first_proposal
from ppvae.sampling.log_density import LogDensity
from ppvae.sampling.posterior_draws import posterior_sampler
from ppvae.sampling.student_mixture import StudentMixture
from tests.exact import gaussian, quadrature
from tests.reference import (
    LinearGaussian,
    autoguide,
    beta_bernoulli,
    concatenating,
    factor_analysis,
    gamma_poisson,
    hierarchy,
    masked_series,
    mixture,
    ppca,
    published_style_vae,
    pyro_params,
    scaled,
    wrong_softmax,
)
from tests.sampling.test_enumeration import LinearMixture, data
from tests.sampling.test_unconstrained import OnlyTheModelHas

CONTINUOUS = [
    ppca,
    factor_analysis,
    hierarchy,
    gamma_poisson,
    beta_bernoulli,
    masked_series,
    scaled,
    pyro_params,
    autoguide,
    concatenating,
    wrong_softmax,
    published_style_vae,
]


def adaptive(pair, *data, seed=0, **options):
    return ppvae.log_marginal(pair, *data, method=Adaptive(**options), seed=seed)


def check(estimate, exact, *, most=4.0):
    assert float(((estimate.values - exact) / estimate.std_error).abs().max()) < most


def check_calibrated(estimate, exact):
    """Errors in standard errors, of so many data that their mean square is near 1."""
    check(estimate, exact)
    assert 0.7 < float(((estimate.values - exact) / estimate.std_error).square().mean().sqrt()) < 1.4


@pytest.mark.parametrize("make", CONTINUOUS)
def test_it_is_exact_within_its_error(make):
    reference = make()
    estimate = adaptive(reference.pair, *reference.data)
    check(estimate, reference.log_prob)
    assert bool((estimate.std_error < 0.06).all())
    assert bool((estimate.pareto_k <= 0.7).all())
    assert bool((estimate.diagnostics.num_modes == 1).all())


@pytest.mark.parametrize("make", [LinearMixture, OnlyTheModelHas])
def test_latents_that_are_marked_are_summed_over(make):
    pair, x = make("wrong", inflation=1.3), data()
    check(adaptive(pair, x), pair.log_joint(x).double().logsumexp(-1).detach())


def misled():
    """The line, with a guide that is too narrow and beside the posterior."""
    pair = LinearGaussian()
    with torch.no_grad():
        pair.log_t.sub_(math.log(4.0))
        pair.b.add_(1.5)
    return pair


def test_a_bad_guide_does_not_matter():
    torch.manual_seed(0)
    pair, x = misled(), 2 * torch.randn(200)
    with pytest.warns(ParetoWarning):
        importance = ppvae.log_marginal(pair, x, num_samples=2000)
    found = adaptive(pair, x, tolerance=0.02)
    # Of 200 draws ten or so are the guide's, with weights near zero: where these are few the error looks small.
    check(found, pair.exact(x), most=6.0)
    assert 0.8 < float(((found.values - pair.exact(x)) / found.std_error).square().mean().sqrt()) < 1.25
    assert float((importance.values - pair.exact(x)).mean()) < -0.5
    assert float((found.values - pair.exact(x)).abs().max()) < 0.12
    assert int(found.diagnostics.num_draws.max()) <= 1000


def test_the_mean_weight_has_the_expectation_p_and_errors_are_calibrated():
    """1,000 estimates of one datum, by other draws each: their mean weight, and their errors in standard errors."""
    torch.manual_seed(0)
    pair = misled()
    x = torch.full((1000,), 1.3)
    found = adaptive(pair, x, num_samples=400, tolerance=0.001)
    ratio = (found.values - pair.exact(x)).exp()
    error = float(ratio.std() / math.sqrt(len(ratio)))
    assert abs(float(ratio.mean()) - 1) < 4 * error < 0.02
    standard = (ratio - 1) / found.std_error
    assert 0.9 < float(standard.square().mean().sqrt()) < 1.1


class Bimodal(nn.Module):
    """z ~ N(0, 1) of k dims, x ~ N(|z_1| 1, s²): p(x) is a quadrature. The guide sees one mode or both."""

    def __init__(self, k=1, *, both=True, scale=0.15):
        super().__init__()
        self.k, self.both, self.scale = k, both, scale

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.k), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0].abs(), self.scale), obs=x)

    def guide(self, x):
        loc = torch.zeros(len(x), self.k)
        scale = torch.full_like(loc, 1.0)
        if not self.both:
            loc[:, 0], scale[:, 0] = x, self.scale
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def exact(self, x):
        of = dist.Normal(0.0, 1.0)
        return quadrature(lambda z: of.log_prob(z) + dist.Normal(z.abs(), self.scale).log_prob(x.double()))


@pytest.mark.parametrize("k", [1, 6])
def test_both_modes_are_found(k):
    torch.manual_seed(0)
    pair, x = Bimodal(k), torch.rand(60) + 1
    found = adaptive(pair, x)
    check_calibrated(found, pair.exact(x))
    assert bool((found.diagnostics.num_modes == 2).all())
    assert "60 of the data with several modes" in found.summary()


def test_a_mode_that_the_guide_never_draws_is_not_found():
    """No method that starts at the guide can: half of the mass is missing, and no diagnostic knows."""
    torch.manual_seed(0)
    pair, x = Bimodal(both=False), torch.rand(20) + 1
    torch.testing.assert_close(adaptive(pair, x).values, pair.exact(x) - math.log(2), rtol=0, atol=0.25)


def high(k, d=300, data=20):
    """PPCA whose guide is wrong in every dimension, and log p of some data."""
    torch.manual_seed(0)
    pair = PPCA(d, k).double()
    with torch.no_grad():
        pair.p_x_given_z.net[0].weight.normal_(0, 0.15)
        x = pair.sample(data)
        weight, bias = pair.p_x_given_z.net[0].weight, pair.p_x_given_z.net[0].bias
        return pair, x, gaussian(x, weight @ weight.T + torch.eye(d).double(), bias)


def test_fifty_dimensions_of_784():
    pair, x, exact = high(50, d=784, data=30)
    check_calibrated(adaptive(pair, x), exact)


@pytest.mark.slow
def test_two_hundred_dimensions():
    pair, x, exact = high(200, data=8)
    check(adaptive(pair, x), exact)


def test_a_guide_that_is_a_point():
    """It has no density, and needs none: searches start from it, and the prior has the scale."""
    torch.manual_seed(0)
    pair, x, exact = high(3, d=6)
    pair.q_z_given_x = ConditionalDelta(nn.Linear(6, 3).double())
    check(adaptive(pair, x), exact)


class Turned(nn.Module):
    """z ~ N(0, I) of 8 dims, of each coordinate of R z five pixels, R a rotation: p(x) is a product of quadratures.

    The guide is N(0, I): its draws, 5,000 of them, hardly ever meet the posterior.
    """

    def __init__(self, k=8, d=5):
        super().__init__()
        self.rotation = torch.linalg.qr(torch.randn(k, k))[0]
        self.slope, self.offset = 3 * torch.randn(k, d), torch.randn(k, d)

    def logits(self, turned):
        return turned.unsqueeze(-1) * self.slope + self.offset

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.logits(z @ self.rotation)).to_event(2), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 8), 1.0).to_event(1))

    def exact(self, x):
        def log_joint(i):
            def of(z):
                logits = self.slope[i].double() * z.unsqueeze(-1) + self.offset[i].double()
                likelihood = dist.Bernoulli(logits=logits).log_prob(x[:, i].double()).sum(-1)
                return dist.Normal(0.0, 1.0).log_prob(z) + likelihood

            return of

        return sum(quadrature(log_joint(i)) for i in range(8))


def test_bernoulli_images_of_eight_latents_by_quadrature():
    torch.manual_seed(0)
    pair = Turned()
    x = dist.Bernoulli(logits=pair.logits(torch.randn(40, 8))).sample()
    found = adaptive(pair, x)
    check_calibrated(found, pair.exact(x))
    assert float(found.std_error.median()) < 0.06


# The pieces.


def test_the_student_mixture_is_what_it_says():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(2, 1, 3, 3, dtype=torch.float64))[0]
    q = StudentMixture(
        torch.randn(2, 1, 3, dtype=torch.float64),
        torch.tensor([[0.5, 1.0, 2.0]], dtype=torch.float64),
        basis,
        torch.rand(2, 1, 3, dtype=torch.float64) + 0.5,
        torch.tensor([[0.3], [0.7]], dtype=torch.float64).log(),
    )
    u = q.draw(200_000)
    other = dist.MultivariateNormal(torch.zeros(3, dtype=torch.float64), 9 * torch.eye(3, dtype=torch.float64))
    v = other.sample((200_000, 1))
    ratio = (q.log_prob(v) - other.log_prob(v)).exp()
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / math.sqrt(len(v))  # it integrates to one
    mean = torch.einsum("cn,cnk->nk", q.log_share.exp(), q.loc)
    assert float(((u.mean(0) - mean) / (u.std(0) / math.sqrt(len(u)))).abs().max()) < 4
    entropy, cross = -q.log_prob(u).mean(), -(q.log_prob(v) * ratio.unsqueeze(-1).squeeze(-1)).mean()
    assert abs(float(entropy - cross)) < 0.05


def test_the_fit_of_a_gaussian_posterior_is_the_posterior():
    pair, x, _ = high(7, d=20, data=5)
    weight = pair.p_x_given_z.net[0].weight.detach()
    covariance = (torch.eye(7).double() + weight.T @ weight).inverse()
    mean = (x - pair.p_x_given_z.net[0].bias.detach()) @ weight @ covariance
    with posterior_sampler(pair, (x,), summed=True) as posterior:
        mixture = first_proposal(LogDensity(posterior, compile=False), posterior).mixture
    torch.testing.assert_close(mixture.loc[0], mean, rtol=1e-4, atol=1e-4)
    whitened = mixture.basis[0] / mixture.precision[0].sqrt().unsqueeze(-2)
    found = mixture.unit.unsqueeze(-1) * (whitened @ whitened.mT) * mixture.unit.unsqueeze(-2)
    torch.testing.assert_close(found / 1.08**2, covariance.expand_as(found), rtol=1e-3, atol=1e-4)


def test_a_population_round_mends_shares_and_means():
    torch.manual_seed(0)
    pair, x = Bimodal(), torch.full((1,), 1.5)
    with posterior_sampler(pair, (x,), summed=True) as posterior:
        good = first_proposal(LogDensity(posterior, compile=False), posterior)
        wrong = StudentMixture(
            good.mixture.loc + 0.2,
            good.mixture.unit,
            good.mixture.basis,
            good.mixture.precision,
            torch.tensor([[0.1], [0.9]]).log(),
        )
        proposal = Proposal(good.density, good.part, wrong)
        for _ in range(6):
            proposal = proposal.adapted(*proposal.draw(2000))
    share = proposal.mixture.log_share.exp()
    torch.testing.assert_close(share, torch.full((2, 1), 0.5), rtol=0, atol=0.05)
    torch.testing.assert_close(proposal.mixture.loc, good.mixture.loc, rtol=0, atol=0.05)


@pytest.mark.usefixtures("with_and_without_inductor")
def test_compiled_is_eager():
    reference = ppca()
    found = [
        ppvae.log_marginal(reference.pair, *reference.data, method=Adaptive(300), compile=compile)
        for compile in (False, True)
    ]
    torch.testing.assert_close(found[1].values, found[0].values, rtol=1e-3, atol=1e-3)


def test_blocks_of_data_are_each_right():
    reference = ppca()
    whole, blocks = (
        ppvae.log_marginal(reference.pair, *reference.data, method=Adaptive(), batch_size=size) for size in (None, 3)
    )
    for estimate in (whole, blocks):
        check(estimate, reference.log_prob)


@pytest.mark.parametrize("latent", [torch.float32, torch.float64])
@pytest.mark.parametrize("observed", [torch.float32, torch.float64])
def test_a_likelihood_of_another_precision_than_the_latents(latent, observed):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=latent), 1.0))
            pyro.sample("x", dist.Normal(z.to(observed), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((0.4 * x).to(latent), 0.9))

    x = torch.linspace(-2, 2, 5, dtype=observed)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x.double())
    for method in (Adaptive(), Annealed(num_chains=8, num_temperatures=20, start="adaptive")):
        estimate = ppvae.log_marginal(ppvae.Pair(model, guide), x, method=method)
        assert ((estimate.values - exact).abs() < 5 * estimate.std_error + 0.02).all()


def test_options_and_what_is_refused():
    assert Adaptive.from_num_samples(7) == Adaptive(num_samples=7, tolerance=0.05)
    few = adaptive(ppca().pair, *ppca().data, num_samples=7)
    assert bool(few.pareto_k.isnan().all())
    assert "no k̂" in few.summary()
    with pytest.raises(ValueError, match="tolerance must be a positive number of nats, got 0"):
        Adaptive(tolerance=0)
    with pytest.raises(TypeError, match="tolerance must be a number of nats, got str"):
        Adaptive(tolerance="0.1")
    with pytest.raises(ValueError, match="latent 'y' is discrete"):
        adaptive(mixture().pair, *mixture().data)


def test_a_seed_gives_the_same_numbers():
    reference = ppca()
    a, b, c = (adaptive(reference.pair, *reference.data, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a.values, b.values)
    assert not torch.equal(a.values, c.values)


def test_annealing_agrees():
    pair, x, exact = high(12, d=40, data=6)
    annealed = ppvae.log_marginal(pair, x, method=Annealed(16, num_temperatures=60))
    error = (annealed.std_error**2 + 0.05**2).sqrt()
    assert float(((adaptive(pair, x).values - annealed.values) / error).abs().max()) < 4
    check(adaptive(pair, x), exact)
