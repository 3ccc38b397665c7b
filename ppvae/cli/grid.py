"""The command line of a sweep: an example's own flags, of which some have several values or a range."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import tyro

from ppvae._validate import check_count
from ppvae.cli.experiment import Experiment
from ppvae.cli.flags import ExperimentArgs, flag

OF_THE_SWEEP = ("seeds", "trials", "out")
"""Flags of the sweep itself."""
TAKEN = {"seed": "--seeds N trains with the seeds 0 to N − 1", "resume": "a sweep goes on by the same command"}
"""Flags of an example that a sweep sets, and what stands in their place."""


@dataclass(frozen=True)
class Range:
    """Values between two, of a search.

    Attributes:
        low: the least.
        high: the greatest.
        whole: whether they are whole numbers.
    """

    low: float
    high: float
    whole: bool

    @property
    def log(self) -> bool:
        """Whether they are drawn on a logarithmic scale: where the ends are at least a factor of ten apart."""
        return self.low > 0 and self.high >= 10 * self.low


@dataclass(frozen=True)
class Setting:
    """One point of a sweep.

    Attributes:
        name: what it is called, and its folder.
        words: the flags that make it.
    """

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """What a command line asks for.

    Attributes:
        fixed: flags of every run.
        axes: by field, the alternatives, each the words after the flag, or a range.
        seeds: how many.
        trials: of a search; None is a grid.
        out: folder of the sweep.
    """

    fixed: tuple[str, ...]
    axes: dict[str, list[tuple[str, ...]] | Range]
    seeds: int
    trials: int | None
    out: Path

    def settings(self) -> list[Setting]:
        """Every combination of the alternatives, the last flag's changing fastest."""
        choices = [alternatives for alternatives in self.axes.values() if isinstance(alternatives, list)]
        return [self.setting(dict(zip(self.axes, chosen, strict=True))) for chosen in itertools.product(*choices)]

    def setting(self, chosen: dict[str, tuple[str, ...]]) -> Setting:
        """The point where each axis has the value that was chosen."""
        name = ",".join(f"{field}={'+'.join(words)}" for field, words in chosen.items()) or "all"
        words = itertools.chain.from_iterable((flag(field), *words) for field, words in chosen.items())
        return Setting(name.replace("/", "_"), (*self.fixed, *words))


def read_request(name: str, arguments: type[ExperimentArgs], argv: list[str]) -> Request:
    """Reads the command line of a sweep.

    Several values after a flag are alternatives, and so is a flag that is given several times; of one that takes
    several values itself, such as --hidden-dims, each time is an alternative. `1e-4..1e-2` is a range, of a search.

    Args:
        name: of the example.
        arguments: its dataclass of flags.
        argv: the words.

    Raises:
        ValueError: naming the flag that is unknown, set by the sweep, or without a right value.
    """
    hints = get_type_hints(arguments)
    own: dict[str, list[str]] = {}
    fixed: list[str] = []
    axes: dict[str, list[tuple[str, ...]] | Range] = {}
    for field, occurrences in _by_field(name, arguments, argv).items():
        if field in OF_THE_SWEEP:
            own[field] = occurrences[-1]
            continue
        kinds = get_args(hints.get(field)) or (hints.get(field),)
        many = any(tuple in (kind, get_origin(kind)) for kind in (hints.get(field), *kinds))
        each = occurrences if many else [[word] for words in occurrences for word in words]
        values = [tuple(words) for words in each]
        found = _range(field, values, kinds)
        if found is not None:
            axes[field] = found
        elif len(values) < 2:
            fixed += [flag(field), *(values[0] if values else ())]
        elif len(set(values)) < len(values):
            raise ValueError(f"{flag(field)} has a value twice: {' '.join(map(' '.join, values))}")
        else:
            axes[field] = values
    seeds, trials = _count(own, "seeds"), _count(own, "trials")
    ranges = [flag(field) for field, of in axes.items() if isinstance(of, Range)]
    if ranges and trials is None:
        raise ValueError(f"{ranges[0]} has a range, which is for a search: give --trials too, or the values of a grid")
    return Request(tuple(fixed), axes, seeds or 1, trials, _folder(own, name))


def check_settings(experiment: Experiment, settings: list[Setting]) -> None:
    """Makes of every setting what its runs begin with, so that what is wrong is said before anything is trained.

    Raises:
        ValueError: naming the setting and the flag that its model, its data or its objective refuses.
        OSError: where there are no data.
    """
    for setting in settings:
        args = tyro.cli(experiment.args, args=setting.words, prog=f"ppvae sweep {experiment.name}")
        try:
            experiment.check(args)
        except ValueError as error:
            raise ValueError(f"{setting.name}: {error}") from error


def _by_field(name: str, arguments: type[ExperimentArgs], argv: list[str]) -> dict[str, list[list[str]]]:
    """The words after each flag, by its field, once for each time that it is given."""
    known = {field.name for field in fields(arguments)} | set(OF_THE_SWEEP)
    found: dict[str, list[list[str]]] = {}
    for word, values in _groups(argv):
        field = word.removeprefix("--").replace("-", "_")
        if field in TAKEN:
            raise ValueError(f"{word} is set by the sweep: {TAKEN[field]}")
        if field not in known and field.removeprefix("no_") not in known:
            raise ValueError(f"there is no flag {word}: ppvae train {name} --help lists them, and a sweep has --seeds")
        found.setdefault(field, []).append(values)
    return found


def _groups(argv: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag with the words after it."""
    flags = [i for i, word in enumerate(argv) if word.startswith("--")]
    if argv and flags[:1] != [0]:
        raise ValueError(f"flags begin with --, got {argv[0]!r}")
    for start, stop in itertools.pairwise([*flags, len(argv)]):
        word, _, value = argv[start].partition("=")
        yield word, [*([value] if value else []), *argv[start + 1 : stop]]


def _range(field: str, values: list[tuple[str, ...]], kinds: tuple[Any, ...]) -> Range | None:
    """The range that a value such as 1e-4..1e-2 is."""
    if not (len(values) == 1 and len(values[0]) == 1 and ".." in values[0][0]):
        return None
    text, number = values[0][0], float if float in kinds else int if int in kinds else None
    if number is None:
        return None  # a path, say
    try:
        low, high = map(number, text.split(".."))
    except ValueError as error:
        raise ValueError(f"{flag(field)} must have a range LOW..HIGH of {number.__name__}s, got {text}") from error
    if not low < high:
        raise ValueError(f"{flag(field)} must have a range LOW..HIGH with LOW below HIGH, got {text}")
    return Range(low, high, whole=number is int)


def _count(own: dict[str, list[str]], name: str) -> int | None:
    """A flag of the sweep that is a count."""
    if name not in own:
        return None
    words = own[name]
    return check_count(flag(name), int(words[0]) if len(words) == 1 and words[0].isdigit() else " ".join(words))


def _folder(own: dict[str, list[str]], name: str) -> Path:
    """Where the sweep goes."""
    words = own.get("out", [f"runs/sweep-{name}"])
    if len(words) != 1:
        raise ValueError(f"--out must be one folder, got {' '.join(words) or 'none'}")
    return Path(words[0])
