import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

import ppvae
from ppvae.distributions import VampPrior
from ppvae.objectives import IWAE, Linear
from tests.compile.compiling import assert_same, compiled_graphs
from tests.models.by_hand import PATTERNS, assert_same_loss, gradients, loc_scale, log_normal, noise_of
from tests.models.levels import D, LinearLevels, N, top_down


def vamp(dims=(4, 3, 2), hidden=5, **options):
    """A pair whose top level has a VampPrior."""
    pair = top_down(dims, hidden, **options)
    pair.p_z[-1] = VampPrior(pair.q_z[-1], PATTERNS)
    return pair


def log_mixture(pair, z):
    """The VampPrior's density by its formula, from the net of q(zL|x) at the pseudo-inputs."""
    loc, scale = loc_scale(pair.q_z[-1], pair.p_z[-1].pseudo.clamp(0, 1))
    return log_normal(z.unsqueeze(-2), loc, scale).logsumexp(-1) - math.log(len(loc))


def by_hand(pair, x, noise):
    """Draws of the guide and (q, p) of each level, as location and scale, both from the top; p of the top is not."""
    z, levels = [], []
    for i, e in zip(reversed(range(len(pair.q_z))), noise, strict=True):
        seen = z if pair.skip else z[:1]
        q = loc_scale(pair.q_z[i], *seen, x)
        levels.append((q, loc_scale(pair.p_z[i], *seen) if z else None))
        z.insert(0, q[0] + q[1] * e)
    return z, levels


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("loss", "beta"), [(Trace_ELBO, 1.0), (Trace_ELBO, 3.0), (TraceMeanField_ELBO, 3.0)])
@pytest.mark.parametrize("make", [top_down, vamp])
def test_loss_and_gradients_are_those_of_the_formula(make, skip, loss, beta):
    """Also where every KL that has a closed form is in it; with a VampPrior, that of the top level has none."""
    pair = make(skip=skip, beta=beta)
    x = top_down(skip=skip).sample(N)
    z, ((top, _), *levels) = by_hand(pair, x, noise_of((N, 2), (N, 3), (N, 4)))
    standard = torch.zeros(2), torch.ones(2)
    if loss is Trace_ELBO:
        kl = sum(log_normal(v, *q) - log_normal(v, *p) for v, (q, p) in zip(z[-2::-1], levels, strict=True))
    else:
        kl = sum(closed_form(q, p) for q, p in levels)
    if make is top_down and loss is TraceMeanField_ELBO:
        kl = kl + closed_form(top, standard)
    else:
        log_p = log_mixture(pair, z[-1]) if make is vamp else log_normal(z[-1], *standard)
        kl = kl + log_normal(z[-1], *top) - log_p
    likelihood = dist.Bernoulli(logits=pair.p_x_given_z.net(*(z if skip else z[:1]))).log_prob(x).sum(-1)
    expected = -(likelihood - beta * kl).sum()
    assert_same_loss(pair, lambda: loss().differentiable_loss(pair.model, pair.guide, x), expected)


def closed_form(q, p):
    return torch.distributions.kl_divergence(dist.Normal(*q), dist.Normal(*p)).sum(-1)


@pytest.mark.parametrize("skip", [False, True])
def test_codes_are_means_given_those_above(skip):
    pair = top_down(skip=skip)
    x = pair.sample(N)
    _, levels = by_hand(pair, x, [0.0, 0.0, 0.0])
    for q_z, ((loc, scale), _) in zip(reversed(pair.encode(x).values()), levels, strict=True):
        torch.testing.assert_close(q_z.mean, loc)
        torch.testing.assert_close(q_z.stddev, scale)


def test_both_elbos_agree():
    pair = LinearLevels(3).top_down(width=1.4)
    x = pair.sample(1).expand(20000, 4)
    losses = []
    for loss in (Trace_ELBO(), TraceMeanField_ELBO()):
        torch.manual_seed(0)
        losses.append(loss.loss(pair.model, pair.guide, x) / len(x))
    assert losses[1] == pytest.approx(losses[0], abs=0.05)
    assert -losses[0] == pytest.approx(ppvae.elbo(pair, x[:1], num_samples=20000).mean(), abs=0.05)


def grid_log_prob(pair, x):
    """Log p(x), (n,), of two levels of one dim each: the sum over components, and over a grid of both levels' noise."""
    e = torch.linspace(-7, 7, 281, dtype=x.dtype).unsqueeze(-1)
    weight = (-0.5 * e.squeeze(-1) ** 2).log_softmax(0)
    loc, scale = loc_scale(pair.q_z[-1], pair.p_z[-1].pseudo.clamp(0, 1))
    z2 = (loc.unsqueeze(1) + scale.unsqueeze(1) * e).unsqueeze(2)  # (component, grid, 1, 1)
    loc, scale = loc_scale(pair.p_z[0], z2)
    z1 = loc + scale * e  # (component, grid, grid, 1)
    logits = pair.p_x_given_z.net(*([z1, z2] if pair.skip else [z1]))
    log_weight = weight.unsqueeze(-1) + weight - math.log(len(z2))
    of_zeros = log_weight - torch.nn.functional.softplus(logits).sum(-1)
    return torch.stack([(of_zeros + logits @ each).flatten().logsumexp(0) for each in x])


@pytest.mark.parametrize("skip", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_likelihood_with_a_vamp_prior_is_that_of_quadrature(skip):
    pair = vamp((1, 1), 16, skip=skip)
    ppvae.fit(pair, PATTERNS.repeat(8, 1), epochs=100, lr=1e-2, kl_weight=Linear(50), batch_size=48, progress=False)
    with torch.no_grad():
        for q_z in pair.q_z:  # wider, and the prior with them: no mode is missed
            *_, last = (module for module in q_z.modules() if isinstance(module, torch.nn.Linear))
            last.bias[1] += 1
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=D)))
    with torch.no_grad():
        log_p, exact = (grid_log_prob(pair.double(), x.double()) for x in (every, PATTERNS))
    pair.float()
    assert exact.mean() > -3.5  # -1.8 is the most; independent pixels give -4.2
    spread = pair.encode(pair.p_z[-1].pseudo_inputs)["z2"].mean.std()
    assert spread > (1.0 if skip else 0.0)  # without skips z2 goes unused here
    terms, estimate = ppvae.elbo(pair, PATTERNS, num_samples=2000), ppvae.log_marginal(pair, PATTERNS, num_samples=5000)
    assert estimate.ess.min() > 1000
    assert ((estimate.values - exact) / estimate.std_error).abs().max() < 4
    assert (terms.values < exact + 4 * terms.std_error).all()
    n, powers = 50_000, 2.0 ** torch.arange(D - 1, -1, -1)
    drawn = (pair.sample(n) @ powers).long().bincount(minlength=len(every)) / n
    torch.testing.assert_close(drawn.double(), log_p.exp(), rtol=0, atol=2 * n**-0.5)  # 4 standard errors at most


def test_parameters_of_the_top_posterior_are_held_once():
    pair = vamp()
    assert pair.state_dict().keys() - top_down().state_dict().keys() == {"p_z.2.pseudo"}
    names = [key for key, _ in pair.named_parameters(remove_duplicate=False)]
    assert len(names) == len(list(pair.parameters()))


def test_state_round_trip_with_a_vamp_prior(tmp_path):
    pair = vamp(norm="batch")
    x = top_down().sample(64)
    ppvae.fit(pair, x, epochs=2, progress=False)
    fresh = vamp(norm="batch")
    before = ppvae.log_marginal(fresh, x, num_samples=5).values
    ppvae.load(fresh, ppvae.save(pair, tmp_path / "pair.safetensors"))
    after, expected = (ppvae.log_marginal(p, x, num_samples=5).values for p in (fresh, pair))
    assert torch.equal(after, expected)
    assert not torch.equal(after, before)
    z = torch.randn(9, 2)
    torch.testing.assert_close(fresh.eval().p_z[-1]().log_prob(z), log_mixture(pair.eval(), z))


def test_gradients_without_the_score_have_the_same_mean():
    """The guide's parameters are the prior's too: what they do there stays in the gradient."""
    pair = vamp((2, 2), skip=True)
    x = PATTERNS[:1].expand(40_000, D)
    found = []
    for gradient in ("standard", "dreg"):
        torch.manual_seed(0)
        loss = IWAE(3, gradient=gradient).differentiable_loss(pair.model, pair.guide, x) / len(x)
        found.append(gradients(loss, pair))
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=0.05, atol=0.02, msg=name)


@pytest.mark.usefixtures("with_and_without_inductor")
def test_compiled_step_with_a_vamp_prior_equals_the_eager_one():
    x = torch.bernoulli(torch.full((16, D), 0.4), generator=torch.Generator().manual_seed(0))
    svi = assert_same(lambda: vamp((3, 2), skip=True), TraceMeanField_ELBO, [(x,)], steps=10)
    assert compiled_graphs(svi) == 1
