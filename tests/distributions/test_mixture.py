import math

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.nn import functional as F

from ppvae.distributions import (
    ConditionalBernoulli,
    ConditionalMultivariateNormal,
    ConditionalNormal,
    FlowPosterior,
    MixturePrior,
    VampPrior,
)
from ppvae.models import VAE
from ppvae.nn import MLP

D, K, C = 6, 2, 5


class Scalar(nn.Module):
    """An encoder of a z without event dims."""

    def __init__(self):
        super().__init__()
        self.net = MLP(D, (), 2)

    def forward(self, x):
        loc, raw = self.net(x).unbind(-1)
        return dist.Normal(loc, F.softplus(raw))


ENCODERS = {
    "diagonal": lambda: ConditionalNormal(MLP(D, (8,), (2, K))),
    "full": lambda: ConditionalMultivariateNormal(MLP(D, (8,), 5)),
    "iaf": lambda: FlowPosterior(MLP(D, (8,), (3, K)), flow="iaf", hidden_dims=8),
    "planar": lambda: FlowPosterior(MLP(D, (8,), (3, K)), flow="planar", hidden_dims=8),
    "image": lambda: ConditionalNormal(MLP(D, (8,), (2, 1, 2, 2))),
    "scalar": Scalar,
}


def vamp(**options):
    torch.manual_seed(0)
    q_z_given_x = ConditionalNormal(MLP(D, (8,), (2, K)))
    return q_z_given_x, VampPrior(q_z_given_x, torch.rand(C, D), **options)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_vamp_is_the_average_of_the_posteriors(encoder):
    torch.manual_seed(0)
    q_z_given_x = ENCODERS[encoder]()
    p_z = VampPrior(q_z_given_x, torch.rand(C, D))
    p = p_z(torch.zeros(9, 3))
    assert p.batch_shape == ()
    for lead in ((), (7,), (3, 1, 7)):
        z = p.sample(lead)
        terms = [q_z_given_x(u).log_prob(z) for u in p_z.pseudo_inputs]
        expected = torch.stack(terms).logsumexp(0) - math.log(C)
        torch.testing.assert_close(p.log_prob(z), expected, rtol=1e-4, atol=1e-4)


def test_vamp_gradients_are_those_of_the_average():
    q_z_given_x, p_z = vamp()
    z, parameters = torch.randn(7, K), [p_z.pseudo, *q_z_given_x.parameters()]
    explicit = torch.stack([q_z_given_x(u).log_prob(z) for u in p_z.pseudo_inputs]).logsumexp(0).sum()
    expected = torch.autograd.grad(explicit, parameters)
    for a, b in zip(torch.autograd.grad(p_z().log_prob(z).sum(), parameters), expected, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_vamp_does_not_own_the_encoder():
    q_z_given_x, p_z = vamp()
    assert set(p_z.state_dict()) == {"pseudo"}
    vae = VAE(p_z, ConditionalBernoulli(MLP(K, (), D)), q_z_given_x)
    assert {key.split(".")[0] for key in vae.state_dict()} == {"p_z", "p_x_given_z", "q_z_given_x"}
    assert sum(key.startswith("p_z.") for key in vae.state_dict()) == 1


def test_vamp_pseudo_inputs_start_inside_where_they_can_learn():
    x = torch.tensor([[0.0, 1.0, 0.5], [-2.0, 3.0, 0.25]])
    encoder = ConditionalNormal(MLP(3, (), (2, K)))
    cut = VampPrior(encoder, x)
    torch.testing.assert_close(cut.pseudo_inputs, torch.tensor([[0.01, 0.99, 0.5], [0.01, 0.99, 0.25]]))
    cut.pseudo_inputs.sum().backward()
    assert torch.equal(cut.pseudo.grad, torch.ones(2, 3))
    assert torch.equal(VampPrior(encoder, x, bounds=None).pseudo_inputs, x)
    with torch.no_grad():
        cut.pseudo.copy_(x)
    assert torch.equal(cut.pseudo_inputs, x.clamp(0, 1))
    assert VampPrior(encoder, x, bounds=(-1, 3)).pseudo_inputs.min().item() == pytest.approx(-0.96)


def test_vamp_fixed_pseudo_inputs_are_no_parameters():
    _, p_z = vamp(learned=False)
    assert not list(p_z.parameters())
    assert set(p_z.state_dict()) == {"pseudo"}
    x = torch.randint(2, (C, D))
    assert torch.equal(VampPrior(ConditionalNormal(MLP(D, (), (2, K))), x, learned=False).pseudo_inputs, x)


def test_vamp_copies_the_data_that_it_starts_from():
    x = torch.full((C, D), 0.5)
    p_z = VampPrior(ConditionalNormal(MLP(D, (), (2, K))), x)
    x.zero_()
    assert torch.equal(p_z.pseudo_inputs, torch.full((C, D), 0.5))


def test_vamp_encodes_once_whatever_the_particles():
    q_z_given_x, p_z = vamp()
    vae = VAE(p_z, ConditionalBernoulli(MLP(K, (), D)), q_z_given_x)
    shapes = []
    q_z_given_x.register_forward_hook(lambda module, args, output: shapes.append(tuple(args[0].shape)))
    elbo = Trace_ELBO(num_particles=9, vectorize_particles=True, max_plate_nesting=1)
    elbo.differentiable_loss(vae.model, vae.guide, torch.rand(3, D).round())
    assert shapes == [(3, D), (C, D)]


def test_vamp_with_batch_norm_is_exact_in_evaluation_mode():
    torch.manual_seed(0)
    q_z_given_x = ConditionalNormal(MLP(D, (8,), (2, K), norm="batch", dropout=0.5))
    p_z, z = VampPrior(q_z_given_x, torch.rand(C, D)), torch.randn(7, K)
    running = {key: value.clone() for key, value in q_z_given_x.named_buffers()}
    p_z()
    assert any(not torch.equal(value, running[key]) for key, value in q_z_given_x.named_buffers())
    q_z_given_x.eval()
    expected = torch.stack([q_z_given_x(u).log_prob(z) for u in p_z.pseudo_inputs]).logsumexp(0) - math.log(C)
    torch.testing.assert_close(p_z().log_prob(z), expected)


@pytest.mark.parametrize("event_shape", [(), (2,), (1, 2, 2)])
def test_mixture_is_the_formula(event_shape):
    torch.manual_seed(0)
    p_z = MixturePrior(3, event_shape, min_scale=0.01)
    torch.testing.assert_close(p_z().component_distribution.stddev, torch.ones(3, *event_shape))
    with torch.no_grad():
        for parameter in p_z.parameters():
            parameter.normal_()
    z, scale = torch.randn(4, 7, *event_shape), F.softplus(p_z.raw_scale) + 0.01
    terms = [
        weight + dist.Normal(loc, s).to_event(len(event_shape)).log_prob(z)
        for weight, loc, s in zip(p_z.logits.log_softmax(0), p_z.loc, scale, strict=True)
    ]
    torch.testing.assert_close(p_z().log_prob(z), torch.stack(terms).logsumexp(0))


def test_mixture_learns_two_clusters():
    torch.manual_seed(0)
    p_z = MixturePrior(2, 1)
    z = torch.cat([torch.randn(300, 1) - 4, 0.5 * torch.randn(100, 1) + 4])
    optimizer = torch.optim.Adam(p_z.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        (-p_z().log_prob(z).mean()).backward()
        optimizer.step()
    order = p_z.loc.flatten().argsort()
    torch.testing.assert_close(p_z.loc.flatten()[order], torch.tensor([-4.0, 4.0]), rtol=0, atol=0.2)
    torch.testing.assert_close(p_z.logits.softmax(0)[order], torch.tensor([0.75, 0.25]), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MixturePrior(0, 2), ValueError, "num_components must be a whole number >= 1, got 0"),
        (lambda: MixturePrior(3, 0), ValueError, "event_shape must be .*, got 0"),
        (
            lambda: MixturePrior(3, 2, min_scale=0.0),
            ValueError,
            "min_scale must be a finite number > 0 and < 1",
        ),
        (lambda: VampPrior(len, torch.rand(C, D)), TypeError, "q_z_given_x must be a torch.nn.Module, got builtin"),
        (lambda: VampPrior(nn.Identity(), 500), TypeError, r"pseudo_inputs must be a torch.Tensor, got int"),
        (lambda: VampPrior(nn.Identity(), torch.rand(0, D)), ValueError, r"pseudo_inputs must be .* got \(0, 6\)"),
        (lambda: VampPrior(nn.Identity(), torch.tensor(1.0)), ValueError, r"pseudo_inputs must be .* got \(\)"),
        (lambda: VampPrior(nn.Identity(), torch.full((2, 2), math.nan)), ValueError, "pseudo_inputs must be finite"),
        (lambda: VampPrior(nn.Identity(), torch.rand(C, D), bounds=(1, 0)), ValueError, r"bounds must be .* \(1, 0\)"),
        (lambda: VampPrior(nn.Identity(), torch.rand(C, D))(), ValueError, r"batch shape \(5,\) .*, got Tensor"),
        (
            lambda: VampPrior(ConditionalNormal(MLP(D, (), (2, K)), event_dim=0), torch.rand(C, D))(),
            ValueError,
            r"q_z_given_x must return a distribution of batch shape \(5,\) .*, got \(5, 2\)",
        ),
    ],
)
def test_errors_name_the_argument(make, error, message):
    with pytest.raises(error, match=message):
        make()
