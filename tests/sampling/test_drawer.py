"""Graphs that stay with a pair from one estimate to the next: used again where they are right, and only there."""

import copy
import gc
import pickle
import weakref
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from torch import nn

import ppvae
from ppvae.compile.compiled import MAX_GRAPHS
from ppvae.infer import SVI
from ppvae.sampling import sampler
from tests.infer.pairs import Store

SLOPE = 1.0
"""What the pair reads from its module."""

THRESHOLD = 100.0
LOGITS = [0.0, 0.0]

ELBO = TraceEnum_ELBO(max_plate_nesting=1)


class Linear(nn.Module):
    """y ~ Bernoulli, z ~ N(0, 1), x ~ N(slope z + y, s²); globals and attributes change the slope and the guide."""

    def __init__(self):
        super().__init__()
        self.loc, self.options, self.noise = nn.Parameter(torch.tensor(0.3)), {"scale": [0.8]}, 1.0
        self.register_buffer("shift", torch.tensor(0.1))

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.3))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            slope = torch.where(x > THRESHOLD, 2.0, SLOPE)
            pyro.sample("x", dist.Normal(slope * z + y + self.shift, self.noise), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x * LOGITS[0] + LOGITS[1]), infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal(self.loc * x, self.options["scale"][0]))


@pytest.fixture
def compiled(monkeypatch):
    """The graphs that were compiled; they run as they are, so that the tests need no compiler."""
    graphs = []

    def compile(graph, inputs, options):
        graphs.append(graph)
        return graph

    monkeypatch.setattr("torch._inductor.compile", compile)
    return graphs


def data(n=9):
    return torch.linspace(-2, 3, n)


def estimate(pair, x=None, *, num_samples=30, **options):
    """The terms of the ELBO, and what log p(x) is made of, side by side."""
    x = data() if x is None else x
    terms = ppvae.elbo(pair, x, num_samples=num_samples, **options)
    return torch.stack([terms.values, terms.reconstruction, *terms.kl.values(), terms.std_error])


def check(pair, x=None, **options):
    """Checks the compiled estimates against the eager ones."""
    compiled = estimate(pair, x, compile=True, **options)
    torch.testing.assert_close(compiled, estimate(pair, x, compile=False, **options), rtol=1e-6, atol=1e-6)
    return compiled


def kept(pair):
    return vars(pair).get("_ppvae_drawer")


def test_graphs_are_used_again(compiled):
    pair = Linear()
    first = check(pair)
    assert len(compiled) == 1
    assert torch.equal(check(pair), first)
    assert not torch.equal(check(pair, seed=1), first)
    check(pair, data() ** 2)
    assert len(compiled) == 1
    check(pair, data(4))
    assert len(compiled) == 2
    check(pair)
    check(pair, data(4))
    assert len(compiled) == 2


@pytest.mark.usefixtures("with_and_without_inductor")
def test_with_a_compiler_they_are_too(monkeypatch):
    compile, count = torch._inductor.compile, []
    monkeypatch.setattr("torch._inductor.compile", lambda *args: count.append(1) or compile(*args))
    pair = Linear()
    check(pair)
    with torch.no_grad():
        pair.loc.fill_(0.5)
    check(pair)
    assert len(count) == 1


def test_weights_that_change_in_place_are_followed(compiled, tmp_path):
    pair, other = Linear(), Linear()
    first = check(pair)
    with torch.no_grad():
        pair.loc.fill_(0.5)
        pair.shift.fill_(-0.2)
    assert not torch.allclose(check(pair), first)
    pair.load_state_dict(other.state_dict())
    assert torch.equal(check(pair), first)
    ppvae.save(pair, tmp_path / "pair.safetensors")
    ppvae.fit(pair, data(30), epochs=2, lr=0.1, batch_size=10, progress=False, compile=False, loss=ELBO)
    assert not torch.allclose(check(pair), first)
    ppvae.load(pair, tmp_path / "pair.safetensors")
    assert torch.equal(check(pair), first)
    assert len(compiled) == 1


CHANGES = {
    "attribute": lambda pair: setattr(pair, "noise", 0.7),
    "list in a dict": lambda pair: pair.options["scale"].__setitem__(0, 1.1),
    "parameter": lambda pair: setattr(pair, "loc", nn.Parameter(torch.tensor(0.6))),
    "buffer": lambda pair: setattr(pair, "shift", torch.tensor(0.6)),
    "dtype": lambda pair: pair.double(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_on_the_pair_counts(compiled, what):
    pair = Linear()
    first = check(pair)
    CHANGES[what](pair)
    second = check(pair)
    assert what == "dtype" or not torch.allclose(second, first)
    assert torch.equal(check(pair), second)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLOPE", 3.0),
        ("SLOPE", 1.0001),
        ("LOGITS", [0.0, 2.0]),  # of q(y|x) alone, which is no part of the weights
        ("THRESHOLD", 2.9),  # which concerns the last datum alone
    ],
)
def test_a_global_that_changes_counts(compiled, monkeypatch, name, value):
    pair = Linear()
    first = check(pair)
    monkeypatch.setitem(globals(), name, value)
    second = check(pair)
    assert not torch.equal(second, first)
    assert len(compiled) == 2


def test_a_global_that_changes_between_kinds_of_blocks(compiled, monkeypatch):
    monkeypatch.setitem(sampler.ROW_BLOCK, "cpu", 16 * 7)  # blocks of 7 data
    pair = Linear()
    check(pair, data(2))
    monkeypatch.setitem(globals(), "SLOPE", 3.0)
    check(pair, data(7))  # leaves a graph for 7 data of now beside that for 2 data of before
    check(pair, data(9))  # 7 and 2
    assert len(compiled) == 3


def test_a_global_tensor_that_changes(compiled, monkeypatch):
    pair = Linear()
    monkeypatch.setitem(globals(), "LOGITS", torch.tensor([0.0, 0.5]))
    first = check(pair)
    LOGITS[1] = -0.5
    second = check(pair)
    assert not torch.allclose(second, first)
    assert len(compiled) == 1
    monkeypatch.setitem(globals(), "LOGITS", torch.tensor([0.0, 0.5]))
    assert torch.equal(check(pair), first)


def test_other_questions_of_the_same_pair(compiled):
    class Two(Linear):
        def model(self, x):
            super().model(x)
            with pyro.plate("more", len(x)):
                pyro.sample("w", dist.Normal(self.loc, 1.0), obs=x)

    pair = Two()
    plain = check(pair)
    conditional = check(pair, given="w")
    torch.testing.assert_close(
        plain[0] - conditional[0], dist.Normal(pair.loc.detach(), 1.0).log_prob(data()).double(), rtol=0, atol=1e-5
    )
    check(pair, batch_size=3)
    check(pair)
    assert len(compiled) == 3


def test_more_kinds_of_blocks_than_graphs(compiled):
    pair = Linear()
    for n in range(2, MAX_GRAPHS + 4):
        check(pair, data(n))
    assert len(compiled) == MAX_GRAPHS + 2
    check(pair, data(MAX_GRAPHS + 3))
    assert len(compiled) == MAX_GRAPHS + 2


def test_graphs_that_are_wrong_are_not_used(monkeypatch):
    monkeypatch.setattr("torch._inductor.compile", lambda graph, *_: lambda *args: [t + 0.1 for t in graph(*args)])
    with pytest.warns(UserWarning, match="runs eagerly: compiled, log p of the data differs"):
        found = estimate(Linear(), compile=True, num_samples=600)
    assert torch.equal(found, estimate(Linear(), num_samples=600))


def test_an_estimate_that_fails_leaves_the_next_right(compiled):
    pair = Linear()
    first = check(pair)
    with pytest.raises(ValueError, match="x"):
        estimate(pair, torch.full((9,), torch.nan), compile=True)
    assert torch.equal(check(pair), first)


def test_few_samples_leave_the_graphs(compiled):
    pair = Linear()
    check(pair)
    check(pair, num_samples=10)  # fewer than are worth a graph
    check(pair)
    assert len(compiled) == 1


# No part of the pair's state.


def test_copies_and_files(compiled):
    pair = Linear()
    names = list(pair.state_dict())
    first = check(pair)
    assert kept(pair) is not None
    assert list(pair.state_dict()) == names
    for twin in (copy.deepcopy(pair), pickle.loads(pickle.dumps(pair)), copy.copy(pair)):
        assert torch.equal(check(twin), first)
        twin.noise = 0.7
        with torch.no_grad():
            twin.loc.add_(0.1)
        assert not torch.allclose(check(twin), first)
        with torch.no_grad():
            twin.loc.sub_(0.1)
        torch.testing.assert_close(check(pair), first)


def test_a_pair_that_is_gone_takes_its_graphs_along(compiled):
    pair = Linear()
    check(pair)
    gone = weakref.ref(pair), weakref.ref(kept(pair))
    compiled.clear()
    del pair
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


def test_graphs_of_parameters_that_the_pair_does_not_hold_are_not_kept(compiled):
    pair = Store()
    check(pair)
    assert kept(pair) is None
    assert not list(pair.parameters())
    ppvae.fit(pair, data(30), epochs=1, progress=False, compile=False)  # attaches them
    check(pair)
    assert kept(pair) is not None
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.add_(0.3)
    check(pair)


def test_training_in_between_is_not_compiled_anew(compiled):
    pair = Linear()
    svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=0.01), ELBO, compile=True)
    for _ in range(3):
        svi.step(data())
    assert len(compiled) == 1
    for _ in range(2):
        check(pair)
        svi.step(data())
    assert len(compiled) == 2
    assert svi._compiled._retraces == 0
