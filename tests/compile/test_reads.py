"""What Python reads from tensors: every way to read is noted, and a graph is used only where it would be read again."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import ppvae
from ppvae.compile import Compiled
from ppvae.infer import SVI

N = 6
X = torch.linspace(-2, 1, 4 * N).view(N, 4)
COUNTS = torch.arange(N * 4).view(N, 4) % 5


class Scaled(nn.Module):
    """A pair whose likelihood depends on what `read` makes of its arguments."""

    def __init__(self, read):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.5))
        self.read = read

    def model(self, x, *args):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) * self.read(x, *args), 1.0).to_event(1), obs=x)

    def guide(self, x, *args):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 1.0))


def steps(make, batches, compile, **options):
    """Losses, how often the guide ran in each step, and the SVI."""
    torch.manual_seed(0)
    pair = make()
    ran, guide = [], pair.guide

    def counted(*args):
        ran.append(1)
        return guide(*args)

    svi = SVI(pair.model, counted, partial(torch.optim.SGD, lr=1e-3), Trace_ELBO(), compile=compile, owner=pair)
    torch.manual_seed(1)
    losses, runs = [], []
    for batch in batches:
        ran.clear()
        losses.append(svi.step(*batch))
        runs.append(len(ran))
    return losses, runs, svi


def assert_same(make, batches):
    """Eager and compiled losses agree, and differ where what is read does. How often the guide ran, and the SVI."""
    eager, _, _ = steps(make, batches, False)
    compiled, runs, svi = steps(make, batches, True)
    assert compiled == pytest.approx(eager, rel=1e-6)
    assert not svi._compiled._eager
    return runs, svi


def assert_values_same(read, batches):
    """What `read` makes of arguments, times a parameter: eager and compiled alike. No pair: reads are what matters."""
    scale = nn.Linear(1, 1)

    def compute(args):
        return [(scale.weight * read(*args)).sum()], None

    compiled = Compiled(compute, [scale], names=("args",))
    with torch.no_grad():
        for batch in batches:
            torch.testing.assert_close(compiled(batch)[0][0], compute(batch)[0][0], rtol=1e-6, atol=0.0)
    return compiled


READS = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "int": lambda x: int(10 * x.sum()),
    "bool": lambda x: 3.0 if x.sum() > 0 else 1.0,
    "index": lambda x: len(range(x.abs().sum().long())),
    "complex": lambda x: complex(x.sum()).real,
    "tolist": lambda x: x[0].tolist()[0],
    "format": lambda x: float(f"{x.sum():.3f}"),
    "torch.tensor": lambda x: torch.tensor([x.sum(), 1.0, 2.0, 3.0]),
    "torch.as_tensor": lambda x: torch.as_tensor([x.sum(), 1.0, 2.0, 3.0]),
    "torch.asarray": lambda x: torch.asarray([x.sum(), 1.0, 2.0, 3.0]),
    "nested": lambda x: torch.tensor([[x.sum(), 1.0], [2.0, 3.0]]).view(4),
    "new_tensor": lambda x: x.new_tensor([x.sum(), 1.0, 2.0, 3.0]),
    "new": lambda x: x.new([x.sum(), 1.0, 2.0, 3.0]),
    "FloatTensor": lambda x: torch.FloatTensor([x.sum(), 1.0, 2.0, 3.0]),
    "full": lambda x: torch.full((4,), x.sum()),
    "sparse": lambda x: torch.sparse_coo_tensor([[0]], [x.sum()], (4,)).to_dense(),
    "arange": lambda x: torch.arange(x.abs().sum()).sum(),
    "membership": lambda x: 1.0 if 1.0 in x else 2.0,
    "max": lambda x: max(x.sum(), x.mean()),
    "slice": lambda x: x[:, : x.abs().sum().long()].sum(),
    "tensor_split": lambda x: len(torch.tensor_split(x, x[:1, 0].abs().mul(3).long())[0]) + 1.0,
    "one_hot": lambda x: nn.functional.one_hot(x.abs().mul(3).long()).sum(-1).shape[-1] + x,
    "equal": lambda x: 1.0 if torch.equal(x, x.abs()) else 2.0,
}


@pytest.mark.filterwarnings("ignore:.*deprecated:UserWarning", "ignore:Sparse:UserWarning")
@pytest.mark.parametrize("name", READS)
def test_a_value_that_is_read_is_no_constant(name):
    batches = [(X,)] * 3 + [(1.7 * X.abs(),)] * 4 + [(X,)]
    if name == "equal":  # a comparison of whole tensors gives Python's own value
        with pytest.warns(UserWarning, match="not compiled, runs eagerly: aten.equal"):
            assert_values_same(READS[name], batches)
    else:
        assert assert_values_same(READS[name], batches).num_graphs


def test_what_comes_back_is_looked_at_again_and_compiled():
    batches = [(X,)] * 3 + [(X.abs(),)] * 6 + [(X,)]
    runs, svi = assert_same(partial(Scaled, READS["bool"]), batches)
    assert runs[6:] == [0] * 4
    assert svi._compiled.num_graphs == 2


class Counting(nn.Module):
    """Counts with a total that Python reads and that their density does not need."""

    def __init__(self, weigh=lambda total, docs: 1.0):
        super().__init__()
        self.net = nn.Linear(3, 4)
        self.weigh = weigh

    def model(self, docs):
        total = int(docs.sum(-1).max())
        with pyro.plate("data", len(docs)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            with pyro.poutine.scale(scale=self.weigh(total, docs)):
                pyro.sample("x", dist.Multinomial(total, logits=self.net(z)), obs=docs)

    def guide(self, docs):
        with pyro.plate("data", len(docs)):
            pyro.sample("z", dist.Normal(docs[:, :3] / 10, 1.0).to_event(1))


def documents(total, generator):
    docs = torch.randint(0, 3, (N, 4), generator=generator).float()
    docs[0] = torch.tensor([total, 0.0, 0.0, 0.0])
    return (docs,)


def test_a_number_that_the_arithmetic_does_not_need_makes_no_graph_of_its_own():
    generator = torch.Generator().manual_seed(0)
    totals = [20, 20, 21, 22, 21, 22, 20, 21, 22, 21]
    runs, svi = assert_same(Counting, [documents(t, generator) for t in totals])
    assert svi._compiled.num_graphs == 1
    assert runs[6:] == [0] * 4


@pytest.mark.parametrize(
    "weigh",
    [lambda total, docs: 3.0 if total == 23 else 1.0, lambda total, docs: 3.0 if total > 10 * len(docs) else 1.0],
    ids=["equality", "threshold"],
)
def test_a_number_that_matters_at_one_value_alone_is_not_taken_for_free(weigh):
    generator = torch.Generator().manual_seed(0)
    totals = [20, 20, 21, 21, 21, 22, 22, 22, 23, 23, 61, 61, 61, 23, 23, 61, 20]
    _, svi = assert_same(partial(Counting, weigh), [documents(t, generator) for t in totals])
    assert svi._compiled.num_graphs == 2


def test_a_number_that_never_comes_back_is_told_once_with_its_line():
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.rand(N, 4, generator=generator),) for _ in range(40)]
    read = READS["float"]
    eager, _, _ = steps(partial(Scaled, read), batches, False)
    with pytest.warns(UserWarning, match=rf"test_reads.py:{read.__code__.co_firstlineno}") as caught:
        compiled, _, _ = steps(partial(Scaled, read), batches, True)
    assert len(caught) == 1
    assert compiled == pytest.approx(eager, rel=1e-6)


def test_what_an_eager_run_leaves_on_modules_makes_no_graph_anew():
    """An autoguide keeps the plates of its last call."""

    def model(x):
        weight = 3.0 if x.sum() > 0 else 1.0
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(weight * z, 1.0), obs=x[:, 0])

    pair = ppvae.Pair(model, AutoNormal(model))
    svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=1e-3), Trace_ELBO(), compile=True)
    for x in (X, X, X, X.abs(), X, X.abs(), X.abs(), X):
        svi.step(x)
    assert (svi._compiled.num_graphs, svi._compiled._retraces) == (2, 0)


class Switching(Scaled):
    """A pair that reads a buffer, and writes to it afterwards."""

    def __init__(self):
        super().__init__(lambda x: x)
        self.register_buffer("count", torch.zeros(()))

    def model(self, x):
        weight = 3.0 if self.count.item() >= 4 else 1.0
        self.count.add_(1.0)
        with pyro.poutine.scale(scale=weight):
            super().model(x)


def test_a_buffer_that_is_read_before_it_is_written_to_is_compared_as_it_was_read():
    eager, _, _ = steps(Switching, [(X,)] * 12, False)
    compiled, _, _ = steps(Switching, [(X,)] * 12, True)
    assert compiled == pytest.approx(eager, rel=1e-6)


class Series(nn.Module):
    """A pair that reads series of different lengths through a recurrent net."""

    def __init__(self, net=nn.GRU, pack=True):
        super().__init__()
        self.net = net(4, 3, batch_first=True)
        self.pack = pack

    def model(self, x, lengths):
        n = N if isinstance(x, PackedSequence) else len(x)
        with pyro.plate("data", n):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            data = x.data.sum() if isinstance(x, PackedSequence) else x.sum((1, 2))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=data.expand(n))

    def guide(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True) if self.pack else x
        outputs, _ = self.net(packed)
        padded, _ = pad_packed_sequence(outputs, batch_first=True)
        with pyro.plate("data", len(padded)):
            pyro.sample("z", dist.Normal(padded.sum(1), 1.0).to_event(1))


PADDED = torch.linspace(-1, 1, N * 3 * 4).view(N, 3, 4)
LENGTHS = [torch.tensor(lengths) for lengths in ([3, 2, 2, 2, 2, 1], [3, 3, 2, 2, 1, 1], [3, 3, 3, 1, 1, 1])]


@pytest.mark.parametrize("net", [nn.GRU, nn.LSTM, nn.RNN])
def test_lengths_of_the_same_sum_are_not_taken_for_each_other(net):
    """Torch's recurrent nets read them where no mode of torch's sees it."""
    batches = [(PADDED, LENGTHS[i]) for i in (0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 0, 1, 2)]
    runs, _ = assert_same(partial(Series, net), batches)
    assert runs[-3:] == [0] * 3


def test_packed_sequences_are_compiled():
    packed = [pack_padded_sequence(PADDED, lengths, batch_first=True) for lengths in LENGTHS]
    batches = [(packed[i], None) for i in (0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 0, 1, 2)]
    runs, _ = assert_same(partial(Series, pack=False), batches)
    assert runs[-3:] == [0] * 3


def overwritten(x):
    y = x.clone()
    y[x > 0] = 0.0
    return y


def copied(x):
    y = x.clone()
    y[x > 0.5] = x.abs().sqrt()[x > 0.5]
    return y


def ranked(x):
    return x[x.argsort(0).argsort(0) < 2].view(2, -1).sum(0) + x


MASKS = {
    "written by a number": overwritten,
    "written by values": copied,
    "selected": ranked,
    "masked_select": lambda x: torch.masked_select(x, x.argsort(0).argsort(0) < 2).sum() + x,
    "nonzero": lambda x: (x.argsort(0).argsort(0) < 2).nonzero().float().mean() + x,
    "where": lambda x: torch.where(x.argsort(0).argsort(0) < 2)[0].float().mean() + x,
    "of rows": lambda x: x[x[:, 0].argsort().argsort() < 2].sum(0),
    "gradient": lambda x: x.new_ones(N, 4).mul(x)[x.argsort(0).argsort(0) < 2].pow(2).sum(),
}


@pytest.mark.usefixtures("with_and_without_inductor")
@pytest.mark.parametrize("name", MASKS)
def test_masks_of_as_many_elements_are_one_graph(name):
    generator = torch.Generator().manual_seed(0)
    batches = [(X[torch.randperm(N, generator=generator)],) for _ in range(6)]
    eager, _, _ = steps(partial(Scaled, MASKS[name]), batches, False)
    compiled, runs, svi = steps(partial(Scaled, MASKS[name]), batches, True)
    assert compiled == pytest.approx(eager, rel=1e-5)
    assert svi._compiled.num_graphs == 1
    assert runs[3:] == [0] * 3


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_more_elements_count(name):
    batches = [(X,), (X,), (X,), (X.abs(),), (-X,), (X.abs(),), (X.abs() - 0.3,), (X.abs(),), (X,)]
    assert assert_values_same(MASKS[name], batches).num_graphs


class Drawn(nn.Module):
    """A pair that takes the elements where a random number is positive: how many is known only after it was drawn."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(N))

    def model(self, x):
        z = pyro.sample("z", dist.Normal(torch.zeros(N), 1.0).to_event(1))
        weight = z[z > 0].square().sum()
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(weight, 1.0).expand([4]).to_event(1), obs=x)

    def guide(self, x):
        pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1))


@pytest.mark.usefixtures("with_and_without_inductor")
def test_a_mask_of_what_is_drawn_is_looked_at_after_the_graph():
    batches = [(X,)] * 30
    eager, _, _ = steps(Drawn, batches, False)
    compiled, runs, _ = steps(Drawn, batches, True)
    assert compiled == pytest.approx(eager, rel=1e-5)
    assert 0 in runs
