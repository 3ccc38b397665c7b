"""Moments over draws that arrive in blocks, stable whatever their size."""

from __future__ import annotations

import math
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
