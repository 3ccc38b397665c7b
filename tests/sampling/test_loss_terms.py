"""Terms of the loss alone: draws, their densities and the form of a pair are the same with and without them."""

import pyro
import pytest
import torch
from torch import nn

import ppvae
from ppvae.sampling import importance_draws, posterior_sampler, simulate
from ppvae.sampling.eval_mode import evaluating
from ppvae.sampling.sampler import PROBE_DATA, choose_sampler
from tests.reference import REFERENCES, LinearGaussian, linear_gaussian


class Terms(nn.Module):
    """Any pair with a term of each datum, and one of the whole batch, in its model or its guide."""

    def __init__(self, pair: nn.Module, where: tuple[str, ...]) -> None:
        super().__init__()
        self.pair, self.where = pair, where

    def add(self, which, data):
        if which in self.where:
            ppvae.loss_term(f"{which}_of_the_batch", torch.tensor(1e3))
            with pyro.plate("terms", len(data[0])):
                ppvae.loss_term(f"{which}_of_each", 1e3 * data[0].reshape(len(data[0]), -1).sum(-1))

    def model(self, *data):
        self.add("model", data)
        self.pair.model(*data)

    def guide(self, *data):
        self.pair.guide(*data)
        self.add("guide", data)


WHERE = [("model",), ("guide",), ("model", "guide")]


@pytest.mark.parametrize("where", WHERE, ids="+".join)
@pytest.mark.parametrize("name", REFERENCES)
def test_importance_draws_are_blind_to_them(name, where):
    reference = REFERENCES[name]()
    pair = Terms(reference.pair, where)
    for plain, other in zip(
        importance_draws(reference.pair, reference.data, num_samples=20),
        importance_draws(pair, reference.data, num_samples=20),
        strict=True,
    ):
        assert other.log_prior.keys() == plain.log_prior.keys()
        assert other.log_posterior.keys() == plain.log_posterior.keys()
        assert torch.equal(other.terms(), plain.terms())


@pytest.mark.parametrize("where", WHERE, ids="+".join)
@pytest.mark.parametrize("name", ["linear_gaussian", "concatenating", "wrong_softmax", "masked_series"])
def test_the_form_and_the_sites_of_a_pair_are_those_without_them(name, where):
    reference = REFERENCES[name]()
    pair, data = Terms(reference.pair, where), reference.data
    with evaluating(pair, seed=0):
        few = tuple(t[:PROBE_DATA] for t in data)
        assert (choose_sampler(pair, few, 100).plate_dim is not None) == reference.broadcasts
    with posterior_sampler(reference.pair, data) as plain, posterior_sampler(pair, data) as posterior:
        assert (posterior.latents, posterior.observed) == (plain.latents, plain.observed)


def test_simulated_data_are_those_without_them():
    reference = linear_gaussian()
    drawn = []
    for pair in (reference.pair, Terms(reference.pair, ("model", "guide"))):
        with posterior_sampler(pair, reference.data, seed=3) as template:
            drawn.append(simulate(template))
    plain, other = drawn
    assert other.latents.keys() == plain.latents.keys()
    assert torch.equal(other.latents["z"].value, plain.latents["z"].value)
    assert torch.equal(other.data[0], plain.data[0])


@pytest.mark.parametrize("given", ["model_of_each", "model_of_the_batch"])
def test_a_term_is_no_site_to_condition_on(given):
    reference = linear_gaussian()
    pair = Terms(reference.pair, ("model",))
    with pytest.raises(ValueError, match=rf"given names '{given}', which the model does not observe: .*\['x'\]"):
        list(importance_draws(pair, reference.data, num_samples=3, given=[given]))


def test_a_pair_that_observes_terms_alone_observes_nothing():
    class Nothing(LinearGaussian):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
                ppvae.loss_term("term", z)

    with pytest.raises(ValueError, match="the model observes nothing"):
        list(importance_draws(Nothing(), linear_gaussian().data, num_samples=3))


def test_the_term_knows_which_of_the_two_runs():
    """Its sign, as an ELBO will add log p and subtract log q."""
    found = {}

    class Noted(Terms):
        def add(self, which, data):
            super().add(which, data)
            with pyro.poutine.trace() as tracer:
                ppvae.loss_term("sign", torch.tensor(2.0))
            found[which] = float(tracer.trace.nodes["sign"]["fn"].log_factor)

    reference = linear_gaussian()
    list(importance_draws(Noted(reference.pair, ("model", "guide")), reference.data, num_samples=3))
    assert found == {"model": -2.0, "guide": 2.0}
