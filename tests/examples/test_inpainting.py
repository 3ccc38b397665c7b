"""A run of both trainings is whole, opened again, and its VAE is the one that was trained on whole images."""

import json

import pytest
import torch

import ppvae
from ppvae.cli.evaluate import main as evaluate
from ppvae.cli.images import load_images
from ppvae.examples.inpainting import Args, main, with_part
from ppvae.storage import load_state

FAST = ["--smoke", "--hidden-dims", "8", "--latent-dim", "2", "--part-dims", "8"]


@pytest.mark.usefixtures("figures_drawn_once")
@pytest.mark.parametrize("way", ["matching", "elbo"])
def test_run_folder_is_complete_and_opened_again(way, tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*FAST, "--train-by", way, "--out", str(out)]) == 0
    assert {path.stem for path in (out / "figures").glob("*.png")} == {"completions", "training"}
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["measured"]["log p(rest | part), nats"]["mean"] < 0
    pair, (x, seen), *_ = ppvae.open_run(out)
    before = load_state(out / "vae" / "model.safetensors")
    assert all(torch.equal(before[name], value) for name, value in pair.pair.state_dict().items())
    assert seen.shape == x.shape
    capsys.readouterr()
    assert evaluate([str(out), "--num-samples", "10"]) == 0
    assert f"{metrics['test']['log_marginal']['mean']:.3f}" in capsys.readouterr().out


@pytest.mark.usefixtures("figures_undrawn")
def test_grey_levels_and_another_part(tmp_path):
    assert main([*FAST, "--likelihood", "categorical", "--seen", "quadrant", "--out", str(tmp_path / "run")]) == 0


def test_parts():
    data = load_images(Args(smoke=True).resolved())
    for name, share in (("upper", 0.5), ("left", 0.5), ("quadrant", 0.25)):
        x, seen = with_part(Args(seen=name), *data.test)
        assert seen.shape == x.shape
        assert float(seen.double().mean()) == share
        assert bool(seen[..., 0, 0].all())


def test_wrong_flags_exit_with_2_and_say_why(tmp_path, capsys):
    assert main(["--smoke", "--vae-epochs", "0", "--out", str(tmp_path / "run")]) == 2
    assert "--vae-epochs must be a whole number >= 1, got 0" in capsys.readouterr().err
