import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import nn
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
from ppvae.models import SSVAE
from ppvae.nn import MLP, ConditionalMLP, OneHot
from ppvae.objectives import JointELBO
from ppvae.pair import KLWeight
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
from tests.models.linear_gaussian import LinearGaussian, Prior

K = 2


def make(*, hidden=5, learned_prior=False, alpha=1.0):
    torch.manual_seed(0)
    prior = ConditionalNormal(nn.Sequential(OneHot(C), MLP(C, (4,), (2, K)))) if learned_prior else StandardNormal(K)
    pair = SSVAE(
        p_y=Prior(),
        p_z=prior,
        p_x_given_zy=ConditionalBernoulli(ConditionalMLP(K, C, hidden, D, embed=OneHot(C), activation="tanh")),
        q_y_given_x=ConditionalCategorical(MLP(D, hidden, C, activation="tanh"), num_classes=C),
        q_z_given_xy=ConditionalNormal(ConditionalMLP(D, C, hidden, (2, K), embed=OneHot(C), activation="tanh")),
        alpha=alpha,
    )
    y = torch.arange(N) % C
    return pair, pair.sample(y), y


@pytest.fixture(params=[False, True], ids=["fixed-prior", "learned-prior"])
def case(request):
    return make(learned_prior=request.param)


# The three losses, written out: the same random numbers, a sum over y, densities by hand.


def minus_l(pair, x, y, noise, kl_weight=1.0, *, is_latent):
    """−L(x, y) of equation 6 at z = μ + σ·noise; a KL weight acts on the latent sites, of which y may be one."""
    loc, scale = loc_scale(pair.q_z_given_xy, x, y)
    z = loc + scale * noise
    prior = loc_scale(pair.p_z, y) if isinstance(pair.p_z, ConditionalNormal) else (torch.zeros(K), torch.ones(K))
    logits = pair.p_x_given_zy.net(z, y)
    log_x = (x * logsigmoid(logits) + (1 - x) * logsigmoid(-logits)).sum(-1)
    log_y = Prior().probs[y].log() * (kl_weight if is_latent else 1.0)
    return log_x + log_y + kl_weight * (log_normal(z, *prior) - log_normal(z, loc, scale))


def supervised(pair, x, y, noise, kl_weight=1.0):
    """L(x, y) − α log q(y|x), summed over the data."""
    bound = minus_l(pair, x, y, noise, kl_weight, is_latent=False)
    if pair.alpha:
        bound = bound + pair.alpha * log_classifier(pair, x)[torch.arange(len(x)), y]
    return -bound.sum()


def unsupervised(pair, x, noise, kl_weight=1.0):
    """U(x) of equation 7, summed over the data; `noise` is (c, n, k)."""
    total, log_q = 0.0, log_classifier(pair, x)
    for c in range(C):
        bound = minus_l(pair, x, torch.full((len(x),), c), noise[c], kl_weight, is_latent=True)
        total = total - (log_q[:, c].exp() * (bound - kl_weight * log_q[:, c])).sum()
    return total


@pytest.mark.parametrize("alpha", [0.0, 2.5])
def test_labelled_loss_is_equation_6_and_the_classifier(case, alpha):
    pair, x, y = case
    pair.alpha = alpha
    (noise,) = noise_of((N, K))
    assert_same_loss(
        pair, lambda: ENUM.differentiable_loss(pair.model, pair.guide, x, y), supervised(pair, x, y, noise)
    )


def test_unlabelled_loss_is_equation_7(case):
    pair, x, _ = case
    (noise,) = noise_of((C, N, K))
    assert_same_loss(pair, lambda: ENUM.differentiable_loss(pair.model, pair.guide, x), unsupervised(pair, x, noise))


@pytest.mark.parametrize("alpha", [0.0, 2.5])
def test_mixed_loss_is_equations_8_and_9(case, alpha):
    pair, x, y = case
    pair.alpha = alpha
    noise = noise_of((3, K), (C, 4, K))
    weights = (2.0, 5.0)
    expected = 2 * supervised(pair, x[:3], y[:3], noise[0]) + 5 * unsupervised(pair, x[3:], noise[1])
    batches, objective = ((x[:3], y[:3]), (x[3:],)), JointELBO(ENUM, weights)
    assert_same_loss(pair, lambda: objective.differentiable_loss(pair.model, pair.guide, *batches), expected)
    svi = ppvae.SVI(pair.model, pair.guide, torch.optim.SGD, objective, compile=False)
    torch.manual_seed(3)
    assert svi.evaluate_loss(*batches) == pytest.approx(expected.item(), rel=1e-5)


def test_a_kl_weight_acts_on_the_latents_and_nothing_else(case):
    pair, x, y = case
    pair.alpha, weight = 2.5, 0.3
    noise = noise_of((3, K), (C, 4, K))
    expected = supervised(pair, x[:3], y[:3], noise[0], weight) + unsupervised(pair, x[3:], noise[1], weight)
    batches, objective = ((x[:3], y[:3]), (x[3:],)), JointELBO(ENUM, (1.0, 1.0))

    def loss():
        with KLWeight(weight):
            return objective.differentiable_loss(pair.model, pair.guide, *batches)

    assert_same_loss(pair, loss, expected)


def test_evaluation_ignores_alpha_and_the_classifier_s_term():
    pair, x, y = make(alpha=50.0)
    plain = make(alpha=0.0)[0]
    for data in ((x,), (x, y)):
        a, b = (ppvae.elbo(p, *data, num_samples=3).values for p in (pair, plain))
        assert torch.equal(a, b)
        a, b = (ppvae.log_marginal(p, *data, num_samples=3).values for p in (pair, plain))
        assert torch.equal(a, b)


# A model of which everything is known.


@pytest.fixture(params=[False, True], ids=["p(z)", "p(z|y)"])
def exact(request):
    story = LinearGaussian(sees_label=request.param)
    torch.manual_seed(0)
    y = torch.arange(20) % C
    pair = story.pair()
    x = pair.sample(y)
    return pair, x, y, story.log_joint(x)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4, check_dtype=False)


def test_bounds_are_tight_at_the_exact_posterior(exact):
    """With q(z|x,y) and q(y|x) those of the model, a single draw gives log p(x), log p(x, y) and log p(x|y)."""
    pair, x, y, log_joint = exact
    log_xy = log_joint[torch.arange(len(x)), y]
    for estimate in (ppvae.elbo, ppvae.log_marginal):
        close(estimate(pair, x, num_samples=1).values, log_joint.logsumexp(-1))
        close(estimate(pair, x, None, num_samples=2).values, log_joint.logsumexp(-1))
        close(estimate(pair, x, y, num_samples=2).values, log_xy)
        given = estimate(pair, x, y, num_samples=2, given=("y",))
        close(given.values, log_xy - Prior().probs[y].log())
    close(pair.classify(x), log_joint.softmax(-1))


def test_losses_are_tight_at_the_exact_posterior(exact):
    pair, x, y, log_joint = exact
    log_xy, log_q = log_joint[torch.arange(len(x)), y], log_joint.log_softmax(-1)[torch.arange(len(x)), y]
    pair.alpha = 3.0
    unlabelled, labelled = ENUM.loss(pair.model, pair.guide, x), ENUM.loss(pair.model, pair.guide, x, y)
    assert -unlabelled == pytest.approx(float(log_joint.logsumexp(-1).sum()), rel=1e-5)
    assert -labelled == pytest.approx(float((log_xy + 3.0 * log_q).sum()), rel=1e-5)


def test_bounds_are_in_order_where_the_posterior_is_not_exact(exact):
    pair, x, y, log_joint = exact
    with torch.no_grad():
        pair.q_y_given_x.net[-1].bias.add_(torch.tensor([1.0, -1.0, 0.0]))
        next(pair.q_z_given_xy.net.parameters()).mul_(0.8)
    for data, expected in (((x,), log_joint.logsumexp(-1)), ((x, y), log_joint[torch.arange(len(x)), y])):
        elbo = ppvae.elbo(pair, *data, num_samples=1000)
        often = (t.repeat(100, *[1] * (t.dim() - 1)) for t in data)
        several = ppvae.log_marginal(pair, *often, num_samples=3).values.unflatten(0, (100, -1))
        many = ppvae.log_marginal(pair, *data, num_samples=20000)
        error = several.std(0) / 10
        assert (elbo.values < several.mean(0) + 4 * (error**2 + elbo.std_error**2).sqrt()).all()
        assert (several.mean(0) < expected + 4 * error).all()
        assert elbo.values.mean() < several.mean() < expected.mean()
        assert ((many.values - expected) / many.std_error).abs().max() < 4


# The contract of a pair.


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("known", [False, True])
def test_sites_of_model_and_guide(case, alpha, known):
    pair, x, y = case
    pair.alpha = alpha
    batch = (x, y) if known else (x,)
    guide_trace = poutine.trace(pair.guide).get_trace(*batch)
    model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(*batch)
    latents = {"z"} if known else {"y", "z"}
    assert set(model_trace.stochastic_nodes) - {"data"} == latents == set(guide_trace.stochastic_nodes) - {"data"}
    assert model_trace.observation_nodes == (["y", "x", *(["classifier"] if alpha else [])] if known else ["x"])
    model_trace.compute_log_prob()
    assert {model_trace.nodes[name]["log_prob"].shape for name in ("x", "y", "z")} == {(N,)}


@pytest.mark.parametrize("known", [False, True])
def test_loss_is_a_sum_over_data_and_a_mean_over_particles(known):
    pair, x, y = make()

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
    classifier = float(pair.classify(x[:1])[0, y[0]].log()) if known else 0.0
    assert -one == pytest.approx(ppvae.elbo(pair, *batch).mean() + classifier, rel=0.03)


def test_gradients_reach_every_parameter(case):
    pair, x, y = case
    ENUM.differentiable_loss(pair.model, pair.guide, x).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pair.parameters())
    pair.zero_grad()
    JointELBO(ENUM, (1.0, 1.0)).differentiable_loss(pair.model, pair.guide, (x[:3], y[:3]), (x[3:],)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pair.parameters())
    pair.zero_grad()
    pair.alpha = 0.0  # the classifier then learns from unlabelled data alone
    ENUM.differentiable_loss(pair.model, pair.guide, x, y).backward()
    assert all((p.grad is None) == name.startswith("q_y_given_x") for name, p in pair.named_parameters())


def test_state_round_trip(case, tmp_path):
    pair, x, y = case
    path = ppvae.save(pair, tmp_path / "ssvae.safetensors")
    before = [ppvae.log_marginal(pair, *data, num_samples=5).values for data in ((x,), (x, y))]
    probabilities = pair.classify(x)
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.zero_()
    ppvae.load(pair, path)
    after = [ppvae.log_marginal(pair, *data, num_samples=5).values for data in ((x,), (x, y))]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert torch.equal(pair.classify(x), probabilities)


# Training.


def test_overfits_a_tiny_set():
    """Two patterns of each class, all with and without labels: log p(x, y) is at most log p(y) − log 2."""
    pair, _, _ = make(hidden=64)
    pair.p_y = UniformCategorical(C)
    both = JointBatches(
        Batches(PATTERNS.repeat(4, 1), LABELS.repeat(4), batch_size=24), Batches(PATTERNS.repeat(8, 1), batch_size=48)
    )
    ppvae.fit(pair, both, loss=ENUM, epochs=300, lr=1e-2, progress=False)
    assert torch.equal(pair.classify(PATTERNS).argmax(-1), LABELS)
    assert ppvae.log_marginal(pair, PATTERNS, LABELS, num_samples=500).mean() == pytest.approx(-math.log(6), abs=0.5)
    assert ppvae.log_marginal(pair, PATTERNS, num_samples=500).mean() == pytest.approx(-math.log(6), abs=0.5)
    assert (pair.reconstruct(PATTERNS, LABELS) - PATTERNS).abs().max() < 0.5


def test_unlabelled_data_help_the_classifier():
    """One label of each class: the boundaries are found between the clusters of the other data."""
    story = LinearGaussian(d=2, k=1)
    story.shift = story.mean = torch.tensor([[-6.0, 0.0], [6.0, 0.0], [0.0, 8.0]])
    torch.manual_seed(0)
    y = torch.arange(300) % C
    x = story.pair().sample(y)
    ones, errors = torch.tensor([(y == c).nonzero()[0, 0] for c in range(C)]), []
    labelled = Batches(x[ones], y[ones], batch_size=3)
    for train in (JointBatches(labelled), JointBatches(labelled, Batches(x, batch_size=100))):
        torch.manual_seed(0)
        pair = story.pair()
        pair.q_y_given_x = ConditionalCategorical(MLP(2, (16,), C, activation="tanh"), num_classes=C)
        pair.requires_grad_(False).q_y_given_x.requires_grad_(True)
        ppvae.fit(pair, train, loss=ENUM, epochs=150 // len(train), lr=1e-2, progress=False)
        errors.append(float((pair.classify(x).argmax(-1) != y).float().mean()))
    assert errors[1] < 0.02
    assert errors[1] <= errors[0]


@pytest.mark.parametrize("known", [False, True], ids=["no labels", "all labels"])
def test_trains_without_labels_and_with_all_of_them(known):
    pair, x, y = make()
    before = {name: p.clone() for name, p in pair.named_parameters()}
    train = JointBatches(Batches(x, y, batch_size=4) if known else Batches(x, batch_size=4))
    run = ppvae.fit(pair, train, (x,), loss=TraceEnum_ELBO(), epochs=3, lr=1e-2, progress=False)
    assert all(math.isfinite(row["loss"]) and math.isfinite(row["valid_elbo"]) for row in run.history)
    assert all((p != before[name]).any() for name, p in pair.named_parameters())
    plain = ppvae.fit(pair, (x, y) if known else x, loss=TraceEnum_ELBO(), epochs=1, progress=False)
    assert math.isfinite(plain.history[0]["loss"])


@pytest.mark.usefixtures("with_and_without_inductor")
def test_the_compiled_step_gives_the_same_losses():
    losses = []
    for compile in (False, True):
        pair, _, _ = make()
        y = torch.arange(100) % C
        x = pair.sample(y)
        adam = partial(torch.optim.Adam, lr=1e-2)
        svi = ppvae.SVI(pair.model, pair.guide, adam, JointELBO(ENUM, (3.0, 10.0)), compile=compile)
        torch.manual_seed(1)
        losses.append([svi.step((x[i : i + 3], y[i : i + 3]), (x[i + 3 : i + 10],)) for i in range(0, 100, 10)])
    assert svi._compiled.num_graphs == 1
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


# Queries.


def test_queries(case):
    pair, x, y = case
    assert x.shape == (N, D)
    probabilities = pair.classify(x.expand(4, 3, N, D))
    assert probabilities.shape == (4, 3, N, C)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(4, 3, N))
    q_z = pair.encode(x.expand(3, N, D), y.expand(3, N))
    assert (q_z.batch_shape, q_z.event_shape) == ((3, N), (K,))
    torch.testing.assert_close(pair.encode(x).mean, pair.encode(x, pair.classify(x).argmax(-1)).mean)
    assert pair.decode(torch.zeros(4, 1, N, K), y.expand(3, N)).batch_shape == (4, 3, N)
    torch.testing.assert_close(pair.reconstruct(x, y), pair.decode(pair.encode(x, y).mean, y).mean)
    assert pair.sample(y.expand(3, N)).shape == (3, N, D)
    assert pair.sample(y[0]).shape == (D,)
    assert pair.sample(y[:1].expand(5), mean=True).std(0).max() > 0  # a z for every y


def test_samples_are_those_of_the_model(exact):
    pair = exact[0]
    story = LinearGaussian(sees_label=not isinstance(pair.p_z, StandardNormal))
    torch.manual_seed(0)
    x = pair.sample(torch.full((20000,), 1))
    torch.testing.assert_close(x.mean(0), story.mean[1], rtol=0, atol=0.06)
    torch.testing.assert_close(x.T.cov(), story.covariance, rtol=0, atol=0.1)


def test_style_transfer_leaves_z_as_it_is(case):
    pair, x, y = case
    z = pair.encode(x, y).mean
    swept = pair.style_transfer(x, y, torch.arange(C))
    assert swept.shape == (C, N, D)
    for c in range(C):
        torch.testing.assert_close(swept[c], pair.decode(z, torch.full((N,), c)).mean)
    torch.testing.assert_close(swept[y, torch.arange(N)], pair.reconstruct(x, y))


# What is said of wrong arguments.


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("query", ["model", "guide", "encode", "reconstruct", "style_transfer"])
def test_a_wrong_label_is_an_error(kind, query):
    pair, x, _ = make()
    y, error, message = WRONG[kind]
    if query in ("encode", "reconstruct") and kind in ("integer-one-hot", "column"):
        message = "one y for every x"
    more = (torch.arange(2),) if query == "style_transfer" else ()
    with pytest.raises(error, match=message):
        getattr(pair, query)(x, y, *more)


@pytest.mark.parametrize("kind", ["float", "range", "unlabelled", "integer-one-hot", "column"])
def test_fit_and_likelihood_say_so_before_they_work(kind):
    pair, x, _ = make()
    y, error, message = WRONG[kind]
    message = message.replace("7", r"\d")
    train = JointBatches(Batches(x, y, batch_size=4), Batches(x, batch_size=4))
    with pytest.raises(error, match=message):
        ppvae.fit(pair, train, loss=ENUM, epochs=1, progress=False)
    with pytest.raises(error, match=message):
        ppvae.log_marginal(pair, x, y, num_samples=2)


def test_labels_that_are_not_known_are_no_sentinel_but_left_out():
    """-1 for "no label" is an error, so that nothing is learned from it; x alone is what has no label."""
    pair, x, y = make()
    with pytest.raises(ValueError, match="got values from -1"):
        ppvae.fit(pair, (x, y.index_fill(0, torch.tensor([2]), -1)), loss=ENUM, epochs=1, progress=False)


def test_values_are_not_read_where_validation_is_off():
    pair, x, y = make()
    with pyro.validation_enabled(False):
        pair.guide(x, torch.full_like(y, 99))


def test_constructor():
    pieces = {
        "p_y": UniformCategorical(C),
        "p_z": StandardNormal(K),
        "p_x_given_zy": StandardNormal(D),
        "q_y_given_x": UniformCategorical(C),
        "q_z_given_xy": StandardNormal(K),
    }
    for alpha in (-1.0, math.nan, "1", True, None):
        with pytest.raises(ValueError, match="alpha must be a finite number >= 0"):
            SSVAE(**pieces, alpha=alpha)
    for name in pieces:
        with pytest.raises(TypeError, match=f"{name} must be a module that returns a distribution, got Normal"):
            SSVAE(**{**pieces, name: dist.Normal(0.0, 1.0)})


def test_an_objective_that_cannot_train_the_pair_is_found_before_training():
    pair, x, _ = make()
    with pytest.warns(UserWarning, match="with TraceEnum_ELBO"), pytest.raises(ValueError, match="fully reparam"):
        ppvae.fit(pair, x, loss=TraceMeanField_ELBO(), epochs=1, progress=False)
    with pytest.warns(UserWarning, match="with TraceEnum_ELBO"):
        ppvae.fit(pair, x, loss=Trace_ELBO(), epochs=1, progress=False)
