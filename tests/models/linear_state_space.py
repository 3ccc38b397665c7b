"""A linear-Gaussian state-space model in double precision: its exact posterior as a guide, and a Kalman filter."""

import torch
from pyro import distributions as dist
from torch import nn

from ppvae.distributions import ConditionalNormal, MarkovPosterior
from ppvae.models import DeepMarkovModel
from ppvae.nn.sequence import within

D, K, Q, R = 3, 2, 0.625, 0.375  # scales that float32 holds exactly


class Start(nn.Module):
    """p(z_1), the transition from zero."""

    def forward(self):
        return dist.Normal(torch.zeros(K).double(), Q).to_event(1)


class Summary(nn.Module):
    """What x_t, ..., x_L say of z_t, a normal in its natural parameters (..., T, K + K²): a recursion backwards.

    exp(−½ zᵀ Λ_t z + ηᵀ_t z) ∝ p(x_t, ..., x_L | z_t = z), with Λ = η = 0 after the length.
    """

    def __init__(self, transition, emission):
        super().__init__()
        self.transition, self.emission = transition, emission

    def forward(self, x, lengths=None):
        a, c, eye = self.transition.weight, self.emission.weight, torch.eye(K).double()
        lengths = torch.full(x.shape[:-2], x.shape[-2]) if lengths is None else lengths
        there = within(lengths, x.shape[-2]).double()
        precision = torch.zeros(*x.shape[:-2], K, K).double()
        shift = torch.zeros(*x.shape[:-2], K).double()
        found = []
        for t in reversed(range(x.shape[-2])):
            # To come, given the state before: noise of variance Q² between the two.
            through = torch.linalg.inv(eye + Q**2 * precision)
            shift = torch.einsum("ji,...jk,...k->...i", a, through.mT, shift)
            precision = a.T @ precision @ through @ a
            seen = there[..., t, None]
            precision = precision + seen[..., None] * (c.T @ c / R**2)
            shift = shift + seen * ((x[..., t, :] - self.emission.bias) @ c / R**2)
            found.append(torch.cat([shift, precision.flatten(-2)], -1))
        return torch.stack(found[::-1], -2)


class Step(nn.Module):
    """p(z_t | z_{t-1}, x_t, ..., x_L), exactly; `spread` makes it wider than it is."""

    def __init__(self, transition, spread):
        super().__init__()
        self.transition, self.spread = transition, spread

    def forward(self, z, h):
        shift, precision = h[..., :K], h[..., K:].unflatten(-1, (K, K))
        covariance = torch.linalg.inv(torch.eye(K).double() / Q**2 + precision)
        mean = (covariance @ (self.transition(z) / Q**2 + shift).unsqueeze(-1)).squeeze(-1)
        covariance = self.spread**2 * (covariance + covariance.mT) / 2
        return dist.MultivariateNormal(mean, covariance.expand(*mean.shape, K))


def linear_model(spread=1.0, seed=0):
    """The pair, with the exact posterior as its guide where `spread` is one."""
    torch.manual_seed(seed)
    transition, emission = nn.Linear(K, K, bias=False).double(), nn.Linear(K, D).double()
    posterior = MarkovPosterior(Summary(transition, emission), Step(transition, spread), K).double()
    posterior.z_0.requires_grad_(False)
    return DeepMarkovModel(
        Start(), ConditionalNormal(transition, scale=Q), ConditionalNormal(emission, scale=R), posterior
    ).double()


def kalman(pair, x, lengths):
    """Log p(x) of each series, by the filter."""
    a, (c, b) = pair.p_z_given_z.net.weight.detach(), (p.detach() for p in pair.p_x_given_z.net.parameters())
    total = []
    for row, length in zip(x, lengths.tolist(), strict=True):
        mean, covariance, log_p = torch.zeros(K).double(), Q**2 * torch.eye(K).double(), 0.0
        for t in range(length):
            if t:
                mean, covariance = a @ mean, a @ covariance @ a.T + Q**2 * torch.eye(K).double()
            spread = c @ covariance @ c.T + R**2 * torch.eye(D).double()
            expected = c @ mean + b
            log_p = log_p + dist.MultivariateNormal(expected, spread).log_prob(row[t])
            gain = covariance @ c.T @ torch.linalg.inv(spread)
            mean, covariance = mean + gain @ (row[t] - expected), covariance - gain @ c @ covariance
        total.append(log_p)
    return torch.stack(total)


def series(n=6, num_steps=7, seed=0):
    """Series of the model, and lengths from 1 to all of them."""
    torch.manual_seed(seed)
    x = linear_model().sample(n, num_steps=num_steps)
    return x, torch.tensor([num_steps, 1, *torch.randint(1, num_steps + 1, (n - 2,)).tolist()])
