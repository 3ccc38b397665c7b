"""Draws, densities and simulated data of a pair, against the pairs of which they are known."""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppvae
from ppvae.models import PPCA
from ppvae.sampling.latent import Latent
from ppvae.sampling.posterior_draws import posterior_sampler, simulate
from tests.reference import (
    concatenating,
    gamma_poisson,
    hierarchy,
    linear_gaussian,
    masked_series,
    mixture,
    ppca,
    pyro_params,
    wrong_softmax,
)

REFERENCES = [
    linear_gaussian,
    ppca,
    hierarchy,
    mixture,
    gamma_poisson,
    masked_series,
    pyro_params,
    concatenating,
    wrong_softmax,
]


def of_one_sample(latents, i):
    return {name: replace(z, value=z.value[i : i + 1]) for name, z in latents.items()}


@pytest.mark.parametrize("make", REFERENCES)
def test_densities_of_many_samples_are_those_of_each(make):
    reference = make()
    with posterior_sampler(reference.pair, reference.data, seed=1) as c:
        latents, log_q = c.draw(4)
        likelihood, prior = c.log_joint(latents)
        for i in range(4):
            one = of_one_sample(latents, i)
            assert torch.allclose(c.log_joint(one)[0][0], likelihood[i], atol=1e-4)
            for name, value in prior.items():
                assert torch.allclose(c.log_joint(one)[1][name][0], value[i], atol=1e-4)
            for name, value in c.log_posterior(one).items():
                assert torch.allclose(value[0], log_q[name][i], atol=1e-4)
        total = sum(c.log_likelihood(latents).values())
    assert likelihood.shape == (4, len(reference.data[0]))
    assert torch.allclose(total, likelihood, atol=1e-4) or make is mixture  # whose factors are no observation


@pytest.mark.parametrize("make", REFERENCES)
def test_the_weights_of_the_draws_give_the_marginal_likelihood(make):
    reference = make()
    if any(isinstance(module, nn.Module) and hasattr(module, "enumerated") for module in reference.pair.modules()):
        pytest.skip("sums over a latent")
    with posterior_sampler(reference.pair, reference.data, seed=0) as c:
        latents, log_q = c.draw(4000)
        likelihood, prior = c.log_joint(latents)
        log_weight = (likelihood + sum(prior.values()) - sum(log_q.values())).double()
    estimate = log_weight.logsumexp(0) - torch.tensor(4000.0).log()
    error = (log_weight - estimate).exp().std(0) / 4000**0.5
    assert bool(((estimate - reference.log_prob).abs() < 5 * error + 1e-3).all())


def test_blocks_cover_the_data_in_order():
    reference = linear_gaussian()
    with posterior_sampler(reference.pair, reference.data) as c:
        small = replace(c, sampler=replace(c.sampler, rows=8))
        places = [(index, part) for index, part in small.parts(2)]
    assert [index for index, _ in places] == [slice(0, 4), slice(4, 8), slice(8, 11)]
    assert torch.equal(torch.cat([part.data[0] for _, part in places]), reference.data[0])


def test_draws_are_of_the_seed_and_leave_the_global_state_alone():
    reference = linear_gaussian()

    def draw(seed):
        with posterior_sampler(reference.pair, reference.data, seed=seed) as c:
            return c.draw(3)[0]["z"].value

    before = torch.get_rng_state()
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert torch.equal(before, torch.get_rng_state())


def test_the_joint_is_differentiable_in_the_latents():
    reference = linear_gaussian()
    pair, (x,) = reference.pair, reference.data
    with posterior_sampler(pair, reference.data) as c, torch.enable_grad():
        z = torch.randn(3, len(x), requires_grad=True)
        likelihood, prior = c.log_joint({"z": Latent(z, 0, 0)})
        (gradient,) = torch.autograd.grad((likelihood + prior["z"]).sum(), z)
    exact = -z + pair.c * (x - pair.c * z - pair.d) / (2 * pair.log_s).exp()
    assert torch.allclose(gradient, exact.detach(), atol=1e-4)


def test_simulated_data_and_predictions_have_the_moments_of_the_model():
    reference = linear_gaussian()
    pair = reference.pair
    x = torch.zeros(20000)
    with posterior_sampler(pair, (x,), seed=3) as c:
        drawn = simulate(c)
        z, new = drawn.latents["z"].value[0], drawn.data[0]
        again = c.predict({"z": Latent(z.expand(2, -1), 0, 0)})["x"].value
    c_, d, s = (float(v.detach()) for v in (pair.c, pair.d, pair.log_s.exp()))
    assert float(z.mean()) == pytest.approx(0, abs=0.03)
    assert float(z.std()) == pytest.approx(1, abs=0.03)
    assert float(new.mean()) == pytest.approx(d, abs=0.05)
    assert float(new.var()) == pytest.approx(c_**2 + s**2, rel=0.05)
    assert float(torch.cov(torch.stack([z, new]))[0, 1]) == pytest.approx(c_, rel=0.05)
    assert again.shape == (2, 20000)
    assert float((again[1] - c_ * z - d).detach().std()) == pytest.approx(s, rel=0.05)
    assert not torch.equal(again[0], again[1])


@pytest.mark.parametrize("make", [hierarchy, mixture, gamma_poisson, masked_series, ppca])
def test_any_pair_can_be_simulated(make):
    reference = make()
    with posterior_sampler(reference.pair, reference.data) as c:
        drawn = simulate(c)
        assert set(drawn.latents) == set(c.latents)
        for name, z in drawn.latents.items():
            assert z.value.squeeze().shape == c.draw(1)[0][name].value.squeeze().shape
    for old, new in zip(reference.data, drawn.data, strict=True):
        assert old.shape == new.shape
        assert old.dtype == new.dtype
    observed = [not torch.equal(old, new) for old, new in zip(reference.data, drawn.data, strict=True)]
    assert any(observed)


class Copies(nn.Module):
    """Observes a function of its argument."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=2 * x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))


class Autoregressive(Copies):
    """Feeds the data to its likelihood."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            before = torch.cat([torch.zeros(len(x), 1), x[:, :-1]], -1)
            pyro.sample("x", dist.Normal(before + z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.sum(-1), 1.0))


@pytest.mark.parametrize(
    ("pair", "x", "message"),
    [
        (Copies(), torch.randn(7), "'x' takes no argument of the pair as it is"),
        (Autoregressive(), torch.randn(7, 4), "'x' depends on the data that the model is given besides"),
    ],
)
def test_what_cannot_be_simulated_is_an_error(pair, x, message):
    with posterior_sampler(pair, (x,)) as c, pytest.raises(ValueError, match=message):
        simulate(c)


def test_latents_of_the_model_alone_cannot_be_drawn():
    class Sums(Copies):
        def model(self, x):
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.5)), infer={"enumerate": "parallel"})
                z = pyro.sample("z", dist.Normal(y, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"does not sample, \['y'\]"), posterior_sampler(Sums(), (torch.randn(7),)):
        pass


def test_wrong_arguments():
    with pytest.raises(TypeError, match="pair must be"), posterior_sampler(nn.Linear(2, 2), (torch.zeros(3),)):
        pass
    with pytest.raises(ValueError, match="empty"), posterior_sampler(PPCA(4, 2), (torch.zeros(0, 4),)):
        pass
    assert ppvae.Pair  # the contract that the message speaks of
