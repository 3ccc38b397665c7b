"""Training of pairs of every kind: parameters in all the ways that Pyro has, autoguides, functions, frozen parts."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import nn

import ppvae
from ppvae.objectives import Cosine
from tests.infer.pairs import Published, Store, TwoLatents, binary, same, small_vae, state
from tests.infer.test_fit import fit, normal


class Modular(PyroModule):
    """Parameters in every way that PyroModules have."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.1))
        self.scale = PyroParam(torch.tensor(0.5), constraint=dist.constraints.positive)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = PyroModule[nn.Linear](1, 1)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.net(z[..., None])[..., 0], self.scale), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x, 0.5))


@pytest.mark.parametrize(
    ("make", "x"), [(Published, binary()), (Store, normal(50)), (Modular, normal(50)), (TwoLatents, binary())]
)
def test_every_way_to_declare_parameters(tmp_path, make, x):
    pair, twin, third = make(), make(), make()
    start = state(pair)
    fit(pair, x, epochs=2, lr=0.01, out=tmp_path / "run")
    assert not any(torch.equal(value, start[name]) for name, value in pair.state_dict().items() if name in start)
    fit(twin, x, epochs=2, lr=0.01)
    assert same(state(pair), state(twin))  # two of equal names do not meet
    assert same(start, state(third))
    fresh = ppvae.load(make(), tmp_path / "run")
    values = [ppvae.log_marginal(p, x, num_samples=7).values for p in (pair, twin, fresh)]
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])
    lent = pyro.get_param_store().get_state()["params"]
    assert all(value is twin.pyro_params.unconstrained(name) for name, value in lent.items())


def test_an_autoguide(tmp_path):
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    x = 3.0 + normal(100)
    pairs = [ppvae.Pair(model, AutoNormal(model)) for _ in range(3)]
    for pair in pairs[:2]:
        fit(pair, [x] * 10, epochs=20, lr=Cosine(20, start=0.1), out=None if pair is pairs[1] else tmp_path / "run")
    exact = (x.sum() / (100 + 0.01)).item()
    assert pairs[0].guide_function.median()["loc"].item() == pytest.approx(exact, abs=0.02)
    assert same(state(pairs[0]), state(pairs[1]))
    assert not list(pyro.get_param_store().keys())
    ppvae.load(pairs[2], tmp_path / "run")
    fit(pairs[2], [x], epochs=1, lr=0.0)
    assert torch.equal(pairs[2].guide_function.median()["loc"], pairs[0].guide_function.median()["loc"])


def test_a_name_that_the_users_store_holds_is_shared_in_place():
    mine = pyro.param("shift", torch.tensor(1.0))
    pair, x = Store(), 5.0 + normal(50)
    with pytest.warns(UserWarning, match="'shift' is in Pyro's parameter store"):
        fit(pair, x, epochs=2, lr=0.1)
    assert set(pyro.get_param_store()) == {"shift", "slope", "scale"}  # two of them lent
    assert pyro.param("shift").item() == mine.item() == pair.pyro_params["shift"].item() > 1.0


def test_a_frozen_part_stays_and_a_trained_part_moves():
    pair = small_vae()
    pair.p_x_given_z.requires_grad_(False)
    before = state(pair)
    fit(pair, binary(), epochs=1, optim=partial(torch.optim.AdamW, weight_decay=0.5))
    moved = {name for name, value in pair.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith("q_z_given_x")}


def test_a_network_with_buffers_outside_the_pair_is_refused():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(net(z), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(2)), 1.0).to_event(1))

    x = torch.randn(10, 3)
    with pytest.raises(ValueError, match="BatchNorm1d with buffers that does not belong to it"):
        ppvae.fit(ppvae.Pair(model, guide), x, epochs=1, progress=False)
    ppvae.fit(ppvae.Pair(model, guide, modules=[net]), x, epochs=1, progress=False)


def test_a_guide_that_is_no_bound_method_is_trained_on_the_pair(tmp_path):
    class Static(nn.Module):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        @staticmethod
        def guide(x):
            scale = pyro.param("scale", torch.tensor(0.1), constraint=dist.constraints.positive)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x * pyro.param("slope", torch.tensor(0.0)), scale))

    x = torch.randn(40) * 2**0.5
    run = fit(Static(), x, x, epochs=60, lr=0.05, out=tmp_path / "run")
    pair = ppvae.load(Static(), run.folder)
    ppvae.elbo(pair, x)
    assert pair.pyro_params["slope"].item() == pytest.approx(0.5, abs=0.1)  # the exact posterior's
    assert pair.pyro_params["scale"].item() == pytest.approx(0.5**0.5, abs=0.1)
    assert len(fit(Static(), x, x, epochs=61, lr=0.05, out=tmp_path / "run", resume=True).history) == 61
