import math

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import ppvae
from ppvae.distributions import (
    ConditionalBernoulli,
    ConditionalCategorical,
    ConditionalContinuousBernoulli,
    ConditionalDiscretizedLogistic,
    ConditionalNegativeBinomial,
    ConditionalNormal,
    ConditionalStudentT,
    FlowPosterior,
    StandardNormal,
)
from ppvae.means import mean_of
from ppvae.models import VAE
from ppvae.nn import MLP, ConvDecoder, ConvEncoder

D, K, N = 6, 2, 7
FAMILIES = {
    "bernoulli": lambda h=5: ConditionalBernoulli(MLP(K, (h,), D)),
    "continuous-bernoulli": lambda h=5: ConditionalContinuousBernoulli(MLP(K, (h,), D)),
    "normal": lambda h=5: ConditionalNormal(MLP(K, (h,), (2, D))),
    "normal-learned": lambda h=5: ConditionalNormal(MLP(K, (h,), D), scale="learned"),
    "normal-fixed": lambda h=5: ConditionalNormal(MLP(K, (h,), D), scale=0.3),
    "categorical": lambda h=5: ConditionalCategorical(MLP(K, (h,), (4, D)), num_classes=4),
    "negative-binomial": lambda h=5: ConditionalNegativeBinomial(MLP(K, (h,), D)),
    "student-t": lambda h=5: ConditionalStudentT(MLP(K, (h,), (2, D))),
    "logistic": lambda h=5: ConditionalDiscretizedLogistic(MLP(K, (h,), D), num_levels=4),
}


class Floats(nn.Module):
    """An encoder takes floats, also where the data are integers."""

    def forward(self, x):
        return x.float()


def make(family="bernoulli", hidden=5, **options):
    torch.manual_seed(0)
    encoder = nn.Sequential(Floats(), MLP(D, (hidden,), (2, K)))
    vae = VAE(StandardNormal(K), FAMILIES[family](hidden), ConditionalNormal(encoder, event_dim=1), **options)
    return vae, vae.sample(N)


def log_density(family, likelihood, z, x):
    """Log p(x|z) of shape (s, n), written out."""
    net = likelihood.net(z)
    if family == "bernoulli":
        return (x * net.sigmoid().log() + (1 - x) * (1 - net.sigmoid()).log()).sum(-1)
    if family == "continuous-bernoulli":
        mean = net.double().sigmoid()
        constant = (2 * torch.atanh(1 - 2 * mean) / (1 - 2 * mean)).log()
        return (x * mean.log() + (1 - x) * (1 - mean).log() + constant).sum(-1)
    if family == "categorical":
        return net.log_softmax(-2).gather(-2, x.expand(*z.shape[:-1], D).unsqueeze(-2)).squeeze(-2).sum(-1)
    if family == "logistic":
        scale = nn.functional.softplus(likelihood.raw_scale) + likelihood.min_scale
        upper = torch.where(x > 0.99, torch.inf, x + 1 / 6)
        lower = torch.where(x < 0.01, -torch.inf, x - 1 / 6)
        return (((upper - net) / scale).sigmoid() - ((lower - net) / scale).sigmoid()).log().sum(-1)
    if family == "negative-binomial":
        theta = likelihood.log_inverse_dispersion.exp()
        ways = (x + theta).lgamma() - theta.lgamma() - (x + 1).lgamma()
        return (ways + theta * (theta / (theta + net.exp())).log() + x * (net.exp() / (theta + net.exp())).log()).sum(
            -1
        )
    if family == "student-t":
        net, raw = net.unbind(-2)
        scale, df = nn.functional.softplus(raw) + likelihood.min_scale, 1 + nn.functional.softplus(likelihood.raw_df)
        norm = ((df + 1) / 2).lgamma() - (df / 2).lgamma() - 0.5 * (df * math.pi).log() - scale.log()
        return (norm - (df + 1) / 2 * (1 + ((x - net) / scale) ** 2 / df).log()).sum(-1)
    if family == "normal":
        net, raw = net.unbind(-2)
        scale = nn.functional.softplus(raw) + likelihood.min_scale
    elif family == "normal-learned":
        scale = nn.functional.softplus(likelihood.raw_scale) + likelihood.min_scale
    else:
        scale = torch.tensor(0.3)
    return (-0.5 * ((x - net) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


@torch.no_grad()
def by_hand(vae, family, x, s):
    loc, raw = vae.q_z_given_x.net(x).unbind(-2)
    scale = nn.functional.softplus(raw) + vae.q_z_given_x.min_scale
    noise = torch.randn(s, N, K)
    z = loc + scale * noise
    weight = log_density(family, vae.p_x_given_z, z, x) - 0.5 * (z**2).sum(-1)
    return (weight + 0.5 * (noise**2).sum(-1) + scale.log().sum(-1)).double()


@pytest.mark.parametrize("family", FAMILIES)
def test_estimates_agree_with_the_same_weights_by_hand(family):
    vae, x = make(family)
    s = 3000
    weight = by_hand(vae, family, x, s)
    terms = ppvae.elbo(vae, x, num_samples=s)
    assert terms.values.isfinite().all()
    error = (terms.std_error**2 + weight.var(0) / s).sqrt()
    assert ((terms.values - weight.mean(0)) / error).abs().max() < 4
    estimate = ppvae.log_marginal(vae, x, num_samples=s)
    relative = (weight - weight.logsumexp(0)).exp() * s
    error = (estimate.std_error**2 + relative.var(0) / s).sqrt()
    assert ((estimate.values - weight.logsumexp(0) + math.log(s)) / error).abs().max() < 4


def test_sites_of_model_and_guide():
    vae, x = make()
    guide_trace = poutine.trace(vae.guide).get_trace(x)
    model_trace = poutine.trace(poutine.replay(vae.model, trace=guide_trace)).get_trace(x)
    assert set(model_trace.stochastic_nodes) - {"data"} == {"z"} == set(guide_trace.stochastic_nodes) - {"data"}
    assert model_trace.observation_nodes == ["x"]


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_loss_is_a_sum_over_data_and_a_mean_over_particles(beta):
    vae, x = make("normal", beta=beta)

    def mean_loss(x, particles, vectorize):
        torch.manual_seed(0)
        loss = Trace_ELBO(num_particles=particles, vectorize_particles=vectorize, max_plate_nesting=1)
        with torch.no_grad():
            return float(loss.differentiable_loss(vae.model, vae.guide, x)) / len(x)

    one = mean_loss(x[:1].expand(4000, D), 1, False)
    assert mean_loss(x[:1].expand(40, D), 100, True) == pytest.approx(one, rel=0.05)
    assert mean_loss(x[:1].expand(400, D), 10, False) == pytest.approx(one, rel=0.05)
    terms = ppvae.elbo(vae, x[:1].expand(4000, D), num_samples=1)
    expected = float(terms.reconstruction.mean() - beta * terms.kl["z"].mean())
    assert -one == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loss", [Trace_ELBO(), TraceMeanField_ELBO()], ids=["trace", "mean-field"])
def test_gradients_reach_every_parameter(family, loss):
    vae, x = make(family)
    loss.differentiable_loss(vae.model, vae.guide, x).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vae.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_state_round_trip(family, tmp_path):
    vae, x = make(family)
    path = ppvae.save(vae, tmp_path / "vae.safetensors")
    fresh = ppvae.load(make(family)[0].requires_grad_(False), path)
    a, b = (ppvae.log_marginal(pair, x, num_samples=5).values for pair in (vae, fresh))
    assert torch.equal(a, b)


@pytest.mark.parametrize("family", ["bernoulli", "normal-fixed", "categorical"])
def test_overfits_a_tiny_set(family):
    vae, _ = make(family, hidden=64)
    x = {"categorical": torch.tensor([[0, 3, 1, 2, 0, 3], [3, 0, 2, 1, 3, 0]])}.get(
        family, torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0, 0.0, 1.0]])
    )
    ppvae.fit(vae, x.repeat(8, 1), epochs=150, lr=2e-2, batch_size=16, progress=False)
    best = {"normal-fixed": -D * math.log(0.3 * math.sqrt(2 * math.pi)) - math.log(2)}.get(family, -math.log(2))
    estimate = ppvae.log_marginal(vae, x, num_samples=500).mean()
    assert estimate == pytest.approx(best, abs=0.7)
    shown = vae.reconstruct(x)
    assert (shown - x).abs().max() < 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_queries(family):
    vae, x = make(family)
    assert x.shape == (N, D)
    assert vae.encode(x.expand(3, N, D)).batch_shape == (3, N)
    assert vae.decode(torch.zeros(4, 3, K)).batch_shape == (4, 3)
    assert vae.reconstruct(x.expand(3, N, D)).shape == (3, N, D)
    torch.testing.assert_close(vae.reconstruct(x), mean_of(vae.decode(vae.encode(x).mean)))
    assert vae.sample(4, mean=True).shape == (4, D)
    path = vae.interpolate(x[:2], x[2:4], 4)
    torch.testing.assert_close(path[:, 0], vae.reconstruct(x[:2]))
    torch.testing.assert_close(path[:, -1], vae.reconstruct(x[2:4]))
    with pytest.raises(ValueError, match="num_steps must be a whole number >= 2"):
        vae.interpolate(x[:2], x[2:4], 1)


def test_a_likelihood_without_a_mean_is_named():
    q_z_given_x = ConditionalNormal(MLP(4, (8,), (2, 2)))
    pair = VAE(StandardNormal(2), FlowPosterior(MLP(2, (8,), (3, 4))), q_z_given_x)
    assert pair.sample(5).shape == (5, 4)
    for query in (pair.reconstruct, lambda x: pair.interpolate(x, x), lambda x: pair.sample(3, mean=True)):
        with pytest.raises(NotImplementedError, match=r"p\(x\|z\) is a PushForward, whose mean .* take draws"):
            query(torch.zeros(5, 4))


def test_mean_of_a_categorical_is_its_expected_level():
    probs = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]])
    assert torch.equal(mean_of(dist.Categorical(probs).to_event(1)), torch.tensor([1.0, 1.0]))
    assert torch.equal(mean_of(dist.Bernoulli(0.25 * torch.ones(3)).to_event(1)), 0.25 * torch.ones(3))


def test_images_and_latents_of_several_dims():
    torch.manual_seed(0)
    vae = VAE(
        StandardNormal((2, 3)),
        ConditionalBernoulli(MLP((2, 3), (8,), (1, 4, 4))),
        ConditionalNormal(MLP((1, 4, 4), (8,), (2, 2, 3))),
    )
    x = vae.sample(5)
    assert x.shape == (5, 1, 4, 4)
    path = vae.interpolate(x[:2], x[2:4], 6)
    assert path.shape == (2, 6, 1, 4, 4)
    torch.testing.assert_close(path[:, 0], vae.reconstruct(x[:2]))
    torch.testing.assert_close(path[:, -1], vae.reconstruct(x[2:4]))
    assert ppvae.log_marginal(vae, x, num_samples=20).num_dims == 16


def test_convolutions_broadcast_over_samples():
    torch.manual_seed(0)
    vae = VAE(
        StandardNormal(3),
        ConditionalBernoulli(ConvDecoder(3, (4,), (1, 8, 8))),
        ConditionalNormal(ConvEncoder((1, 8, 8), (4,), (2, 3))),
    )
    x = vae.sample(6)
    one = ppvae.log_marginal(vae, x, num_samples=200)
    assert one.values.isfinite().all()
    other = ppvae.log_marginal(vae, x, num_samples=200, seed=1)
    assert ((one.values - other.values) / (one.std_error**2 + other.std_error**2).sqrt()).abs().max() < 5


def test_constructor():
    pieces = {"p_z": StandardNormal(K), "p_x_given_z": FAMILIES["bernoulli"](), "q_z_given_x": StandardNormal(K)}
    for beta in (-1.0, math.nan, "1", True, None):
        with pytest.raises(ValueError, match="beta must be a finite number >= 0"):
            VAE(**pieces, beta=beta)
    for name in pieces:
        with pytest.raises(TypeError, match=f"{name} must be a module that returns a distribution, got Normal"):
            VAE(**{**pieces, name: dist.Normal(0.0, 1.0)})
