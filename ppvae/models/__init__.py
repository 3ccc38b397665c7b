"""Models: one generative story a file, each a Pyro `model`/`guide` pair."""

from ppvae.models.ppca import PPCA
from ppvae.models.vae import VAE

__all__ = ["PPCA", "VAE"]
