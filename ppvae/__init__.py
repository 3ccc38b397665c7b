"""Variational autoencoders as Pyro model/guide pairs, judged by their marginal likelihood.

data ──► pair (models over distributions over nn) ──► infer (ELBO, SVI, fit) ──► run ──► evaluate ──► plot
"""

__version__ = "0.1.0"

from ppvae.evaluate import elbo, log_marginal
from ppvae.infer import SVI, fit
from ppvae.pair import KLWeight, Pair
from ppvae.storage import load, save

__all__ = ["SVI", "KLWeight", "Pair", "__version__", "elbo", "fit", "load", "log_marginal", "save"]
