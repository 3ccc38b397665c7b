"""A size that was not measured is a latent like others: x_j ~ Poisson(l r_j), l ~ LogNormal, against a quadrature."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import ppvae
from ppvae.distributions import ConditionalPoisson
from ppvae.nn import MLP

LOC, SCALE = 2.0, 0.7


class Sized(nn.Module):
    """l ~ LogNormal, z ~ N(0, I), x ~ Poisson(l exp(f(z)))."""

    def __init__(self):
        super().__init__()
        self.p_x_given_zl = ConditionalPoisson(MLP(2, (8,), 5), sized=True)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1e-6).to_event(1))
            size = pyro.sample("l", dist.LogNormal(LOC, SCALE))
            pyro.sample("x", self.p_x_given_zl(z, size), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1e-6).to_event(1))
            pyro.sample("l", dist.LogNormal((x.sum(-1) + 1).log() - self.log_rate().logsumexp(-1), 0.5))

    def log_rate(self):
        return self.p_x_given_zl.net(torch.zeros(2))


def test_log_p_is_the_integral_over_the_size():
    torch.manual_seed(0)
    pair = Sized()
    with torch.no_grad():
        rate = pair.log_rate().double().exp()
        x = torch.poisson(torch.tensor([[3.0], [10.0], [40.0]]) * rate.float())
        log_size = torch.linspace(LOC - 8 * SCALE, LOC + 8 * SCALE, 40_001, dtype=torch.float64)
        joint = dist.Poisson(log_size.exp()[:, None, None] * rate).log_prob(x.double()).sum(-1)
        joint = joint + dist.Normal(LOC, SCALE).log_prob(log_size)[:, None]
        exact = joint.logsumexp(0) + (log_size[1] - log_size[0]).log()
    estimate = ppvae.log_marginal(pair, x, num_samples=20_000)
    assert float(estimate.pareto_k.max()) < 0.7
    assert float(((estimate.values - exact) / estimate.std_error).abs().max()) < 4
    assert float(estimate.std_error.max()) < 0.02
