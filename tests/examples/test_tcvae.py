import json

import pytest
import torch
from pyro.infer import TraceMeanField_ELBO

from ppvae.cli.evaluate import main as evaluate
from ppvae.cli.images import load_images
from ppvae.data import load_factors
from ppvae.examples.tcvae import CURVE, Args, batches, build, curve, main, objective, read_curve
from ppvae.infer import RunFolder
from ppvae.objectives import DIPELBO, FactorVAE, Linear, TotalCorrelationELBO

FIGURES = {"reconstructions", "samples", "latent", "interpolation", "training", "traversal", "kl", "mig"}
SMALL = ["--smoke", "--latent-dim", "3", "--hidden-dims", "8"]
SCORES = {"MIG", "SAP", "DCI disentanglement", "β-VAE score", "FactorVAE score", "modularity", "gap of x"}


@pytest.mark.usefixtures("figures_drawn_once")
@pytest.mark.parametrize(
    "name", ["tc", *(pytest.param(name, marks=pytest.mark.slow) for name in ("factor", "dip-ii", "beta"))]
)
def test_run_folder_is_complete(name, tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*SMALL, "--objective", name, "--out", str(out)]) == 0
    figures = {path.stem for path in (out / "figures").glob("*.png")}
    assert {figure for figure in figures if not figure.startswith("traversal_x")} == FIGURES
    measured = json.loads((out / "metrics.json").read_text())["measured"]
    assert measured.keys() >= SCORES
    assert f"MIG: {measured['MIG']['mean']:.2f} ± " in capsys.readouterr().out
    assert [row["epoch"] for row in read_curve(out / CURVE)] == [1.0]
    assert 0.0 <= read_curve(out / CURVE)[0]["MIG"] <= 1.0
    assert evaluate([str(out), "--num-samples", "10", "--limit", "50"]) == 0


def test_objective_follows_the_flags():
    tc = objective(Args(epochs=8, beta=3.0, beta_from=20.0, weights="paper"))
    assert isinstance(tc, TotalCorrelationELBO)
    assert (tc.beta, tc.weights) == (Linear(4, start=20.0, end=3.0), "paper")
    assert objective(Args(beta=3.0, beta_from=None, epochs=8)).beta == 3.0
    factor = objective(Args(objective="factor", gamma=7.0))
    assert isinstance(factor, FactorVAE)
    first, second = (objective(Args(objective=name, covariance=2.0)) for name in ("dip-i", "dip-ii"))
    assert isinstance(first, DIPELBO)
    assert (first.kind, first.off_diagonal, first.diagonal) == ("I", 2.0, 20.0)
    assert (second.kind, second.off_diagonal, second.diagonal) == ("II", 2.0, 2.0)
    assert isinstance(objective(Args(objective="beta")), TraceMeanField_ELBO)


def test_the_training_images_are_all_but_those_of_the_test():
    args = Args().resolved()
    data, factors = load_images(args), load_factors("sprites")
    source = batches(args, data, torch.device("cpu"))
    assert source.num_data == 60_000
    test = factors.subset(len(data.test[0]))
    assert torch.equal(factors.images(test), data.test[0])
    assert not torch.isin(test, source.tensors[0]).any()
    (x,) = next(source.epoch(0))
    assert x.shape == (args.batch_size, 1, 32, 32)
    assert batches(Args(num_train=500).resolved(), data, torch.device("cpu")).num_data == 500
    assert build(Args(objective="beta", beta=3.0), data).beta == 0.75  # of a quarter of the pixels
    assert build(args, data).beta == 0.25


def test_the_curve_goes_on_where_a_run_is_resumed(tmp_path):
    args = Args(smoke=True, latent_dim=2, hidden_dims=(4,)).resolved()
    data = load_images(args)
    pair = build(args, data)
    for epoch in (1, 2, 3, 2):
        (note,) = curve(args, data, tmp_path)
        with torch.no_grad():
            note({}, pair, epoch)
    assert [row["epoch"] for row in read_curve(tmp_path / CURVE)] == [1.0, 2.0]
    assert read_curve(tmp_path / "nowhere") == []


@pytest.mark.slow
@pytest.mark.usefixtures("figures_undrawn")
def test_training_finds_the_positions(tmp_path):
    flags = ["--epochs", "2", "--num-samples", "1", "--num-eval", "50"]
    assert main([*flags, "--out", str(tmp_path / "run")]) == 0
    measured = json.loads((tmp_path / "run" / "metrics.json").read_text())["measured"]
    assert measured["DCI informativeness"]["mean"] > 0.4
    row = RunFolder(tmp_path / "run").read_history()[-1]
    parts = ("mutual_information", "total_correlation", "dimensions_kl")
    assert sum(row[name] for name in parts) == pytest.approx(row["kl_z"], abs=1e-3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--objective", "beta", "--weights", "paper"], "--weights goes with --objective tc, got beta"),
        (["--gamma", "4"], "--gamma goes with --objective factor, got tc"),
        (["--num-valid", "10"], "--num-valid must be 0: the last weights are kept, got 10"),
        (["--num-train", "0"], "--num-train must be a whole number >= 1, got 0"),
        (["--beta", "-1"], "--beta must be a finite number >= 0, got -1.0"),
        (["--beta-from", "-1"], "--beta-from must be a finite number >= 0, got -1"),
        (["--dataset", "dsprites"], "dsprites: there is no "),
    ],
)
def test_wrong_flags_exit_with_2_and_say_why(flags, message, tmp_path, capsys):
    assert main([*SMALL, *flags, "--data-root", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
