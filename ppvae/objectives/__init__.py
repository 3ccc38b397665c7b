"""What is minimised: the base of every objective, importance-weighted bounds, penalties on the KL, schedules."""

from ppvae.objectives.base import Objective
from ppvae.objectives.dip import DIPELBO
from ppvae.objectives.importance_weighted import CIWAE, IWAE, MIWAE, PIWAE
from ppvae.objectives.joint import JointELBO
from ppvae.objectives.regularized import BalancedELBO, CapacityELBO, ConstrainedELBO, FreeBitsELBO, beta_from_norm
from ppvae.objectives.schedule import Cosine, Cyclical, Linear, Schedule, Sigmoid, Stages
from ppvae.objectives.total_correlation import TotalCorrelationELBO

__all__ = [
    "CIWAE",
    "DIPELBO",
    "IWAE",
    "MIWAE",
    "PIWAE",
    "BalancedELBO",
    "CapacityELBO",
    "ConstrainedELBO",
    "Cosine",
    "Cyclical",
    "FreeBitsELBO",
    "JointELBO",
    "Linear",
    "Objective",
    "Schedule",
    "Sigmoid",
    "Stages",
    "TotalCorrelationELBO",
    "beta_from_norm",
]
