"""Whose parameters a step trains: those of modules, of Pyro's store, of autoguides and of PyroModules."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

from ppvae import SVI
from tests.infer.pairs import ADAM, Published, Store, binary, same, state, twenty_steps


def test_plain_functions_train_what_is_in_pyros_store():
    pair, x = Store(), torch.tensor([0.5, 2.0, -1.0])
    results = []
    for make in (
        lambda: SVI(lambda x: pair.model(x), lambda x: pair.guide(x), ADAM, Trace_ELBO()),
        lambda: pyro.infer.SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()),
    ):
        pyro.clear_param_store()
        losses = twenty_steps(make(), x)
        results.append((losses, {name: value.detach().clone() for name, value in pyro.get_param_store().items()}))
    (losses, values), (expected_losses, expected) = results
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert values.keys() == expected.keys() == {"scale", "shift", "slope"}
    for name, value in values.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


CHANGES = {
    "clear": lambda state: pyro.clear_param_store(),
    "delete": lambda state: pyro.get_param_store().__delitem__("slope"),
    "set": lambda state: pyro.get_param_store().__setitem__("slope", torch.tensor(0.3)),
    "load": lambda state: pyro.get_param_store().set_state(state),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("compile", [False, True])
def test_what_the_user_does_to_the_store_between_steps_counts(change, compile):
    """Six times over: the graphs of tensors that are gone make room for those of others."""
    pair, x = Store(), torch.tensor([0.5, 2.0, -1.0])
    results = []
    for make in (
        lambda: SVI(lambda x: pair.model(x), lambda x: pair.guide(x), pyro.optim.SGD({"lr": 0.01}), Trace_ELBO()),
        lambda: pyro.infer.SVI(pair.model, pair.guide, pyro.optim.SGD({"lr": 0.01}), Trace_ELBO()),
    ):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = make()
        svi.compile = compile
        losses = [svi.step(x) for _ in range(3)]
        saved = {name: value.detach().clone() for name, value in pyro.get_param_store().named_parameters()}
        for _ in range(6):
            params = {name: value.clone().requires_grad_() for name, value in saved.items()}
            change({"params": params, "constraints": {}})
            losses += [svi.step(x) for _ in range(3)]
        if compile and isinstance(svi, SVI):
            assert svi._compiled.num_graphs
        results.append((losses, {name: value.detach().clone() for name, value in pyro.get_param_store().items()}))
    (losses, values), (expected_losses, expected) = results
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert values.keys() == expected.keys()
    for name, value in values.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_methods_of_one_module_keep_their_parameters_to_themselves():
    pair, x = Store(), torch.tensor([0.5, 2.0, -1.0])
    svi = SVI(pair.model, pair.guide, ADAM, Trace_ELBO())
    twenty_steps(svi, x)
    assert pair.pyro_params["scale"].item() != 1.5
    assert all(value.item() == pair.pyro_params[name].item() for name, value in pyro.get_param_store().items())


def linear_model(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.param("noise", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, scale), obs=y)


@pytest.mark.parametrize("autoguide", [AutoNormal, AutoDiagonalNormal, AutoDelta])
def test_autoguides_and_keyword_arguments_as_in_pyro(autoguide):
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    y = x @ torch.tensor([1.0, -2.0])
    results = []
    for svi_class, optim in ((SVI, pyro.optim.Adam({"lr": 0.05})), (pyro.infer.SVI, pyro.optim.Adam({"lr": 0.05}))):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        guide = autoguide(linear_model)
        svi = svi_class(linear_model, guide, optim, Trace_ELBO())
        losses = [svi.step(x, y=y) for _ in range(20)]
        assert svi.evaluate_loss(x, y=y) < losses[0]
        median = guide.median()["w"].detach().clone()
        results.append((losses, median, pyro.param("noise").detach().clone()))
    (losses, median, noise), (expected_losses, expected_median, expected_noise) = results
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    torch.testing.assert_close(median, expected_median, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(noise, expected_noise, rtol=1e-5, atol=1e-6)


def test_pyro_modules_as_model_and_autoguide():
    class Regression(PyroModule):
        def __init__(self):
            super().__init__()
            self.weight = PyroSample(dist.Normal(torch.zeros(2), 1.0).to_event(1))
            self.noise = PyroParam(torch.tensor(1.0), constraint=dist.constraints.positive)

        def forward(self, x, y):
            mean = x @ self.weight
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(mean, self.noise), obs=y)

    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    y = x @ torch.tensor([1.0, -2.0])
    models = Regression(), Regression()
    losses = []
    for model in models:  # one after the other in one process, with equal names
        guide = AutoNormal(model)
        losses.append(twenty_steps(SVI(model, guide, ADAM, Trace_ELBO()), x, y))
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]
    assert not list(pyro.get_param_store().keys())
    assert models[0].noise.item() == models[1].noise.item() != 1.0


@pytest.mark.parametrize("loss", [Trace_ELBO(), RenyiELBO(num_particles=2)], ids=type)
def test_two_modules_of_one_name_do_not_meet(loss):
    class Half(nn.Module):
        def __init__(self, start):
            super().__init__()
            self.p = nn.Parameter(torch.tensor(start))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z + self.p, 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.p * x, 1.0))

    first, second = (Half(1.0), Half(0.5)), (Half(-1.0), Half(-0.5))
    for model, guide in (first, second):
        SVI(model.model, guide.guide, ADAM, loss).step(torch.ones(3))
    moved = [abs(half.p.item() - start) for half, start in zip((*first, *second), (1.0, 0.5, -1.0, -0.5), strict=True)]
    assert moved == pytest.approx([0.01] * 4, rel=1e-3)  # Adam's first step is the learning rate
    assert not list(pyro.get_param_store().keys())


def test_two_pairs_of_equal_names_do_not_meet():
    pairs, x = [Published(seed=0), Published(seed=0), Published(seed=0)], binary(8)
    for pair in pairs[:2]:
        twenty_steps(SVI(pair.model, pair.guide, ADAM, Trace_ELBO()), x)
    assert same(state(pairs[0]), state(pairs[1]))
    assert not same(state(pairs[0]), state(pairs[2]))
    assert not list(pyro.get_param_store().keys())


def test_parameters_created_late_join_the_optimizer():
    class Late(nn.Module):
        late = False

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                shift = pyro.param("shift", torch.tensor(0.0)) if self.late else 0.0
                pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    pair, x = Late(), torch.ones(5)
    svi = SVI(pair.model, pair.guide, ADAM, Trace_ELBO())
    svi.step(x)
    pair.late = True
    for _ in range(3):
        svi.step(x)
    assert pair.pyro_params["shift"].item() != 0.0
    assert len(svi.parameters()) == 2


def test_a_name_of_the_user_s_that_only_a_module_s_parameter_has_is_not_shared():
    """What Pyro left in the store when it ran the modules, under the names that they have there."""

    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2))
            self.scale = PyroParam(torch.ones(2), constraint=dist.constraints.positive)

        def forward(self, x):
            z = pyro.sample("z", dist.Normal(self.loc, self.scale).to_event(1))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=x)

    class Guide(Model):
        def forward(self, x):
            pyro.sample("z", dist.Normal(self.loc, self.scale).to_event(1))

    model, guide, x = Model(), Guide(), torch.tensor([1.0, 3.0])
    for module in (model, guide):
        module(x)
    assert list(pyro.get_param_store()) == ["loc", "scale"]
    twenty_steps(SVI(model, guide, ADAM, Trace_ELBO()), x)
    assert {name for name, _ in model.named_parameters()} == {"loc", "scale_unconstrained"}
    assert not torch.equal(model.loc, guide.loc)


@pytest.mark.parametrize("compile", [False, True])
def test_expanded_parameters_of_modules_are_trained_element_by_element(compile):
    class Guide(PyroModule):
        def __init__(self):
            super().__init__()
            self.loc = PyroParam(lambda: torch.tensor(0.5).expand(3))
            self.scale = PyroParam(torch.ones(1, 1).expand(1, 3)[0], constraint=dist.constraints.positive)

        def model(self, x):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.1).to_event(1), obs=x)

        def guide(self, x):
            pyro.sample("z", dist.Normal(self.loc, self.scale).to_event(1))

    x = torch.tensor([-1.0, 0.0, 2.0])
    pair = Guide()
    twenty_steps(SVI(pair.model, pair.guide, ADAM, Trace_ELBO(), compile=compile), x)
    assert pair.loc[0] < pair.loc[1] < pair.loc[2]
