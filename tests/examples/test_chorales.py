"""A run on rolls is whole, its steps are averaged as in the papers, and chorales that are not there are asked for."""

import json

import pytest
import torch

from ppvae.cli.evaluate import main as evaluate
from ppvae.data import Progressions, padded_series
from ppvae.data import chorales as reader
from ppvae.distributions.pushforward import PushForward
from ppvae.examples.chorales import Args, build, load_rolls, main, per_step
from ppvae.storage import save_state

FAST = ["--smoke", "--hidden-dim", "8", "--rnn-dim", "8", "--latent-dim", "2", "--num-eval", "10"]


def test_run_folder_is_complete_and_opened_again(tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*FAST, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert {path.stem for path in (out / "figures").glob("*.png")} == {"rolls", "training"}
    metrics = json.loads((out / "metrics.json").read_text())
    process = metrics["measured"]["log p(x) for each step of the process itself"]
    assert f"process itself: {process['mean']:.2f}" in said
    x, lengths = (t[:10] for t in load_rolls(Args(smoke=True).resolved()).test)
    assert process["mean"] == pytest.approx(float(Progressions().log_prob(x, lengths).sum() / lengths.sum()))
    assert metrics["measured"]["log p(x) for each step, 10 samples"]["mean"] < process["mean"]
    assert evaluate([str(out), "--num-samples", "10", "--limit", "10"]) == 0
    assert f"{metrics['test']['log_marginal']['mean']:.3f}" in capsys.readouterr().out


@pytest.mark.usefixtures("figures_undrawn")
def test_chorales_that_were_read_before(tmp_path, capsys):
    rolls = padded_series([torch.rand(4 + i % 5, 88) < 0.1 for i in range(20)])
    (tmp_path / "chorales").mkdir()
    save_state(tmp_path / "chorales" / "rolls-2.safetensors", {**rolls._asdict(), "music21": "0"})
    mine = [
        "--dataset",
        "jsb",
        "--data-root",
        str(tmp_path),
        "--steps-per-quarter",
        "2",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main([*FAST, *mine]) == 0
    assert "jsb: 12 rolls to train on, 4 for validation, 4 for testing" in capsys.readouterr().out


def test_wrong_flags_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reader, "find_spec", lambda name: None)
    for wrong, message in (
        (["--dataset", "jsb", "--data-root", str(tmp_path)], "pip install music21"),
        (["--steps-per-quarter", "2"], "--steps-per-quarter goes with --dataset jsb"),
        (["--dataset", "jsb", "--num-valid", "9"], "--num-valid goes with --dataset progressions"),
        (["--num-flows", "-1"], "--num-flows must be"),
    ):
        assert main([*FAST, *wrong, "--out", str(tmp_path / "run")]) == 2
        assert message in capsys.readouterr().err


def test_flows_are_in_the_guide():
    args = Args(num_flows=2, latent_dim=2, hidden_dim=8, rnn_dim=8, smoke=True).resolved()
    data = load_rolls(args)
    pair = build(args, data)
    x, lengths = (t[:3] for t in data.train)
    h = pair.q_z_given_x.h_given_x(x, lengths)
    step = pair.q_z_given_x.q_z_given_zh(torch.zeros(3, 2), h[:, 0])
    assert isinstance(step, PushForward)
    assert len(step.transforms) == 2


def test_an_emission_starts_at_the_share_of_each_key():
    args = Args(latent_dim=2, hidden_dim=8, rnn_dim=8).resolved()
    data = load_rolls(args)
    x, lengths = data.train
    share = x.sum((0, 1)) / lengths.sum()
    bias = build(args, data).p_x_given_z.net[-1].bias
    torch.testing.assert_close(bias.sigmoid().detach(), share.clamp(1e-3, 1 - 1e-3), atol=1e-4, rtol=1e-3)


def test_steps_are_averaged_over_all_series():
    torch.manual_seed(0)
    lengths = torch.randint(5, 50, (4000,))
    values = -3.0 * lengths + lengths.sqrt() * torch.randn(4000)  # each step with mean −3 and variance 1
    found = per_step(values.double(), lengths)
    assert found["mean"] == pytest.approx(-3, abs=4 * found["std_error"])
    assert found["std_error"] == pytest.approx(float(lengths.sum()) ** -0.5, rel=0.1)
