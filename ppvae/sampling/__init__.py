"""Many draws of a pair for every datum: from the guide, along a path to the posterior, and from the model itself.

What estimators and checks are made of, for any pair:

- `importance_draws` scores draws from the guide and keeps none of them: sums such as the ELBO and log p(x);
- `posterior_sampler` hands them out, with their densities at any latents: what looks at the latents themselves;
- `simulate` draws latents and data from the model.
"""

from ppvae.sampling.importance import Draws, importance_draws
from ppvae.sampling.latent import Latent
from ppvae.sampling.posterior_draws import PosteriorSampler, Simulated, posterior_sampler, simulate

__all__ = ["Draws", "Latent", "PosteriorSampler", "Simulated", "importance_draws", "posterior_sampler", "simulate"]
