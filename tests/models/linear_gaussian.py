"""Semi-supervised models of which every density is known: three classes, and normal distributions that are affine."""

import math

import pyro.distributions as dist
import torch
from torch import nn

from ppvae.distributions import ConditionalCategorical, ConditionalNormal, StandardNormal
from ppvae.models import SSVAE, VAE, StackedSSVAE
from ppvae.nn import MLP, ConditionalMLP, OneHot
from tests.models.by_hand import C


class Prior(nn.Module):
    """Fixed probabilities of the classes, not equal."""

    def __init__(self):
        super().__init__()
        self.register_buffer("probs", torch.tensor([0.5, 0.3, 0.2]), persistent=False)

    def forward(self):
        return dist.Categorical(self.probs)


@torch.no_grad()
def affine(net, *weights, bias=None):
    """Gives the one affine layer of a net these weights, side by side."""
    (layer,) = (module for module in net.modules() if isinstance(module, nn.Linear))
    layer.weight.copy_(torch.cat(weights, -1))
    layer.bias.zero_() if bias is None else layer.bias.copy_(bias)
    return net


class LinearGaussian:
    """y ~ p(y), z ~ N(m_y, I), x ~ N(Wz + b_y, σ² I) with WᵀW = w² I: q(z|x,y) and q(y|x) in closed form.

    Args:
        d: dims of x.
        k: dims of z.
        sees_label: whether p(z|y) depends on y.
    """

    def __init__(self, d=5, k=2, *, sees_label=False, seed=0):
        random = torch.Generator().manual_seed(seed)
        self.d, self.k, self.sigma, self.w, self.sees_label = d, k, 0.7, 1.5, sees_label
        self.weight = self.w * torch.linalg.qr(torch.randn(d, k, generator=random))[0]
        self.shift = torch.randn(C, d, generator=random)  # b_y
        self.centre = torch.randn(C, k, generator=random) * sees_label  # m_y
        self.mean = self.centre @ self.weight.T + self.shift  # E[x|y]
        self.covariance = self.weight @ self.weight.T + self.sigma**2 * torch.eye(d)  # Cov[x|y]

    def log_joint(self, x):
        """Log p(x, y), (n, c), in float64."""
        p_x = dist.MultivariateNormal(self.mean.double(), self.covariance.double())
        return p_x.log_prob(x.double().unsqueeze(-2)) + Prior().probs.double().log()

    def pair(self, *, alpha=1.0):
        """The model with its exact posterior for a guide."""
        total = self.w**2 + self.sigma**2
        prior = ConditionalNormal(nn.Sequential(OneHot(C), affine(MLP(C, (), self.k), self.centre.T)), scale=1.0)
        likelihood = affine(ConditionalMLP(self.k, C, (), self.d, embed=OneHot(C)), self.weight, self.shift.T)
        of_y = (self.sigma**2 * self.centre - self.shift @ self.weight).T / total
        posterior = affine(ConditionalMLP(self.d, C, (), self.k, embed=OneHot(C)), self.weight.T / total, of_y)
        natural = torch.linalg.solve(self.covariance, self.mean.T).T
        log_odds = Prior().probs.log() - 0.5 * (natural * self.mean).sum(-1)
        return SSVAE(
            p_y=Prior(),
            p_z=prior if self.sees_label else StandardNormal(self.k),
            p_x_given_zy=ConditionalNormal(likelihood, scale=self.sigma),
            q_y_given_x=ConditionalCategorical(affine(MLP(self.d, (), C), natural, bias=log_odds), num_classes=C),
            q_z_given_xy=ConditionalNormal(posterior, scale=self.sigma / math.sqrt(total)),
            alpha=alpha,
        )


class LinearStack:
    """x ~ N(V z1 + c, s² I) on the code z1 of a `LinearGaussian`; the guide knows all but q(z1|x), which is wide."""

    def __init__(self, d=6):
        random = torch.Generator().manual_seed(5)
        self.code = LinearGaussian(d=3, k=2, sees_label=True)
        self.d, self.s = d, 0.6
        self.basis = 1.3 * torch.linalg.qr(torch.randn(d, 3, generator=random))[0]
        self.offset = torch.randn(d, generator=random)

    def log_joint(self, x):
        """Log p(x, y), (n, c), in float64."""
        mean = self.code.mean @ self.basis.T + self.offset
        covariance = self.basis @ self.code.covariance @ self.basis.T + self.s**2 * torch.eye(self.d)
        p_x = dist.MultivariateNormal(mean.double(), covariance.double())
        return p_x.log_prob(x.double().unsqueeze(-2)) + Prior().probs.double().log()

    def pair(self, *, alpha=1.0):
        """The model, with q(z1|x) near the likelihood of z1."""
        precision = 1.3**2 / self.s**2 + 0.3
        slope = self.basis.T / self.s**2 / precision
        encoder = affine(MLP(self.d, (), 3), slope, bias=-slope @ self.offset)
        m1 = VAE(
            p_z=StandardNormal(3),
            p_x_given_z=ConditionalNormal(affine(MLP(3, (), self.d), self.basis, bias=self.offset), scale=self.s),
            q_z_given_x=ConditionalNormal(encoder, scale=1.2 * precision**-0.5),
        )
        return StackedSSVAE(m1, self.code.pair(alpha=alpha))
