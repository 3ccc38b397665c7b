"""Command lines in groups: the flags as they were, the model's own first in the help."""

import re
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Literal

import pytest

from ppvae.cli.evaluate import GROUPS as OF_EVALUATE
from ppvae.cli.evaluate import Args as EvaluateArgs
from ppvae.cli.flags import GROUPS, ExperimentArgs, flag
from ppvae.cli.main import models
from ppvae.cli.parsing import parse


@dataclass(frozen=True)
class Base:
    """What all share."""

    seed: int = 0
    """Of the draws: all of them."""
    cuda: bool = False
    """Run on a GPU."""
    widths: tuple[int, ...] | None = None
    """Of the layers."""


@dataclass(frozen=True)
class Own(Base):
    """Do it."""

    kind: Literal["a", "b"] = "a"
    """Which one. There are two."""
    seed: int = 3
    """Of everything. Really."""


def helped(argv, capsys, monkeypatch, flags=Own, groups=None):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        parse(flags, argv, prog="it", groups={"run": ("cuda", "seed")} if groups is None else groups)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_in_full(capsys, monkeypatch):
    lines = [line.strip("│ ").strip() for line in helped(["--help"], capsys, monkeypatch).splitlines()]
    shown = [words[1] for line in lines if (words := re.match(r"[╭─ ]*(--[a-z]+|[a-z]+ options)\b", line))]
    assert shown == ["model options", "--kind", "--widths", "run options", "--cuda", "--seed"]
    assert "--kind {a,b}      Which one. There are two. [a]" in lines
    assert "--widths INT ...  Of the layers." in lines
    assert "--seed INT        Of everything. Really. [3]" in lines
    assert "--cuda            Run on a GPU." in lines


def test_in_short(capsys, monkeypatch):
    printed = helped(["-h"], capsys, monkeypatch)
    assert "Which one [a]" in printed
    assert "There are two" not in printed


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], Own()),
        (["--no-cuda"], Own()),
        (["--cuda", "--seed", "7", "--widths", "3", "4", "--kind", "b"], Own(7, True, (3, 4), "b")),
        (["--widths"], Own(widths=())),
    ],
)
def test_values(argv, expected):
    assert parse(Own, argv, prog="it", groups={"run": ("cuda", "seed")}) == expected


@pytest.mark.parametrize("argv", [["--kind", "c"], ["--seed", "x"], ["--nothing"]])
def test_wrong_ones_end_with_2(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(Own, argv, prog="it", groups={})
    assert ended.value.code == 2
    assert argv[0] in capsys.readouterr().err


@pytest.mark.parametrize("name", models())
def test_every_example_has_all_of_its_flags_explained(name, capsys, monkeypatch):
    flags = import_module(f"ppvae.examples.{name}").EXPERIMENT.args
    for argv in (["-h"], ["--help"]):
        printed = helped(argv, capsys, monkeypatch, flags, GROUPS)
        assert printed.index("model options") < printed.index("data options") < printed.index("training options")
        lines = [line.strip("│ ").strip() for line in printed.splitlines()]
        for field in fields(flags):
            i = next(i for i, line in enumerate(lines) if re.match(rf"{flag(field.name)}\b(?!-)", line))
            assert any(len(words.split()) > 1 for words in (lines[i].partition("  ")[2], lines[i + 1])), lines[i]
    assert parse(flags, [], prog="it", groups=GROUPS) == flags()
    assert parse(flags, ["--epochs", "3"], prog="it", groups=GROUPS) == replace(flags(), epochs=3)


@pytest.mark.parametrize(("groups", "flags"), [(GROUPS, ExperimentArgs), (OF_EVALUATE, EvaluateArgs)])
def test_groups_name_what_there_is_once(groups, flags):
    named = [name for names in groups.values() for name in names]
    assert len(named) == len(set(named))
    assert {field.name for field in fields(flags)} <= set(named)


def test_runs_stand_first(capsys, monkeypatch):
    printed = helped(["--help"], capsys, monkeypatch, EvaluateArgs, OF_EVALUATE)
    assert printed.index("Folders that examples wrote") < printed.index("likelihood options")
    assert parse(EvaluateArgs, ["a", "b", "--json"], prog="it", groups=OF_EVALUATE) == EvaluateArgs(
        (Path("a"), Path("b")), json=True
    )
