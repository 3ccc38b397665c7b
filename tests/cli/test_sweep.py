"""Grids that are trained, evaluated and compared; stopped, and gone on with."""

import json
import shutil
import sys

import pytest
import torch

from ppvae.cli import sweep_runs as module
from ppvae.cli.experiment import Experiment
from ppvae.cli.main import main
from ppvae.evaluate import compare
from ppvae.infer import RunFolder
from ppvae.storage import load_state, read_json

pytestmark = pytest.mark.usefixtures("figures_undrawn")
GRID = ["sweep", "vae", "--smoke", "--seeds", "2", "--latent-dim", "2", "--hidden-dims", "8", "--lr", "1e-3", "1e-2"]


def values_of(out, setting, name="log_marginal"):
    return torch.stack([load_state(out / setting / f"seed-{s}" / "evaluation.safetensors")[name] for s in range(2)])


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    from unittest.mock import patch

    out = tmp_path_factory.mktemp("sweeps") / "grid"
    with patch("matplotlib.figure.Figure.savefig"):
        assert main([*GRID, "--out", str(out)]) == 0
    return out


@pytest.fixture
def trainings(monkeypatch):
    """The command lines of the runs that are trained."""
    lines, train = [], Experiment.main

    def watched(self, argv):
        lines.append(argv)
        return train(self, argv)

    monkeypatch.setattr(Experiment, "main", watched)
    return lines


def test_the_table_is_of_what_lies_in_the_folders(swept):
    rows = read_json(swept / "sweep.json")["settings"]
    assert list(rows) == ["lr=1e-3", "lr=1e-2"]
    first, other = (values_of(swept, name).double() for name in rows)
    for row, values in zip(rows.values(), (first, other), strict=True):
        means = values.mean(1)
        assert row["log_marginal"] == {
            "mean": pytest.approx(float(means.mean())),
            "std_error": pytest.approx(float((means[0] - means[1]).abs() / 2)),
        }
    assert rows["lr=1e-2"]["difference"] == compare({"a": first, "b": other})["b"]["difference"]
    assert "difference" not in rows["lr=1e-3"]
    best = [max(row["valid_elbo"] for row in RunFolder(swept / "lr=1e-2" / f"seed-{s}").read_history()) for s in (0, 1)]
    assert rows["lr=1e-2"]["valid"]["mean"] == pytest.approx(sum(best) / 2)


def test_the_same_command_trains_and_evaluates_nothing_again(swept, trainings, monkeypatch, capsys):
    monkeypatch.setattr(module, "evaluate_run", None)
    before = (swept / "sweep.json").read_bytes()
    assert main([*GRID, "--out", str(swept)]) == 0
    assert trainings == []
    assert (swept / "sweep.json").read_bytes() == before
    printed = capsys.readouterr().out
    assert "[4/4] lr=1e-2, seed 1: validation" in printed
    row = next(line for line in printed.splitlines() if line.startswith("lr=1e-2"))
    assert row.split()[1:3] == ["2", "*"]
    assert "*: the best by validation data, which alone may choose" in printed


def test_an_evaluation_without_its_values_is_made_again(swept, tmp_path, trainings):
    out = shutil.copytree(swept, tmp_path / "grid")
    lost = out / "lr=1e-2" / "seed-1" / "evaluation.safetensors"
    lost.unlink()
    assert main([*GRID, "--out", str(out)]) == 0
    assert trainings == []
    assert torch.equal(values_of(out, "lr=1e-2"), values_of(swept, "lr=1e-2"))


def test_a_sweep_that_was_stopped_ends_as_the_one_that_was_not(swept, tmp_path, trainings, monkeypatch, capsys):
    out = tmp_path / "stopped"
    train = Experiment.train

    def stopped(self, pair, args, *others, **options):
        run = train(self, pair, args, *others, **options)
        if args.seed == 1:
            raise KeyboardInterrupt  # as it was about to say what it had found
        return run

    with monkeypatch.context() as patched:
        patched.setattr(Experiment, "train", stopped)
        assert main([*GRID, "--out", str(out)]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert len(trainings) == 3
    trainings.clear()
    assert main([*GRID, "--out", str(out)]) == 0
    assert [line[-1] == "--resume" for line in trainings] == [True, False]
    assert read_json(out / "sweep.json") == read_json(swept / "sweep.json")


def test_more_seeds_and_settings_are_added_to_what_is_there(swept, tmp_path, trainings):
    out = tmp_path / "more"
    shutil.copytree(swept, out)
    assert main([*GRID, "1e-4", "--out", str(out)]) == 0
    assert len(trainings) == 2
    rows = read_json(out / "sweep.json")["settings"]
    assert {name: rows[name] for name in ("lr=1e-3", "lr=1e-2")} == read_json(swept / "sweep.json")["settings"]


def test_another_flag_is_another_sweep(swept, capsys):
    assert main([*GRID, "--out", str(swept), "--batch-size", "64"]) == 2
    assert "cannot resume" in (error := capsys.readouterr().err)
    assert "--batch-size was 128, is 64" in error


def test_a_setting_that_meets_a_nan_is_said_to(tmp_path, capsys):
    words = ["--smoke", "--latent-dim", "2", "--hidden-dims", "8", "--lr", "1e-3", "1e30"]
    assert main(["sweep", "vae", *words, "--out", str(tmp_path / "nan")]) == 1
    printed = capsys.readouterr().out
    assert "lr=1e30, seed 0: failed: no finite loss" in printed
    assert json.loads((tmp_path / "nan" / "sweep.json").read_text())["settings"]["lr=1e30"] == {"seeds": []}


def test_deterministic_codes_are_compared_by_their_validation_loss(tmp_path, capsys):
    words = ["--smoke", "--latent-dim", "2", "4", "--hidden-dims", "8", "--num-valid", "50"]
    assert main(["sweep", "autoencoder", *words, "--out", str(tmp_path / "ae")]) == 0
    rows = read_json(tmp_path / "ae" / "sweep.json")["settings"]
    assert [set(row) for row in rows.values()] == [{"seeds", "valid"}, {"seeds", "valid"}]
    assert "latent_dim=4" in capsys.readouterr().out


def test_help_and_what_there_is_not(capsys):
    assert main(["sweep", "--help"]) == 0
    assert "never by the test columns" in capsys.readouterr().out
    assert main(["sweep", "gan"]) == 2
    assert "there is no model 'gan'" in capsys.readouterr().err


def test_a_search_without_its_library_says_what_installs_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["sweep", "vae", "--trials", "2", "--lr", "1e-4..1e-2", "--out", str(tmp_path / "out")]) == 2
    assert 'pip install "ppvae[sweep]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
