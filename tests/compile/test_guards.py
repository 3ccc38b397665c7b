"""What a compiled step depends on besides its batch: a change of it is never missed."""

import random
import warnings
from collections import deque
from functools import partial
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

import ppvae
from ppvae.compile import guards
from ppvae.compile.arguments import Arguments
from ppvae.infer import SVI
from tests.compile.compiling import D, K, N, assert_same, binary, make_vae


class Branching(nn.Module):
    """A pair whose Python code looks at a value of its data."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.5))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            mean = z if x.sum() > 0 else 3 * z
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 1.0))


@pytest.mark.usefixtures("with_and_without_inductor")
def test_a_recorded_decision_that_would_change_is_never_a_silent_wrong_gradient():
    positive, negative = torch.ones(N), -torch.ones(N)
    svi = assert_same(Branching, Trace_ELBO, [(positive,), (positive,), (negative,)])
    assert svi._compiled._misses > 0


class Counting(nn.Module):
    """A pair that draws with Python's own generator."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.5))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0 + random.random()), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 1.0))


class Selecting(Counting):
    """A pair with a shape that depends on values."""

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc + torch.unique(x).mean(), 1.0))


class WarmingUp(Counting):
    """A pair that counts its runs, and does otherwise after some."""

    runs = 0

    def model(self, x):
        self.runs += 1
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0 if self.runs < 100 else 0.1), obs=x)


class Recording(WarmingUp):
    """A pair that does so by the length of a list."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def model(self, x):
        self.seen.append(x.detach())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0 if len(self.seen) < 100 else 0.1), obs=x)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Counting, "a state that is no tensor"),
        (Selecting, "depends on values of tensors"),
        (WarmingUp, "the attribute 'runs' of a module changes at every run; make it a buffer"),
        (Recording, "the length of a container of a module changes at every run"),
    ],
)
def test_what_cannot_be_traced_runs_eagerly_after_one_warning(make, reason):
    pair = make()
    svi = SVI(pair.model, pair.guide, partial(torch.optim.Adam, lr=1e-2), Trace_ELBO(), compile=True)
    x = torch.ones(N)
    svi.step(x)
    with pytest.warns(UserWarning, match=reason):
        svi.step(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svi.step(x)


def test_a_changed_attribute_of_a_module_counts():
    def run(compile):
        torch.manual_seed(0)
        pair = make_vae()
        svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=1e-3), Trace_ELBO(), compile=compile)
        torch.manual_seed(1)
        losses = []
        for beta in (1.0, 1.0, 4.0, 4.0, 1.0):
            pair.beta = beta
            losses.append(svi.step(binary()))
        return losses

    assert run(True) == pytest.approx(run(False), rel=1e-5)


@pytest.mark.usefixtures("with_and_without_inductor")
def test_train_and_eval_mode_are_different_graphs():
    torch.manual_seed(0)
    pair = make_vae(norm="batch")
    svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=0.0), Trace_ELBO(), compile=True)
    for _ in range(3):
        svi.step(binary())
    before = {name: value.clone() for name, value in pair.named_buffers()}
    pair.eval()
    svi.step(binary())
    assert all(torch.equal(value, before[name]) for name, value in pair.named_buffers())
    pair.train()
    svi.step(binary())
    assert not all(torch.equal(value, before[name]) for name, value in pair.named_buffers())


class Guarded(nn.Module):
    """A pair whose likelihood depends on everything that Python can hold."""

    def __init__(self):
        super().__init__()
        self.p_x_given_z = nn.Linear(K, D)
        self.q_z_given_x = nn.Linear(D, K)
        self.nothing = None
        self.items = [1.0]
        self.table = {"weight": 1.0}
        self.config = Config()
        self.tensor = torch.tensor(1.0)
        self.activation = torch.sigmoid

    def factor(self):
        return (self.nothing or 1.0) * self.items[0] * self.table["weight"] * self.config.weight * self.tensor

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            mean = self.activation(self.p_x_given_z(z)) * self.factor()
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.q_z_given_x(x), 1.0).to_event(1))


class Config:
    """Options of a user's own."""

    weight = 1.0

    def __init__(self):
        self.weight = 1.0


def replace_weight(pair, svi):
    pair.p_x_given_z.weight = nn.Parameter(2 * pair.p_x_given_z.weight.detach())


CHANGES = {
    "None": lambda pair, svi: setattr(pair, "nothing", 3.0),
    "list item": lambda pair, svi: pair.items.__setitem__(0, 3.0),
    "list": lambda pair, svi: setattr(pair, "items", [3.0]),
    "dict item": lambda pair, svi: pair.table.update(weight=3.0),
    "object": lambda pair, svi: setattr(pair.config, "weight", 3.0),
    "tensor": lambda pair, svi: setattr(pair, "tensor", torch.tensor(3.0)),
    "function": lambda pair, svi: setattr(pair, "activation", torch.tanh),
    "forward hook": lambda pair, svi: pair.p_x_given_z.register_forward_hook(lambda m, i, o: 2 * o),
    "forward": lambda pair, svi: setattr(pair.p_x_given_z, "forward", lambda z: z.repeat(1, D // K)),
    "frozen": lambda pair, svi: pair.p_x_given_z.requires_grad_(False),
    "parameter": replace_weight,
    "objective": lambda pair, svi: setattr(svi, "objective", TraceMeanField_ELBO()),
    "model": lambda pair, svi: setattr(svi, "model", lambda x: pair.model(2 * x)),
    "particles": lambda pair, svi: setattr(svi.objective, "num_particles", 4),
    "state": lambda pair, svi: pair.load_state_dict({k: v + 0.1 for k, v in pair.state_dict().items()}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_between_steps_counts(change):
    results = []
    for compile in (False, True):
        torch.manual_seed(0)
        pair = Guarded()
        svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=1e-3), Trace_ELBO(), compile=compile)
        torch.manual_seed(1)
        losses = [svi.step(binary()) for _ in range(3)]
        before = {name: value.clone() for name, value in pair.state_dict().items()}
        CHANGES[change](pair, svi)
        losses += [svi.step(binary()) for _ in range(3)]
        results.append((losses, pair.state_dict()))
    (eager, state), (compiled, compiled_state) = results
    assert compiled == pytest.approx(eager, rel=1e-5)
    for name, value in state.items():
        torch.testing.assert_close(compiled_state[name], value, rtol=1e-5, atol=1e-6, msg=name)
    if change == "frozen":
        assert torch.equal(before["p_x_given_z.weight"], compiled_state["p_x_given_z.weight"])
    if change == "parameter":
        assert not torch.equal(2 * before["p_x_given_z.weight"], compiled_state["p_x_given_z.weight"])


class Held(Guarded):
    """A pair that reads a number from something that it holds."""

    def __init__(self, held, read):
        super().__init__()
        self.held = held
        self.read = read

    def factor(self):
        return self.read(self.held)


class Slots:
    __slots__ = ("weight",)

    def __init__(self):
        self.weight = 1.0


def in_an_object(value):
    config = Config()
    config.value = value
    return config


def of_a_class():
    return type("Own", (), {"weight": 1.0})()


def swap(table):
    table.update({key: table.pop(key) for key in ("b", "a")} | {"b": 1.0, "a": 3.0})


HELD = {
    "module in a list": (
        lambda: [Linear()],
        lambda h: h[0].weight_of_all,
        lambda h: setattr(h[0], "weight_of_all", 3.0),
    ),
    "module in an object": (
        lambda: in_an_object(Linear()),
        lambda h: h.value.weight_of_all,
        lambda h: setattr(h.value, "weight_of_all", 3.0),
    ),
    "slots": (Slots, lambda h: h.weight, lambda h: setattr(h, "weight", 3.0)),
    "dict in a tuple": (lambda: ({"w": 1.0},), lambda h: h[0]["w"], lambda h: h[0].update(w=3.0)),
    "deque": (lambda: deque([1.0]), lambda h: h[0], lambda h: h.appendleft(3.0)),
    "set": (lambda: {1.0}, sum, lambda h: h.add(3.0)),
    "partial": (lambda: partial(dict, w=1.0), lambda h: h()["w"], lambda h: h.keywords.update(w=3.0)),
    "keys": (lambda: {"a": 1.0, "b": 3.0}, lambda h: h["a"], swap),
    "class": (of_a_class, lambda h: h.weight, lambda h: setattr(type(h), "weight", 3.0)),
}


class Linear(nn.Linear):
    def __init__(self):
        super().__init__(1, 1)
        self.weight_of_all = 1.0


@pytest.mark.parametrize("name", HELD)
def test_a_change_is_seen_wherever_it_lies(name):
    make, read, change = HELD[name]
    pair = Held(make(), read)
    contents, before = guards.Contents([pair]), pair.factor()
    assert contents.changed() is None
    change(pair.held)
    assert pair.factor() != before
    assert contents.changed() is not None


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("deep", [False, True])
def test_a_change_is_seen_in_an_argument(name, deep):
    """Which is looked at alone: an object of the user's, here with what it holds in an attribute, or deeper."""
    make, read, change = HELD[name]
    held = make()
    config = in_an_object(in_an_object({"held": held}) if deep else held)
    before = [Arguments((torch.ones(2), config)).kind() for _ in range(2)]
    assert before[0] == before[1]
    hash(before[0])
    read_before = read(held)
    change(held)
    assert read(held) != read_before
    assert Arguments((torch.ones(2), config)).kind() != before[0]


def test_numbers_of_another_type_and_modules_count_in_an_argument():
    for value in (1, True, 2.0, "1", None):
        config = in_an_object(1.0)
        before = guards.fingerprint(config)
        config.value = value
        assert guards.fingerprint(config) != before
    module = Linear()
    before = Arguments((module,)).kind()
    assert Arguments((module,)).kind() == before
    module.weight_of_all = 3.0
    assert Arguments((module,)).kind() != before


def test_an_argument_may_hold_itself_but_not_more_than_can_be_looked_at(monkeypatch):
    config = Config()
    config.value = [config]
    assert guards.fingerprint(config) == guards.fingerprint(config)
    monkeypatch.setattr(guards, "MAX_OBJECTS", 20)
    with pytest.raises(ValueError, match="more than 20 objects are held by an argument"):
        guards.fingerprint([[i] for i in range(20)])


@pytest.mark.parametrize("name", ["module in a list", "class"])
def test_what_a_module_holds_counts_wherever_it_lies(name):
    make, read, change = HELD[name]
    results = []
    for compile in (False, True):
        torch.manual_seed(0)
        pair = Held(make(), read)
        svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=1e-3), Trace_ELBO(), compile=compile)
        losses = [svi.step(binary()) for _ in range(3)]
        change(pair.held)
        results.append(losses + [svi.step(binary()) for _ in range(2)])
    assert results[1] == pytest.approx(results[0], rel=1e-5)


def test_the_random_state_of_the_device_of_the_parameters_is_put_back(monkeypatch):
    """Also where nothing but the modules' parameters says which it is."""
    seen = []
    monkeypatch.setattr(guards, "get_rng", seen.append)
    monkeypatch.setattr(guards, "set_rng", lambda state, device: None)
    parameter = SimpleNamespace(is_cuda=True, device=torch.device("cuda:1"), grad=None)
    module = SimpleNamespace(buffers=list, parameters=lambda: [parameter])
    with guards.state_unchanged([module], []):
        pass
    assert seen == [torch.device("cuda:1")]


def test_a_condition_around_the_step_counts():
    def run(compile):
        torch.manual_seed(0)
        pair = Guarded()
        svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=1e-3), Trace_ELBO(), compile=compile)
        torch.manual_seed(1)
        losses = []
        for i in range(6):
            x = binary() * (1 if i < 3 else 10)
            with pyro.poutine.condition(data={"x": x}):
                losses.append(svi.step(x))
        return losses

    with pytest.warns(UserWarning, match="what surrounds the computation takes more forms than are compiled"):
        compiled = run(True)
    assert compiled == pytest.approx(run(False), rel=1e-5)


@pytest.mark.usefixtures("with_and_without_inductor")
def test_networks_of_plain_functions_are_guarded_and_restored():
    def run(compile):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(K, D), nn.BatchNorm1d(D), nn.Dropout(0.5))

        def model(x):
            pyro.module("net", net)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(net(z), 1.0).to_event(1), obs=x)

        def guide(x):
            loc = pyro.param("loc", torch.zeros(K))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

        with pyro.get_param_store().scope():
            svi = SVI(model, guide, partial(torch.optim.SGD, lr=1e-3), Trace_ELBO(), compile=compile)
            torch.manual_seed(1)
            losses = [svi.step(binary()) for _ in range(3)]
            net[2].p = 0.0
            losses += [svi.step(binary()) for _ in range(3)]
        return losses, int(net[1].num_batches_tracked)

    (eager, count), (compiled, compiled_count) = run(False), run(True)
    assert compiled == pytest.approx(eager, rel=1e-5)
    assert compiled_count == count == 6


def test_averages_in_pyro_s_store_are_those_of_the_steps_alone():
    """Trial runs move no baseline of TraceGraph_ELBO, which makes the step one that cannot be compiled."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((len(x),), 0.5)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            averaged = {"baseline": {"use_decaying_avg_baseline": True}}
            pyro.sample("z", dist.Bernoulli(logits=slope * x), infer=averaged)

    losses = []
    for compile in (False, True):
        with pyro.get_param_store().scope(), warnings.catch_warnings(action="ignore"):
            pair = ppvae.Pair(model, guide)
            optim = partial(torch.optim.Adam, lr=0.1)
            svi = SVI(pair.model, pair.guide, optim, TraceGraph_ELBO(), compile=compile, owner=pair)
            torch.manual_seed(0)
            x = torch.randn(6)
            losses.append([svi.step(x) for _ in range(6)])
    assert losses[0] == losses[1]
