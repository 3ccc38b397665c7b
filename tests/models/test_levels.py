"""What holds for every model with several levels, whatever its guide."""

import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

import ppvae
from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
from ppvae.infer import SVI
from ppvae.means import mean_of
from ppvae.models import VAE, HierarchicalVAE, LadderVAE, TopDownVAE
from ppvae.nn import MLP
from ppvae.objectives import Linear
from tests.models.by_hand import PATTERNS
from tests.models.levels import EXACT, MODELS, D, LinearLevels, N, ladder, log_prob, net

BOTH = [Trace_ELBO, TraceMeanField_ELBO]
OBJECTIVES = {"hierarchical": [Trace_ELBO], "ladder": BOTH, "top-down": BOTH}
PIECES = {
    "hierarchical": (HierarchicalVAE, ("p_z", "q_z")),
    "ladder": (LadderVAE, ("p_z", "d", "q_z_given_d")),
    "top-down": (TopDownVAE, ("p_z", "q_z")),
}


@pytest.fixture(params=[(name, skip) for name in MODELS for skip in (False, True)], ids=lambda p: f"{p[0]}-skip={p[1]}")
def case(request):
    """A pair of three levels and data from it."""
    name, skip = request.param
    pair = MODELS[name](skip=skip)
    return name, pair, pair.sample(N)


def test_sites_of_model_and_guide(case):
    _, pair, x = case
    guide_trace = poutine.trace(pair.guide).get_trace(x)
    model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(x)
    assert set(model_trace.stochastic_nodes) - {"data"} == set(guide_trace.stochastic_nodes) - {"data"}
    assert [name for name in model_trace.stochastic_nodes if name != "data"] == ["z3", "z2", "z1"]
    assert [guide_trace.nodes[f"z{i}"]["value"].shape for i in (1, 2, 3)] == [(N, 4), (N, 3), (N, 2)]
    assert model_trace.observation_nodes == ["x"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("loss", BOTH)
def test_one_level_is_a_vae(name, loss):
    torch.manual_seed(0)
    pieces = {
        "p_z": StandardNormal(2),
        "p_x_given_z": ConditionalBernoulli(MLP(2, (5,), D)),
        "q_z_given_x": ConditionalNormal(MLP(D, (5,), (2, 2))),
    }
    vae = VAE(**pieces, beta=2.0)
    options = {"p_z": [pieces["p_z"]], "p_x_given_z": pieces["p_x_given_z"], "skip": True, "beta": 2.0}
    model, (_, *_, posteriors) = PIECES[name]
    guide = {posteriors: [pieces["q_z_given_x"]]}
    pair = model(**options, **guide, **({"d": [torch.nn.Identity()]} if name == "ladder" else {}))
    x = vae.sample(N)

    def both(of):
        values = []
        for each in (vae, pair):
            torch.manual_seed(1)
            each.zero_grad()
            values.append(of(each))
        return values

    def step(each):
        loss_value = loss().differentiable_loss(each.model, each.guide, x)
        loss_value.backward()
        return loss_value, *(p.grad.clone() for p in vae.parameters())

    assert all(torch.equal(a, b) for a, b in zip(*both(step), strict=True))
    for query in (lambda each: each.sample(4), lambda each: each.reconstruct(x), lambda each: each.interpolate(x, x)):
        assert torch.equal(*both(query))
    assert torch.equal(*both(lambda each: ppvae.log_marginal(each, x, num_samples=20).values))


@pytest.mark.parametrize(("name", "beta"), [("hierarchical", 1.0), *((name, 3.0) for name in MODELS)])
def test_loss_is_a_sum_over_data_and_a_mean_over_particles(name, beta):
    pair = MODELS[name](beta=beta)
    x = pair.sample(1)

    def mean_loss(n, particles, vectorize):
        torch.manual_seed(0)
        loss = Trace_ELBO(num_particles=particles, vectorize_particles=vectorize, max_plate_nesting=1)
        with torch.no_grad():
            return float(loss.differentiable_loss(pair.model, pair.guide, x.expand(n, D))) / n

    one = mean_loss(20000, 1, False)
    assert mean_loss(200, 100, True) == pytest.approx(one, rel=0.03)
    assert mean_loss(1000, 20, False) == pytest.approx(one, rel=0.03)
    terms = ppvae.elbo(pair, x, num_samples=20000)
    expected = float(terms.reconstruction.mean() - beta * sum(kl.mean() for kl in terms.kl.values()))
    assert -one == pytest.approx(expected, rel=0.03)


def test_gradients_reach_every_parameter(case):
    name, pair, x = case
    for loss in OBJECTIVES[name]:
        pair.zero_grad()
        loss().differentiable_loss(pair.model, pair.guide, x).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pair.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_state_round_trip(name, tmp_path):
    pair = MODELS[name](norm="batch")
    x = pair.eval().sample(64)
    ppvae.fit(pair, x, epochs=2, progress=False)  # moves the statistics of batch norm
    path = ppvae.save(pair, tmp_path / "pair.safetensors")
    fresh = ppvae.load(MODELS[name](norm="batch"), path)
    a, b = (ppvae.log_marginal(p, x, num_samples=5).values for p in (pair, fresh))
    assert torch.equal(a, b)
    names = [key for key, _ in pair.named_parameters(remove_duplicate=False)]
    assert len(names) == len(list(pair.parameters()))  # what the guide shares is in the state once


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("num_levels", [1, 2, 3])
def test_with_the_exact_posterior_the_elbo_is_the_likelihood(name, num_levels):
    pair = EXACT[name](LinearLevels(num_levels))
    x = pair.sample(N)
    torch.testing.assert_close(ppvae.elbo(pair, x, num_samples=1).values, log_prob(pair, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_bounds_rise_to_the_exact_likelihood(name):
    pair = EXACT[name](LinearLevels(3), width=1.3)
    x = pair.sample(N)
    exact = log_prob(pair, x)
    elbo = ppvae.elbo(pair, x, num_samples=4000)
    several = ppvae.log_marginal(pair, x.repeat(200, 1), num_samples=5).values.view(200, N)
    many = ppvae.log_marginal(pair, x, num_samples=20000)
    error = several.std(0) / math.sqrt(200)
    assert (elbo.values < several.mean(0) + 4 * (error**2 + elbo.std_error**2).sqrt()).all()
    assert (several.mean(0) < exact + 4 * error).all()
    assert elbo.values.mean() < several.mean() - 0.02 < exact.mean() - 0.04
    assert ((many.values - exact) / many.std_error).abs().max() < 4


class Wide(torch.nn.Module):
    """A posterior that looks at nothing."""

    def __init__(self, k, scale):
        super().__init__()
        self.k, self.scale = k, scale

    def forward(self, *context):
        return dist.Normal(torch.zeros(self.k), self.scale).to_event(1)


@pytest.mark.parametrize(("name", "scale"), [("hierarchical", 2.0), ("ladder", 9.0), ("top-down", 1.5)])
def test_likelihood_with_skips(name, scale):
    """Affine conditionals that see all levels above them; the ladder's guide is nearly the prior."""
    pair = MODELS[name]((2, 2, 1), skip=True)
    pair.p_z[0] = ConditionalNormal(net((2, 1), (), 2), scale=0.8)
    pair.p_z[1] = ConditionalNormal(net((1,), (), 2), scale=0.9)
    pair.p_x_given_z = ConditionalNormal(net((2, 2, 1), (), D), scale=1.5)
    setattr(pair, PIECES[name][1][-1], torch.nn.ModuleList([Wide(2, scale), Wide(2, scale), Wide(1, 2.0)]))
    x = pair.sample(N)
    estimate = ppvae.log_marginal(pair, x, num_samples=60000)
    assert estimate.ess.min() > 100
    assert ((estimate.values - log_prob(pair, x)) / estimate.std_error).abs().max() < 4
    drawn = pair.sample(100_000)
    assert float(log_prob(pair, drawn).mean()) == pytest.approx(-float(_entropy(drawn)), abs=0.03)


def _entropy(x):
    """Entropy of a normal distribution with the covariance of x, nats."""
    return 0.5 * (torch.logdet(x.double().T.cov()) + D * (1 + math.log(2 * math.pi)))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("skip", [False, True])
def test_overfits_a_tiny_set(name, skip):
    pair, x = MODELS[name](hidden=64, skip=skip), PATTERNS
    warmup = Linear(50)  # without it the upper levels, or all, go unused
    ppvae.fit(pair, x.repeat(8, 1), epochs=125, lr=2e-2, batch_size=48, kl_weight=warmup, progress=False)
    bound, best = ppvae.elbo(pair, x, num_samples=500).mean(), -math.log(len(PATTERNS))
    assert best - 1.5 < bound < best + 0.05  # unused latents give 2.4 less
    assert (pair.reconstruct(x) - x).abs().max() < 0.5


def test_queries(case):
    _, pair, x = case
    assert x.shape == (N, D)
    q_z = pair.encode(x.expand(3, N, D))
    assert [(name, q.batch_shape, q.event_shape) for name, q in q_z.items()] == [
        (f"z{i}", (3, N), (k,)) for i, k in ((1, 4), (2, 3), (3, 2))
    ]
    codes = {name: q.mean for name, q in pair.encode(x).items()}
    torch.testing.assert_close(pair.reconstruct(x), mean_of(pair.decode(codes)))
    assert pair.reconstruct(x.expand(3, N, D)).shape == (3, N, D)
    assert pair.sample(4, mean=True).shape == (4, D)
    assert pair.sample(50, mean=True).std(0).min() > 0
    path = pair.interpolate(x[:2], x[2:4], 4)
    assert path.shape == (2, 4, D)
    torch.testing.assert_close(path[:, 0], pair.reconstruct(x[:2]))
    torch.testing.assert_close(path[:, -1], pair.reconstruct(x[2:4]))
    with pytest.raises(ValueError, match="num_steps must be a whole number >= 2"):
        pair.interpolate(x[:2], x[2:4], 1)


def test_decode_fills_in_the_levels_that_are_left_out(case):
    _, pair, _ = case
    z3 = torch.randn(5, 1, 2)
    z2 = pair.p_z[1](z3).mean
    z1 = (pair.p_z[0](z2, z3) if pair.skip else pair.p_z[0](z2)).mean
    expected = (pair.p_x_given_z(z1, z2, z3) if pair.skip else pair.p_x_given_z(z1)).mean
    torch.testing.assert_close(pair.decode({"z3": z3}).mean, expected)
    torch.testing.assert_close(pair.decode({"z3": z3, "z1": z1, "z2": z2}).mean, expected)
    z1 = torch.randn(N, 4)
    changed = pair.decode({"z1": z1, "z3": z3}).mean
    assert changed.shape == ((5, N, D) if pair.skip else (N, D))
    assert pair.decode({}).mean.shape == (D,)
    for wrong in ({"z4": z3}, {"z": z3}, [z3], z3):
        with pytest.raises(ValueError, match=r"z must hold values of levels by their names, of \['z1', 'z2', 'z3'\]"):
            pair.decode(wrong)


@pytest.mark.usefixtures("with_and_without_inductor")
def test_compiled_step_equals_the_eager_one():
    """With batch norm, whose statistics a step moves; `TwoLevels` in tests/infer is a hierarchy without."""
    losses, states = [], []
    for compile in (False, True):
        pair = ladder((3, 2), norm="batch")
        x = torch.bernoulli(torch.full((16, D), 0.4), generator=torch.Generator().manual_seed(0))
        svi = SVI(pair.model, pair.guide, partial(torch.optim.Adam, lr=1e-2), Trace_ELBO(), compile=compile)
        torch.manual_seed(1)
        losses.append(torch.tensor([svi.step(x) for _ in range(5)]))
        states.append(pair.state_dict())
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", PIECES)
def test_constructor(name):
    model, lists = PIECES[name]
    pieces = {key: [StandardNormal(2), StandardNormal(2)] for key in lists}
    pieces["p_x_given_z"] = ConditionalBernoulli(MLP(2, (), D))
    model(**pieces)
    model(**{**pieces, **{key: torch.nn.ModuleList(pieces[key]) for key in lists}})
    for beta in (-1.0, math.nan, "1", True, None):
        with pytest.raises(ValueError, match="beta must be a finite number >= 0"):
            model(**pieces, beta=beta)
    with pytest.raises(TypeError, match="skip must be a bool, got 'yes'"):
        model(**pieces, skip="yes")
    with pytest.raises(TypeError, match="p_x_given_z must be a module that returns a distribution, got Normal"):
        model(**{**pieces, "p_x_given_z": dist.Normal(0.0, 1.0)})
    for key in lists:
        with pytest.raises(TypeError, match=f"{key} must be a list of modules, from the data upwards, got MLP"):
            model(**{**pieces, key: MLP(2, (), 2)})
        with pytest.raises(TypeError, match=rf"{key}\[1\] must be a module, got Normal"):
            model(**{**pieces, key: [StandardNormal(2), dist.Normal(0.0, 1.0)]})
    with pytest.raises(ValueError, match="p_z must hold at least one, one module a level, got 0"):
        model(**{**pieces, "p_z": []})
    for key in lists[1:]:
        with pytest.raises(ValueError, match=f"{key} must hold 2, one module a level, got 1"):
            model(**{**pieces, key: [StandardNormal(2)]})


@pytest.mark.parametrize("name", MODELS)
def test_a_prior_that_ignores_the_level_above(name):
    pair = MODELS[name]((2, 2))
    pair.p_z[0] = StandardNormal(2)
    means = pair.sample(50, mean=True)
    assert means.shape == (50, D)
    assert means.std(0).min() > 0  # a z1 for each
    assert ppvae.log_marginal(pair, pair.sample(N), num_samples=5).values.isfinite().all()
