import json
import shutil
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

import ppvae
from ppvae.cli.evaluate import main as evaluate
from ppvae.cli.images import load_images
from ppvae.data import load
from ppvae.examples.cvae import Args, arguments, batches, build, main
from ppvae.examples.quadrants import Quadrants, completions
from ppvae.infer import RunFolder

LIKELIHOODS = ["bernoulli", "gaussian", "categorical", "continuous-bernoulli", "discretized-logistic"]
# Figures are drawn in the runs that tests share.
pytestmark = pytest.mark.usefixtures("figures_undrawn")
FIGURES = {
    "labels": {"samples", "style_transfer", "latent", "training"},
    "quadrants": {"completions", "training"},
}
SMALL = ["--num-samples", "20", "--num-eval", "100", "--hidden-dims", "40"]


@pytest.fixture(scope="module", params=["labels", "quadrants"])
def made(request, tmp_path_factory):
    """A short run on the digits."""
    out = tmp_path_factory.mktemp("runs") / request.param
    assert main(["--task", request.param, "--epochs", "3", *SMALL, "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(made, tmp_path):
    """A copy of that run: what a test writes there is its own."""
    return shutil.copytree(made, tmp_path / made.name)


def args_and_data(**flags):
    args = Args(**flags).resolved()
    return args, load_images(args)


def test_run_folder_is_complete(run):
    config = json.loads((run / "config.json").read_text())
    assert config["experiment"]["module"] == "ppvae.examples.cvae"
    assert config["experiment"]["args"]["task"] == run.name
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["num_dims"] == {"labels": 64, "quadrants": 48}[run.name]
    assert metrics["test"]["elbo"]["mean"] <= metrics["test"]["log_marginal"]["mean"]
    assert {path.stem for path in (run / "figures").glob("*.png")} == FIGURES[run.name]
    assert [row["epoch"] for row in RunFolder(run).read_history()] == [1, 2, 3]


def test_evaluate_repeats_the_table_of_the_run(run):
    assert evaluate([str(run), "--method", "importance", "--num-samples", "20", "--limit", "100"]) == 0
    evaluation = json.loads((run / "evaluation-importance.json").read_text())
    metrics = json.loads((run / "metrics.json").read_text())
    assert evaluation["test"] == metrics["test"]


def test_measures_of_the_run(run):
    metrics = json.loads((run / "metrics.json").read_text())
    values = [value["mean"] for value in metrics["measured"].values()]
    if run.name == "labels":
        assert len(values) == 1
        assert 0 <= values[0] < 90  # chance
    else:
        ours, baseline, difference = values
        assert ours == pytest.approx(metrics["test"]["log_marginal"]["mean"])
        assert difference == pytest.approx(ours - baseline)
        assert len(RunFolder(run / "baseline").read_history()) == 3


def test_weights_of_the_run_are_those_of_the_cvae_alone():
    args, data = args_and_data(task="quadrants", hidden_dims=(9,))
    pair = build(args, data)
    of_cvae = {f"cvae.{name}" for name in pair.cvae.state_dict()}
    assert pair.state_dict().keys() == of_cvae == dict(pair.named_parameters()).keys()


@pytest.mark.parametrize("num_given", [1, 2, 3])
@pytest.mark.parametrize("event_shape", [(1, 8, 8), (3, 6, 10)])
def test_quadrants_cover_every_pixel_once_and_reassemble(event_shape, num_given):
    quadrants = Quadrants(event_shape, num_given)
    d = torch.Size(event_shape).numel()
    assert torch.equal(torch.cat([quadrants.rest, quadrants.given]).sort().values, torch.arange(d))
    assert len(quadrants.given) == d * num_given // 4
    images = torch.arange(2 * 5 * d).reshape(2, 5, *event_shape)
    assert torch.equal(quadrants.join(*quadrants.split(images)), images)


def test_quadrants_are_those_of_the_tutorial():
    layouts = {1: [[0, 0], [1, 0]], 2: [[1, 0], [1, 0]], 3: [[1, 1], [1, 0]]}
    for num_given, layout in layouts.items():
        quadrants = Quadrants((1, 4, 6), num_given)
        rest, given = quadrants.split(torch.zeros(1, 4, 6))
        image = quadrants.join(rest, torch.ones_like(given))
        assert torch.equal(image[0, ::2, ::3], torch.tensor(layout, dtype=torch.float))
        assert torch.equal(image[0], image[0, ::2, ::3].repeat_interleave(2, 0).repeat_interleave(3, 1))


def test_pixels_are_binarized_before_the_split():
    args, data = args_and_data(task="quadrants", num_quadrants=2, batch_size=2000)
    train = batches(args, data, torch.device("cpu"))
    (x, y), (x2, y2) = next(train.epoch(0)), next(train.epoch(0))
    assert torch.equal(x, x2)
    assert torch.equal(y, y2)
    assert set(torch.cat([x, y], -1).unique().tolist()) == {0.0, 1.0}
    images = Quadrants(data.event_shape, 2).join(x, y)
    assert (images.mean(0) - load("digits").train.x.mean(0)).abs().max() < 0.06  # of 1297 draws
    x3, _ = next(train.epoch(1))
    assert not torch.equal(x.sum(0), x3.sum(0))


def test_baseline_is_exact_where_it_is_evaluated_as_a_pair():
    args, data = args_and_data(task="quadrants", hidden_dims=(9,))
    pair = build(args, data)
    x, y = (t[:50] for t in arguments(args, *data.test))
    direct = -binary_cross_entropy_with_logits(pair.baseline.p_x_given_y.net(y), x, reduction="none").sum(-1)
    torch.testing.assert_close(ppvae.log_marginal(pair.baseline, x, y, num_samples=1).values.float(), direct)
    torch.testing.assert_close(ppvae.log_marginal(pair.baseline, x, y, num_samples=7).values.float(), direct)
    terms = ppvae.elbo(pair.baseline, x, y)
    torch.testing.assert_close(terms.values.float(), direct)
    assert terms.kl == {}


def test_the_pair_of_the_quadrants_is_its_cvae():
    args, data = args_and_data(task="quadrants", hidden_dims=(9,))
    pair = build(args, data)
    x, y = (t[:20] for t in arguments(args, *data.test))
    whole, cvae = (ppvae.log_marginal(p, x, y, num_samples=5).values for p in (pair, pair.cvae))
    assert torch.equal(whole, cvae)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("task", ["labels", "quadrants"])
def test_every_likelihood_runs(task, likelihood, tmp_path):
    out = tmp_path / "run"
    flags = ["--smoke", "--task", task, "--likelihood", likelihood, "--hidden-dims", "8", "--num-eval", "20"]
    assert main([*flags, "--out", str(out)]) == 0
    assert {path.stem for path in (out / "figures").glob("*.png")} == FIGURES[task]


@pytest.mark.parametrize("prior", ["standard", "conditional"])
@pytest.mark.parametrize("conditioning", ["concat", "film", "batch_norm", "attention"])
@pytest.mark.parametrize(("task", "likelihood"), [("labels", "bernoulli"), ("quadrants", "categorical")])
def test_every_conditioning_and_prior_fits_together(task, likelihood, conditioning, prior):
    given = {"num_quadrants": 3} if task == "quadrants" else {}
    flags = {"task": task, "likelihood": likelihood, "conditioning": conditioning, "prior": prior}
    args, data = args_and_data(**flags, **given, hidden_dims=(8,), latent_dim=3)
    pair = build(args, data)
    x, y = (t[:10] for t in arguments(args, *data.test))
    estimate = ppvae.log_marginal(pair, x, y, num_samples=4)
    assert estimate.values.isfinite().all()
    cvae = pair if task == "labels" else pair.cvae
    assert cvae.p_z(y).batch_shape == (() if prior == "standard" else (10,))
    assert cvae.sample(y).shape == x.shape


def test_completions_keep_what_is_given():
    args, data = args_and_data(task="quadrants", num_quadrants=2, hidden_dims=(8,))
    columns = completions(build(args, data), Quadrants(data.event_shape, 2), data, num_samples=2)
    assert list(columns) == ["y", "1", "2", "baseline", "x, y"]
    labels = data.test[1]
    for c, image in enumerate(columns["x, y"]):
        assert torch.equal(image, data.test[0][labels == c][0])
    for images in columns.values():
        assert torch.equal(images[..., :4], columns["x, y"][..., :4])
    assert (columns["y"][..., 4:] == 0.5).all()
    assert not torch.equal(columns["1"], columns["2"])


def test_defaults_follow_the_task():
    assert (Args().resolved().prior, Args(task="quadrants").resolved().prior) == ("standard", "conditional")
    assert Args(task="quadrants", prior="standard", latent_dim=7).resolved().prior == "standard"
    assert Args(task="quadrants", latent_dim=7).resolved().latent_dim == 7


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "quadrants", "--likelihood", "bernoulli", "--binarize", "none"], "--binarize none does not go"),
        (["--conditioning", "film", "--hidden-dims"], "--hidden-dims must not be empty"),
        (["--task", "quadrants", "--latent-dim", "0"], "--latent-dim must be a whole number >= 1, got 0"),
        (["--num-quadrants", "2"], "--num-quadrants goes with --task quadrants, got labels"),
        (["--dropout", "1"], "dropout"),
        (["--activation", "nope"], "nope"),
        (["--beta", "-1"], "beta"),
        (["--resume"], "--resume needs --out"),
    ],
)
def test_wrong_flags_exit_with_2_and_say_why(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--smoke", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_stopped_baseline_is_not_continued_unasked(tmp_path, monkeypatch, capsys):
    out, flags = tmp_path / "run", ["--task", "quadrants", "--epochs", "2", *SMALL]
    with monkeypatch.context() as patched:
        patched.setattr("ppvae.examples.cvae.fit", _stopped)
        assert main([*flags, "--out", str(out)]) == 130
    assert "baseline; continue with --resume" in capsys.readouterr().err
    assert main([*flags, "--out", str(out)]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main([*flags, "--resume", "--out", str(out)]) == 0
    assert len(RunFolder(out / "baseline").read_history()) == 2


def _stopped(*args, epochs, **options):
    """A training that Ctrl-C stops after its first epoch."""
    return replace(ppvae.fit(*args, epochs=1, **options), stopped="interrupted")


@pytest.mark.parametrize("flags", [["--task", "halves"], ["--num-quadrants", "4"], ["--conditioning", "add"]])
def test_unknown_choices_are_refused(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--smoke", *flags])
    assert stopped.value.code == 2


def test_resume_extends_both_trainings(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    common = ["--task", "quadrants", *SMALL]
    assert main(["--epochs", "2", "--out", str(whole), *common]) == 0
    assert main(["--epochs", "1", "--out", str(parts), *common]) == 0
    assert main(["--epochs", "2", "--out", str(parts), "--resume", *common]) == 0
    metrics = [json.loads((out / "metrics.json").read_text())["measured"] for out in (whole, parts)]
    assert metrics[0] == metrics[1]
    for folder in ("", "baseline/"):
        for file in ("history.csv", "model.safetensors"):
            assert (whole / f"{folder}{file}").read_bytes() == (parts / f"{folder}{file}").read_bytes()
