"""One screen of what there is, and the commands by their names."""

import platform
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import torch

import ppvae
from ppvae.cli.main import main, models, overview
from ppvae.infer import Recipe
from ppvae.models import PPCA

ROOT = Path(__file__).parents[2]


def make():
    return PPCA(6, 2, guide="amortized")


def load_test():
    return torch.randn(150, 6, generator=torch.Generator().manual_seed(1))


def test_the_list_is_one_screen_and_names_every_example():
    lines = overview().splitlines()
    assert len(lines) < 40
    assert max(map(len, lines)) < 80  # of a terminal as it opens
    names = {path.stem for path in (ROOT / "ppvae" / "examples").glob("*.py") if "\nEXPERIMENT = " in path.read_text()}
    assert set(models()) == names
    for name, text in models().items():
        assert text
        assert callable(import_module(f"ppvae.examples.{name}").main)


@pytest.mark.parametrize("argv", [[], ["--help"], ["train", "--help"]])
def test_it_is_printed(argv, capsys):
    assert main(argv) == 0
    assert "ppvae evaluate RUN" in capsys.readouterr().out


def test_without_an_argument_nothing_heavy_is_imported():
    code = "import sys; from ppvae.cli.main import main; main([]); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.splitlines()[-1] == "False", result.stderr


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["explain"], "there is no command 'explain', but there are train, evaluate, explore, doctor"),
        (["train"], "there is no model '': aae, "),
        (["train", "gan"], "there is no model 'gan': aae, "),
        (["doctor", "nowhere"], "nowhere"),
    ],
)
def test_what_there_is_not_is_named(argv, message, capsys):
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_versions(capsys):
    assert main(["--version"]) == 0
    printed = capsys.readouterr().out
    assert f"ppvae {ppvae.__version__}, torch {torch.__version__}, pyro " in printed
    assert f", python {platform.python_version()}, on " in printed


@pytest.mark.usefixtures("figures_undrawn")
def test_train_evaluate_and_doctor(tmp_path, capsys):
    out = str(tmp_path / "run")
    assert main(["train", "vae", "--smoke", "--latent-dim", "2", "--hidden-dims", "8", "--out", out]) == 0
    assert main(["evaluate", out, "--num-samples", "10"]) == 0
    assert "log p(x), K=10" in capsys.readouterr().out
    assert main(["doctor", out]) == 0
    printed = capsys.readouterr().out
    assert "model  x (observed)  Bernoulli, 1 x 8 x 8 numbers in {0, 1}, in plate data (200)" in printed


def test_doctor_of_a_run_of_ones_own(tmp_path, capsys):
    out = tmp_path / "run"
    ppvae.fit(make(), load_test(), epochs=2, out=out, recipe=Recipe(make, load_test), progress=False)
    assert main(["doctor", str(out)]) == 2
    assert "on your word alone" in capsys.readouterr().err
    assert main(["doctor", str(out), "--trust"]) == 0
    assert "✓ a gradient reaches each of" in capsys.readouterr().out


def test_the_script_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["ppvae"].partition(":")
    assert getattr(import_module(module), name) is main
