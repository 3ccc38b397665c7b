"""Latents that are summed over: log p(x) and the ELBO against sums written out by hand."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch import nn

import ppvae
from ppvae.sampling.eval_mode import evaluating
from ppvae.sampling.sampler import PROBE_DATA, choose_sampler

PARALLEL = {"enumerate": "parallel"}
N = 11


class LinearMixture(nn.Module):
    """y ~ Categorical(π), z ~ N(0, 1), x ~ N(c_y z + d_y, s²); the guide's q(z|x, y) is the posterior, or is wider.

    Args:
        q_y: q(y|x) by name.
        inflation: of the scale of q(z|x, y); at 1 it is the posterior.
        onehot: whether y is a one-hot vector.
        broadcasts: whether the code runs in an outer plate.
    """

    def __init__(self, q_y="posterior", *, inflation=1.0, onehot=False, broadcasts=True, infer=None):
        super().__init__()
        self.c, self.d = (nn.Parameter(torch.tensor(v)) for v in ([1.5, 0.3, -0.8], [-1.0, 0.5, 2.0]))
        self.s, self.probs = 0.6, torch.tensor([0.2, 0.5, 0.3])
        self.q_y, self.inflation, self.onehot, self.broadcasts = q_y, inflation, onehot, broadcasts
        self.infer = PARALLEL if infer is None else infer

    def log_joint(self, x):
        """Log p(x, y), (n, 3)."""
        return dist.Normal(self.d, (self.c**2 + self.s**2).sqrt()).log_prob(x.unsqueeze(-1)) + self.probs.log()

    def q(self, x):
        """The probabilities q(y|x), (n, 3)."""
        if self.q_y == "posterior":
            return self.log_joint(x).softmax(-1)
        probs = {"uniform": [1 / 3, 1 / 3, 1 / 3], "wrong": [0.7, 0.05, 0.25], "never 1": [0.6, 0.0, 0.4]}[self.q_y]
        return torch.tensor(probs).expand(len(x), 3)

    def y(self, probs):
        logits = probs.log()  # exact zeros, where probs would be clamped
        return dist.OneHotCategorical(logits=logits) if self.onehot else dist.Categorical(logits=logits)

    def line(self, y):
        return (y @ self.c, y @ self.d) if self.onehot else (self.c[y], self.d[y])

    def model(self, x, y=None):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", self.y(self.probs), obs=y)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if not self.broadcasts and z.dim() > 1:
                raise RuntimeError("not in this form")
            c, d = self.line(y)
            pyro.sample("x", dist.Normal(c * z + d, self.s), obs=x)

    def guide(self, x, y=None):
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", self.y(self.q(x)), infer=self.infer)
            c, d = self.line(y)
            variance = 1 / (1 + (c / self.s) ** 2)
            pyro.sample("z", dist.Normal(variance * c * (x - d) / self.s**2, self.inflation * variance.sqrt()))


def data(n=N, seed=0):
    return 2 * torch.randn(n, generator=torch.Generator().manual_seed(seed))


def close(actual, expected, **tolerance):
    torch.testing.assert_close(actual, expected.detach().double(), **{"rtol": 1e-5, "atol": 1e-5, **tolerance})


def within(estimate, exact, *, errors=4):
    assert ((estimate.values - exact.detach().double()) / estimate.std_error).abs().max() < errors


def adds_up(terms):
    torch.testing.assert_close(terms.values, terms.reconstruction - sum(terms.kl.values()), rtol=1e-5, atol=1e-5)


GUIDES = ["posterior", "uniform", "wrong", "never 1"]
FORMS = {"outer plate": True, "repeated": False}


@pytest.mark.parametrize("broadcasts", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("onehot", [False, True])
@pytest.mark.parametrize("q_y", GUIDES)
def test_log_p_x_is_exact_where_z_is(q_y, onehot, broadcasts):
    pair, x = LinearMixture(q_y, onehot=onehot, broadcasts=broadcasts), data()
    exact = pair.log_joint(x).logsumexp(-1)
    close(ppvae.log_marginal(pair, x, num_samples=1).values, exact)
    estimate = ppvae.log_marginal(pair, x, num_samples=20)
    close(estimate.values, exact)
    assert estimate.std_error.max() < 1e-5
    torch.testing.assert_close(estimate.ess, torch.full((N,), 20.0).double())


def test_the_forms_are_the_ones_that_the_tests_mean():
    for broadcasts in (True, False):
        pair = LinearMixture(broadcasts=broadcasts)
        with evaluating(pair, 0):
            assert (choose_sampler(pair, (data(PROBE_DATA),), 20).plate_dim == -2) == broadcasts


@pytest.mark.parametrize("broadcasts", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("q_y", GUIDES)
def test_log_p_x_with_a_wrong_guide_of_z(q_y, broadcasts):
    pair, x = LinearMixture(q_y, inflation=1.4, broadcasts=broadcasts), data()
    estimate = ppvae.log_marginal(pair, x, num_samples=3000)
    assert estimate.std_error.max() > 1e-4
    within(estimate, pair.log_joint(x).logsumexp(-1))


def test_q_of_y_does_not_matter_to_log_p_x():
    estimates = [ppvae.log_marginal(LinearMixture(q_y, inflation=1.4), data(), num_samples=9) for q_y in GUIDES]
    for other in estimates[1:]:
        assert torch.equal(other.values, estimates[0].values)


@pytest.mark.parametrize("onehot", [False, True])
@pytest.mark.parametrize("num_samples", [1, 20])
@pytest.mark.parametrize("q_y", GUIDES)
def test_elbo_is_the_sum_over_y(q_y, num_samples, onehot):
    pair, x = LinearMixture(q_y, onehot=onehot), data()
    q = pair.q(x)
    terms = ppvae.elbo(pair, x, num_samples=num_samples)
    expected = torch.where(q > 0, q * (pair.log_joint(x) - q.log()), 0.0).sum(-1)
    close(terms.values, expected)
    close(terms.kl["y"], torch.where(q > 0, q * (q / pair.probs).log(), 0.0).sum(-1))
    adds_up(terms)
    if num_samples > 1:
        assert terms.std_error.max() < 1e-5


def test_a_value_that_the_model_excludes():
    pair, x = LinearMixture("wrong"), data()
    pair.probs = torch.tensor([0.4, 0.0, 0.6])
    close(ppvae.log_marginal(pair, x, num_samples=3).values, pair.log_joint(x).logsumexp(-1))
    assert (ppvae.elbo(pair, x, num_samples=3).values == -math.inf).all()
    pair.q_y = "never 1"
    assert ppvae.elbo(pair, x, num_samples=3).values.isfinite().all()


@pytest.mark.parametrize("q_y", GUIDES)
def test_chunks_agree(q_y):
    pair, x = LinearMixture(q_y, inflation=1.4), data()
    for estimate in (ppvae.log_marginal, ppvae.elbo):
        expected = estimate(pair, x, num_samples=300).values
        for batch_size in (1, 7, 1000):
            close(estimate(pair, x, num_samples=300, batch_size=batch_size).values, expected)


@pytest.mark.usefixtures("with_and_without_inductor")
@pytest.mark.parametrize("given", [[], ["y"]])
def test_compiled_equals_eager(given):
    pair, x = LinearMixture("never 1", inflation=1.4), data()
    y = torch.arange(N) % 3 if given else None
    for estimate in (ppvae.log_marginal, ppvae.elbo):
        options = {"num_samples": 60, "given": given}
        eager, compiled = (estimate(pair, x, y, **options, compile=c) for c in (False, True))
        close(compiled.values, eager.values)
        close(compiled.std_error, eager.std_error, rtol=1e-3)


# Observed labels.


def labels(value, n=N, *, onehot=False):
    y = torch.full((n,), value)
    return nn.functional.one_hot(y, 3).float() if onehot else y


@pytest.mark.parametrize("onehot", [False, True])
def test_log_p_of_data_and_labels(onehot):
    pair, x = LinearMixture("wrong", onehot=onehot), data()
    joint = [ppvae.log_marginal(pair, x, labels(k, onehot=onehot), num_samples=2).values for k in range(3)]
    close(torch.stack(joint, -1), pair.log_joint(x))
    close(torch.stack(joint).logsumexp(0), ppvae.log_marginal(pair, x, None, num_samples=2).values)


@pytest.mark.parametrize("given", ["y", ["y"], ("y",)])
def test_log_p_given_labels(given):
    pair, x, y = LinearMixture(), data(), torch.arange(N) % 3
    conditional = (pair.log_joint(x) - pair.probs.log()).gather(1, y.unsqueeze(-1)).squeeze(-1)
    close(ppvae.log_marginal(pair, x, y, num_samples=20, given=given).values, conditional)
    terms = ppvae.elbo(pair, x, y, num_samples=20, given=given)
    close(terms.values, conditional)
    adds_up(terms)


class Graded(nn.Module):
    """A label u ~ N(z, 1) that depends on the latent, and one that does not; y1 and y2 are summed over."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            y1, y2 = (pyro.sample(f"y{i}", dist.Bernoulli(0.5)) for i in (1, 2))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("of_z", dist.Normal(z, 1.0), obs=x)
            pyro.sample("of_y", dist.Normal(y1, 1.0), obs=x)
            pyro.sample("xor", dist.Normal((y1 - y2).abs(), 1.0), obs=x)
            pyro.sample("of_none", dist.Normal(0.0, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            for i in (1, 2):
                pyro.sample(f"y{i}", dist.Bernoulli(0.5), infer=PARALLEL)
            pyro.sample("z", dist.Normal(x / 2, 1.0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["of_z"], "'of_z', whose density depends on latents"),
        (["of_none", "of_y"], "'of_y', whose density depends on latents"),
        (["xor"], "'xor', whose density depends on latents"),
        (["z"], "'z', which the model does not observe: it observes"),
        (["nothing"], "'nothing', which the model does not observe"),
    ],
)
@pytest.mark.parametrize("num_samples", [1, 20])
def test_what_cannot_be_given(given, message, num_samples):
    with pytest.raises(ValueError, match=message):
        ppvae.log_marginal(Graded(), data(), num_samples=num_samples, given=given)


def test_something_must_be_left_to_score():
    pair, x = LinearMixture(), data()

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(ValueError, match="nothing is left to score"):
        ppvae.elbo(ppvae.Pair(model, lambda x: None), x, given="x")
    with pytest.raises(ValueError, match="'y', which the model does not observe"):
        ppvae.elbo(pair, x, None, given=["y"])


class Classified(LinearMixture):
    """With the terms of a training objective and of the model: a classifier's log q(y|x), and a factor."""

    def model(self, x, y=None):
        super().model(x, y)
        with pyro.plate("more", len(x)):
            pyro.factor("tilt", 0.1 * x)
            if y is not None:
                pyro.sample("classifier", dist.Categorical(self.q(x)), obs=y, infer={"is_auxiliary": True})


def test_an_auxiliary_observation_is_no_part_of_the_model_but_a_factor_is():
    pair, x, y = Classified("wrong"), data(), labels(2)
    expected = pair.log_joint(x)[:, 2] + 0.1 * x
    for num_samples in (1, 20):
        close(ppvae.log_marginal(pair, x, y, num_samples=num_samples).values, expected)
        terms = ppvae.elbo(pair, x, y, num_samples=num_samples)
        close(terms.values, expected)
        adds_up(terms)
    close(ppvae.log_marginal(pair, x, num_samples=2).values, pair.log_joint(x).logsumexp(-1) + 0.1 * x)
    with pytest.raises(ValueError, match="'classifier', which the model does not observe"):
        ppvae.elbo(pair, x, y, given="classifier")


def test_a_model_that_observes_nothing_else():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x, infer={"is_auxiliary": True})

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="observes nothing"):
        ppvae.elbo(ppvae.Pair(model, guide), data())


# How the marks are given.


def test_other_ways_to_mark():
    x = data()
    exact = LinearMixture().log_joint(x).logsumexp(-1)
    pair = LinearMixture("wrong", infer={"enumerate": "sequential"})
    close(ppvae.log_marginal(pair, x, num_samples=2).values, exact)
    pair = LinearMixture("wrong", infer={})
    assert (ppvae.log_marginal(pair, x, num_samples=20).std_error > 1e-3).any()
    for mark in (config_enumerate, config_enumerate(default="sequential")):
        close(ppvae.log_marginal(ppvae.Pair(pair.model, mark(pair.guide)), x, num_samples=2).values, exact)


def test_samples_side_by_side_are_drawn():
    pair, x = LinearMixture("uniform", infer={**PARALLEL, "num_samples": 7}), data()
    estimate = ppvae.log_marginal(pair, x, num_samples=3000)
    assert estimate.std_error.max() > 1e-3
    within(estimate, pair.log_joint(x).logsumexp(-1))


def test_scales_do_not_count():
    pair, x = LinearMixture("wrong"), data()
    scaled = ppvae.Pair(poutine.scale(pair.model, scale=3.0), poutine.scale(pair.guide, scale=0.1))
    for estimate in (ppvae.elbo, ppvae.log_marginal):
        expected = estimate(pair, x, num_samples=3).values
        assert torch.equal(estimate(scaled, x, num_samples=3).values, expected)
        with ppvae.KLWeight(0.3):
            assert torch.equal(estimate(pair, x, num_samples=3).values, expected)
