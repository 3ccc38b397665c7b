"""What the referee judges by: a pair whose log p(x) and ELBO are known."""

import random
from dataclasses import dataclass

from torch import Tensor, nn

N = 7
"""Data of a case: more than the trial runs of the estimators take, and no multiple of them."""


@dataclass(frozen=True)
class Case:
    """A pair, its data, and what is known of them.

    Attributes:
        description: what is unusual about it.
        pair: the pair.
        data: its arguments.
        log_prob: log p(x) of each datum, (n,), float64.
        elbo: that of each datum, (n,), or None where it has no closed form.
        spread: log E_q[(w / p(x))²] of each datum, (n,), which says how far an estimate may be; or None.
        exact: whether every importance weight is p(x), up to rounding.
        reparameterized: whether every draw of the guide is differentiable, and none is summed over.
        aligned: whether the random numbers of a datum are the same whatever the other data are.
        rare: whether draws that are seldom or never seen may carry much of the spread, which no standard error shows.
    """

    description: str
    pair: nn.Module
    data: tuple[Tensor, ...]
    log_prob: Tensor
    elbo: Tensor | None
    spread: Tensor | None
    exact: bool
    reparameterized: bool = True
    aligned: bool = True
    rare: bool = False


def some(rng: random.Random, values, most: int | None = None, *, least: int = 0) -> list:
    """Some of these values, in their order."""
    values = list(values)
    size = rng.randint(min(least, len(values)), min(len(values), len(values) if most is None else most))
    chosen = set(rng.sample(range(len(values)), size))
    return [value for i, value in enumerate(values) if i in chosen]
