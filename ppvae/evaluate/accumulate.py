"""Sums over draws that arrive in blocks, each stable whatever its size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Moments:
    """Mean and variance over draws that arrive in blocks, stable where the mean is large (Chan et al. 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Any = 0.0
        self.deviations: Any = 0.0
        """Σ (value − mean)² over the draws."""

    def add(self, values: Tensor) -> None:
        """Adds a block of draws, shape (s, n)."""
        mean = values.mean(0)
        before, self.count = self.count, self.count + len(values)
        old, new = before / self.count, len(values) / self.count
        self.deviations = self.deviations + ((values - mean) ** 2).sum(0) + (mean - self.mean) ** 2 * (before * new)
        self.mean = self.mean * old + mean * new  # stays −inf once it is, where an update by differences would be NaN

    def variance(self) -> Tensor:
        """Unbiased, shape (n,); NaN for a single draw."""
        return self.deviations / (self.count - 1) if self.count > 1 else torch.full_like(self.mean, math.nan)


@dataclass
class WeightSum:
    """Σ w and Σ w² of each datum, kept relative to the largest weight so far so that neither overflows."""

    largest: Tensor
    total: Tensor
    squares: Tensor

    @classmethod
    def empty(cls, log_weight: Tensor) -> WeightSum:
        """No weights yet, for data of a block (s, n)."""
        zeros = torch.zeros_like(log_weight[0])
        return cls(torch.full_like(zeros, -math.inf), zeros, zeros)

    def add(self, log_weight: Tensor) -> None:
        """Adds a block of log-weights, shape (s, n)."""
        largest = torch.maximum(self.largest, log_weight.amax(0))
        anchor = largest.clamp_min(torch.finfo(largest.dtype).min)  # all weights zero: exp(−inf − finite) = 0
        shrink = torch.exp(self.largest - anchor)
        weight = torch.exp(log_weight - anchor)
        self.total = self.total * shrink + weight.sum(0)
        self.squares = self.squares * shrink**2 + (weight**2).sum(0)
        self.largest = largest

    def log_sum(self) -> Tensor:
        """Log Σ w, shape (n,)."""
        return self.largest + self.total.log()

    def log_sum_squares(self) -> Tensor:
        """Log Σ w², shape (n,)."""
        return 2 * self.largest + self.squares.log()
