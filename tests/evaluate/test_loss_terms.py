"""Terms of the loss alone: every estimate and check of a pair is the same with and without them."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppvae
from ppvae.evaluate import (
    Annealed,
    compare_with_nuts,
    inference_gap,
    latent_report,
    posterior_predictive,
    ppc,
    run_sbc,
)
from tests.reference import LinearGaussian, linear_gaussian

WHERE = [("model",), ("guide",), ("model", "guide")]


class Terms(LinearGaussian):
    """The line through one latent with terms that depend on its latent and on the data, in the plate and outside."""

    def __init__(self, where: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.where = where

    def terms(self, which, x, z):
        if which in self.where:
            ppvae.loss_term(f"commitment_of_{which}", 100 * (z - x) ** 2)

    def model(self, x):
        if "model" in self.where:
            ppvae.loss_term("decay", 100 * self.c**2)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.c), 1.0))
            self.terms("model", x, z)
            pyro.sample("x", dist.Normal(self.c * z + self.d, self.log_s.exp()), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.a * x + self.b, self.log_t.exp()))
            self.terms("guide", x, z)


def flattened(result):
    """Every tensor and number of a result, by its place."""
    if isinstance(result, dict):
        return {f"{key}.{name}": v for key, value in result.items() for name, v in flattened(value).items()}
    if hasattr(result, "__dict__"):
        return flattened(vars(result))
    return {"": result}


ESTIMATES = {
    "elbo": lambda pair, x: ppvae.elbo(pair, x, num_samples=50),
    "log_marginal": lambda pair, x: ppvae.log_marginal(pair, x, num_samples=300),
    "annealed": lambda pair, x: ppvae.log_marginal(pair, x, method=Annealed(num_chains=3, num_temperatures=5)),
    "run_sbc": lambda pair, x: run_sbc(pair, x, num_simulations=30, num_samples=19),
    "posterior_predictive": lambda pair, x: posterior_predictive(pair, x, num_samples=7),
    "ppc": lambda pair, x: ppc(pair, x, statistics={"mean": torch.mean}, num_samples=7),
    "inference_gap": lambda pair, x: inference_gap(pair, x, num_samples=50, num_steps=60),
    "latent_report": lambda pair, x: latent_report(pair, x),
    "nuts": lambda pair, x: compare_with_nuts(pair, x[:2], num_samples=8, warmup=8),
}


@pytest.mark.parametrize("where", WHERE, ids="+".join)
@pytest.mark.parametrize("name", ESTIMATES)
def test_estimates_and_checks_are_blind_to_them(name, where):
    (x,) = linear_gaussian().data
    plain, other = (flattened(ESTIMATES[name](pair, x)) for pair in (Terms(), Terms(where)))
    assert other.keys() == plain.keys()
    for key, value in plain.items():
        same = torch.equal(other[key], value) if isinstance(value, torch.Tensor) else other[key] == value
        assert same, key


@pytest.mark.parametrize("where", WHERE, ids="+".join)
def test_log_p_is_that_of_the_model(where):
    (x,) = linear_gaussian().data
    pair = Terms(where)
    estimate = ppvae.log_marginal(pair, x, num_samples=5000)
    assert ((estimate.values - pair.exact(x)) / estimate.std_error).abs().max() < 5
    assert estimate.num_dims == 1


def test_compiled_estimates_are_blind_to_them_too(monkeypatch):
    monkeypatch.setattr("torch._inductor.compile", lambda graph, *_: graph)
    (x,) = linear_gaussian().data
    plain, other = (
        ppvae.log_marginal(pair, x, num_samples=600, compile=True).values for pair in (Terms(), Terms(WHERE[-1]))
    )
    assert torch.equal(plain, other)
