"""On a GPU: every example trains with a recorded step, and what it wrote is evaluated there."""

import importlib

import pytest
import torch

from ppvae.cli.evaluate import main as evaluate

pytestmark = [pytest.mark.inductor, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

NAMES = "vae", "beta_vae", "cvae", "iwae", "hierarchical", "ladder", "vamp", "flow_vae"


@pytest.mark.parametrize("example", [*NAMES, "ssvae --batch-size 16", "ssvae --variant m1m2", "cvae --task quadrants"])
def test_example(example, tmp_path, capsys):
    name, *flags = example.split()
    out = str(tmp_path / "run")
    main = importlib.import_module(f"ppvae.examples.{name}").main
    assert main([*flags, "--smoke", "--cuda", "--compile", "always", "--num-eval", "50", "--out", out]) == 0
    assert evaluate([out, "--cuda", "--limit", "20", "--num-samples", "20"]) == 0
    assert capsys.readouterr().out.count("log p(x") >= 2


def test_the_posterior_is_checked_and_the_likelihood_annealed(tmp_path, capsys):
    out = str(tmp_path / "run")
    main = importlib.import_module("ppvae.examples.vae").main
    assert main(["--smoke", "--cuda", "--out", out]) == 0
    flags = ["--method", "annealed", "--num-samples", "4", "--num-temperatures", "20", "--bidirectional", "--posterior"]
    assert evaluate([out, "--cuda", "--limit", "20", *flags]) == 0
    assert "calibration" in capsys.readouterr().out
