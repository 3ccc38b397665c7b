"""A command line into a dataclass of flags, whose `--help` is in groups: the model's own first, and `-h` for short."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, field, fields, make_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from docstring_parser import parse_from_object

Flags = TypeVar("Flags")

Groups = Mapping[str, Sequence[str]]
"""Fields of a dataclass by the title of their group."""

SHORT = "(-h tells it in short, --help in full.)"


def parse(flags: type[Flags], argv: Sequence[str] | None, *, prog: str, groups: Groups) -> Flags:
    """The flags of a command line.

    Args:
        flags: a dataclass of flags, each explained by the string below it.
        argv: the command line; None is `sys.argv`.
        prog: what the command is called in its help.
        groups: fields by the title of their group, all in the order of the help; those that are in none come first, as
            "model", the ones of the class itself before those that it inherits.

    Raises:
        SystemExit: after the help, or of a command line that is wrong (status 2).

    Example:
        >>> from ppvae.cli.flags import GROUPS, ImageArgs
        >>> parse(ImageArgs, ["--epochs", "3"], prog="it", groups=GROUPS).epochs
        3
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    described = f"{(flags.__doc__ or '').strip()} {SHORT}"
    helps = [word for word in argv if word in ("-h", "--help")]
    nested = _nested(flags, groups, is_help=bool(helps), short="-h" in helps and "--help" not in helps)
    config = (tyro.conf.OmitArgPrefixes,)  # the groups are seen in the help alone
    parsed = tyro.cli(nested, args=argv, prog=prog, description=described, config=config)
    given = {name: value for group in vars(parsed).values() for name, value in vars(group).items()}
    return flags(**given)


def _nested(flags: type[Any], groups: Groups, *, is_help: bool, short: bool) -> type[Any]:
    """A dataclass with a dataclass for each group: what makes boxes of the help, which does not tell of --no-cuda."""
    hints, texts = get_type_hints(flags, include_extras=True), _texts(flags)
    entries: dict[str, tuple[str, Any, Any]] = {}
    for of in fields(flags):
        text = texts.get(of.name, "")
        explained = tyro.conf.arg(
            help=first_words(text) if short else text,
            help_behavior_hint=_shown(of.default),
            metavar=_metavar(hints[of.name]),
        )
        marks = (explained, *((tyro.conf.FlagCreatePairsOff,) if is_help and of.default is False else ()))
        entries[of.name] = (of.name, Annotated[(hints[of.name], *marks)], field(default=of.default))
    titled = {name for names in groups.values() for name in names}
    own = [name for name in _own_first(flags) if name not in titled]
    parts = {title: [entries[name] for name in names if name in entries] for title, names in groups.items()}
    parts = {"model": [entries[name] for name in own], **parts}
    boxes = [(title, make_dataclass(title, part)) for title, part in parts.items() if part]
    return make_dataclass(flags.__name__, boxes)


def _own_first(flags: type[Any]) -> list[str]:
    """The names of the fields, those of a class before those of what it inherits from."""
    names = {f.name for f in fields(flags)}
    declared = dict.fromkeys(name for c in flags.__mro__ for name in vars(c).get("__annotations__", ()))
    return [name for name in declared if name in names]


def _texts(flags: type[Any]) -> dict[str, str]:
    """What the string below each field says; of a field that a class has anew, its own."""
    found: dict[str, str] = {}
    for c in reversed(flags.__mro__[:-1]):
        found |= {p.arg_name: " ".join((p.description or "").split()) for p in parse_from_object(c).params}
    return found


def first_words(text: str) -> str:
    """A text up to what only explains it.

    Example:
        >>> first_words("Of everything random: initial weights, the draws.")
        'Of everything random'
    """
    return re.split(r"[.:;](?:\s|$)| \(", text, maxsplit=1)[0]


def _shown(default: Any) -> str:
    """The default, where it says something."""
    if default is None or default is False or default is MISSING or default == ():
        return ""
    return f"[{' '.join(map(str, default)) if isinstance(default, tuple) else default}]"


def _metavar(hint: Any) -> str | None:
    """What stands for a value that may also be left out, or is several; None leaves it as it would be."""
    options = [option for option in get_args(hint) if option is not NoneType]
    if get_origin(hint) in (Union, UnionType) and len(options) == 1:
        hint = options[0]
    elif get_origin(hint) is not tuple:
        return None
    if get_origin(hint) is tuple:
        return f"{get_args(hint)[0].__name__.upper()} ..."
    return "{" + ",".join(map(str, get_args(hint))) + "}" if get_args(hint) else hint.__name__.upper()
