import json

import pytest
import torch

from ppvae.cli.evaluate import main as evaluate
from ppvae.cli.images import load_images
from ppvae.examples.iwae import Args, build, main, objective
from ppvae.infer import RunFolder
from ppvae.objectives import CIWAE, IWAE, MIWAE, PIWAE

FIGURES = {"reconstructions", "levels", "samples", "latent", "interpolation", "training"}
SMALL = ["--smoke", "--latent-dims", "3", "--hidden-dims", "8"]


@pytest.mark.usefixtures("figures_drawn_once")
@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--latent-dims", "4", "3", "--hidden-dims", "8", "7", "--gradient", "dreg"],
        ["--objective", "piwae", "--num-groups", "2"],
        ["--likelihood", "categorical", "--gradient", "stl"],
    ],
    ids=" ".join,
)
def test_run_folder_is_complete(flags, tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*SMALL, *flags, "--out", str(out)]) == 0
    assert {path.stem for path in (out / "figures").glob("*.png")} == FIGURES
    metrics = json.loads((out / "metrics.json").read_text())
    levels = ["z2 of 3", "z1 of 4"] if "4" in flags else ["z1 of 3"]
    assert list(metrics["measured"]) == [f"active units of {site}" for site in levels]
    assert "active units of z1 of" in capsys.readouterr().out
    assert evaluate([str(out), "--num-samples", "10", "--limit", "1000"]) == 0
    assert f"{metrics['test']['log_marginal']['mean']:.3f}" in capsys.readouterr().out


@pytest.mark.usefixtures("figures_undrawn")
@pytest.mark.parametrize(("k", "is_elbo"), [(1, True), (20, False)])
def test_the_bound_is_what_is_trained(k, is_elbo, tmp_path):
    assert main([*SMALL, "--num-particles", str(k), "--out", str(tmp_path / "run")]) == 0
    (row,) = RunFolder(tmp_path / "run").read_history()
    if is_elbo:
        assert -row["loss"] == pytest.approx(row["elbo"], abs=1e-4)
    else:
        assert -row["loss"] > row["elbo"] + 0.05


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, IWAE(5)),
        ({"num_particles": 7, "gradient": "dreg"}, IWAE(7, gradient="dreg")),
        ({"objective": "miwae", "num_groups": 3}, MIWAE(3, 5)),
        ({"objective": "piwae", "num_groups": 3, "gradient": "stl"}, PIWAE(3, 5, gradient="stl")),
        ({"objective": "ciwae", "beta": 0.3}, CIWAE(5, 0.3)),
    ],
)
def test_objective_follows_the_flags(flags, expected):
    found = objective(Args(**flags))
    assert type(found) is type(expected)
    for option in ("num_particles", "gradient", "encoder", "decoder"):
        assert getattr(found, option) == getattr(expected, option), option


def test_nets_are_those_of_the_paper():
    data = load_images(Args())
    one, two = build(Args(), data), build(Args(latent_dims=(100, 50), hidden_dims=(200, 100)), data)

    def sizes(piece):
        return [tuple(p.shape[::-1]) for p in piece.parameters() if p.dim() == 2]

    assert [sizes(q) for q in one.q_z] == [[(64, 200), (200, 200), (200, 2 * 50)]]
    assert sizes(one.p_x_given_z) == [(50, 200), (200, 200), (200, 64)]
    assert [sizes(q) for q in two.q_z] == [
        [(64, 200), (200, 200), (200, 2 * 100)],
        [(100, 100), (100, 100), (100, 2 * 50)],
    ]
    assert sizes(two.p_z) == [(50, 100), (100, 100), (100, 2 * 100)]
    assert sizes(two.p_x_given_z) == [(100, 200), (200, 200), (200, 64)]
    for pair in (one, two):
        assert pair.beta == 1.0  # the flag is of ciwae
        assert any(isinstance(module, torch.nn.Tanh) for module in pair.modules())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-particles", "0"], "--num-particles must be a whole number >= 1, got 0"),
        (["--objective", "miwae", "--num-groups", "0"], "--num-groups must be a whole number >= 1, got 0"),
        (["--num-groups", "2"], "--num-groups goes with --objective miwae or piwae, got iwae"),
        (["--objective", "ciwae", "--beta", "2"], "beta must be a number between 0 (the ELBO) and 1 (IWAE), got 2.0"),
        (["--warmup", "5"], "--warmup must be 0"),
    ],
)
def test_wrong_flags_exit_with_2_and_say_why(flags, message, tmp_path, capsys):
    assert main([*SMALL, *flags, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
