"""The densities of a pair in coordinates without bounds, with what is marked for enumeration summed over."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppvae
from ppvae.evaluate import Annealed
from ppvae.sampling.posterior_draws import posterior_sampler
from ppvae.sampling.unconstrained import Unconstrained
from tests.sampling.test_enumeration import PARALLEL, LinearMixture, data


class OnlyTheModelHas(LinearMixture):
    """The same story with a guide that knows z alone."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", self.y(self.probs), infer=PARALLEL)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            c, d = self.line(y)
            pyro.sample("x", dist.Normal(c * z + d, self.s), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.1))


class Scaled(nn.Module):
    """z > 0 with a scale that depends on y: z ~ Exponential(1 + y), x ~ N(z, 1)."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.tensor([0.3, 0.7])))
            z = pyro.sample("z", dist.Exponential(1.0 + y))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.tensor([0.5, 0.5])), infer=PARALLEL)
            pyro.sample("z", dist.Gamma(torch.full_like(x, 2.0), 2.0 + y))


def of_z(pair, x, u):
    """Log Σ_y p(x, y, z) and log Σ_y q(y, z|x) of the line, written out."""
    z, values = u[..., 0].unsqueeze(-1), torch.arange(3)
    likelihood = dist.Normal(pair.c * z + pair.d, pair.s).log_prob(x.unsqueeze(-1))
    joint = (likelihood + pair.probs.log() + dist.Normal(0.0, 1.0).log_prob(z)).logsumexp(-1)
    if isinstance(pair, OnlyTheModelHas):
        return joint, dist.Normal(0.0, 1.1).log_prob(u[..., 0])
    variance = 1 / (1 + (pair.c / pair.s) ** 2)
    loc = variance * pair.c * (x.unsqueeze(-1) - pair.d) / pair.s**2
    q = dist.Normal(loc, pair.inflation * variance.sqrt()).log_prob(z) + pair.q(x).log()[..., values]
    return joint, q.logsumexp(-1)


@pytest.mark.parametrize("broadcasts", [True, False])
@pytest.mark.parametrize("make", [LinearMixture, OnlyTheModelHas])
def test_what_is_marked_is_summed_over(make, broadcasts):
    pair, x = make("wrong", inflation=1.3, broadcasts=broadcasts), data()
    with posterior_sampler(pair, (x,), summed=True) as posterior:
        space = Unconstrained(posterior)
        u, outside = space.draw(posterior, 4, "guide")
        joint, log_q = space.log_densities(posterior, u, "guide")
        of_prior = space.log_densities(posterior, u, "prior")[1]
        space.check_scores()
    expected = of_z(pair, x, u)
    assert space.latents == ("z",)
    assert u.shape == (4, len(x), 1)
    assert outside is None
    torch.testing.assert_close(joint, expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log_q, expected[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(of_prior, dist.Normal(0.0, 1.0).log_prob(u[..., 0]), rtol=1e-4, atol=1e-4)


def test_volume_counts_at_every_value():
    x = data()
    with posterior_sampler(Scaled(), (x,), summed=True) as posterior:
        space = Unconstrained(posterior)
        u, _ = space.draw(posterior, 5, "guide")
        joint, log_q = space.log_densities(posterior, u, "guide")
    z, rate = u[..., 0].exp().unsqueeze(-1), torch.tensor([1.0, 2.0])
    prior = dist.Exponential(rate).log_prob(z) + torch.tensor([0.3, 0.7]).log()
    likelihood = dist.Normal(z, 1.0).log_prob(x.unsqueeze(-1))
    guide = dist.Gamma(2.0, 1.0 + rate).log_prob(z) - torch.tensor(2.0).log()
    torch.testing.assert_close(joint, (prior + likelihood).logsumexp(-1) + u[..., 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log_q, guide.logsumexp(-1) + u[..., 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", ["guide", "prior"])
@pytest.mark.parametrize("make", [LinearMixture, OnlyTheModelHas])
def test_annealing_sums_over_them_too(make, start):
    pair, x = make("uniform", inflation=1.3), data()
    found = ppvae.log_marginal(pair, x, method=Annealed(128, num_temperatures=30, num_leapfrog=3, start=start))
    exact = pair.log_joint(x).double().logsumexp(-1).detach()
    assert float(((found.values - exact) / found.std_error).abs().max()) < 4
    assert bool((found.std_error < 0.2).all())


def test_a_model_whose_latents_are_all_summed_over_has_nothing_to_move():
    class Discrete(nn.Module):
        def model(self, x):
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Categorical(torch.tensor([0.3, 0.7])), infer=PARALLEL)
                pyro.sample("x", dist.Normal(y.float(), 1.0), obs=x)

        def guide(self, x):
            pass

    nothing = pytest.raises(ValueError, match="no latents but those that are summed over")
    with posterior_sampler(Discrete(), (data(),), summed=True) as posterior, nothing:
        Unconstrained(posterior)
