"""Standard output whose reader may go: `ppvae | head -2` ends in silence, and a training goes on to write its files."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, ParamSpec, TextIO

Given = ParamSpec("Given")


def outlives_its_reader(main: Callable[Given, int]) -> Callable[Given, int]:
    """A command that ends as it would have where what it prints to is closed before: the rest is printed to nobody."""

    @wraps(main)
    def run(*args: Given.args, **options: Given.kwargs) -> int:
        stream: Any = _Unread(sys.stdout)
        with contextlib.redirect_stdout(stream):
            try:
                return main(*args, **options)
            finally:
                stream.flush()  # here and not as Python ends, when nobody catches what it raises

    return run


class _Unread:
    """A stream that is turned to the null device once its reader has gone."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with self._to_nobody():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._to_nobody():
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @contextlib.contextmanager
    def _to_nobody(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())
            os.close(null)
