"""Commands of the pages are taken by the programs that they name: every flag there is, and goes with the others."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import tyro

from ppvae.cli import evaluate, explore, export_run, share
from ppvae.cli.main import DoctorArgs

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ARGUMENTS = {
    "evaluate": evaluate.Args,
    "doctor": DoctorArgs,
    "explore": explore.ExploreArgs,
    "export": export_run.Args,
    "share": share.Args,
}
"""Of what is no example."""
STANDS_FOR = {"N": "1", "S": "0", "E": "2", "A": "0.1", "K": "5", "k": "5"}
"""What a reader puts in the place of a letter."""


COMMAND = re.compile(rf"(?:^| )(?:python -m ppvae\.|ppvae )(examples\.\w+|train \w+|{'|'.join(ARGUMENTS)})\b([^#&|]*)")


def commands(page):
    """Every `python -m ppvae...` of a page, in a block or in a line, its variables expanded and its comments gone."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:bash)?\n(.*?)```", text, re.DOTALL)
    inline = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    variables = dict(STANDS_FOR)
    for line in [*"\n".join(blocks).replace("\\\n", " ").splitlines(), *(code.replace("\n", " ") for code in inline)]:
        if assigned := re.fullmatch(r'(\w+)="(.*)"', line):
            variables[assigned[1]] = assigned[2]
        if found := COMMAND.search(line):
            words = shlex.split(re.sub(r"\$(\w+)", lambda m: variables[m[1]], found[2]))
            yield (
                found[1].replace("train ", "examples."),
                [STANDS_FOR.get(word, word) for word in words if word != "..."],
            )


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_flags_of_commands_exist_and_go_together(page):
    for program, flags in commands(page):
        if program in ARGUMENTS:
            if flags[-1:] != ["--method"]:  # of which the text names several
                tyro.cli(ARGUMENTS[program], args=flags or ["RUN"])
        else:
            experiment = importlib.import_module(f"ppvae.{program}").EXPERIMENT
            tyro.cli(experiment.args, args=flags).resolved()


def test_commands_are_found():
    assert sum(len(list(commands(page))) for page in PAGES) > 150
    (burda, *_) = [words for program, words in commands(ROOT / "docs/results.md") if program == "examples.iwae"]
    assert burda[:4] == ["--dataset", "mnist", "--data-root", "data"]
