"""Checks of what a model is made of."""

from __future__ import annotations

from typing import Any

from torch import nn


def check_pieces(**pieces: Any) -> None:
    """Checks that every piece is a module.

    Raises:
        TypeError: naming the first that is not.
    """
    for name, piece in pieces.items():
        if not isinstance(piece, nn.Module):
            raise TypeError(f"{name} must be a module that returns a distribution, got {type(piece).__name__}")


def check_weight(name: str, weight: Any) -> None:
    """Checks that the weight of a term of the objective is a number >= 0.

    Raises:
        ValueError: where it is not.
    """
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight >= 0:
        raise ValueError(f"{name} must be a number >= 0, got {weight!r}")
