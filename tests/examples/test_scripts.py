"""The scripts of examples/ run as a reader would run them, are short, and print what they promise."""

import ast
import runpy
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import pyro
import pytest

from ppvae.evaluate import METHODS

SCRIPTS = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
OF_YOUR_OWN = [path for path in SCRIPTS if path.stem.startswith("your_own_")]


LONG = {
    "discrete_latents",
    "inpainting",
    "is_the_posterior_right",
    "users_and_items",
    "your_own_counts",
    "your_own_pictures",
    "your_own_sequences",
    "your_own_table",
}
"""What takes five seconds or more, and is run once, compiled, among the slow tests."""


def by_name(scripts):
    return pytest.mark.parametrize("script", scripts, ids=lambda path: path.stem)


def check_run(script, capsys):
    # A script may train in Pyro's store, and give an estimator a name.
    with pyro.get_param_store().scope(), patch.dict(METHODS):
        runpy.run_path(str(script), run_name="__main__")
    assert "log p(x) = " in capsys.readouterr().out


@by_name([path for path in SCRIPTS if path.stem not in LONG])
def test_script_runs(script, capsys):
    check_run(script, capsys)


@pytest.mark.inductor
@pytest.mark.slow
@by_name(SCRIPTS)
def test_script_runs_compiled(script, capsys):
    check_run(script, capsys)


@by_name(OF_YOUR_OWN)
def test_what_is_of_your_own_is_short(script):
    assert len(script.read_text(encoding="utf-8").splitlines()) < 60


@by_name(SCRIPTS)
def test_public_names_alone(script):
    modules, attributes = set(), set()
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module)
            if node.module.split(".")[0] == "ppvae":
                module = import_module(node.module)
                public = getattr(module, "__all__", dir(module))
                assert {alias.name for alias in node.names} <= set(public)
        elif isinstance(node, ast.Attribute):
            attributes.add(node.attr)
    of_ours = {module for module in modules if module.split(".")[0] == "ppvae"}
    assert of_ours
    assert all(module.count(".") <= 1 for module in of_ours), "a file of a subpackage is no public place"
    assert not {name for name in attributes if name.startswith("_") and name != "__init__"}


def test_there_is_one_of_each():
    assert {path.stem.removeprefix("your_own_") for path in OF_YOUR_OWN} == {
        "model",
        "objective",
        "estimator",
        "metric",
        "pictures",
        "table",
        "counts",
        "sequences",
    }
