"""What a trained pair is worth: its ELBO and its marginal likelihood, per datum, for any pair."""

from ppvae.evaluate.marginal import Elbo, LogMarginal, elbo, log_marginal

__all__ = ["Elbo", "LogMarginal", "elbo", "log_marginal"]
