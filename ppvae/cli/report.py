"""The table that every experiment ends with: ELBO, its terms and log p(x), with standard errors and diagnostics."""

from __future__ import annotations

import math
import warnings
from typing import Any

from torch import Tensor, nn

from ppvae._validate import check_count
from ppvae.evaluate.ais import BidirectionalBounds
from ppvae.evaluate.estimates import Elbo, LogMarginal, mean_over_data
from ppvae.evaluate.expected_log_likelihood import ExpectedLogLikelihood, expected_log_likelihood
from ppvae.evaluate.marginal import elbo, log_marginal
from ppvae.evaluate.psis import PARETO_GOOD, ParetoWarning
from ppvae.pair import Batch
from ppvae.sampling.guide_density import PointMassError

Report = dict[str, Any]
"""JSON-ready: `num_dims`, and for each split its `num_data` and quantities as {"mean", "std_error"} in nats; of log
p(x) also `ess` and its diagnostics, such as `k_hat` and `bound`."""

KNOWN = {"num_data", "ess", "acceptance", "bound", "k_hat", "by_class", "methods", "rounding"}
"""What the table has words of its own for."""


def report(
    pair: nn.Module,
    splits: dict[str, Batch],
    *,
    num_samples: int = 1000,
    limit: int | None = 1000,
    seed: int = 0,
    symbol: str = "log p(x)",
    progress: bool = False,
) -> Report:
    """Evaluates a pair on named sets of data: the ELBO and its terms on each, log p(x) on the last.

    With a deterministic encoder, which has no ELBO, the reconstruction alone.

    Args:
        pair: any model/guide pair.
        splits: the arguments of the pair by name, e.g. `{"train": (x,), "test": (x,)}`.
        num_samples: importance samples per datum for log p(x), and at most 100 of them for the ELBO.
        limit: evaluate at most this many data of each set, the first ones.
        seed: of the draws.
        symbol: what the marginal likelihood of the pair is called, e.g. "log p(x|y)" where it is given y.
        progress: whether to show progress bars.

    Returns:
        The figures, ready for JSON.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where there is no split, or the pair or the data break the contract.
    """
    if not splits:
        raise ValueError("splits must name at least one set of data, got none")
    figures: Report = {"num_samples": num_samples, "seed": seed, "symbol": symbol}
    *_, last = splits
    for name, data in splits.items():
        batch = first(data, limit)
        terms = elbo_or_likelihood(pair, batch, num_samples=min(num_samples, 100), seed=seed)
        estimate = None
        if isinstance(terms, ExpectedLogLikelihood):
            figures |= {"num_dims": terms.num_dims, "summary": terms.summary()}
        elif name == last:
            with warnings.catch_warnings(action="ignore", category=ParetoWarning):  # the table counts these data
                estimate = log_marginal(pair, *batch, num_samples=num_samples, seed=seed, progress=progress)
            figures["num_dims"] = estimate.num_dims
        figures[name] = describe(terms, estimate)
    return figures


def elbo_or_likelihood(pair: nn.Module, data: Batch, *, num_samples: int, seed: int) -> Elbo | ExpectedLogLikelihood:
    """The ELBO of the data; where the guide has no density, what is left of it."""
    try:
        return elbo(pair, *data, num_samples=num_samples, seed=seed)
    except PointMassError:
        return expected_log_likelihood(pair, *data, seed=seed)


def first(data: Batch, limit: int | None) -> Batch:
    """The first `limit` data."""
    if limit is not None:
        check_count("limit", limit)
    return tuple(t if t is None else t[:limit] for t in data)


def describe(terms: Elbo | ExpectedLogLikelihood, estimate: LogMarginal | None = None) -> Report:
    """One split of the report: each quantity as {"mean", "std_error"}, and the diagnostics of log p(x).

    Args:
        terms: the ELBO of its data, or their reconstruction where there is none.
        estimate: their log p(x), where it is known.

    Returns:
        `num_data`, the quantities by name; with `estimate` also `log_marginal`, its `ess` ("median", "min"), the
        figures of its diagnostics, and of `autocast` its `rounding` ("num_data", "average", and "max" in size; nats).
    """
    if isinstance(terms, ExpectedLogLikelihood):
        quantities = {"reconstruction": terms.values}
    else:
        quantities = {"elbo": terms.values, "reconstruction": terms.reconstruction}
        quantities |= {f"kl_{site}": value for site, value in terms.kl.items()}
    figures: Report = {"num_data": len(terms.values)}
    if estimate is not None:
        quantities["log_marginal"] = estimate.values
        figures["ess"] = {"median": float(estimate.ess.median()), "min": float(estimate.ess.min())}
        figures |= estimate.diagnostics.figures()
        if (moved := estimate.rounding) is not None:
            figures["rounding"] = {
                "num_data": len(moved),
                "average": float(moved.mean()),
                "max": float(moved.abs().max()),
            }
    return figures | {name: mean_over_data(values) for name, values in quantities.items()}


def by_class(terms: Elbo, estimate: LogMarginal, labels: Tensor) -> Report:
    """The ELBO and log p(x) of the data of each class, with the number of data and of those with k̂ > 0.7.

    Args:
        terms: the ELBO of n data.
        estimate: their log p(x).
        labels: their classes, integers of shape (n,).

    Returns:
        By class, in order: `num_data`, `elbo` and `log_marginal` as {"mean", "std_error"}; `above_0.7` where there is
        a k̂.

    Raises:
        ValueError: where there is not one integer for each datum.
    """
    if labels.shape != estimate.values.shape or labels.is_floating_point():
        raise ValueError(
            f"labels must be integers of shape {tuple(estimate.values.shape)}, one for each datum, "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    figures: Report = {}
    for c in labels.unique().tolist():
        index = labels.cpu() == c
        figures[str(c)] = {
            "num_data": int(index.sum()),
            "elbo": mean_over_data(terms.values[index]),
            "log_marginal": mean_over_data(estimate.values[index]),
        }
        if not estimate.pareto_k.isnan().all():
            figures[str(c)][f"above_{PARETO_GOOD}"] = int((estimate.pareto_k[index] > PARETO_GOOD).sum())
    return figures


def both_bounds(found: BidirectionalBounds) -> Report:
    """Both bounds on log p(x) of data drawn from the model, and their gap, each as {"mean", "std_error"}."""
    gap = {"mean": found.gap(), "std_error": found.gap_std_error()}
    return {"lower": mean_over_data(found.lower.values), "upper": mean_over_data(found.upper.values), "gap": gap}


def strict_json(figures: Any) -> Any:
    """The figures with null for what JSON has no number: NaN and the infinities."""
    if isinstance(figures, dict):
        return {key: strict_json(value) for key, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [strict_json(value) for value in figures]
    return None if isinstance(figures, float) and not math.isfinite(figures) else figures


def from_json(figures: Any) -> Any:
    """Figures as they were before `strict_json`, as far as that can be said: NaN in the place of null."""
    if isinstance(figures, dict):
        return {key: from_json(value) for key, value in figures.items()}
    if isinstance(figures, list):
        return [from_json(value) for value in figures]
    return math.nan if figures is None else figures


def table(figures: Report) -> str:
    """The report as text: a row a quantity, nats and bits per dimension of one datum; what is known of the weights."""
    lines = [f"{'':<8}{'':<22}{'nats':>10} ± {'s.e.':<8}{'bits/dim':>10}"]
    both = figures.get("sandwich")  # the name of the key since the first of these files
    scale = 1 / (figures["num_dims"] * math.log(2.0))
    for name, split in figures.items():
        if not isinstance(split, dict) or "num_data" not in split:
            continue
        for key, value in split.items():
            if not _is_quantity(value):
                continue
            # of log-probabilities the bits to encode them; a KL is a number of bits as it is
            bits = value["mean"] * scale * (1 if key.startswith("kl_") else -1)
            label, shown = _label(key, figures), "" if math.isnan(bits) else f"{bits:.4f}"
            lines.append(f"{name:<8}{label:<22}{value['mean']:>10.3f} ± {value['std_error']:<8.3f}{shown:>10}")
        lines += [f"{name:<8}{line}" for line in _diagnostics(split, figures)]
        lines += _class_rows(split.get("by_class", {}), figures)
    if both:
        lines.append(_bounds_line(both, figures["symbol"]))
    return "\n".join([*lines, *([figures["summary"]] if "summary" in figures else [])])


def _bounds_line(both: Report, symbol: str) -> str:
    """Both bounds, which noise can put in the wrong order."""
    lower, upper, gap = both["lower"]["mean"], both["upper"]["mean"], both["gap"]
    between = f"{lower:.3f} ≤ mean {symbol} ≤ {upper:.3f} nats"
    if lower > upper:
        between = f"the bounds on the mean {symbol} cross: {lower:.3f} from below, {upper:.3f} from above, in nats"
    return f"on data drawn from the model {between}, a gap of {gap['mean']:.3f} ± {gap['std_error']:.3f}"


def _label(key: str, figures: Report) -> str:
    if key == "log_marginal":
        return f"{figures['symbol']}, {_draws(figures)}"
    return f"KL {key.removeprefix('kl_')}" if key.startswith("kl_") else {"elbo": "ELBO"}.get(key, key)


def _draws(figures: Report) -> str:
    """What log p(x) was estimated with."""
    if figures.get("draws") == "auto":
        return "auto"
    return f"{figures['num_samples']} {figures['draws']}" if "draws" in figures else f"K={figures['num_samples']}"


def _diagnostics(split: Report, figures: Report) -> list[str]:
    """How many draws counted, and what the diagnostics found."""
    lines = []
    if "methods" in split:
        shares = ", ".join(f"{name} for {n}" for name, n in split["methods"].items())
        ess = f"median {split['ess']['median']:.1f}, least {split['ess']['min']:.1f}"
        lines.append(
            f"{split['num_data']} data: {shares} (K={figures['num_samples']} at first); effective draws: {ess}"
        )
    elif "ess" in split:
        ess = split["ess"]
        draws = figures.get("draws", "importance samples")
        lines.append(
            f"{split['num_data']} data; effective {draws}: median {ess['median']:.1f}, "
            f"least {ess['min']:.1f} of {figures['num_samples']}"
        )
    if "acceptance" in split:
        accepted = split["acceptance"]
        lines.append(
            f"annealed over {figures['num_temperatures']} temperatures; moves accepted: "
            f"mean {accepted['average']:.2f}, least {accepted['min']:.2f}"
        )
    if "bound" in split:
        last = list(split["bound"].items())[-4:]
        lines.append("bound in nats: " + ", ".join(f"{value['mean']:.3f} (K={size})" for size, value in last))
    if "k_hat" in split:
        k_hat = split["k_hat"]
        bad = k_hat[f"above_{PARETO_GOOD}"]
        advice = ": their log p(x) may be far too low" if bad else ""
        lines.append(f"k̂, median {k_hat['median']:.2f}, > {PARETO_GOOD} for {bad} of {split['num_data']} data{advice}")
    if "rounding" in split:
        moved = split["rounding"]
        lines.append(
            f"{figures['autocast']} moved log p(x) of the first {moved['num_data']} data by "
            f"{moved['average']:+.3f} nats on average, at most {moved['max']:.3f}"
        )
    others = {key: value for key, value in split.items() if key not in KNOWN and not _is_quantity(value)}
    return [*lines, *(f"{key}: {_in_words(value)}" for key, value in others.items())]


def _is_quantity(value: Any) -> bool:
    """Whether it is a mean in nats, and so a row of the table."""
    return isinstance(value, dict) and value.keys() == {"mean", "std_error"}


def _in_words(value: Any) -> str:
    """A figure of diagnostics that the table does not know."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_in_words(of_name)}" for name, of_name in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _class_rows(classes: Report, figures: Report) -> list[str]:
    """A row a class."""
    if not classes:
        return []
    above = f"above_{PARETO_GOOD}"
    title = f"{'class':<8}{'data':<8}{'ELBO':>10} ± {'s.e.':<8}{figures['symbol']:>10} ± {'s.e.':<8}"
    title += f"k̂ > {PARETO_GOOD}" if all(above in row for row in classes.values()) else ""
    rows = []
    for name, row in classes.items():
        numbers = "".join(
            f"{row[key]['mean']:>10.3f} ± {row[key]['std_error']:<8.3f}" for key in ("elbo", "log_marginal")
        )
        rows.append(f"{name:<8}{row['num_data']:<8}{numbers}{row.get(above, '')}".rstrip())
    return [title.rstrip(), *rows]
