"""What a way to estimate log p(x) is: an object that holds its options and maps a pair and data to a `LogMarginal`.

`ppvae.evaluate.importance` is the one to copy. An estimator is a frozen dataclass in a file of its own; a line in
`ppvae.evaluate.METHODS` gives it a name, so that `log_marginal(pair, x, method=name)` and the command line know it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from ppvae._validate import check_autocast, check_flag
from ppvae.compile.policy import Compile
from ppvae.evaluate.estimates import LogMarginal
from ppvae.pair import Batch
from ppvae.sampling.posterior_draws import PosteriorSampler, posterior_sampler


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """The options that all methods have.

    Attributes:
        batch_size: the most data scored at once; None for what a memory budget allows.
        seed: of the draws; the global random state is left alone.
        compile: whether to run what repeats as one compiled graph; "auto" does where that repays itself.
        given: observed sites to condition on: their density is left out.
        progress: whether to show a progress bar.
        autocast: dtype of products in the pair's code; None for its own.
    """

    batch_size: int | None = None
    seed: int = 0
    compile: Compile = "auto"
    given: Sequence[str] = ()
    progress: bool = False
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_flag("progress", self.progress)
        check_autocast(self.autocast)

    def posterior_sampler(self, pair: nn.Module, data: Batch) -> AbstractContextManager[PosteriorSampler]:
        """The pair on its data, for methods that move latents: those that are marked for enumeration summed over."""
        return posterior_sampler(pair, data, seed=self.seed, given=self.given, summed=True, autocast=self.autocast)


class Estimator(ABC):
    """A way to estimate log p(x), with its own options as fields."""

    @classmethod
    @abstractmethod
    def from_num_samples(cls, num_samples: int) -> Self:
        """The estimator that `log_marginal(..., num_samples=...)` means by its name; other options have defaults."""

    @abstractmethod
    def estimate(self, pair: nn.Module, data: Batch, options: EvaluationOptions) -> LogMarginal:
        """Estimates log p(x) of each datum.

        Args:
            pair: any model/guide pair.
            data: its arguments, tensors of shape (n, ...), or None, on any device.
            options: those that all methods have.

        Returns:
            The estimates, as float64 tensors on the CPU.

        Raises:
            TypeError: where an argument is of the wrong kind.
            ValueError: where the pair or the data break the contract, or a weight is NaN or infinite.
        """
