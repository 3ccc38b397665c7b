import json
import shutil

import pytest
import torch

from ppvae.cli.evaluate import main as evaluate
from ppvae.cli.flags import ImageArgs
from ppvae.cli.images import load_images
from ppvae.data import load
from ppvae.examples.vae import Args, build, main
from ppvae.infer import RunFolder

# Figures are drawn in the runs that tests share.
pytestmark = pytest.mark.usefixtures("figures_undrawn")
FIGURES = {"reconstructions", "samples", "latent", "interpolation", "training", "traversal"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A short run on the digits, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "vae"
    assert main(["--epochs", "3", "--num-samples", "20", "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(made, tmp_path):
    """A copy of that run: what a test writes there is its own."""
    return shutil.copytree(made, tmp_path / made.name)


def test_run_folder_is_complete(run):
    config = json.loads((run / "config.json").read_text())
    assert config["experiment"]["module"] == "ppvae.examples.vae"
    assert config["experiment"]["args"]["epochs"] == 3
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test"]["num_data"] == 300
    assert metrics["num_dims"] == 64
    elbo = metrics["test"]["elbo"]["mean"]
    terms = metrics["test"]["reconstruction"]["mean"] - metrics["test"]["kl_z"]["mean"]
    assert elbo == pytest.approx(terms, abs=1e-6)
    assert elbo <= metrics["test"]["log_marginal"]["mean"]
    assert {path.stem for path in (run / "figures").glob("*.png")} == FIGURES
    assert [row["epoch"] for row in RunFolder(run).read_history()] == [1, 2, 3]


def test_evaluate_repeats_the_table_of_the_run(run, capsys):
    assert evaluate([str(run), "--method", "importance", "--num-samples", "20", "--limit", "1000"]) == 0
    printed = capsys.readouterr().out
    evaluation = json.loads((run / "evaluation-importance.json").read_text())
    metrics = json.loads((run / "metrics.json").read_text())
    assert evaluation["test"] == metrics["test"]
    assert f"{metrics['test']['log_marginal']['mean']:.3f}" in printed


def test_existing_run_is_not_overwritten(run, capsys):
    before = (run / "history.csv").read_bytes()
    assert main(["--epochs", "1", "--out", str(run)]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert (run / "history.csv").read_bytes() == before


def test_resume_with_other_flags_names_them(run, capsys):
    assert main(["--epochs", "4", "--latent-dim", "3", "--resume", "--out", str(run)]) == 2
    assert "--latent-dim was 16, is 3" in capsys.readouterr().err


def test_resume_extends_the_run(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    common = ["--num-samples", "10"]
    assert main(["--epochs", "3", "--out", str(whole), *common]) == 0
    assert main(["--epochs", "1", "--out", str(parts), *common]) == 0
    assert main(["--epochs", "3", "--out", str(parts), "--resume", *common]) == 0
    assert (whole / "history.csv").read_bytes() == (parts / "history.csv").read_bytes()
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("likelihood", "encoder"),
    [
        *((name, "mlp") for name in ("gaussian", "categorical", "continuous-bernoulli", "discretized-logistic")),
        *((name, "conv") for name in ("bernoulli", "categorical")),  # intensities, and levels that become them
    ],
)
def test_every_likelihood_and_encoder_runs(likelihood, encoder, tmp_path):
    out = tmp_path / "run"
    flags = ["--smoke", "--likelihood", likelihood, "--encoder", encoder, "--hidden-dims", "8", "--out", str(out)]
    assert main(flags) == 0
    assert {path.stem for path in (out / "figures").glob("*.png")} == FIGURES


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--likelihood", "gaussian", "--binarize", "static"], "--binarize static does not go with"),
        (["--likelihood", "bernoulli", "--binarize", "none"], "--binarize none does not go with"),
        (["--resume"], "--resume needs --out"),
        (["--dataset", "mnist", "--data-root", "nowhere/at/all"], "nowhere/at/all"),
        (["--epochs", "0"], "--epochs must be"),
        (["--batch-size", "0"], "--batch-size must be"),
        (["--lr", "-1"], "--lr must be"),
        (["--lr", "inf"], "--lr must be"),
        (["--adam-eps", "-1"], "--adam-eps must be"),
        (["--num-samples", "0"], "--num-samples must be"),
        (["--num-eval", "0"], "--num-eval must be"),
        (["--patience", "0"], "--patience must be"),
        (["--seed", "-1"], "--seed must be"),
        (["--num-valid", "-1"], "--num-valid must be"),
        (["--num-valid", "5000"], "--num-valid=5000 leaves nothing"),
        (["--warmup", "-1"], "--warmup must be"),
        (["--dropout", "2"], "--dropout must be"),
        (["--latent-dim", "0"], "--latent-dim must be a whole number >= 1, got 0"),
        (["--activation", "nope"], "--activation must be one of"),
        (["--beta", "-1"], "--beta must be"),
    ],
)
def test_wrong_flags_exit_with_2_and_say_why(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torchvision.datasets.mnist.MNIST.download", _no_network)
    assert main(["--smoke", *flags] if "--epochs" not in flags else flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_learning_rate_that_ends_training_is_named(tmp_path, capsys):
    assert main(["--smoke", "--hidden-dims", "8", "--lr", "1e308", "--out", str(tmp_path / "run")]) == 1
    assert "Is --lr 1e+308 too large?" in capsys.readouterr().err


def _no_network(self):
    raise OSError("no network in tests")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_exits_with_2(tmp_path, capsys):
    assert main(["--cuda", "--out", str(tmp_path / "run")]) == 2
    assert "no CUDA GPU" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_default_folder_is_the_next_free_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["--smoke", "--hidden-dims", "4"]) == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["vae", "vae-2"]


def test_evaluate_of_a_folder_that_no_example_made(tmp_path, capsys):
    assert evaluate([str(tmp_path)]) == 2
    assert "no run folder" in capsys.readouterr().err
    RunFolder(tmp_path).create({"fit": {}, "experiment": {"module": "os"}})
    assert evaluate([str(tmp_path)]) == 2
    assert "made neither by an example nor with fit" in capsys.readouterr().err


def test_test_images_are_one_fixed_draw_whatever_the_training_binarization():
    dynamic = load_images(ImageArgs(binarize="dynamic"))
    static = load_images(ImageArgs(binarize="static", seed=7))
    assert torch.equal(dynamic.test[0], static.test[0])
    assert set(static.train[0].unique().tolist()) == {0.0, 1.0}
    assert len(dynamic.train[0].unique()) == 17
    assert torch.equal(dynamic.train[0], load("digits").train.x)


def test_build_follows_the_flags():
    data = load_images(ImageArgs())
    vae = build(Args(latent_dim=3, hidden_dims=(7, 5), beta=2.0), data)
    assert vae.beta == 2.0
    assert [p.shape[0] for n, p in vae.q_z_given_x.named_parameters() if n.endswith("weight")] == [7, 5, 6]
    assert [p.shape[0] for n, p in vae.p_x_given_z.named_parameters() if n.endswith("weight")] == [5, 7, 64]


def test_a_latent_of_one_dimension_has_no_plane_to_draw(tmp_path):
    assert main(["--smoke", "--latent-dim", "1", "--out", str(tmp_path / "run")]) == 0
    figures = {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert "traversal" in figures
    assert "latent" not in figures
