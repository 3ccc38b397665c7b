"""Pairs and data of which the wrong calls are."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from ppvae import distributions, models, nn


def vae() -> models.VAE:
    """A small VAE of binary data."""
    return models.VAE(
        distributions.StandardNormal(2),
        distributions.ConditionalBernoulli(nn.MLP(2, (8,), 6)),
        distributions.ConditionalNormal(nn.MLP(6, (8,), (2, 2))),
    )


def cvae() -> models.CVAE:
    """A small conditional VAE of three classes."""
    embed = nn.OneHot(3)
    return models.CVAE(
        distributions.StandardNormal(2),
        distributions.ConditionalBernoulli(nn.ConditionalMLP(2, 3, (8,), 6, embed=embed)),
        distributions.ConditionalNormal(nn.ConditionalMLP(6, 3, (8,), (2, 2), embed=embed)),
    )


def ssvae() -> models.SSVAE:
    """A small semi-supervised VAE of three classes."""
    embed = nn.OneHot(3)
    return models.SSVAE(
        p_y=distributions.UniformCategorical(3),
        p_z=distributions.StandardNormal(2),
        p_x_given_zy=distributions.ConditionalBernoulli(nn.ConditionalMLP(2, 3, (8,), 6, embed=embed)),
        q_y_given_x=distributions.ConditionalCategorical(nn.MLP(6, (8,), 3), num_classes=3),
        q_z_given_xy=distributions.ConditionalNormal(nn.ConditionalMLP(6, 3, (8,), (2, 2), embed=embed)),
    )


def labels() -> torch.Tensor:
    """A class for each of twenty data."""
    return torch.arange(20) % 3


def histories() -> list[dict[str, float]]:
    """A history of training."""
    return [{"epoch": float(i), "elbo": -5.0, "kl_z": 1.0} for i in range(1, 4)]


def normal(*shape: int) -> torch.Tensor:
    """Numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Shared(torch.nn.Module):
    """A pair with a latent that all data share."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(6))

    def model(self, x: torch.Tensor) -> None:
        """Draws a rate for each element, and the data."""
        b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([6]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=b).to_event(1), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        """Draws the rates."""
        pyro.sample("b", dist.Normal(self.loc, 1.0).to_event(1))
