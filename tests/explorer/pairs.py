"""Pairs that the explorer shows, untrained: what the page says of them is compared, and not what they have learned."""

import torch

from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
from ppvae.models import CVAE, VAE
from ppvae.nn import MLP, ConditionalMLP, ConvDecoder, OneHot

N, SIDE, CLASSES = 12, 6, 3


def pictures(n=N):
    generator = torch.Generator().manual_seed(0)
    return torch.bernoulli(torch.full((n, 1, SIDE, SIDE), 0.4), generator=generator)


def classes(n=N):
    return torch.arange(n) % CLASSES


def shaken(pair):
    """Weights that are not near zero, so that every unit changes the picture."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in pair.parameters():
            weight.normal_(std=0.5)
    return pair


def image_vae(k=4):
    image = (1, SIDE, SIDE)
    decoder = ConvDecoder(k, (4,), image, activation="elu")
    encoder = MLP(image, (8,), (2, k))
    return shaken(VAE(StandardNormal(k), ConditionalBernoulli(decoder), ConditionalNormal(encoder)))


def image_cvae(k=3):
    image, label = (1, SIDE, SIDE), {"embed": OneHot(CLASSES)}
    decoder = ConditionalMLP(k, CLASSES, (8,), image, **label)
    encoder = ConditionalMLP(image, CLASSES, (8,), (2, k), **label)
    return shaken(CVAE(StandardNormal(k), ConditionalBernoulli(decoder), ConditionalNormal(encoder)))
