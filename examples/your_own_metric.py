"""A metric of your own: how far the guide's mean is from the posterior's, in standard deviations of the posterior.

`posterior_sampler` hands out what any metric is made of, for any pair: draws of the latents of every datum with their
log q(z|x), and log p(x|z), log p(z) at these or other latents. Weights p(x, z)/q(z|x) make of the guide's draws those
of the posterior.
"""

import torch
from torch import Tensor, nn

import ppvae
from ppvae.models import PPCA
from ppvae.sampling import posterior_sampler


def mean_offset(pair: nn.Module, *data: Tensor, site: str = "z", num_samples: int = 500, seed: int = 0) -> Tensor:
    """|E_q[z] − E_p[z]| / SD_p[z] of every datum and dimension.

    Args:
        pair: any model/guide pair.
        data: its arguments, tensors of shape (n, ...).
        site: the latent, of shape (n, k).
        num_samples: s, draws per datum.
        seed: of the draws.

    Returns:
        Shape (n, k).
    """
    offsets = []
    with posterior_sampler(pair, data, seed=seed) as whole:
        for _, posterior in whole.parts(num_samples):  # as many data at a time as memory takes
            latents, log_q = posterior.draw(num_samples)
            log_likelihood, log_prior = posterior.log_joint(latents)
            z = latents[site].value  # (s, n, k)
            log_weight = log_likelihood + sum(log_prior.values()) - sum(log_q.values())  # (s, n)
            weight = log_weight.softmax(0).unsqueeze(-1)
            mean = (weight * z).sum(0)
            offsets.append((z.mean(0) - mean).abs() / (weight * (z - mean) ** 2).sum(0).sqrt())
    return torch.cat(offsets)


def main() -> None:
    """Of a guide that was trained for longer and longer."""
    torch.manual_seed(0)
    pair, x = PPCA(8, 2, guide="amortized"), torch.randn(1000, 2) @ torch.randn(2, 8) + torch.randn(1000, 8)
    for epochs in (1, 10, 30):
        ppvae.fit(pair, x, epochs=epochs, lr=1e-2, progress=False)
        print(f"after {epochs} more epochs: {float(mean_offset(pair, x).mean()):.2f} standard deviations")
    print(ppvae.log_marginal(pair, x, num_samples=200).summary())


if __name__ == "__main__":
    main()
