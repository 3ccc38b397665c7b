"""What a trained pair is worth: its ELBO, its marginal likelihood and the labels it gives, per datum, for any pair."""

from ppvae.evaluate.compare import compare, comparison_table
from ppvae.evaluate.diagnostics import ParetoWarning, bound_curve, pareto_k
from ppvae.evaluate.labels import Reliability, error_rate, label_posterior, reliability
from ppvae.evaluate.marginal import Elbo, LogMarginal, elbo, log_marginal

__all__ = [
    "Elbo",
    "LogMarginal",
    "ParetoWarning",
    "Reliability",
    "bound_curve",
    "compare",
    "comparison_table",
    "elbo",
    "error_rate",
    "label_posterior",
    "log_marginal",
    "pareto_k",
    "reliability",
]
