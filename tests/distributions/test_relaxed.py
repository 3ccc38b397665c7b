"""Concrete and straight-through latents: densities by quadrature, gradients by enumeration, and pairs made of them."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from torch import nn
from torch.distributions import kl_divergence
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli

import ppvae
from ppvae.distributions import (
    BinaryConcrete,
    BinaryStraightThrough,
    Concrete,
    ConditionalBernoulli,
    ConditionalCategorical,
    OneHotConcrete,
    OneHotStraightThrough,
    StandardNormal,
    StraightThrough,
    UniformCategorical,
)
from ppvae.means import code_of
from ppvae.models import VAE
from ppvae.nn import MLP
from ppvae.objectives import IWAE, Linear

D, C = 6, 4
LOGITS = torch.tensor([0.3, -1.0, 1.2], dtype=torch.float64)


def tau(value):
    return torch.tensor(value, dtype=torch.float64)


def near(values, exact, *, errors=5.0):
    """Whether the mean of draws is as many standard errors from what it should be, at most."""
    return bool(((values.mean(0) - exact).abs() <= errors * values.std(0) / math.sqrt(len(values))).all())


# Densities.


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_binary_density_integrates_to_one_with_the_moments_of_its_draws(temperature):
    p = BinaryConcrete(tau(temperature), logits=LOGITS)
    line = torch.linspace(-90, 90, 40_001, dtype=torch.float64)[:, None]
    mass = (
        (p.log_prob(line.sigmoid()) - nn.functional.softplus(line) - nn.functional.softplus(-line)).exp() * 180 / 40_000
    )
    torch.testing.assert_close(mass.sum(0), torch.ones(3).double(), rtol=0, atol=1e-4)
    draws = p.rsample((20_000,))
    for power in (1, 2):
        assert near(draws**power, (mass * line.sigmoid() ** power).sum(0))


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_density_on_the_simplex_integrates_to_one_with_the_moments_of_its_draws(temperature):
    p = OneHotConcrete(tau(temperature), logits=LOGITS)
    line = torch.linspace(-50, 50, 1001, dtype=torch.float64)
    rows = torch.cartesian_prod(line, line)
    s = torch.cat([rows, torch.zeros(len(rows), 1)], -1).softmax(-1)
    mass = (p.log_prob(s) + s.log().sum(-1)).exp() * 0.01  # |ds / d rows| is the product of the elements
    assert float(mass.sum()) == pytest.approx(1, abs=1e-3)
    draws = p.rsample((20_000,))
    assert near(draws, (mass[:, None] * s).sum(0))
    assert near(draws.square(), (mass[:, None] * s.square()).sum(0))


@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_density_is_right_where_elements_are_zero_in_float32(temperature):
    torch.manual_seed(0)
    far = torch.tensor([0.0, 3.0, -30.0])
    for family in (OneHotConcrete, BinaryConcrete):
        q, p = family(torch.tensor(temperature), logits=far), family(torch.tensor(1.0), logits=far.flip(0))
        s = q.rsample((50,))
        exact = s.detach().double()
        exact.relaxed = s.relaxed.detach().double()
        for fn in (q, p):
            of_double = family(fn.temperature.double(), logits=fn.logits.double()).log_prob(exact)
            torch.testing.assert_close(fn.log_prob(s).double(), of_double, rtol=1e-4, atol=1e-3)
        foreign = q.log_prob(s.clone())  # a value from elsewhere is scored by its numbers
        assert bool(foreign.isfinite().all())


@pytest.mark.parametrize("temperature", [0.05, 1.0, 5.0])
def test_the_largest_element_has_the_probabilities_of_the_discrete_variable(temperature):
    torch.manual_seed(0)
    n, probs = 20_000, LOGITS.softmax(-1)
    soft = OneHotConcrete(tau(temperature), logits=LOGITS).rsample((n,))
    hard = OneHotStraightThrough(tau(temperature), logits=LOGITS).rsample((n,))
    assert near(nn.functional.one_hot(soft.argmax(-1), 3).double(), probs)
    assert near(hard, probs)
    assert bool(((hard == 0) | (hard == 1)).all() & (hard.sum(-1) == 1).all())
    soft = BinaryConcrete(tau(temperature), logits=LOGITS).rsample((n,))
    hard = BinaryStraightThrough(tau(temperature), logits=LOGITS).rsample((n,))
    assert near((soft > 0.5).double(), LOGITS.sigmoid())
    assert near(hard, LOGITS.sigmoid())
    assert bool(((hard == 0) | (hard == 1)).all())


def test_concrete_draws_become_one_hot_as_the_temperature_falls():
    torch.manual_seed(0)
    share = {
        t: OneHotConcrete(tau(t), logits=LOGITS).rsample((2000,)).amax(-1).gt(0.99).double().mean()
        for t in (1.0, 0.1, 0.01)
    }
    assert share[1.0] < share[0.1] < share[0.01]
    assert share[0.01] > 0.95


@pytest.mark.parametrize("family", [OneHotConcrete, OneHotStraightThrough, BinaryConcrete, BinaryStraightThrough])
def test_leading_dims_and_expansion(family):
    logits = torch.randn(4, 1, 3)
    fn = family(torch.tensor(0.7), logits=logits)
    event = fn.event_shape
    wide = fn.expand((2, *([4, 5] if event else [4, 5, 3])))
    value = wide.rsample((6,))
    assert value.shape == (6, 2, 4, 5, 3)
    assert wide.batch_shape + event == (2, 4, 5, 3)
    torch.testing.assert_close(wide.log_prob(value)[1, 1, :, 2], fn.log_prob(value[1, 1, :, 2:3])[:, 0])


# Gradients of straight-through draws.


def test_straight_through_probabilities_are_the_discrete_ones_also_of_impossible_values():
    logits = torch.tensor([[0.0, 1.0, -torch.inf], [2.0, 0.0, 1.0]])
    fn, plain = OneHotStraightThrough(torch.tensor(0.5), logits=logits), dist.OneHotCategorical(logits=logits)
    values = fn.enumerate_support()
    torch.testing.assert_close(fn.log_prob(values), plain.log_prob(values))
    z = fn.rsample((50,)).requires_grad_()
    log_p = fn.log_prob(z)
    torch.testing.assert_close(log_p, plain.log_prob(z))
    assert bool(torch.autograd.grad(log_p.sum(), z)[0].isfinite().all())
    binary = BinaryStraightThrough(torch.tensor(0.5), logits=logits[1])
    torch.testing.assert_close(binary.log_prob(torch.ones(3)), dist.Bernoulli(logits=logits[1]).log_prob(torch.ones(3)))


def test_the_gradient_of_a_hard_draw_is_that_of_the_relaxed_one():
    weight, gradients = torch.randn(3), []
    for hard, soft in ((OneHotStraightThrough, OneHotConcrete), (BinaryStraightThrough, BinaryConcrete)):
        for family in (hard, soft):
            torch.manual_seed(1)
            logits = LOGITS.float().requires_grad_()
            draw = family(torch.tensor(0.6), logits=logits).rsample((7,))
            gradients.append(torch.autograd.grad((draw * weight).sum(), logits)[0])
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[2], gradients[3])


def gradients_of(family, temperature, function, n=40_000):
    """Single-draw gradients of E[f(z)] in the logits, (n, c)."""
    torch.manual_seed(0)
    logits = LOGITS.expand(n, -1).clone().requires_grad_()
    values = function(family(tau(temperature), logits=logits).rsample())
    return torch.autograd.grad(values.sum(), logits)[0]


def exact_gradient(function):
    logits = LOGITS.clone().requires_grad_()
    return torch.autograd.grad((logits.softmax(-1) * function(torch.eye(3).double())).sum(), logits)[0]


def quadratic(z):
    return (z @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) - 0.7).square()


@pytest.mark.parametrize("family", [OneHotConcrete, OneHotStraightThrough])
def test_bias_falls_and_variance_grows_as_the_temperature_falls(family):
    exact = exact_gradient(quadratic)
    warm, cool = (gradients_of(family, t, quadratic) for t in (2.0, 0.05))
    assert not near(warm, exact, errors=20)
    assert near(cool, exact)  # of a quadratic function also straight through
    assert bool((cool.var(0) > 3 * warm.var(0)).all())


def test_straight_through_keeps_a_bias_where_the_function_is_not_quadratic():
    exact = exact_gradient(lambda z: quadratic(z) ** 3)
    assert near(gradients_of(OneHotConcrete, 0.05, lambda z: quadratic(z) ** 3), exact)
    assert not near(gradients_of(OneHotStraightThrough, 0.05, lambda z: quadratic(z) ** 3), exact, errors=10)


@pytest.mark.parametrize("prior", [torch.tensor([0.0, 2.0, -1.0]).double(), torch.zeros(3).double()])
def test_samples_of_the_kl_term_have_its_gradient(prior):
    """That of Pyro's own straight-through draws, whose log-probability has none in its value, is zero on average."""
    p = OneHotStraightThrough(tau(0.5), logits=prior)
    logits = LOGITS.clone().requires_grad_()
    q = dist.OneHotCategorical(logits=logits)
    (exact,) = torch.autograd.grad(kl_divergence(q, p), logits)
    torch.manual_seed(0)
    rows = LOGITS.expand(40_000, -1).clone().requires_grad_()
    q = OneHotStraightThrough(tau(0.02), logits=rows)
    z = q.rsample()
    (gradients,) = torch.autograd.grad((q.log_prob(z) - p.log_prob(z)).sum(), rows)
    assert near(gradients, exact)


# The pieces.


def test_a_piece_is_relaxed_while_training_and_discrete_in_eval_mode():
    for piece, shape in (
        (ConditionalCategorical(MLP(D, (), C), num_classes=C), (C,)),
        (ConditionalCategorical(MLP(D, (), (C, 2)), num_classes=C), (2, C)),
        (ConditionalBernoulli(MLP(D, (), C)), (C,)),
        (UniformCategorical(C), (C,)),
    ):
        for kind in (Concrete, StraightThrough):
            relaxed, x = kind(piece, temperature=0.8), torch.randn(5, D)
            assert relaxed(x).event_shape == shape
            soft, hard = relaxed.train()(x).rsample((9,)), relaxed.eval()(x).rsample((9,))
            assert bool(((hard == 0) | (hard == 1)).all())
            assert bool(((soft == 0) | (soft == 1)).all()) == (kind is StraightThrough)
            assert relaxed.state_dict().keys() == {f"piece.{name}" for name in piece.state_dict()}


def test_a_schedule_moves_the_temperature_in_place():
    relaxed = Concrete(UniformCategorical(3), temperature=Linear(10, 1.0, 0.5))
    buffer = relaxed.temperature
    relaxed.set_time(5.0)
    assert relaxed.temperature is buffer
    assert float(buffer) == 0.75
    constant = Concrete(UniformCategorical(3), temperature=0.3)
    constant.set_time(5.0)
    assert float(constant.temperature) == pytest.approx(0.3)
    assert "Linear(epochs=10, start=1.0, end=0.5)" in repr(relaxed)


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (lambda: Concrete(UniformCategorical, 0.5), TypeError, "piece must be a module"),
        (lambda: Concrete(UniformCategorical(3), 0.0), ValueError, "temperature must be a finite number > 0, got 0.0"),
        (lambda: StraightThrough(UniformCategorical(3), math.nan), ValueError, "temperature must be .* got nan"),
        (lambda: Concrete(UniformCategorical(3), "cold"), ValueError, "temperature must be .* got 'cold'"),
        (lambda: Concrete(UniformCategorical(3), lambda: 1.0), TypeError, r"temperature must be a function of \(epoch"),
        (
            lambda: Concrete(UniformCategorical(3), lambda epoch: -1.0),
            ValueError,
            "of its schedule at epoch 0, must be",
        ),
        (lambda: Concrete(StandardNormal(3))(), TypeError, "piece must return a Categorical.* got Normal"),
    ],
)
def test_wrong_arguments(run, error, message):
    with pytest.raises(error, match=message):
        run()


# Pairs.


def make_vae(kind, temperature=0.5, *, prior=None):
    torch.manual_seed(0)
    return VAE(
        p_z=kind(prior or UniformCategorical(C), temperature),
        p_x_given_z=ConditionalBernoulli(MLP(C, (), D)),
        q_z_given_x=kind(ConditionalCategorical(MLP(D, (), C), num_classes=C), temperature),
    )


def data(n=60):
    generator = torch.Generator().manual_seed(1)
    centres = torch.rand(C, D, generator=generator).round() * 0.8 + 0.1
    return torch.bernoulli(centres[torch.randint(C, (n,), generator=generator)], generator=generator)


def exact_log_p(vae, x):
    vae.eval()
    with torch.no_grad():
        return torch.logsumexp(vae.p_x_given_z(torch.eye(C)).log_prob(x[:, None]) + vae.p_z().log_prob(torch.eye(C)), 1)


def enumerated(vae):
    return ppvae.Pair(vae.model, config_enumerate(vae.guide), [vae])


def fit(vae, *, epochs=2, **options):
    return ppvae.fit(vae, data(), data(20), epochs=epochs, batch_size=20, lr=1e-2, seed=3, progress=False, **options)


@pytest.mark.parametrize("loss", [None, TraceMeanField_ELBO()], ids=["trace", "mean-field"])
@pytest.mark.parametrize("kind", [Concrete, StraightThrough])
def test_what_is_evaluated_is_the_discrete_model(kind, loss):
    vae, x = make_vae(kind), data()
    run = fit(vae, loss=loss)
    exact = exact_log_p(vae, x).double()
    torch.testing.assert_close(ppvae.log_marginal(enumerated(vae), x, num_samples=1).values, exact, rtol=0, atol=1e-5)
    sampled = ppvae.log_marginal(vae, x, num_samples=2000)
    assert bool(((sampled.values - exact).abs() < 6 * sampled.std_error + 1e-3).all())
    q = vae.q_z_given_x(data(20))
    by_hand = kl_divergence(q, dist.OneHotCategorical(logits=torch.zeros(C)))
    likelihood = vae.p_x_given_z(torch.eye(C)).log_prob(data(20)[:, None])
    elbo = ((q.probs * likelihood).sum(-1) - by_hand).detach()
    torch.testing.assert_close(ppvae.elbo(enumerated(vae), data(20), num_samples=1).values.float(), elbo)
    assert max(row["valid_elbo"] for row in run.history) == pytest.approx(
        float(ppvae.elbo(vae, data(20), num_samples=1, seed=3).values.mean()), abs=1e-4
    )


@pytest.mark.parametrize("kind", [Concrete, StraightThrough])
def test_queries_see_discrete_codes(kind):
    vae, x = make_vae(kind).eval(), data(5)
    code = vae.encode(x).probs.argmax(-1)
    torch.testing.assert_close(vae.reconstruct(x), vae.decode(torch.eye(C)[code]).mean.detach())
    assert vae.sample(3).shape == (3, D)
    binary = BinaryStraightThrough(torch.tensor(0.5), logits=torch.tensor([-1.0, 0.0, 2.0])).to_event(1)
    assert code_of(binary).tolist() == [0.0, 0.0, 1.0]


def test_the_loss_of_straight_through_is_the_discrete_elbo_and_that_of_concrete_is_not():
    x, losses = data(5), {}
    for kind in (Concrete, StraightThrough):
        vae = make_vae(kind, 1.5)
        vae.q_z_given_x.piece.net[-1].weight.data *= 10  # far from the prior
        exact = -float(ppvae.elbo(enumerated(vae), x, num_samples=1).values.sum())
        elbo = Trace_ELBO(num_particles=4000, vectorize_particles=True, max_plate_nesting=1)
        losses[kind] = elbo.loss(vae.train().model, vae.guide, x), exact
    assert losses[StraightThrough][0] == pytest.approx(losses[StraightThrough][1], abs=0.2)
    assert abs(losses[Concrete][0] - losses[Concrete][1]) > 1


@pytest.mark.parametrize("mode", [True, False])
def test_enumeration_sums_over_straight_through_latents(mode):
    """Pyro takes the weight of a listed value for one where draws are differentiable."""
    vae, x = make_vae(StraightThrough).train(mode), data(5)
    marked = enumerated(vae)
    with torch.no_grad():
        log_q, log_p = vae.q_z_given_x(x).logits, vae.p_x_given_z(torch.eye(C)).log_prob(x[:, None])
        expected = (log_q.exp() * (log_p - math.log(C) - log_q)).sum()
    loss = TraceEnum_ELBO(max_plate_nesting=1)
    assert -loss.loss(marked.model, marked.guide, x) == pytest.approx(float(expected), rel=1e-5)
    assert -loss.differentiable_loss(marked.model, marked.guide, x).item() == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.05, 0.7])
def test_the_relaxed_loss_bounds_the_relaxed_model(temperature):
    """By a quadrature of log p(x) = log ∫ p(s) p(x|s) ds of one binary latent, over the logit of s."""
    torch.manual_seed(0)
    vae = VAE(
        Concrete(ConditionalBernoulli(Constant(0.5)), temperature),
        ConditionalBernoulli(MLP(1, (4,), D)),
        Concrete(ConditionalBernoulli(MLP(D, (4,), 1)), temperature),
    ).train()
    x, line = data(3), torch.linspace(-40 / temperature, 40 / temperature, 20_001)
    prior = LogitRelaxedBernoulli(torch.tensor(temperature), logits=torch.tensor(0.5))
    with torch.no_grad():
        joint = prior.log_prob(line)[:, None] + vae.p_x_given_z(line.sigmoid()[:, None, None]).log_prob(x)
        exact = (joint.logsumexp(0) + math.log(80 / temperature / 20_000)).sum()
    loose = Trace_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=1)
    tight = IWAE(num_samples=2000)
    assert -tight.loss(vae.model, vae.guide, x) == pytest.approx(float(exact), abs=0.1)
    assert -loose.loss(vae.model, vae.guide, x) < float(exact)


class Constant(nn.Module):
    """A logit that knows no context."""

    def __init__(self, logit):
        super().__init__()
        self.logit = nn.Parameter(torch.tensor([logit]))

    def forward(self, *context):
        return self.logit


@pytest.mark.parametrize(
    ("prior", "posterior", "message"),
    [
        (lambda p: p, Concrete, "to be within the support"),
        (StraightThrough, Concrete, "a relaxed draw has no probability: put Concrete over the prior"),
        (Concrete, StraightThrough, "a straight-through draw has no concrete density: put StraightThrough over"),
    ],
)
@pytest.mark.parametrize("loss", [Trace_ELBO(), TraceMeanField_ELBO()], ids=["trace", "mean-field"])
def test_a_prior_of_another_kind_is_refused_before_training(prior, posterior, message, loss):
    """The discrete KL beside relaxed draws is what much public code has, and bounds nothing."""
    vae, x = make_vae(posterior), data()
    vae.p_z = prior(ConditionalOneHot())
    with pytest.raises(ValueError, match=message):
        ppvae.fit(vae, x, loss=loss, epochs=1, progress=False)


class ConditionalOneHot(nn.Module):
    """A prior of one-hot rows."""

    def forward(self, *context):
        return dist.OneHotCategorical(logits=torch.zeros(C))


def test_a_relaxed_latent_that_is_marked_says_when_to_mark_it():
    vae = make_vae(Concrete)
    guide = lambda x: pyro.sample("z", vae.q_z_given_x(x), infer={"enumerate": "parallel"})  # noqa: E731
    pair = ppvae.Pair(vae.model, pyro.plate("data", dim=-1)(guide), [vae])
    with pytest.raises((NotImplementedError, ValueError), match="a relaxed variable has no values to sum over"):
        ppvae.fit(pair, data(), epochs=1, progress=False)


@pytest.mark.usefixtures("with_and_without_inductor")
@pytest.mark.parametrize("kind", [Concrete, StraightThrough])
def test_compiled_training_with_a_falling_temperature_is_the_eager_one(kind):
    results = []
    for compile in (False, True):
        vae = make_vae(kind, Linear(2, 1.0, 0.3))
        results.append((fit(vae, compile=compile).history, list(vae.parameters())))
        assert float(vae.q_z_given_x.temperature) == pytest.approx(1 - 0.7 * (1 + 2 / 3) / 2)
    (eager, of_eager), (compiled, of_compiled) = results
    for a, b in zip(eager, compiled, strict=True):
        assert b == pytest.approx(a, rel=1e-4)
    for a, b in zip(of_eager, of_compiled, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4)


def test_a_run_with_a_falling_temperature_is_resumed_bit_for_bit(tmp_path):
    whole = fit(make_vae(Concrete, Linear(4, 1.0, 0.3)), epochs=4)
    fit(make_vae(Concrete, Linear(4, 1.0, 0.3)), epochs=2, out=tmp_path)
    parts = fit(make_vae(Concrete, Linear(4, 1.0, 0.3)), epochs=4, out=tmp_path, resume=True)
    assert parts.history == whole.history
    with pytest.raises(ValueError, match="temperature=Linear"):
        fit(make_vae(Concrete, Linear(3, 1.0, 0.3)), epochs=4, out=tmp_path, resume=True)


@pytest.mark.parametrize("kind", [Concrete, StraightThrough])
def test_training_comes_near_what_enumeration_reaches(kind):
    x = data(200)
    vae, other = make_vae(kind, 0.5), make_vae(kind, 0.5)
    options = {
        "epochs": 30,
        "batch_size": 50,
        "lr": 5e-2,
        "kl_weight": Linear(15),
        "seed": 0,
        "progress": False,
        "compile": False,
    }
    ppvae.fit(vae, x, loss=TraceMeanField_ELBO(), **options)
    ppvae.fit(enumerated(other).eval(), x, **options)
    ours, theirs = (float(exact_log_p(v, x).mean()) for v in (vae, other))
    start = float(exact_log_p(make_vae(kind), x).mean())
    assert ours > theirs - 0.35 * (theirs - start)
