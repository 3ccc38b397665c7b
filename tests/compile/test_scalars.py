"""Python numbers among the arguments that change: what Python makes of them is never missed."""

import math
import warnings
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from ppvae.compile.scalars import Scalar, Tape
from ppvae.infer import SVI

X = torch.linspace(-1, 1, 12).view(6, 2)


class Weighted(nn.Module):
    """A pair whose likelihood is scaled by what `make` makes of a number, which may look at the data."""

    def __init__(self, make, dtype=torch.float32):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.5, dtype=dtype))
        self.make = make

    def model(self, x, number):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            scaled = z.unsqueeze(-1) * self.make(number, x)
            pyro.sample("x", dist.Normal(scaled, 1.0).to_event(1), obs=x)

    def guide(self, x, number):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 1.0))


def steps(make, numbers, compile, x=X):
    """The losses of steps with these numbers, how often the pair's Python ran in each, and the SVI."""
    pair = Weighted(make, x.dtype)
    svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=1e-2), Trace_ELBO(), compile=compile)
    ran, guide = [], pair.guide
    svi.guide = lambda *args: (ran.append(1), guide(*args))[1]
    torch.manual_seed(0)
    losses, runs = [], []
    for number in numbers:
        ran.clear()
        losses.append(svi.step(x, number))
        runs.append(len(ran))
    return losses, runs, svi


ANNEALED = [i / 16 for i in range(1, 13)]
COUNTED = list(range(1, 13))

ARITHMETIC = {
    "product": (lambda b, x: b, ANNEALED),
    "Python first": (lambda b, x: (1 - b) ** 2 / (3 * b + 0.1) % 1.5, ANNEALED),
    "a small difference": (lambda b, x: 1e4 * (1 - b), [1 - 1e-5 * i for i in range(1, 13)]),
    "negative": (lambda b, x: -b + abs(-b) + round(b, 3), ANNEALED),
    "torch.tensor": (lambda b, x: torch.tensor(b), ANNEALED),
    "torch.as_tensor": (lambda b, x: torch.as_tensor(b, dtype=torch.float64).float(), ANNEALED),
    "power": (lambda b, x: x**b if False else x.abs() ** b, ANNEALED),
    "a distribution": (lambda b, x: dist.Normal(0.0, b).log_prob(x), ANNEALED),
    "where": (lambda b, x: torch.where(x > 0, b, 0.0), ANNEALED),
    "in place": (lambda b, x: x.clone().fill_(b), ANNEALED),
    "clamp": (lambda b, x: x.clamp(min=-b, max=b), ANNEALED),
    "isinstance": (lambda b, x: b if isinstance(b, float) else 100.0, ANNEALED),
    "numpy's float": (lambda b, x: 2 * b, list(np.linspace(0.1, 0.9, 12))),
    "a count": (lambda n, x: n / 10, COUNTED),
    "a count times a tensor": (lambda n, x: n * x, COUNTED),
    "integers": (lambda n, x: (n * torch.arange(2)) // 2, COUNTED),
    "sum": (lambda b, x: sum([b, b * b]), ANNEALED),
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_a_number_that_changes_is_an_input(name):
    make, numbers = ARITHMETIC[name]
    eager, _, _ = steps(make, numbers, False)
    compiled, runs, svi = steps(make, numbers, True)
    assert compiled == pytest.approx(eager, rel=1e-6)
    assert svi._compiled.num_graphs == 1
    assert runs[4:11] == [0] * 7


def test_numbers_are_as_exact_as_the_tensors_that_they_meet():
    """The weight 0.1 is no float32, and neither is its share of a loss in float64."""
    x, numbers = X.double(), [0.1 + i / 7 for i in range(8)]
    eager, _, _ = steps(lambda b, x: 1 - b, numbers, False, x)
    compiled, runs, _ = steps(lambda b, x: 1 - b, numbers, True, x)
    assert compiled == pytest.approx(eager, rel=1e-14)
    assert runs[-1] == 0


def rampage(n, x):
    return min(1.0, n / 4)


def looped(n, x):
    total = x
    for i in range(n):
        total = total + i
    return total


DECISIONS = {
    "if": (lambda b, x: 3.0 if b > 0.5 else b, [0.1, 0.2, 0.3, 0.6, 0.7, 0.2, 0.8, 0.1]),
    "equality": (lambda b, x: 3.0 if b == 0.5 else b, [0.1, 0.2, 0.3, 0.5, 0.7, 0.5, 0.8, 0.1]),
    "truth": (lambda b, x: b or 7.0, [0.1, 0.2, 0.3, 0.0, 0.7, 0.0, 0.8, 0.1]),
    "the sign of zero": (lambda b, x: math.copysign(1.0, b), [0.0, -0.0, 0.0, -0.0, 0.0, -0.0]),
    "min": (rampage, [1, 2, 3, 4, 5, 6, 7, 2]),
    "int": (lambda b, x: int(b), [1.2, 1.4, 1.7, 2.2, 2.8, 1.1]),
    "range": (looped, [1, 2, 3, 1, 2, 3, 1]),
    "slice": (lambda n, x: x[:, :n].sum(), [1, 2, 1, 2, 1]),
    "index": (lambda n, x: x[n].sum(), [1, 2, 1, 2, 1]),
    "shape": (lambda n, x: torch.ones(n, 2).sum(0), [1, 2, 1, 2, 1]),
    "full": (lambda b, x: torch.full((2,), b), [0.1, 0.2, 0.3, 0.1, 0.2, 0.3]),
    "math": (lambda b, x: math.exp(b), [0.1, 0.2, 0.3, 0.1, 0.2, 0.3]),
    "math of steps": (lambda b, x: 2.0 if math.isclose(b, 0.3) else 1.0, [0.1, 0.2, 0.3, 0.1, 0.2, 0.3]),
    "numpy": (lambda b, x: float(np.floor(b)), [0.5, 1.5, 2.5, 0.5, 1.5, 2.5]),
    "numpy array": (lambda b, x: torch.from_numpy(np.array([b, 1.0])).float(), [0.5, 1.5, 2.5, 0.5, 1.5, 2.5]),
    "a key": (lambda n, x: {1: 1.0, 2: 5.0, 3: 7.0}[n], [1, 2, 3, 1, 2, 3]),
    "a list's": (lambda n, x: [1.0, 5.0, 7.0, 9.0][n], [1, 2, 3, 1, 2, 3]),
    "membership": (lambda n, x: 2.0 if n in (2, 3) else 1.0, [1, 2, 3, 1, 2, 3]),
    "text": (lambda b, x: float(f"{b:.1f}"), [0.11, 0.12, 0.21, 0.11, 0.22, 0.12]),
    "a list of": (lambda b, x: torch.tensor([b, 1.0]), [0.1, 0.2, 0.3, 0.1, 0.2, 0.3]),
    "floor": (lambda b, x: b // 1, [1.2, 1.4, 1.7, 2.2, 2.8, 1.1]),
    "method": (lambda b, x: 1.0 if b.is_integer() else 2.0, [1.0, 1.5, 2.0, 2.5, 1.0]),
    "dropout": (lambda b, x: nn.functional.dropout(x, b), [0.1, 0.2, 0.3, 0.1, 0.2, 0.3]),
    "division by it": (lambda b, x: 1.0 if b == 0 else 1 / b, [0.5, 0.25, 0.0, 0.5, 0.0, 0.125]),
    "type": (lambda b, x: 3.0 if isinstance(b, int) else 1.0, [1.0, 2.0, 1, 2, 1.0]),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_what_python_decides_by_a_number_is_guarded(name):
    make, numbers = DECISIONS[name]
    eager, _, _ = steps(make, numbers, False)
    assert len(set(eager)) > 1
    compiled, _, svi = steps(make, numbers, True)
    assert compiled == pytest.approx(eager, rel=1e-6)
    assert svi._compiled.num_graphs > 0


def test_after_a_ramp_a_new_graph_does_without_the_number():
    numbers = list(range(1, 20))
    compiled, runs, svi = steps(rampage, numbers, True)
    assert compiled == pytest.approx(steps(rampage, numbers, False)[0], rel=1e-6)
    assert runs[14:] == [0] * 5
    assert svi._compiled.num_graphs == 2


def test_a_number_that_python_needs_stays_eager_after_a_warning_that_names_it_and_the_line():
    numbers = [i / 10 for i in range(1, 12)]

    def make(b, x):
        return math.exp(b)

    line = make.__code__.co_firstlineno + 1
    with pytest.warns(UserWarning, match=rf"args\[1\] takes more values, which are read at .*test_scalars.py:{line}"):
        compiled, _, svi = steps(make, numbers, True)
    assert compiled == pytest.approx(steps(make, numbers, False)[0], rel=1e-6)
    assert svi._compiled.num_graphs == 4


def test_one_warning_is_enough():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        steps(lambda b, x: math.exp(b), [i / 10 for i in range(1, 20)], True)
    assert len(caught) == 1


def test_a_tape_repeats_what_python_did():
    tape = Tape([0.5, 3])
    a, n = Scalar(tape, 0), Scalar(tape, 1)
    b = (a + n) * 2 - 1 / a
    assert b == 5.0
    assert tape.replay([0.5, 3])[-2] == 5.0
    assert tape.replay([0.25, 3]) is None
    assert tape.replay([0.0, 3]) is None
