"""Modules that return distributions: ``forward(*context)`` gives a ``pyro.distributions`` object."""

from ppvae.distributions.autoregressive import Autoregressive, AutoregressivePrior, ConditionalSequence
from ppvae.distributions.codebook import Codebook, CodePosterior
from ppvae.distributions.columns import ColumnEncoder, ColumnProduct, ConditionalColumns, num_params
from ppvae.distributions.conditional import ConditionalBernoulli, ConditionalCategorical, ConditionalNormal
from ppvae.distributions.continuous_bernoulli import ConditionalContinuousBernoulli, ContinuousBernoulli
from ppvae.distributions.counts import (
    ConditionalMultinomial,
    ConditionalNegativeBinomial,
    ConditionalPoisson,
    Multinomial,
    NegativeBinomial,
    Poisson,
)
from ppvae.distributions.delta import ConditionalDelta
from ppvae.distributions.discretized_logistic import ConditionalDiscretizedLogistic, DiscretizedLogistic
from ppvae.distributions.flow import FlowPosterior, FlowPrior
from ppvae.distributions.markov import MarkovChain, MarkovPosterior, of_steps
from ppvae.distributions.mixture import MixturePrior, VampPrior
from ppvae.distributions.multivariate_normal import ConditionalMultivariateNormal
from ppvae.distributions.prior import CategoricalPrior, StandardNormal, UniformCategorical
from ppvae.distributions.product import precision_weighted
from ppvae.distributions.relaxed import (
    BinaryConcrete,
    BinaryStraightThrough,
    Concrete,
    OneHotConcrete,
    OneHotStraightThrough,
    StraightThrough,
)
from ppvae.distributions.standardized import Rescaled, Standardize, Standardized
from ppvae.distributions.student_t import ConditionalStudentT
from ppvae.distributions.von_mises import ConditionalVonMises, VonMises
from ppvae.observed import of_observed

__all__ = [
    "Autoregressive",
    "AutoregressivePrior",
    "BinaryConcrete",
    "BinaryStraightThrough",
    "CategoricalPrior",
    "CodePosterior",
    "Codebook",
    "ColumnEncoder",
    "ColumnProduct",
    "Concrete",
    "ConditionalBernoulli",
    "ConditionalCategorical",
    "ConditionalColumns",
    "ConditionalContinuousBernoulli",
    "ConditionalDelta",
    "ConditionalDiscretizedLogistic",
    "ConditionalMultinomial",
    "ConditionalMultivariateNormal",
    "ConditionalNegativeBinomial",
    "ConditionalNormal",
    "ConditionalPoisson",
    "ConditionalSequence",
    "ConditionalStudentT",
    "ConditionalVonMises",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "FlowPosterior",
    "FlowPrior",
    "MarkovChain",
    "MarkovPosterior",
    "MixturePrior",
    "Multinomial",
    "NegativeBinomial",
    "OneHotConcrete",
    "OneHotStraightThrough",
    "Poisson",
    "Rescaled",
    "StandardNormal",
    "Standardize",
    "Standardized",
    "StraightThrough",
    "UniformCategorical",
    "VampPrior",
    "VonMises",
    "num_params",
    "of_observed",
    "of_steps",
    "precision_weighted",
]
