"""The examples that differ in the objective: autoencoder, aae, wae and factorvae."""

import importlib
import json

import pytest
import torch

from ppvae.cli.evaluate import main as evaluate
from ppvae.cli.images import load_images
from ppvae.distributions import ConditionalDelta, ConditionalNormal, MixturePrior
from ppvae.examples import aae, autoencoder, codes, factorvae, wae
from ppvae.infer import RunFolder
from ppvae.models import VAE
from ppvae.objectives import AAE, AE, MMD, RAE, WAE, Critic, FactorVAE, InfoVAE

FIGURES = {"reconstructions", "samples", "latent", "interpolation", "training", "traversal"}
SMALL = ["--smoke", "--latent-dim", "3", "--hidden-dims", "8"]
CRITIC = ["--critic-dims", "4"]
RUNS = {
    "autoencoder": ("autoencoder", ["--num-components", "2", "--weight-decay", "1e-3"]),
    "plain autoencoder": ("autoencoder", ["--code-weight", "0", "--likelihood", "bernoulli"]),
    "aae": ("aae", [*CRITIC, "--critic-lr", "1e-4", "--critic-steps", "2"]),
    "aae of normals": ("aae", [*CRITIC, "--posterior", "normal"]),
    "wae": ("wae", []),
    "wae-gan": ("wae", ["--divergence", "gan", *CRITIC]),
    "infovae": ("wae", ["--alpha", "0", "--posterior", "normal", "--kernel", "rbf"]),
    "factorvae": ("factorvae", CRITIC),
}


@pytest.mark.usefixtures("figures_drawn_once")
@pytest.mark.parametrize("name", RUNS)
def test_run_folder_is_complete(name, tmp_path, capsys):
    module, flags = RUNS[name]
    out = tmp_path / "run"
    assert importlib.import_module(f"ppvae.examples.{module}").main([*SMALL, *flags, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text())
    figures = {path.stem for path in (out / "figures").glob("*.png")}
    assert figures >= FIGURES | ({"kl"} if module == "factorvae" else {"aggregated"})
    (row,) = RunFolder(out).read_history()
    point = name in ("autoencoder", "plain autoencoder", "aae", "wae", "wae-gan")
    assert ("elbo" in row) != point
    assert ("log_marginal" in metrics["test"]) != point
    assert ("no ELBO" in printed) == point
    assert all(key in printed for key in metrics["measured"])
    assert "reconstruction" in metrics["train"]


@pytest.mark.usefixtures("figures_undrawn")
def test_the_weights_of_the_run_are_those_with_the_fitted_prior(tmp_path, capsys):
    out = tmp_path / "run"
    flags = [*SMALL, "--num-components", "2", "--out", str(out)]
    assert autoencoder.main(flags) == 0
    weights = RunFolder(out).weights()
    trained = RunFolder(out).read_checkpoint()["model"]
    assert not torch.equal(weights["p_z.loc"], trained["p_z.loc"])
    assert torch.equal(weights["q_z_given_x.net.1.weight"], trained["q_z_given_x.net.1.weight"])
    assert autoencoder.main([*flags, "--resume"]) == 0
    assert all(torch.equal(a, b) for a, b in zip(weights.values(), RunFolder(out).weights().values(), strict=True))
    capsys.readouterr()
    assert evaluate([str(out), "--limit", "3"]) == 2
    assert "give --method annealed --start prior" in capsys.readouterr().err
    chains = ["--method", "annealed", "--start", "prior", "--num-samples", "2", "--num-temperatures", "3"]
    assert evaluate([str(out), "--limit", "3", *chains]) == 0
    printed = capsys.readouterr().out
    assert "log p(x)" in printed
    assert "no ELBO" in printed
    assert evaluate([str(out), "--limit", "3", "--by-class", *chains]) == 2
    assert "--by-class and --posterior need an ELBO" in capsys.readouterr().err


def test_objectives_follow_the_flags():
    assert isinstance(autoencoder.objective(autoencoder.Args()), RAE)
    assert isinstance(autoencoder.objective(autoencoder.Args(code_weight=0.0)), AE)
    adversarial = aae.objective(aae.Args(weight=3.0, critic_dims=(5,), critic_steps=2, encoder_loss="ratio"))
    assert isinstance(adversarial, AAE)
    assert (adversarial.weight, adversarial.divergence.encoder_loss, len(adversarial.before)) == (3.0, "ratio", 1)
    by_kernel = wae.objective(wae.Args(kernel="rbf", weight=7.0))
    assert isinstance(by_kernel, WAE)
    assert (by_kernel.divergence, by_kernel.weight) == (MMD("rbf"), 7.0)
    assert isinstance(wae.objective(wae.Args(divergence="gan")).divergence, Critic)
    info = wae.objective(wae.Args(alpha=0.25, weight=4.0, posterior="normal"))
    assert isinstance(info, InfoVAE)
    assert (info.alpha, info.lam, info.kl_weight) == (0.25, 4.0, 0.75)
    factor = factorvae.objective(factorvae.Args(gamma=6.0))
    assert isinstance(factor, FactorVAE)
    assert factor.weight == 6.0
    assert codes.critic_groups(aae.Args()) is None
    assert codes.critic_groups(aae.Args(critic_lr=1e-4)) == {"objective.critic.*": {"lr": 1e-4}}
    assert wae.groups(wae.Args(critic_lr=1e-4)) is None
    assert autoencoder.decay(autoencoder.Args(weight_decay=0.1)) == {"p_x_given_z.*": {"weight_decay": 0.1}}


def test_pairs_follow_the_flags():
    data = load_images(aae.Args(binarize="dynamic"))
    assert isinstance(codes.build(aae.Args(posterior="normal"), data).q_z_given_x, ConditionalNormal)
    pair = autoencoder.build(autoencoder.Args(latent_dim=3, num_components=4), data)
    assert isinstance(pair, VAE)
    assert isinstance(pair.q_z_given_x, ConditionalDelta)
    assert isinstance(pair.p_z, MixturePrior)
    assert pair.p_z.loc.shape == (4, 3)


def test_pca_is_the_least_error_of_a_linear_code():
    args = autoencoder.Args(latent_dim=64, binarize="none")
    data = load_images(args)
    (full,) = codes.pca_error(args, data).values()
    (few,) = codes.pca_error(autoencoder.Args(latent_dim=5, binarize="none"), data).values()
    assert full["mean"] == pytest.approx(0.0, abs=1e-6)
    rest = (data.test[0] - data.train[0].mean(0)).square().flatten(1).sum(-1).mean()
    assert 0 < few["mean"] < float(rest)


@pytest.mark.parametrize(
    ("module", "flags", "message"),
    [
        (autoencoder, ["--code-weight", "-1"], "--code-weight must be a finite number >= 0, got -1"),
        (autoencoder, ["--num-components", "0"], "--num-components must be a whole number >= 1, got 0"),
        (aae, ["--weight", "-1"], "--weight must be a finite number >= 0, got -1"),
        (aae, ["--critic-steps", "0"], "--critic-steps must be a whole number >= 1, got 0"),
        (wae, ["--alpha", "0.5"], "--alpha weights a KL term, which --posterior point has not"),
        (wae, ["--alpha", "2", "--posterior", "normal"], "--alpha must be a finite number <= 1, got 2"),
        (factorvae, ["--gamma", "-1"], "--gamma must be a finite number >= 0, got -1"),
        (factorvae, ["--posterior", "point"], "--posterior point has no KL term"),
    ],
)
def test_wrong_flags_exit_with_2_and_say_why(module, flags, message, tmp_path, capsys):
    assert module.main([*SMALL, *flags, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
