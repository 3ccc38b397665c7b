"""Where in the user's code something stands: a statement, what has failed, the class of a net."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any, Self

from pyro.poutine.messenger import Messenger
from torch import nn

OURS = ("pyro", "torch", "ppvae", "contextlib")
"""Packages whose lines are not the user's."""


def place(file: str, line: int) -> str:
    """A line of a file, as an editor opens it: from the working directory on, where it lies there.

    Example:
        >>> place("/somewhere/else/model.py", 12)
        '/somewhere/else/model.py:12'
    """
    if f"{os.sep}ipykernel_" in file:
        return f"a cell of the notebook, line {line}"
    path = Path(file)
    inside = path.is_relative_to(Path.cwd())
    return f"{path.relative_to(Path.cwd()) if inside else path}:{line}"


class Statements(Messenger):
    """Notes the line of the user's code in which each statement stands, of what runs inside.

    Attributes:
        of: lines by the program that made the statement, and its site.
        program: what runs now: "guide", "model".
    """

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[tuple[str, str], str] = {}
        self.program = ""
        self._home: FrameType | None = None

    def __enter__(self) -> Self:
        self._home = sys._getframe(1)
        super().__enter__()
        return self

    def __exit__(self, *failed: Any) -> None:
        self._home = None
        super().__exit__(*failed)

    def _pyro_sample(self, msg: Any) -> None:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not self._home:
            if _is_users(frame):
                self.of.setdefault((self.program, msg["name"]), place(frame.f_code.co_filename, frame.f_lineno))
                return  # one of a model of ours has no line of the user's
            frame = frame.f_back

    def of_site(self, name: str) -> list[str]:
        """The lines in which a site stands: first that of the guide."""
        found = {program: line for (program, site), line in self.of.items() if site == name}
        if len(set(found.values())) == 1:
            return list(found.values())[:1]
        return [f"{program} {found[program]}" for program in ("guide", "model") if program in found]


def of_error(error: BaseException) -> list[str]:
    """The last line of the user's code that ran before an error, or before what it came of."""
    seen: set[int] = set()
    found: list[str] = []
    now: BaseException | None = error
    while now is not None and id(now) not in seen:
        seen.add(id(now))
        trace = now.__traceback__
        while trace is not None:
            if _is_users(trace.tb_frame):
                found.append(place(trace.tb_frame.f_code.co_filename, trace.tb_lineno))
            trace = trace.tb_next
        now = now.__cause__ or now.__context__
    return found[-1:]


def of_parameters(pair: nn.Module, names: Iterable[str]) -> list[str]:
    """For each net that holds some of these parameters, its class, and the user's class in which it is.

    Example:
        >>> from ppvae.models import PPCA
        >>> of_parameters(PPCA(8, 2), ["p_x_given_z.net.0.weight"])
        ['Linear in PPCA']
    """
    return list(dict.fromkeys(_owner(pair, name) for name in names))


def _owner(pair: nn.Module, name: str) -> str:
    """The class of the net of a parameter, and the last of the user's classes on the way to it."""
    owner, of_user = pair, pair
    for part in name.split(".")[:-1]:
        owner = getattr(owner, part)
        of_user = owner if _root(type(owner).__module__) not in OURS else of_user
    inside = "" if owner is of_user else f"{type(owner).__name__} in "
    return f"{inside}{type(of_user).__name__}{_line_of_class(type(of_user))}"


def _line_of_class(kind: type[Any]) -> str:
    if _root(kind.__module__) in OURS:
        return ""
    try:
        return f" {place(inspect.getsourcefile(kind) or '', inspect.getsourcelines(kind)[1])}"
    except (OSError, TypeError):  # typed in at a prompt
        return ""


def _is_users(frame: FrameType) -> bool:
    return _root(str(frame.f_globals.get("__name__", ""))) not in OURS


def _root(module: str) -> str:
    return module.partition(".")[0]
