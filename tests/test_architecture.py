"""What DESIGN.md says of the layout, held by the source itself."""

import ast
import graphlib
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import ppvae

ROOT = Path(ppvae.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
ORDER = [
    "_internals",
    "_validate",
    "result",
    "plot",
    "rng",
    "isolation",
    "storage",
    "processes",
    "traces",
    "means",
    "pair",
    "observed",
    "failures",
    "late_params",
    "loans",
    "params",
    "weights",
    "inputs",
    "nn",
    "data",
    "distributions",
    "models",
    "compile",
    "sampling",
    "objectives",
    "infer",
    "evaluate",
    "explorer",
    "cli",
    "examples",
]
"""The parts of the package, each of which may import only what stands before it."""
MAY_NOT_IMPORT = {
    "models": {"compile", "sampling", "objectives"},
    "compile": {"nn", "data", "distributions", "models"},
    "sampling": {"nn", "data", "distributions", "models"},
    "objectives": {"nn", "data", "distributions", "models"},
    "infer": {"nn", "distributions", "models"},
    "evaluate": {"nn", "data", "distributions", "models", "infer"},
    "plot": set(ORDER) - {"plot"},
}
"""What a part does without though it stands before it: training and evaluation know no model, and figures no pair."""
MODULE_NAMES_OF_TORCH = {"_buffers", "_modules", "_parameters"}
"""What every `nn.Module` holds; a module of ours reads its own."""
UNSAID = {"args", "kwargs", "validate_args"}
"""Arguments that are Pyro's, or whatever a function takes."""
HEAVY = ["arviz", "bokeh", "torchvision", "sklearn", "matplotlib", "tyro", "tensorboard"]


@cache
def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path):
    return path.relative_to(ROOT.parent).as_posix()


def modules_imported(path):
    """The dotted names that a file imports, anywhere in it."""
    package = path.relative_to(ROOT.parent).parent.parts
    for node in ast.walk(parsed(path)):
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
            if part and ((ROOT / part).exists() or (ROOT / f"{part}.py").exists()):
                yield part


def may_import(path):
    """The parts that a file may import; None where it may import all: the front of all, lazily."""
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if part == "__init__":
        return None
    if path.name == "__main__.py":  # an entry point, which nothing imports
        return {"cli"}
    assert part in ORDER, f"{part} has no place in the layout"
    return {*ORDER[: ORDER.index(part) + 1]} - MAY_NOT_IMPORT.get(part, set())


def test_imports_point_left():
    allowed = {path: may_import(path) for path in FILES}
    beyond = {name_of(p): set(parts_imported(p)) - parts for p, parts in allowed.items() if parts is not None}
    assert not {name: parts for name, parts in beyond.items() if parts}


def test_no_two_files_need_each_other():
    """Inside a part too, and where a function imports only when it is called."""
    files = {".".join(path.relative_to(ROOT.parent).with_suffix("").parts): path for path in FILES}
    needs = {}
    for name, path in files.items():
        found = {*modules_imported(path)}
        needs[name] = (found | {module.rpartition(".")[0] for module in found}) & files.keys() - {name}
    graphlib.TopologicalSorter(needs).prepare()  # CycleError names the files


def test_every_part_of_the_order_is_there():
    assert {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES} == {*ORDER, "__init__", "__main__"}


def test_private_names_of_others_stand_in_one_file():
    """Attributes and imports with a leading underscore, of what is neither ours nor the object's own."""
    trees = {path: parsed(path) for path in FILES}
    ours = {name for tree in trees.values() for name in defined(tree)} | MODULE_NAMES_OF_TORCH
    found = []
    for path, tree in trees.items():
        if path.name == "_internals.py":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module != "__future__" and "ppvae" not in node.module:
                parts = [*node.module.split("."), *(alias.name for alias in node.names)]
                found += [f"{name_of(path)}:{node.lineno} {part}" for part in parts if part.startswith("_")]
            elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls", "new", "sys")
                if not own and node.attr not in ours:
                    found.append(f"{name_of(path)}:{node.lineno} {ast.unparse(node)}")
    assert not found


def defined(tree):
    """The names that a file gives to something."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def test_import_is_light():
    code = f"import sys, ppvae; print([m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_no_module_is_called_utils_or_helpers():
    names = {name.strip("_") for path in FILES for name in path.relative_to(ROOT).with_suffix("").parts}
    assert not names & {"utils", "util", "helpers", "helper", "common", "misc"}


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


def test_public_names_say_what_each_argument_is():
    """Before their example, which uses some and explains none."""
    silent = {}
    for module in public_modules():
        for name in module.__all__:
            value = getattr(module, name)
            called = inspect.isfunction(value) or (inspect.isclass(value) and not issubclass(value, Exception))
            if called and value.__module__.startswith("ppvae."):
                said = value.__doc__.split("Example:")[0]
                asked = [each for each in inspect.signature(value).parameters if each not in UNSAID]
                if missing := [each for each in asked if not re.search(rf"\b{each}\b", said)]:
                    silent[f"{value.__module__}.{name}"] = missing
    assert not silent


def test_files_fit_in_a_sitting():
    files = [*FILES, *sorted((ROOT.parent / "tests").rglob("*.py"))]
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert not {name_of(path): length for path, length in lengths.items() if length > 450}


def test_the_front_is_lazy_and_complete():
    code = (
        "import sys, ppvae; assert 'torch' not in sys.modules; "
        "assert ppvae.models.VAE and ppvae.objectives.IWAE and ppvae.sampling.simulate and ppvae.fit; "
        "assert not [name for name in ppvae.__all__ if not hasattr(ppvae, name)]; "
        "assert {'fit', 'models', 'sampling'} <= set(dir(ppvae))"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    with pytest.raises(AttributeError, match="module 'ppvae' has no attribute 'nonsense'"):
        ppvae.nonsense  # noqa: B018
