"""What a trained pair is worth: its ELBO, its marginal likelihood and the labels it gives, per datum, for any pair."""

from ppvae.evaluate.labels import error_rate, label_posterior
from ppvae.evaluate.marginal import Elbo, LogMarginal, elbo, log_marginal

__all__ = ["Elbo", "LogMarginal", "elbo", "error_rate", "label_posterior", "log_marginal"]
