"""What a compiled step is called with: containers of every kind, and a change in each that is never missed."""

from collections import OrderedDict, namedtuple
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from ppvae.compile.arguments import Arguments
from ppvae.infer import SVI

Minibatch = namedtuple("Minibatch", "x mask")
Swapped = namedtuple("Swapped", "mask x")

X, Y = torch.linspace(-1, 1, 8), torch.linspace(-3, 5, 8)
MASK, ALL = torch.arange(8) % 2 == 0, torch.ones(8, dtype=torch.bool)


class Reading(nn.Module):
    """A pair that takes its data, and a weight, out of its arguments by `read`."""

    def __init__(self, read):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.5))
        self.read = read

    def model(self, *args, **kwargs):
        x, weight = self.read(*args, **kwargs)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.poutine.scale(scale=2.0), pyro.poutine.mask(mask=weight > 0):
                pyro.sample("x", dist.Normal(z * weight, 1.0), obs=x)

    def guide(self, *args, **kwargs):
        with pyro.plate("data", len(self.read(*args, **kwargs)[0])):
            pyro.sample("z", dist.Normal(self.loc, 1.0))


def run(read, calls, compile):
    """The losses of steps on these `(args, kwargs)`, how often the pair's own code ran in each, and the SVI."""
    pair = Reading(read)
    svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=1e-2), Trace_ELBO(), compile=compile)
    ran, guide = [], pair.guide
    svi.guide = lambda *args, **kwargs: (ran.append(1), guide(*args, **kwargs))[1]
    torch.manual_seed(0)
    losses, runs = [], []
    for args, kwargs in calls:
        ran.clear()
        losses.append(svi.step(*args, **kwargs))
        runs.append(len(ran))
    return losses, runs, svi


def assert_compiled(read, calls, *, graphs):
    """Eager and compiled steps agree, and the last one ran none of the pair's Python."""
    eager, _, _ = run(read, calls, False)
    compiled, runs, svi = run(read, calls, True)
    assert compiled == pytest.approx(eager, rel=1e-5)
    assert svi._compiled.num_graphs == graphs
    assert runs[-1] == 0


KINDS = {
    "keywords": (lambda x, weight: (x, weight), lambda x, mask: ((), {"x": x, "weight": mask})),
    "one keyword": (lambda x, *, weight: (x, weight), lambda x, mask: ((x,), {"weight": mask})),
    "dict": (lambda batch: (batch["x"], batch["mask"]), lambda x, mask: (({"x": x, "mask": mask},), {})),
    "ordered": (lambda batch: tuple(batch.values()), lambda x, mask: ((OrderedDict(x=x, mask=mask),), {})),
    "list": (lambda batch: batch, lambda x, mask: (([x, mask],), {})),
    "named tuple": (lambda batch: (batch.x, batch.mask), lambda x, mask: ((Minibatch(x, mask),), {})),
    "nested": (lambda batch: (batch["x"][0].x, batch["x"][1]), lambda x, m: (({"x": [Minibatch(x, None), m]},), {})),
}


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_in_containers_are_compiled(kind):
    read, make = KINDS[kind]
    calls = [make(x, m.float()) for x, m in [(X, MASK), (X, MASK), (Y, ALL), (X, ALL), (Y, MASK)]]
    assert_compiled(read, calls, graphs=1)


def by_name(batch):
    return batch["x"], batch["weight"] if "weight" in batch else torch.ones(())


def of_all(batch):
    return batch[0], sum(batch[1:], torch.ones(()))


def of_named(batch):
    return batch.x, batch.mask.float()


WEIGHT = torch.tensor(3.0)
CHANGES = {
    "a key more": (by_name, {"x": X}, {"x": X, "weight": WEIGHT}),
    "another key": (by_name, {"x": X, "weight": WEIGHT}, {"x": X, "other": WEIGHT}),
    "keys in another order": (lambda b: tuple(b.values()), {"x": X, "weight": Y}, {"weight": Y, "x": X}),
    "None for a tensor": (
        lambda b: (b["x"], torch.ones(()) if b["w"] is None else b["w"]),
        {"x": X, "w": WEIGHT},
        {"x": X, "w": None},
    ),
    "a list that grows": (of_all, [X], [X, WEIGHT]),
    "a named tuple in another order": (of_named, Minibatch(X, Y), Swapped(X, Y)),
    "True for 1": (lambda b: (X, Y if b is True else X), 1, True),
    "a number in a dict": (lambda b: (X, torch.tensor(b["w"])), {"w": 1.0}, {"w": 3.0}),
    "a word": (lambda b: (X, Y if b == "y" else X), "x", "y"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_a_container_counts(change):
    read, before, after = CHANGES[change]
    calls = [((batch,), {}) for batch in (before, before, before, after, after, before, after)]
    assert run(read, calls, False)[0] != run(read, [calls[0]] * 7, False)[0]
    assert_compiled(read, calls, graphs=1 if change == "a number in a dict" else 2)


def test_the_same_container_with_other_contents_counts():
    batch = {"x": X, "weights": [1.0]}

    def losses(compile):
        batch["weights"][:] = [1.0]
        pair = Reading(lambda batch: (batch["x"], torch.tensor(sum(batch["weights"]))))
        svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=1e-2), Trace_ELBO(), compile=compile)
        torch.manual_seed(0)
        found = [svi.step(batch) for _ in range(3)]
        batch["weights"].append(2.0)
        return [*found, svi.step(batch)]

    assert losses(True) == pytest.approx(losses(False), rel=1e-5)


def test_an_array_among_the_arguments_is_named():
    calls = [((X, {"weights": np.ones(8)}), {})] * 3
    with pytest.warns(UserWarning, match=r"not compiled, runs eagerly: args\[1\]\['weights'\] is a ndarray"):
        run(lambda x, options: (x, torch.from_numpy(options["weights"]).float()), calls, True)


def test_arguments_are_rebuilt_as_they_were():
    packed = pack_padded_sequence(torch.randn(2, 3, 1), torch.tensor([3, 1]), batch_first=True)
    values = (Minibatch(X, None), {"a": [Y, 3]}, packed)
    args = Arguments(values)
    again = args.with_tensors([t + 1 for t in args.tensors])
    assert isinstance(again[0], Minibatch)
    assert type(again[2]) is type(packed)
    assert torch.equal(again[0].x, X + 1)
    assert again[0].mask is None
    assert again[1]["a"][1] == 3
    assert torch.equal(again[1]["a"][0], Y + 1)
