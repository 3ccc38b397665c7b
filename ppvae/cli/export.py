"""Encoder and decoder of a pair as files that other programs run, inputs and outputs by their symbols.

`ppvae export RUN` writes both of a run.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ppvae._validate import check_path
from ppvae.cli.exported import ROWS, TOLERANCE, Exported, NotExportableError, export_conditional, quietly
from ppvae.inputs import as_batch
from ppvae.means import code_of
from ppvae.pair import check_batch, check_pair

Format = Literal["onnx", "pt2"]


@dataclass(frozen=True)
class Exports:
    """What `export` wrote.

    Attributes:
        encoder: the file of q(z|x), if there is one.
        decoder: the file of p(x|z), if there is one.
        left_out: why there is none, by name.
    """

    encoder: Exported | None
    decoder: Exported | None
    left_out: dict[str, str]

    def __str__(self) -> str:
        """A paragraph for each."""
        files = [str(of) for of in (self.encoder, self.decoder) if of is not None]
        return "\n".join([*files, *(f"no {name}: {why}" for name, why in self.left_out.items())])


def export(
    pair: nn.Module,
    *data: Any,
    folder: str | os.PathLike[str],
    format: Format = "onnx",
    tolerance: float = TOLERANCE,
) -> Exports:
    """Writes the encoder and the decoder of a pair, each as one file, and compares both with torch.

    The encoder takes the data by their symbols, x, or x and y, and returns the parameters of q(z|x), such as `z_loc`
    and `z_scale`; the decoder takes z (of several levels z1, z2, …), and y where the model has one, and returns those
    of p(x|z), such as `x_logits`. A pair has them by the methods `encode` and `decode` that the models share; modules
    of any other pair go by `export_conditional`. Of several levels each is encoded at the means of those before it.

    Args:
        pair: the pair; it is exported in eval mode, on the CPU, and stays as it is.
        *data: its arguments for some data.
        folder: where `encoder.onnx` and `decoder.onnx` go, or `.pt2`.
        format: onnx (`pip install "ppvae[onnx]"`), or pt2, a program that `torch.export.load` reads.
        tolerance: how far a file's outputs may be from torch's, as a share of the largest.

    Returns:
        The files, and in a sentence what could not be exported.

    Raises:
        TypeError: where the pair has no `encode` and `decode`.
        ValueError: where neither can be exported, with the reasons.
        ImportError: without what a format needs.

    Example:
        >>> import tempfile, torch, ppvae
        >>> from ppvae.models import PPCA
        >>> made = ppvae.export(PPCA(8, 2), torch.randn(20, 8), folder=tempfile.mkdtemp(), format="pt2")
        >>> made.decoder.inputs, made.decoder.outputs
        ({'z': ('n', 2)}, {'x_loc': ('n', 8), 'x_scale': ('n', 8)})
    """
    check_pair(pair)
    if not all(callable(getattr(pair, name, None)) for name in ("encode", "decode")):
        raise TypeError(
            f"pair must have encode and decode, as ppvae.models have, got {type(pair).__name__}; "
            "ppvae.export_conditional takes any module that returns a distribution"
        )
    if format not in ("onnx", "pt2"):
        raise ValueError(f"format must be 'onnx' or 'pt2', got {format!r}")
    batch = as_batch(data, pair, name="data")
    check_batch(batch)
    folder = check_path("folder", folder)
    own = copy.deepcopy(pair).eval().cpu()
    model: Any = pair.model
    symbols = list(inspect.signature(model).parameters)
    given = {name: t[:ROWS].cpu() for name, t in zip(symbols, batch, strict=False) if t is not None}
    made: dict[str, Exported] = {}
    left_out: dict[str, str] = {}
    for name, prepare in {"encoder": _encoder, "decoder": _decoder}.items():
        try:
            conditional, inputs, site = prepare(own, given)
            path = folder / f"{name}.{format}"
            made[name] = export_conditional(conditional, inputs, path, site=site, tolerance=tolerance)
        except (NotExportableError, ValueError) as error:
            left_out[name] = str(error)
    if not made:
        raise ValueError("nothing of the pair can be exported: " + "; ".join(f"{k}: {v}" for k, v in left_out.items()))
    return Exports(made.get("encoder"), made.get("decoder"), left_out)


def _encoder(pair: Any, given: dict[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor], str]:
    """q(z|x), its inputs, and its site."""
    taken = _taken("encode", pair.encode, given)
    return _Method(pair, "encode"), taken, next(iter(inspect.signature(pair.decode).parameters))


def _decoder(pair: Any, given: dict[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor], str]:
    """p(x|z), its inputs at the codes of the data, and its site."""
    with quietly(), torch.no_grad():
        found = pair.encode(**_taken("encode", pair.encode, given))
        names = list(inspect.signature(pair.decode).parameters)
        codes = {k: code_of(fn) for k, fn in (found if isinstance(found, Mapping) else {names[0]: found}).items()}
    method = _Method(pair, "decode", levels=list(codes) if isinstance(found, Mapping) else None)
    return method, codes | _taken("decode", pair.decode, {**given, names[0]: codes}, but=names[0]), next(iter(given))


def _taken(name: str, method: Callable[..., Any], given: Mapping[str, Any], but: str = "") -> dict[str, Any]:
    """What of the data a method takes.

    Raises:
        NotExportableError: where it needs something else.
    """
    parameters = inspect.signature(method).parameters.values()
    missing = [p.name for p in parameters if p.name not in given and p.default is p.empty]
    if missing:
        raise NotExportableError(
            f"{name} needs {', '.join(missing)}, which is not of the data: it is no function of them"
        )
    return {p.name: given[p.name] for p in parameters if p.name in given and p.name != but}


class _Method(nn.Module):
    """A method of a pair as a module, which owns the pair's parameters."""

    def __init__(self, pair: nn.Module, name: str, levels: list[str] | None = None) -> None:
        super().__init__()
        self.pair, self.name, self.levels = pair, name, levels

    def forward(self, *inputs: Tensor) -> Any:
        """What the method returns; of levels it takes the values by their sites."""
        method = getattr(self.pair, self.name)
        return method(*inputs) if self.levels is None else method(dict(zip(self.levels, inputs, strict=True)))
