"""Functions that `fit` calls after every epoch: what they see, what they cannot change, and how they stop a run."""

import re
import sys
import types
from functools import partial
from pathlib import Path
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ppvae
from ppvae.infer import RunFolder, TensorBoard
from ppvae.storage import load_state
from tests.infer.pairs import Published, binary, same, small_vae, state

PAGE = Path(__file__).parents[2] / "docs" / "callbacks.md"
fit = partial(ppvae.fit, batch_size=16, epochs=3, progress=False)


def noisy_vae():
    """With modules that differ in training and evaluation."""
    return small_vae(dropout=0.2, norm="batch")


def test_what_a_callback_sees(tmp_path):
    seen = []

    def look(row, pair, epoch):
        folder = RunFolder(tmp_path / "run")
        on_disk = load_state(folder.last)["progress"]
        assert (on_disk["epoch"], on_disk["step"]) == (epoch, 0)
        assert folder.read_history()[-1] == row
        assert not any(module.training for module in pair.modules())
        assert not torch.is_grad_enabled()
        assert not pyro.poutine.runtime._PYRO_STACK
        seen.append((pair, epoch, dict(row)))
        row.clear()

    pair = noisy_vae()
    run = fit(pair, binary(40), binary(10, seed=1), out=tmp_path / "run", callbacks=[look, look])
    assert [epoch for _, epoch, _ in seen] == [1, 1, 2, 2, 3, 3]
    assert all(given is pair for given, _, _ in seen)
    assert seen[::2][0][2] == run.history[0]  # the first cleared a copy
    assert [row["epoch"] for row in run.history] == [1.0, 2.0, 3.0]
    assert run.stopped == "finished"
    assert pair.training


@pytest.mark.parametrize("loader", [False, True])
def test_training_does_not_see_its_callbacks(loader):
    x, valid = binary(40), binary(10, seed=1)

    def data():
        generator = torch.Generator().manual_seed(3)
        return DataLoader(TensorDataset(x), batch_size=16, shuffle=True, generator=generator) if loader else x

    drawn = []

    def draw(row, pair, epoch):
        drawn.append(torch.rand(3))
        pair.train()
        ppvae.log_marginal(pair, valid, num_samples=7)
        pyro.infer.Predictive(pair.model, num_samples=2)(valid)
        pyro.param("of the callback's own", torch.tensor(1.0))

    pairs = [noisy_vae(), noisy_vae()]
    before = torch.get_rng_state()
    with pyro.get_param_store().scope():
        runs = [fit(pair, data(), valid, callbacks=calls) for pair, calls in zip(pairs, ([], [draw]), strict=True)]
        assert list(pyro.get_param_store()) == ["of the callback's own"]
    assert torch.equal(before, torch.get_rng_state())
    assert runs[0].history == runs[1].history
    assert same(state(pairs[0]), state(pairs[1]))
    assert not torch.equal(drawn[0], drawn[1])
    again = []
    fit(noisy_vae(), data(), valid, callbacks=[lambda row, pair, epoch: again.append(torch.rand(3))])
    assert same(again, drawn)  # the seed decides them too


def test_parameters_of_a_callback_are_not_those_of_the_pair():
    def other(row, pair, epoch):
        ppvae.elbo(Published(), binary(4), num_samples=2)
        with pyro.get_param_store().scope():
            pyro.sample("w", dist.Normal(pyro.param("w_loc", torch.tensor(0.0)), 1.0))

    pair = small_vae()
    before = set(state(pair))
    fit(pair, binary(40), callbacks=[other])
    assert set(state(pair)) == before


def test_true_stops_and_a_resumed_run_goes_on(tmp_path):
    options = {"out": tmp_path / "run", "epochs": 4}
    x, valid = binary(40), binary(10, seed=1)
    pair, calls = noisy_vae(), []
    stop = [lambda row, pair, epoch: epoch == 2, lambda row, pair, epoch: calls.append(epoch)]
    run = fit(pair, x, valid, callbacks=stop, **options)
    assert (run.stopped, len(run.history), calls) == ("callback", 2, [1, 2])  # the others are still called
    folder = RunFolder(tmp_path / "run")
    assert same(load_state(folder.model), state(pair))
    assert folder.read_history() == run.history
    resumed = fit(noisy_vae(), x, valid, resume=True, **options)
    whole = fit(noisy_vae(), x, valid, **{**options, "out": tmp_path / "whole"})
    assert (resumed.stopped, resumed.history) == ("finished", whole.history)
    assert same(load_state(folder.model), load_state(RunFolder(tmp_path / "whole").model))


def test_only_true_stops():
    run = fit(small_vae(), binary(40), callbacks=[lambda row, pair, epoch: row, lambda row, pair, epoch: 1])
    assert (run.stopped, len(run.history)) == ("finished", 3)


@pytest.mark.parametrize("error", [KeyError("mine"), KeyboardInterrupt()])
def test_an_error_is_the_users_own_and_loses_nothing(tmp_path, error):
    def fails(row, pair, epoch):
        if epoch == 2:
            raise error

    pair, before = noisy_vae(), torch.get_rng_state()
    with pytest.raises(type(error)):
        fit(pair, binary(40), out=tmp_path / "run", callbacks=[fails])
    assert pair.training
    assert torch.equal(before, torch.get_rng_state())
    assert len(RunFolder(tmp_path / "run").read_history()) == 2
    resumed = fit(noisy_vae(), binary(40), out=tmp_path / "run", resume=True)
    assert resumed.history == fit(noisy_vae(), binary(40)).history


def test_networks_that_a_plain_function_uses_are_in_eval_mode_too():
    net, modes = nn.Sequential(nn.Linear(6, 2), nn.Dropout(0.5)), []
    net[1].register_forward_hook(lambda module, args, out: modes.append(module.training))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.mean(-1, keepdim=True).expand(-1, 6), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x), 1.0).to_event(1))

    def run(row, pair, epoch):
        modes.clear()
        pair.guide(binary(4))
        assert modes == [False]

    fit(ppvae.Pair(model, guide), binary(40), callbacks=[run])
    assert net[1].training


class Writer:
    """In place of TensorBoard's, which need not be installed."""

    def __init__(self, folder):
        self.folder, self.scalars, self.flushed = folder, [], 0

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def flush(self):
        self.flushed += 1


def test_tensorboard_gets_every_column(tmp_path, monkeypatch):
    stand_in = types.ModuleType("torch.utils.tensorboard")
    stand_in.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    monkeypatch.setattr("ppvae.infer.callbacks.find_spec", lambda name: name)
    board = TensorBoard(tmp_path / "run")
    run = fit(small_vae(), binary(40), out=tmp_path / "run", callbacks=[board])
    writer = board._writer
    assert writer.folder == str(tmp_path / "run")
    assert writer.scalars == [(name, row[name], i) for i, row in enumerate(run.history, 1) for name in row]
    assert writer.flushed == 3


def test_tensorboard_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("ppvae.infer.callbacks.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"tensorboard is not installed: pip install 'ppvae\[tensorboard\]'"):
        TensorBoard(tmp_path)


def recipe(title):
    """The code of a section of the page."""
    return re.search(rf"## {title}\n\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL).group(1)


@pytest.mark.parametrize(("title", "name"), [("Weights & Biases", "wandb"), ("MLflow", "mlflow")])
def test_the_recipes_log_every_row(tmp_path, monkeypatch, title, name):
    monkeypatch.chdir(tmp_path)
    recorder = mock.MagicMock()
    monkeypatch.setitem(sys.modules, name, recorder)
    code = recipe(title)
    assert len([line for line in code.splitlines() if line]) <= 10
    scope = {"ppvae": ppvae, "pair": small_vae(), "train": binary(40), "valid": binary(10, seed=1)}
    exec(compile(code, str(PAGE), "exec"), scope)
    log = recorder.log if name == "wandb" else recorder.log_metrics
    assert log.call_args_list == [mock.call(row, step=i) for i, row in enumerate(scope["run"].history, 1)]


def test_the_page_stops_at_a_target():
    scope = {}
    exec(recipe("Stop at a target"), scope)
    assert scope["good_enough"]({"valid_elbo": -89.0}, None, 1) is True
    assert scope["good_enough"]({"valid_elbo": -91.0}, None, 1) is False


def test_names_that_moved_are_still_here():
    from ppvae import compile, infer, objectives

    for name in infer._MOVED:
        home = compile if name == "keep_freed_memory" else objectives
        assert getattr(infer, name) is getattr(home, name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = infer.nothing
