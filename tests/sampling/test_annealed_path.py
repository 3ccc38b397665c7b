"""The path of a pair in unconstrained coordinates: densities, volumes and gradients against closed forms."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

import ppvae
from ppvae.sampling.annealed_path import GeometricPath
from ppvae.sampling.posterior_draws import posterior_sampler
from tests.infer.pairs import TwoLatents, binary, small_vae
from tests.reference import (
    autoguide,
    beta_bernoulli,
    concatenating,
    gamma_poisson,
    hierarchy,
    linear_gaussian,
    masked_series,
    mixture,
    ppca,
    scaled,
)

REFERENCES = [linear_gaussian, ppca, scaled, hierarchy, gamma_poisson, beta_bernoulli, masked_series, concatenating]


@pytest.mark.parametrize("start", ["guide", "prior"])
@pytest.mark.parametrize("make", REFERENCES)
def test_the_ratio_is_the_importance_weight(make, start):
    reference = make()
    with posterior_sampler(reference.pair, reference.data) as c:
        path = GeometricPath(c, start, compile=False)
        latents = c.draw(4)[0]
        u = path.unconstrained(c, latents)
        point = path(c, u)
        likelihood, prior = c.log_joint(latents)
        log_q = sum(c.log_posterior(latents).values())
    expected = likelihood if start == "prior" else likelihood + sum(prior.values()) - log_q
    torch.testing.assert_close(point.log_ratio(), expected, rtol=1e-4, atol=1e-3)
    assert u.shape == (4, len(reference.data[0]), sum(z.value[0].numel() for z in latents.values()) // u.shape[1])


@pytest.mark.parametrize("start", ["guide", "prior"])
@pytest.mark.parametrize("make", [ppca, hierarchy, gamma_poisson, beta_bernoulli, masked_series, concatenating])
def test_gradients_are_those_of_the_densities(make, start):
    reference = make()
    pair, data = reference.pair, reference.data
    with posterior_sampler(pair, data, seed=1) as c:
        path = GeometricPath(c, start, compile=False)
        u, _ = path.draw(c, 3)
        direction = torch.randn_like(u)
        point, width = path(c, u), 1e-6 if u.dtype == torch.float64 else 1e-2
        above, below = path(c, u + width * direction), path(c, u - width * direction)
    for log_prob, gradient in (("log_start", "grad_start"), ("log_joint", "grad_joint")):
        slope = (getattr(above, log_prob) - getattr(below, log_prob)) / (2 * width)
        torch.testing.assert_close(slope, (getattr(point, gradient) * direction).sum(-1), rtol=2e-2, atol=2e-2)


def test_volume_of_a_positive_and_of_a_bounded_latent():
    reference = gamma_poisson()
    (x,) = reference.data
    with posterior_sampler(reference.pair, (x,)) as c:
        path = GeometricPath(c, "guide", compile=False)
        u = torch.randn(3, len(x), 1)
        point, z = path(c, u), u[..., 0].exp()
    expected = dist.Gamma(2.0, 0.5).log_prob(z) + dist.Poisson(z).log_prob(x) + z.log()
    torch.testing.assert_close(point.log_joint, expected)
    torch.testing.assert_close(point.log_start, dist.Gamma(0.9 * (2.0 + x), 1.2).log_prob(z) + z.log())
    reference = beta_bernoulli()
    with posterior_sampler(reference.pair, reference.data) as c:
        path = GeometricPath(c, "prior", compile=False)
        u = torch.randn(3, len(c), 1)
        point, z = path(c, u), u[..., 0].sigmoid()
    torch.testing.assert_close(point.log_start, dist.Beta(2.0, 3.0).log_prob(z) + (z * (1 - z)).log())


def test_what_is_masked_counts_neither_in_density_nor_in_volume():
    class Masked(nn.Module):
        def model(self, x, mask):
            with pyro.plate("data", len(x)), pyro.plate("inner", 2, dim=-2):
                with poutine.mask(mask=mask.T):
                    a = pyro.sample("a", dist.Gamma(torch.tensor(2.0), 1.0))
                b = pyro.sample("b", dist.Gamma(torch.tensor(2.0), 1.0).mask(mask.T))
                pyro.sample("x", dist.Poisson(a + b), obs=x.T)

        def guide(self, x, mask):
            with pyro.plate("data", len(x)), pyro.plate("inner", 2, dim=-2):
                with poutine.mask(mask=mask.T):
                    pyro.sample("a", dist.Gamma(torch.tensor(3.0), 1.0))
                pyro.sample("b", dist.Gamma(torch.tensor(3.0), 1.0).mask(mask.T))

    torch.manual_seed(0)
    x, mask = torch.ones(7, 2), torch.rand(7, 2) > 0.5
    with posterior_sampler(Masked(), (x, mask)) as c:
        path = GeometricPath(c, "guide", compile=False)
        u = torch.randn(3, 7, 4)
        point = path(c, u)
    inside = mask.repeat(1, 2)
    log_q = dist.Gamma(3.0, 1.0).log_prob(u.exp()) + u
    torch.testing.assert_close(point.log_start, torch.where(inside, log_q, 0.0).sum(-1))
    assert bool((point.grad_start[~inside.expand(3, 7, 4)] == 0).all())
    assert bool((point.grad_start[inside.expand(3, 7, 4)] != 0).all())


# Compiled.


@pytest.mark.usefixtures("with_and_without_inductor")
@pytest.mark.parametrize(("pair", "start"), [(small_vae(), "guide"), (TwoLatents(), "prior")])
def test_compiled_densities_are_the_eager_ones(pair, start):
    with posterior_sampler(pair, (binary(9),)) as c:
        eager, compiled = (GeometricPath(c, start, compile=compile) for compile in (False, True))
        for seed in range(3):
            torch.manual_seed(seed)
            u = eager.draw(c, 4)[0] + 0.5
            a, b = eager(c, u), compiled(c, u)
            for name, value in vars(a).items():
                torch.testing.assert_close(getattr(b, name), value, rtol=1e-4, atol=1e-4)
        assert compiled._compiled.num_graphs == 1


def test_densities_that_come_out_differently_run_eagerly(monkeypatch):
    reference = linear_gaussian()
    with posterior_sampler(reference.pair, reference.data) as c:
        path = GeometricPath(c, "guide", compile=True)
        monkeypatch.setattr("torch._inductor.compile", lambda graph, *_: lambda *args: [t + 1 for t in graph(*args)])
        u, _ = path.draw(c, 3)
        first = path(c, u)
        with pytest.warns(UserWarning, match="runs eagerly: compiled, log of the start differs"):
            points = [path(c, u) for _ in range(4)]
        assert all(torch.equal(point.log_joint, first.log_joint) for point in points)


# What cannot be annealed.


def raised(pair, data, start="guide"):
    with posterior_sampler(pair, data) as c:
        GeometricPath(c, start, compile=False)


@pytest.mark.parametrize("start", ["guide", "prior"])
def test_discrete_latents_are_named(start):
    reference = mixture()
    with pytest.raises(ValueError, match="latent 'y' is discrete"):
        raised(reference.pair, reference.data, start)


def normal_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


def planar_guide(x):
    torch.manual_seed(0)
    flow = dist.transforms.Planar(2)
    with pyro.plate("data", len(x)):
        base = dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1)
        pyro.sample("z", dist.TransformedDistribution(base, [flow]))


def point_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Delta(torch.randn(*x.shape, 2), event_dim=1))


@pytest.mark.parametrize(
    ("guide", "message"), [(planar_guide, r'cannot score .*: use start="prior"'), (point_guide, "and no density")]
)
def test_a_guide_without_densities_elsewhere(guide, message):
    pair = ppvae.Pair(normal_model, guide)
    with pytest.raises(ValueError, match=message):
        raised(pair, (torch.randn(9),))
    raised(pair, (torch.randn(9),), "prior")


def test_an_autoguide_is_started_from_the_prior():
    reference = autoguide()
    with pytest.raises(ValueError, match=r'use start="prior"'):
        raised(reference.pair, reference.data)
    raised(reference.pair, reference.data, "prior")


def test_other_errors():
    reference = linear_gaussian()
    with pytest.raises(ValueError, match=r'start must be "guide", "prior" or "adaptive", got \'posterior\''):
        raised(reference.pair, reference.data, "posterior")

    def direction(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.ProjectedNormal(torch.zeros(3)))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.ProjectedNormal(torch.ones(3)))

    with pytest.raises(ValueError, match="support of the latent 'z'"):
        raised(ppvae.Pair(direction, guide), (torch.randn(9),))

    def alone(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(()), 1.0), obs=x)

    with pytest.raises(ValueError, match="no latents"):
        raised(ppvae.Pair(alone, lambda x: None), (torch.randn(9),))
