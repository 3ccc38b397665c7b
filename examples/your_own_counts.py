"""Counts of very different sizes, such as reads of genes in cells: how deep each was read is a size, and no pattern."""

import torch
from torch import nn

import ppvae
from ppvae.distributions import ConditionalNegativeBinomial, ConditionalNormal, ConditionalPoisson, StandardNormal
from ppvae.models import CVAE
from ppvae.nn import MLP, ConcatInputs, Log1p

torch.manual_seed(0)
cells, genes = 1200, 60
depth = torch.distributions.LogNormal(6.0, 0.7).sample((cells,))
share = torch.softmax(torch.randn(cells, 2) @ torch.randn(2, genes), -1)
rate = torch.distributions.Gamma(5.0, 5.0 / (depth.unsqueeze(-1) * share)).sample()  # more spread than Poisson
counts = torch.poisson(rate)
train, test = (counts[:1000], depth[:1000]), (counts[1000:], depth[1000:])

for name, likelihood in (("Poisson", ConditionalPoisson), ("negative binomial", ConditionalNegativeBinomial)):
    encoder = ConcatInputs((genes, ()), nn.Sequential(Log1p(), MLP(genes + 1, (64,), (2, 2))))
    pair = CVAE(
        p_z=StandardNormal(2),
        p_x_given_zy=likelihood(MLP(2, (64,), genes), sized=True),  # means: depth · exp(net)
        q_z_given_xy=ConditionalNormal(encoder),
    )
    ppvae.fit(pair, train, epochs=60, lr=3e-3, progress=False)
    print(f"{name}: {ppvae.log_marginal(pair, *test, num_samples=500).summary()}")
