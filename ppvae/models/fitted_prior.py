"""A prior fitted to the codes of a trained model: what makes a generative model of a deterministic autoencoder.

Ghosh et al. 2020, "From variational to deterministic autoencoders", arXiv 1903.12436: ex-post density estimation. For a
VAE it closes the gap between the prior and the aggregated posterior q(z).
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from ppvae._validate import check_seed, check_tensor
from ppvae.distributions import MixturePrior
from ppvae.distributions.mixture import Covariance
from ppvae.models.base import VAEQueries
from ppvae.pair import blocks
from ppvae.rng import forked_rng

BLOCK = 1000
"""Data that are encoded at once."""

Model = TypeVar("Model", bound=VAEQueries)


def fit_prior(
    model: Model, x: Tensor, *, num_components: int = 1, covariance: Covariance = "full", seed: int = 0
) -> Model:
    """Fits a normal, or a mixture of normals, to draws z ~ q(z|x) of training data, and puts it in the place of p(z).

    Samples, log p(z), and the likelihoods of the model are with the new prior from then on; with a deterministic
    encoder `log_marginal` by `Annealed(start="prior")`. The encoder and the decoder stay as they are.

    Args:
        model: a trained model with modules `p_z` and `q_z_given_x`, such as `VAE`.
        x: training data (n, *event).
        num_components: of the mixture; 1 is a normal.
        covariance: of each component, "full" (of codes of one dim) or "diagonal".
        seed: of the draws, and of where the fit starts.

    Returns:
        The model.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where an option is out of range, or the data are too few for as many components.

    Example:
        >>> from ppvae.models import PPCA
        >>> ppca = fit_prior(PPCA(8, 2), torch.randn(100, 8), num_components=3)
        >>> ppca.sample(5).shape
        torch.Size([5, 8])
    """
    if not isinstance(model, VAEQueries):
        raise TypeError(f"model must have modules p_z and q_z_given_x, as VAE has, got {type(model).__name__}")
    check_tensor("x", x)
    check_seed(seed)
    if not x.dim() or not len(x):
        raise ValueError(f"x must be training data (n, ...), got shape {tuple(x.shape)}")
    device = next((p.device for p in model.parameters()), x.device)
    with forked_rng(device, seed):
        codes = _draws(model, x, device)
        prior = MixturePrior(num_components, tuple(codes.shape[1:]), covariance=covariance)
    model.p_z = prior.fit_to(codes, seed=seed).to(codes.device, codes.dtype)
    return model


@torch.no_grad()
def _draws(model: VAEQueries, x: Tensor, device: torch.device) -> Tensor:
    """A draw z ~ q(z|x) of each datum, in eval mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        parts = [model.encode(x[first:last].to(device)).sample() for first, last in blocks(len(x), BLOCK)]
    finally:
        for module, mode in modes.items():
            module.training = mode
    return torch.cat(parts)
