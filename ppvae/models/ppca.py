"""Probabilistic principal component analysis: the linear VAE, whose likelihood and posterior are known exactly.

Tipping & Bishop 1999, "Probabilistic principal component analysis"; as a linear VAE, Lucas et al. 2019, "Don't blame
the ELBO!", arXiv 1911.02469.

    z ~ N(0, I)             x ~ N(Wz + b, σ²I)        guide: z ~ q(z|x)

    log p(x) = log N(x; b, WWᵀ + σ²I)
    p(z|x)   = N(M⁻¹Wᵀ(x − b), σ²M⁻¹),  M = WᵀW + σ²I

It is the yardstick of every estimator here: with the exact posterior as its guide, the ELBO is log p(x).
"""

from __future__ import annotations

from typing import Literal, Self

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppvae._validate import check_count, check_tensor
from ppvae.distributions import ConditionalNormal, StandardNormal
from ppvae.models.base import VAEQueries
from ppvae.nn import MLP

LEAST_NOISE = 1e-6
"""Of σ², where k directions hold all of the variance of the data."""


class PPCA(VAEQueries):
    """Probabilistic PCA of d observed and k latent dimensions.

    Args:
        data_dim: d.
        latent_dim: k.
        guide: "exact", the posterior in closed form, or "amortized", a diagonal normal whose mean and scale are
            affine in x (before the scale's softplus), learned.

    Example:
        >>> import torch, ppvae
        >>> ppca, x = PPCA(8, 2), torch.randn(100, 8)
        >>> exact = ppca.log_prob(x)
        >>> torch.allclose(ppvae.elbo(ppca, x).values, exact.double(), atol=1e-3)
        True
    """

    p_x_given_z: ConditionalNormal

    def __init__(self, data_dim: int, latent_dim: int, *, guide: Literal["exact", "amortized"] = "exact") -> None:
        super().__init__()
        check_count("data_dim", data_dim)
        check_count("latent_dim", latent_dim)
        self.p_z = StandardNormal(latent_dim)
        self.p_x_given_z = ConditionalNormal(MLP(latent_dim, (), data_dim), scale="learned")
        if guide == "exact":
            self.q_z_given_x = ExactPosterior(self.p_x_given_z)
        elif guide == "amortized":
            self.q_z_given_x = ConditionalNormal(MLP(data_dim, (), (2, latent_dim)))
        else:
            raise ValueError(f"guide must be 'exact' or 'amortized', got {guide!r}")

    @classmethod
    @torch.no_grad()
    def of_data(cls, x: Tensor, latent_dim: int) -> Self:
        """The model of maximum likelihood, in closed form: PCA, with the noise that it leaves.

        W = U (Λ − σ²I)^½ of the k largest eigenvalues Λ of the covariance and their eigenvectors U; b is the mean, and
        σ² the mean of the other eigenvalues. Where σ² → 0, E[x|z] at the code of x is x as PCA reconstructs it.

        Args:
            x: data (n, d).
            latent_dim: k, less than d.

        Raises:
            TypeError: where `x` is no tensor.
            ValueError: where it is no table of at least two data, or has no more dimensions than the latent.

        Example:
            >>> import torch
            >>> x = torch.randn(100, 3) @ torch.randn(3, 8) + 0.1 * torch.randn(100, 8)
            >>> PPCA.of_data(x, 3).log_prob(x).mean() > PPCA.of_data(x, 2).log_prob(x).mean()
            tensor(True)
        """
        check_tensor("x", x)
        check_count("latent_dim", latent_dim)
        if x.dim() != 2 or len(x) < 2 or x.shape[1] <= latent_dim:
            raise ValueError(
                f"x must be of shape (n, d) with n at least 2 and d more than latent_dim, {latent_dim}, got "
                f"{tuple(x.shape)}"
            )
        if not x.isfinite().all():
            raise ValueError("x must be finite, got NaN or infinite values")
        data, pair = x.double(), cls(x.shape[1], latent_dim).to(x.device)
        variances, directions = torch.linalg.eigh(torch.cov(data.T, correction=0))
        noise = variances[:-latent_dim].mean().clamp(min=LEAST_NOISE)
        scale = (variances[-latent_dim:] - noise).clamp(min=0).sqrt()
        (linear,) = pair.p_x_given_z.net.children()
        assert isinstance(linear, nn.Linear)
        linear.weight.copy_(directions[:, -latent_dim:] * scale)
        linear.bias.copy_(data.mean(0))
        pair.p_x_given_z.raw_scale.copy_((noise.sqrt() - pair.p_x_given_z.min_scale).expm1().log())
        return pair

    def model(self, x: Tensor) -> None:
        """Z ~ N(0, I), x ~ N(Wz + b, σ²I)."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.p_z())
            pyro.sample("x", self.p_x_given_z(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """Z ~ q(z|x)."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.q_z_given_x(x))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log p(x), exactly.

        Args:
            x: data (..., d).

        Returns:
            Shape (...), nats.
        """
        weight, bias, variance = linear_gaussian(self.p_x_given_z)
        return dist.LowRankMultivariateNormal(bias, weight, variance.expand(len(bias))).log_prob(x)

    def posterior(self, x: Tensor) -> TorchDistribution:
        """p(z|x), exactly, for x of shape (..., d)."""
        return ExactPosterior(self.p_x_given_z)(x)


class ExactPosterior(nn.Module):
    """p(z|x) of a linear-Gaussian likelihood under z ~ N(0, I).

    Args:
        p_x_given_z: the likelihood, whose parameters it shares.
    """

    def __init__(self, p_x_given_z: ConditionalNormal) -> None:
        super().__init__()
        self._p_x_given_z = (p_x_given_z,)  # in a tuple: its parameters belong to the likelihood

    def forward(self, x: Tensor) -> TorchDistribution:
        """N(M⁻¹Wᵀ(x − b), σ²M⁻¹) for x of shape (..., d)."""
        weight, bias, variance = linear_gaussian(self._p_x_given_z[0])
        precision = weight.T @ weight / variance + torch.eye(weight.shape[1], device=weight.device)
        factor = torch.linalg.cholesky(precision)
        mean = torch.cholesky_solve(((x - bias) @ weight / variance).unsqueeze(-1), factor).squeeze(-1)
        return dist.MultivariateNormal(mean, precision_matrix=precision)


def linear_gaussian(p_x_given_z: ConditionalNormal) -> tuple[Tensor, Tensor, Tensor]:
    """W (d, k), b (d,) and σ² of a linear-Gaussian likelihood."""
    (linear,) = p_x_given_z.net.children()
    assert isinstance(linear, nn.Linear)
    _, scale = p_x_given_z.location_scale(torch.zeros_like(linear.weight[0]))
    return linear.weight, linear.bias, scale**2
