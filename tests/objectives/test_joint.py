"""Labelled and unlabelled data side by side: losses, gradients and runs against sums written out by hand."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import nn

import ppvae
from ppvae.data import Batches, JointBatches, split_labels
from ppvae.infer import SVI, NonFiniteError
from ppvae.objectives import JointELBO, Linear
from tests.infer.pairs import same, state
from tests.infer.test_resume import Interrupted, check_equal

ENUM = partial(TraceEnum_ELBO, max_plate_nesting=1)
ALPHA = 0.4


class Labels(nn.Module):
    """y ~ Categorical(π), x ~ N(μ_y, 1), q(y|x) ∝ exp(w_y x + b_y): no draws, so that every loss is a number.

    Where y is given, the objective also has α log q(y|x).
    """

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([-1.0, 0.5, 2.0]))
        self.w, self.b = nn.Parameter(torch.tensor([-0.5, 0.1, 0.7])), nn.Parameter(torch.tensor([0.2, 0.0, -0.3]))
        self.probs = torch.tensor([0.2, 0.5, 0.3])

    def log_joint(self, x):
        return dist.Normal(self.loc, 1.0).log_prob(x.unsqueeze(-1)) + self.probs.log()

    def log_q(self, x):
        return (x.unsqueeze(-1) * self.w + self.b).log_softmax(-1)

    def model(self, x, y=None):
        with pyro.plate("data", len(x)):
            given = y
            y = pyro.sample("y", dist.Categorical(self.probs), obs=y)
            pyro.sample("x", dist.Normal(self.loc[y], 1.0), obs=x)
            if given is not None:
                with poutine.scale(scale=ALPHA):
                    q_y = dist.Categorical(logits=self.log_q(x))
                    pyro.sample("classifier", q_y, obs=given, infer={"is_auxiliary": True})

    def guide(self, x, y=None):
        with pyro.plate("data", len(x)):
            if y is None:
                pyro.sample("y", dist.Categorical(logits=self.log_q(x)), infer={"enumerate": "parallel"})

    def losses(self, x, y=None):
        """Minus the objective of each datum, written out."""
        if y is None:
            log_q = self.log_q(x)
            return -(log_q.exp() * (self.log_joint(x) - log_q)).sum(-1)
        return -(self.log_joint(x) + ALPHA * self.log_q(x)).gather(1, y.unsqueeze(-1)).squeeze(-1)


def data(n, seed=0):
    return 2 * torch.randn(n, generator=torch.Generator().manual_seed(seed))


LABELLED = (data(6), torch.arange(6) % 3)
UNLABELLED = (data(9, seed=1),)
CASES = {
    "labelled": ([LABELLED], [2.5]),
    "unlabelled": ([UNLABELLED], [2.5]),
    "mixed": ([LABELLED, UNLABELLED], [3.0, 0.5]),
    "three sets": ([UNLABELLED, LABELLED, UNLABELLED], [3.0, 0.5, 1.0]),
}


def expected(pair, batches, weights):
    """The loss and the gradient of every parameter."""
    loss = sum(w * pair.losses(*batch).sum() for w, batch in zip(weights, batches, strict=True))
    return float(loss.detach()), torch.autograd.grad(loss, list(pair.parameters()), allow_unused=True)


@pytest.mark.parametrize("elbo", [ENUM, partial(ENUM, num_particles=2), TraceEnum_ELBO])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient(case, elbo):
    batches, weights = CASES[case]
    pair, joint = Labels(), JointELBO(elbo(), weights)
    loss, gradients = expected(pair, batches, weights)
    assert joint.loss(pair.model, pair.guide, *batches) == pytest.approx(loss, rel=1e-5)
    differentiable = joint.differentiable_loss(pair.model, pair.guide, *batches)
    assert float(differentiable.detach()) == pytest.approx(loss, rel=1e-5)
    differentiable.backward()
    for parameter, gradient in zip(pair.parameters(), gradients, strict=True):
        if gradient is not None:
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


def check_steps(svi, pair, case, steps=4):
    """Checks steps of SGD with the rate 0.01 against the same steps by hand."""
    (batches, weights), by_hand = CASES[case], Labels()
    for _ in range(steps):
        loss, gradients = expected(by_hand, batches, weights)
        assert svi.evaluate_loss(*batches) == pytest.approx(loss, rel=1e-5)
        assert svi.step(*batches) == pytest.approx(loss, rel=1e-5)
        for trained, parameter, gradient in zip(pair.parameters(), by_hand.parameters(), gradients, strict=True):
            parameter.data -= 0.01 * (0.0 if gradient is None else gradient)
            torch.testing.assert_close(trained, parameter, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_steps(case):
    pair = Labels()
    joint = JointELBO(ENUM(), CASES[case][1])
    check_steps(SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=0.01), joint), pair, case)


@pytest.mark.parametrize("case", CASES)
def test_steps_of_pyro(case):
    pair = Labels()

    def model(*batch):
        pyro.module("pair", pair)
        pair.model(*batch)

    with pyro.get_param_store().scope():
        joint = JointELBO(ENUM(), CASES[case][1])
        check_steps(pyro.infer.SVI(model, pair.guide, pyro.optim.SGD({"lr": 0.01}), joint), pair, case)


@pytest.mark.usefixtures("with_and_without_inductor")
def test_compiled_steps():
    pair = Labels()
    svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=0.01), JointELBO(ENUM(), [3.0, 0.5]), compile=True)
    check_steps(svi, pair, "mixed")
    assert svi._compiled.num_graphs == 1


@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_is_the_full_data_loss_on_average(drop_last):
    pair = Labels()
    labelled = Batches(data(7), torch.arange(7) % 3, batch_size=4, drop_last=drop_last)
    unlabelled = Batches(data(14, seed=1), batch_size=4)  # 4 minibatches: 2 or 4 rounds of the labelled set
    both = JointBatches(labelled, unlabelled)
    joint = JointELBO(ENUM(), both.weights)
    epochs = range(1 if not drop_last else 60)
    losses = [joint.loss(pair.model, pair.guide, *batches) for i in epochs for batches in both.epoch(i)]
    with torch.no_grad():
        full = float(sum(pair.losses(*part.tensors).sum() for part in both.sets))
    mean = sum(losses) / len(losses)
    error = 1e-5 * full if not drop_last else 4 * float(torch.tensor(losses).std()) / math.sqrt(len(losses))
    assert abs(mean - full) < error


class Drawing(Labels):
    """The same with a latent that is drawn, z ~ N(0, 1), and x ~ N(z + μ_y, 1)."""

    def model(self, x, y=None):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(self.probs), obs=y)
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + self.loc[y], 1.0), obs=x)

    def guide(self, x, y=None):
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", dist.Categorical(logits=self.log_q(x)), infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal((x - self.loc[y]) / 2, math.sqrt(0.5)))


@pytest.mark.parametrize("elbo", [ENUM, partial(ENUM, num_particles=3, vectorize_particles=True)])
def test_a_loss_with_draws_is_that_of_pyro(elbo):
    """z has its posterior, so that the loss is a number; its gradient is that of Pyro's ELBO for the same draws."""
    results = []
    for joint in (True, False):
        pair, batches = Drawing(), [LABELLED, UNLABELLED]
        torch.manual_seed(0)
        if joint:
            loss = JointELBO(elbo(), [2.0, 0.5]).differentiable_loss(pair.model, pair.guide, *batches)
        else:
            parts = [
                elbo(strict_enumeration_warning=False).differentiable_loss(pair.model, pair.guide, *batch)
                for batch in batches
            ]
            loss = 2 * parts[0] + 0.5 * parts[1]
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in pair.parameters() if p.grad is not None)])
    assert same(*results)
    with torch.no_grad():
        scale = math.sqrt(2)
        log_p = [dist.Normal(pair.loc, scale).log_prob(x.unsqueeze(-1)) + pair.probs.log() for x, *_ in batches]
        log_q = pair.log_q(UNLABELLED[0])
        labelled = log_p[0].gather(1, LABELLED[1].unsqueeze(-1)).sum()
        exact = -2 * labelled - 0.5 * (log_q.exp() * (log_p[1] - log_q)).sum()
    assert float(results[0][0]) == pytest.approx(float(exact), rel=1e-5)


def test_sets_whose_plates_nest_differently():
    """Without max_plate_nesting, Pyro guesses it once for each ELBO object: from the first set it would be 1."""

    def model(x, mean=None):
        with pyro.plate("data", len(x)):
            if mean is not None:
                pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0), obs=mean)
            else:
                with pyro.plate("time", 3, dim=-2):
                    w = pyro.sample("w", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
                    pyro.sample("x", dist.Normal(2 * w, 1.0), obs=x.T)

    def guide(x, mean=None):
        pass

    x = data(15).reshape(5, 3)
    log_p = torch.stack([dist.Normal(2.0 * w, 1.0).log_prob(x) + math.log(p) for w, p in enumerate((0.7, 0.3))])
    exact = -dist.Normal(0.0, 1.0).log_prob(x[:, 0]).sum() - 2 * log_p.logsumexp(0).sum()
    joint = JointELBO(TraceEnum_ELBO(), [1.0, 2.0])
    for _ in range(2):
        assert joint.loss(model, guide, (x, x[:, 0]), (x,)) == pytest.approx(float(exact), rel=1e-5)


# Runs.


def sets(y=None, **options):
    x = data(40, seed=2)
    y = (x > 0).long() + (x > 1.5).long() if y is None else y
    labelled, unlabelled = split_labels((x > 0).long() + (x > 1.5).long(), 9)
    return JointBatches(
        Batches(x[labelled], y[labelled], batch_size=4), Batches(x[unlabelled], batch_size=8, **options)
    )


def train(pair, batches, out=None, **options):
    settings = {"loss": ENUM(), "epochs": 3, "lr": Linear(3, start=0.05, end=0.01), "seed": 1, "progress": False}
    return ppvae.fit(pair, batches, data(10, seed=3), out=out, **{**settings, **options})


def test_fit_is_sgd_on_the_mean_loss_of_all_data():
    pair, by_hand, both = Labels(), Labels(), sets()
    optim = partial(torch.optim.SGD, lr=0.1)
    run = train(pair, both, epochs=2, lr=0.1, optim=torch.optim.SGD)
    optimizer, means = optim(by_hand.parameters()), []
    for epoch in range(2):
        losses = []
        for batches in both.epoch(epoch):
            loss = sum(w * by_hand.losses(*b).sum() for w, b in zip(both.weights, batches, strict=True)) / 40
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        means.append(sum(losses) / len(losses))
    assert [row["loss"] for row in run.history] == pytest.approx(means, rel=1e-5)
    best = run.history[run.best_epoch - 1]["valid_elbo"]
    x = data(10, seed=3)
    if run.best_epoch == 2:
        for a, b in zip(pair.parameters(), by_hand.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert best == pytest.approx(-float(pair.losses(x).mean().detach()), rel=1e-5)


@pytest.mark.parametrize("count", [0, 8, 11])
def test_a_run_that_was_interrupted_or_died_is_the_run_that_never_was(tmp_path, count):
    class Dying(Interrupted):
        def guide(self, *batch):
            super().guide(*batch)
            if self.count == count + 1 and torch.is_grad_enabled():
                raise KeyError("died")  # leaves what a kill does: the last checkpoint

    Dying.__name__ = "Interrupted"  # the same pair to whoever resumes it

    whole = train(Interrupted(Labels()), sets(), tmp_path / "whole")
    for name, pair in (("interrupted", Interrupted(Labels(), {count})), ("died", Dying(Labels()))):
        try:
            assert train(pair, sets(), tmp_path / name).stopped == "interrupted"
        except KeyError:
            assert name == "died"
        resumed = train(Interrupted(Labels()), sets(), tmp_path / name, resume=True)
        assert resumed.history == whole.history
        check_equal(tmp_path / "whole", tmp_path / name)


def test_a_run_is_not_resumed_with_other_weights(tmp_path):
    train(Interrupted(Labels(), {9}), sets(), tmp_path / "run")
    other = JointBatches(sets().sets[0], Batches(*sets().sets[1].tensors, batch_size=5))
    with pytest.raises(ValueError, match="loss"):
        train(Interrupted(Labels()), other, tmp_path / "run", resume=True)


@pytest.mark.usefixtures("with_and_without_inductor")
def test_compiled_run_equals_eager():
    labelled, unlabelled = (part.tensors for part in sets().sets)
    both = JointBatches(Batches(*labelled, batch_size=3), Batches(*unlabelled, batch_size=8, drop_last=True))
    eager, compiled = (train(Labels(), both, compile=c) for c in (False, True))
    for a, b in zip(eager.history, compiled.history, strict=True):
        assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize("i", [0, 1])
def test_one_set_alone_is_a_run_on_that_set(i):
    part = sets().sets[i]
    alone = Batches(*part.tensors, batch_size=len(part.tensors[0]))
    results = []
    for batches in (alone, JointBatches(alone)):
        pair = Labels()
        run = train(pair, batches, loss=TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False))
        results.append([[row["loss"] for row in run.history], state(pair)])
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    for name, value in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], value, rtol=1e-5, atol=1e-6)


def test_labels_of_the_unlabelled_data_are_never_read():
    x = data(40, seed=2)
    y = (x > 0).long() + (x > 1.5).long()
    garbage = y.clone()
    garbage[split_labels(y, 9)[1]] = -7
    assert train(Labels(), sets(y)).history == train(Labels(), sets(garbage)).history


def test_what_is_not_finite_is_named():
    both = sets()
    both.sets[1].tensors[0][3] = math.nan
    with pytest.raises(ValueError, match=r"train.sets\[1\]\[0\] holds"):
        train(Labels(), JointBatches(both.sets[0], Batches.to(both.sets[1], "cpu")), epochs=1)
    later = sets(transform=lambda generator, x: (torch.where(torch.rand((), generator=generator) > 0.8, math.nan, x),))
    pair = Labels()
    with (
        pytest.warns(UserWarning, match="NaN"),
        pytest.raises(NonFiniteError, match=r"site '[xy]' in the .*, in epoch"),
    ):
        train(pair, later, epochs=20)
    assert all(parameter.isfinite().all() for parameter in pair.parameters())


# Errors.


def test_bad_arguments():
    for elbo in (JointELBO(ENUM(), [1.0]), RenyiELBO(), lambda model, guide: 0.0):
        with pytest.raises(TypeError, match="elbo must be"):
            JointELBO(elbo, [1.0])
        if not isinstance(elbo, JointELBO):
            with pytest.raises(TypeError, match="loss does not go with JointBatches"):
                train(Labels(), sets(), loss=elbo)
    for weights in ([], [1.0, 0.0], [-1.0], [math.nan]):
        with pytest.raises(ValueError, match="weights"):
            JointELBO(Trace_ELBO(), weights)
    pair, joint = Labels(), JointELBO(ENUM(), [1.0, 2.0])
    with pytest.raises(ValueError, match="each of 2 data sets, got 1"):
        joint.loss(pair.model, pair.guide, LABELLED)
    with pytest.raises(TypeError, match="minibatch 1 must be the tuple"):
        joint.loss(pair.model, pair.guide, LABELLED, UNLABELLED[0])
    with pytest.raises(TypeError, match="valid must be one data set"):
        ppvae.fit(pair, sets(), sets(), epochs=1, progress=False)


def test_the_elbo_that_was_given_is_left_alone():
    elbo = TraceMeanField_ELBO()
    before = dict(vars(elbo))
    pair = Drawing()
    JointELBO(elbo, [1.0]).loss(pair.model, pair.guide, LABELLED)
    assert vars(elbo) == before
