import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
from ppvae.distributions.product import precision_weighted
from ppvae.nn import MLP


@pytest.mark.parametrize("event_shape", [(), (3,), (2, 3)])
def test_density_is_the_normalised_product(event_shape):
    """Log p + log q − log of the product is one constant, the log density of the difference of the means."""
    torch.manual_seed(0)
    dims = len(event_shape)
    p, q = (dist.Normal(torch.randn(5, *event_shape), torch.rand(5, *event_shape) + 0.2).to_event(dims) for _ in "pq")
    z = torch.randn(7, 5, *event_shape)
    product = precision_weighted(p, q)
    assert (product.batch_shape, product.event_shape) == ((5,), event_shape)
    difference = dist.Normal(p.mean, (p.variance + q.variance).sqrt()).to_event(dims).log_prob(q.mean)
    torch.testing.assert_close(p.log_prob(z) + q.log_prob(z), product.log_prob(z) + difference)


def test_is_symmetric_and_narrower_than_both():
    p, q = dist.Normal(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0])), dist.Normal(torch.ones(2), 0.5)
    a, b = precision_weighted(p, q), precision_weighted(q, p)
    torch.testing.assert_close(a.mean, torch.tensor([0.8, 1.0]))
    torch.testing.assert_close(a.variance, torch.tensor([0.2, 1 / 4.25]))
    torch.testing.assert_close((a.mean, a.stddev), (b.mean, b.stddev))
    assert (a.stddev < p.stddev).all()
    assert (a.stddev < q.stddev).all()


def test_leading_dims_broadcast():
    p_z = ConditionalNormal(MLP(2, (4,), (2, 3)))
    p, q = p_z(torch.randn(5, 1, 7, 2)), p_z(torch.randn(4, 7, 2))
    product = precision_weighted(p, q)
    assert (product.batch_shape, product.event_shape) == ((5, 4, 7), (3,))
    assert precision_weighted(StandardNormal(3)(), q).rsample((6,)).shape == (6, 4, 7, 3)
    one = precision_weighted(p_z(torch.zeros(2)), dist.Normal(torch.zeros(3), torch.tensor(0.5)).to_event(1))
    assert one.batch_shape == ()


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1e4, 1e30])
def test_scales_of_any_size(scale):
    """Reciprocals of their squares would be zero or infinite in float32."""
    loc = torch.tensor([0.0, 4.0], requires_grad=True)
    raw = torch.tensor([1.0, 1.0], requires_grad=True)
    product = precision_weighted(*(dist.Normal(m, scale * s) for m, s in zip(loc, raw, strict=True)))
    torch.testing.assert_close((product.mean, product.stddev / scale), (torch.tensor(2.0), torch.tensor(0.5**0.5)))
    (product.mean + product.stddev).backward()
    assert loc.grad.isfinite().all()
    assert raw.grad.isfinite().all()


def test_far_wider_than_the_other_it_changes_nothing():
    torch.manual_seed(0)
    p, wide = dist.Normal(torch.randn(4), torch.rand(4) + 0.1).to_event(1), dist.Normal(torch.zeros(4), 1e6).to_event(1)
    assert float(kl_divergence(precision_weighted(p, wide), p)) < 1e-6


def test_errors():
    normal = StandardNormal(3)()
    for other in (ConditionalBernoulli(MLP(1, (), 3))(torch.zeros(1)), dist.Laplace(torch.zeros(3), 1.0).to_event(1)):
        with pytest.raises(TypeError, match="q must be a diagonal normal distribution, got Independent"):
            precision_weighted(normal, other)
        with pytest.raises(TypeError, match="p must be a diagonal normal distribution, got Independent"):
            precision_weighted(other, normal)
    with pytest.raises(ValueError, match=r"the same event shape, got \(3,\), \(1,\)"):
        precision_weighted(normal, StandardNormal(1)())
