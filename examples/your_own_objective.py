"""An objective of your own, with a network of its own: the ELBO − λ KL(q(z) ‖ p(z)), by a critic.

The codes of all data together, q(z), should fill the prior. Their ratio to it has no closed form; a critic that tells
codes from draws of the prior estimates T(z) = log q(z)/p(z) (Mescheder et al. 2017, arXiv 1701.04722). It trains in the
same step, by a loss of its own, and neither loss sends a gradient to the other's network.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import softplus

import ppvae
from ppvae.distributions import ConditionalNormal, StandardNormal
from ppvae.models import VAE
from ppvae.nn import MLP
from ppvae.objectives import Objective
from ppvae.traces import sites


class AggregatedELBO(Objective):
    """−ELBO + λ E_q[T(z)], and the critic's logistic loss."""

    def __init__(self, num_latents: int, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.critic = MLP(num_latents, (64, 64), 1)  # an attribute: trained, moved and kept with the pair

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """Summed over the batch, as an ELBO of Pyro's is."""
        ((model_trace, guide_trace),) = self.traces(model, guide, args, kwargs)
        z, frozen = sites(guide_trace)["z"].value, {n: p.detach() for n, p in self.critic.named_parameters()}
        ratio = functional_call(self.critic, frozen, (z,)).sum()  # reaches the encoder, not the critic
        codes, prior = self.critic(z.detach()), self.critic(torch.randn_like(z))  # reach the critic, not the encoder
        self.record("mismatch", ratio)
        negative_elbo = guide_trace.log_prob_sum() - model_trace.log_prob_sum()
        return negative_elbo + self.weight * ratio + (softplus(-codes) + softplus(prior)).sum()


def main() -> None:
    """Trains on four clusters, which leave holes in q(z), without and with the term, and asks what it costs."""
    torch.manual_seed(0)
    x = 2.0 * torch.eye(4)[torch.randint(4, (2000,))] + 0.3 * torch.randn(2000, 4)
    for weight in (0.0, 2.0):
        p_x_given_z = ConditionalNormal(MLP(2, (32,), 4), scale="learned")
        vae = VAE(StandardNormal(2), p_x_given_z, ConditionalNormal(MLP(4, (32,), (2, 2))))
        loss, rates = AggregatedELBO(2, weight), {"objective.critic.*": {"lr": 1e-2}}
        run = ppvae.fit(vae, x, loss=loss, param_groups=rates, epochs=20, lr=1e-2, progress=False)
        print(f"λ = {weight}: the critic finds KL(q(z) ‖ p(z)) = {run.history[-1]['mismatch']:.3f} nats")
        print(ppvae.log_marginal(vae, x[:500], num_samples=200).summary())


if __name__ == "__main__":
    main()
