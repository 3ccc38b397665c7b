"""The linear case against a Kalman filter; padding, batches and compiled steps change no number."""

import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

import ppvae
from ppvae.compile.arguments import Arguments
from ppvae.compile.tracing import trace
from ppvae.distributions import (
    ConditionalBernoulli,
    ConditionalNormal,
    FlowPosterior,
    MarkovPosterior,
    StandardNormal,
)
from ppvae.models import DeepMarkovModel
from ppvae.nn import MLP, RNN, Combiner, GatedTransition
from ppvae.objectives import IWAE, Linear
from tests.models.linear_state_space import K, Q, R, kalman, linear_model, series

D = 5


def deep_model(step="normal", k=2, hidden=8, **options):
    torch.manual_seed(0)
    combiner = ConditionalNormal(Combiner(k, hidden, (2, k)))
    if step == "iaf":
        combiner = FlowPosterior(Combiner(k, hidden, (3, k)), flow="iaf", num_flows=1, hidden_dims=hidden)
    return DeepMarkovModel(
        p_z1=StandardNormal(k),
        p_z_given_z=ConditionalNormal(GatedTransition(k, hidden)),
        p_x_given_z=ConditionalBernoulli(MLP(k, (hidden,), D)),
        q_z_given_x=MarkovPosterior(RNN(D, hidden, direction="backward"), combiner, latent_dim=k),
        **options,
    )


def binary(n=6, num_steps=5):
    generator = torch.Generator().manual_seed(0)
    x = torch.bernoulli(torch.full((n, num_steps, D), 0.4), generator=generator)
    return x, torch.tensor([num_steps, 1, *range(1, n - 1)]).clamp(max=num_steps)


def test_with_the_exact_posterior_one_sample_has_the_likelihood_of_the_filter():
    pair, (x, lengths) = linear_model(), series()
    exact = kalman(pair, x, lengths)
    torch.testing.assert_close(ppvae.log_marginal(pair, x, lengths, num_samples=3).values, exact, rtol=0, atol=1e-8)
    torch.testing.assert_close(ppvae.elbo(pair, x, lengths, num_samples=1).values, exact, rtol=0, atol=1e-8)


def test_importance_samples_of_a_wider_guide_find_the_likelihood_of_the_filter():
    pair, (x, lengths) = linear_model(spread=1.2), series()
    exact = kalman(pair, x, lengths)
    estimate = ppvae.log_marginal(pair, x, lengths, num_samples=4000)
    assert (estimate.std_error > 1e-3).all()
    assert ((estimate.values - exact).abs() < 4 * estimate.std_error).all()
    assert (ppvae.elbo(pair, x, lengths, num_samples=4000).values < exact - 1e-3).all()


def test_series_without_lengths_are_whole():
    pair, (x, _) = linear_model(), series()
    whole = torch.full((len(x),), x.shape[1])
    estimate = ppvae.log_marginal(pair, x, num_samples=3).values
    torch.testing.assert_close(estimate, kalman(pair, x, whole), rtol=0, atol=1e-8)


def test_draws_have_the_variance_of_the_process():
    pair = linear_model()
    x, n = pair.sample(20_000, num_steps=3), 20_000
    a, c = (module.net.weight.detach() for module in (pair.p_z_given_z, pair.p_x_given_z))
    state = Q**2 * torch.eye(K).double()
    for t in range(3):
        state = a @ state @ a.T + Q**2 * torch.eye(K).double() if t else state
        variance = (c @ state @ c.T).diag() + R**2
        assert ((x[:, t].var(0) - variance).abs() < 4.5 * variance * math.sqrt(2 / n)).all()


@pytest.mark.parametrize("step", ["normal", "iaf"])
def test_padding_and_batches_change_no_number(step):
    pair, (x, lengths) = deep_model(step), binary()
    padded = torch.cat([x, torch.full((len(x), 4, D), 7.0)], 1)  # no value of a Bernoulli, were it looked at
    padded = torch.where(torch.arange(9)[:, None] < lengths[:, None, None], padded, 7.0)
    with pyro.validation_enabled(False):
        torch.manual_seed(1)
        z = pair.encode(x, lengths).sample()
        zeros = torch.zeros(len(x), 4, 2)
        whole = [fn.log_prob(z) for fn in (pair.encode(x, lengths), pair.p_z(5, lengths))]
        long = torch.cat([z, zeros], 1)
        other = [fn.log_prob(long) for fn in (pair.encode(padded, lengths), pair.p_z(9, lengths))]
    for a, b in zip(whole, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    for i, m in enumerate(lengths.tolist()):
        alone = pair.encode(x[i : i + 1, :m]).log_prob(z[i : i + 1, :m])
        torch.testing.assert_close(alone, whole[0][i : i + 1], rtol=0, atol=1e-5)


def loss_and_gradient(pair, *batch, loss):
    pair.zero_grad()
    torch.manual_seed(3)
    value = loss.differentiable_loss(pair.model, pair.guide, *batch)
    value.backward()
    return value.detach(), [p.grad.clone() for p in pair.parameters()]


@pytest.mark.parametrize("loss", [Trace_ELBO(), IWAE(3, gradient="dreg")], ids=["elbo", "dreg"])
def test_padding_changes_no_gradient(loss):
    pair, (x, lengths) = deep_model(), binary()
    value, gradient = loss_and_gradient(pair, x, lengths, loss=loss)
    padded = torch.cat([x, torch.ones(len(x), 3, D)], 1)
    other, others = loss_and_gradient(pair, padded, lengths, loss=loss)
    torch.testing.assert_close(value, other)
    for a, b in zip(gradient, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert all(a.abs().sum() > 0 for a in gradient)


def test_the_trace_has_two_sites_however_long_the_series():
    pair, (x, lengths) = deep_model(), binary(num_steps=5)
    guide_trace = poutine.trace(pair.guide).get_trace(x, lengths)
    model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(x, lengths)
    assert set(model_trace.stochastic_nodes) - {"data"} == {"z"} == set(guide_trace.stochastic_nodes) - {"data"}
    assert model_trace.observation_nodes == ["x"]


@pytest.mark.parametrize("step", ["normal", pytest.param("iaf", marks=pytest.mark.slow)])
def test_a_compiled_step_is_the_eager_one(step):
    x, lengths = binary(num_steps=3)
    losses = []
    for compile in (True, False):
        pair = deep_model(step)
        svi = ppvae.SVI(pair.model, pair.guide, torch.optim.Adam, TraceMeanField_ELBO(), compile=compile)
        torch.manual_seed(5)
        losses.append([float(svi.step(x, of)) for of in (lengths, lengths, lengths.flip(0), lengths)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_a_graph_grows_by_110_operations_with_a_step():
    pair = deep_model()
    parameters = list(pair.parameters())

    def compute(batch):
        loss = Trace_ELBO().differentiable_loss(pair.model, pair.guide, *batch)
        return [loss, *torch.autograd.grad(loss, parameters)], None

    few, many = (trace(compute, Arguments(binary(num_steps=t))).num_operations for t in (4, 8))
    assert (many - few) / 4 <= 115


def test_state_round_trip(tmp_path):
    pair, (x, lengths) = deep_model(), binary()
    path = ppvae.save(pair, tmp_path / "dmm.safetensors")
    torch.nn.init.normal_((fresh := deep_model()).q_z_given_x.z_0)
    ppvae.load(fresh, path)
    a, b = (ppvae.log_marginal(of, x, lengths, num_samples=5).values for of in (pair, fresh))
    assert torch.equal(a, b)


def test_overfits_a_tiny_set():
    pair, x = deep_model(k=4, hidden=32), torch.eye(D)[:4].unsqueeze(0)  # a key after the other
    x = torch.cat([x, x.flip(1)])
    warm = Linear(125)
    ppvae.fit(pair, x.repeat(8, 1, 1), epochs=250, lr=1e-2, batch_size=16, kl_weight=warm, progress=False)
    best, alone = -math.log(2), 16 * (0.25 * math.log(0.25) + 0.75 * math.log(0.75))  # of steps that know no others
    assert best + alone / 4 < ppvae.log_marginal(pair, x, num_samples=500).mean() < best + 0.1
    assert (pair.reconstruct(x) - x).abs().mean() < 0.1


def test_queries():
    pair, (x, lengths) = deep_model(), binary()
    assert pair.encode(x.expand(3, *x.shape), lengths).sample().shape == (3, *x.shape[:2], 2)
    assert pair.decode(torch.zeros(4, 9, 2)).batch_shape == (4, 9)
    assert pair.reconstruct(x, lengths, num_samples=3).shape == x.shape
    assert pair.sample(4, num_steps=9).shape == (4, 9, D)
    mean = pair.sample(4, num_steps=9, mean=True)
    assert ((mean > 0) & (mean < 1)).all()


def test_wrong_arguments_are_named():
    pair, (x, lengths) = deep_model(), binary()
    with pytest.raises(ValueError, match="beta"):
        deep_model(beta=-1)
    with pytest.raises(TypeError, match="p_z1 must be a module"):
        DeepMarkovModel(None, pair.p_z_given_z, pair.p_x_given_z, pair.q_z_given_x)
    with pytest.raises(ValueError, match="num_steps"):
        pair.sample(3, num_steps=0)
    with pytest.raises(ValueError, match="lengths must be from 1 to"):
        ppvae.log_marginal(pair, x, lengths + 1, num_samples=3)
