import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

import ppvae
from ppvae.cli.evaluate import main
from ppvae.cli.flags import ImageArgs
from ppvae.cli.images import load_images
from ppvae.cli.runs import restore
from ppvae.evaluate import METHODS, Importance, compare, train_features
from ppvae.examples import cvae, ssvae, vae
from ppvae.infer import Recipe, RunFolder
from ppvae.models import PPCA
from ppvae.storage import load_state, read_json

SMALL = ["--smoke", "--hidden-dims", "8"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of a second by name: two that differ by their seed, one of a model of labels, one of images given them."""
    folder = tmp_path_factory.mktemp("runs")
    commands = {
        "a": (vae.main, ["--latent-dim", "3"]),
        "b": (vae.main, ["--latent-dim", "3", "--seed", "1"]),
        "labels": (ssvae.main, ["--classifier-dims", "8"]),
        "given": (cvae.main, []),
        "grey": (vae.main, ["--likelihood", "gaussian"]),
    }
    with patch("matplotlib.figure.Figure.savefig"):
        for name, (command, flags) in commands.items():
            assert command([*SMALL, *flags, "--out", str(folder / name)]) == 0
    return {name: str(folder / name) for name in commands}


def figures_of(run, name="evaluation"):
    return read_json(Path(run) / f"{name}.json")


def test_one_run_leaves_table_values_and_figures(runs, capsys):
    assert main([runs["a"], "--num-samples", "100", "--limit", "40"]) == 0
    printed = capsys.readouterr().out
    figures = figures_of(runs["a"])
    assert figures["test"]["num_data"] == 40
    assert f"{figures['test']['log_marginal']['mean']:.3f}" in printed
    assert "bound in nats: " in printed
    assert f"> 0.7 for {figures['test']['k_hat']['above_0.7']} of 40 data" in printed
    assert "evaluation.json" in printed
    assert "class" not in printed
    state = load_state(Path(runs["a"]) / "evaluation.safetensors")
    assert float(state["log_marginal"].mean()) == pytest.approx(figures["test"]["log_marginal"]["mean"])
    assert float(state["elbo"].mean()) == pytest.approx(figures["test"]["elbo"]["mean"])
    assert {state[name].shape for name in ("std_error", "ess", "pareto_k", "labels")} == {(40,)}
    assert list(state["bound"]) == [1, 2, 5, 10, 20, 50, 100]
    first = state["method"] == 0
    assert torch.equal(state["bound"][100][first], state["log_marginal"][first])
    assert figures["test"]["methods"].get("importance", 0) == int(first.sum())
    assert f"40 data: importance for {int(first.sum())}" in printed
    names = {path.stem for path in (Path(runs["a"]) / "figures").glob("*.png")}
    assert {"bound", "log_prob", "pareto_k"} <= names


def test_annealed(runs, capsys):
    flags = ["--method", "annealed", "--num-samples", "2", "--num-temperatures", "3", "--limit", "20", "--by-class"]
    assert main([runs["a"], "--num-samples", "5", "--limit", "10"]) == 0
    assert main([runs["a"], *flags, "--bidirectional"]) == 0
    printed = capsys.readouterr().out
    assert figures_of(runs["a"])["method"] == "auto"  # not overwritten
    figures = figures_of(runs["a"], "evaluation-annealed")
    assert (figures["method"], figures["num_samples"], figures["num_temperatures"]) == ("annealed", 2, 3)
    assert "log p(x), 2 chains" in printed
    assert "annealed over 3 temperatures" in printed
    both = figures["sandwich"]
    assert both["gap"]["mean"] == pytest.approx(both["upper"]["mean"] - both["lower"]["mean"])
    assert f" {both['lower']['mean']:.3f} " in printed
    assert "k̂" not in printed
    assert {"bound", "k_hat"} & figures["test"].keys() == set()
    assert load_state(Path(runs["a"]) / "evaluation-annealed.safetensors")["acceptance"].shape == (20,)
    assert (Path(runs["a"]) / "figures" / "log_prob-annealed.png").is_file()


def test_half_precision_says_what_it_did(runs, capsys):
    assert main([runs["a"], "--num-samples", "5", "--limit", "10"]) == 0
    flags = ["--method", "importance", "--num-samples", "20", "--limit", "40", "--autocast", "bfloat16"]
    assert main([runs["a"], *flags]) == 0
    printed = capsys.readouterr().out
    name = "evaluation-importance-bfloat16"
    figures, found = figures_of(runs["a"], name), load_state(Path(runs["a"]) / f"{name}.safetensors")
    moved = figures["test"]["rounding"]
    assert (figures["autocast"], moved["num_data"], found["rounding"].shape) == ("bfloat16", 32, (32,))
    assert moved["average"] == pytest.approx(float(found["rounding"].mean()))
    assert 0 < moved["max"] == pytest.approx(float(found["rounding"].abs().max()))
    assert f"bfloat16 moved log p(x) of the first 32 data by {moved['average']:+.3f} nats on average" in printed
    assert {"autocast", "rounding"} & {*figures_of(runs["a"]), *figures_of(runs["a"])["test"]} == set()


def test_a_method_of_ones_own_has_files_of_its_own(runs, capsys, monkeypatch):
    monkeypatch.setitem(METHODS, "own", Importance)
    assert main([runs["b"], "--method", "own", "--num-samples", "100", "--limit", "10"]) == 0
    assert f"written to {runs['b']}/evaluation-own.json" in capsys.readouterr().out
    figures = figures_of(runs["b"], "evaluation-own")
    assert (figures["method"], figures["num_samples"]) == ("own", 100)
    assert load_state(Path(runs["b"]) / "evaluation-own.safetensors")["pareto_k"].shape == (10,)
    names = {path.stem for path in (Path(runs["b"]) / "figures").glob("*-own.png")}
    assert names == {"bound-own", "log_prob-own", "pareto_k-own"}


def test_posterior_checks(runs, capsys):
    assert main([runs["a"], "--num-samples", "10", "--limit", "30", "--posterior"]) == 0
    printed = capsys.readouterr().out
    found = figures_of(runs["a"])["posterior"]
    gap = found["inference_gap"]
    assert gap["total"]["mean"] == pytest.approx(gap["approximation"]["mean"] + gap["amortization"]["mean"])
    assert set(found["latents"]["sites"]["z"]["active"]) <= {0, 1, 2}
    assert found["latents"]["sites"]["z"]["num_units"] == len(found["calibration"]["p_values"]) == 3
    for words in ("inference gap ", "all latents: KL ", "calibration: "):
        assert words in printed
    names = {path.stem for path in (Path(runs["a"]) / "figures").glob("*.png")}
    assert {"kl_z", "aggregated_z", "sbc_z"} <= names


def test_posterior_checks_that_do_not_apply_say_why(runs, capsys):
    assert main([runs["labels"], "--num-samples", "10", "--limit", "30", "--posterior"]) == 0
    assert "inference_gap: not of this pair: " in capsys.readouterr().out


def test_several_runs_are_compared(runs, capsys):
    flags = ["--num-samples", "20", "--limit", "60"]
    assert main([runs["a"], runs["b"], *flags]) == 0
    printed = capsys.readouterr().out
    values = {name: load_state(Path(runs[name]) / "evaluation.safetensors")["log_marginal"] for name in "ab"}
    rows = compare(values)
    *_, last = printed.splitlines()
    assert last.split()[0] == runs["b"]
    difference = rows["b"]["difference"]
    assert last.split()[-3:] == [f"{difference['mean']:+.3f}", "±", f"{difference['std_error']:.3f}"]
    assert abs(difference["mean"]) > 1e-3
    assert main([runs["a"], runs["b"], *flags, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["comparison"][runs["b"]] == rows["b"]
    assert result["runs"] == {runs[name]: figures_of(runs[name]) for name in "ab"}


@pytest.mark.parametrize("name", ["a", "labels", "given"])
def test_rows_of_the_classes(name, runs, capsys):
    assert main([runs[name], "--num-samples", "5", "--limit", "50", "--by-class"]) == 0
    printed = capsys.readouterr().out.splitlines()
    labels = load_images(ImageArgs(smoke=True)).test[1][:50]
    (header,) = (i for i, line in enumerate(printed) if line.startswith("class"))
    rows = [line.split()[:2] for line in printed[header + 1 : -1]]
    assert rows == [[str(c), str(int((labels == c).sum()))] for c in range(10)]
    by_class = figures_of(runs[name])["test"]["by_class"]
    total = sum(row["num_data"] * row["log_marginal"]["mean"] for row in by_class.values())
    assert total / 50 == pytest.approx(figures_of(runs[name])["test"]["log_marginal"]["mean"])


@pytest.mark.parametrize("name", ["a", "labels", "given", "grey"])
def test_samples_are_compared_with_the_test_set(name, runs, capsys, monkeypatch):
    monkeypatch.setattr("ppvae.cli.sample_checks.train_features", partial(train_features, num_steps=10))
    before = RunFolder(runs[name]).read_metrics()
    assert main([runs[name], "--samples", "--limit", "200"]) == 0
    printed = capsys.readouterr().out
    metrics = RunFolder(runs[name]).read_metrics()
    assert metrics.keys() == before.keys() | {"samples"}
    assert metrics["test"] == before["test"]
    found = metrics["samples"]
    assert {of["num_samples"] for of in found.values()} == {of["num_data"] for of in found.values()} == {200}
    assert (
        f"samples of the model: 200 samples, 200 data: Fréchet distance {found['model']['frechet']['value']:.3g} ±"
        in printed
    )
    assert "training data in their place: 200 samples" in printed
    assert found["model"]["features"] == found["training"]["features"]
    assert found["model"]["features"] in printed
    assert (Path(runs[name]) / "figures" / "samples_beside_data.png").is_file()
    assert main([runs[name], "--samples", "--limit", "200", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"runs": {runs[name]: found}}


def test_samples_of_a_run_without_labels_need_features_from_elsewhere(tmp_path, capsys):
    run = ppvae.fit(
        PPCA(8, 2),
        torch.randn(40, 8),
        epochs=1,
        out=tmp_path / "own",
        recipe=Recipe(ppca, data_of_ppca),
        progress=False,
    )
    assert main([str(run.folder), "--samples", "--trust"]) == 2
    assert "has no labels to train it on: in Python, ppvae.evaluate.sample_quality(" in capsys.readouterr().err


def ppca():
    return PPCA(8, 2)


def data_of_ppca():
    return torch.zeros(30, 8)


def test_json_is_strict_and_alone(runs):
    """One datum has no standard error; ten samples no k̂."""
    flags = [runs["a"], "--num-samples", "10", "--limit", "1", "--json", "--by-class"]
    command = [sys.executable, "-W", "error", "-m", "ppvae.evaluate", *flags]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    test = printed["runs"][runs["a"]]["test"]
    assert test["log_marginal"]["std_error"] is None
    assert math.isfinite(test["log_marginal"]["mean"])
    assert "k_hat" not in test
    assert "comparison" not in printed
    assert len(test["by_class"]) == 1


def test_restore_gives_the_labels_of_the_test_images(runs):
    data = load_images(ImageArgs(smoke=True))
    for name, parts in {"a": 1, "labels": 1, "given": 2}.items():
        run = restore(Path(runs[name]), device="cpu", data_root=None)
        assert len(run.test) == parts
        assert torch.equal(run.labels, data.test[1])
        assert torch.equal(run.test[0], data.test[0])


@pytest.mark.parametrize(
    ("names", "flags", "message"),
    [
        ([], [], "name at least one run folder"),
        (["a", "a"], [], "none twice"),
        (["a", "grey"], [], "has other test data than"),
        (["a", "given"], [], "or conditions on other data"),
        (["a"], ["--num-samples", "0"], "--num-samples must be a whole number >= 1"),
        (
            ["a"],
            ["--method", "nope"],
            "method must be one of 'importance', 'adaptive', 'annealed', 'auto' or an Estimator",
        ),
        (["a"], ["--limit", "0"], "limit must be a whole number >= 1, got 0"),
        (["a"], ["--limit", "-5"], "limit must be a whole number >= 1, got -5"),
        (["a"], ["--bidirectional"], "--bidirectional goes with --method annealed"),
        (["a"], ["--samples", "--posterior"], "--samples stands in place of log p(x): --posterior does not go with it"),
        (["a"], ["--samples", "--autocast", "bfloat16"], "--autocast does not go with it"),
        (["a"], ["--samples", "--limit", "5"], "at least 20 samples and data to compare, got 5 and 5"),
    ],
)
def test_errors_come_before_any_work(names, flags, message, runs, capsys):
    assert main([*(runs[name] for name in names), *flags]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""


def test_interruption(runs, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("ppvae.cli.evaluate.log_marginal", interrupted)
    assert main([runs["a"], "--num-samples", "5"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
