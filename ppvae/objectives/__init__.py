"""What is minimised: the base of every objective, bounds, penalties on the KL and on the codes, schedules."""

from ppvae.objectives.adversarial import AAE, FactorVAE
from ppvae.objectives.base import Objective
from ppvae.objectives.deterministic import AE, RAE
from ppvae.objectives.dip import DIPELBO
from ppvae.objectives.divergence import MMD, Critic
from ppvae.objectives.importance_weighted import CIWAE, IWAE, MIWAE, PIWAE
from ppvae.objectives.joint import JointELBO
from ppvae.objectives.regularized import BalancedELBO, CapacityELBO, ConstrainedELBO, FreeBitsELBO, beta_from_norm
from ppvae.objectives.schedule import Cosine, Cyclical, Linear, Schedule, Sigmoid, Stages
from ppvae.objectives.total_correlation import TotalCorrelationELBO
from ppvae.objectives.wasserstein import WAE, InfoVAE

__all__ = [
    "AAE",
    "AE",
    "CIWAE",
    "DIPELBO",
    "IWAE",
    "MIWAE",
    "MMD",
    "PIWAE",
    "RAE",
    "WAE",
    "BalancedELBO",
    "CapacityELBO",
    "ConstrainedELBO",
    "Cosine",
    "Critic",
    "Cyclical",
    "FactorVAE",
    "FreeBitsELBO",
    "InfoVAE",
    "JointELBO",
    "Linear",
    "Objective",
    "Schedule",
    "Sigmoid",
    "Stages",
    "TotalCorrelationELBO",
    "beta_from_norm",
]
