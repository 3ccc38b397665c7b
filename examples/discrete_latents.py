"""A discrete latent trained in three ways: summed over, relaxed, and straight through.

The story: x has twelve binary pixels, and one of six classes z decides how probable each is,

    z ~ Uniform{1 … 6}        x ~ Bernoulli(π_z)        guide: z ~ q(z|x)

Six values are few enough to be summed over, so that log p(x) of each model is exact, however it was trained.
"""

import math

import torch
from pyro.infer import TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from torch import nn

import ppvae
from ppvae.distributions import (
    Concrete,
    ConditionalBernoulli,
    ConditionalCategorical,
    StraightThrough,
    UniformCategorical,
)
from ppvae.models import VAE
from ppvae.nn import MLP
from ppvae.objectives import Linear

D, C = 12, 6


def make_vae(kind: type[Concrete] | type[StraightThrough]) -> VAE:
    """A mixture of Bernoulli variables whose class is a one-hot row."""
    torch.manual_seed(0)
    q_z_given_x = ConditionalCategorical(MLP(D, (32,), C), num_classes=C)
    p_x_given_z = ConditionalBernoulli(nn.Sequential(nn.Linear(C, D)))
    return VAE(kind(UniformCategorical(C), 0.67), p_x_given_z, kind(q_z_given_x, 0.67))


def main() -> None:
    """Trains on data of six known classes, and compares."""
    torch.manual_seed(1)
    pi = 0.1 + 0.8 * torch.eye(C).repeat_interleave(D // C, 1)  # each class lights two pixels of its own
    train, test = (torch.bernoulli(pi[torch.randint(C, (n,))]) for n in (2000, 1000))
    log_p = torch.distributions.Bernoulli(pi).log_prob(test[:, None]).sum(-1)
    print(f"the true model: {float(log_p.logsumexp(1).mean()) - math.log(C):.3f} nats")
    options = {"epochs": 30, "batch_size": 100, "lr": 1e-2, "kl_weight": Linear(20), "progress": False}
    for name, kind in (("relaxed", Concrete), ("straight through", StraightThrough), ("summed over", None)):
        vae = make_vae(kind or StraightThrough)
        marked = ppvae.Pair(vae.model, config_enumerate(vae.guide), [vae])
        loss = TraceMeanField_ELBO() if kind else TraceEnum_ELBO(max_plate_nesting=1)
        ppvae.fit(vae if kind else marked, train, loss=loss, **options)
        print(f"{name}: {ppvae.log_marginal(marked, test, num_samples=1).summary()}")


if __name__ == "__main__":
    main()
