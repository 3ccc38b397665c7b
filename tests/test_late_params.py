"""A file gives its values to what a fresh pair makes only at its first run."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import autoguide
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

import ppvae
from ppvae.infer import SVI

X = torch.linspace(-1, 2, 6)


def shared(x):
    """A latent location and scale of all data."""
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc.sum(-1), scale), obs=x)


def parts(model):
    guide = autoguide.AutoGuideList(model)
    guide.append(autoguide.AutoNormal(pyro.poutine.block(model, expose=["loc"])))
    guide.append(autoguide.AutoDelta(pyro.poutine.block(model, expose=["scale"])))
    return guide


AUTOGUIDES = [
    autoguide.AutoDelta,
    autoguide.AutoDiagonalNormal,
    autoguide.AutoIAFNormal,
    autoguide.AutoLowRankMultivariateNormal,
    autoguide.AutoMultivariateNormal,
    autoguide.AutoNormal,
    autoguide.AutoStructured,
    parts,
]


class Lazy(PyroModule):
    """Makes a net of another module's, a positive parameter of its own and a buffer as the guide first runs."""

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(()))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.offset, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        if not hasattr(self, "net"):
            self.net = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))
            self.inside = PyroModule()
            self.inside.scale = PyroParam(torch.tensor(0.7), constraints.positive)
            self.register_buffer("shift", torch.randn(()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.net(x[:, None])[:, 0] + self.shift, self.inside.scale))


class TorchLazy(nn.Module):
    """A layer of torch that learns its sizes from its data."""

    def __init__(self):
        super().__init__()
        self.net = nn.LazyLinear(1)

    model = Lazy.model
    offset = 0.0

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.net(x[:, None])[:, 0], 1.0))


MAKES = [*(lambda guide=guide: ppvae.Pair(shared, guide(shared)) for guide in AUTOGUIDES), Lazy, TorchLazy]
IDS = [*(guide.__name__ for guide in AUTOGUIDES), "Lazy", "TorchLazy"]


def run_by_pyro(pair):
    pyro.clear_param_store()
    pair.guide(X)


def step(pair):
    pair.zero_grad()
    SVI(pair.model, pair.guide, lambda parameters: torch.optim.SGD(parameters, lr=0.0), pyro.infer.Trace_ELBO()).step(X)


def assert_same(pair, trained):
    torch.testing.assert_close(dict(pair.state_dict()), dict(trained.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("run", [run_by_pyro, step])
@pytest.mark.parametrize("make", MAKES, ids=IDS)
def test_what_is_made_has_the_value_of_the_file(make, run, tmp_path):
    trained = make()
    ppvae.fit(trained, X, epochs=2, lr=0.05, progress=False)
    pair = ppvae.load(make(), ppvae.save(trained, tmp_path / "pair.safetensors"))
    again = ppvae.load(make(), ppvae.save(pair, tmp_path / "before it ran.safetensors"))
    for loaded in (pair, again):
        for _ in range(2):
            run(loaded)
            assert_same(loaded, trained)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_what_waits_is_copied_with_its_pair(copied, tmp_path):
    trained = Lazy()
    step(trained)
    pair = ppvae.load(Lazy(), ppvae.save(trained, tmp_path / "pair.safetensors"))
    other = copied(pair)
    for loaded in (pair, other):
        run_by_pyro(loaded)
        assert_same(loaded, trained)


def test_estimates_of_a_loaded_pair_are_those_of_the_saved_one(tmp_path):
    trained = Lazy()
    ppvae.fit(trained, X, epochs=2, lr=0.05, progress=False)
    pair = ppvae.load(Lazy(), ppvae.save(trained, tmp_path / "pair.safetensors"))
    torch.testing.assert_close(ppvae.log_marginal(pair, X).values, ppvae.log_marginal(trained, X).values)


class Fewer(Lazy):
    """It makes no net."""

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x, 1.0))


def test_a_file_of_another_pair_is_not_taken_silently(tmp_path):
    trained = Lazy()
    step(trained)
    file = ppvae.save(trained, tmp_path / "pair.safetensors")
    with pytest.warns(UserWarning, match=r"holds \[.*'net.0.weight', .*nothing of that name when it ran"):
        ppvae.elbo(ppvae.load(Fewer(), file), X)
    with pytest.warns(UserWarning, match=r"holds \[.*'net.0.weight', .*nothing of that name when it ran"):
        ppvae.fit(ppvae.load(Fewer(), file), X, epochs=1, progress=False)
    with pytest.raises(ValueError, match="unexpected net"):
        ppvae.load(TorchLazy(), file)
    ran = ppvae.Pair(shared, autoguide.AutoNormal(shared))
    ran.guide(X)
    state = ppvae.save(ran, tmp_path / "more.safetensors")
    other = ppvae.Pair(shared, autoguide.AutoDiagonalNormal(shared))
    other.guide(X)
    with pytest.raises(ValueError, match=r"unexpected guide_function\.locs\.loc"):
        ppvae.load(other, state)


def test_a_guide_of_certain_data_says_that_it_needs_as_many(tmp_path):
    def local(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    trained = ppvae.Pair(local, autoguide.AutoNormal(local))
    step(trained)
    file = ppvae.save(trained, tmp_path / "pair.safetensors")
    with pytest.raises(
        ValueError, match=r"'z_unconstrained' of shape \(6,\), and the pair makes it of shape \(2,\): a guide with"
    ):
        ppvae.load(ppvae.Pair(local, autoguide.AutoNormal(local)), file).guide(X[:2])
