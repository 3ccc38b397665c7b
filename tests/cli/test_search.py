"""A search that is stopped goes on as it would have, and looks at test data once."""

from unittest.mock import patch

import pytest

from ppvae.cli import search as module
from ppvae.cli.main import main
from ppvae.storage import read_json

pytest.importorskip("optuna", reason="pip install 'ppvae[sweep]'")
pytestmark = pytest.mark.usefixtures("figures_undrawn")
SEARCH = [
    "sweep",
    "vae",
    "--smoke",
    "--hidden-dims",
    "8",
    "--trials",
    "3",
    "--lr",
    "1e-4..1e-2",
    "--latent-dim",
    "2",
    "3",
]


def trials(printed):
    """What was tried: setting and value, without the number."""
    return [line.partition("] ")[2] for line in printed.splitlines() if line.startswith("[trial")]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    out = tmp_path_factory.mktemp("searches") / "vae"
    with patch("matplotlib.figure.Figure.savefig"):
        assert main([*SEARCH, "--out", str(out)]) == 0
    return out


def test_the_best_by_validation_is_the_one_that_is_evaluated(searched, capsys):
    assert main([*SEARCH, "--out", str(searched)]) == 0  # there is no trial left: it prints what was found
    printed = capsys.readouterr().out
    assert trials(printed) == []
    assert "3 complete; the best by validation ELBO:" in printed
    found = read_json(searched / "sweep.json")
    (name,) = found["settings"]
    evaluated = [path.parent.parent.name for path in searched.glob("*/*/evaluation.json")]
    assert evaluated == [name]
    scores = [module.valid_score(module.RunFolder(path.parent)) for path in searched.glob("*/*/config.json")]
    assert len(scores) == 3
    assert found["settings"][name]["valid"]["mean"] == pytest.approx(max(scores))
    assert f"ppvae train vae {' '.join(found['flags'])}" in printed


def test_a_search_that_was_stopped_ends_as_the_one_that_was_not(searched, tmp_path, monkeypatch, capsys):
    train, calls = module.train, []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(module, "train", stopped)
        assert main([*SEARCH, "--out", str(tmp_path / "vae")]) == 130
    assert len(trials(capsys.readouterr().out)) == 1
    assert main([*SEARCH, "--out", str(tmp_path / "vae")]) == 0
    assert len(trials(capsys.readouterr().out)) == 2
    assert read_json(tmp_path / "vae" / "sweep.json") == read_json(searched / "sweep.json")


def test_trials_below_the_median_are_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "optuna.pruners.MedianPruner", lambda **_: __import__("optuna").pruners.ThresholdPruner(lower=0)
    )
    assert main([*SEARCH, "--out", str(tmp_path / "vae")]) == 1
    printed = capsys.readouterr().out
    assert printed.count("stopped in epoch 1, below the median") == 3
    assert "no trial has come to its end" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trials", "3"], "--trials searches over flags with a range"),
        (["--trials", "3", "--latent-dim", "0..4"], "--latent-dim must be a whole number >= 1, got 0"),
        (["--trials", "1", "--lr", "1e-4..1e-2", "--num-valid", "0"], "a search chooses by validation data"),
    ],
)
def test_what_is_wrong_is_named(words, message, tmp_path, capsys):
    assert main(["sweep", "vae", "--smoke", *words, "--out", str(tmp_path / "vae")]) == 2
    assert message in capsys.readouterr().err


def test_a_search_of_other_flags_is_refused(searched, capsys):
    assert main([*SEARCH, "--out", str(searched), "--beta", "2"]) == 2
    assert "holds a search of other flags" in capsys.readouterr().err
