"""Evaluation by two and three processes: bit for bit what one gives."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppvae
from ppvae import processes
from ppvae.evaluate import Annealed, bidirectional, compare_with_nuts, inference_gap, posterior_predictive, run_sbc
from tests.group import values
from tests.infer.pairs import D, binary, small_vae

N = 150
"""Data in four blocks of 41 or fewer."""


class TwoClasses(nn.Module):
    """A class that is summed over, a latent, data; the density of data of some value is infinite."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.tensor([0.3, -0.2]))

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.p))
            z = pyro.sample("z", dist.Normal(y.to(x.dtype), 1.0))
            pyro.factor("f", torch.where(x[..., 0] > 5, torch.inf, 0.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([*z.shape, D]).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=x[..., :2]), infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal(x.mean(-1), 1.0))


def estimates(compile):
    found = []
    for pair in (small_vae(), TwoClasses()):
        x = binary(N)
        lm = ppvae.log_marginal(pair, x, num_samples=200, compile=compile)
        bound = ppvae.elbo(pair, x, num_samples=200, compile=compile)
        found += [lm.values, lm.ess, lm.pareto_k, lm.std_error, bound.values, *bound.kl.values()]
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_bit_for_bit_what_one_gives(group, world):
    expected = estimates(False)
    for found in values(group(world, estimates, False)):
        assert all(map(torch.equal, expected, found))


def test_compiled_but_for_rounding(group):
    expected = estimates(True)
    first, second = values(group(2, estimates, True))
    assert all(map(torch.equal, first, second))
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True) for a, b in zip(expected, first, strict=True))


def others():
    """Each in several blocks; predictive draws are everybody's own."""
    pair, x = small_vae(), binary(20)
    ranks = run_sbc(pair, x, num_simulations=200, num_samples=99)
    gap = inference_gap(pair, x[:3], num_samples=8, num_particles=4000, num_steps=3)
    chains = Annealed(num_chains=4, num_temperatures=5)
    annealed = ppvae.log_marginal(pair, x, method=chains, batch_size=7, compile=False)
    both = bidirectional(pair, x, method=chains, batch_size=7, compile=False)
    nuts = compare_with_nuts(pair, x[:2], num_samples=8, warmup=2, num_chains=2)
    drawn = posterior_predictive(pair, x, num_samples=3)
    found = [*ranks.ranks.values(), gap.log_marginal, gap.best_elbo, annealed.values, annealed.std_error]
    found += [both.lower.values, both.upper.values, both.data[0], *nuts.nuts.values(), *nuts.guide.values()]
    return [*found, *drawn.predictive.values()]


@pytest.mark.parametrize("world", [2, 3])
def test_other_evaluations_too(group, world):
    expected = others()
    for found in values(group(world, others)):
        assert [i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if not torch.equal(a, b)] == []


def infinite():
    x = binary(N)
    x[100] = 9.0
    ppvae.log_marginal(TwoClasses(), x, num_samples=200)


def test_an_error_in_one_block_is_everybodys(group):
    with pytest.raises(ValueError, match="datum 100") as own:
        infinite()
    for error in group(2, infinite):
        assert type(error) is ValueError
        assert str(error) == str(own.value)


def other(what):
    pair = small_vae(processes.rank() if what == "pair" else 0)
    x = binary(N, seed=processes.rank() if what == "data" else 0)
    seed = processes.rank() if what == "seed" else 0
    if what == "alone":
        pair = small_vae(processes.rank())
        with processes.alone():
            return ppvae.elbo(pair, x, num_samples=200).values
    return ppvae.elbo(pair, x, num_samples=200, seed=seed)


@pytest.mark.parametrize(
    ("what", "says"),
    [("pair", "the pair that is evaluated"), ("data", "the data that it is"), ("seed", "how it is evaluated")],
)
def test_another_pair_or_data_are_refused(group, what, says):
    for error in group(2, other, what):
        assert isinstance(error, ValueError)
        assert says in str(error)
        assert "processes.alone()" in str(error)


def test_one_alone(group):
    first, second = values(group(2, other, "alone"))
    assert not torch.equal(first, second)
    assert torch.equal(first, ppvae.elbo(small_vae(), binary(N), num_samples=200).values)
