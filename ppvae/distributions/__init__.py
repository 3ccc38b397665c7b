"""Modules that return distributions: ``forward(*context)`` gives a ``pyro.distributions`` object."""

from ppvae.distributions.conditional import (
    ConditionalBernoulli,
    ConditionalCategorical,
    ConditionalNormal,
)
from ppvae.distributions.continuous_bernoulli import ConditionalContinuousBernoulli, ContinuousBernoulli
from ppvae.distributions.discretized_logistic import ConditionalDiscretizedLogistic, DiscretizedLogistic
from ppvae.distributions.prior import StandardNormal, UniformCategorical

__all__ = [
    "ConditionalBernoulli",
    "ConditionalCategorical",
    "ConditionalContinuousBernoulli",
    "ConditionalDiscretizedLogistic",
    "ConditionalNormal",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "StandardNormal",
    "UniformCategorical",
]
