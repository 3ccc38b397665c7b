"""Training: the SVI step, `fit` around it, what it calls after every epoch and what it leaves on disk."""

from importlib import import_module
from typing import Any

from ppvae.infer.callbacks import TensorBoard
from ppvae.infer.fit import fit
from ppvae.infer.nonfinite import NonFiniteError
from ppvae.infer.recipe import Recipe
from ppvae.infer.run_folder import Run, RunFolder
from ppvae.infer.svi import SVI

__all__ = ["SVI", "NonFiniteError", "Recipe", "Run", "RunFolder", "TensorBoard", "fit"]

_MOVED = {
    "CIWAE": "ppvae.objectives",
    "IWAE": "ppvae.objectives",
    "MIWAE": "ppvae.objectives",
    "PIWAE": "ppvae.objectives",
    "BalancedELBO": "ppvae.objectives",
    "CapacityELBO": "ppvae.objectives",
    "ConstrainedELBO": "ppvae.objectives",
    "Cosine": "ppvae.objectives",
    "Cyclical": "ppvae.objectives",
    "FreeBitsELBO": "ppvae.objectives",
    "JointELBO": "ppvae.objectives",
    "Linear": "ppvae.objectives",
    "Schedule": "ppvae.objectives",
    "Sigmoid": "ppvae.objectives",
    "Stages": "ppvae.objectives",
    "beta_from_norm": "ppvae.objectives",
    "keep_freed_memory": "ppvae.compile",
}


def __getattr__(name: str) -> Any:
    # Version 0.1 had these here, and people's scripts import them from here.
    if name not in _MOVED:
        raise AttributeError(f"module 'ppvae.infer' has no attribute {name!r}")
    return getattr(import_module(_MOVED[name]), name)
