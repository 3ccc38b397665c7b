"""Models: one generative story a file, each a Pyro `model`/`guide` pair."""

from ppvae.models.cvae import CVAE
from ppvae.models.fitted_prior import fit_prior
from ppvae.models.hierarchical import HierarchicalVAE
from ppvae.models.ladder import LadderVAE
from ppvae.models.masked import MaskedVAE
from ppvae.models.ppca import PPCA
from ppvae.models.sequence_vae import Sequences, SequenceVAE
from ppvae.models.ssvae import SSVAE
from ppvae.models.stacked import StackedSSVAE
from ppvae.models.state_space import DeepMarkovModel
from ppvae.models.top_down import TopDownVAE
from ppvae.models.vae import VAE
from ppvae.models.vqvae import VQVAE

__all__ = [
    "CVAE",
    "PPCA",
    "SSVAE",
    "VAE",
    "VQVAE",
    "DeepMarkovModel",
    "HierarchicalVAE",
    "LadderVAE",
    "MaskedVAE",
    "SequenceVAE",
    "Sequences",
    "StackedSSVAE",
    "TopDownVAE",
    "fit_prior",
]
