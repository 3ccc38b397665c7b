"""Many draws of a pair for every datum: from the guide, along a path to the posterior, and from the model itself."""

from ppvae.sampling.importance import Draws, importance_draws
from ppvae.sampling.posterior_draws import PosteriorSampler, Simulated, posterior_sampler, simulate

__all__ = ["Draws", "PosteriorSampler", "Simulated", "importance_draws", "posterior_sampler", "simulate"]
