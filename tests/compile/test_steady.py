"""Steps between which nothing changes but minibatches: the same numbers, with fewer looks at what a graph is of."""

from functools import partial

import pytest
import torch
from pyro.infer import Trace_ELBO

from ppvae.compile.arguments import Arguments
from ppvae.compile.compiled import Compiled
from ppvae.infer import SVI
from ppvae.objectives import Objective
from tests.compile.compiling import binary, compiled_graphs, make_vae

PLAIN = (0.5, ([torch.zeros(2, 3)], {"mask": torch.ones(2, dtype=torch.bool), "label": None}), "mean", True, 3)
OTHERS = {
    "another shape": (0.5, ([torch.zeros(3, 3)], PLAIN[1][1]), *PLAIN[2:]),
    "another layout": (0.5, ([torch.zeros(3, 2).T], PLAIN[1][1]), *PLAIN[2:]),
    "another dtype": (0.5, ([torch.zeros(2, 3).double()], PLAIN[1][1]), *PLAIN[2:]),
    "a gradient": (0.5, ([torch.zeros(2, 3, requires_grad=True)], PLAIN[1][1]), *PLAIN[2:]),
    "another number": (0.25, *PLAIN[1:]),
    "minus zero": (-0.0, *PLAIN[1:]),
    "another kind of number": (*PLAIN[:4], 3.0),
    "a flag": (*PLAIN[:3], False, 3),
    "a word": (*PLAIN[:2], "sum", True, 3),
    "a value in place of none": (0.5, (PLAIN[1][0], {**PLAIN[1][1], "label": torch.ones(2)}), *PLAIN[2:]),
    "another order": (0.5, (PLAIN[1][0], dict(reversed(PLAIN[1][1].items()))), *PLAIN[2:]),
    "a tuple": (0.5, (tuple(PLAIN[1][0]), PLAIN[1][1]), *PLAIN[2:]),
    "fewer": PLAIN[:4],
    "an object": (*PLAIN[:4], object()),
}


def test_arguments_are_renewed():
    args = Arguments(PLAIN)
    tensors = [torch.ones(2, 3), torch.zeros(2, dtype=torch.bool)]
    values = (0.5, ([tensors[0]], {"mask": tensors[1], "label": None}), "mean", True, 3)
    again, anew = args.renewed(values), Arguments(values)
    assert again.values is values
    assert all(a is b for a, b in zip(again.tensors, tensors, strict=True))
    assert all(a is b for a, b in zip(again.leaves, anew.leaves, strict=True))
    assert (again.kind(), again.numbers) == (anew.kind(), anew.numbers)


@pytest.mark.parametrize("what", OTHERS)
def test_arguments_of_another_kind_are_not(what):
    assert Arguments(PLAIN).renewed(OTHERS[what]) is None
    assert Arguments(OTHERS[what]).renewed(PLAIN) is None


@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_steady_steps_are_the_same_steps(clip_norm):
    """In turn of two sizes, with a learning rate that is set between, of a graph that is compared again on the way."""
    batches = [binary(8), binary(8, seed=1), binary(5, seed=2), binary(8, seed=3)]
    found = []
    for steady in (False, True):
        torch.manual_seed(0)
        pair = make_vae()
        optim = partial(torch.optim.Adam, lr=1e-2)
        svi = SVI(pair.model, pair.guide, optim, Trace_ELBO(), compile=True, clip_norm=clip_norm)
        losses = []
        with svi.running(steady=steady):
            for i in range(16):
                losses.append(svi.update(batches[i % 4], weight=0.125).loss)
                svi.stepper.set_rates(float(i), lambda i: 1e-2 / (1 + i))
        states = [value for p in svi.parameters() for value in svi.optimizer.state[p].values()]
        found.append([*losses, *svi.parameters(), *states, torch.rand(())])
        assert compiled_graphs(svi) == 2
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_changes_is_seen_where_it_ends():
    """And inside, where arguments of another kind come."""
    net = torch.nn.Linear(2, 2)
    net.factor = 1.0
    layer = Compiled(lambda args: ([net(args[0]) * net.factor], None), [net])
    x, wide = torch.ones(3, 2), torch.ones(4, 2)

    def factor(x):
        return round((layer((x,))[0][0] / net(x)).mean().item(), 3)

    with layer.steady():
        assert [factor(x) for _ in range(4)] == [1.0] * 4
        net.factor = 2.0
        assert factor(x) == 1.0  # nobody looks
        assert factor(wide) == 2.0
        assert factor(x) == 2.0
        net.factor = 3.0
    assert factor(x) == 3.0


def test_what_is_read_of_tensors_is_read_at_every_step():
    """And a graph is made for what is read anew, inside too."""
    level, x = torch.zeros(()), torch.ones(3)
    layer = Compiled(lambda args: ([args[0] * (2.0 if level.item() < 3 else 5.0)], None), [])
    with layer.steady():
        for value in (0, 1, 4, 2, 5, 4, 0, 1, 4, 4, 2):
            level.fill_(value)
            assert layer((x,))[0][0][0] == (2.0 if value < 3 else 5.0)
    assert layer.num_graphs == 2


class Weighted(Objective):
    """−ELBO, five times as much from a certain step on, which it counts itself."""

    steps = 0

    def differentiable_loss(self, model, guide, *args, **kwargs):
        self.steps += 1
        return Trace_ELBO().differentiable_loss(model, guide, *args, **kwargs) * (1.0 if self.steps < 30 else 5.0)


@pytest.mark.filterwarnings("ignore:not compiled:UserWarning")
def test_an_objective_that_counts_its_steps_goes_on_counting():
    pair, objective = make_vae(), Weighted()
    svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=0.0), objective, compile=True)
    before = []
    with svi.running(steady=True):
        while objective.steps < 45:
            before.append(objective.steps)
            assert len(before) < 50
            loss = svi.update(binary(8)).loss
    assert loss > 3 * 8 * 12 * 0.5
