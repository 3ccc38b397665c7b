"""The examples of models with several levels: hierarchical and ladder."""

import json

import pytest

from ppvae.evaluate.__main__ import main as evaluate
from ppvae.examples import hierarchical, ladder
from ppvae.examples.flags import ExperimentArgs
from ppvae.examples.images import load_images
from ppvae.models import HierarchicalVAE, LadderVAE

EXAMPLES = {"hierarchical": hierarchical, "ladder": ladder}
FIGURES = {"reconstructions", "levels", "samples", "latent", "interpolation", "training"}


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("flags", [[], ["--latent-dims", "6", "4", "2", "--hidden-dims", "9", "8", "7", "--skip"]])
def test_run_folder_is_complete(name, flags, tmp_path, capsys):
    out = tmp_path / "run"
    small = ["--smoke", "--latent-dims", "3", "2", "--hidden-dims", "8", "8"]
    assert EXAMPLES[name].main([*small, *flags, "--out", str(out)]) == 0
    assert {path.stem for path in (out / "figures").glob("*.png")} == FIGURES
    metrics = json.loads((out / "metrics.json").read_text())
    levels = {"kl_z1", "kl_z2", "kl_z3"} if flags else {"kl_z1", "kl_z2"}
    assert {key for key in metrics["test"] if key.startswith("kl_")} == levels
    kl = sum(metrics["test"][key]["mean"] for key in levels)
    terms = metrics["test"]["reconstruction"]["mean"] - kl
    assert metrics["test"]["elbo"]["mean"] == pytest.approx(terms, abs=1e-6)
    capsys.readouterr()
    assert evaluate([str(out), "--num-samples", "10", "--limit", "1000"]) == 0
    assert f"{metrics['test']['log_marginal']['mean']:.3f}" in capsys.readouterr().out


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("skip", [[], ["--skip"]])
@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
def test_other_likelihoods(name, skip, likelihood, tmp_path):
    flags = ["--smoke", "--likelihood", likelihood, "--hidden-dims", "8", "8", "--latent-dims", "3", "2", *skip]
    assert EXAMPLES[name].main([*flags, "--out", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--latent-dims"], "--latent-dims must hold at least one"),
        (["--latent-dims", "3", "0"], "positive int"),
        (["--hidden-dims", "8"], "--hidden-dims must hold a width for each of 2 levels, got 1"),
        (["--num-hidden", "0"], "--num-hidden must be a whole number >= 1, got 0"),
        (["--activation", "nope"], "nope"),
        (["--beta", "-1"], "beta"),
    ],
)
def test_wrong_flags_exit_with_2_and_say_why(name, flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert EXAMPLES[name].main(["--smoke", "--latent-dims", "3", "2", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_bottom_up_guide_is_not_trained_with_terms_in_closed_form(capsys):
    with pytest.raises(SystemExit) as exit_:
        hierarchical.main(["--smoke", "--loss", "mean-field"])
    assert exit_.value.code == 2
    assert "mean-field" in capsys.readouterr().err


@pytest.mark.parametrize("skip", [False, True])
def test_build_follows_the_flags(skip):
    data = load_images(ExperimentArgs())
    options = {"latent_dims": (5, 4, 3), "hidden_dims": (11, 12, 13), "num_hidden": 2, "skip": skip, "beta": 2.0}

    def sizes(piece):
        """Inputs and outputs of every affine map."""
        return [tuple(p.shape[::-1]) for p in piece.parameters() if p.dim() == 2]

    one = hierarchical.build(hierarchical.Args(**options), data)
    assert isinstance(one, HierarchicalVAE)
    assert (one.beta, one.skip) == (2.0, skip)
    x, z1, z2 = (64 + 5 + 4, 5 + 4 + 3, 4 + 3) if skip else (4, 5, 4)
    assert sizes(one.q_z[2]) == [(x, 13), (13, 13), (13, 6)]
    assert sizes(one.p_x_given_z) == [(z1, 11), (11, 11), (11, 64)]
    assert sizes(one.p_z[0]) == [(z2, 12), (12, 12), (12, 10)]
    assert sizes(one.p_z[1]) == [(3, 13), (13, 13), (13, 8)]
    other = ladder.build(ladder.Args(**options), data)
    assert isinstance(other, LadderVAE)
    assert sizes(other.p_z[0]) == sizes(one.p_z[0])
    assert [sizes(d) for d in other.d] == [[(64, 11), (11, 11)], [(11, 12), (12, 12)], [(12, 13), (13, 13)]]
    assert sizes(other.q_z_given_d[1]) == [(12, 8)]


def test_default_widths_halve_from_level_to_level():
    assert hierarchical.Args(latent_dims=(5, 4, 3)).widths() == (200, 100, 50)
