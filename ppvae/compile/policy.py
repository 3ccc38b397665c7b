"""Whether to compile: what was asked for, and what repays itself."""

from __future__ import annotations

from typing import Literal

Compile = bool | Literal["auto"]
"""Whether to compile: always, never, or where it repays itself."""

COST = 10_000.0
"""Milliseconds that compiling a graph takes, roughly."""


def check_compile(compile: Compile) -> None:
    """Checks the argument `compile`.

    Raises:
        ValueError: where it is neither a bool nor "auto".
    """
    if compile not in (True, False, "auto"):
        raise ValueError(f"compile must be True, False or 'auto', got {compile!r}")


def repays(compile: Compile, calls: float, *, saved: float) -> bool:
    """Whether to compile: as it was asked for, or for "auto" where so many calls repay what it costs.

    Args:
        compile: what was asked for.
        calls: how often the computation will run.
        saved: milliseconds that a compiled call saves, roughly. No clock is asked: the same run compiles every time.
    """
    return bool(compile) if compile != "auto" else calls * saved >= COST
