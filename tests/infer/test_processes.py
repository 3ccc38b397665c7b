"""Training by two and three processes: as by one, together in every decision."""

import json
import os
import signal
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO
from torch import nn

import ppvae
from ppvae import processes
from ppvae.data import Batches, Binarize, JointBatches, Source
from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
from ppvae.infer import NonFiniteError, RunFolder
from ppvae.models import VAE
from ppvae.nn import MLP
from ppvae.objectives import MMD, WAE, FreeBitsELBO
from tests.group import values
from tests.infer.pairs import ADAM, D, FixedNoise, K, binary, noise, same, small_vae, state, summary

N = 67
"""Data of which minibatches of 16 leave three, and of 32 as many as there are processes."""


class Shared(nn.Module):
    """A mean that all data share, learned as a point: data that a plate scales to a thousand."""

    def __init__(self, scaled=True):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(D))
        self.scaled = scaled

    def model(self, x):
        mean = pyro.sample("mean", dist.Normal(x.new_zeros(D), 1.0).to_event(1))
        plate = pyro.plate("data", 1000, subsample_size=len(x)) if self.scaled else pyro.plate("data", len(x))
        with plate:
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.sample("mean", dist.Delta(self.loc, event_dim=1))


def trained(kind, batch_size, compile):
    """A training of a kind, from weights that are another in each process: those of the first count."""
    start = processes.rank()
    x, eps = binary(N), noise()
    options = {"epochs": 2, "optim": ADAM, "compile": compile, "progress": False, "clip_norm": 1.0}
    if kind == "plain":
        pair, data = FixedNoise(start), Batches(x, eps, batch_size=batch_size, seed=3)
    elif kind == "transformed":
        pair, data = FixedNoise(start), Batches(0.5 * x, eps, batch_size=batch_size, transform=Binarize(), seed=3)
    elif kind == "loader":  # its order comes of the global generator
        rows = torch.utils.data.TensorDataset(x, eps)
        pair, data = FixedNoise(start), torch.utils.data.DataLoader(rows, batch_size=batch_size, shuffle=True)
    elif kind == "joint":
        labelled = Batches(x[:17], eps[:17], x[:17, 0], batch_size=5, seed=4, drop_last=True)
        pair, data = FixedNoise(start), JointBatches(labelled, Batches(x[17:], eps[17:], batch_size=batch_size, seed=3))
    else:
        pair, data = Shared(), Batches(x, batch_size=batch_size, seed=3)
    return summary(pair, ppvae.fit(pair, data, **options))


KINDS = [
    ("plain", 16, False),
    ("plain", 16, True),
    ("plain", 33, False),  # a last minibatch of one: no rows for most
    ("transformed", 16, False),
    ("loader", 16, False),
    ("joint", 10, False),
    ("shared", 16, False),
    ("shared", 33, True),
]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(("kind", "batch_size", "compile"), KINDS)
def test_as_by_one(group, world, kind, batch_size, compile):
    weights, history = trained(kind, batch_size, compile)
    others = values(group(world, trained, kind, batch_size, compile))
    for theirs, rows in others:
        assert same(theirs, others[0][0])
        assert rows == others[0][1]
        for name, value in weights.items():
            assert torch.allclose(theirs[name], value, atol=2e-5), name
        for row, own in zip(rows, history, strict=True):
            assert row.keys() == own.keys()
            assert all(row[name] == pytest.approx(own[name], rel=1e-5, abs=1e-5) for name in own)


def looped():
    pair, x = small_vae(processes.rank()), binary(20)
    processes.share(list(pair.named_parameters()))
    pair.guide = partial(one_value, pair)
    svi = ppvae.SVI(pair.model, pair.guide, ADAM, Trace_ELBO(), on_gradients=processes.sum_gradients, owner=pair)
    with svi.running():
        for _ in range(5):
            svi.update(x[processes.rank() :: processes.world()], weight=1 / len(x))
    return state(pair)


def one_value(pair, x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Delta(pair.q_z_given_x(x).base_dist.loc, event_dim=1))


def test_a_loop_of_ones_own(group):
    expected = looped()
    for found in values(group(2, looped)):
        assert all(torch.allclose(found[name], value, atol=1e-5) for name, value in expected.items())


def in_half(compile):
    pair, data = FixedNoise(), Batches(binary(N), noise(), batch_size=16, seed=3)
    run = ppvae.fit(pair, data, epochs=2, optim=ADAM, autocast=torch.bfloat16, compile=compile, progress=False)
    return summary(pair, run)


@pytest.mark.parametrize("compile", [False, True])
def test_products_in_bfloat16(group, compile):
    weights, history = in_half(compile)
    (found, rows), (theirs, _) = values(group(2, in_half, compile))
    assert same(found, theirs)
    assert all(torch.allclose(found[name], value, atol=0.02) for name, value in weights.items())
    assert rows[-1]["loss"] == pytest.approx(history[-1]["loss"], rel=1e-3)


def own_noise(seed):
    drawn = []

    class Recording(VAE):
        def guide(self, x):
            super().guide(x)
            drawn.append(torch.randn(3) if self.training else None)

    pair = Recording(StandardNormal(K), ConditionalBernoulli(MLP(K, (8,), D)), ConditionalNormal(MLP(D, (8,), (2, K))))
    run = ppvae.fit(pair, binary(), epochs=1, batch_size=10, compile=False, seed=seed, progress=False)
    return [t for t in drawn if t is not None], run.history, torch.get_rng_state()


def test_every_process_and_step_has_noise_of_its_own(group):
    (first, history, _), (second, theirs, _) = values(group(2, own_noise, 0))
    assert history == theirs
    assert len(first) == 5
    assert len(torch.stack([*first, *second]).unique(dim=0)) == 10
    (again, repeated, _), _ = values(group(2, own_noise, 0))
    assert all(map(torch.equal, first, again))
    assert history == repeated


class Interrupting(Source):
    """Minibatches, of which one makes a process interrupt itself."""

    def __init__(self, rank=None, at=None):
        self.batches = Batches(binary(N), noise(), batch_size=16, seed=3)
        self.num_batches, self.rank, self.at = len(self.batches), rank, at

    def epoch(self, index):
        for i, batch in enumerate(self.batches.epoch(index)):
            if (index, i) == self.at and processes.rank() == self.rank:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


def resumed(out, epochs, data, options=None):
    pair = FixedNoise()
    run = ppvae.fit(
        pair, data, epochs=epochs, optim=ADAM, compile=False, out=out, resume=True, progress=False, **(options or {})
    )
    return run.stopped, *summary(pair, run)


def test_a_signal_to_one_stops_all_and_any_number_resumes(group, tmp_path):
    """Two stop in the second epoch, one goes on, two end it: as one that never stopped; two and two, bit for bit."""
    _, weights, history = resumed(tmp_path / "one", 4, Interrupting())
    found = values(group(2, resumed, tmp_path / "two", 4, Interrupting(1, (1, 2))))
    assert [stopped for stopped, _, _ in found] == ["interrupted"] * 2
    kept = RunFolder(tmp_path / "two").read_checkpoint()["progress"]
    assert (kept["epoch"], kept["step"]) == (1, 2)
    assert RunFolder(tmp_path / "two").read_config()["fit"]["processes"] == 2
    stopped, _, _ = resumed(tmp_path / "two", 3, Interrupting())
    assert stopped == "finished"
    for stopped, theirs, rows in values(group(2, resumed, tmp_path / "two", 4, Interrupting())):
        assert stopped == "finished"
        assert len(rows) == 4
        assert all(torch.allclose(theirs[name], value, atol=1e-4) for name, value in weights.items())
        assert rows[-1]["loss"] == pytest.approx(history[-1]["loss"], rel=1e-4)


def stopped_and_resumed(out):
    x, pair = binary(), small_vae()
    unbroken = ppvae.fit(pair, x, x[:20], epochs=3, batch_size=16, compile=False, progress=False)
    expected = summary(pair, unbroken)
    ppvae.fit(small_vae(), x, x[:20], epochs=2, batch_size=16, compile=False, out=out, progress=False)
    pair = small_vae(7)
    run = ppvae.fit(
        pair, x, x[:20], epochs=3, batch_size=16, compile=False, out=out, resume=True, progress=False,
    )  # fmt: skip
    found = summary(pair, run)
    return same(expected[0], found[0]), expected[1] == found[1], run.folder


def test_resumed_by_as_many_is_bit_for_bit(group, tmp_path):
    assert values(group(2, stopped_and_resumed, tmp_path / "run")) == [(True, True, tmp_path / "run")] * 2


class Breaks(nn.Module):
    """A density that is NaN for data of a certain value."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(D))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(D), 1.0).to_event(1))
            bad = torch.where(x[:, :1] > 5, torch.nan, 0.0)
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
            pyro.factor("f", bad.sum(-1) * self.loc.sum())

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1))


def meets_nan(out):
    x = binary(64)
    x[40] = 9.0
    data = Batches(x, batch_size=16, shuffle=False)
    pair = Breaks()
    with pytest.raises(NonFiniteError) as caught:
        ppvae.fit(pair, data, epochs=2, out=out, compile=False, progress=False)
    return str(caught.value), state(pair)


def test_a_nan_of_one_is_named_by_all(group, tmp_path):
    (message, weights), (other, theirs) = values(group(2, meets_nan, tmp_path / "run"))
    assert message == other
    assert same(weights, theirs)
    assert bool(weights["loc"].isfinite().all())
    assert "'f' in the model is not finite in 1 of 8 elements, in process 1, in epoch 1, step 3" in message


def asked_to_stop():
    x = binary()
    one_asks = [lambda row, pair, epoch: epoch == 2 and processes.rank() == 1]
    run = ppvae.fit(small_vae(), x, epochs=5, batch_size=16, compile=False, callbacks=one_asks, progress=False)
    early = ppvae.fit(
        small_vae(), x, x[:9], epochs=40, lr=0.5, batch_size=16, compile=False, patience=1, progress=False
    )
    return run.stopped, len(run.history), early.stopped, len(early.history), early.best_epoch


def test_all_stop_together(group):
    first, second = values(group(2, asked_to_stop))
    assert first == second
    assert first[:2] == ("callback", 2)
    assert first[2] == "early"


def refused(case):
    x, start = binary(), partial(small_vae, 0)
    pair, data, options = {
        "batch norm": lambda: (small_vae(norm="batch"), x, {}),
        "mmd": lambda: (start(), x, {"loss": WAE(MMD(), weight=1.0)}),
        "free bits": lambda: (start(), x, {"loss": FreeBitsELBO(0.1)}),
        "renyi": lambda: (start(), x, {"loss": RenyiELBO(alpha=0.5, num_particles=2)}),
        "global": lambda: (Shared(scaled=False), x, {}),
        "few": lambda: (start(), x, {"batch_size": 1}),
        "other data": lambda: (start(), binary(seed=processes.rank()), {}),
        "other settings": lambda: (start(), x, {"lr": 0.1 * (1 + processes.rank())}),
        "other pair": lambda: (small_vae(norm=None if processes.rank() else "layer"), x, {}),
        "few of a set": lambda: (start(), JointBatches(Batches(x, batch_size=16), Batches(x[:5], batch_size=2)), {}),
        "counts": lambda: (Counting(), x, {}),
    }[case]()
    options = {"batch_size": 16, "epochs": 1, "compile": False, "progress": False} | options
    ppvae.fit(pair, data, **options)


class Counting(nn.Module):
    """Keeps a moving average of its data."""

    def __init__(self):
        super().__init__()
        self.vae = small_vae()
        self.register_buffer("mean", torch.zeros(D))

    def model(self, x):
        return self.vae.model(x)

    def guide(self, x):
        if self.training:
            self.mean.lerp_(x.mean(0), 0.1)
        return self.vae.guide(x)


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("batch norm", "pair has batch norm"),
        ("mmd", "loss WAE is no sum over the data"),
        ("free bits", "loss FreeBitsELBO is no sum over the data"),
        ("renyi", "loss RenyiELBO is no sum over the data"),
        ("global", "the site 'mean' of the .* does not lie in the data plate"),
        ("few", "batch_size must be at least 2 in 2 processes, got 1"),
        ("other data", "the first minibatch of train must be the same in every process"),
        ("other settings", "what fit is given must be the same"),
        ("other pair", "the parameters must be the same"),
        ("few of a set", "sets.1. has a minibatch of 1 data, fewer than the 2 parts that it has in 2 processes"),
        ("counts", "mean is another in process 1 than in process 0"),
    ],
)
def test_what_cannot_be_shared_is_refused(group, case, says):
    for error in group(2, refused, case):
        assert isinstance(error, ValueError), error
        with pytest.raises(ValueError, match=says):
            raise error


def killed(out):
    def dies(row, pair, epoch):
        if epoch == 2 and processes.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    data = Interrupting()
    ppvae.fit(FixedNoise(), data, epochs=4, optim=ADAM, compile=False, out=out, callbacks=[dies], progress=False)


def test_a_killed_process_ends_the_run_and_leaves_its_checkpoint(group, tmp_path):
    error, _ = group(2, killed, tmp_path / "run", lost=[1])
    assert isinstance(error, RuntimeError)
    assert "has no answer from the others" in str(error)
    assert RunFolder(tmp_path / "run").read_checkpoint()["progress"]["epoch"] == 2
    stopped, _, rows = resumed(tmp_path / "run", 3, Interrupting())
    assert stopped == "finished"
    assert len(rows) == 3


def test_one_process_is_as_ever(tmp_path):
    run = ppvae.fit(small_vae(), binary(), epochs=1, out=tmp_path / "run", progress=False)
    assert json.loads((run.folder / "config.json").read_text())["fit"]["processes"] == 1
    svi = ppvae.SVI(small_vae().model, small_vae().guide, ADAM, Trace_ELBO())
    assert svi.stepper.on_gradients is None
