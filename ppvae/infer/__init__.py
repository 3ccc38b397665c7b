"""Training: the SVI step, the objectives and schedules around it, and `fit`."""

from ppvae.infer.elbo import JointELBO
from ppvae.infer.fit import fit
from ppvae.infer.importance_weighted import CIWAE, IWAE, MIWAE, PIWAE
from ppvae.infer.memory import keep_freed_memory
from ppvae.infer.nonfinite import NonFiniteError
from ppvae.infer.regularized import BalancedELBO, CapacityELBO, ConstrainedELBO, FreeBitsELBO, beta_from_norm
from ppvae.infer.run import Run, RunFolder
from ppvae.infer.schedule import Cosine, Cyclical, Linear, Schedule, Sigmoid, Stages
from ppvae.infer.svi import SVI

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
