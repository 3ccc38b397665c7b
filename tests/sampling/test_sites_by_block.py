"""Pairs whose number of latents is that of the longest series they are given: each block of data has its own."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

import ppvae
from ppvae.evaluate import Annealed, inference_gap, latent_report, num_observed, posterior_predictive, run_sbc
from ppvae.sampling import sampler

LENGTHS = torch.arange(1, 10)
X = torch.randn(9, 9, generator=torch.Generator().manual_seed(0))
EXACT = torch.stack([dist.Normal(0.0, 2**0.5).log_prob(x[:length]).sum() for x, length in zip(X, LENGTHS, strict=True)])


class Series(nn.Module):
    """z_t ~ N(0, 1), x_t ~ N(z_t, 1), as far as the longest series of the minibatch goes; the guide is nearly exact."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.45))

    def model(self, x, lengths):
        with pyro.plate("data", len(x)):
            for t in range(int(lengths.max())):
                with poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z_{t}", dist.Normal(0.0, 1.0))
                    pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])

    def guide(self, x, lengths):
        with pyro.plate("data", len(x)):
            for t in range(int(lengths.max())):
                with poutine.mask(mask=t < lengths):
                    pyro.sample(f"z_{t}", dist.Normal(self.slope * x[:, t], 0.5**0.5))


@pytest.fixture(params=[1, -1], ids=["rising", "falling"])
def data(request):
    order = torch.arange(9) if request.param == 1 else torch.arange(8, -1, -1)
    return X[order], LENGTHS[order], EXACT[order]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setitem(sampler.ROW_BLOCK, "cpu", 600)  # two data with 300 samples each


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, pytest.param({"compile": True}, marks=pytest.mark.slow)])
def test_likelihoods_of_series_of_many_lengths(data, small_blocks, options):
    x, lengths, exact = data
    estimate = ppvae.log_marginal(Series(), x, lengths, num_samples=300, **options)
    torch.testing.assert_close(estimate.values.float(), exact, rtol=0, atol=0.1)
    elbo = ppvae.elbo(Series(), x, lengths, num_samples=300, **options)
    torch.testing.assert_close(elbo.values.float(), exact - 0.05, rtol=0, atol=0.15)
    torch.testing.assert_close(elbo.values, elbo.reconstruction - sum(elbo.kl.values()), rtol=0, atol=1e-4)
    assert set(elbo.kl) == {f"z_{t}" for t in range(9)}
    assert bool((elbo.kl["z_8"] != 0).eq(lengths == 9).all())


LOOKS_AT_LATENTS = {
    "annealed": lambda *data: (
        ppvae.log_marginal(Series(), *data, method=Annealed(num_chains=8, num_temperatures=20)).values
    ),
    "from the prior": lambda *data: (
        ppvae.log_marginal(Series(), *data, method=Annealed(num_chains=8, num_temperatures=20, start="prior")).values
    ),
    "report": lambda *data: latent_report(Series(), *data).kl,
    "predictive": lambda *data: posterior_predictive(Series(), *data, num_samples=3).predictive,
    "gap": lambda *data: inference_gap(Series(), *data, num_samples=20, num_steps=3).elbo,
    "sbc": lambda *data: run_sbc(Series(), *data, num_samples=4),
}


@pytest.mark.parametrize("name", LOOKS_AT_LATENTS)
def test_what_looks_at_the_latents_needs_the_same_for_all_data(name):
    with pytest.raises(ValueError, match=r"the model has the sites \['x_5', .*'z_8'\] for some of the data"):
        LOOKS_AT_LATENTS[name](X, LENGTHS)


def test_where_they_are_the_same_they_are_looked_at():
    found = LOOKS_AT_LATENTS["annealed"](X.flip(0), LENGTHS.flip(0))  # the first are the longest, and all go at once
    torch.testing.assert_close(found.float(), EXACT.flip(0), rtol=0, atol=0.1)


def test_elements_are_counted_by_their_masks(data):
    x, lengths, _ = data
    assert num_observed(Series(), (x, lengths), ()) == lengths.float().mean()
