import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ppvae.distributions import ConditionalMultivariateNormal
from ppvae.nn import MLP


@pytest.mark.parametrize("k", [1, 2, 5])
def test_is_the_normal_of_its_mean_and_triangle(k):
    torch.manual_seed(0)
    net = MLP(3, (8,), k + k * (k + 1) // 2)
    context, x = torch.randn(4, 7, 3), torch.randn(4, 7, k)
    params, tril = net(context), torch.zeros(4, 7, k, k)
    place = k
    for i in range(k):
        for j in range(i + 1):
            tril[..., i, j] = params[..., place] if j < i else F.softplus(params[..., place]) + 0.01
            place += 1
    p = ConditionalMultivariateNormal(net, min_scale=0.01)(context)
    assert (p.batch_shape, p.event_shape) == ((4, 7), (k,))
    torch.testing.assert_close(p.mean, params[..., :k])
    torch.testing.assert_close(p.covariance_matrix, tril @ tril.mT)
    expected = dist.MultivariateNormal(params[..., :k], tril @ tril.mT).log_prob(x)
    torch.testing.assert_close(p.log_prob(x), expected, rtol=1e-4, atol=1e-3)


def test_draws_have_its_covariance_and_gradients():
    torch.manual_seed(0)
    family = ConditionalMultivariateNormal(MLP(3, (), 5))
    p = family(torch.randn(3))
    z = p.rsample((100_000,))
    torch.testing.assert_close(z.T.cov(), p.covariance_matrix, rtol=0.05, atol=0.02)
    z.square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in family.parameters())


def test_follows_the_dtype():
    p = ConditionalMultivariateNormal(MLP(3, (), 5)).double()(torch.randn(2, 3, dtype=torch.float64))
    assert p.log_prob(p.expand([4, 2]).sample()).dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ConditionalMultivariateNormal(len), TypeError, "net must be a torch.nn.Module"),
        (lambda: ConditionalMultivariateNormal(MLP(3, (), 6)), ValueError, r"net must return \(\.\.\., k .*got \(6,\)"),
        (lambda: ConditionalMultivariateNormal(MLP(3, (), (2, 5))), ValueError, r"net must return .*got \(2, 5\)"),
        (lambda: ConditionalMultivariateNormal(nn.Linear(3, 4))(torch.ones(3)), ValueError, r"net must .*got \(4,\)"),
        (lambda: ConditionalMultivariateNormal(MLP(3, (), 5), min_scale=0), ValueError, "min_scale .*, got 0"),
    ],
)
def test_errors_name_the_argument(make, error, message):
    with pytest.raises(error, match=message):
        make()
