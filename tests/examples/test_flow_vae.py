import json

import pytest

from ppvae.cli.evaluate import main as evaluate
from ppvae.cli.images import load_images
from ppvae.distributions import ConditionalMultivariateNormal, ConditionalNormal, FlowPosterior
from ppvae.examples.flow_vae import Args, build, main

FIGURES = {"reconstructions", "samples", "latent", "interpolation", "training", "traversal"}
POSTERIORS = {
    "iaf": (FlowPosterior, 3 * 4),
    "planar": (FlowPosterior, 3 * 4),
    "householder": (FlowPosterior, 3 * 4),
    "spline": (FlowPosterior, 3 * 4),
    "full-covariance": (ConditionalMultivariateNormal, 4 + 10),
    "none": (ConditionalNormal, 2 * 4),
}


@pytest.mark.usefixtures("figures_drawn_once")
@pytest.mark.parametrize("flow", [flow for flow in POSTERIORS if flow != "none"])
def test_run_folder_is_complete(flow, tmp_path, capsys):
    out = tmp_path / "run"
    small = ["--smoke", "--latent-dim", "3", "--hidden-dims", "8"]
    small += [] if flow == "full-covariance" else ["--flow-dims", "6"]
    assert main([*small, "--flow", flow, "--out", str(out)]) == 0
    assert {path.stem for path in (out / "figures").glob("*.png")} == FIGURES
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["test"]["elbo"]["mean"] <= metrics["test"]["log_marginal"]["mean"]
    capsys.readouterr()
    assert evaluate([str(out), "--num-samples", "10", "--limit", "1000"]) == 0
    assert f"{metrics['test']['log_marginal']['mean']:.3f}" in capsys.readouterr().out


def test_nets_of_a_flow_are_wide_enough_by_default():
    assert Args(latent_dim=40).resolved().flow_dims == (128,)
    assert Args(latent_dim=200).resolved().flow_dims == (200,)


@pytest.mark.parametrize("flow", POSTERIORS)
def test_build_follows_the_flags(flow):
    data = load_images(Args())
    pair = build(Args(flow=flow, latent_dim=4, hidden_dims=(7,), num_flows=3, flow_dims=(6,)), data)
    kind, size = POSTERIORS[flow]
    assert type(pair.q_z_given_x) is kind
    weights = [tuple(p.shape) for n, p in pair.q_z_given_x.net.named_parameters() if n.endswith("weight")]
    assert weights == [(7, 64), (size, 7)]
    if kind is FlowPosterior:
        assert len(pair.q_z_given_x.flow.transforms) == 3
        assert any(len(p) == 6 for p in pair.q_z_given_x.flow.parameters())


@pytest.mark.usefixtures("figures_undrawn")
@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
def test_other_likelihoods(likelihood, tmp_path):
    flags = ["--smoke", "--likelihood", likelihood, "--hidden-dims", "8", "--latent-dim", "3"]
    assert main([*flags, "--out", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--flow-dims", "3"], "--flow-dims must be widths of at least 16 for this flow, got (3,)"),
        (["--flow-dims"], "--flow-dims must be widths of at least 16"),
        (["--flow", "none", "--num-flows", "3"], "--num-flows goes with --flow iaf or planar or householder or spline"),
        (["--num-flows", "0"], "--num-flows must be a whole number >= 1, got 0"),
    ],
)
def test_wrong_flags_exit_with_2_and_say_why(flags, message, tmp_path, capsys):
    assert main(["--smoke", *flags, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
