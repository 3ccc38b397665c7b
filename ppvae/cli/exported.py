"""A module that returns a distribution as a file that other programs run: ONNX, or a program of `torch.export`.

What the file holds is the function from named inputs to the distribution's parameters, with any number of data.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from ppvae._validate import check_number, check_path, naming_path, optional_library
from ppvae.storage import write_atomically

ROWS = 7
"""Data that a graph is traced on; the comparison takes one datum, and twice as many, besides."""
TOLERANCE = 1e-4
"""How far the file's outputs may be from torch's, as a share of the largest, or of 1 where that is less."""


@dataclass(frozen=True)
class Exported:
    """One file.

    Attributes:
        path: where it lies.
        inputs: their shapes by name, "n" for the number of data.
        outputs: the same of the parameters, named `site_parameter`.
        families: of each site, the family that they are the parameters of.
        difference: the largest difference between the file's outputs and torch's that was found.
    """

    path: Path
    inputs: dict[str, tuple[int | str, ...]]
    outputs: dict[str, tuple[int | str, ...]]
    families: dict[str, str]
    difference: float

    def __str__(self) -> str:
        """The file in a line for its inputs, and one for its outputs."""
        given, found = (", ".join(f"{k} {_shown(v)}" for k, v in of.items()) for of in (self.inputs, self.outputs))
        families = ", ".join(f"{site} ~ {family}" for site, family in self.families.items())
        return f"{self.path}: {given}\n  -> {found}    {families}; at most {self.difference:.1e} from torch"


def export_conditional(
    conditional: nn.Module,
    inputs: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    site: str,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Writes a module that returns a distribution, or several by their sites, as a function to their parameters.

    The file is compared with torch on the inputs, on one row of them and on twice as many; one that differs is removed.

    Args:
        conditional: the module, in the mode that it is to be exported in.
        inputs: its arguments by the names that they get, for n data each, (n, ...).
        path: the file, `.onnx` or `.pt2`.
        site: what the distribution is of, the first part of its parameters' names.
        tolerance: how far the outputs may be from torch's, as a share of the largest.

    Raises:
        NotExportableError: where the distribution has no named parameters, or torch cannot trace the module.
        ValueError: where the file gives other numbers than torch, or an argument is wrong.
        ImportError: without what the format needs.

    Example:
        >>> import tempfile, torch
        >>> from ppvae.distributions import ConditionalNormal
        >>> from ppvae.nn import MLP
        >>> q_z_given_x = ConditionalNormal(MLP(8, (16,), (2, 3)))
        >>> path = tempfile.mkdtemp() + "/encoder.pt2"
        >>> export_conditional(q_z_given_x, {"x": torch.randn(4, 8)}, path, site="z").outputs
        {'z_loc': ('n', 3), 'z_scale': ('n', 3)}
    """
    check_number("tolerance", tolerance, above=0)
    path = check_path("path", path)
    if path.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"path must end in .onnx or .pt2, got {path.name!r}")
    runtime = None
    if path.suffix == ".onnx":
        runtime = optional_library("onnxruntime", "onnx", "onnxscript", what="ONNX", extra="onnx")
    traced = {name: _rows(value, max(2, len(value))) for name, value in inputs.items()}
    graph = _Parameters(conditional, site)
    with quietly(), torch.no_grad():
        outputs, families = graph.describe(*traced.values())
        program = _traced(graph, traced)
        with naming_path("path"):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda file: _write(program, file, list(traced), list(outputs), runtime))
        run = _reader(path, runtime)
        difference = 0.0
        for n in (len(next(iter(traced.values()))), 1, 2 * ROWS):
            rows = {name: _rows(value, n) for name, value in inputs.items()}
            difference = max(difference, _difference(graph(*rows.values()), run(rows), list(outputs)))
        if not difference <= tolerance:
            path.unlink()
            raise ValueError(f"{path.name} differs from torch by {difference:.1e} of the largest value: not kept")
    given, found = ({name: ("n", *value.shape[1:]) for name, value in of.items()} for of in (traced, outputs))
    return Exported(path, given, found, families, difference)


class NotExportableError(RuntimeError):
    """What cannot be a file, and why."""


class _Parameters(nn.Module):
    """The parameters of what a conditional returns, in an order: see `describe`."""

    def __init__(self, conditional: nn.Module, site: str) -> None:
        super().__init__()
        self.conditional, self.site = conditional, site

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The parameters of all sites, each with the data first."""
        n = inputs[0].shape[0]  # `len` would fix it
        return tuple(_per_datum(value, fn, n) for fn in self.sites(*inputs).values() for value in _given(fn).values())

    def sites(self, *inputs: Tensor) -> dict[str, Distribution]:
        found = self.conditional(*inputs)
        return dict(found) if isinstance(found, Mapping) else {self.site: found}

    def describe(self, *inputs: Tensor) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The outputs by name, and the family of each site."""
        sites = self.sites(*inputs)
        names = [f"{site}_{name}" for site, fn in sites.items() for name in _given(fn)]
        return dict(zip(names, self(*inputs), strict=True)), {s: type(_base(fn)).__name__ for s, fn in sites.items()}


def _base(fn: Any) -> Any:
    """A distribution without the dims that were declared as one event."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn


def _given(fn: Any) -> dict[str, Tensor]:
    """The parameters that a distribution was made with, by their names.

    Raises:
        NotExportableError: where it has none that say all: a flow, a mixture, columns.
    """
    base = _base(fn)
    if not isinstance(base, Distribution):
        raise NotExportableError(f"it must return a distribution, got {type(base).__name__}")
    names = [name for name in base.arg_constraints if isinstance(vars(base).get(name), Tensor)]
    names = ["v"] if isinstance(base, Delta) else names
    if not names or hasattr(base, "transforms"):
        raise NotExportableError(f"a {type(base).__name__} is not told by named parameters of one site")
    return {name: vars(base)[name] for name in names}


def _per_datum(value: Tensor, fn: TorchDistribution, n: int) -> Tensor:
    """A parameter with its data first: one that all share, such as a learned scale, is repeated for each."""
    shape = torch.Size((*fn.batch_shape, *fn.event_shape))
    if value.dim() < len(shape):
        value = value.expand(shape)
    return value.expand(n, *value.shape[1:])


@contextmanager
def quietly() -> Iterator[None]:
    """Without checks of values, which a graph has none of, and without what exporters say of their own insides."""
    names = ("torch.onnx", "torch.export", "torch.fx", "torch.fx.experimental.symbolic_shapes", "onnxscript")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    silent = contextlib.redirect_stdout(io.StringIO())  # torch prints a graph that it does not trace
    with pyro.validation_enabled(False), warnings.catch_warnings(action="ignore"), silent:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _traced(graph: _Parameters, inputs: dict[str, Tensor]) -> Any:
    """The graph by `torch.export`, the number of data free.

    Raises:
        NotExportableError: with what torch says, in a line.
    """
    free = tuple({0: torch.export.Dim("n")} for _ in inputs)
    try:
        return torch.export.export(graph.eval(), tuple(inputs.values()), dynamic_shapes=(free,), strict=False)
    except Exception as error:  # torch has many
        raise NotExportableError(f"torch.export does not trace it: {_reason(error)}") from error


def _write(program: Any, path: Path, inputs: list[str], outputs: list[str], runtime: Any) -> None:
    if runtime is None:
        with path.open("wb") as file:
            torch.export.save(program, file)
        return
    try:
        program = program.run_decompositions({torch.ops.aten.hypot.default: _hypot})
        made = torch.onnx.export(program, (), dynamo=True, input_names=inputs, output_names=outputs, verbose=False)
    except Exception as error:  # onnxscript has many
        raise NotExportableError(f"ONNX does not take it: {_reason(error)}") from error
    assert made is not None
    for value in (*made.model.graph.inputs, *made.model.graph.outputs):
        assert value.shape is not None
        value.shape = type(value.shape)(["n", *list(value.shape)[1:]])  # torch has a number for it
    made.save(str(path), external_data=False)


def _hypot(a: Tensor, b: Tensor) -> Tensor:
    """√(a² + b²), of which ONNX has no operator: that of a product of two normals (`precision_weighted`)."""
    return (a * a + b * b).sqrt()


def _reason(error: BaseException) -> str:
    """What went wrong at the bottom, in a line; of an operation that ONNX lacks, its name."""
    while error.__cause__ is not None:
        error = error.__cause__
    if lacks := re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(error)):
        return f"it has no operator for {lacks[1]}"
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _reader(path: Path, runtime: Any) -> Callable[[dict[str, Tensor]], list[Tensor]]:
    """The file as a function of its inputs."""
    if runtime is None:
        with path.open("rb") as file:
            module = torch.export.load(file).module()
        return lambda inputs: list(module(*inputs.values()))
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda inputs: [
        torch.from_numpy(np.asarray(value)) for value in session.run(None, {k: v.numpy() for k, v in inputs.items()})
    ]


def _difference(expected: tuple[Tensor, ...], found: list[Tensor], names: list[str]) -> float:
    """The largest difference, as a share of the largest value; infinite where the shapes differ."""
    worst = 0.0
    for _, a, b in zip(names, expected, found, strict=True):
        if a.shape != b.shape:
            return math.inf
        worst = max(worst, float((a.double() - b.double()).abs().max()) / max(1.0, float(a.abs().max())))
    return worst


def _rows(value: Tensor, n: int) -> Tensor:
    """The first n rows; where there are fewer, some again."""
    return value[torch.arange(n) % len(value)].contiguous()


def _shown(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
