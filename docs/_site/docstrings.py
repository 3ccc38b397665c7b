"""Docstrings of the package as Markdown: their formulas and roles are reStructuredText's."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`~?([^`]+)`")
MATH_ROLE = re.compile(r":math:`([^`]+)`")


class Markdown(griffe.Extension):
    """Turns `.. math::` into formulas, and roles into code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of each object."""
        if obj.docstring is not None:
            text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
            text = MATH_ROLE.sub(r"\\(\1\\)", text)
            obj.docstring.value = _formulas(ROLE.sub(r"`\1`", text))


def _formulas(text: str) -> str:
    """The text with each `.. math::`, on one line or in the indented lines after it, between dollars."""
    lines, found = text.split("\n"), list[str]()
    while lines:
        line = lines.pop(0)
        if not line.strip().startswith(".. math::"):
            found.append(line)
            continue
        indent = line[: len(line) - len(line.lstrip())]
        formula = [line.strip().removeprefix(".. math::").strip()]
        while lines and (not lines[0].strip() or lines[0].startswith(indent + "    ")):
            formula.append(lines.pop(0).strip())
        body = [part for part in formula if part]
        inside = (
            body if "\\\\" in "".join(body) or len(body) == 1 else [part + " \\\\" for part in body[:-1]] + body[-1:]
        )
        found += ["", f"{indent}$$", *(indent + part for part in inside), f"{indent}$$", ""]
    return "\n".join(found)
