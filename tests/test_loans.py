"""What training lends to Pyro's store: Pyro's own tools see it, pairs do not."""

from __future__ import annotations

import gc
import pickle
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive, Trace_ELBO
from torch import nn
from torch.distributions import constraints

import ppvae
from ppvae.infer import SVI
from tests.reference import local_params

X = torch.linspace(2.0, 4.0, 9)


class Located(nn.Module):
    """Z ~ N(m, s²), x ~ N(z, 1); guide N(loc, 0.1²)."""

    def __init__(self, start=0.0):
        super().__init__()
        self.start = start

    def model(self, x=None):
        s = pyro.param("s", torch.tensor(1.0), constraint=constraints.positive)
        z = pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.0)), s))
        with pyro.plate("data", len(X if x is None else x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x=None):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(self.start)), 0.1))


def stepper(pair, **options):
    return SVI(pair.model, pair.guide, partial(torch.optim.Adam, lr=0.1), Trace_ELBO(), **options)


def train(pair, steps=5):
    svi = stepper(pair)
    for _ in range(steps):
        svi.step(X)
    return pair


def stored():
    return {name: value.item() for name, value in pyro.get_param_store().items()}


def own(pair):
    return {name: pair.pyro_params[name].item() for name in pair.pyro_params}


def seen_by_pyro(pair):
    return Predictive(pair.model, guide=pair.guide, num_samples=500)()["z"].mean().item()


@pytest.mark.parametrize("compile", [False, True])
def test_pyro_s_tools_see_the_trained_values(compile):
    pair = Located()
    svi = stepper(pair, compile=compile)
    for _ in range(100):
        svi.step(X)
    assert stored() == own(pair)
    assert seen_by_pyro(pair) == pytest.approx(pair.pyro_params["loc"].item(), abs=0.05)
    before = own(pair)
    svi.step(X)
    assert stored() == own(pair) != before


def test_fit_lends_too():
    pair = Located()
    ppvae.fit(pair, X, epochs=2, batch_size=9, lr=0.1, progress=False)
    assert stored() == own(pair)


def test_evaluation_lends_nothing_of_an_untrained_pair():
    ppvae.evaluate.log_evidence(Located(), X, num_samples=5)
    assert not stored()


def test_a_loaded_pair_lends_once_it_has_run(tmp_path):
    path = ppvae.save(train(Located()), tmp_path / "pair.safetensors")
    pyro.clear_param_store()
    pair = ppvae.load(Located(), path)
    ppvae.evaluate.log_evidence(pair, X, num_samples=5)
    assert stored() == own(pair)
    other = ppvae.load(Located(), path)
    ppvae.evaluate.log_evidence(other, X, num_samples=5)
    assert pyro.param("loc").unconstrained() is pair.pyro_params.unconstrained("loc")


def test_pyro_s_svi_trains_the_pair_on():
    pair = train(Located())
    before = own(pair)
    pyro.infer.SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(X)
    assert stored() == own(pair) != before


def test_pairs_of_equal_names_never_share():
    one = train(Located())
    before = own(one)
    two = Located(start=5.0)
    with pytest.warns(UserWarning, match="'(loc|m|s)' is a value of two trained pairs"):
        train(two)
    assert own(one) == before
    assert own(two)["loc"] > 4
    assert stored() == own(two)
    train(one, steps=1)
    assert stored() == own(one) != before


def test_no_warning_once_the_other_pair_is_gone():
    train(Located())
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair = train(Located(start=5.0))
    assert stored() == own(pair)


def test_plain_functions_start_anew_and_keep_what_is_theirs():
    pair = train(Located())
    start = own(pair)
    other = Located(start=7.0)

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    SVI(model, lambda x: other.guide(x), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(X)
    assert stored()["loc"] == pytest.approx(6.9, abs=0.01)  # theirs
    assert (stored()["m"], stored()["s"]) == (start["m"], start["s"])  # still lent
    assert own(pair) == start
    with pytest.raises(ValueError, match="'loc' has one value on the pair and another in Pyro's parameter store"):
        train(pair, steps=1)


def test_clearing_the_store_ends_loans_and_leaves_the_pair():
    pair = train(Located())
    before = own(pair)
    pyro.clear_param_store()
    assert own(pair) == before
    train(pair, steps=1)
    assert stored() == own(pair) != before


def test_a_value_of_the_user_is_shared_and_stays_the_user_s():
    pyro.param("m", torch.tensor(1.5))
    mine = pyro.param("m").unconstrained()
    pair = Located()
    train(pair)
    assert pyro.param("m").unconstrained() is mine
    assert stored() == own(pair)
    other = train(Located())
    assert own(other)["m"] == own(pair)["m"] != 1.5
    assert own(other)["loc"] != own(pair)["loc"] or own(other)["s"] == own(pair)["s"]


def test_training_inside_of_another_pair_s_run_lends_nothing():
    outer, inner = train(Located()), Located(start=5.0)
    before = stored()
    with local_params(outer):
        train(inner)
    assert stored() == before == own(outer)


def test_a_pair_that_pyro_has_looked_at_is_pickled():
    pair = train(Located())
    seen_by_pyro(pair)
    assert own(pickle.loads(pickle.dumps(pair))) == own(pair)
