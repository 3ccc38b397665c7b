import math
from functools import partial

import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from torch.nn.functional import logsigmoid

import ppvae
from ppvae.data import Batches, JointBatches
from ppvae.distributions import (
    ConditionalBernoulli,
    ConditionalCategorical,
    ConditionalNormal,
    StandardNormal,
    UniformCategorical,
)
from ppvae.evaluate import label_posterior
from ppvae.models import CVAE, SSVAE, VAE, StackedSSVAE
from ppvae.nn import MLP, ConditionalMLP, OneHot
from ppvae.objectives import JointELBO
from tests.models.by_hand import (
    ENUM,
    LABELS,
    PATTERNS,
    WRONG,
    C,
    D,
    N,
    assert_same_loss,
    loc_scale,
    log_classifier,
    log_normal,
    noise_of,
)
from tests.models.linear_gaussian import LinearStack, Prior

K1, K2 = 4, 2


def make(*, hidden=5, alpha=1.0):
    torch.manual_seed(0)
    m1 = VAE(
        p_z=StandardNormal(K1),
        p_x_given_z=ConditionalBernoulli(MLP(K1, hidden, D, activation="tanh")),
        q_z_given_x=ConditionalNormal(MLP(D, hidden, (2, K1), activation="tanh")),
    )
    m2 = SSVAE(
        p_y=Prior(),
        p_z=StandardNormal(K2),
        p_x_given_zy=ConditionalNormal(ConditionalMLP(K2, C, hidden, (2, K1), embed=OneHot(C), activation="tanh")),
        q_y_given_x=ConditionalCategorical(MLP(K1, hidden, C, activation="tanh"), num_classes=C),
        q_z_given_xy=ConditionalNormal(ConditionalMLP(K1, C, hidden, (2, K2), embed=OneHot(C), activation="tanh")),
        alpha=alpha,
    )
    pair, y = StackedSSVAE(m1, m2), torch.arange(N) % C
    return pair, pair.sample(y), y


# The losses, written out at the same random numbers.


def code(pair, x, noise):
    """z1 ~ q(z1|x), and log p(x|z1) − log q(z1|x)."""
    loc, scale = loc_scale(pair.m1.q_z_given_x, x)
    z1 = loc + scale * noise
    logits = pair.m1.p_x_given_z.net(z1)
    return z1, (x * logsigmoid(logits) + (1 - x) * logsigmoid(-logits)).sum(-1) - log_normal(z1, loc, scale)


def minus_l(m2, z1, y, noise):
    """−L(z1, y) of M2."""
    loc, scale = loc_scale(m2.q_z_given_xy, z1, y)
    z2 = loc + scale * noise
    log_p = log_normal(z1, *loc_scale(m2.p_x_given_zy, z2, y)) + Prior().probs[y].log()
    return log_p + log_normal(z2, torch.zeros(K2), torch.ones(K2)) - log_normal(z2, loc, scale)


def supervised(pair, x, y, noise1, noise2):
    z1, bound = code(pair, x, noise1)
    bound = bound + minus_l(pair.m2, z1, y, noise2)
    if pair.m2.alpha:
        bound = bound + pair.m2.alpha * log_classifier(pair.m2, z1)[torch.arange(len(x)), y]
    return -bound.sum()


def unsupervised(pair, x, noise1, noise2):
    z1, bound = code(pair, x, noise1)
    log_q = log_classifier(pair.m2, z1)
    for c in range(C):
        of_class = minus_l(pair.m2, z1, torch.full((len(x),), c), noise2[c])
        bound = bound + log_q[:, c].exp() * (of_class - log_q[:, c])
    return -bound.sum()


@pytest.mark.parametrize("alpha", [0.0, 2.5])
def test_losses_are_those_of_the_docstring(alpha):
    pair, x, y = make(alpha=alpha)
    expected = supervised(pair, x, y, *noise_of((N, K1), (N, K2)))
    assert_same_loss(pair, lambda: ENUM.differentiable_loss(pair.model, pair.guide, x, y), expected)
    expected = unsupervised(pair, x, *noise_of((N, K1), (C, N, K2)))
    assert_same_loss(pair, lambda: ENUM.differentiable_loss(pair.model, pair.guide, x), expected)
    noise = noise_of((3, K1), (3, K2), (4, K1), (C, 4, K2))
    expected = 2 * supervised(pair, x[:3], y[:3], *noise[:2]) + 5 * unsupervised(pair, x[3:], *noise[2:])
    batches, objective = ((x[:3], y[:3]), (x[3:],)), JointELBO(ENUM, (2.0, 5.0))
    assert_same_loss(pair, lambda: objective.differentiable_loss(pair.model, pair.guide, *batches), expected)


# A chain of which log p(x), log p(x, y) and p(y|x) are known.


@pytest.fixture(scope="module")
def exact():
    story, y = LinearStack(), torch.arange(12) % C
    torch.manual_seed(0)
    pair = story.pair()
    x = pair.sample(y)
    return pair, x, y, story.log_joint(x)


def test_bounds_against_the_exact_likelihood(exact):
    pair, x, y, log_joint = exact
    log_xy = log_joint[torch.arange(len(x)), y]
    log_p_y = Prior().probs[y].log()
    for data, given, expected in (
        ((x,), (), log_joint.logsumexp(-1)),
        ((x, y), (), log_xy),
        ((x, y), ("y",), log_xy - log_p_y),
    ):
        many = ppvae.log_marginal(pair, *data, num_samples=5000, given=given)
        assert ((many.values - expected) / many.std_error).abs().max() < 4
        assert many.std_error.max() < 0.05
        elbo = ppvae.elbo(pair, *data, num_samples=1000, given=given)
        assert (elbo.values < expected + 4 * elbo.std_error).all()
        assert 0.05 < (expected - elbo.values).mean() < 0.5


def test_label_posterior_is_bayes_rule(exact):
    pair, x, _, log_joint = exact
    probabilities = label_posterior(pair, x, num_classes=C, num_samples=5000)
    torch.testing.assert_close(probabilities, log_joint.softmax(-1), rtol=0, atol=0.02)


def test_samples_are_those_of_the_model():
    """z1 is drawn as well: at its mean, the data would vary too little."""
    story = LinearStack()
    torch.manual_seed(0)
    x = story.pair().sample(torch.full((20000,), 2))
    covariance = story.basis @ story.code.covariance @ story.basis.T + story.s**2 * torch.eye(story.d)
    torch.testing.assert_close(x.mean(0), story.code.mean[2] @ story.basis.T + story.offset, rtol=0, atol=0.06)
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0, atol=0.12)


# The contract of a pair.


@pytest.mark.parametrize("known", [False, True])
def test_sites_of_model_and_guide(known):
    pair, x, y = make()
    batch = (x, y) if known else (x,)
    guide_trace = poutine.trace(pair.guide).get_trace(*batch)
    model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(*batch)
    latents = {"z1", "z2"} | (set() if known else {"y"})
    assert set(model_trace.stochastic_nodes) - {"data"} == latents == set(guide_trace.stochastic_nodes) - {"data"}
    assert model_trace.observation_nodes == (["y", "x", "classifier"] if known else ["x"])
    model_trace.compute_log_prob()
    assert {model_trace.nodes[name]["log_prob"].shape for name in ("x", "y", "z1", "z2")} == {(N,)}


@pytest.mark.parametrize("known", [False, True])
def test_loss_is_a_sum_over_data_and_a_mean_over_particles(known):
    pair, x, y = make(alpha=0.0)

    def mean_loss(n, particles, vectorize):
        torch.manual_seed(0)
        options = {"max_plate_nesting": 1, "strict_enumeration_warning": False}
        loss = TraceEnum_ELBO(num_particles=particles, vectorize_particles=vectorize, **options)
        batch = (x[:1].expand(n, D), y[:1].expand(n))[: 1 + known]
        return loss.loss(pair.model, pair.guide, *batch) / n

    one = mean_loss(4000, 1, False)
    assert mean_loss(40, 100, True) == pytest.approx(one, rel=0.03)
    assert mean_loss(400, 10, False) == pytest.approx(one, rel=0.03)
    batch = (x[:1].expand(4000, D), y[:1].expand(4000))[: 1 + known]
    assert -one == pytest.approx(ppvae.elbo(pair, *batch).mean(), rel=0.03)


def test_gradients_reach_every_parameter():
    pair, x, y = make()
    JointELBO(ENUM, (1.0, 1.0)).differentiable_loss(pair.model, pair.guide, (x[:3], y[:3]), (x[3:],)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pair.parameters())


def test_m1_is_held_fixed_where_it_asks_for_no_gradient():
    before, (pair, x, y) = make()[0].state_dict(), make()
    pair.m1.requires_grad_(False)
    both = JointBatches(Batches(x[:3], y[:3], batch_size=3), Batches(x[3:], batch_size=2))
    run = ppvae.fit(pair, both, (x,), loss=ENUM, epochs=3, lr=1e-2, progress=False)
    assert all(math.isfinite(row["loss"]) and math.isfinite(row["valid_elbo"]) for row in run.history)
    for name, value in pair.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("m1."), name


@pytest.mark.parametrize("known", [False, True], ids=["no labels", "all labels"])
def test_trains_without_labels_and_with_all_of_them(known):
    before, (pair, x, y) = make()[0].state_dict(), make()
    ppvae.fit(pair, (x, y) if known else x, loss=ENUM, epochs=2, lr=1e-2, progress=False)
    assert not any(torch.equal(value, before[name]) for name, value in pair.state_dict().items())


def test_state_round_trip(tmp_path):
    pair, x, y = make()
    path = ppvae.save(pair, tmp_path / "stacked.safetensors")
    before = [ppvae.log_marginal(pair, *data, num_samples=5).values for data in ((x,), (x, y))]
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.zero_()
    ppvae.load(pair, path)
    after = [ppvae.log_marginal(pair, *data, num_samples=5).values for data in ((x,), (x, y))]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_overfits_a_tiny_set_in_two_stages():
    """M1 learns six patterns without labels; on its code, M2 learns the classes from a label of each pattern."""
    pair, _, _ = make(hidden=32)
    pair.m2.p_y = UniformCategorical(C)
    patterns = Batches(PATTERNS.repeat(8, 1), batch_size=48)
    ppvae.fit(pair.m1, patterns, epochs=80, lr=2e-2, progress=False)
    assert (pair.m1.reconstruct(PATTERNS) - PATTERNS).abs().max() < 0.5
    pair.m1.requires_grad_(False)
    both = JointBatches(
        Batches(PATTERNS.repeat(4, 1), LABELS.repeat(4), batch_size=24), Batches(PATTERNS.repeat(8, 1), batch_size=48)
    )
    ppvae.fit(pair, both, loss=ENUM, epochs=80, lr=2e-2, progress=False)
    assert torch.equal(pair.classify(PATTERNS).argmax(-1), LABELS)
    with_prior = ppvae.log_marginal(pair.m1, PATTERNS, num_samples=500).mean()
    assert ppvae.log_marginal(pair, PATTERNS, num_samples=500).mean() > with_prior  # M2 is the better prior of z1


# Queries.


def test_queries():
    pair, x, y = make()
    assert x.shape == (N, D)
    probabilities = pair.classify(x.expand(4, 3, N, D))
    assert probabilities.shape == (4, 3, N, C)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(4, 3, N))
    z1 = pair.m1.encode(x).mean
    torch.testing.assert_close(pair.classify(x), pair.m2.classify(z1))
    torch.testing.assert_close(pair.encode(x, y).mean, pair.m2.encode(z1, y).mean)
    torch.testing.assert_close(pair.encode(x).mean, pair.encode(x, pair.classify(x).argmax(-1)).mean)
    assert pair.encode(x.expand(3, N, D), y.expand(3, N)).batch_shape == (3, N)
    p_x = pair.decode(torch.zeros(4, 1, N, K2), y.expand(3, N))
    assert (p_x.batch_shape, p_x.event_shape) == ((4, 3, N), (D,))
    at_mean = pair.m1.decode(pair.m2.decode(torch.zeros(N, K2), y).mean)
    torch.testing.assert_close(pair.decode(torch.zeros(N, K2), y).mean, at_mean.mean)
    torch.testing.assert_close(pair.reconstruct(x, y), pair.decode(pair.encode(x, y).mean, y).mean)
    assert pair.sample(y.expand(3, N)).shape == (3, N, D)
    assert pair.sample(y[0]).shape == (D,)
    assert set(pair.sample(y).unique().tolist()) == {0.0, 1.0}
    assert pair.sample(y[:1].expand(5), mean=True).std(0).max() > 0


def test_style_transfer_leaves_z2_as_it_is():
    pair, x, y = make()
    z2 = pair.encode(x, y).mean
    swept = pair.style_transfer(x, y, torch.arange(C))
    assert swept.shape == (C, N, D)
    for c in range(C):
        torch.testing.assert_close(swept[c], pair.decode(z2, torch.full((N,), c)).mean)
    torch.testing.assert_close(swept[y, torch.arange(N)], pair.reconstruct(x, y))


# What is said of wrong arguments.


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("query", ["model", "guide", "encode", "style_transfer"])
def test_a_wrong_label_is_an_error(kind, query):
    pair, x, _ = make()
    y, error, message = WRONG[kind]
    if query == "encode" and kind in ("integer-one-hot", "column"):
        message = "one y for every x"
    more = (torch.arange(2),) if query == "style_transfer" else ()
    with pytest.raises(error, match=message):
        getattr(pair, query)(x, y, *more)


def test_the_parts_are_checked():
    pair, _, _ = make()
    m1, m2 = pair.m1, pair.m2
    with pytest.raises(TypeError, match="m1 must be a VAE, got SSVAE"):
        StackedSSVAE(m2, m1)
    with pytest.raises(TypeError, match="m2 must be a SSVAE, got CVAE"):
        StackedSSVAE(m1, CVAE(m2.p_z, m2.p_x_given_zy, m2.q_z_given_xy))
    with pytest.raises(TypeError, match="m1 must be a VAE, got NoneType"):
        StackedSSVAE(None, m2)


def test_a_code_of_another_size_is_an_error_before_training():
    pair, x, y = make()
    other = VAE(
        p_z=StandardNormal(K1 + 1),
        p_x_given_z=ConditionalBernoulli(MLP(K1 + 1, (), D)),
        q_z_given_x=ConditionalNormal(MLP(D, (), (2, K1 + 1))),
    )
    fit = partial(ppvae.fit, StackedSSVAE(other, pair.m2), loss=ENUM, epochs=1, progress=False)
    for data in (x, (x, y)):
        with pytest.raises(ValueError, match="5"):
            fit(data)
