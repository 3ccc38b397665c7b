"""A NaN with a name: the first site or parameter that is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ppvae.traces import Site, sites


class NonFiniteError(ArithmeticError):
    """Training met a NaN or an infinity; the message names where it first arose."""


def check_finite(
    traces: Iterable[tuple[Trace, Trace]], terms: dict[str, Tensor], gradients: Iterable[tuple[str, Tensor]]
) -> None:
    """Checks one step in the order in which it was computed: guide sites, model sites, loss, gradients.

    Args:
        traces: the step's (model, guide) traces.
        terms: the step's loss and its parts by name.
        gradients: the step's gradients by parameter name.

    Raises:
        NonFiniteError: naming the first non-finite site or parameter, and how much of it is.
    """
    for model_trace, guide_trace in traces:
        for where, trace in (("guide", guide_trace), ("model", model_trace)):
            for site in sites(trace).values():
                _check_site(where, site)
    if not all(bool(value.isfinite()) for value in terms.values()):
        raise NonFiniteError("the loss is not finite: " + ", ".join(f"{k} = {float(v):g}" for k, v in terms.items()))
    for name, gradient in gradients:
        if count := _count_nonfinite(gradient):
            raise NonFiniteError(f"the gradient of parameter {name!r} is not finite in {count}")


def check_finite_parameters(parameters: Iterable[tuple[str, Tensor]]) -> None:
    """Checks parameters after a step.

    Raises:
        NonFiniteError: naming the first that is not finite.
    """
    for name, parameter in parameters:
        if count := _count_nonfinite(parameter):
            raise NonFiniteError(f"the step makes parameter {name!r} not finite in {count}")


@torch.no_grad()
def all_finite(parameters: Iterable[Tensor]) -> bool:
    """Whether all elements are finite, by one read from the device."""
    filled = [parameter for parameter in parameters if parameter.numel() > 0]
    return not filled or bool(torch.nn.utils.get_total_norm(filled, math.inf).isfinite())


def nonfinite_rows(batch: Iterable[Any], name: str) -> str:
    """Which of a minibatch's values are not finite, as the beginning of a message; nothing where all are.

    Args:
        batch: a minibatch, or one of each of several data sets.
        name: of the argument.
    """
    for i, values in enumerate(batch):
        if isinstance(values, tuple) and (said := nonfinite_rows(values, f"{name}.sets[{i}]")):
            return said
        if isinstance(values, Tensor) and values.is_floating_point():
            bad = ~values.isfinite().reshape(len(values), -1).all(1)
            if bool(bad.any()):
                return (
                    f"{name}[{i}] holds NaN or infinite values in {int(bad.sum())} rows of the minibatch, first in row "
                    f"{int(bad.nonzero()[0])} (missing values must be filled in, and left out by poutine.mask): "
                )
    return ""


def _check_site(where: str, site: Site) -> None:
    for what, value in (("value", site.value), ("log-probability", site.log_prob)):
        if isinstance(value, Tensor) and (count := _count_nonfinite(value)):
            raise NonFiniteError(f"the {what} of site {site.name!r} in the {where} is not finite in {count}")


def _count_nonfinite(value: Tensor) -> str:
    """`k of m elements`, or nothing where all are finite."""
    bad = int((~torch.isfinite(value)).sum())
    return f"{bad} of {value.numel()} elements" if bad else ""
