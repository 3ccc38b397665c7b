import json
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from pyro.infer import TraceEnum_ELBO

import ppvae
from ppvae.cli.evaluate import main as evaluate
from ppvae.cli.images import load_images
from ppvae.data import JointBatches, split_labels
from ppvae.examples import ssvae
from ppvae.examples.ssvae import Args, batches, build, main
from ppvae.infer import RunFolder
from ppvae.models import SSVAE, VAE, StackedSSVAE

# Figures are drawn in the runs that tests share.
pytestmark = pytest.mark.usefixtures("figures_undrawn")
FIGURES = {"samples", "style_transfer", "latent", "training", "reliability"}
SMALL = [
    *["--hidden-dims", "40", "--classifier-dims", "40", "--supervised-epochs", "5"],
    *["--num-samples", "10", "--num-eval", "50"],
]
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["m2", "m1m2"])
def made(request, tmp_path_factory):
    """A short run on the digits."""
    out = tmp_path_factory.mktemp("runs") / request.param
    assert main([*of_variant(request.param), "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(made, tmp_path):
    """A copy of that run: what a test writes there is its own."""
    return shutil.copytree(made, tmp_path / made.name)


def of_variant(variant):
    stacked = ["--freeze-m1", "--m1-epochs", "4", "--m1-dims", "60"] if variant == "m1m2" else []
    return ["--variant", variant, "--epochs", "4", "--lr", "1e-2", *stacked, *SMALL]


def args_and_data(**flags):
    args = Args(**flags).resolved()
    return args, load_images(args)


def test_run_folder_is_complete(run):
    config = json.loads((run / "config.json").read_text())
    assert config["experiment"]["module"] == "ppvae.examples.ssvae"
    assert config["experiment"]["args"]["variant"] == run.name
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["num_dims"] == 64
    assert metrics["test"]["elbo"]["mean"] <= metrics["test"]["log_marginal"]["mean"]
    latents = {"m2": ["y", "z"], "m1m2": ["y", "z1", "z2"]}[run.name]
    terms = metrics["test"]["reconstruction"]["mean"] - sum(metrics["test"][f"kl_{z}"]["mean"] for z in latents)
    assert metrics["test"]["elbo"]["mean"] == pytest.approx(terms, abs=1e-5)
    assert {path.stem for path in (run / "figures").glob("*.png")} == FIGURES
    rows = RunFolder(run).read_history()
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert all({"loss", "valid_elbo"} <= row.keys() for row in rows)
    assert len(RunFolder(run / "supervised").read_history()) == 5
    assert (run / "m1").exists() == (run.name == "m1m2")
    if run.name == "m1m2":
        assert len(RunFolder(run / "m1").read_history()) == 4
        weights, of_m1 = RunFolder(run).weights(), RunFolder(run / "m1").weights()
        assert all(torch.equal(weights[f"m1.{name}"], value) for name, value in of_m1.items())


def test_measures_of_the_run(run):
    measured = json.loads((run / "metrics.json").read_text())["measured"]
    (classifier,) = (value for name, value in measured.items() if name == "test error in %, q(y|x)")
    (bayes,) = (value for name, value in measured.items() if "Bayes, 50 images" in name)
    chance = 90
    assert 0 <= classifier["mean"] < (60 if run.name == "m2" else 100)  # M1 has hardly begun to code the images
    assert 0 <= bayes["mean"] < (chance if run.name == "m2" else 100)


def test_evaluate_repeats_the_table_of_the_run(run, capsys):
    assert evaluate([str(run), "--method", "importance", "--num-samples", "10", "--limit", "50"]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert json.loads((run / "evaluation-importance.json").read_text())["test"] == metrics["test"]
    assert f"{metrics['test']['log_marginal']['mean']:.3f}" in capsys.readouterr().out


def test_existing_run_is_not_overwritten(run, capsys):
    before = (run / "history.csv").read_bytes()
    assert main(["--epochs", "1", "--out", str(run)]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert (run / "history.csv").read_bytes() == before


def test_resume_with_other_flags_names_them(run, capsys):
    assert main([*of_variant(run.name), "--num-labels", "50", "--resume", "--out", str(run)]) == 2
    assert "--num-labels was 100, is 50" in capsys.readouterr().err


STOPPED = ["--smoke", "--variant", "m1m2", "--batch-size", "64", *SMALL]


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert main([*STOPPED, "--out", str(out)]) == 0
    return out


def stopping(method, calls):
    """`method`, which at one of its calls in training sends its process Ctrl-C."""
    count = 0

    def stopped(self, *batch):
        nonlocal count
        if torch.is_grad_enabled():
            count += 1
            if count == calls:
                signal.raise_signal(signal.SIGINT)
        return method(self, *batch)

    return stopped


@pytest.mark.parametrize(
    ("part", "calls", "message"),
    [(VAE, 2, "stopped in m1"), (StackedSSVAE, 1, "stopped in supervised"), (StackedSSVAE, 3, "stopped in epoch 1")],
    ids=["m1", "supervised", "all"],
)
def test_a_stopped_run_is_resumed_to_the_same_end(part, calls, message, never_stopped, tmp_path, monkeypatch, capsys):
    parts = tmp_path / "parts"
    with monkeypatch.context() as patched:
        patched.setattr(part, "guide", stopping(part.guide, calls))
        assert main([*STOPPED, "--out", str(parts)]) == 130
    assert f"{message}; continue with --resume --out {parts}" in capsys.readouterr().err
    assert not (parts / "metrics.json").exists()
    assert main([*STOPPED, "--out", str(parts), "--resume"]) == 0
    names = ("history.csv", "model.safetensors")
    for file in (f"{folder}{name}" for folder in ("", "m1/", "supervised/") for name in names):
        assert (never_stopped / file).read_bytes() == (parts / file).read_bytes(), file
    metrics = [json.loads((out / "metrics.json").read_text()) for out in (never_stopped, parts)]
    assert metrics[0]["test"] == metrics[1]["test"]
    assert metrics[0]["measured"] == metrics[1]["measured"]


@pytest.mark.parametrize(
    ("variant", "num_labels"), [("m2", "0"), ("m2", "256"), ("m2", "100000"), ("m1m2", "0"), ("m1m2", "256")]
)
def test_trains_without_labels_and_with_all_of_them(variant, num_labels, tmp_path):
    out = tmp_path / "run"
    flags = ["--smoke", "--variant", variant, "--num-labels", num_labels, *SMALL]
    assert main([*flags, "--out", str(out)]) == 0
    assert {path.stem for path in (out / "figures").glob("*.png")} == FIGURES
    assert all(value["mean"] <= 100 for value in json.loads((out / "metrics.json").read_text())["measured"].values())


@pytest.mark.parametrize(
    ("variant", "likelihood"),
    [("m2", "gaussian"), ("m2", "categorical"), ("m1m2", "discretized-logistic"), ("m1m2", "categorical")],
)
def test_other_likelihoods_run(variant, likelihood, tmp_path):
    out = tmp_path / "run"
    assert main(["--smoke", "--variant", variant, "--likelihood", likelihood, *SMALL, "--out", str(out)]) == 0
    assert {path.stem for path in (out / "figures").glob("*.png")} == FIGURES


def test_labels_of_the_unlabelled_images_are_never_read(monkeypatch):
    """Absurd labels in place of theirs, once the labelled ones are chosen, and the run is the same bit for bit."""
    args, data = args_and_data(num_labels=30, hidden_dims=(8,), classifier_dims=(8,), latent_dim=3)
    labelled, unlabelled = split_labels(data.train[1], 30, seed=0)
    poisoned = data.train[1].index_fill(0, unlabelled, 10**9)
    monkeypatch.setattr(ssvae, "split_labels", lambda y, num_labels, seed: (labelled, unlabelled))
    states = []
    for y in (data.train[1], poisoned):
        seen = replace(data, train=(data.train[0], y))
        torch.manual_seed(0)
        pair, train = build(args, seen), batches(args, seen, CPU)
        assert [len(part.tensors) for part in train.sets] == [2, 1]
        ppvae.fit(pair, train, loss=TraceEnum_ELBO(), epochs=1, progress=False)
        states.append(pair.state_dict())
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_minibatches_hold_every_image_once():
    args, data = args_and_data(num_labels=30, labelled_batch_size=100, batch_size=200)
    train = batches(args, data, CPU)
    assert isinstance(train, JointBatches)
    (x, y), (rest,) = (part.tensors for part in train.sets)
    assert y.bincount().tolist() == [3] * 10
    together = torch.cat([x, rest]).flatten(1)
    assert len(together) == len(data.train[0]) == train.num_data
    torch.testing.assert_close(together.sum(0), data.train[0].flatten(1).sum(0))
    assert len(next(train.epoch(0))[0][0]) == 30
    for num_labels, kinds in ((0, [1]), (len(data.train[0]), [2])):
        train = batches(replace(args, num_labels=num_labels), data, CPU)
        assert [len(part.tensors) for part in train.sets] == kinds


def test_m1_is_a_vae_with_a_support_vector_machine_on_its_codes(tmp_path, capsys):
    out = tmp_path / "m1"
    flags = ["--variant", "m1", "--epochs", "40", "--m1-dims", "60", "--num-samples", "10", "--num-eval", "50"]
    assert main([*flags, "--out", str(out)]) == 0
    measured = json.loads((out / "metrics.json").read_text())["measured"]
    assert measured["test error in %, SVM on the codes"]["mean"] < 50
    assert not {"m1", "supervised"} & {path.name for path in out.iterdir()}
    assert evaluate([str(out), "--num-samples", "10"]) == 0


def test_build_follows_the_flags():
    args, data = args_and_data(num_labels=100, alpha=0.2, latent_dim=3, hidden_dims=(7, 5), classifier_dims=(6,))
    pair = build(args, data)
    assert isinstance(pair, SSVAE)
    assert pair.alpha == pytest.approx(0.2 * len(data.train[0]) / 100)
    shapes = [tuple(p.shape) for name, p in pair.q_y_given_x.named_parameters() if p.dim() == 2]
    assert shapes == [(6, 64), (10, 6)]
    assert pair.sample(torch.arange(10)).shape == (10, 1, 8, 8)
    assert pair.p_z().event_shape == (3,)
    convolutional = build(replace(args, classifier="conv", classifier_dims=(6, 7)), data).q_y_given_x
    assert [tuple(p.shape) for p in convolutional.parameters() if p.dim() == 4] == [(6, 1, 3, 3), (7, 6, 3, 3)]
    assert build(replace(args, num_labels=0), data).alpha == 0
    stacked = build(replace(args, variant="m1m2", m1_dims=(9,)), data)
    assert isinstance(stacked, StackedSSVAE)
    assert stacked.m2.alpha == pair.alpha
    assert stacked.m1.encode(data.test[0][:2]).event_shape == stacked.m1.p_z().event_shape
    assert all(p.requires_grad for p in stacked.parameters())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-labels", "7", "--alpha", "-1"], "--alpha must be a finite number >= 0, got -1"),
        (["--num-labels", "-1"], "--num-labels must be a whole number >= 0, got -1"),
        (["--num-labels", "9"], "--num-labels must be 0, or from 10, one of each class, to 256"),
        (["--latent-dim", "0"], "--latent-dim must be a whole number >= 1, got 0"),
        (["--labelled-batch-size", "0"], "--labelled-batch-size must be a whole number >= 1, got 0"),
        (["--supervised-epochs", "-1"], "--supervised-epochs must be a whole number >= 0, got -1"),
        (["--m1-epochs", "2"], "--m1-epochs goes with --variant m1m2, got m2"),
        (["--dropout", "1"], "dropout"),
        (["--variant", "m1m2", "--m1-dims", "0"], "--m1-dims"),
        (["--variant", "m1m2", "--classifier", "conv"], "--classifier goes with --variant m2, got m1m2"),
        (["--resume"], "--resume needs --out"),
        (["--likelihood", "gaussian", "--binarize", "static"], "--binarize static does not go with"),
    ],
)
def test_wrong_flags_exit_with_2_and_say_why(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--smoke", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_more_labels_than_images_are_refused(tmp_path, capsys):
    assert main(["--num-labels", "9999", "--out", str(tmp_path / "run")]) == 2
    assert "to 1297, all that there are; got 9999" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--variant", "m3"], ["--loss", "mean-field"], ["--num-labels", "few"]])
def test_unknown_choices_are_refused(flags):
    with pytest.raises(SystemExit) as stopped:
        main(["--smoke", *flags])
    assert stopped.value.code == 2
