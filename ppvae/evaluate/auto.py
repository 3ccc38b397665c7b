"""The marginal likelihood log p(x), per datum, by the cheapest method whose own diagnostic stands for it.

Importance sampling from the guide first; for the data whose k̂ is above 0.7, or standard error above 0.1 nats, a
proposal fitted to each; for what is still above either annealed chains. Each datum keeps the answer of the last method
that it had.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from ppvae.evaluate.adaptive import Adaptive
from ppvae.evaluate.ais import Annealed
from ppvae.evaluate.estimates import Diagnostics, LogMarginal, PerDatum, errors_in_words, ess_in_words
from ppvae.evaluate.estimator import Estimator, EvaluationOptions
from ppvae.evaluate.importance import Importance
from ppvae.evaluate.psis import PARETO_GOOD, PARETO_SAMPLES, ParetoWarning, num_unreliable
from ppvae.pair import Batch

UNSURE = 0.1
"""The standard error, in nats, above which a good k̂ is no answer: of a few effective draws it may be luck."""
STAGES = ("importance", "adaptive", "annealed")
"""The methods, in the order in which they are tried."""


@dataclass(frozen=True)
class AutoDiagnostics(Diagnostics):
    """The evidence for estimates by several methods.

    Attributes:
        method: which method's answer each datum has, (n,): a place in `STAGES`.
        pareto_k: k̂ by that method, (n,); NaN where it was annealed.
        of_stage: the diagnostics of each method that ran, of the data that it ran for.
        refused: by method, why it could not be used on this pair.
    """

    method: Tensor
    pareto_k: Tensor
    of_stage: dict[str, Diagnostics]
    refused: dict[str, str] = field(default_factory=dict)

    def num_data(self) -> dict[str, int]:
        """How many data have the answer of each method."""
        return {name: int((self.method == i).sum()) for i, name in enumerate(STAGES) if bool((self.method == i).any())}

    def num_unreliable(self) -> int:
        """How many data have k̂ > 0.7 by the method whose answer they have."""
        return num_unreliable(self.pareto_k)

    def verdict(self) -> str:
        """What k̂ says of the estimate, and why a method that would have been better was not used."""
        why = "".join(f"; {name} sampling is not for this pair: {reason}" for name, reason in self.refused.items())
        if (bad := self.num_unreliable()) == 0:
            return f"no datum has k̂ > {PARETO_GOOD}" + why
        return (
            f"k̂ > {PARETO_GOOD} for {bad} of {len(self.method)} data, whose log p(x) is likely too low and its "
            f"standard error too small{why}"
        )

    def in_words(self, estimate: LogMarginal) -> str:
        """Which data had which method, how sure each datum is, and the verdict."""
        shares = ", ".join(f"{name} for {count}" for name, count in self.num_data().items())
        first = self.of_stage["importance"].settings()["num_samples"]
        if int(first) < PARETO_SAMPLES:
            shares += f" (no k̂ to choose by: {first} samples, {PARETO_SAMPLES} at least)"
        return (
            f"method by datum: {shares}; draws {ess_in_words(estimate)}; {errors_in_words(estimate)}; {self.verdict()}"
        )

    def settings(self) -> dict[str, int | str]:
        """Those of importance sampling, which comes first."""
        return {**self.of_stage["importance"].settings(), "draws": "auto"}

    def figures(self) -> dict[str, Any]:
        """`methods` (how many data had which), the `bound` of importance sampling, `k_hat`, and `refused`."""
        figures: dict[str, Any] = {"methods": self.num_data()}
        first = self.of_stage["importance"].figures()
        figures |= {name: first[name] for name in ("bound", "share_outside") if name in first}
        if "k_hat" in first:
            known = self.pareto_k[~self.pareto_k.isnan()]
            median = float(known.median()) if len(known) else -torch.inf
            figures["k_hat"] = {f"above_{PARETO_GOOD}": self.num_unreliable(), "median": median}
        return figures | ({"refused": self.refused} if self.refused else {})

    def of_datum(self) -> dict[str, PerDatum]:
        """`method`, `pareto_k`, and what importance sampling knows besides."""
        return {**self.of_stage["importance"].of_datum(), "pareto_k": self.pareto_k, "method": self.method}

    def warning(self) -> Warning | None:
        """The verdict where a datum has k̂ > 0.7 in the end; else what importance sampling warns of besides k̂."""
        if self.num_unreliable():
            return ParetoWarning(self.verdict())
        first = self.of_stage["importance"].warning()
        return None if isinstance(first, ParetoWarning) else first


@dataclass(frozen=True)
class Auto(Estimator):
    """Importance sampling, and for the data that it does not do for a better method, with `AutoDiagnostics`.

    A datum goes on to the next method where k̂ > 0.7 or its standard error is above 0.1 nats. Which method answers is
    thus decided by draws that may count: of those that stay the answer is the one that looked right, and a datum whose
    rare large weights were all missed stays too low, as with importance sampling alone. `Adaptive` and `Annealed` by
    themselves have no such choice.

    Args:
        importance: what all data have first.
        adaptive: for those that go on.
        annealed: for those that go on again, by default over 100 temperatures from proposals fitted to
            each.

    Raises:
        TypeError: where one of them is of another kind.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.models import PPCA
        >>> pair, x = PPCA(8, 2), torch.randn(50, 8)
        >>> estimate = ppvae.log_marginal(pair, x, method="auto")
        >>> sum(estimate.diagnostics.num_data().values())
        50
    """

    importance: Importance = field(default_factory=Importance)
    adaptive: Adaptive = field(default_factory=Adaptive)
    annealed: Annealed = field(default_factory=lambda: Annealed(num_temperatures=100, start="adaptive"))

    def __post_init__(self) -> None:
        for name, kind in (("importance", Importance), ("adaptive", Adaptive), ("annealed", Annealed)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} must be an {kind.__name__} object, got {getattr(self, name)!r}")

    @classmethod
    def from_num_samples(cls, num_samples: int) -> Self:
        """So many importance samples."""
        return cls(importance=Importance(num_samples))

    def estimate(self, pair: nn.Module, data: Batch, options: EvaluationOptions) -> LogMarginal:
        """Estimates log p(x) of each datum, see `ppvae.log_marginal`.

        Raises:
            TypeError: where an argument is of the wrong kind.
            ValueError: where importance sampling raises it.
        """
        found = self.importance.estimate(pair, data, options)
        stages: dict[str, Diagnostics] = {"importance": found.diagnostics}
        method, k = torch.zeros(len(found.values), dtype=torch.long), found.pareto_k.clone()
        columns = {name: getattr(found, name).clone() for name in ("values", "std_error", "ess")}
        refused: dict[str, str] = {}
        for name, stage in zip(STAGES[1:], (self.adaptive, self.annealed), strict=True):
            unsure = (columns["std_error"] > UNSURE) & ~k.isnan()
            index = ((k > PARETO_GOOD) | unsure).nonzero().flatten()
            if not len(index):
                break
            try:
                better = stage.estimate(pair, _rows(data, index), options)
            except (ValueError, NotImplementedError, RuntimeError) as error:  # no gradient, or a weight that is none
                refused[name] = str(error).strip().split("\n")[0]
                continue
            stages[name] = better.diagnostics
            method[index], k[index] = STAGES.index(name), better.pareto_k
            for column, values in columns.items():
                values[index] = getattr(better, column)
        return LogMarginal(**columns, num_dims=found.num_dims, diagnostics=AutoDiagnostics(method, k, stages, refused))


def _rows(data: Batch, index: Tensor) -> Batch:
    """The data with these numbers."""
    return tuple(t if t is None else t[index.to(t.device)] for t in data)
