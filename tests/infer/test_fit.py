import copy
import threading
from functools import partial

import pyro
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import ppvae
from ppvae.data import Batches
from ppvae.models import PPCA
from ppvae.objectives import Cosine, Linear, Objective
from tests.infer.pairs import D, Scalar, Store, TwoLatents, binary, same, small_vae, state

fit = partial(ppvae.fit, progress=False)
SGD = torch.optim.SGD


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_scalar_case_recovers_its_closed_form():
    x = normal(4000)
    x = 2.0 + 1.5 * (x - x.mean()) / x.std(correction=0)  # mean 2 and variance 2.25, exactly
    pair = Scalar(scale=0.5)
    fit(pair, x, epochs=200, batch_size=500, lr=Cosine(200, start=0.05), loss=TraceMeanField_ELBO())
    a, b, c, d = (p.item() for p in (pair.a, pair.b, pair.c, pair.d))
    variance = c**2 + 0.5**2
    assert d == pytest.approx(2.0, abs=0.03)
    assert variance == pytest.approx(1.5**2, rel=0.03)
    assert a == pytest.approx(c / variance, abs=0.02)  # the exact posterior's, of the c and d that were reached
    assert b == pytest.approx(-c * d / variance, abs=0.05)
    assert pair.log_sigma.exp().item() == pytest.approx(0.5 / variance**0.5, rel=0.05)


def test_ppca_reaches_the_maximum_likelihood_of_tipping_and_bishop():
    n, d, k = 1000, 5, 2
    x = normal(n, k) @ normal(k, d, seed=1) * 2 + 0.5 * normal(n, d, seed=2) + 1.0
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0).double()
    noise = eigenvalues[k:].mean()
    log_det = eigenvalues[:k].log().sum() + (d - k) * noise.log()
    best = -0.5 * float(d * torch.log(torch.tensor(2 * torch.pi)) + log_det + d)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pair = PPCA(d, k)
    fit(pair, x, epochs=60, batch_size=200, lr=Cosine(60, start=0.05))
    reached = pair.log_prob(x).mean().item()
    assert best - 0.01 < reached <= best + 1e-4


def test_the_seed_decides():
    results = [
        (fit(pair, binary(), epochs=2, batch_size=16, seed=seed).history, state(pair))
        for seed, pair in ((0, small_vae()), (0, small_vae()), (1, small_vae()))
    ]
    assert same(results[0], results[1])
    assert not same(results[0][1], results[2][1])


class Fails(Scalar):
    calls = 0

    def model(self, x):
        self.calls += 1
        if self.calls > 6:
            raise KeyError("the user's own")
        super().model(x)


@pytest.mark.parametrize("fails", [False, True])
def test_the_world_is_left_as_it_was(fails):
    pair = Fails() if fails else small_vae(dropout=0.1, norm="batch")
    x = normal(40) if fails else binary(40)
    frozen = next(pair.parameters())
    frozen.requires_grad_(False)
    pair.train()
    for module in list(pair.modules())[2:4]:
        module.eval()
    modes = [module.training for module in pair.modules()]
    pyro.param("mine", torch.tensor(3.0))
    store, start = pyro.get_param_store().get_state(), frozen.clone()
    random, settings, flags = torch.get_rng_state(), pyro.settings.get(), [p.requires_grad for p in pair.parameters()]
    validates = torch.distributions.Distribution._validate_args
    if fails:
        with pytest.raises(KeyError, match="the user's own"):
            fit(pair, x, x, epochs=3, batch_size=10)
    else:
        fit(pair, x, x, epochs=3, batch_size=10)
    assert torch.equal(random, torch.get_rng_state())
    assert settings == pyro.settings.get()
    assert validates is torch.distributions.Distribution._validate_args
    assert modes == [module.training for module in pair.modules()]
    assert flags == [p.requires_grad for p in pair.parameters()]
    assert same(store["params"], pyro.get_param_store().get_state()["params"])
    assert torch.equal(start, frozen)
    assert not pyro.poutine.runtime._PYRO_STACK


def test_equal_minibatches_in_every_form_give_the_same_run():
    x, y = binary(40), torch.arange(40)

    class Labelled(nn.Module):
        def __init__(self):
            super().__init__()
            self.vae = small_vae()

        def model(self, x, y=None):
            self.vae.model(x)

        def guide(self, x, y=None):
            self.vae.guide(x)

    forms = [
        Batches(x, y, batch_size=16, shuffle=False),
        DataLoader(TensorDataset(x, y), batch_size=16),
        [(x[i : i + 16], y[i : i + 16]) for i in (0, 16, 32)],
        [[x[i : i + 16], None] for i in (0, 16, 32)],
        [x[i : i + 16] for i in (0, 16, 32)],
    ]
    pairs = [Labelled() for _ in forms]
    histories = [
        fit(pair, form, epochs=2, loss=TraceMeanField_ELBO()).history for pair, form in zip(pairs, forms, strict=True)
    ]
    for history, pair, form in zip(histories, pairs, forms, strict=True):
        if not isinstance(form, DataLoader):  # which draws a seed from the global state at every pass
            assert same(history, histories[0])
            assert same(state(pair), state(pairs[0]))
        assert history[0].keys() == histories[0][0].keys()


def test_a_tuple_is_shuffled_batches():
    x = binary(40)
    forms = x, (x,), Batches(x, batch_size=16, seed=3)
    runs = [fit(small_vae(), form, epochs=2, batch_size=16, seed=3) for form in forms]
    assert same(runs[0].history, runs[1].history)
    assert same(runs[0].history, runs[2].history)


def test_history_is_the_mean_over_the_data_of_every_term():
    pair, x = TwoLatents(masked=False), binary(10)
    columns = {"loss": 0.0, "reconstruction": 0.0, "kl_z1": 0.0, "kl_z2": 0.0}
    batches = Batches(x, batch_size=4, shuffle=False)  # 4, 4 and 2: a short last one
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        for (batch,) in batches.epoch(0):
            guide = pyro.poutine.trace(pair.guide).get_trace(batch)
            model = pyro.poutine.trace(pyro.poutine.replay(pair.model, trace=guide)).get_trace(batch)
            guide.compute_log_prob()
            model.compute_log_prob()
            log_p = {name: model.nodes[name]["log_prob_sum"].item() for name in ("x", "z1", "z2")}
            log_q = {name: guide.nodes[name]["log_prob_sum"].item() for name in ("z1", "z2")}
            columns["reconstruction"] += log_p["x"] / 10
            for z in ("z1", "z2"):
                columns[f"kl_{z}"] += (log_q[z] - log_p[z]) / 10
    columns["loss"] = -columns["reconstruction"] + 0.25 * (columns["kl_z1"] + columns["kl_z2"])
    elbo = columns["reconstruction"] - columns["kl_z1"] - columns["kl_z2"]
    (row,) = fit(pair, batches, x, epochs=1, optim=SGD, lr=0.0, kl_weight=0.25, seed=7).history
    assert list(row) == ["epoch", "loss", "elbo", "reconstruction", "kl_z2", "kl_z1", "kl_weight", "lr", "valid_elbo"]
    for name, value in columns.items():
        assert row[name] == pytest.approx(value, rel=1e-5)
    assert row["elbo"] == pytest.approx(elbo, rel=1e-5)
    assert (row["epoch"], row["kl_weight"], row["lr"]) == (1.0, 0.25, 0.0)
    assert row["valid_elbo"] == pytest.approx(ppvae.elbo(pair, x, num_samples=1, seed=7).values.mean().item(), rel=1e-5)
    (only,) = fit(pair, batches, x, epochs=1, optim=SGD, lr=0.0, kl_weight=0.25, kl_sites=["z2"], seed=7).history
    assert only["loss"] == pytest.approx(row["loss"] + 0.75 * row["kl_z1"], rel=1e-5)
    assert only["elbo"] == row["elbo"]


def test_schedules_are_read_at_every_step():
    x, seen = binary(12), []
    pair = small_vae()

    def recorded(time):
        seen.append(time)
        return 0.5 * time

    run = fit(pair, Batches(x, batch_size=4), epochs=2, lr=recorded, kl_weight=Linear(4))
    steps = [0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3]
    assert [time for i, time in enumerate(seen[-8:]) if i not in (3, 7)] == pytest.approx(steps)  # and for the history
    assert [row["lr"] for row in run.history] == pytest.approx([1 / 3, 5 / 6])
    assert [row["kl_weight"] for row in run.history] == pytest.approx([1 / 6, 5 / 12])


def test_the_kl_weight_changes_the_loss_and_not_the_elbo():
    rows = [
        fit(small_vae(), binary(), epochs=1, optim=SGD, lr=0.0, kl_weight=weight).history[0]
        for weight in (None, 1.0, 0.25, lambda time: 0.25)
    ]
    assert len({row["elbo"] for row in rows}) == 1
    assert rows[0]["loss"] == rows[1]["loss"] != rows[2]["loss"] == rows[3]["loss"]
    inside = fit(small_vae(beta=0.25), binary(), epochs=1, optim=SGD, lr=0.0).history[0]
    assert inside["loss"] == pytest.approx(rows[2]["loss"], rel=1e-6)
    assert inside["elbo"] == rows[0]["elbo"]


def test_clip_norm_bounds_the_step():
    pair = small_vae()
    before = state(pair)
    fit(pair, [binary(8)], epochs=1, optim=SGD, lr=1.0, clip_norm=0.1)
    moved = torch.cat([(value - before[name]).flatten() for name, value in pair.state_dict().items()]).norm()
    assert float(moved) == pytest.approx(0.1, rel=1e-4)


def test_weight_decay_goes_through_the_optimizer():
    pairs = [small_vae(), small_vae()]
    for pair, decay in zip(pairs, (0.0, 0.5), strict=True):
        fit(pair, [binary(8)], epochs=1, optim=partial(torch.optim.AdamW, weight_decay=decay), lr=0.1)
    start = state(small_vae())
    for name, value in pairs[1].state_dict().items():
        torch.testing.assert_close(value, pairs[0].state_dict()[name] - 0.05 * start[name], rtol=1e-5, atol=1e-6)


def test_gradients_from_before_do_not_count():
    pairs = [small_vae(), small_vae()]
    for p in pairs[1].parameters():
        p.grad = torch.full_like(p, 100.0)
    histories = [fit(pair, binary(), epochs=1).history for pair in pairs]
    assert same(*histories)
    assert all(p.grad is None for p in pairs[1].parameters())


def test_patience_stops_and_the_best_weights_come_back():
    x, valid = binary(40), binary(40, seed=1)
    kept = []

    def lr(time):  # good steps for two epochs, then harmful ones
        return 0.05 if time < 2 else 3.0

    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.vae = small_vae()

        def model(self, x):
            self.vae.model(x)

        def guide(self, x):
            if len(x) == 40:  # the validation data
                kept.append(state(self))
            self.vae.guide(x)

    pair = Kept()
    run = fit(pair, x, valid, epochs=20, batch_size=10, lr=lr, patience=3)
    values = [row["valid_elbo"] for row in run.history]
    assert run.stopped == "early"
    assert run.best_epoch == 1 + values.index(max(values)) == len(values) - 3
    assert any(same(state(pair), weights) for weights in kept)
    assert ppvae.elbo(pair, valid, num_samples=1, seed=0).values.mean().item() == pytest.approx(max(values), rel=1e-6)


def test_the_last_weights_stay_without_validation():
    run = fit(small_vae(), binary(), epochs=2)
    assert (run.stopped, run.best_epoch, run.folder) == ("finished", None, None)
    assert run.seconds > 0
    assert "history" not in repr(run)


class MadeOfPyros(Objective):
    """Pyro's loss, and nothing else."""

    def differentiable_loss(self, model, guide, *args, **kwargs):
        elbo = TraceEnum_ELBO(strict_enumeration_warning=False)
        return elbo.differentiable_loss(model, guide, *args, **kwargs)


@pytest.mark.parametrize(
    ("loss", "terms"),
    [
        (TraceMeanField_ELBO(), True),
        (Trace_ELBO(num_particles=2, vectorize_particles=True), True),
        (RenyiELBO(num_particles=3), True),
        (TraceGraph_ELBO(), True),
        (TraceEnum_ELBO(strict_enumeration_warning=False), True),
        (lambda model, guide, *args: Trace_ELBO().differentiable_loss(model, guide, *args), False),
        (
            TraceEnum_ELBO(strict_enumeration_warning=False).differentiable_loss,
            False,
        ),  # which refuses what has no gradient
        (MadeOfPyros(), False),
    ],
)
def test_every_kind_of_loss_trains(loss, terms):
    pair = small_vae()
    run = fit(pair, binary(), epochs=3, lr=0.01, loss=loss)
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    assert ("elbo" in run.history[0]) == terms


def test_progress_goes_to_the_terminal_only_where_it_is_asked_for(capfd):
    ppvae.fit(small_vae(), binary(), epochs=2, progress=False)
    assert capfd.readouterr() == ("", "")
    ppvae.fit(small_vae(), binary(), epochs=2)
    out, err = capfd.readouterr()
    assert out == ""
    assert "epoch 2/2" in err
    assert "loss=" in err


def test_training_in_another_thread():
    results = []

    def train():
        pair = small_vae()
        results.append((fit(pair, binary(), epochs=2).history, state(pair)))

    threads = [threading.Thread(target=train)]
    for thread in threads:
        thread.start()
        thread.join()
    train()
    assert same(results[0], results[1])


class Stream(IterableDataset):
    def __iter__(self):
        yield from binary(12)


def test_a_loader_without_a_length():
    run = fit(small_vae(), DataLoader(Stream(), batch_size=5), epochs=2, lr=lambda time: 0.01 * (1 + time))
    assert [row["lr"] for row in run.history] == pytest.approx([0.01, 0.02])


def test_an_iterable_that_runs_dry_is_named():
    class Dry:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter([binary(4)] if self.passes < 4 else [])

    with pytest.raises(ValueError, match="train gives no minibatch in epoch 2"):
        fit(small_vae(), Dry(), epochs=3)


def test_validation_does_not_change_training():
    loader = DataLoader(TensorDataset(binary(20, seed=1)), batch_size=8, shuffle=True)
    rows = [fit(small_vae(), binary(), valid, epochs=2).history for valid in (None, binary(20, seed=1), loader)]
    for a, b, c in zip(*rows, strict=True):
        assert a.items() <= b.items()
        assert a.items() <= c.items()


def test_double_precision():
    pair = small_vae().double()
    run = fit(pair, binary().double(), binary().double(), epochs=2, kl_weight=Linear(2))
    assert {p.dtype for p in pair.parameters()} == {torch.float64}
    assert run.history[1]["loss"] != run.history[0]["loss"]


def test_a_copy_of_a_trained_pair_is_a_pair():
    pair = Store()
    fit(pair, normal(20), epochs=1)
    assert same(state(copy.deepcopy(pair)), state(pair))


def test_data_keep_their_width():
    with pytest.raises(ValueError, match="the pair fails on a minibatch of valid"):
        fit(small_vae(), binary(), binary(d=D - 1), epochs=1)
