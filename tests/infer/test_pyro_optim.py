"""Objects of `pyro.optim` in our SVI: their states, names, options and schedules are what they are under Pyro's SVI."""

import copy
import pickle
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.optim.clipped_adam import ClippedAdam
from torch import nn

from ppvae.infer import SVI
from ppvae.infer.fused import align
from ppvae.infer.optim import Stepper

KINDS = {
    "Adam": lambda: pyro.optim.Adam({"lr": 0.05, "betas": (0.9, 0.99)}),
    "AdamW": lambda: pyro.optim.AdamW({"lr": 0.05, "weight_decay": 0.1}),
    "SGD": lambda: pyro.optim.SGD({"lr": 0.01, "momentum": 0.9}),
    "Adagrad": lambda: pyro.optim.Adagrad({"lr": 0.05}),
    "RMSprop": lambda: pyro.optim.RMSprop({"lr": 0.01}),
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.9, "clip_norm": 0.5, "weight_decay": 0.1}),
    "ClippedAdam by name": lambda: pyro.optim.ClippedAdam(lambda name: {"lrd": 0.9 if "bias" in name else 0.8}),
    "scheduled ClippedAdam": lambda: pyro.optim.ExponentialLR(
        {"optimizer": ClippedAdam, "optim_args": {"lr": 0.05, "lrd": 0.9}, "gamma": 0.5}
    ),
    "by name": lambda: pyro.optim.Adam(lambda name: {"lr": 0.1 if "bias" in name else 0.02}),
    "by two names": lambda: pyro.optim.Adam(lambda module, name: {"lr": 0.1 if module == "m" else 0.02}),
    "clipped": lambda: pyro.optim.Adam({"lr": 0.05}, {"clip_norm": 0.1, "clip_value": 0.05}),
    "scheduled": lambda: pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.5}
    ),
}
CASES = pytest.mark.parametrize("kind", KINDS)
FUSABLE = {"Adam", "AdamW", "SGD", "Adagrad", "by name", "by two names", "clipped", "scheduled"}
JOINED = FUSABLE | {"ClippedAdam", "ClippedAdam by name", "scheduled ClippedAdam"}


class Line(nn.Module):
    """x ~ N(a·z + b, 1), announced to Pyro; `b` is trained in some steps only, and `c` by `pyro.param`."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 1)
        self.b = nn.Parameter(torch.ones(3))
        self.scale = torch.ones(())

    def model(self, x, use_b=True):
        pyro.module("m", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + (self.b.sum() if use_b else 0.0), 1.0), obs=x[:, 0])

    def guide(self, x, use_b=True):
        pyro.module("m", self)
        scale = pyro.param("scale", self.scale, constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.net(x)[:, 0], scale))


def trained(svi_class, optim, *, pair=None, start=0, steps=9, **options):
    """A pair after some steps, one in three of which uses `b`, with the values of all its parameters by name."""
    torch.manual_seed(0)
    pair = Line() if pair is None else pair
    svi = svi_class(pair.model, pair.guide, optim, Trace_ELBO(), **options)
    for i in range(start, steps):
        torch.manual_seed(i)
        svi.step(torch.ones(4, 2), i % 3 == 0)
        if hasattr(optim, "step"):
            optim.step()
    store = pyro.get_param_store()
    scale = pair.pyro_params.unconstrained("scale") if hasattr(pair, "pyro_params") else store["scale"].unconstrained()
    values = {name: p.detach().clone() for name, p in pair.named_parameters() if "pyro_params" not in name}
    return pair, svi, values | {"scale": scale.detach().clone()}


def assert_close(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=1e-5, atol=1e-6, msg=name)


@CASES
@pytest.mark.parametrize("compile", [False, True])
def test_steps_names_and_states_are_those_of_pyro(kind, compile):
    with pyro.get_param_store().scope():
        theirs = KINDS[kind]()
        _, _, expected = trained(pyro.infer.SVI, theirs)
        expected_state = theirs.get_state()
    ours = KINDS[kind]()
    _, svi, found = trained(SVI, ours, compile=compile)
    assert_close(expected, found)
    assert ours.get_state().keys() == expected_state.keys() == {"m$$$net.weight", "m$$$net.bias", "m$$$b", "scale"}
    assert len(ours.optim_objs) == 4
    for name, state in expected_state.items():
        assert state.keys() == ours.get_state()[name].keys()
        of_ours, of_theirs = (s.get("optimizer", s)["state"][0] for s in (ours.get_state()[name], state))
        for key, value in of_theirs.items():
            torch.testing.assert_close(of_ours[key], value, rtol=1e-4, atol=1e-6)
        groups = [s.get("optimizer", s)["param_groups"] for s in (ours.get_state()[name], state)]
        assert groups[0] == groups[1]
    assert (svi.optimizer is not None) == (kind in JOINED)
    if svi.optimizer is not None:
        assert all(group.get("fused", False) == (kind in FUSABLE) for group in svi.optimizer.param_groups)


@CASES
@pytest.mark.parametrize("first", [SVI, pyro.infer.SVI])
@pytest.mark.parametrize("second", [SVI, pyro.infer.SVI])
def test_files_go_both_ways(kind, first, second, tmp_path):
    with pyro.get_param_store().scope():
        expected = trained(pyro.infer.SVI, KINDS[kind]())[2]
    with pyro.get_param_store().scope():
        optim = KINDS[kind]()
        _, _, values = trained(first, optim, steps=6)
        optim.save(tmp_path / "optim")
    pair, again = Line(), KINDS[kind]()
    scale = values.pop("scale").exp()
    pair.load_state_dict(values)
    pair.scale = scale
    again.load(tmp_path / "optim")
    assert_close(expected, trained(second, again, pair=pair, start=6)[2])


@pytest.mark.parametrize("compile", [False, True])
def test_two_svis_share_the_moments_of_one_object(compile):
    found = []
    for svi_class, options in ((pyro.infer.SVI, {}), (SVI, {"compile": compile})):
        with pyro.get_param_store().scope():
            torch.manual_seed(0)
            pair, optim = Line(), pyro.optim.Adam({"lr": 0.1})
            svis = [svi_class(pair.model, pair.guide, optim, Trace_ELBO(), **options) for _ in range(2)]
            torch.manual_seed(1)
            for i in range(8):
                svis[i % 2].step(torch.ones(4, 2), i % 2 == 0)
            found.append({name: p.detach() for name, p in pair.named_parameters() if "pyro_params" not in name})
    assert_close(*found)


def test_an_option_that_is_set_on_one_parameter_is_its_own():
    optim = pyro.optim.Adam({"lr": 0.1})
    pair, svi, before = trained(SVI, optim, steps=3)
    optim.optim_objs[pair.b].param_groups[0]["lr"] = 0.0
    svi.step(torch.ones(4, 2))
    assert torch.equal(pair.b, before["b"])
    assert not torch.equal(pair.net.weight, before["net.weight"])
    for one in optim.optim_objs.values():
        one.param_groups[0]["lr"] *= 0.5
    assert sorted(one.param_groups[0]["lr"] for one in optim.optim_objs.values()) == [0.0, 0.05, 0.05, 0.05]


def test_a_state_that_is_loaded_between_steps_counts():
    optim = pyro.optim.Adam({"lr": 0.1})
    pair, svi, _ = trained(SVI, optim, steps=3)
    one = optim.optim_objs[pair.b]
    one.load_state_dict(one.state_dict())
    svi.step(torch.ones(4, 2))
    assert int(one.state[pair.b]["step"]) == 4


@pytest.mark.parametrize("options", [{"fused": False}, {"foreach": True}])
def test_what_is_asked_for_is_done(options):
    _, svi, _ = trained(SVI, pyro.optim.Adam({"lr": 0.1, **options}), steps=1)
    assert svi.optimizer is None
    _, svi, _ = trained(SVI, partial(torch.optim.Adam, lr=0.1, **options), steps=1)
    assert not svi.optimizer.param_groups[0]["fused"]


def test_an_object_that_was_used_is_copied_and_pickled_as_before():
    optim = pyro.optim.Adam({"lr": 0.1})
    trained(SVI, optim, steps=1)
    for copied in (copy.deepcopy(optim), pickle.loads(pickle.dumps(optim))):
        assert copied.get_state().keys() == optim.get_state().keys()
        assert copied.optim_objs.keys().isdisjoint(optim.optim_objs)


class Doubled(pyro.optim.PyroOptim):
    """Somebody's own object, which steps twice."""

    def __call__(self, params, *args, **kwargs):
        super().__call__(params)
        super().__call__(params)


def test_an_object_of_somebodys_own_class_is_called():
    found = []
    for svi_class in (pyro.infer.SVI, SVI):
        with pyro.get_param_store().scope():
            found.append(trained(svi_class, Doubled(torch.optim.Adam, {"lr": 0.01}))[2])
    assert_close(*found)


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
@pytest.mark.parametrize("which", ["parameter", "gradient", "state"])
def test_the_fused_kernel_gets_all_tensors_in_one_layout(make, which):
    """torch's own goes by places in memory: a gradient that is laid out otherwise gives other numbers."""
    options = {"momentum": 0.9} if make is torch.optim.SGD else {}
    found = []
    for fused in (False, None):
        torch.manual_seed(0)
        value = torch.randn(6, 4).t() if which == "parameter" else torch.randn(4, 6)
        parameter = nn.Parameter(value)
        stepper = Stepper(partial(make, lr=0.1, fused=fused, **options), None, capturable=False)
        for _ in range(3):
            gradient = torch.randn(4, 6)
            parameter.grad = gradient.t().contiguous().t() if which == "gradient" else gradient
            stepper.step(lambda: [("p", parameter)], [parameter])  # noqa: B023
            if which == "state":
                state = stepper.optimizer.state[parameter]
                state |= {k: v.t().contiguous().t() if v.dim() else v for k, v in state.items()}
        assert bool(stepper.optimizer.param_groups[0]["fused"]) == (fused is None)
        found.append(parameter.detach())
    torch.testing.assert_close(*found)


def test_parameters_that_share_elements_are_not_fused():
    parameter = nn.Parameter(torch.ones(1).expand(3))
    stepper = Stepper(partial(torch.optim.SGD, lr=0.1), None, capturable=False)
    stepper.prepare([("p", parameter)])
    assert not stepper.optimizer.param_groups[0]["fused"]


def test_layouts_that_agree_are_left_alone():
    parameter = nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.Adam([parameter], fused=True)
    gradient = parameter.grad = torch.ones(2, 3)
    align(optimizer)
    assert parameter.grad is gradient


@pytest.mark.parametrize("compile", [False, True])
def test_hooks_on_gradients_are_called_once_a_step(compile):
    pair, svi, _ = trained(SVI, partial(torch.optim.SGD, lr=0.001), steps=1, compile=compile)
    seen, after = [], []
    handle = pair.b.register_hook(lambda gradient: seen.append(float(gradient.norm())) or gradient * 0)
    pair.net.bias.register_post_accumulate_grad_hook(lambda p: after.append(float(p.grad.norm())))
    before = pair.b.detach().clone()
    for _ in range(5):
        svi.step(torch.ones(4, 2))
    assert (len(seen), len(after)) == (5, 5)
    assert torch.equal(pair.b, before)  # what a hook makes of a gradient counts
    handle.remove()
    svi.step(torch.ones(4, 2))
    assert (len(seen), len(after)) == (5, 6)
    assert not torch.equal(pair.b, before)
    assert svi._compiled.num_graphs == compile
