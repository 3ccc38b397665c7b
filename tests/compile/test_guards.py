"""What a compiled step depends on besides its batch: a change of it is never missed."""

import random
import warnings
from collections import deque
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

import ppvae
from ppvae.compile import guards
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


@pytest.mark.parametrize(
    ("make", "reason"), [(Counting, "a state that is no tensor"), (Selecting, "depends on values of tensors")]
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


class Regression(nn.Module):
    """P(y|x), of two arguments."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 2), nn.Linear(2, 4)
        self.count = torch.zeros(())

    def scale(self, x):
        return 1.0

    def model(self, x, y):
        self.count.add_(1.0)
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=self.scale(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=y)

    def guide(self, x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))

    def svi(self, compile):
        return SVI(self.model, self.guide, partial(torch.optim.Adam, lr=1e-3), Trace_ELBO(), compile=compile)


def losses_of(make, batches, compile):
    torch.manual_seed(0)
    pair = make()
    svi = pair.svi(compile)
    torch.manual_seed(1)
    return [svi.step(*batch) for batch in batches], pair


A, B = torch.linspace(-1, 1, 32).view(8, 4), torch.linspace(-10, 12, 32).view(8, 4)


def test_one_tensor_for_two_arguments_is_not_taken_for_one_argument():
    batches = [(A, A)] * 3 + [(A, B)] * 2
    compiled, eager = losses_of(Regression, batches, True), losses_of(Regression, batches, False)
    assert compiled[0] == pytest.approx(eager[0], rel=1e-5)


def test_a_tensor_of_the_pair_that_is_also_a_batch_stays_its_own():
    class Anchored(Regression):
        def __init__(self):
            super().__init__()
            self.anchor = A

        def scale(self, x):
            return self.anchor.square().sum()

    batches = [(A, A)] * 3 + [(B, B)] * 2
    assert losses_of(Anchored, batches, True)[0] == pytest.approx(losses_of(Anchored, batches, False)[0], rel=1e-5)


READERS = {
    "tolist": lambda x: x.abs().mean(1).tolist()[0],
    "numpy": lambda x: float(x.abs().mean(1).numpy()[0]),
    "asarray": lambda x: float(np.asarray(x.abs().mean(1))[0]),
    "tensor_split": lambda x: len(torch.tensor_split(x, x[:1, 0].abs().long().cpu())[0]) + 1.0,
}


@pytest.mark.parametrize("name", READERS)
def test_a_tensor_that_is_read_as_a_whole_is_no_constant(name):
    class Reading(Regression):
        def scale(self, x):
            return READERS[name](x)

    batches = [(A, A)] * 3 + [(B, B)] * 4
    whole = name in ("numpy", "asarray")
    with pytest.warns(UserWarning, match="not compiled, runs eagerly") if whole else nullcontext():
        compiled, _ = losses_of(Reading, batches, True)
    assert compiled == pytest.approx(losses_of(Reading, batches, False)[0], rel=1e-5)


def test_a_tensor_that_is_no_buffer_is_written_as_often_as_in_eager_steps():
    counts = [losses_of(Regression, [(A, A)] * 5, compile)[1].count.item() for compile in (False, True)]
    assert counts == [5.0, 5.0]


def test_an_objective_at_the_address_of_an_old_one_is_a_new_one():
    def scaled(factor):
        return lambda model, guide, *args: factor * Trace_ELBO().differentiable_loss(model, guide, *args)

    pair = Regression()
    svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=0.0), scaled(1.0), compile=True)
    for factor in (1.0, 1.0, 10.0, 100.0, 1000.0):  # the addresses of functions without a name are used again at once
        svi.objective = scaled(factor)
        torch.manual_seed(1)
        loss = svi.step(A, A)
        torch.manual_seed(1)
        assert loss == pytest.approx(factor * Trace_ELBO().loss(pair.model, pair.guide, A, A), rel=1e-5)


def test_an_object_among_the_arguments_counts_with_its_attributes():
    class Configured(Regression):
        def model(self, x, y, config):
            with pyro.poutine.scale(scale=config.weight):
                super().model(x, y)

        def guide(self, x, y, config):
            super().guide(x, y)

    results = []
    for compile in (False, True):
        torch.manual_seed(0)
        config, svi = Config(), Configured().svi(compile)
        losses = [svi.step(A, A, config) for _ in range(3)]
        config.weight = 3.0
        results.append([*losses, svi.step(A, A, config)])
    assert results[1] == pytest.approx(results[0], rel=1e-5)


def test_a_batch_that_the_pair_fails_on_leaves_the_graphs_alone():
    svi = Regression().svi(compile=True)
    for _ in range(3):
        svi.step(A, A)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        svi.step(torch.zeros(8, 5), A)
    svi.step(A, A)
    assert svi._compiled.num_graphs == 1


def test_a_step_without_tensors_is_compiled():
    class Closed(Regression):
        def model(self):
            super().model(A, B)

        def guide(self):
            super().guide(A, B)

    assert losses_of(Closed, [()] * 4, True)[0] == pytest.approx(losses_of(Closed, [()] * 4, False)[0], rel=1e-5)


def test_a_network_that_first_runs_for_a_second_kind_of_batch_is_guarded():
    def run(compile):
        torch.manual_seed(0)
        encoder, decoder, extra = nn.Linear(4, 2), nn.Linear(2, 4), nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.9))

        def model(x, y=None):
            pyro.module("decoder", decoder)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

        def guide(x, y=None):
            pyro.module("encoder", encoder)
            pyro.module("extra", extra)
            loc = encoder(x) if y is None else 20 * extra(y)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

        with pyro.get_param_store().scope():
            svi = SVI(model, guide, partial(torch.optim.SGD, lr=0.0), Trace_ELBO(), compile=compile)
            losses = [svi.step(*batch) for batch in ((A,), (A,), (A, B), (A, B))]
            extra.eval()
            return [*losses, svi.step(A, B)]

    assert run(True) == pytest.approx(run(False), rel=1e-5)


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
