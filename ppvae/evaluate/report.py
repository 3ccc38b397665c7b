"""The table that every experiment ends with: ELBO, its terms and log p(x), with standard errors."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from ppvae.evaluate.marginal import elbo, log_marginal, standard_error
from ppvae.pair import Batch

Report = dict[str, Any]
"""JSON-ready: `num_dims`, and for each split its `num_data` and quantities as {"mean", "std_error"} in nats."""


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
        batch = tuple(t if t is None else t[:limit] for t in data)
        terms = elbo(pair, *batch, num_samples=min(num_samples, 100), seed=seed)
        quantities = {"elbo": terms.values, "reconstruction": terms.reconstruction}
        quantities |= {f"kl_{site}": value for site, value in terms.kl.items()}
        figures[name] = {"num_data": len(terms.values)}
        if name == last:
            estimate = log_marginal(pair, *batch, num_samples=num_samples, seed=seed, progress=progress)
            quantities["log_marginal"] = estimate.values
            figures["num_dims"] = estimate.num_dims
            figures[name]["ess"] = {"median": float(estimate.ess.median()), "min": float(estimate.ess.min())}
        for key, values in quantities.items():
            figures[name][key] = {"mean": float(values.mean()), "std_error": standard_error(values)}
    return figures


def table(figures: Report) -> str:
    """The report as text: a row a quantity, nats and bits per dimension of one datum."""
    lines = [f"{'':<8}{'':<22}{'nats':>10} ± {'s.e.':<8}{'bits/dim':>10}"]
    scale = 1 / (figures["num_dims"] * math.log(2.0))
    for name, split in figures.items():
        if not isinstance(split, dict):
            continue
        for key, value in split.items():
            if key in ("num_data", "ess"):
                continue
            # of log-probabilities the bits to encode them; a KL is a number of bits as it is
            bits = value["mean"] * scale * (1 if key.startswith("kl_") else -1)
            label = _label(key, figures)
            lines.append(f"{name:<8}{label:<22}{value['mean']:>10.3f} ± {value['std_error']:<8.3f}{bits:>10.4f}")
        ess = split.get("ess")
        if ess is not None:
            lines.append(
                f"{name:<8}{split['num_data']} data; effective importance samples: median {ess['median']:.1f}, "
                f"least {ess['min']:.1f} of {figures['num_samples']}"
            )
    return "\n".join(lines)


def _label(key: str, figures: Report) -> str:
    if key == "log_marginal":
        return f"{figures['symbol']}, K={figures['num_samples']}"
    return f"KL {key.removeprefix('kl_')}" if key.startswith("kl_") else {"elbo": "ELBO"}.get(key, key)
