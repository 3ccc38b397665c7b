"""Weights that are none: each kind of pair gives the exact value, or is refused for its reason."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal

import ppvae
from ppvae.evaluate import Annealed, latent_report, log_marginal
from ppvae.evaluate.importance import SupportWarning

X = torch.tensor([0.5, -1.0, 2.0])
AUXILIARY = {"is_auxiliary": True}


def pair(model, guide, **options):
    """A pair of functions of (x,) that run inside a data plate."""

    def plated(body):
        def run(x, **latents):
            with pyro.plate("data", len(x)):
                body(x, **latents)

        return run

    return ppvae.Pair(plated(model), plated(guide), **{name: plated(body) for name, body in options.items()})


def line(x):
    pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)


EXACT = dist.Normal(0.0, 2**0.5).log_prob(X).double()


def near(estimate, exact, sigmas=5.0):
    return bool(((estimate.values - exact).abs() <= sigmas * estimate.std_error).all())


# Masks and densities to condition on, where the data are.


def masked(x, m):
    with pyro.plate("data", len(x)), poutine.mask(mask=m):
        line(x)


def unmasked_guide(x, m):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.8))


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("options", [{}, {"batch_size": 3}])
@pytest.mark.parametrize("missing", [2, 7])
def test_masks_that_differ_in_any_datum_are_found(missing, options, compile):
    m = torch.ones(8, dtype=torch.bool)
    m[missing] = False
    where = f"datum {missing}" if missing > 4 else "in the model than in the guide"
    for estimate, s in ((ppvae.elbo, 1), (ppvae.elbo, 40), (log_marginal, 40)):
        with pytest.raises(ValueError, match=rf"\['z'\].*{where}"):
            estimate(
                ppvae.Pair(masked, unmasked_guide), torch.full((8,), 0.5), m, num_samples=s, compile=compile, **options
            )


def test_masks_are_compared_for_chains_too():
    m = torch.arange(8) != 7
    with pytest.raises(ValueError, match=r"\['z'\].*datum 7"):
        log_marginal(ppvae.Pair(masked, unmasked_guide), torch.full((8,), 0.5), m, method=Annealed(4, 4))


def depends_on_z_where(x, y, late):
    """Whether y depends on z is told by the data."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z * late, 1.0), obs=y)
        pyro.sample("x", dist.Normal(z + y, 1.0), obs=x)


def guide_of_xy(x, y, late):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x - y) / 2, 0.8))


@pytest.mark.parametrize("num_samples", [1, 2, 30])
def test_a_density_that_depends_on_latents_in_a_late_datum_is_no_condition(num_samples):
    late = torch.zeros(9)
    x, y, both = torch.randn(9), torch.randn(9), ppvae.Pair(depends_on_z_where, guide_of_xy)
    assert ppvae.elbo(both, x, y, late, given=["y"], num_samples=num_samples).values.isfinite().all()
    late[7] = 1.0
    with pytest.raises(ValueError, match="'y', whose density, in datum 7, depends on latents"):
        ppvae.elbo(both, x, y, late, given=["y"], num_samples=num_samples)


# Support.


def bounded(prior):
    def model(x):
        pyro.sample("x", dist.Normal(pyro.sample("z", prior()), 0.5), obs=x)

    return model


def log_integral(prior, x, low=-20.0, high=20.0):
    """Log ∫ p(z) N(x; z, 0.5) dz by the trapezoid rule over the support."""
    z = torch.linspace(low, high, 400_001, dtype=torch.float64)
    p = prior(validate_args=False).log_prob(z) + dist.Normal(z, 0.5).log_prob(x)
    inside = prior().support.check(z)
    return torch.trapezoid(torch.where(inside, p.exp(), 0.0), z).log()


PRIORS = {
    "uniform": lambda **o: dist.Uniform(0.0, 1.0, **o),
    "beta": lambda **o: dist.Beta(2.0, 3.0, **o),
    "exponential": lambda **o: dist.Exponential(1.0, **o),
    "gamma": lambda **o: dist.Gamma(2.0, 2.0, **o),
    "half normal": lambda **o: dist.HalfNormal(1.0, **o),
    "pareto": lambda **o: dist.Pareto(0.5, 3.0, **o),
}


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("name", PRIORS)
def test_draws_outside_the_support_have_weight_zero(name, validate):
    prior, x = PRIORS[name], torch.tensor([0.6])
    both = pair(bounded(prior), lambda x: pyro.sample("z", dist.Normal(x, 1.0)))
    with pyro.validation_enabled(validate):
        estimate = log_marginal(both, x, num_samples=20_000)
    assert near(estimate, log_integral(prior, x))
    low, high = {"uniform": (0, 1), "beta": (0, 1), "pareto": (0.5, 50)}.get(name, (0, 50))
    inside = dist.Normal(x, 1.0).cdf(torch.tensor(high)) - dist.Normal(x, 1.0).cdf(torch.tensor(low))
    assert float(estimate.diagnostics.share_outside) == pytest.approx(1 - float(inside), abs=0.02)
    assert "outside the support" in estimate.summary()


def test_a_likelihood_that_does_not_exist_outside_the_support():
    both = pair(
        lambda x: pyro.sample("x", dist.Bernoulli(pyro.sample("z", dist.Uniform(0.0, 1.0))), obs=x),
        lambda x: pyro.sample("z", dist.Normal(0.3 + 0.4 * x, 0.5)),
    )
    x, exact = torch.tensor([0.0, 1.0]), torch.tensor(math.log(0.5))
    assert near(log_marginal(both, x, num_samples=5000), exact)
    annealed = log_marginal(both, x, method=Annealed(num_chains=1500, num_temperatures=4))
    assert near(annealed, exact)
    assert (annealed.diagnostics.share_outside > 0.2).all()
    bound = ppvae.elbo(both, x, num_samples=100)
    assert (bound.values == -math.inf).all()
    assert bound.reconstruction.isnan().all()
    with pytest.raises(
        ValueError, match=r"data\[0\] holds values outside the support of Bernoulli at site 'x', e.g. 0.5"
    ):
        log_marginal(both, torch.tensor([1.0, 0.5]))


def test_a_guide_with_more_values_than_the_prior():
    both = pair(
        lambda x: pyro.sample("x", dist.Normal(pyro.sample("y", dist.Categorical(torch.ones(3))).float(), 1.0), obs=x),
        lambda x: pyro.sample("y", dist.Categorical(torch.ones(len(x), 5))),
    )
    exact = dist.Normal(torch.arange(3.0), 1.0).log_prob(X[:, None]).logsumexp(-1) - math.log(3)
    assert near(log_marginal(both, X, num_samples=4000), exact)


def test_an_inner_plate_in_which_one_element_lies_outside():
    def model(x):
        with pyro.plate("d", 2, dim=-2):
            z = pyro.sample("z", dist.Exponential(1.0))
        pyro.sample("x", dist.Normal(z.sum(-2), 1.0), obs=x)

    def guide(x):
        with pyro.plate("d", 2, dim=-2):
            pyro.sample("z", dist.Normal(x.clamp(min=0.5) / 2, 1.0))

    g = torch.linspace(0, 30, 60_001, dtype=torch.float64)  # the sum of two exponentials is a gamma
    p = g.log() - g + dist.Normal(g, 1.0).log_prob(X[:, None].double())
    exact = torch.trapezoid(p.exp(), g).log()
    assert near(log_marginal(pair(model, guide), X, num_samples=20_000), exact)


def test_most_draws_outside_are_warned_of():
    both = pair(bounded(PRIORS["uniform"]), lambda x: pyro.sample("z", dist.Normal(x - 3.0, 1.5)))
    with pytest.warns(SupportWarning, match="most draws"):
        log_marginal(both, torch.tensor([0.5]), num_samples=500)


# Point masses, codes and variables of the guide alone.


@pytest.mark.parametrize("given", ["net", "autoguide"])
def test_a_point_mass_has_no_weights(given):
    def model(x):
        with pyro.plate("data", len(x)):
            line(x)

    def with_index(x, i):
        with pyro.plate("data", 40, subsample=i):
            line(x)

    guide = AutoDelta(with_index, create_plates=lambda x, i: pyro.plate("data", 40, subsample=i))
    data = (X,) if given == "net" else (X, torch.arange(3))
    both = (
        pair(line, lambda x: pyro.sample("z", dist.Delta(x / 2))) if given == "net" else ppvae.Pair(with_index, guide)
    )
    for run in (ppvae.elbo, log_marginal, latent_report):
        with pytest.raises(ValueError, match=r"latents \['z'\] one value"):
            run(both, *data)
    with pytest.raises(ValueError, match=r"latents \['z'\] one value"):
        log_marginal(both, *data, method=Annealed(4, 4))
    prior = log_marginal(both, *data, method=Annealed(400, 30, start="prior"))
    assert near(prior, EXACT)


@pytest.mark.parametrize("kind", ["AutoNormal", "AutoDiagonalNormal", "by hand", "identity"])
def test_a_delta_that_makes_the_latent_of_a_draw_is_no_point_mass(kind):
    def model(x, i):
        with pyro.plate("data", 40, subsample=i):
            z = pyro.sample("z", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def by_hand(x, i):
        with pyro.plate("data", 40, subsample=i):
            u = pyro.sample("u", dist.Normal(0.0, 0.8), infer=AUXILIARY)
            pyro.sample("z", dist.Delta(u.exp(), log_density=-u))

    def identity(x, i):
        with pyro.plate("data", 40, subsample=i):
            pyro.sample("z", dist.Delta(pyro.sample("u", dist.Gamma(2.0, 1.2), infer=AUXILIARY)))

    create = {"create_plates": lambda x, i: pyro.plate("data", 40, subsample=i)}
    guides = {"by hand": by_hand, "identity": identity}
    guide = guides.get(kind) or {"AutoNormal": AutoNormal, "AutoDiagonalNormal": AutoDiagonalNormal}[kind](
        model, init_scale=0.8, **(create if kind == "AutoNormal" else {})
    )
    both, data = ppvae.Pair(model, guide), (X, torch.arange(3))
    if kind == "AutoDiagonalNormal":  # it draws the latents of all data at once
        with pytest.raises(ValueError, match="outermost plate"):
            log_marginal(both, *data)
        return
    z = torch.linspace(1e-6, 30, 300_001, dtype=torch.float64)
    p = z.log() - z + dist.Normal(z, 1.0).log_prob(X[:, None].double())
    assert near(log_marginal(both, *data, num_samples=20_000), torch.trapezoid(p.exp(), z).log())


def test_a_code_gives_a_bound():
    both = pair(
        lambda x: pyro.sample("x", dist.Normal(pyro.sample("y", dist.Categorical(torch.ones(4))).float(), 1.0), obs=x),
        lambda x: pyro.sample("y", dist.Delta(x.round().clamp(0, 3).long())),
    )
    estimate = log_marginal(both, X, num_samples=200)
    bound = dist.Normal(X.round().clamp(0, 3), 1.0).log_prob(X) - math.log(4)
    torch.testing.assert_close(estimate.values.float(), bound)
    torch.testing.assert_close(ppvae.elbo(both, X).values.float(), bound)
    assert all(of.isnan().all() for of in (estimate.ess, estimate.pareto_k, estimate.std_error))
    assert "a bound, not an estimate: the guide gives y one value" in estimate.summary()


def test_auxiliary_variables_without_a_density_are_refused():
    continuous = pair(
        line,
        lambda x: pyro.sample("z", dist.Normal(x / 2 + pyro.sample("u", dist.Normal(0.0, 0.3), infer=AUXILIARY), 0.7)),
    )
    two_of_one = pair(
        line,
        lambda x: pyro.sample(
            "z", dist.Delta(pyro.sample("u", dist.Normal(0.0, 1.0).expand([2]).to_event(1), infer=AUXILIARY).sum(-1))
        ),
    )
    for both in (continuous, two_of_one):
        for run in (ppvae.elbo, log_marginal):
            with pytest.raises(ValueError, match=r"the guide draws \['u'\], which the model does not have"):
                run(both, X)


@pytest.mark.parametrize("compile", [False, True])
def test_q_is_summed_over_marked_auxiliary_variables(compile):
    def guide(x):
        c = pyro.sample("c", dist.Categorical(torch.ones(10)), infer={**AUXILIARY, "enumerate": "parallel"})
        pyro.sample("z", dist.Normal(x / 2 + 0.3 * c - 1.2, 0.6))

    estimate = log_marginal(pair(line, guide), X, num_samples=4000, compile=compile)
    assert near(estimate, EXACT)
    z, c = torch.linspace(-9, 9, 20_001, dtype=torch.float64)[:, None], torch.arange(10.0)
    log_q = dist.Normal(X[:, None] / 2 + 0.3 * c - 1.2, 0.6).log_prob(z[..., None]).logsumexp(-1) - math.log(10)
    log_joint = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(X)
    exact = torch.trapezoid(log_q.exp() * (log_joint - log_q), z, dim=0)
    bound = ppvae.elbo(pair(line, guide), X, num_samples=4000)
    assert near(bound, exact)
    assert list(bound.kl) == ["z"]


def test_a_reverse_model_makes_the_bound_right():
    def guide(x):
        u = pyro.sample("u", dist.Normal(0.0, 1.0), infer=AUXILIARY)
        pyro.sample("z", dist.Normal(x / 2 + 0.4 * u, 0.7))

    def reverse(x, z):
        variance = 0.4**2 + 0.7**2
        pyro.sample("u", dist.Normal((z - x / 2) * 0.4 / variance, 1.1 * 0.7 / variance**0.5), infer=AUXILIARY)

    both = pair(line, guide, reverse=reverse)
    assert near(log_marginal(both, X, num_samples=4000), EXACT)
    assert (ppvae.elbo(both, X, num_samples=2000).values < EXACT).all()
    with pytest.raises(ValueError, match="reverse must sample"):
        log_marginal(pair(line, guide, reverse=lambda x, z: None), X)


# Values that carry more than their numbers.


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("kind", ["bernoulli", "one hot"])
def test_straight_through_relaxations(kind, compile):
    torch.manual_seed(0)
    decoder, encoder, temperature = torch.randn(3, 6), torch.randn(6, 3), torch.tensor(0.7)
    family = (
        dist.RelaxedBernoulliStraightThrough if kind == "bernoulli" else dist.RelaxedOneHotCategoricalStraightThrough
    )

    def relaxed(logits):
        fn = family(temperature, logits=logits)
        return fn.to_event(1) if kind == "bernoulli" else fn

    def model(x):
        z = pyro.sample("z", relaxed(torch.zeros(3)))
        pyro.sample("x", dist.Bernoulli(logits=z @ decoder).to_event(1), obs=x)

    both, x = pair(model, lambda x: pyro.sample("z", relaxed(x @ encoder / 2))), torch.randint(0, 2, (7, 6)).float()
    # What the model sees is the hard value: fair coins, or one of three at random.
    values = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3) if kind == "bernoulli" else torch.eye(3)
    log_p = dist.Bernoulli(logits=values @ decoder).to_event(1).log_prob(x[:, None])
    exact = log_p.logsumexp(-1) - math.log(len(values))
    estimate = log_marginal(both, x, num_samples=6000, compile=compile)
    assert near(estimate, exact)
    with pytest.raises(ValueError, match="carry more than their numbers"):
        log_marginal(both, x, method=Annealed(4, 4, start="prior"))


# Plates of model and guide.


def test_plates_of_model_and_guide_are_compared():
    def model(x):
        with pyro.plate("d", 4, dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.sum(-2), 1.0), obs=x)

    for s in (1, 10):
        with pytest.raises(ValueError, match=r"'z' is drawn in other plates .* \(3,\) in 'data'.* \(4, 3\) in .*'d'"):
            ppvae.elbo(pair(model, lambda x: pyro.sample("z", dist.Normal(x, 1.0))), X, num_samples=s)


@pytest.mark.parametrize("n", [1, 3, 5, 9])
@pytest.mark.parametrize("num_samples", [1, 10])
def test_an_inner_plate_as_large_as_the_batch_is_not_taken_for_it(n, num_samples):
    def model(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("d", x.shape[1], dim=-1):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1e-3)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("d", x.shape[1], dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1e-3))

    with pytest.raises(ValueError, match="'data' has dim -2: give it dim=-1"):
        ppvae.elbo(ppvae.Pair(model, guide), torch.randn(n, n), num_samples=num_samples)


# Reparameterized models.


def test_a_reparameterized_site_is_no_data():
    from pyro.infer.reparam import LocScaleReparam

    from ppvae.evaluate import check_sbc, posterior_predictive, run_sbc

    def plain(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(1.0, 2.0)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z_decentered", dist.Normal((0.8 * x + 0.2 - 1) / 2, 0.2**0.5))

    both = ppvae.Pair(poutine.reparam(plain, config={"z": LocScaleReparam(0.0)}), guide)
    draws = posterior_predictive(both, X, num_samples=20)
    assert (list(draws.posterior), list(draws.predictive), list(draws.observed)) == (["z_decentered"], ["x"], ["x"])
    assert check_sbc(run_sbc(both, X, num_simulations=200), level=1e-6).calibrated
    exact = dist.Normal(1.0, 5**0.5).log_prob(X).double()
    torch.testing.assert_close(log_marginal(both, X, num_samples=10).values, exact, rtol=0, atol=1e-4)
