"""Whose code asks torch for a value while a computation is traced."""

from __future__ import annotations

import sys
from types import FrameType

_LIBRARIES = ("torch", "pyro", "ppvae", "contextlib", "functools")


def asked_by() -> tuple[str, str]:
    """The module and the function that asked, past torch's own frames and the tracer's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _module(frame).startswith(("torch.", "ppvae.compile.")):
        frame = frame.f_back
    return ("", "") if frame is None else (_module(frame), frame.f_code.co_name)


def line_that_asked() -> str:
    """The line of the user's code that asked; where no code of theirs runs in the computation, the library's own."""
    frame: FrameType | None = sys._getframe(1)
    first = None
    while frame is not None and not (_module(frame) == "ppvae.compile.tracing" and frame.f_code.co_name == "traced"):
        package = _module(frame).partition(".")[0]
        if package not in _LIBRARIES:
            return _line(frame)
        if first is None and not _module(frame).startswith(("torch.", "ppvae.compile.")):
            first = frame
        frame = frame.f_back
    return "torch" if first is None else _line(first)


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _line(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno}, in {frame.f_code.co_name}"
