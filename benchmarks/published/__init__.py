"""Pyro's published examples as they are in a checkout of its repository: model, guide, optimizer, loss, minibatches.

One function for each, which takes what it needs from the example's module and generates data of the shape of those that
the example would download. Nothing of an example is changed, and nothing is downloaded.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

ABSENT = ("visdom", "wget", "scanpy")
"""What examples import to draw or to download, and which they do without here."""


@dataclass(frozen=True)
class Part:
    """What one `SVI` of an example is made of, but for its optimizer."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    loss: ELBO


@dataclass(frozen=True)
class Published:
    """An example, built anew.

    Attributes:
        parts: one for each `SVI`; all of them take a step on every minibatch, in turn, with one optimizer.
        optim: the optimizer that the example makes.
        batches: arguments of its steps, in turn: positional and by keyword.
        pair: the same for `ppvae.fit` and estimators, which take tensors.
        data: the arguments that the pair is fitted and scored on.
        fit_loss: what `fit` minimises, where the example's is not its default.
        shared: whether all data share the latents, so that the likelihood is `log_evidence`.
        after_step: what the example does after each step.
        differs: why its losses are not those of `pyro.infer.SVI`, where they are not meant to be.
    """

    parts: tuple[Part, ...]
    optim: Any
    batches: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]
    pair: nn.Module
    data: tuple[Tensor | None, ...]
    fit_loss: Any = None
    shared: bool = False
    after_step: Callable[[], None] = field(default=lambda: None)
    differs: str = ""


Make = Callable[[Path], Published]
EXAMPLES: dict[str, Make] = {}
"""By name, functions from the path of a checkout."""


def example(make: Make) -> Make:
    """Registers an example under the name of its function."""
    EXAMPLES[make.__name__] = make
    return make


def script(pyro_dir: Path, name: str) -> types.ModuleType:
    """The module of an example, e.g. "vae/vae.py", imported with its folder in the path as when it is run."""
    path = pyro_dir / "examples" / name
    with _importing(path.parent):
        return importlib.import_module(path.stem)


def notebook(pyro_dir: Path, name: str, *, defines: Sequence[str], **given: Any) -> types.SimpleNamespace:
    """What those cells of a tutorial define that hold one of these words, from names that other cells import."""
    cells = json.loads((pyro_dir / "tutorial" / "source" / name).read_text(encoding="utf-8"))["cells"]
    for source in ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"):
        if any(word in source for word in defines):
            exec(compile(source, name, "exec"), given)
    return types.SimpleNamespace(**given)


@contextmanager
def _importing(folder: Path) -> Iterator[None]:
    """Imports come from this folder, and what is absent is a stand-in; modules of the folder are forgotten after it."""
    absent = [name for name in ABSENT if name not in sys.modules]  # no `mock.patch.dict`: it forgets all new modules
    sys.modules.update({name: mock.MagicMock(__spec__=None) for name in absent})
    before = (torch.get_default_dtype(), logging.getLogger().level, logging.getLogger().handlers[:])
    with mock.patch.object(sys, "path", [str(folder), *sys.path]):
        yield
    for name, module in list(sys.modules.items()):
        if name in absent or str(getattr(module, "__file__", None)).startswith(str(folder)):
            del sys.modules[name]
    torch.set_default_dtype(before[0])
    logging.getLogger().setLevel(before[1])
    logging.getLogger().handlers[:] = before[2]


def images(n: int) -> Tensor:
    """Images of the size of MNIST's, of a few strokes: (n, 784), 0 or 1."""
    rows, columns = torch.rand(n, 28, 1) < 0.3, torch.rand(n, 1, 28) < 0.3
    return (rows & columns).float().reshape(n, 784)


def minibatches(*data: Tensor | None, size: int) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Consecutive minibatches as arguments of steps."""
    n = next(len(tensor) for tensor in data if tensor is not None)
    starts = range(0, n - size + 1, size)
    return [(tuple(None if t is None else t[i : i + size] for t in data), {}) for i in starts]


from published import amortized, shared  # noqa: E402, F401 (they register theirs)
