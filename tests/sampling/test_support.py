"""Where densities end: at bounds that latents move, and of angles after one turn."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions.transforms import AffineTransform

import ppvae
from ppvae.evaluate import Adaptive, Annealed, Importance, ParetoWarning, log_evidence, log_marginal
from tests.sampling.test_weights import X, near, pair


def shifted(t):
    return dist.TransformedDistribution(dist.Exponential(torch.full_like(t, 3.0)), [AffineTransform(t, 1.0)])


MOVED = {
    "pareto": (lambda t: dist.Pareto(t, 2.0), lambda t, x: (2 * t**2 / x**3).log()),
    "uniform": (lambda t: dist.Uniform(t, t + 5.0), lambda t, x: torch.full_like(t, -math.log(5.0))),
    "shifted": (shifted, lambda t, x: math.log(3.0) - 3 * (x - t)),
}


@pytest.mark.parametrize("method", ["importance", "adaptive", "annealed"])
@pytest.mark.parametrize("name", MOVED)
def test_a_support_that_latents_move_past_the_data_gives_weight_zero(name, method):
    """Torch's formulas go on outside the support, and only a datum's first draws are validated."""
    likelihood, log_p = MOVED[name]
    both = pair(
        lambda x: pyro.sample("x", likelihood(pyro.sample("t", dist.Uniform(0.0, 3.0))), obs=x),
        lambda x: pyro.sample("t", dist.Uniform(torch.zeros_like(x), 1.3 * x)),
    )
    x = torch.tensor([0.5, 1.0, 2.0])
    t = torch.linspace(1e-6, 1, 100_001, dtype=torch.float64) * x.double()[:, None]
    exact = torch.trapezoid(log_p(t, x.double()[:, None]).exp() / 3, t).log()
    options = {
        "importance": Importance(5000),
        "adaptive": Adaptive(),
        "annealed": Annealed(num_chains=400, num_temperatures=4),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParetoWarning)  # of a density that ends at its highest point
        estimate = log_marginal(both, x, method=options[method], compile=False)
    assert ((estimate.values - exact).abs() < 5 * estimate.std_error + 0.02).all()
    if method == "importance":
        assert estimate.diagnostics.share_outside == pytest.approx(1 - 1 / 1.3, abs=0.03)
        assert (ppvae.elbo(both, x, num_samples=100).values == -math.inf).all()


def shifted_twice(t):
    half = dist.TransformedDistribution(dist.Exponential(torch.full_like(t, 6.0)), [AffineTransform(t / 4, 1.0)])
    return dist.TransformedDistribution(half, [AffineTransform(t / 2, 2.0)])


@pytest.mark.parametrize("prior", [shifted, shifted_twice])
def test_a_prior_that_is_shifted_by_a_latent_ends_where_it_begins(prior):
    def model(x):
        t = pyro.sample("t", dist.Exponential(1.0))
        pyro.sample("x", dist.Normal(pyro.sample("u", prior(t)), 1.0), obs=x)

    def guide(x):
        pyro.sample("t", dist.Exponential(1.0 + 0 * x))
        pyro.sample("u", dist.Normal(x, 1.5))

    u = torch.linspace(0, 30, 100_001, dtype=torch.float64)
    p = 3 * ((-u).exp() - (-3 * u).exp()) / 2  # of a sum of exponentials with the rates 1 and 3
    exact = torch.trapezoid(p * dist.Normal(u, 1.0).log_prob(X[:, None].double()).exp(), u).log()
    assert near(log_marginal(pair(model, guide), X, num_samples=50_000), exact)
    for method in (Adaptive(), Annealed(num_chains=200, num_temperatures=20)):
        estimate = log_marginal(pair(model, guide), X, method=method, compile=False)
        assert ((estimate.values - exact).abs() < 5 * estimate.std_error + 0.02).all()


def test_a_count_that_is_thinned_by_values_side_by_side():
    counts = torch.arange(12.0)
    prior = dist.Categorical(dist.Poisson(3.0).log_prob(counts).exp())

    def model(x):
        of = pyro.sample("of", prior, infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Binomial(of.float(), 0.4), obs=x)

    x = torch.tensor([0.0, 2.0, 5.0])
    p = dist.Binomial(counts, 0.4, validate_args=False).log_prob(x[:, None]).exp()
    exact = (torch.where(counts >= x[:, None], p, 0.0) * prior.probs).sum(-1).log().double()
    assert torch.allclose(log_marginal(pair(model, lambda x: None), x, num_samples=1).values, exact, atol=1e-5)


def test_data_outside_a_support_that_no_latent_moves_are_refused():
    def model(x, most):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Binomial(most, logits=z), obs=x)

    def guide(x, most):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0 * x, 1.0))

    both, most = ppvae.Pair(model, guide), torch.tensor([3.0, 4.0])
    assert log_marginal(both, torch.tensor([3.0, 4.0]), most, num_samples=10).values.isfinite().all()
    with pytest.raises(ValueError, match="within the support"):
        log_marginal(both, torch.tensor([3.0, 5.0]), most, num_samples=10)


def test_angles_have_one_turn():
    """Torch calls all real numbers the support of angles, over which their densities do not integrate."""

    def model(x):
        t = pyro.sample("t", dist.VonMises(0.5, 1.0))
        pyro.sample("x", dist.Normal(torch.stack([t.cos(), t.sin()], -1), 0.6).to_event(1), obs=x)

    def guide(x):
        pyro.sample("t", dist.VonMises(torch.atan2(x[:, 1], x[:, 0]), x.norm(dim=-1)))

    x = torch.tensor([[0.5, 0.0], [-1.0, 0.1], [0.1, -0.2]])
    t = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)[:, None]
    log_p = dist.VonMises(0.5, 1.0).log_prob(t)
    log_p = log_p + dist.Normal(torch.stack([t.cos(), t.sin()], -1), 0.6).to_event(1).log_prob(x.double())
    exact = torch.trapezoid(log_p.exp(), t, dim=0).log()
    for method in (Importance(5000), Adaptive(tolerance=0.01), Annealed(num_chains=100, num_temperatures=20)):
        estimate = log_marginal(pair(model, guide), x, method=method, compile=False)
        assert ((estimate.values - exact).abs() < 5 * estimate.std_error).all(), method


@pytest.mark.parametrize("num_samples", [2, 3000])
def test_a_latent_that_all_data_share_moves_their_support(num_samples):
    def model(x):
        t = pyro.sample("t", dist.Uniform(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Pareto(t, 2.0), obs=x)

    def guide(x):
        pyro.sample("t", dist.Uniform(0.0, 0.7))

    x = torch.tensor([0.5, 1.0, 2.0, 0.7])
    t = torch.linspace(1e-6, 0.5, 100_001, dtype=torch.float64)
    exact = torch.trapezoid((2 * t**2 / x.double()[:, None] ** 3).prod(0), t).log()
    found = log_evidence(ppvae.Pair(model, guide), x, num_samples=num_samples)
    assert num_samples == 2 or abs(found.value - exact) < 5 * found.std_error
