"""Weights on disk of what no module holds."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.distributions import constraints

import ppvae
from ppvae.infer import SVI
from ppvae.storage import load_state

X = torch.linspace(-1.0, 3.0, 9)


def functions():
    """Z ~ N(m, 1), x ~ N(z + net, s²), the net known to `pyro.module` alone; guide N(ax, 0.7²)."""
    net = nn.Linear(1, 1)

    def model(x):
        pyro.module("net", net)
        s = pyro.param("s", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))
            pyro.sample("x", dist.Normal(z + net(torch.ones(1)).squeeze(), s), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("a", torch.tensor(0.5)) * x, 0.7))

    return model, guide


@pytest.mark.parametrize("svi_class", [pyro.infer.SVI, SVI])
def test_functions_that_svi_has_trained_round_trip(svi_class, tmp_path):
    trained = functions()
    svi = svi_class(*trained, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(5):
        svi.step(X)
    pair = ppvae.Pair(*trained)
    expected = ppvae.log_marginal(pair, X, num_samples=20).values
    path = ppvae.save(pair, tmp_path / "pair.safetensors")
    assert not list(pair.parameters())
    pyro.clear_param_store()
    fresh = ppvae.load(ppvae.Pair(*functions()), path)
    assert torch.equal(ppvae.log_marginal(fresh, X, num_samples=20).values, expected)


def test_what_is_another_pair_s_is_not_written(tmp_path):
    other = ppvae.Pair(*functions())
    svi = SVI(other.model, other.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    svi.step(X)
    assert list(pyro.get_param_store())
    assert not load_state(ppvae.save(ppvae.Pair(*functions()), tmp_path / "untrained.safetensors"))


def test_a_pair_with_values_of_its_own_leaves_the_store_s(tmp_path):
    pyro.param("leftover", torch.tensor(3.0))
    pair = ppvae.Pair(*functions())
    SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(X)
    assert load_state(ppvae.save(pair, tmp_path / "pair.safetensors")).keys() == pair.state_dict().keys()


def test_a_file_of_another_shape(tmp_path):
    trained = functions()
    pyro.param("m", torch.zeros(3))
    path = ppvae.save(ppvae.Pair(*trained), tmp_path / "pair.safetensors")
    pyro.clear_param_store()
    with pytest.raises(ValueError, match=r"pyro.param 'm' of unconstrained shape \(3,\), and the pair starts it with"):
        ppvae.log_marginal(ppvae.load(ppvae.Pair(*trained), path), X, num_samples=5)
