"""What the tests of models with several levels share: small pairs, and linear-Gaussian ones that are known exactly."""

import pyro.distributions as dist
import torch
from torch import nn

from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
from ppvae.models import HierarchicalVAE, LadderVAE, TopDownVAE
from ppvae.nn import MLP, ConcatInputs
from tests.models.linear_gaussian import affine

D, N = 6, 7


def net(inputs, hidden, out, **options):
    """A net of one input, or of several."""
    if len(inputs) == 1:
        return MLP(inputs[0], hidden, out, **options)
    return ConcatInputs(inputs, MLP(sum(inputs), hidden, out, **options))


def priors(dims, hidden=5, *, skip=False, **options):
    """The arguments that all models share: levels of these dims, from the data upwards."""
    above = [dims[i:] if skip else dims[i : i + 1] for i in range(len(dims))]
    return {
        "p_z": [
            *(ConditionalNormal(net(above[i + 1], (hidden,), (2, k), **options)) for i, k in enumerate(dims[:-1])),
            StandardNormal(dims[-1]),
        ],
        "p_x_given_z": ConditionalBernoulli(net(above[0], (hidden,), D, **options)),
        "skip": skip,
    }


def hierarchical(dims=(4, 3, 2), hidden=5, *, skip=False, beta=1.0, **options):
    """A pair with a bottom-up guide."""
    torch.manual_seed(0)
    below = (D, *dims)
    seen = [below[i::-1] if skip else below[i : i + 1] for i in range(len(dims))]
    q_z = [ConditionalNormal(net(seen[i], (hidden,), (2, k), **options)) for i, k in enumerate(dims)]
    return HierarchicalVAE(**priors(dims, hidden, skip=skip, **options), q_z=q_z, beta=beta)


def ladder(dims=(4, 3, 2), hidden=5, *, skip=False, beta=1.0, **options):
    """A pair whose guide goes down the model's path."""
    torch.manual_seed(0)
    d = [MLP(D if i == 0 else hidden, (hidden,), hidden, **options) for i in range(len(dims))]
    q_z_given_d = [ConditionalNormal(MLP(hidden, (), (2, k))) for k in dims]
    return LadderVAE(**priors(dims, hidden, skip=skip, **options), d=d, q_z_given_d=q_z_given_d, beta=beta)


def top_down(dims=(4, 3, 2), hidden=5, *, skip=False, beta=1.0, **options):
    """A pair whose guide draws the levels from the top, each given the data too."""
    torch.manual_seed(0)
    above = [dims[i:] if skip else dims[i : i + 1] for i in range(1, len(dims) + 1)]
    q_z = [ConditionalNormal(net((*above[i], D), (hidden,), (2, k), **options)) for i, k in enumerate(dims)]
    return TopDownVAE(**priors(dims, hidden, skip=skip, **options), q_z=q_z, beta=beta)


MODELS = {"hierarchical": hierarchical, "ladder": ladder, "top-down": top_down}


class LinearLevels:
    """zL ~ N(0, I), zi ~ N(W_i zi+1, s² I), x ~ N(W_0 z1 + b, s² I) with WᵀW = w² I: every guide can be exact.

    Args:
        num_levels: L.
        k: dims of every level.
    """

    def __init__(self, num_levels=3, k=2, d=4):
        random = torch.Generator().manual_seed(0)
        self.s, self.w, self.k, self.d = 0.7, 1.3, k, d
        shapes = [(d, k), *[(k, k)] * (num_levels - 1)]
        self.weight = [self.w * torch.linalg.qr(torch.randn(shape, generator=random))[0] for shape in shapes]
        self.bias = torch.randn(d, generator=random)

    def pieces(self):
        """The model."""
        likelihood, *maps = (affine(MLP(w.shape[1], (), w.shape[0]), w) for w in self.weight)
        with torch.no_grad():
            likelihood[0].bias.copy_(self.bias)
        p_z = [*(ConditionalNormal(m, scale=self.s) for m in maps), StandardNormal(self.k)]
        return {"p_z": p_z, "p_x_given_z": ConditionalNormal(likelihood, scale=self.s)}

    def hierarchical(self, width=1.0):
        """With its exact posterior for a guide, times `width`."""
        variance, q_z = 1.0, []
        for i, weight in reversed(list(enumerate(self.weight))):
            precision = 1 / variance + self.w**2 / self.s**2
            slope = weight.T / self.s**2 / precision
            shift = -slope @ self.bias if i == 0 else None
            q_z.insert(0, normal(slope, shift, width * precision**-0.5))
            variance = self.w**2 * variance + self.s**2  # of the level below
        return HierarchicalVAE(**self.pieces(), q_z=q_z)

    def ladder(self, width=1.0):
        """With its exact posterior for a guide, each level's own part of it times `width`."""
        variance, d, q_z_given_d = 0.0, [], []
        for i, weight in enumerate(self.weight):  # zi of x alone: the best linear estimate, and its variance
            slope = weight.T / self.w**2
            d.append(normal(slope, -slope @ self.bias if i == 0 else None, 1.0).net)
            variance = (variance + self.s**2) / self.w**2
            q_z_given_d.append(ConditionalNormal(nn.Identity(), scale=width * variance**0.5))
        top = torch.eye(self.k) / (1 + variance)
        q_z_given_d[-1] = normal(top, None, width * (variance / (1 + variance)) ** 0.5)
        return LadderVAE(**self.pieces(), d=d, q_z_given_d=q_z_given_d)

    def top_down(self, width=1.0):
        """With its exact posterior for a guide, each level's times `width`: the joint density, conditioned."""
        pieces, q_z = self.pieces(), []
        mean, covariance = joint(**pieces)
        x, *z = torch.arange(len(mean)).split([self.d, *[self.k] * len(self.weight)])
        for own, above in zip(z, [*z[1:], None], strict=True):
            inputs = (self.d,) if above is None else (self.k, self.d)
            seen = x if above is None else torch.cat([above, x])
            slope = torch.linalg.solve(covariance[seen][:, seen], covariance[seen][:, own]).T
            variance = (covariance[own] - slope @ covariance[seen])[:, own]  # a multiple of the identity
            shift = mean[own] - slope @ mean[seen]
            q_z.append(normal(slope, shift, width * variance[0, 0] ** 0.5, inputs=inputs))
        return TopDownVAE(**pieces, q_z=q_z)


EXACT = {"hierarchical": LinearLevels.hierarchical, "ladder": LinearLevels.ladder, "top-down": LinearLevels.top_down}


def normal(slope, shift, scale, *, inputs=None):
    """N(slope · c + shift, scale²), c one input or several."""
    inputs = slope.shape[1:] if inputs is None else inputs
    return ConditionalNormal(affine(net(inputs, (), len(slope)), slope, bias=shift), scale=float(scale))


@torch.no_grad()
def joint(p_z, p_x_given_z):
    """Mean and covariance of (x, z1, …, zL), in float64, of affine conditionals with fixed scales, skips or not."""
    k = p_z[-1].event_shape[0]
    mean, covariance = torch.zeros(k).double(), torch.eye(k).double()  # of all levels so far, the nearest first
    for conditional in (*reversed(p_z[:-1]), p_x_given_z):
        (layer,) = (module for module in conditional.modules() if isinstance(module, nn.Linear))
        weight = torch.zeros(layer.out_features, len(mean)).double()
        weight[:, : layer.in_features] = layer.weight
        cross = weight @ covariance
        own = cross @ weight.T + conditional.scale**2 * torch.eye(len(weight))
        mean = torch.cat([weight @ mean + layer.bias, mean])
        covariance = torch.cat([torch.cat([own, cross], 1), torch.cat([cross.T, covariance], 1)])
    return mean, covariance


def log_prob(pair, x):
    """Log p(x), (n,), in float64, of such a pair."""
    mean, covariance = joint(pair.p_z, pair.p_x_given_z)
    d = x.shape[-1]
    return dist.MultivariateNormal(mean[:d], covariance[:d, :d]).log_prob(x.double())
