"""Several models on the same data: their means, and the differences to the first, datum by datum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ppvae.evaluate.estimates import LogMarginal, mean_over_runs

Comparison = dict[str, dict[str, Any]]
"""JSON-ready, by model: its `mean` and, but for the first, its `difference`, each as {"mean", "std_error"}."""


def compare(estimates: Mapping[str, LogMarginal | Tensor]) -> Comparison:
    """Compares the log p(x) of several models on the same data.

    The data differ far more from each other than the models do, and a mean's standard error is mostly of that. The
    standard error of a mean difference over pairs, of one datum under two models, is free of it.

    Args:
        estimates: by name, what `log_marginal` returned, by whatever method, or values of shape (n,) in nats; of the
            same data in the same order. Of a model that was trained with s seeds values of shape (s, n), those of all
            models by the same seeds: the standard errors are then over seeds and data both, see `mean_over_runs`.

    Returns:
        For each model {"mean": {"mean", "std_error"}}, and but for the first {"difference": {"mean", "std_error"}} too:
        its log p(x) minus that of the first, in nats per datum.

    Raises:
        TypeError: where an estimate is of another kind.
        ValueError: where there are less than two, the numbers of data differ, or a value is not finite.

    Example:
        >>> import torch
        >>> rows = compare({"a": torch.tensor([-90.0, -110.0]), "b": torch.tensor([-88.0, -109.0])})
        >>> rows["b"]["mean"]["mean"], rows["b"]["difference"]
        (-98.5, {'mean': 1.5, 'std_error': 0.5})
    """
    if not isinstance(estimates, Mapping):
        raise TypeError(f"estimates must be a dict of estimates by name, got {type(estimates).__name__}")
    if len(estimates) < 2:
        raise ValueError(f"estimates must name at least two models, got {list(estimates)}")
    values = {name: _values(name, estimate) for name, estimate in estimates.items()}
    (first, base), *others = values.items()
    comparison: Comparison = {first: {"mean": mean_over_runs(base)}}
    for name, of_model in others:
        if of_model.shape != base.shape:
            sizes = f"{_size(base)} of {first!r}, {_size(of_model)} of {name!r}"
            raise ValueError(f"estimates of the same data are compared, got {sizes}")
        comparison[name] = {"mean": mean_over_runs(of_model), "difference": mean_over_runs(of_model - base)}
    return comparison


def comparison_table(comparison: Comparison, symbol: str = "log p(x)") -> str:
    """The comparison as text: a row a model, nats per datum.

    Args:
        comparison: what `compare` gives.
        symbol: what the values are called at the head of their column.

    Example:
        >>> import torch
        >>> rows = compare({"a": torch.tensor([-90.0, -110.0]), "b": torch.tensor([-88.0, -109.0])})
        >>> print(comparison_table(rows).splitlines()[-1])
        b     -98.500 ± 10.500        +1.500 ± 0.500
    """
    first, width = next(iter(comparison)), max(map(len, comparison)) + 2
    lines = [f"{'':<{width}}{symbol:>10} ± {'s.e.':<8}{'difference':>12} ± s.e., to {first}"]
    for name, row in comparison.items():
        line = f"{name:<{width}}{row['mean']['mean']:>10.3f} ± {row['mean']['std_error']:<8.3f}"
        if "difference" in row:
            line += f"{row['difference']['mean']:>+12.3f} ± {row['difference']['std_error']:.3f}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def _size(runs: Tensor) -> str:
    """How many values there are, for an error."""
    return " × ".join(map(str, runs.shape if len(runs) > 1 else runs.shape[1:]))


def _values(name: str, estimate: LogMarginal | Tensor) -> Tensor:
    """The values as those of s runs, (s, n); of one run s is 1."""
    values = estimate if isinstance(estimate, Tensor) else getattr(estimate, "values", None)
    if not isinstance(values, Tensor):
        raise TypeError(f"estimates[{name!r}] must be a LogMarginal or a tensor, got {type(estimate).__name__}")
    if values.dim() not in (1, 2) or not values.numel():
        raise ValueError(f"estimates[{name!r}] must have shape (n,) or (s, n), got {tuple(values.shape)}")
    values = values.detach().double().cpu()
    runs = values if values.dim() == 2 else values.unsqueeze(0)
    bad = (~runs.isfinite()).nonzero().tolist()
    if bad:
        run, datum = bad[0]
        value = float(runs[run, datum])
        raise ValueError(f"log p(x) of datum {datum} is {value:g} by {name!r}: it has no difference")
    return runs
