"""The method that is chosen for each datum: which data go on, what they get, and what the result says of it."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppvae
from ppvae.evaluate import Adaptive, Annealed, Auto, Importance, ParetoWarning
from tests.reference import LinearGaussian, ppca
from tests.sampling.test_enumeration import LinearMixture, data

QUICK = Annealed(8, num_temperatures=20, num_leapfrog=2)


class PartlyWrong(LinearGaussian):
    """The line, whose guide is far too narrow where x > 1."""

    def guide(self, x):
        with pyro.plate("data", len(x)):
            scale = torch.where(x > 1, 0.05, 1.0) * self.log_t.exp()
            pyro.sample("z", dist.Normal(self.a * x + self.b, scale))


def test_data_whose_weights_are_light_stay_with_importance_sampling():
    torch.manual_seed(0)
    pair, x = PartlyWrong(), torch.cat([torch.linspace(-2, 0.9, 20), torch.linspace(1.1, 3, 10)])
    found = ppvae.log_marginal(pair, x, method="auto", num_samples=1000, seed=3)
    importance = ppvae.log_marginal(pair, x[:20], num_samples=1000, seed=3)
    assert found.diagnostics.method.tolist() == 20 * [0] + 10 * [1]
    assert found.diagnostics.num_data() == {"importance": 20, "adaptive": 10}
    assert float((found.values - pair.exact(x)).abs().max()) < 0.2
    assert bool(((found.values - pair.exact(x)).abs() < 4 * found.std_error).all())
    assert bool((found.pareto_k <= 0.7).all())
    assert "method by datum: importance for 20, adaptive for 10" in found.summary()
    assert found.diagnostics.of_datum()["method"].tolist() == 20 * [0] + 10 * [1]
    torch.testing.assert_close(found.values[:20], importance.values, rtol=0, atol=0.2)


class Untamed(LinearGaussian):
    """A posterior with one needle in it, which no proposal of a few broad components covers."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(20), 1.0).to_event(1))
            pyro.sample("x", dist.Normal((z.abs() ** 3).sum(-1) / 20, 0.05), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 20), 0.3).to_event(1))


def test_what_no_proposal_covers_is_annealed():
    torch.manual_seed(0)
    x = 2 + torch.rand(4)
    few = Auto(Importance(200), Adaptive(200), QUICK)
    found = ppvae.log_marginal(Untamed(), x, method=few)
    annealed = found.diagnostics.method == 2
    assert bool(annealed.any())
    assert bool(found.pareto_k[annealed].isnan().all())
    assert list(found.diagnostics.of_stage) == ["importance", "adaptive", "annealed"]
    assert found.diagnostics.figures()["methods"]["annealed"] == int(annealed.sum())


def test_a_pair_without_gradients_stays_and_says_why():
    class Drawn(nn.Module):
        def model(self, x):
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Poisson(torch.tensor(30.0)))
                pyro.sample("x", dist.Normal(y, 2.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Poisson(torch.full((len(x),), 20.0)))

    torch.manual_seed(0)
    x = torch.tensor([30.0, 35.0, 40.0])
    with pytest.warns(ParetoWarning, match="k̂ > 0.7 for"):
        found = ppvae.log_marginal(Drawn(), x, method="auto", num_samples=300)
    assert found.diagnostics.num_data() == {"importance": 3}
    assert found.diagnostics.refused.keys() == {"adaptive", "annealed"}
    assert "adaptive sampling is not for this pair: the latent 'y' is discrete" in found.summary()


def test_latents_that_are_summed_over():
    pair, x = LinearMixture("wrong", inflation=0.3), data()
    found = ppvae.log_marginal(pair, x, method=Auto(Importance(500), Adaptive(), QUICK))
    adaptive = found.diagnostics.method == 1
    error = (found.values - pair.log_joint(x).double().logsumexp(-1).detach()).abs()
    assert bool(adaptive.any())
    assert bool((error < 4 * found.std_error)[adaptive].all())


def test_few_samples_have_no_k_to_choose_by():
    reference = ppca()
    found = ppvae.log_marginal(reference.pair, *reference.data, method="auto", num_samples=10)
    plain = ppvae.log_marginal(reference.pair, *reference.data, num_samples=10)
    assert torch.equal(found.values, plain.values)
    assert "no k̂ to choose by: 10 samples" in found.summary()


def test_options_are_methods():
    assert Auto.from_num_samples(7).importance == Importance(7)
    with pytest.raises(TypeError, match="adaptive must be an Adaptive object, got 3"):
        Auto(adaptive=3)


def test_nothing_goes_on_where_the_guide_is_the_posterior():
    reference = ppca(guide="exact")
    found = ppvae.log_marginal(reference.pair, *reference.data, method="auto")
    assert found.diagnostics.num_data() == {"importance": len(found.values)}
    assert bool((found.pareto_k == -math.inf).all())
    assert found.diagnostics.warning() is None
