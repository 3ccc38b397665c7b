"""Parameters that modules bring along: `pyro.module` of a pair's own and of foreign ones, PyroModules, autoguides."""

import math
import pickle
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

import ppvae
from ppvae.infer import SVI
from tests.reference import PublishedStyleVAE
from tests.test_params import ADAM, X, log_marginal, number, pair_of_params, pyro_svi, train


def test_pyro_module_on_own_modules():
    torch.manual_seed(0)
    pair = PublishedStyleVAE()
    x = torch.bernoulli(torch.full((9, 3, 3), 0.5))
    svi = SVI(pair.model, pair.guide, ADAM, Trace_ELBO())
    before = {k: v.clone() for k, v in pair.state_dict().items()}
    svi.step(x)
    assert set(pair.state_dict()) == set(before)
    assert not any(torch.equal(v, before[k]) for k, v in pair.state_dict().items())
    assert ppvae.log_marginal(pair, x, num_samples=3).values.isfinite().all()
    assert not list(pyro.get_param_store())


def with_foreign_net(**options):
    torch.manual_seed(0)
    net = nn.Linear(1, 1)

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(net(z).squeeze(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.unsqueeze(-1) / 2, 1.0).to_event(1))

    modules = [net] if options.pop("given", False) else []
    return ppvae.Pair(model, guide, modules), net


@pytest.mark.parametrize("given", [False, True])
def test_pyro_module_on_foreign_modules(given, tmp_path):
    pair, net = with_foreign_net(given=given)
    weight = net.weight.item()
    log_marginal(pair)
    assert net.weight.item() == weight
    train(pair)
    assert net.weight.item() != weight
    assert any(p is net.weight for p in pair.parameters())
    assert len(list(pair.parameters())) == 2
    path = ppvae.save(pair, tmp_path / "pair.safetensors")
    fresh, fresh_net = with_foreign_net(given=given)
    ppvae.load(fresh, path)
    assert torch.equal(log_marginal(fresh), log_marginal(pair))
    assert torch.equal(fresh_net.weight, net.weight)


def test_a_file_s_value_is_given_to_a_foreign_module_once(tmp_path):
    pair, _ = with_foreign_net()
    path = ppvae.save(train(pair), tmp_path / "pair.safetensors")
    fresh, net = with_foreign_net()
    ppvae.load(fresh, path)
    log_marginal(fresh)
    with torch.no_grad():
        net.weight.fill_(3.0)
    log_marginal(fresh)
    assert net.weight.item() == 3.0


class Line(PyroModule):
    """A guide with PyroParams, and a plain Parameter."""

    def __init__(self):
        super().__init__()
        self.slope = PyroParam(torch.tensor(0.4))
        self.scale = PyroParam(torch.tensor(0.9), constraint=constraints.positive)
        self.shift = nn.Parameter(torch.tensor(0.1))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x + self.shift, self.scale))


@pytest.mark.parametrize("local", [False, True])
def test_pyro_modules_built_under_either_setting(local, tmp_path):
    with pyro.settings.context(module_local_params=local):
        guides = [Line(), Line()]
    pairs = [ppvae.Pair(pair_of_params().model_function, guide) for guide in guides]
    train(pairs[0])
    assert guides[0].slope.item() != guides[1].slope.item() == pytest.approx(0.4)
    assert guides[0].scale.item() != pytest.approx(0.9)
    assert guides[0].shift.item() != pytest.approx(0.1)
    assert list(pyro.get_param_store()) == ["s"]  # the model's, a plain function's
    path = ppvae.save(pairs[0], tmp_path / "pair.safetensors")
    ppvae.load(pairs[1], path)
    assert torch.equal(log_marginal(pairs[1]), log_marginal(pairs[0]))


def test_an_autoguide_trained_by_pyro_in_the_store():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = AutoNormal(model)
    pair = ppvae.Pair(model, guide)
    pyro_svi(pair)
    with pytest.raises(ValueError, match=r"'data' \(size 7, dim -1\).*a guide with parameters for certain data"):
        log_marginal(pair)


class Stated(PyroModule):
    """A guide whose forward states a `pyro.param`; Pyro runs a module with parameters of its own in a scope."""

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("a", torch.tensor(0.5)) * x, 1.0))


def test_a_pyro_module_may_state_parameters():
    pair = ppvae.Pair(pair_of_params().model_function, Stated())
    train(pair)
    assert number(pair, "a") != 0.5
    assert log_marginal(pair).isfinite().all()


# Behind `poutine.block`, where no handler hears of a statement.


class Hidden(nn.Module):
    """A pair whose `pyro.param` and foreign `pyro.module` an ELBO meets while it guesses how plates nest."""

    def __init__(self):
        super().__init__()
        self.foreign = [nn.Linear(1, 1)]  # in a list, so that it is no module's child

    def model(self, x):
        pyro.module("net", self.foreign[0])
        s = pyro.param("s", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(y + self.foreign[0](x.unsqueeze(-1)).squeeze(-1), s), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})


GUESSING = {
    "enum": (lambda: TraceEnum_ELBO(max_plate_nesting=1), TraceEnum_ELBO),
    "vectorized": tuple(
        partial(TraceEnum_ELBO, num_particles=2, vectorize_particles=True, max_plate_nesting=n)
        for n in (1, float("inf"))
    ),
}


@pytest.mark.parametrize(("given", "guessed"), GUESSING.values(), ids=GUESSING)
def test_a_guessed_plate_nesting_changes_nothing(given, guessed, tmp_path):
    histories, pairs = [], []
    for loss in (given(), guessed()):
        torch.manual_seed(0)
        pairs.append(Hidden())
        histories.append(ppvae.fit(pairs[-1], X, epochs=3, lr=0.1, loss=loss, progress=False).history)
    assert [row["loss"] for row in histories[0]] == [row["loss"] for row in histories[1]]
    assert pairs[0].state_dict().keys() == pairs[1].state_dict().keys() >= {"pyro_params.param:s"}
    assert list(pyro.get_param_store()) == ["s"]  # lent
    fresh = ppvae.load(Hidden(), ppvae.save(pairs[1], tmp_path / "pair.safetensors"))
    loss = SVI(fresh.model, fresh.guide, ADAM, guessed()).evaluate_loss(X)
    assert number(fresh, "s") == number(pairs[1], "s")
    assert torch.equal(fresh.foreign[0].weight, pairs[1].foreign[0].weight)
    assert math.isfinite(loss)
    pickle.dumps(pairs[1].foreign)


class WithAutoguide(nn.Module):
    """A pair whose autoguide runs the model by itself, behind a block, to learn its latents."""

    def __init__(self):
        super().__init__()
        self.q = AutoNormal(self.model)

    def model(self, x):
        s = pyro.param("s", torch.tensor(1.0), constraint=constraints.positive)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, s), obs=x)

    def guide(self, x):
        return self.q(x)


def test_an_autoguide_s_look_at_its_model():
    one, two = train(WithAutoguide()), train(WithAutoguide(), steps=5)
    assert set(one.pyro_params) == {"s"}
    assert number(one, "s") != number(two, "s")
