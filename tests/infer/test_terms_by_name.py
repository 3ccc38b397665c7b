"""Minibatches need not have the same sites: their terms are joined by name, each over the data that have it."""

from dataclasses import asdict

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppvae
from ppvae.infer.checkpoint import Progress


class Series(nn.Module):
    """A Markov chain z_0, z_1, ... as long as the series of a minibatch, with a term of the loss at each of its times.

    Args:
        first: the time that the chain starts at, from a minibatch.
    """

    def __init__(self, first=lambda x: 0):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(0.4))
        self.first = first

    def times(self, x):
        return pyro.markov(range(self.first(x), self.first(x) + x.shape[1]))

    def model(self, x):
        z = x.new_zeros(len(x))
        with pyro.plate("data", len(x)):
            for i, t in enumerate(self.times(x)):
                z = pyro.sample(f"z_{t}", dist.Normal(self.a * z, 1.0))
                pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, i])
                ppvae.loss_term(f"time_{t}", torch.tensor(t + 1.0) + 0.0 * self.a)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            for i, t in enumerate(self.times(x)):
                pyro.sample(f"z_{t}", dist.Normal(self.b * x[:, i], 0.7))


def series(*shapes):
    return [torch.randn(n, steps) for n, steps in shapes]


def test_series_of_other_lengths_have_the_terms_of_their_own_times():
    run = ppvae.fit(Series(), series((8, 3), (4, 5), (6, 2)), epochs=2, progress=False)
    for row in run.history:
        assert [row[f"time_{t}"] for t in range(5)] == [1.0, 2.0, 3.0, 4.0, 5.0]
        penalties = (8 * (1 + 2 + 3) + 4 * (1 + 2 + 3 + 4 + 5) + 6 * (1 + 2)) / 18
        assert row["elbo"] == pytest.approx(-(row["loss"] - penalties), rel=1e-5)


def test_equally_many_sites_keep_their_names():
    pair = Series(first=lambda x: 0 if len(x) == 8 else 7)
    run = ppvae.fit(pair, series((8, 2), (4, 2)), epochs=1, progress=False)
    assert {name: value for name, value in run.history[0].items() if name.startswith("time")} == {
        "time_0": 1.0,
        "time_1": 2.0,
        "time_7": 8.0,
        "time_8": 9.0,
    }
    assert {name for name in run.history[0] if name.startswith("kl_")} == {"kl_z_0", "kl_z_1", "kl_z_7", "kl_z_8"}


def test_a_mean_is_over_the_data_that_have_the_term():
    progress = Progress()
    progress.add_step(8, {"loss": 16.0, "kl_z": 4.0})
    progress.add_step(2, {"loss": 4.0, "kl_y": 3.0})
    assert progress.means() == {"loss": 2.0, "kl_z": 0.5, "kl_y": 1.5}


def test_a_checkpoint_without_counts_goes_on_as_it_began():
    new = Progress()
    new.add_step(8, {"loss": 16.0, "kl_z": 4.0})
    state = asdict(new)
    del state["counts"]
    assert Progress.of(state, source="file") == new
    assert Progress.of(asdict(Progress()), source="file") == Progress()


def test_validation_series_of_other_lengths_are_scored():
    run = ppvae.fit(Series(), series((8, 3)), series((8, 3), (4, 5)), epochs=1, progress=False)
    assert run.history[0]["valid_elbo"] < 0
