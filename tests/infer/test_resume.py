"""A run that is stopped at any moment and resumed is, bit for bit, the run that never stopped."""

import os
import signal
from functools import partial

import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import ppvae
from ppvae.data import Batches, Binarize
from ppvae.infer import RunFolder
from ppvae.objectives import Cosine, Linear
from ppvae.storage import load_state
from tests.group import FORKED
from tests.infer.pairs import D, Published, Store, binary, same, small_vae, state

N, BATCH = 28, 8  # four steps an epoch, the last one short
PAIRS = {
    "plain": small_vae,
    "dropout and batch norm": partial(small_vae, dropout=0.2, norm="batch"),
    "pyro.module": Published,
}


class Interrupted(nn.Module):
    """A pair that sends its process a signal in the middle of chosen steps."""

    def __init__(self, pair, steps=(), number=signal.SIGINT):
        super().__init__()
        self.pair, self.steps, self.number, self.count = pair, steps, number, -1

    def model(self, *batch):
        self.pair.model(*batch)

    def guide(self, *batch):
        if torch.is_grad_enabled():
            self.count += 1
            if self.count in self.steps:
                signal.raise_signal(self.number)
        self.pair.guide(*batch)


def tensors():
    return binary(N)


def dynamic():
    grey = torch.rand(N, D, generator=torch.Generator().manual_seed(0))
    return Batches(grey, batch_size=BATCH, transform=Binarize(), seed=4)


def loader(**options):
    return DataLoader(TensorDataset(binary(N)), batch_size=BATCH, **options)


def shuffling_loader():
    return loader(shuffle=True)


def loader_with_a_generator():
    return loader(shuffle=True, generator=torch.Generator().manual_seed(3))


def loader_with_a_sampler():
    data = TensorDataset(binary(N))
    sampler = RandomSampler(data, generator=torch.Generator().manual_seed(3))
    return DataLoader(data, batch_size=BATCH, sampler=sampler)


class Augmented(torch.utils.data.Dataset):
    """Draws from the global generator with every item, between the draws of the steps."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        return (torch.bernoulli(torch.full((D,), 0.5)),)


def augmenting_loader():
    return DataLoader(Augmented(), batch_size=BATCH, shuffle=True)


DATA = [tensors, dynamic, shuffling_loader, loader_with_a_generator, loader_with_a_sampler, augmenting_loader]


def train(pair, data, out, **options):
    options = {
        "epochs": 4,
        "batch_size": BATCH,
        "lr": Cosine(4, start=0.02),
        "kl_weight": Linear(3),
        "patience": 3,
        "seed": 5,
        "progress": False,
        **options,
    }
    dtype = next(pair.parameters()).dtype
    return ppvae.fit(pair, data(), binary(10, seed=1).to(dtype), out=out, **options)


def check_equal(one, other):
    """All that two runs left, but for the time."""
    one, other = RunFolder(one), RunFolder(other)
    assert one.history.read_bytes() == other.history.read_bytes()
    assert one.model.read_bytes() == other.model.read_bytes()
    states = [load_state(run.last) for run in (one, other)]
    assert all(state["progress"].pop("seconds") > 0 for state in states)
    assert same(*states)
    assert same(load_state(one.best), load_state(other.best))


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("kind", PAIRS)
def test_interrupted_at_any_step(tmp_path, kind, data):
    make = PAIRS[kind]
    whole = train(Interrupted(make()), data, tmp_path / "whole")
    # the first step, the middle and the end of an epoch, the first of the next, and twice in one epoch
    for i, step in enumerate((0, 3, 4, 6) if kind == "plain" else (6,)):
        out = tmp_path / str(i)
        stopped = train(Interrupted(make(), {step}), data, out)
        assert stopped.stopped == "interrupted"
        assert len(stopped.history) == step // 4
        stopped = train(Interrupted(make(seed=9), {1}), data, out, resume=True)
        assert stopped.stopped == "interrupted"
        pair = Interrupted(make(seed=9))
        resumed = train(pair, data, out, resume=True)
        assert (resumed.history, resumed.best_epoch, resumed.stopped) == (whole.history, whole.best_epoch, "finished")
        check_equal(tmp_path / "whole", out)
        assert same(state(pair), RunFolder(out).weights())


def test_other_objectives_and_declared_parameters(tmp_path):
    x = torch.randn(N, generator=torch.Generator().manual_seed(0))
    options = {
        "loss": TraceMeanField_ELBO(),
        "epochs": 3,
        "batch_size": BATCH,
        "progress": False,
        "optim": torch.optim.RMSprop,
    }
    ppvae.fit(Store(), x, out=tmp_path / "whole", **options)
    ppvae.fit(Interrupted(Store(), {6}), x, out=tmp_path / "parts", **options)
    ppvae.fit(Interrupted(Store()), x, out=tmp_path / "parts", resume=True, **options)
    assert same(RunFolder(tmp_path / "whole").read_history(), RunFolder(tmp_path / "parts").read_history())
    assert same(RunFolder(tmp_path / "whole").weights(), RunFolder(tmp_path / "parts").weights())


@pytest.mark.parametrize(
    "loss",
    [
        partial(TraceEnum_ELBO, strict_enumeration_warning=False),
        partial(Trace_ELBO, num_particles=2, vectorize_particles=True),
    ],
)
def test_a_guess_of_how_plates_nest_is_no_part_of_a_run(tmp_path, loss):
    """It runs the pair once: what that draws, and moves in running averages, would come again after resuming."""
    make = PAIRS["dropout and batch norm"]
    train(make(), tensors, tmp_path / "whole", epochs=2, loss=loss(), compile=False)
    train(make(), tensors, tmp_path / "parts", epochs=1, loss=loss(), compile=False)
    train(make(), tensors, tmp_path / "parts", epochs=2, loss=loss(), compile=False, resume=True)
    check_equal(tmp_path / "whole", tmp_path / "parts")


def test_in_double_precision_rounding_does_not_depend_on_the_interruption(tmp_path):
    def double():
        return binary(N).double()

    whole = train(Interrupted(small_vae().double()), double, tmp_path / "whole", batch_size=1)
    train(Interrupted(small_vae().double(), {37}), double, tmp_path / "parts", batch_size=1)
    resumed = train(Interrupted(small_vae().double()), double, tmp_path / "parts", batch_size=1, resume=True)
    assert resumed.history == whole.history


def test_what_an_interruption_leaves(tmp_path):
    pair = Interrupted(small_vae(), {6})
    run = train(pair, tensors, tmp_path / "run")
    folder = RunFolder(run.folder)
    last = load_state(folder.last)
    assert (last["progress"]["epoch"], last["progress"]["step"]) == (1, 3)  # the step was finished
    assert len(folder.read_history()) == 1
    assert same(state(pair), folder.weights())
    assert same(folder.weights(), load_state(folder.best))


def test_sigterm_is_an_interruption_too(tmp_path):
    assert train(Interrupted(small_vae(), {6}, signal.SIGTERM), tensors, tmp_path / "run").stopped == "interrupted"


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_interrupts_at_once(tmp_path, first):
    class Impatient(Interrupted):
        def guide(self, *batch):
            super().guide(*batch)
            if self.count == 6 and torch.is_grad_enabled():
                signal.raise_signal(signal.SIGINT)

    Impatient.__name__ = "Interrupted"  # the same pair to whoever resumes it
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C
    try:
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            train(Impatient(small_vae(), {6}, first), tensors, tmp_path / "run")
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    finally:
        signal.signal(signal.SIGINT, usual)
    resumed = train(Interrupted(small_vae(), (), first), tensors, tmp_path / "run", resume=True)
    assert resumed.history == train(Interrupted(small_vae()), tensors, tmp_path / "whole").history


def test_handlers_come_back_after_a_run_and_an_error(tmp_path):
    def mine(number, frame):
        raise AssertionError("not during training")

    before = signal.signal(signal.SIGINT, mine)
    try:
        train(Interrupted(small_vae(), {2}), tensors, tmp_path / "run")
        assert signal.getsignal(signal.SIGINT) is mine

        class Wrong(Interrupted):
            def guide(self, *batch):
                super().guide(*batch)
                if self.count == 3:
                    raise KeyError("wrong")

        with pytest.raises(KeyError, match="wrong"):
            train(Wrong(small_vae()), tensors, tmp_path / "other")
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("stopped", [True, False])
def test_workers_that_die_of_the_same_ctrl_c(tmp_path, stopped):
    class Dying:
        """Minibatches as of a `DataLoader` whose workers a terminal's Ctrl-C has reached as well."""

        passes = 0

        def __len__(self):
            return 4

        def __iter__(self):
            self.passes += 1
            for i, batch in enumerate(binary(N).split(BATCH)):
                if self.passes == 6 and i == 2:  # four of them look at the data before training
                    if stopped:
                        os.kill(os.getpid(), signal.SIGINT)
                    raise RuntimeError("DataLoader worker exited unexpectedly")
                yield batch

    if not stopped:
        with pytest.raises(RuntimeError, match="worker exited"):
            train(Interrupted(small_vae()), Dying, tmp_path / "run")
        return
    assert train(Interrupted(small_vae()), Dying, tmp_path / "run").stopped == "interrupted"
    last = load_state(RunFolder(tmp_path / "run").last)["progress"]
    assert (last["epoch"], last["step"]) == (1, 2)

    class Alive(Dying):
        passes = 6

    Alive.__name__ = "Dying"  # the same data to whoever resumes it

    resumed = train(Interrupted(small_vae()), Alive, tmp_path / "run", resume=True)
    assert resumed.history == train(Interrupted(small_vae()), Alive, tmp_path / "whole").history


def train_killed(folder, step, resume):
    """Trains until a step at which the process is killed."""
    torch.set_num_threads(1)

    class Killed(Interrupted):
        def guide(self, *batch):
            super().guide(*batch)
            if self.count == step and torch.is_grad_enabled():
                os.kill(os.getpid(), signal.SIGKILL)

    Killed.__name__ = "Interrupted"  # the same pair to whoever resumes it
    train(Killed(small_vae(dropout=0.2)), dynamic, folder, resume=resume)


def test_killed_at_random_steps(tmp_path):
    """Two kills of one run, then the end of it here."""
    steps = torch.randint(1, 8, (2,), generator=torch.Generator().manual_seed(0)).tolist()
    for i, step in enumerate(steps):
        process = FORKED.Process(target=train_killed, args=(tmp_path / "run", step, i > 0))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert not list((tmp_path / "run").rglob("*.tmp"))
    resumed = train(Interrupted(small_vae(dropout=0.2)), dynamic, tmp_path / "run", resume=True)
    whole = train(Interrupted(small_vae(dropout=0.2)), dynamic, tmp_path / "whole")
    assert resumed.history == whole.history
    check_equal(tmp_path / "whole", tmp_path / "run")
