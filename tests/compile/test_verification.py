"""Compilers that are wrong, planted: eager numbers come out, a warning names the tensor, and nothing else has changed.

None of them is real: a graph runs as it was traced, but for the fault that is put on top.
"""

import warnings
from functools import partial
from itertools import count

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import nn

import ppvae
from ppvae.compile.verification import first_difference, nudged
from ppvae.infer import SVI
from tests.compile.compiling import N, binary, compiled_graphs, make_vae, train


def plant(monkeypatch, fault):
    """Compiles every graph into what it computes as traced, changed by `fault(outputs, inputs, run)`; counts graphs."""
    graphs = []

    def compile_graph(module, inputs):
        runs = count()
        graphs.append(module)

        def function(*tensors):
            outputs = list(module(*tensors))
            return fault(outputs, tensors, next(runs)) or outputs

        return function

    monkeypatch.setattr("ppvae.compile.graph.compile_graph", compile_graph)
    return graphs


def wrong_term(outputs, inputs, run):
    outputs[0] = outputs[0] * 1.01


def wrong_gradient(outputs, inputs, run):
    outputs[-2] = outputs[-2] * 1.05


def wrong_element(outputs, inputs, run):
    outputs[-2] = outputs[-2].clone()
    outputs[-2].view(-1)[0] += 0.1 * outputs[-2].abs().max()


def nan_term(outputs, inputs, run):
    outputs[1] = outputs[1] * float("nan")


def infinite_gradient(outputs, inputs, run):
    outputs[-1] = outputs[-1] / 0.0


def wrong_buffer(outputs, inputs, run):
    for running in (t for t in inputs if t.shape == (16,) and not t.requires_grad):
        running.add_(0.1)


def uncounted_batch(outputs, inputs, run):
    next(t for t in inputs if t.dtype == torch.int64).sub_(1)


def no_gradient(outputs, inputs, run):
    return outputs[:-1]


def fails(outputs, inputs, run):
    raise RuntimeError("a kernel that does not load")


FAULTS = {
    wrong_term: "the term loss differs",
    wrong_gradient: r"the gradient of q_z_given_x\S* differs",
    wrong_element: r"the gradient of q_z_given_x\S* differs",
    nan_term: "the term reconstruction differs",
    infinite_gradient: r"the gradient of q_z_given_x\S* differs",
    wrong_buffer: r"what is left in \S*running_mean differs",
    uncounted_batch: r"what is left in \S*num_batches_tracked differs",
    no_gradient: r"the number of tensors, \d+ in place of \d+, differs",
    fails: "a kernel that does not load",
}


def steps(compile, make, **options):
    """Losses, weights, the random state and what the optimizer holds after some steps."""
    torch.manual_seed(0)
    losses, state, svi = train(make(), Trace_ELBO(), [(binary(),)], compile=compile, steps=6, **options)
    held = [value for state in svi.optimizer.state.values() for value in state.values()]
    return losses, [*state.values(), torch.get_rng_state(), *held], svi


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_wrong_graph_is_not_used_and_leaves_nothing_behind(monkeypatch, fault):
    make = partial(make_vae, norm="batch", dropout=0.3)
    eager, expected, _ = steps(False, make)
    plant(monkeypatch, fault)
    with pytest.warns(UserWarning, match=f"not compiled, runs eagerly: .*{FAULTS[fault]}") as caught:
        losses, state, svi = steps(True, make)
    assert [str(w.message) for w in caught] == [str(caught[0].message)]
    assert losses == eager
    assert all(torch.equal(a, b) for a, b in zip(state, expected, strict=True))
    assert compiled_graphs(svi) == 0


def test_a_graph_that_is_wrong_for_one_shape_alone(monkeypatch):
    def fault(outputs, inputs, run):
        if any(t.shape == (5, 12) for t in inputs):
            wrong_gradient(outputs, inputs, run)

    batches = [(binary(),), (binary(5),)] * 4
    torch.manual_seed(0)
    eager, _, _ = train(make_vae(), Trace_ELBO(), batches, compile=False, steps=8)
    plant(monkeypatch, fault)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="the gradient of"):
        compiled, _, _ = train(make_vae(), Trace_ELBO(), batches, compile=True, steps=8)
    assert compiled == pytest.approx(eager, rel=1e-5)


def test_one_difference_is_none_yet(monkeypatch):
    """As where a discrete draw fell otherwise: that step is eager, and the graph is compared again."""
    eager, expected, _ = steps(False, make_vae)
    graphs = plant(monkeypatch, lambda outputs, inputs, run: wrong_gradient(outputs, inputs, run) if run == 0 else None)
    losses, state, svi = steps(True, make_vae)
    assert losses == pytest.approx(eager, rel=1e-5)
    for a, b in zip(state, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert compiled_graphs(svi) == len(graphs) == 1


def test_a_unit_in_the_last_place_is_no_difference(monkeypatch):

    def fault(outputs, inputs, run):
        outputs[:] = [o * (1 + torch.finfo(o.dtype).eps) if o.is_floating_point() else o for o in outputs]

    graphs = plant(monkeypatch, fault)
    _, _, svi = steps(True, make_vae)
    assert compiled_graphs(svi) == len(graphs) == 1


def test_half_precision_products_round_more(monkeypatch):
    graphs = plant(monkeypatch, lambda outputs, inputs, run: [o * 1.01 for o in outputs])
    outside = {"on_gradients": lambda parameters: None}  # the step is of what the graph's outputs were made into
    _, _, svi = steps(True, make_vae, autocast=torch.bfloat16, **outside)
    assert compiled_graphs(svi) == len(graphs) == 1


def test_a_gradient_that_vanishes_is_rounding_alone(monkeypatch):
    """At a maximum nothing but rounding is left of it, and that is another number in every order of the sums."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 5, generator=generator)
    y = x @ torch.arange(5.0) + 0.1 * torch.randn(500, generator=generator)

    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(5), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 0.1), obs=y)

    best = torch.linalg.solve((x.T @ x / 0.01 + torch.eye(5)).double(), (x.T @ y / 0.01).double()).float()
    pair = ppvae.Pair(model, AutoDelta(model, init_loc_fn=lambda site: best.clone()))

    def fault(outputs, inputs, run):
        w = next(t for t in inputs if t.shape == (5,)).double()
        outputs[-1] = (x.double().T @ (x.double() @ w - y) / 0.01 + w).float()  # without rounding

    graphs = plant(monkeypatch, fault)
    _, _, svi = train(pair, Trace_ELBO(), [(x, y)], compile=True, optim=partial(torch.optim.SGD, lr=0.0), steps=4)
    assert compiled_graphs(svi) == len(graphs) == 1


def test_what_is_not_finite_in_both_is_no_difference():
    class Steep(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.tensor(0.5))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(self.loc, 1.0))
                pyro.factor("none", torch.where(x > 0, -torch.inf, z - z))

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.0, 1.0))

    pair, x = Steep(), torch.randn(N)
    svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=0.0), Trace_ELBO(), compile=True)
    with svi.running():  # as `fit` takes steps; after an infinite loss `svi.step` takes an eager one
        assert [float(svi.update(x).loss) for _ in range(4)] == [torch.inf] * 4
    assert compiled_graphs(svi) == 1


def test_what_the_eager_run_leaves_on_modules_makes_no_graph_anew(monkeypatch):
    """An autoguide keeps the plates of its last call."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    graphs = plant(monkeypatch, lambda outputs, inputs, run: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(ppvae.Pair(model, AutoNormal(model)), Trace_ELBO(), [(torch.randn(N),)], compile=True, steps=12)
    assert len(graphs) == 1


def test_a_tensor_that_is_no_buffer_is_written_once_where_python_decides_otherwise():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.tensor(0.5))
            self.count = torch.zeros(())

        def model(self, x):
            self.count.add_(1.0)
            weight = 2.0 if float(x[0]) > 0 else 1.0
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(self.loc, 1.0))
                pyro.sample("x", dist.Normal(weight * z, 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.0, 1.0))

    pair, x = Counting(), torch.ones(N)
    train(pair, Trace_ELBO(), [(x,), (x,), (x,), (-x,)], compile=True, steps=8)
    assert pair.count.item() == 8


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (torch.tensor([1.0, torch.inf], dtype=torch.float64), torch.tensor([1.0, torch.inf]), True),
        (torch.tensor([1.0, torch.inf]), torch.tensor([1.0, -torch.inf]), False),
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.inf]), False),
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan]), True),
        (torch.tensor([1j, 1.0]), torch.tensor([1j * (1 + 1e-6), 1.0]), True),
        (torch.tensor([1j, 1.0]), torch.tensor([1.1j, 1.0]), False),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), False),
        (torch.tensor([1, 2]), torch.tensor([1, 2], dtype=torch.int32), True),
        (torch.tensor([1.0]), torch.tensor([1]), False),
        (torch.zeros(0), torch.zeros(0), True),
        (torch.zeros(2), torch.zeros(1, 2), False),
    ],
)
def test_tensors_of_every_kind_are_compared(a, b, same):
    assert first_difference([("the term", "t")], [a], [b]) == (None if same else "the term t")


def test_nudged_parameters_come_back():
    tensors = [torch.randn(3), torch.randn(2, dtype=torch.float64), torch.arange(3), torch.zeros(2)]
    before = [t.clone() for t in tensors]
    state = torch.get_rng_state()
    with nudged(tensors):
        assert [torch.equal(a, b) for a, b in zip(tensors, before, strict=True)] == [False, False, True, True]
        torch.testing.assert_close(tensors, before, rtol=1e-6, atol=0.0)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


class Annealed(nn.Module):
    """A pair with a term whose weight, a tensor that is written to from outside, is zero at first."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.5))
        self.weight = torch.zeros(())

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.loc, 1.0))
            ppvae.loss_term("penalty", self.weight * z.exp())


def annealed_steps(compile, steps):
    torch.manual_seed(0)

    def anneal(svi, i):
        svi.model.__self__.weight.fill_(0.0 if i < 4 else 1.0)

    x, options = torch.linspace(-1, 1, N), {"optim": partial(torch.optim.SGD, lr=1e-3), "before_step": anneal}
    return train(Annealed(), Trace_ELBO(), [(x,)], compile=compile, steps=steps, **options)


def test_a_compiler_that_is_wrong_behind_a_zero_factor_is_found_at_a_later_run(monkeypatch):
    def fault(outputs, inputs, run):
        weight = next(t for t in inputs if t.dim() == 0 and not t.requires_grad)
        outputs[0] = outputs[0] * (1 + 0.1 * weight)

    plant(monkeypatch, fault)
    with pytest.warns(UserWarning, match="not compiled, runs eagerly: compiled, the term loss differs"):
        losses, _, svi = annealed_steps(True, 16)
    expected, _, _ = annealed_steps(False, 16)
    assert losses[:4] == pytest.approx(expected[:4], rel=1e-6)  # while the weight was zero
    assert losses[10:] == pytest.approx(expected[10:], rel=1e-6)  # from the tenth run on
    assert compiled_graphs(svi) == 0


def test_later_runs_are_compared_too_and_no_other(monkeypatch):
    plant(monkeypatch, lambda outputs, inputs, run: None)
    torch.manual_seed(0)
    pair, x = Annealed(), torch.linspace(-1, 1, N)
    svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=1e-3), Trace_ELBO(), compile=True)
    calls, compute = [], svi._gradient
    svi._gradient = lambda *args, **kwargs: (calls.append(svi._steps), compute(*args, **kwargs))[1]
    for _ in range(120):  # the first step is eager, so that a graph's run k is step k
        svi.step(x)
    assert sorted(set(calls)) == [0, 1, 2, 10, 100]
