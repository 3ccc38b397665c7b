"""Wrong calls of public functions: right arguments but for one, and what is answered to it.

An answer is *clear* where an exception (or a warning) of the package's own, Python's of a call that does not fit a
signature, or torch's of a parameter of a distribution, names the argument; *unclear* where it is another; *silent*
where there is none.
"""

from __future__ import annotations

import inspect
import os
import re
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ppvae
from ppvae.evaluate import ParetoWarning

Answer = Literal["clear", "unclear", "silent"]
PACKAGE = str(Path(ppvae.__file__).parent)


@dataclass(frozen=True)
class Function:
    """A public function with arguments that are right, and values for each that are not.

    Attributes:
        name: of the function.
        call: the function, of keyword arguments alone.
        right: makes arguments with which it works.
        wrong: by argument, what makes values that are wrong there.
        called: what messages may call an argument besides its name.
        fine: wrong values of that kind that this function takes, by argument.
    """

    name: str
    call: Callable[..., Any]
    right: Callable[[], Mapping[str, Any]]
    wrong: Mapping[str, Mapping[str, Callable[[], Any]]]
    called: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fine: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def calls(self) -> Iterator[WrongCall]:
        """One call for each wrong value of each argument."""
        for argument, values in self.wrong.items():
            for value in values:
                if value not in self.fine.get(argument, ()):
                    yield WrongCall(self, argument, value)


@dataclass(frozen=True)
class WrongCall:
    """One wrong value in one call."""

    function: Function
    argument: str
    value: str

    def __str__(self) -> str:
        return f"{self.function.name}({self.argument}={self.value})"

    def answer(self) -> tuple[Answer, str]:
        """Makes the call; the class of what came back, and its words."""
        names = (self.argument, *self.function.called.get(self.argument, ()))
        with warnings.catch_warnings(), _elsewhere():
            warnings.simplefilter("ignore")
            arguments = {
                **self.function.right(),
                self.argument: self.function.wrong[self.argument][self.value](),
            }
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", ParetoWarning)
            try:
                came = self.function.call(**arguments)
                if inspect.isgenerator(came):
                    next(came)
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                clear = _is_own(error) and any(_named(name, str(error)) for name in names)
                return ("clear" if clear else "unclear"), said
        return "silent", f"{type(came).__name__}: {str(came)[:100]}"


def _named(name: str, message: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", message) is not None


def _is_own(error: Exception) -> bool:
    """Whether the words are the package's, or Python's of the call itself."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    of_a_parameter = re.match(r"Expected parameter \w+ .* of distribution", str(error), re.DOTALL)
    of_the_call = last == __file__ and isinstance(error, TypeError)
    return last.startswith(PACKAGE) or isinstance(error, Warning) or of_the_call or of_a_parameter is not None


class _elsewhere:
    """A folder of its own for what a call writes to relative paths."""

    def __enter__(self) -> None:
        self.folder, self.before = tempfile.TemporaryDirectory(), Path.cwd()
        os.chdir(self.folder.name)

    def __exit__(self, *exception: object) -> None:
        os.chdir(self.before)
        self.folder.cleanup()
