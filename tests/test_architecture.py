"""What DESIGN.md says of the layout, held by the source itself."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import ppvae

ROOT = Path(ppvae.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MAY_IMPORT = {
    "data": set(),
    "nn": set(),
    "distributions": {"nn"},
    "params": set(),
    "pair": set(),
    "storage": {"pair", "params"},
    "models": {"distributions", "nn", "pair"},
    "infer": {"data", "pair", "params", "storage"},
    "evaluate": {"data", "infer", "pair", "params", "storage"},
    "plot": set(),
}
"""For each part of the package the other parts that it may import: they lie to its left, or below it."""
EXEMPT = {"ppvae/__init__.py", "ppvae/evaluate/__main__.py"}
HEAVY = ["arviz", "torchvision", "sklearn", "matplotlib", "tyro", "tensorboard"]


def name_of(path):
    return path.relative_to(ROOT.parent).as_posix()


def modules_imported(path):
    """The dotted names that a file imports, anywhere in it."""
    package = path.relative_to(ROOT.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def parts_imported(path):
    for name in modules_imported(path):
        top, *rest = name.split(".")
        if top == "ppvae":
            part = rest[0] if rest else ""
            if part and (part in MAY_IMPORT or (ROOT / part).exists() or (ROOT / f"{part}.py").exists()):
                yield part


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_left(path):
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if name_of(path) in EXEMPT or part == "examples":
        return
    assert part in MAY_IMPORT, f"{part} has no place in the layout"
    assert set(parts_imported(path)) - {part} <= MAY_IMPORT[part]


def test_the_layout_has_no_circle():
    done = []
    while len(done) < len(MAY_IMPORT):
        ready = [part for part in MAY_IMPORT if part not in done and MAY_IMPORT[part] <= set(done)]
        assert ready, f"a circle among {set(MAY_IMPORT) - set(done)}"
        done += ready


def test_import_is_light():
    code = f"import sys, ppvae; print([m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_module_is_called_utils_or_helpers(path):
    names = set(path.relative_to(ROOT).with_suffix("").parts)
    assert not {name.strip("_") for name in names} & {"utils", "util", "helpers", "helper", "common", "misc"}


def public_modules():
    yield ppvae
    for info in pkgutil.walk_packages(ppvae.__path__, "ppvae."):
        if not info.name.endswith("__main__") and ".examples." not in info.name:
            module = importlib.import_module(info.name)
            if hasattr(module, "__all__"):
                yield module


def test_public_names_exist_and_are_documented():
    count = 0
    for module in public_modules():
        assert module.__doc__, module.__name__
        assert list(module.__all__) == sorted(set(module.__all__), key=module.__all__.index)
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value) and not getattr(value, "__module__", "").startswith(("typing", "collections")):
                assert value.__doc__, f"{module.__name__}.{name}"
                count += 1
    assert count > 40


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_fit_in_a_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
