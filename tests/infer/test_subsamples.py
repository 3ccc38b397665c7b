"""Plates that take a random part of what they are given: the history is of the whole, and the estimators refuse."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

import ppvae
from ppvae.objectives import BalancedELBO, JointELBO

N, PIXELS = 60, 40


class Inside(nn.Module):
    """All data given, of which a plate takes some at every step."""

    def __init__(self, taken=10):
        super().__init__()
        self.b = nn.Parameter(torch.tensor(0.5))
        self.taken = taken

    def model(self, x):
        with pyro.plate("data", len(x), subsample_size=self.taken) as i:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[i])
            ppvae.loss_term("one", torch.ones(self.taken) + 0.0 * self.b)

    def guide(self, x):
        with pyro.plate("data", len(x), subsample_size=self.taken) as i:
            pyro.sample("z", dist.Normal(self.b * x[i], 0.7))


class Pixels(nn.Module):
    """Some of the pixels of each datum, drawn at every step; the pixels have a latent too."""

    def __init__(self, taken=8, sequential=False):
        super().__init__()
        self.b = nn.Parameter(torch.tensor(0.5))
        self.taken = taken
        self.sequential = sequential

    def plate(self):
        taken = self.taken if self.training else None
        return pyro.plate("pixels", PIXELS, subsample_size=taken, dim=None if self.sequential else -2)

    def model(self, x):
        data, pixels = pyro.plate("data", len(x), dim=-1), self.plate()
        with data:
            pyro.sample("z", dist.Normal(0.0, 1.0))
        if self.sequential:
            for j in pixels:
                with data:
                    pyro.sample(f"x_{int(j)}", dist.Normal(0.0, 1.0), obs=x[:, j])
            return
        with data, pixels as j:
            y = pyro.sample("y", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0.0 * y, 1.0), obs=x.T[j])

    def guide(self, x):
        data = pyro.plate("data", len(x), dim=-1)
        with data:
            pyro.sample("z", dist.Normal(self.b * 0.0, 1.0))
        if not self.sequential:
            with data, self.plate() as j:
                pyro.sample("y", dist.Normal(0.0 * x.T[j], 1.0))


class Shared(Inside):
    """A latent that all data share, outside the plate."""

    def model(self, x):
        pyro.sample("w", dist.Normal(0.0, 1.0))
        super().model(x)

    def guide(self, x):
        pyro.sample("w", dist.Normal(self.b, 0.3))
        super().guide(x)


def row(pair, x, **options):
    return ppvae.fit(pair, x, epochs=1, batch_size=len(x), lr=1e-9, progress=False, **options).history[0]


@pytest.mark.parametrize("kind", [Inside, Shared])
def test_the_elbo_of_data_of_which_a_part_is_taken_is_minus_the_loss(kind):
    found = row(kind(), torch.randn(N))
    assert found["one"] == pytest.approx(1.0)
    assert found["elbo"] == pytest.approx(-(found["loss"] - found["one"]), rel=1e-5)


def test_a_penalty_is_of_all_data_too():
    found = row(Inside(), torch.ones(N), loss=BalancedELBO({}))
    kl = 0.5 * (0.5**2 + 0.7**2 - 1) - math.log(0.7)
    assert found["loss"] == pytest.approx(-found["reconstruction"] + kl + found["one"], rel=1e-5)


def test_a_minibatch_of_a_larger_set_is_counted_once():
    class Minibatch(Inside):
        def model(self, x):
            with pyro.plate("data", 600, subsample_size=len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", 600, subsample_size=len(x)):
                pyro.sample("z", dist.Normal(self.b * x, 0.7))

    found = row(Minibatch(), torch.randn(N))
    assert found["elbo"] == pytest.approx(-found["loss"] / 10, rel=1e-5)


def test_columns_of_a_part_of_the_pixels_are_of_all():
    found = row(Pixels(), torch.ones(6, PIXELS))
    assert found["reconstruction"] == pytest.approx(PIXELS * float(dist.Normal(0.0, 1.0).log_prob(torch.ones(()))))
    assert found["elbo"] == pytest.approx(-found["loss"], rel=1e-5)


def test_so_are_those_of_a_sequential_plate():
    found = row(Pixels(sequential=True), torch.ones(6, PIXELS))
    assert found["reconstruction"] == pytest.approx(PIXELS * float(dist.Normal(0.0, 1.0).log_prob(torch.ones(()))))


class Always(Pixels):
    """Takes a part of the pixels outside of training too."""

    def plate(self):
        return pyro.plate("pixels", PIXELS, subsample_size=self.taken, dim=None if self.sequential else -2)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("estimate", [ppvae.elbo, ppvae.log_marginal])
def test_estimators_refuse_a_part_of_the_pixels(estimate, sequential):
    with pytest.raises(ValueError, match=r"gives 0.2 of its elements.*subsample_size=m if self.training else None"):
        estimate(Always(sequential=sequential), torch.ones(6, PIXELS), num_samples=50)


@pytest.mark.parametrize("sequential", [False, True])
def test_what_they_say_to_write_is_right(sequential):
    exact = PIXELS * float(dist.Normal(0.0, 1.0).log_prob(torch.ones(())))
    found = ppvae.log_marginal(Pixels(sequential=sequential), torch.ones(6, PIXELS), num_samples=50)
    torch.testing.assert_close(found.values.float(), torch.full((6,), exact))


@pytest.mark.parametrize("taken", [3, 10])
def test_estimators_refuse_a_part_of_the_data(taken):
    with pytest.raises(ValueError, match=rf"takes {taken} of the .*data that it is given.*give the pair minibatches"):
        ppvae.log_marginal(Inside(taken), torch.randn(N), num_samples=50)


def test_validation_data_of_which_a_part_is_taken_are_refused_before_training():
    with pytest.raises(ValueError, match="'data' of the model takes 10 of the 60 data that it is given"):
        row(Inside(), torch.randn(N), valid=torch.randn(N))


def test_data_sets_of_which_parts_are_taken_name_their_terms():
    x = torch.randn(N)
    objective = JointELBO(Trace_ELBO(), (1.0, 2.0))
    terms = objective.evaluate(Inside().model, Inside().guide, ((x,), (x,)), {}).terms()
    assert float(terms.columns["one"]) == pytest.approx(3.0 * N)
