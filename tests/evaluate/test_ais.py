"""Annealed importance sampling against pairs whose log p(x) is known, from good starts and from bad ones."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppvae
from ppvae.evaluate import Annealed, bidirectional
from ppvae.evaluate.estimates import standard_error
from ppvae.sampling.annealed_path import GeometricPath
from tests.reference import (
    LinearGaussian,
    autoguide,
    beta_bernoulli,
    concatenating,
    factor_analysis,
    gamma_poisson,
    gaussian,
    hierarchy,
    linear_gaussian,
    masked_series,
    mixture,
    ppca,
    published_style_vae,
    pyro_params,
    scaled,
    wrong_softmax,
)

QUICK = {"num_chains": 128, "num_temperatures": 40, "num_leapfrog": 4}
CONTINUOUS = [
    ppca,
    factor_analysis,
    hierarchy,
    gamma_poisson,
    beta_bernoulli,
    masked_series,
    scaled,
    pyro_params,
    concatenating,
    wrong_softmax,
    published_style_vae,
]


OWN = {"num_chains", "num_temperatures", "num_leapfrog", "start"}


def split(options):
    """The options of the method, and those that all have."""
    own = {name: value for name, value in options.items() if name in OWN}
    return {"method": Annealed(**own), **{name: value for name, value in options.items() if name not in OWN}}


def annealed(pair, *data, **options):
    return ppvae.log_marginal(pair, *data, **split(options))


def both_ways(pair, *template, **options):
    return bidirectional(pair, *template, **split(options))


def check(estimate, exact, *, most=4.0):
    assert float(((estimate.values - exact) / estimate.std_error).abs().max()) < most


@pytest.mark.parametrize("start", ["guide", "prior"])
@pytest.mark.parametrize("make", CONTINUOUS)
def test_annealed_is_exact_within_its_error(make, start):
    reference = make()
    more = {"num_temperatures": 150} if start == "prior" and make is hierarchy else {}
    estimate = annealed(reference.pair, *reference.data, start=start, **QUICK | more)
    check(estimate, reference.log_prob)
    assert bool((estimate.std_error < 0.3).all())
    assert float((estimate.diagnostics.acceptance - 0.8).abs().max()) < (0.1 if start == "guide" else 0.2)
    assert bool(((estimate.ess >= 1) & (estimate.ess <= 128)).all())


@pytest.mark.parametrize("make", [ppca, hierarchy, gamma_poisson, masked_series, concatenating])
def test_from_fitted_proposals_few_temperatures_do(make):
    reference = make()
    estimate = annealed(reference.pair, *reference.data, start="adaptive", **QUICK | {"num_temperatures": 5})
    check(estimate, reference.log_prob)
    assert bool((estimate.ess > 100).all())


def test_log_marginal_with_this_method(monkeypatch):
    """By its name the method has 1,000 temperatures, which take a while; here 20."""
    reference = linear_gaussian()
    assert Annealed.from_num_samples(3) == Annealed(num_chains=3, num_temperatures=1000, num_leapfrog=5)
    monkeypatch.setattr(Annealed, "from_num_samples", lambda number: Annealed(number, num_temperatures=20))
    estimate = ppvae.log_marginal(reference.pair, *reference.data, method="annealed", num_samples=3, seed=2)
    own = annealed(reference.pair, *reference.data, num_chains=3, num_temperatures=20, seed=2)
    assert torch.equal(estimate.values, own.values)
    assert (estimate.diagnostics.num_chains, estimate.diagnostics.num_temperatures) == (3, 20)


class Labelled(LinearGaussian):
    """y ~ Bernoulli(0.3), z ~ N(0, 1), x ~ N(cz + dy, s²), both x and y observed."""

    def model(self, x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(0.3), obs=y)
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.c), 1.0))
            pyro.sample("x", dist.Normal(self.c * z + self.d * y, self.log_s.exp()), obs=x)

    def guide(self, x, y):
        super().guide(x)


def test_given_leaves_out_what_is_conditioned_on():
    torch.manual_seed(0)
    pair, x, y = Labelled(), torch.randn(11), torch.bernoulli(torch.full((11,), 0.3))
    variance = pair.c.double() ** 2 + (2 * pair.log_s.double()).exp()
    exact = dist.Normal(pair.d.double() * y, variance.sqrt()).log_prob(x).detach()
    check(annealed(pair, x, y, given=["y"], **QUICK), exact)
    check(annealed(pair, x, y, **QUICK), exact + dist.Bernoulli(0.3).log_prob(y))


def test_an_autoguide_from_the_prior():
    reference = autoguide()
    estimate = annealed(reference.pair, *reference.data, start="prior", **QUICK)
    check(estimate, reference.log_prob)


class Nested(nn.Module):
    """A latent whose support ends at another, a probability vector, a mixture as prior: p(x, y, w) is known.

    a ~ Beta(2, 3), b ~ Uniform(0, a), x ~ Bernoulli(b): p(x = 1) = E[a] / 2. t ~ Dirichlet(1, 2, 3), y ~ t. c from two
    normals at ±2, w ~ N(c, 1).
    """

    def model(self, x, y, w):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Beta(torch.tensor(2.0), 3.0))
            b = pyro.sample("b", dist.Uniform(torch.zeros(()), a))
            t = pyro.sample("t", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
            halves = dist.Categorical(torch.tensor([0.5, 0.5]))
            c = pyro.sample("c", dist.MixtureSameFamily(halves, dist.Normal(torch.tensor([-2.0, 2.0]), 1.0)))
            pyro.sample("x", dist.Bernoulli(b), obs=x)
            pyro.sample("y", dist.Categorical(t), obs=y)
            pyro.sample("w", dist.Normal(c, 1.0), obs=w)

    def guide(self, x, y, w):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Beta(torch.tensor(2.0), 2.0))
            pyro.sample("b", dist.Uniform(torch.zeros(()), a))
            pyro.sample("t", dist.Dirichlet(torch.tensor([1.5, 2.0, 2.5])))
            pyro.sample("c", dist.Normal(w / 2, 1.5))


@pytest.mark.parametrize("start", ["guide", "prior"])
def test_supports_that_depend_on_latents_and_other_bounded_ones(start):
    torch.manual_seed(0)
    x, y, w = torch.bernoulli(torch.full((9,), 0.4)), torch.randint(3, (9,)), 2 * torch.randn(9)
    exact = torch.where(x == 1, 0.2, 0.8).log() + (torch.tensor([1.0, 2.0, 3.0]) / 6).log()[y]
    two = torch.stack([dist.Normal(m, math.sqrt(2)).log_prob(w) for m in (-2.0, 2.0)]).logsumexp(0) - math.log(2)
    estimate = annealed(Nested(), x, y, w, start=start, **QUICK)
    check(estimate, (exact + two).double())


# Where importance sampling fails.


def misled(scale=0.5, shift=1.5):
    """The line, with a guide that is too narrow and beside the posterior."""
    pair = LinearGaussian()
    with torch.no_grad():
        pair.log_t.add_(math.log(scale / 1.3))
        pair.b.add_(shift)
    return pair


def test_a_bad_guide_does_not_spoil_the_estimate():
    torch.manual_seed(0)
    pair, x = misled(), 2 * torch.randn(11)
    exact = pair.exact(x)
    found = annealed(pair, x, num_chains=32, num_temperatures=150, num_leapfrog=4)
    check(found, exact)
    assert float((found.values - exact).abs().max()) < 0.3
    samples = 32 * 150 * 5  # as many evaluations of the model
    importance = annealed(pair, x, num_chains=samples, num_temperatures=1)
    error = (importance.values - exact) / importance.std_error
    assert float((importance.values - exact).mean()) < -1
    assert float(error.median()) < -4


def test_one_temperature_is_importance_sampling(monkeypatch):
    draws = []
    draw = GeometricPath.draw
    monkeypatch.setattr(GeometricPath, "draw", lambda *args: draws.append(draw(*args)) or draws[-1])
    reference = linear_gaussian()
    pair, (x,) = reference.pair, reference.data
    found = annealed(pair, x, num_temperatures=1)
    (z,) = (u[..., 0] for u, _ in draws)
    with torch.no_grad():
        log_q = dist.Normal(pair.a * x + pair.b, pair.log_t.exp()).log_prob(z)
        log_p = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(pair.c * z + pair.d, pair.log_s.exp()).log_prob(x)
    weight = (log_p - log_q).double().exp()
    torch.testing.assert_close(found.values, weight.mean(0).log(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.std_error, weight.std(0) / 4 / weight.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.ess, weight.sum(0) ** 2 / (weight**2).sum(0), rtol=1e-4, atol=1e-4)
    assert bool(found.diagnostics.acceptance.isnan().all())
    importance = ppvae.log_marginal(pair, x, num_samples=16)
    error = (found.std_error**2 + importance.std_error**2).sqrt()
    assert float(((found.values - importance.values) / error).abs().max()) < 4


def test_latents_of_different_units():
    class Units(nn.Module):
        def model(self, x):
            with pyro.plate("data", len(x)):
                a = pyro.sample("a", dist.Normal(torch.zeros(()), 1000.0))
                b = pyro.sample("b", dist.Normal(torch.zeros(()), 0.01))
                pyro.sample("x", dist.Normal(torch.stack([a / 1000, 100 * b], -1), 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("a", dist.Normal(torch.full((len(x),), 500.0), 600.0))
                pyro.sample("b", dist.Normal(torch.full((len(x),), 0.005), 0.006))

    torch.manual_seed(0)
    x = 2 * torch.randn(9, 2)
    for start in ("guide", "prior"):
        estimate = annealed(Units(), x, start=start, **QUICK)
        check(estimate, gaussian(x, 2 * torch.eye(2)))
        assert bool((estimate.ess > 50).all())


# Both bounds.


def test_fitted_proposals_both_ways():
    """Chains from exact draws come back to the proposal: their mean weight estimates 1/p(x)."""
    reference = ppca()
    both = both_ways(reference.pair, *reference.data, start="adaptive", num_chains=64, num_temperatures=5)
    exact = exact_of(ppca, reference.pair, both.data)
    check(both.lower, exact)
    assert float((both.upper.values - exact).abs().mean()) < 0.3
    assert abs(both.gap()) < 0.2


def exact_of(make, pair, data):
    """Log p of data that were simulated."""
    if make is linear_gaussian:
        return pair.exact(data[0])
    if make is ppca:
        return pair.log_prob(data[0]).double().detach()
    if make is gamma_poisson:
        return dist.NegativeBinomial(torch.tensor(2.0).double(), probs=1 / 1.5).log_prob(data[0].double())
    x, length = data
    each = [gaussian(x[i, :m], 1.25 * torch.eye(m) + 1) for i, m in enumerate(length.tolist())]
    return torch.stack(each)


@pytest.mark.parametrize("start", ["guide", "prior"])
@pytest.mark.parametrize("make", [linear_gaussian, ppca, gamma_poisson, masked_series])
def test_the_bounds_contain_the_truth(make, start):
    reference = make()
    template = tuple(t.repeat(20, *[1] * (t.dim() - 1)) for t in reference.data)
    options = {"num_chains": 4, "num_temperatures": 30, "num_leapfrog": 3, "start": start}
    both = both_ways(reference.pair, *template, **options)
    exact = exact_of(make, reference.pair, both.data)
    below, above = exact - both.lower.values, both.upper.values - exact
    error = [float(side.std()) / math.sqrt(len(side)) for side in (below, above)]
    assert float(below.mean()) > -4 * error[0]
    assert float(above.mean()) > -4 * error[1]
    assert both.gap() == pytest.approx(float((below + above).mean()))
    assert both.gap() < 0.5
    assert float(both.upper.diagnostics.acceptance.mean()) == pytest.approx(0.8, abs=0.1)


def test_the_gap_closes_with_the_temperatures():
    pair, template = misled(), torch.zeros(400)
    gaps = []
    for num_temperatures in (1, 20, 150):
        found = both_ways(pair, template, num_chains=4, num_temperatures=num_temperatures, num_leapfrog=3)
        gaps.append(found.gap())
        exact = pair.exact(found.data[0])
        for side in (exact - found.lower.values, found.upper.values - exact):
            assert float(side.mean()) > (4 if num_temperatures == 1 else -4) * standard_error(side)
    assert gaps[0] > 10 * gaps[1] > 50 * gaps[2]
    assert found.gap_std_error() < 0.05
    assert found.summary().startswith("on 400 data drawn from the model")
    assert f"a gap of {found.gap():.3f} ± {found.gap_std_error():.3f}" in found.summary()


# Blocks, seeds, compiling.


def test_blocks_give_the_same_in_distribution():
    reference = linear_gaussian()
    x, exact = reference.data[0].repeat(20), reference.log_prob.repeat(20)
    options = {"num_chains": 32, "num_temperatures": 10, "num_leapfrog": 2}
    for batch_size in (None, 60):
        estimate = annealed(reference.pair, x, batch_size=batch_size, **options)
        z = (estimate.values - exact) / estimate.std_error
        assert float(z.mean()) == pytest.approx(0, abs=4 / math.sqrt(len(x)) + 0.1)
        assert float(z.var()) == pytest.approx(1, abs=0.5)


def test_the_result_is_that_of_the_seed():
    reference = ppca()
    options = {"num_chains": 3, "num_temperatures": 5, "num_leapfrog": 2}
    state = torch.get_rng_state()
    a, b, c = (annealed(reference.pair, *reference.data, seed=s, **options) for s in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(a.values, b.values)
    assert not torch.equal(a.values, c.values)
    assert all(p.grad is None for p in reference.pair.parameters())


@pytest.mark.usefixtures("with_and_without_inductor")
def test_compiled_chains_are_the_eager_ones():
    reference = linear_gaussian()
    options = {"num_chains": 4, "num_temperatures": 8, "num_leapfrog": 3, "batch_size": 6}
    eager, compiled = (annealed(reference.pair, *reference.data, compile=c, **options) for c in (False, True))
    torch.testing.assert_close(compiled.values, eager.values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(compiled.diagnostics.acceptance, eager.diagnostics.acceptance, rtol=1e-3, atol=1e-3)


def test_summaries():
    reference = ppca()
    estimate = annealed(reference.pair, *reference.data, num_chains=5, num_temperatures=4)
    assert estimate.mean() == pytest.approx(float(estimate.values.mean()))
    assert estimate.mean_std_error() == pytest.approx(float(estimate.values.std()) / math.sqrt(11))
    assert estimate.bits_per_dim() == pytest.approx(-estimate.mean() / 6 / math.log(2))
    assert estimate.num_dims == 6
    assert estimate.diagnostics.settings() == {"num_samples": 5, "num_temperatures": 4, "draws": "chains"}
    assert estimate.pareto_k.isnan().all()
    for text in (f"{estimate.mean():.3f}", "over 11 data", "5 chains of 4 temperatures", "moves accepted"):
        assert text in estimate.summary()
    fields = (estimate.values, estimate.std_error, estimate.ess, estimate.diagnostics.acceptance)
    assert {t.dtype for t in fields} == {torch.float64}
    single = annealed(reference.pair, *reference.data, num_chains=1, num_temperatures=4)
    assert bool(single.std_error.isnan().all())


def test_progress_goes_to_stderr(capfd):
    reference = ppca()
    for progress in (False, True):
        both_ways(reference.pair, *reference.data, num_chains=2, num_temperatures=2, progress=progress)
        out, err = capfd.readouterr()
        assert out == ""
        assert ("annealing" in err) is progress


# Weights that are no numbers, and wrong arguments.


def half(bad):
    """p(x) = P(z > 1) for z ~ N(0, 1), with `bad` below."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.factor("x", torch.where(z > 1, 0.0, torch.where(x > 0, bad, -math.inf)))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.tensor(1.0), 1.5))

    return ppvae.Pair(model, guide)


def test_some_weights_zero():
    estimate = annealed(half(-math.inf), torch.arange(7), **QUICK | {"num_chains": 400})
    check(estimate, math.log(0.5 * math.erfc(1 / math.sqrt(2))))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_nan_or_infinite_are_named(bad):
    x = torch.cat([torch.zeros(8), torch.ones(3)])
    with (
        pytest.raises(ValueError, match=rf"log weight of datum 8 is {bad:g}, where a chain has log p\(x, z\) = {bad}"),
        pyro.validation_enabled(False),
    ):
        annealed(half(bad), x, batch_size=4, **QUICK)


class Misses(LinearGaussian):
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("elsewhere", dist.Normal(x, 1.0), infer={"is_auxiliary": True})


class Unplated(LinearGaussian):
    def model(self, x):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("estimate", [annealed, both_ways])
@pytest.mark.parametrize(
    ("pair", "data", "options", "message"),
    [
        (mixture().pair, mixture().data, {}, "latent 'y' is discrete"),
        (Misses(), (torch.zeros(7),), {}, "guide misses the latent site 'z'"),
        (Unplated(), (torch.zeros(7),), {}, "lies in no plate: it is a latent that all data share"),
        (LinearGaussian(), (torch.zeros(0),), {}, "empty"),
        (LinearGaussian(), (torch.zeros(7),), {"num_chains": 0}, "num_chains must be a whole number >= 1, got 0"),
        (LinearGaussian(), (torch.zeros(7),), {"num_temperatures": 0}, "num_temperatures must be a whole number"),
        (LinearGaussian(), (torch.zeros(7),), {"num_leapfrog": 1.0}, "num_leapfrog must be a whole number"),
        (LinearGaussian(), (torch.zeros(7),), {"batch_size": 0}, "batch_size must be a whole number"),
        (LinearGaussian(), (torch.zeros(7),), {"start": "both"}, 'start must be "guide", "prior" or "adaptive"'),
        (LinearGaussian(), (torch.zeros(7),), {"compile": "yes"}, "compile must be True, False or 'auto'"),
    ],
)
def test_wrong_arguments(estimate, pair, data, options, message):
    with pytest.raises(ValueError, match=message):
        estimate(pair, *data, **options)


def test_no_pair():
    with pytest.raises(TypeError, match="pair must be"):
        annealed(nn.Linear(2, 2), torch.zeros(3))
