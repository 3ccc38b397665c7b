"""The step of torch's optimizers inside a graph: the numbers of the optimizer's own, whatever is set between."""

from dataclasses import replace
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.optim.clipped_adam import ClippedAdam
from torch import nn

from ppvae.infer import SVI
from ppvae.infer.arithmetic import FORMULAS, MAX_PARAMETERS, Arithmetic, is_known
from ppvae.infer.optim import Stepper
from ppvae.objectives import Objective
from tests.compile.compiling import D, assert_same, binary, compiled_graphs, make_vae, train

OPTIMIZERS = {
    "adam": partial(torch.optim.Adam, lr=0.1, betas=(0.8, 0.9), eps=1e-3),
    "amsgrad": partial(torch.optim.Adam, lr=0.1, amsgrad=True, betas=(0.5, 0.6)),
    "adam with decay": partial(torch.optim.Adam, lr=0.1, weight_decay=0.3),
    "adam with decoupled decay": partial(torch.optim.Adam, lr=0.1, weight_decay=0.3, decoupled_weight_decay=True),
    "maximized": partial(torch.optim.Adam, lr=0.1, maximize=True),
    "adamw": partial(torch.optim.AdamW, lr=0.1, weight_decay=0.3),
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    "clipped adam": partial(ClippedAdam, lr=0.1, lrd=0.9, clip_norm=0.5, betas=(0.8, 0.9)),
    "clipped adam with decay": partial(ClippedAdam, lr=0.1, eps=1e-3, weight_decay=0.3),
    "nesterov": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, maximize=True),
}
CASES = pytest.mark.parametrize("name", OPTIMIZERS)


class Line(nn.Module):
    """Two parameters: each adds some dozen operations to a graph."""

    def __init__(self):
        super().__init__()
        self.decode, self.encode = nn.Linear(1, D, bias=False), nn.Linear(D, 1, bias=False)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decode(z)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encode(x), 1.0).to_event(1))


def inside(svi):
    """Whether all the graphs of an SVI take the step themselves."""
    return [graph.layout[-1] is not None for graph in svi._compiled._graphs]


def gradients(shapes, steps=6):
    torch.manual_seed(0)
    return [[torch.randn(shape) * 10 ** torch.randn(()) for shape in shapes] for _ in range(steps)]


@CASES
@pytest.mark.parametrize("clip_norm", [None, 1.0, 1e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_are_those_of_torch(name, clip_norm, dtype):
    """In turn by one and by the other, from any state; a parameter without a gradient is left alone."""
    shapes = [(3, 4), (4,), ()]
    found = []
    for arithmetic in ("never", "always", "in turn"):
        torch.manual_seed(1)
        parameters = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
        stepper = Stepper(OPTIMIZERS[name], clip_norm, capturable=False)
        named = lambda: [(str(i), p) for i, p in enumerate(parameters)]  # noqa: B023, E731
        for i, step in enumerate(gradients(shapes)):
            trained = parameters[:2] if i == 2 else parameters
            values = [g.to(dtype) for g in step[: len(trained)]]
            step_inside = stepper.settled(named, parameters)
            if arithmetic == "always" or (arithmetic == "in turn" and i % 2):
                assert step_inside.covers(trained)
                step_inside.take(trained, values)
                stepper.taken(trained, parameters)
            else:
                for parameter, value in zip(trained, values, strict=True):
                    parameter.grad = value
                stepper.step(named, parameters)
        states = [value for p in parameters for _, value in sorted(stepper.optimizer.state[p].items())]
        found.append([*parameters, *(torch.as_tensor(state) for state in states if state is not None)])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a.detach(), b.detach().to(a.dtype), rtol=1e-5, atol=1e-6)


def change_rate(svi, i):
    svi.optimizer.param_groups[0]["lr"] = 0.01 / (i + 1)


CHANGES = {
    "learning rate": (change_rate, 1),
    "eps": (lambda svi, i: svi.optimizer.param_groups[0].update(eps=0.1), 1),
    "betas": (lambda svi, i: svi.optimizer.param_groups[0].update(betas=(0.5, 0.9)), 1),
    "loaded": (lambda svi, i: svi.optimizer.load_state_dict(svi.optimizer.state_dict()), 1),
    "state": (lambda svi, i: svi.optimizer.state[svi.parameters()[0]].update(exp_avg=torch.ones(D, 1)), 1),
    "no state": (lambda svi, i: svi.optimizer.state.clear(), 1),
    "clipping": (lambda svi, i: setattr(svi.stepper, "clip_norm", 0.1 + 0.1 * i), 2),
    "decay": (lambda svi, i: svi.optimizer.param_groups[0].update(weight_decay=0.1 * i), 2),
    "hook": (lambda svi, i: svi.optimizer.register_step_post_hook(lambda *_: None), 2),
    "gradients": (lambda svi, i: setattr(svi.stepper, "on_gradients", lambda ps: [p.grad.mul_(0.5) for p in ps]), 2),
    "values": (lambda svi, i: [p.data.add_(0.01) for p in svi.parameters()], 1),
    "memory": (lambda svi, i: [setattr(p, "data", p.data + 0.01) for p in svi.parameters()], 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_between_steps_counts(change):
    do, number = CHANGES[change]
    optim = partial(torch.optim.Adam, lr=1e-2)
    before = lambda svi, i: do(svi, i) if i in (5, 8) else None  # noqa: E731
    svi = assert_same(Line, Trace_ELBO, [(binary(),)], optim=optim, before_step=before, steps=12)
    assert compiled_graphs(svi) == number


@pytest.mark.parametrize(
    ("name", "clip_norm"), [*((name, None) for name in OPTIMIZERS), ("adamw", 0.5), ("momentum", 0.5)]
)
def test_compiled_steps_equal_eager_ones(name, clip_norm):
    optim = partial(OPTIMIZERS[name], lr=1e-3)
    svi = assert_same(Line, Trace_ELBO, [(binary(),)], optim=optim, clip_norm=clip_norm, steps=8)
    assert inside(svi) == [True]


@pytest.mark.slow
@pytest.mark.inductor
@pytest.mark.parametrize(
    ("name", "clip_norm"), [("amsgrad", 0.5), ("adamw", None), ("nesterov", None), ("clipped adam", None)]
)
def test_a_compiler_keeps_the_arithmetic(name, clip_norm):
    test_compiled_steps_equal_eager_ones(name, clip_norm)


def test_groups_of_parameters_have_options_of_their_own():
    groups = {"*bias": {"weight_decay": 0.5}, "q_z_given_x.*": {"lr": 1e-4}}
    optim = partial(torch.optim.AdamW, lr=1e-2)
    assert inside(assert_same(make_vae, Trace_ELBO, [(binary(),)], optim=optim, param_groups=groups)) == [True]


@pytest.mark.parametrize(
    "optim",
    [
        pyro.optim.Adam({"lr": 1e-2}),
        pyro.optim.ClippedAdam({"lr": 1e-2, "lrd": 0.9}),
        pyro.optim.ExponentialLR({"optimizer": torch.optim.AdamW, "optim_args": {"lr": 1e-2}, "gamma": 0.9}),
    ],
    ids=["adam", "clipped adam", "scheduled"],
)
def test_objects_of_pyro_step_inside_too(optim):
    before = lambda svi, i: optim.step() if i and hasattr(optim, "step") else None  # noqa: E731
    assert inside(assert_same(Line, Trace_ELBO, [(binary(),)], optim=optim, before_step=before)) == [True]


def test_a_scheduler_of_torch_sees_the_steps():
    schedulers = {}

    def schedule(svi, i):
        if i == 1:
            schedulers[svi] = torch.optim.lr_scheduler.ExponentialLR(svi.optimizer, 0.9)
        if i > 3:
            schedulers[svi].step()

    optim = partial(torch.optim.Adam, lr=1e-2)
    svi = assert_same(Line, Trace_ELBO, [(binary(),)], optim=optim, before_step=schedule, steps=10)
    assert (inside(svi), compiled_graphs(svi)) == ([True], 1)
    assert svi.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * 0.9**6)


@pytest.mark.parametrize(
    ("optim", "options"),
    [
        (partial(torch.optim.RMSprop, lr=1e-3), {}),
        (partial(torch.optim.SGD, lr=1e-3, momentum=0.9, dampening=0.5), {}),
        (partial(torch.optim.Adam, lr=1e-3), {"on_gradients": lambda parameters: None}),
        (pyro.optim.Adam({"lr": 1e-3}, {"clip_norm": 1.0}), {}),
    ],
    ids=["another kind", "dampening", "on_gradients", "clip_args"],
)
def test_what_is_no_known_arithmetic_is_done_by_the_optimizer(optim, options):
    assert inside(assert_same(Line, Trace_ELBO, [(binary(),)], optim=optim, steps=6, **options)) == [False]


def test_half_precision_shared_elements_and_many_parameters_are_left_to_the_optimizer():
    for parameter in (torch.ones(3, dtype=torch.bfloat16), torch.ones(1).expand(3), torch.ones(3, device="meta")):
        assert not is_known(torch.optim.SGD([nn.Parameter(parameter)], lr=0.1))
    for number in (MAX_PARAMETERS, MAX_PARAMETERS + 1):
        many = [nn.Parameter(torch.ones(1)) for _ in range(number)]
        assert is_known(torch.optim.SGD(many, lr=0.1)) == (number == MAX_PARAMETERS)


def test_a_wrong_step_is_found_and_leaves_nothing_behind(monkeypatch):
    """The formula, or what a compiler makes of it: the first step of every graph is repeated by the optimizer."""
    formula = FORMULAS[torch.optim.Adam]
    shares = (0.9, 1.0)  # of the size of a step, and of the correction of its second moment
    wrong = replace(
        formula, paces=lambda rates, step: [s * n for s, n in zip(shares, formula.paces(rates, step), strict=True)]
    )
    torch.manual_seed(0)
    eager, expected, _ = train(Line(), Trace_ELBO(), [(binary(),)], compile=False, steps=6)
    monkeypatch.setitem(FORMULAS, torch.optim.Adam, wrong)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="not compiled, runs eagerly: compiled, the step's value of .* differs"):
        losses, state, svi = train(Line(), Trace_ELBO(), [(binary(),)], compile=True, steps=6)
    assert losses == eager
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert svi.stepper.inside is None


def test_a_checkpoint_goes_on_inside_a_graph():
    torch.manual_seed(0)
    pair = Line()
    optim = partial(torch.optim.Adam, lr=1e-2)
    svi = SVI(pair.model, pair.guide, optim, Trace_ELBO(), compile=True)
    for _ in range(4):
        svi.step(binary())
    saved, weights = svi.optimizer.state_dict(), {k: v.clone() for k, v in pair.state_dict().items()}
    saved = {**saved, "state": {i: {k: v.clone() for k, v in s.items()} for i, s in saved["state"].items()}}
    ends = []
    for _ in range(2):
        pair.load_state_dict(weights)
        svi.stepper.load_state_dict(saved)
        torch.manual_seed(3)
        for _ in range(3):
            svi.step(binary())
        ends.append([p.detach().clone() for p in pair.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert compiled_graphs(svi) == 1


def test_the_rows_of_numbers_fit():
    for make in OPTIMIZERS.values():
        optimizer = make([nn.Parameter(torch.ones(2))])
        Arithmetic(optimizer, clips=False).settle(optimizer, None)


@pytest.mark.parametrize("name", ["adam", "momentum"])
def test_moments_without_a_gradient_end_at_zero(name):
    """And not among denormal numbers, with which a CPU computes a hundred times slower."""
    parameter = nn.Parameter(torch.ones(2))
    optimizer = OPTIMIZERS[name]([parameter], weight_decay=0.0)
    arithmetic = Arithmetic(optimizer, clips=False)
    for gradient in [torch.ones(2), *[torch.tensor([0.0, 1.0])] * 1200]:
        arithmetic.settle(optimizer, None)
        arithmetic.take([parameter], [gradient])
    moment = optimizer.state[parameter]["exp_avg" if name == "adam" else "momentum_buffer"]
    assert moment[0] == 0
    assert moment[1] > 0.5


class Recorded(Objective):
    """−ELBO of one draw and an offset that is trained, shown as it is before each step."""

    def __init__(self):
        super().__init__()
        self.offset = nn.ParameterList([nn.Parameter(torch.ones(()))])

    def differentiable_loss(self, model, guide, *args, **kwargs):
        ((model_trace, guide_trace),) = self.traces(model, guide, args, kwargs)
        self.record("offset", self.offset[0])
        return guide_trace.log_prob_sum() - model_trace.log_prob_sum() + self.offset[0] ** 2


@pytest.mark.parametrize("compile", [False, True])
def test_what_is_recorded_is_what_it_was_before_the_step(compile):
    pair = make_vae()
    svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=0.25), Recorded(), compile=compile)
    with svi.running():
        terms = [svi.update(binary()).columns["offset"] for _ in range(4)]
    assert [float(term) for term in terms] == [1.0, 0.5, 0.25, 0.125]
    assert compiled_graphs(svi) == compile
