"""The state of torch that a checkpoint holds besides the weights: random generators, nested optimizer state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def get_rng(device: torch.device) -> dict[str, Any]:
    """The state of torch's global generators."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_rng(state: dict[str, Any]) -> None:
    """Puts back what `get_rng` read."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def to_cpu(state: Any) -> Any:
    """A copy of nested state with its tensors on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: to_cpu(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(to_cpu(value) for value in state)
    return state
