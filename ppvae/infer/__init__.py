"""Training: the SVI step, the objectives and schedules around it, and `fit`."""

from ppvae.infer.elbo import JointELBO
from ppvae.infer.fit import fit
from ppvae.infer.nonfinite import NonFiniteError
from ppvae.infer.run import Run, RunFolder
from ppvae.infer.schedule import Cosine, Cyclical, Linear, Schedule, Sigmoid
from ppvae.infer.svi import SVI

__all__ = [
    "SVI",
    "Cosine",
    "Cyclical",
    "JointELBO",
    "Linear",
    "NonFiniteError",
    "Run",
    "RunFolder",
    "Schedule",
    "Sigmoid",
    "fit",
]
