"""Training: the SVI step, the objectives and schedules around it, and `fit`."""

from ppvae.compile.allocator import keep_freed_memory
from ppvae.infer.fit import fit
from ppvae.infer.nonfinite import NonFiniteError
from ppvae.infer.run_folder import Run, RunFolder
from ppvae.infer.svi import SVI
from ppvae.objectives.importance_weighted import CIWAE, IWAE, MIWAE, PIWAE
from ppvae.objectives.joint import JointELBO
from ppvae.objectives.regularized import BalancedELBO, CapacityELBO, ConstrainedELBO, FreeBitsELBO, beta_from_norm
from ppvae.objectives.schedule import Cosine, Cyclical, Linear, Schedule, Sigmoid, Stages

__all__ = [
    "CIWAE",
    "IWAE",
    "MIWAE",
    "PIWAE",
    "SVI",
    "BalancedELBO",
    "CapacityELBO",
    "ConstrainedELBO",
    "Cosine",
    "Cyclical",
    "FreeBitsELBO",
    "JointELBO",
    "Linear",
    "NonFiniteError",
    "Run",
    "RunFolder",
    "Schedule",
    "Sigmoid",
    "Stages",
    "beta_from_norm",
    "fit",
    "keep_freed_memory",
]
