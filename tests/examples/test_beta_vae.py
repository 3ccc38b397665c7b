import json

import pytest
import torch
from pyro.infer import TraceMeanField_ELBO

from ppvae.cli.evaluate import main as evaluate
from ppvae.cli.images import load_images
from ppvae.examples.beta_vae import Args, build, main, objective
from ppvae.examples.latents import active_units
from ppvae.infer import RunFolder
from ppvae.objectives import CapacityELBO, ConstrainedELBO, FreeBitsELBO, Linear

FIGURES = {"reconstructions", "samples", "latent", "interpolation", "training", "traversal", "kl"}
TRAVERSALS = {"traversal_x1", "traversal_x2", "traversal_x3"}
SMALL = ["--smoke", "--latent-dim", "3", "--hidden-dims", "8"]


@pytest.mark.usefixtures("figures_drawn_once")
@pytest.mark.parametrize("name", ["beta", "capacity", "constrained", "free-bits"])
def test_run_folder_is_complete(name, tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*SMALL, "--objective", name, "--out", str(out)]) == 0
    assert {path.stem for path in (out / "figures").glob("*.png")} == FIGURES | TRAVERSALS
    metrics = json.loads((out / "metrics.json").read_text())
    ((key, units),) = metrics["measured"].items()
    assert key == "active units of z of 3"
    assert units["std_error"] is None
    assert f"{key}: {units['mean']}\n" in capsys.readouterr().out
    assert evaluate([str(out), "--num-samples", "10", "--limit", "1000"]) == 0
    assert f"{metrics['test']['log_marginal']['mean']:.3f}" in capsys.readouterr().out


@pytest.mark.usefixtures("figures_undrawn")
@pytest.mark.parametrize(("flags", "kl"), [(["capacity", "--capacity", "6"], 6), (["constrained", "--max-kl", "5"], 5)])
def test_the_kl_lands_on_its_target(flags, kl, tmp_path):
    small = ["--epochs", "40", "--hidden-dims", "50", "--latent-dim", "8", "--num-samples", "1", "--num-eval", "50"]
    assert main(["--objective", *flags, *small, "--lr", "3e-3", "--out", str(tmp_path / "run")]) == 0
    assert RunFolder(tmp_path / "run").read_history()[-1]["kl_z"] == pytest.approx(kl, rel=0.1)


def test_objective_follows_the_flags():
    assert isinstance(objective(Args()), TraceMeanField_ELBO)
    capacity = objective(Args(objective="capacity", epochs=30, capacity=7.0, gamma=9.0))
    assert isinstance(capacity, CapacityELBO)
    assert (capacity.capacity, capacity.gamma) == (Linear(15, end=7.0), 9.0)
    assert objective(Args(objective="capacity", epochs=30, capacity_epochs=4)).capacity == Linear(4, end=10.0)
    constrained = objective(Args(objective="constrained", max_kl=3.0))
    assert isinstance(constrained, ConstrainedELBO)
    assert constrained.max_kl == 3.0
    free_bits = objective(Args(objective="free-bits", free_bits=0.25))
    assert isinstance(free_bits, FreeBitsELBO)
    assert free_bits.free_bits == 0.25


def test_beta_is_of_the_objective_beta_alone():
    data = load_images(Args())
    assert build(Args(beta=3.0), data).beta == 3.0
    assert build(Args(beta_norm=0.5, latent_dim=8), data).beta == 0.5 * 64 / 8
    assert build(Args(objective="capacity"), data).beta == 1.0


@torch.no_grad()
def test_active_units_are_counted():
    data = load_images(Args(binarize="dynamic"))
    torch.manual_seed(0)
    pair = build(Args(latent_dim=5, hidden_dims=()), data)  # posterior means are affine in x
    affine = next(layer for layer in pair.q_z_given_x.modules() if isinstance(layer, torch.nn.Linear))
    affine.weight.mul_(4.0)[[1, 4]] = 0.0
    assert active_units(pair, Args(), data) == {"active units of z of 5": {"mean": 3, "std_error": None}}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--objective", "capacity", "--beta", "4"], "--beta goes with --objective beta, got capacity"),
        (["--objective", "capacity", "--capacity", "-1"], "--capacity must be a finite number >= 0, got -1"),
        (["--objective", "capacity", "--loss", "trace"], "--loss goes with --objective beta, got capacity"),
        (["--beta", "3", "--beta-norm", "0.1"], "--beta-norm takes the place of --beta, got both: 0.1 and 3"),
        (["--patience", "3"], "--patience needs validation data, and --num-valid is 0"),
        (["--beta", "0", "--warmup", "3", "--warmup-from", "4"], "--warmup-from 4 does not go with --beta 0"),
        (["--beta", "-1"], "beta must be a finite number >= 0, got -1.0"),
        (["--beta-norm", "-1"], "--beta-norm must be a finite number >= 0, got -1.0"),
        (["--objective", "capacity", "--gamma", "-1"], "gamma must be a finite number >= 0, got -1.0"),
        (["--objective", "capacity", "--capacity-epochs", "0"], "--capacity-epochs must be a finite number > 0, got 0"),
        (["--objective", "constrained", "--max-kl", "-1"], "--max-kl must be a finite number >= 0, got -1.0"),
        (["--objective", "free-bits", "--free-bits", "-1"], "--free-bits must be a finite number >= 0, got -1.0"),
    ],
)
def test_wrong_flags_exit_with_2_and_say_why(flags, message, tmp_path, capsys):
    assert main([*SMALL, *flags, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
