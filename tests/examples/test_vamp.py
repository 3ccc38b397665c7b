import json

import pytest
import torch

from ppvae.cli.evaluate import main as evaluate
from ppvae.cli.images import load_images
from ppvae.distributions import FlowPrior, MixturePrior, StandardNormal, VampPrior
from ppvae.examples.vamp import Args, build, main

SMALL = ["--smoke", "--latent-dim", "3", "--hidden-dims", "8"]
FEW = ["--num-components", "5"]
FIGURES = {"reconstructions", "samples", "latent", "interpolation", "training", "traversal"}
PRIORS = {"vamp": VampPrior, "standard": StandardNormal, "mixture": MixturePrior, "flow": FlowPrior}


@pytest.fixture(scope="module")
def data():
    return load_images(Args(binarize="dynamic"))


@pytest.mark.usefixtures("figures_drawn_once")
@pytest.mark.parametrize(
    "flags",
    [
        FEW,
        [*FEW, "--prior", "mixture"],
        ["--prior", "flow"],
        [*FEW, "--encoder", "conv", "--activation", "relu", "--pseudo-inputs", "random"],
        [*FEW, "--likelihood", "categorical"],
    ],
    ids=" ".join,
)
def test_run_folder_is_complete(flags, tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*SMALL, *flags, "--out", str(out)]) == 0
    assert {path.stem for path in (out / "figures").glob("*.png")} == FIGURES
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["test"]["elbo"]["mean"] <= metrics["test"]["log_marginal"]["mean"]
    capsys.readouterr()
    assert evaluate([str(out), "--num-samples", "10", "--limit", "1000"]) == 0
    assert f"{metrics['test']['log_marginal']['mean']:.3f}" in capsys.readouterr().out


@pytest.mark.parametrize("name", PRIORS)
def test_build_follows_the_flags(name, data):
    pair = build(Args(prior=name, latent_dim=3, hidden_dims=(7, 5), num_components=4), data)
    assert type(pair.p_z) is PRIORS[name]
    assert pair.p_z().event_shape == (3,)
    linear = [tuple(p.shape) for n, p in pair.q_z_given_x.named_parameters() if n.endswith("weight")]
    assert linear == [(14, 64), (10, 7), (6, 5)]  # gates


def test_the_prior_is_the_mean_of_the_encoder_at_training_images(data):
    torch.manual_seed(0)
    pair = build(Args(latent_dim=3, num_components=6), data)
    start = pair.p_z.pseudo_inputs
    nearest = torch.cdist(start.flatten(1), data.train[0].flatten(1)).min(1)
    assert nearest.values.max() <= 0.01 * 8 + 1e-6  # moved inside the bounds by a hundredth, in 64 pixels
    assert len(nearest.indices.unique()) == 6
    z = torch.randn(9, 3)
    by_hand = pair.encode(start).log_prob(z[:, None]).logsumexp(1) - torch.tensor(6.0).log()
    torch.testing.assert_close(pair.p_z().log_prob(z), by_hand)


@pytest.mark.parametrize(("likelihood", "highest"), [("bernoulli", 1.0), ("categorical", 16.0)])
def test_random_pseudo_inputs_have_the_scale_of_the_data(likelihood, highest):
    args = Args(likelihood=likelihood, pseudo_inputs="random", num_components=50).resolved()
    images = load_images(args)
    torch.manual_seed(0)
    p_z = build(args, images).p_z
    start = p_z.pseudo_inputs.detach() / highest
    assert float(images.train[0].max()) == highest == p_z.bounds[1]
    assert float(start.mean()) == pytest.approx(0.05, abs=0.001)
    assert float(start.std()) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--encoder", "conv"], "--encoder conv does not go with --activation gated: give another, such as relu"),
        (["--prior", "flow", "--num-components", "9"], "--num-components goes with --prior vamp or mixture, got flow"),
        (["--num-components", "2000"], "--num-components 2000 is more than the 1297 training images"),
        (["--num-components", "0"], "--num-components must be a whole number >= 1, got 0"),
    ],
)
def test_wrong_flags_exit_with_2_and_say_why(flags, message, tmp_path, capsys):
    assert main(["--epochs", "1", *flags, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
