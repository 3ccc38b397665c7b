"""Transforms that are no modules, inside a module: their tensors are its own."""

import torch
from pyro.distributions import transforms
from torch import nn

from ppvae.distributions import FlowPosterior
from ppvae.nn import MLP

D, K, N = 6, 2, 7


def random_and_plain():
    """Transforms that are no modules, with tensors of their own."""
    lower = torch.eye(K) + torch.tril(torch.randn(K, K), -1)
    flow = [transforms.Permute(torch.randperm(K)), transforms.LowerCholeskyAffine(torch.randn(K), lower)]
    return FlowPosterior(MLP(D, (8,), (2, K)), flow=flow)


def test_tensors_of_plain_transforms_are_saved_and_converted():
    x, z = torch.randn(N, D), torch.randn(N, K)
    torch.manual_seed(0)
    first = random_and_plain()
    torch.manual_seed(1)
    second = random_and_plain()
    assert not torch.equal(first(x).log_prob(z), second(x).log_prob(z))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x).log_prob(z), second(x).log_prob(z))
    double = first(x).log_prob(z).double()
    torch.testing.assert_close(first.double()(x.double()).log_prob(z.double()), double, rtol=1e-4, atol=1e-4)


def test_a_parameter_of_a_plain_transform_is_trained():
    shift = nn.Parameter(torch.zeros(K))
    posterior = FlowPosterior(MLP(D, (8,), (2, K)), flow=[transforms.AffineTransform(shift, 2.0, event_dim=1)])
    posterior(torch.randn(N, D)).rsample().sum().backward()
    assert any(p is shift for p in posterior.parameters())
    assert torch.equal(shift.grad, torch.full((K,), float(N)))
