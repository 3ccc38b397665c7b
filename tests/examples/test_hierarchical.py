"""The examples of models with several levels: hierarchical, with either guide, and ladder."""

import json

import pytest
import torch

from ppvae.cli.evaluate import main as evaluate
from ppvae.cli.flags import ImageArgs
from ppvae.cli.images import load_images
from ppvae.distributions import StandardNormal, VampPrior
from ppvae.examples import hierarchical, iwae, ladder
from ppvae.models import HierarchicalVAE, LadderVAE, TopDownVAE

EXAMPLES = {"hierarchical": hierarchical, "ladder": ladder}
TOP_DOWN = ["--guide", "top-down"]
VAMP = [*TOP_DOWN, "--prior", "vamp", "--num-components", "5"]
CASES = {
    "hierarchical": (hierarchical, []),
    "ladder": (ladder, []),
    "top-down": (hierarchical, TOP_DOWN),
    "vamp": (hierarchical, VAMP),
}
FIGURES = {"reconstructions", "levels", "samples", "latent", "interpolation", "training"}


@pytest.mark.usefixtures("figures_drawn_once")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("flags", [[], ["--latent-dims", "6", "4", "2", "--hidden-dims", "9", "8", "7", "--skip"]])
def test_run_folder_is_complete(name, flags, tmp_path, capsys):
    out = tmp_path / "run"
    example, own = CASES[name]
    small = ["--smoke", "--latent-dims", "3", "2", "--hidden-dims", "8", "8", *own]
    assert example.main([*small, *flags, "--out", str(out)]) == 0
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


@pytest.mark.usefixtures("figures_undrawn")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("likelihood", "skip"), [("gaussian", []), ("categorical", ["--skip"])])
def test_other_likelihoods(name, skip, likelihood, tmp_path):
    example, own = CASES[name]
    flags = ["--smoke", "--likelihood", likelihood, "--hidden-dims", "8", "8", "--latent-dims", "3", "2", *own, *skip]
    assert example.main([*flags, "--out", str(tmp_path / "run")]) == 0


@pytest.mark.usefixtures("figures_undrawn")
def test_iwae_takes_the_flags_of_the_top_down_guide(tmp_path):
    small = ["--smoke", "--latent-dims", "3", "2", "--hidden-dims", "8", "8", "--gradient", "dreg"]
    assert iwae.main([*small, *VAMP, "--skip", "--out", str(tmp_path / "run")]) == 0
    pair = iwae.build(iwae.Args(guide="top-down", latent_dims=(3, 2)), load_images(ImageArgs()))
    assert isinstance(pair, TopDownVAE)


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--latent-dims"], "--latent-dims must hold at least one"),
        (["--latent-dims", "3", "0"], "--latent-dims must be a whole number >= 1, got 0"),
        (["--hidden-dims", "8"], "--hidden-dims must hold a width for each of 2 levels, got 1"),
        (["--num-hidden", "0"], "--num-hidden must be a whole number >= 1, got 0"),
        (["--activation", "nope"], "nope"),
        (["--beta", "-1"], "beta"),
    ],
)
def test_wrong_flags_exit_with_2_and_say_why(name, flags, message, tmp_path, monkeypatch, capsys):
    check_refused(EXAMPLES[name], flags, message, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("example", [hierarchical, iwae], ids=["hierarchical", "iwae"])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prior", "vamp"], "--prior vamp needs --guide top-down: its q(zL|x) takes an image alone"),
        ([*VAMP, "--num-components", "257"], "--num-components 257 is more than the 256 training images"),
        ([*TOP_DOWN, "--num-components", "0"], "--num-components must be a whole number >= 1, got 0"),
    ],
)
def test_wrong_flags_of_the_top_down_guide(example, flags, message, tmp_path, monkeypatch, capsys):
    check_refused(example, flags, message, tmp_path, monkeypatch, capsys)


def check_refused(example, flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert example.main(["--smoke", "--latent-dims", "3", "2", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("flag", "value"), [("--guide", "upwards"), ("--prior", "mixture")])
def test_unknown_guides_and_priors(flag, value, capsys):
    with pytest.raises(SystemExit) as exit_:
        hierarchical.main(["--smoke", flag, value])
    assert exit_.value.code == 2
    assert value in capsys.readouterr().err


def test_the_bottom_up_guide_is_not_trained_with_terms_in_closed_form(capsys):
    with pytest.raises(SystemExit) as exit_:
        hierarchical.main(["--smoke", "--loss", "mean-field"])
    assert exit_.value.code == 2
    assert "mean-field" in capsys.readouterr().err


def sizes(piece):
    """Inputs and outputs of every affine map."""
    return [tuple(p.shape[::-1]) for p in piece.parameters() if p.dim() == 2]


@pytest.mark.parametrize("skip", [False, True])
def test_build_follows_the_flags(skip):
    data = load_images(ImageArgs())
    options = {"latent_dims": (5, 4, 3), "hidden_dims": (11, 12, 13), "num_hidden": 2, "skip": skip, "beta": 2.0}
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
    third = hierarchical.build(hierarchical.Args(**options, guide="top-down"), data)
    assert isinstance(third, TopDownVAE)
    assert (third.beta, third.skip) == (2.0, skip)
    z1, z2 = (64 + 4 + 3, 64 + 3) if skip else (64 + 4, 64 + 3)
    assert [sizes(q) for q in third.q_z] == [
        [(z1, 11), (11, 11), (11, 10)],
        [(z2, 12), (12, 12), (12, 8)],
        [(64, 13), (13, 13), (13, 6)],
    ]
    assert sizes(third.p_x_given_z) == sizes(one.p_x_given_z)
    assert [sizes(p) for p in third.p_z] == [sizes(p) for p in one.p_z]
    assert isinstance(third.p_z[-1], StandardNormal)


@pytest.mark.parametrize(("likelihood", "highest"), [("bernoulli", 1.0), ("categorical", 16.0)])
def test_the_vamp_prior_is_the_mean_of_the_top_posterior_at_training_images(likelihood, highest):
    args = hierarchical.Args(
        guide="top-down", prior="vamp", num_components=6, latent_dims=(3, 2), likelihood=likelihood
    ).resolved()
    data = load_images(args)
    torch.manual_seed(0)
    pair = hierarchical.build(args, data)
    p_z = pair.p_z[-1]
    assert isinstance(p_z, VampPrior)
    assert p_z.bounds == (0.0, highest)
    start = p_z.pseudo_inputs.detach()
    nearest = torch.cdist(start.flatten(1), data.train[0].flatten(1).float()).min(1)
    assert nearest.values.max() <= 0.01 * highest * 8 + 1e-5  # moved inside the bounds by a hundredth, in 64 pixels
    assert len(nearest.indices.unique()) == 6
    z = torch.randn(9, 2)
    by_hand = torch.stack([pair.q_z[-1](u).log_prob(z) for u in start]).logsumexp(0) - torch.tensor(6.0).log()
    torch.testing.assert_close(p_z().log_prob(z), by_hand)
    assert pair.encode(start)["z2"].mean.std() > 0


def test_default_widths_halve_from_level_to_level():
    assert hierarchical.Args(latent_dims=(5, 4, 3)).widths() == (200, 100, 50)
