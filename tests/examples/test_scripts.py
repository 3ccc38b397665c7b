"""The scripts of examples/ run as a reader would run them, and print what they promise."""

import runpy
from pathlib import Path

import pyro
import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.usefixtures("with_and_without_inductor")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_runs(script, capsys):
    with pyro.get_param_store().scope():  # a script may train in Pyro's store
        runpy.run_path(str(script), run_name="__main__")
    assert "log p(x) = " in capsys.readouterr().out


def test_there_are_scripts():
    assert SCRIPTS
