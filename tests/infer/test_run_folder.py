import csv
import json
import pickle
from functools import partial

import pytest
import torch
from pyro.infer import Trace_ELBO

import ppvae
from ppvae.infer import RunFolder
from ppvae.infer.run_config import describe, describe_groups, describe_pair
from ppvae.models import PPCA
from ppvae.objectives import BalancedELBO, Linear
from ppvae.storage import load_state, read_json, save_state
from tests.infer.pairs import binary, same, small_vae, state


def run_in(folder, pair=None, **options):
    options = {"epochs": 3, "batch_size": 16, "progress": False, **options}
    return ppvae.fit(pair or small_vae(), binary(), binary(20, seed=1), out=folder, **options)


def test_what_a_run_leaves(tmp_path):
    pair = small_vae()
    run = run_in(tmp_path / "a" / "run", pair, lr=Linear(3, 1e-2, 1e-3), kl_weight=0.5, config={"who": "me"})
    folder = RunFolder(run.folder)
    files = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.is_file()}
    assert files - {".lock"} == {
        "config.json",
        "model.safetensors",
        "history.csv",
        "checkpoints/last.safetensors",
        "checkpoints/best.safetensors",
    }
    config = json.loads(folder.config.read_text())
    assert config["experiment"] == {"who": "me"}
    assert config["torch"] == torch.__version__
    of_train, of_valid = config["fit"].pop("train_data"), config["fit"].pop("valid_data")
    assert of_train.pop("sha256") != of_valid.pop("sha256")
    assert of_train == {
        "kind": "Batches",
        "batch_size": 16,
        "seed": 0,
        "shuffle": True,
        "drop_last": False,
        "transform": None,
    }
    assert config["fit"].pop("pair") == describe_pair(pair)
    assert config["fit"] == {
        "loss": "Trace_ELBO(ignore_jit_warnings=False, jit_options=None, num_particles=1, retain_graph=None, "
        "strict_enumeration_warning=True, tail_adaptive_beta=-1.0, vectorize_particles=False)",
        "epochs": 3,
        "train": [[50, 6]],
        "valid": [[20, 6]],
        "batch_size": 16,
        "accumulate": 1,
        "lr": "Linear(epochs=3, start=0.01, end=0.001)",
        "optim": "Adam(fused=True)",
        "clip_norm": None,
        "param_groups": None,
        "kl_weight": 0.5,
        "kl_sites": None,
        "patience": None,
        "compile": "auto",
        "autocast": None,
        "device": "cpu",
        "seed": 0,
        "processes": 1,
    }
    assert folder.read_history() == run.history
    with folder.history.open(newline="") as file:
        assert [{k: repr(v) for k, v in row.items()} for row in run.history] == list(csv.DictReader(file))
    assert same(state(pair), folder.weights())
    assert same(state(pair), load_state(folder.best))
    assert load_state(folder.last)["progress"]["history"] == run.history


def test_weights_are_the_best_there_are(tmp_path):
    folder = RunFolder(run_in(tmp_path / "run").folder)
    for path, value in ((folder.best, 2.0), (folder.model, 1.0)):
        save_state(path, {"w": torch.tensor(value)})
    assert folder.weights()["w"] == 1.0
    folder.model.unlink()
    assert folder.weights()["w"] == 2.0
    folder.best.unlink()
    assert same(folder.weights(), load_state(folder.last)["model"])
    folder.last.unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights: no epoch of the run was finished"):
        folder.weights()


def test_checkpoints_are_never_unpickled(tmp_path, monkeypatch):
    run_in(tmp_path / "run")

    def refuse(*args, **kwargs):
        raise AssertionError("pickled")

    for module, name in [(pickle, n) for n in ("load", "loads", "Unpickler")] + [(torch, "load"), (torch, "save")]:
        monkeypatch.setattr(module, name, refuse)
    run_in(tmp_path / "run", resume=True, epochs=4)
    ppvae.load(small_vae(), tmp_path / "run")


@pytest.mark.parametrize("fails_at", ["last.safetensors", "history.csv", "model.safetensors"])
def test_a_write_that_fails_leaves_the_last_good_file(tmp_path, monkeypatch, fails_at):
    run_in(tmp_path / "run", epochs=2)
    old = {path.name: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    import os

    replace = os.replace

    def failing(source, target):
        if str(target).endswith(fails_at):
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr("ppvae.storage.os.replace", failing)
    with pytest.raises(OSError, match="disk full"):
        run_in(tmp_path / "run", epochs=4, resume=True)
    monkeypatch.undo()
    files = {path.name: path for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert files.keys() == old.keys()  # no temporary file
    assert files[fails_at].read_bytes() == old[fails_at]
    resumed = run_in(tmp_path / "run", epochs=4, resume=True)
    assert same(resumed.history, run_in(tmp_path / "other", epochs=4).history)
    assert RunFolder(tmp_path / "run").read_history() == resumed.history


def test_resuming_with_other_settings_names_them(tmp_path):
    run_in(tmp_path / "run", lr=1e-3)
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    loss = Trace_ELBO(num_particles=2)
    with pytest.raises(ValueError, match="other settings") as caught:
        run_in(tmp_path / "run", lr=1e-2, batch_size=8, kl_weight=Linear(3), loss=loss, resume=True)
    message = str(caught.value)
    assert "batch_size was 16, is 8" in message
    assert "lr was 0.001, is 0.01" in message
    assert "kl_weight was None, is 'Linear(epochs=3, start=0.0, end=1.0)'" in message
    assert "num_particles=2" in message
    assert "optim" not in message
    assert files == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


class Ramp:
    """A schedule whose repr holds its address."""

    def __init__(self, height):
        self.height = height

    def __call__(self, time):
        return self.height * time


def test_equal_settings_are_equal_whatever_the_objects(tmp_path):
    loss = Trace_ELBO(num_particles=2, vectorize_particles=True)  # Pyro notes the plate nesting on it
    run_in(tmp_path / "run", lr=Ramp(0.01), loss=loss)
    run_in(tmp_path / "run", lr=Ramp(0.01), loss=loss, resume=True)
    with pytest.raises(ValueError, match=r"lr was .*Ramp.*0.01.*, is .*Ramp.*0.02"):
        run_in(tmp_path / "run", lr=Ramp(0.02), loss=loss, resume=True)


def test_settings_have_the_texts_that_old_folders_hold():
    assert describe(BalancedELBO({"z1": Linear(2), "z2": 0.5})) == (
        "BalancedELBO(ignore_jit_warnings=False, jit_options=None, num_particles=1, retain_graph=None, "
        "strict_enumeration_warning=True, tail_adaptive_beta=-1.0, vectorize_particles=False, "
        "weights={'z1': Linear(epochs=2, start=0.0, end=1.0), 'z2': 0.5})"
    )
    assert describe(partial(torch.optim.AdamW, weight_decay=0.1)) == "AdamW(weight_decay=0.1)"
    assert describe_groups({"*.bias": {"lr": Linear(2)}}) == {"*.bias": {"lr": "Linear(epochs=2, start=0.0, end=1.0)"}}


def test_a_finished_run_is_resumed_to_itself(tmp_path):
    first = run_in(tmp_path / "run")
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    pair = small_vae(seed=9)
    again = run_in(tmp_path / "run", pair, resume=True)
    assert (again.history, again.best_epoch, again.stopped) == (first.history, first.best_epoch, "finished")
    assert files == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert same(state(pair), RunFolder(tmp_path / "run").weights())


def test_a_run_that_stopped_early_is_resumed_to_itself(tmp_path):
    options = {"lr": 1.0, "epochs": 50, "patience": 2}
    first = run_in(tmp_path / "run", **options)
    again = run_in(tmp_path / "run", resume=True, **options)
    assert (again.stopped, again.history) == (first.stopped, first.history) == ("early", again.history)


def test_more_epochs_extend_a_run(tmp_path):
    run_in(tmp_path / "run", epochs=2)
    longer = run_in(tmp_path / "run", epochs=5, resume=True)
    assert same(longer.history, run_in(tmp_path / "other", epochs=5).history)
    assert same(RunFolder(tmp_path / "run").weights(), RunFolder(tmp_path / "other").weights())
    assert RunFolder(tmp_path / "run").read_config()["fit"]["epochs"] == 5


def test_a_history_that_a_kill_left_behind_is_written_again(tmp_path):
    run = run_in(tmp_path / "run")
    folder = RunFolder(run.folder)
    folder.write_history(run.history[:-1])
    run_in(tmp_path / "run", resume=True)
    assert folder.read_history() == run.history


def test_a_run_that_finished_no_epoch_starts_over(tmp_path):
    run = run_in(tmp_path / "run", epochs=2)
    folder = RunFolder(run.folder)
    for path in (folder.last, folder.best, folder.model, folder.history):
        path.unlink()
    assert same(run_in(tmp_path / "run", epochs=2, resume=True).history, run.history)


def test_another_pair_than_the_runs_is_refused(tmp_path):
    run_in(tmp_path / "run")
    with pytest.raises(ValueError, match=r"pair.modules was .*Linear.*, is .*Dropout"):
        run_in(tmp_path / "run", small_vae(dropout=0.5), resume=True)


def test_columns_that_not_every_row_has(tmp_path):
    folder = RunFolder(tmp_path)
    rows = [{"epoch": 1.0, "loss": float("-inf")}, {"epoch": 2.0, "valid_elbo": 1 / 3}]
    folder.write_history(rows)
    assert folder.read_history() == rows
    folder.write_metrics({"elbo": 1.5})
    assert read_json(tmp_path / "metrics.json") == {"elbo": 1.5}


def test_a_run_is_not_resumed_with_other_data_or_fewer_epochs(tmp_path):
    fit, x = ppvae.fit, torch.randn(20, 8)
    fit(PPCA(8, 2), x, epochs=3, out=tmp_path / "run", progress=False)
    before = (tmp_path / "run" / "config.json").read_text()
    with pytest.raises(ValueError, match=r"train was \[\[20, 8\]\], is \[\[12, 8\]\]"):
        fit(PPCA(8, 2), x[:12], epochs=5, out=tmp_path / "run", resume=True, progress=False)
    with pytest.raises(ValueError, match=r"train_data\.sha256 was '.*', is '.*'"):
        fit(PPCA(8, 2), -x, epochs=5, out=tmp_path / "run", resume=True, progress=False)
    with pytest.raises(ValueError, match="epochs must be at least 3"):
        fit(PPCA(8, 2), x, epochs=2, out=tmp_path / "run", resume=True, progress=False)
    assert (tmp_path / "run" / "config.json").read_text() == before
    assert len(fit(PPCA(8, 2), x, epochs=4, out=tmp_path / "run", resume=True, progress=False).history) == 4
