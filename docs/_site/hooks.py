"""What the site has beside the pages of this folder: the reference, the example scripts, the changelog; and formulas.

Formulas become MathML as the site is built, so that its pages need no script from elsewhere.
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from posixpath import normpath, relpath
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "",
    "models",
    "distributions",
    "nn",
    "data",
    "objectives",
    "infer",
    "evaluate",
    "sampling",
    "plot",
    "compile",
    "processes",
)
"""What the reference has a page of each; "" is `ppvae` itself."""
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Pages of the repository's root, by their names on the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made of other files."""
    for source, name in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    for script in sorted((ROOT / "examples").glob("*.py")):
        files.append(File.generated(config, f"examples/{script.stem}.md", content=_script_page(script)))
    elsewhere = set[str]()
    for package in PACKAGES:
        name = f"reference/{package or 'ppvae'}.md"
        files.append(File.generated(config, name, content=_reference_page(f"ppvae.{package}".rstrip("."), elsewhere)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points links to files outside this folder at the pages that are made of them."""

    def onward(match: re.Match[str]) -> str:
        path, anchor = match[1], match[2] or ""
        folder = "docs/" + page.file.src_uri.rpartition("/")[0] if page.file.src_uri not in PAGES.values() else ""
        return f"]({_on_site(normpath(f'{folder}/{path}'.lstrip('/')), page) or path}{anchor})"

    return re.sub(r"\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)", onward, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns the formulas into MathML, and keeps a number, its error and its unit on one line, and so each flag."""
    html = re.sub(r"(?<=\d) ± (?=\d)", "\u00a0±\u00a0", html)
    html = re.sub(r"(?<=\d) (?=%)", "\u00a0", html)
    html = re.sub(
        r"<code>[^<]*</code>", lambda m: re.sub(r"--\w[\w-]*", r'<span class="flag">\g<0></span>', m[0]), html
    )
    html = re.sub(
        r'<span class="arithmatex">\\\((.*?)\\\)</span>', lambda m: _formula(m[1], "inline"), html, flags=re.S
    )
    return re.sub(
        r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', lambda m: _formula(m[1], "block"), html, flags=re.S
    )


def _flags_whole(code: re.Match[str]) -> str:
    """Code in which no flag is broken after a hyphen."""
    return re.sub(r"--\w[\w-]*", r'<span class="flag">\g<0></span>', code[0])


def _on_site(path: str, page: Page) -> str | None:
    """The page that a file of the repository has become, seen from `page`; None for what is as it was."""
    if path.startswith("examples/") and path.endswith(".py"):
        target = path.removesuffix(".py") + ".md"
    elif path.startswith("ppvae/") and (package := path.split("/")[1].removesuffix(".py")) in PACKAGES:
        target = f"reference/{package}.md"
    elif path in PAGES:
        target = PAGES[path]
    elif path == "README.md":
        target = "index.md"
    elif page.file.src_uri in PAGES.values():
        target = path.removeprefix("docs/")
    else:
        return None
    return relpath(target, page.file.src_uri.rpartition("/")[0] or ".")


def _formula(latex: str, display: str) -> str:
    for character, meant in {"&lt;": "<", "&gt;": ">", "&amp;": "&"}.items():
        latex = latex.replace(character, meant)
    latex = re.sub(r"\\log\b", r"\\log\\,", latex)  # MathML leaves no room after it
    return str(convert(latex.strip(), display=display))


def _script_page(script: Path) -> str:
    code = script.read_text(encoding="utf-8")
    title = script.stem.replace("_", " ").capitalize()
    return f"# {title}\n\n`python examples/{script.name}`\n\n```python\n{code}```\n"


def _reference_page(name: str, elsewhere: set[str]) -> str:
    """Every public name of a package: a table with a line of each, then each that is not on an earlier page."""
    module = import_module(name)
    public = [public for public in module.__all__ if not public.startswith("__")]
    lines = [f"# {name}", "", inspect.cleandoc(module.__doc__ or "").split("\n\n")[0], "", "| | |", "| --- | --- |"]
    objects: dict[str, str] = {}
    for each in public:
        value = getattr(module, each)
        path = (
            f"{value.__module__}.{each}" if getattr(value, "__module__", "").startswith("ppvae") else f"{name}.{each}"
        )
        objects[each] = path
        lines.append(f"| [`{each}`][{path}] | {_summary(value)} |")
    for path in objects.values():
        lines += [] if path in elsewhere else ["", f"::: {path}"]
    elsewhere.update(objects.values())
    return "\n".join(lines) + "\n"


def _summary(value: Any) -> str:
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return f"`{value!r}`" if isinstance(value, int | float | str) else ""
    text = inspect.getdoc(value) or ""
    line = text.split("\n\n")[0].replace("\n", " ").replace("|", "\\|").replace("``", "`")
    line = re.sub(r":math:`([^`]+)`", r"\\\\(\1\\\\)", line)
    return re.sub(r":\w+:`", "`", line)
