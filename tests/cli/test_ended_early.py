"""Runs that end before their last epoch: what they write, and how long they say that they took."""

import json
import signal

import pytest
import torch

from ppvae.cli.evaluate import main as evaluate
from ppvae.examples.autoencoder import main as autoencoder
from ppvae.examples.vae import main
from ppvae.infer import RunFolder
from ppvae.models import VAE
from ppvae.storage import load_state, save_state

pytestmark = pytest.mark.usefixtures("figures_undrawn")

SMALL = ["--epochs", "4", "--hidden-dims", "8", "--latent-dim", "2", "--num-samples", "10", "--num-eval", "50"]
STEPS = 11  # of an epoch, which has 1297 digits in minibatches of 128


def ended_by(method, step, end):
    """The guide of a pair in whose training something happens at a step."""
    count = 0

    def changed(self, *batch):
        nonlocal count
        if torch.is_grad_enabled() and self.training:
            count += 1
            if count == step:
                end(self)
        return method(self, *batch)

    return changed


def send(number):
    return lambda pair: signal.raise_signal(number)


def spoil(pair):
    with torch.no_grad():
        next(pair.parameters()).fill_(torch.nan)


def metrics(out):
    return json.loads((out / "metrics.json").read_text())


@pytest.mark.parametrize(
    ("end", "status", "stopped", "said"),
    [
        (send(signal.SIGINT), 130, "interrupted", "stopped in epoch 3; continue with --resume"),
        (send(signal.SIGTERM), 130, "interrupted", "stopped in epoch 3; continue with --resume"),
        (spoil, 1, "nonfinite", "Is --lr 0.001 too large?"),
    ],
    ids=["ctrl-c", "sigterm", "nan"],
)
def test_a_run_that_ends_early_writes_what_it_has(end, status, stopped, said, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    monkeypatch.setattr(VAE, "guide", ended_by(VAE.guide, 2 * STEPS + 3, end))
    assert main([*SMALL, "--compile", "never", "--out", str(out)]) == status
    monkeypatch.undo()
    captured = capsys.readouterr()
    assert said in captured.err
    assert f"next: ppvae evaluate {out}" in captured.out
    found = metrics(out)
    assert (found["stopped"], found["best_epoch"]) == (stopped, 2)
    assert (out / "figures").is_dir()
    again = ["--method", "importance", "--num-samples", "10", "--limit", "50"]
    assert evaluate([str(out), *again]) == 0  # the figures are of the weights that the folder holds
    assert json.loads((out / "evaluation-importance.json").read_text())["test"] == found["test"]


def test_what_is_fitted_after_training_is_fitted_early_too(tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(VAE, "guide", ended_by(VAE.guide, STEPS + 3, send(signal.SIGINT)))
    assert autoencoder([*SMALL, "--num-components", "2", "--compile", "never", "--out", str(out)]) == 130
    weights = load_state(RunFolder(out).model)
    assert weights["p_z.loc"].shape == (2, 2)
    assert metrics(out)["stopped"] == "interrupted"


def test_in_the_first_epoch_there_is_nothing_to_write(tmp_path, monkeypatch):
    for name, end, status in (("int", send(signal.SIGINT), 130), ("nan", spoil, 1)):
        with monkeypatch.context() as patched:
            patched.setattr(VAE, "guide", ended_by(VAE.guide, 3, end))
            assert main([*SMALL, "--compile", "never", "--out", str(tmp_path / name)]) == status
        assert not (tmp_path / name / "metrics.json").exists()


def test_seconds_are_of_all_starts_of_a_run(tmp_path):
    out = tmp_path / "run"
    assert main([*SMALL, "--out", str(out)]) == 0
    first = metrics(out)["seconds"]
    kept = load_state(RunFolder(out).last)
    kept["progress"]["seconds"] += 1000.0
    save_state(RunFolder(out).last, kept)
    longer = [flag if flag != "4" else "5" for flag in SMALL]
    assert main([*longer, "--resume", "--out", str(out)]) == 0
    assert metrics(out)["stopped"] == "finished"
    assert 1000 <= metrics(out)["seconds"] - first < 1000 + 100
