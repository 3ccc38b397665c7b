import math

import pytest
import torch
from pyro.distributions import transforms
from pyro.distributions.conditional import ConditionalComposeTransformModule
from torch import nn
from torch.autograd.functional import jacobian
from torch.nn import functional as F

from ppvae.distributions import FlowPosterior, FlowPrior
from ppvae.nn import MLP, Reshape

D, K = 3, 4


def push(flow, value):
    for transform in flow.transforms:
        value = transform(value)
    return value


@pytest.mark.parametrize("flow", ["iaf", "planar", "householder", "spline"])
def test_posterior_is_the_normal_of_the_net_pushed_by_its_context(flow):
    torch.manual_seed(0)
    params = torch.randn(7, 3, K)
    posterior = FlowPosterior(MLP(D, (), (3, K)), flow=flow, hidden_dims=8, min_scale=0.01)
    posterior.net = nn.Identity()
    q = posterior(params)
    torch.testing.assert_close(q.base_dist.mean, params[:, 0])
    torch.testing.assert_close(q.base_dist.stddev, F.softplus(params[:, 1]) + 0.01)
    other = posterior(torch.cat([params[:, :2], torch.randn(7, 1, K)], 1))
    z = push(q, q.base_dist.mean)
    leaf = params.clone().requires_grad_()
    posterior(leaf).log_prob(posterior(leaf).rsample()).sum().backward()
    assert (leaf.grad.abs().amax((0, 2)) > 0).all()
    assert ((z - push(other, q.base_dist.mean)).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("flow", ["iaf", "spline"])
def test_posterior_is_autoregressive_in_alternate_orders(flow):
    torch.manual_seed(0)
    q = FlowPosterior(MLP(D, (), (3, K)), flow=flow, hidden_dims=16)(torch.randn(D))
    first, second = (jacobian(transform, 0.5 * torch.randn(K)) for transform in q.transforms)
    for triangle in (first, second.flip(0, 1)):
        assert torch.equal(triangle, triangle.tril())
        assert (triangle.tril(-1).sum(0)[:-1] != 0).all()


def test_householder_turns_the_normal():
    torch.manual_seed(0)
    q = FlowPosterior(MLP(D, (), (3, K)), flow="householder", num_flows=3)(torch.randn(D))
    rotation = jacobian(lambda value: push(q, value), torch.randn(K))
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(K))
    covariance = rotation @ q.base_dist.variance.diag() @ rotation.T
    normal = torch.distributions.MultivariateNormal(rotation @ q.base_dist.mean, covariance)
    z = torch.randn(7, K)
    torch.testing.assert_close(q.log_prob(z), normal.log_prob(z), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("flow", ["maf", "spline"])
def test_prior_runs_its_nets_once_to_score_and_once_a_dimension_to_draw(flow):
    torch.manual_seed(0)
    p_z, runs = FlowPrior(K, flow=flow, num_flows=1, hidden_dims=8), []
    (net,) = (module for module in p_z.modules() if type(module).__name__ == "ConditionalAutoRegressiveNN")
    net.register_forward_hook(lambda *_: runs.append(1))
    p_z().log_prob(torch.randn(7, K))
    assert len(runs) == 1
    p_z().sample((7,))
    assert len(runs) == 1 + K


def test_prior_follows_the_dtype():
    p_z = FlowPrior(K, flow="spline", hidden_dims=8).double()
    z = p_z().sample((7,))
    assert z.dtype == p_z().log_prob(z.clone()).dtype == torch.float64


def test_compositions_are_taken_apart():
    torch.manual_seed(0)
    parts = [transforms.conditional_affine_coupling(K, 2 * K, [8]), transforms.affine_coupling(K, hidden_dims=[8])]
    net, x, z = MLP(D, (), (4, K)), torch.randn(7, D), torch.randn(7, K)
    whole = FlowPosterior(net, flow=[ConditionalComposeTransformModule(parts)])
    apart = FlowPosterior(net, flow=parts)
    assert len(list(whole.parameters())) == len(list(apart.parameters()))
    assert torch.equal(whole(x).log_prob(z), apart(x).log_prob(z))


def test_validates_its_values():
    with pytest.raises(ValueError, match="to be within the support"):
        FlowPrior(K)().log_prob(torch.full((K,), math.nan))


def posterior(net=None, **options):
    return FlowPosterior(MLP(D, (), (3, K)) if net is None else net, **options)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: posterior(len), TypeError, "net must be a torch.nn.Module"),
        (lambda: posterior(nn.Linear(D, 12)), ValueError, r"out_shape \(P, k\) with P of at least 3, got None"),
        (lambda: posterior(MLP(D, (), (2, K))), ValueError, r"P of at least 3, got \(2, 4\)"),
        (lambda: posterior(MLP(D, (), 12)), ValueError, r"P of at least 3, got \(12,\)"),
        (lambda: posterior(flow="maf"), ValueError, "flow must be .* iaf, planar, householder, spline; got 'maf'"),
        (lambda: posterior(flow=[]), ValueError, "flow must have at least one transform"),
        (lambda: posterior(flow=transforms.Planar(K)), TypeError, "flow must be a name or a sequence .*, got Planar"),
        (lambda: posterior(flow=[nn.Identity()]), TypeError, "flow must hold transforms .*, got a Identity"),
        (lambda: posterior(num_flows=0), ValueError, "num_flows must be a whole number >= 1, got 0"),
        (lambda: posterior(hidden_dims=3), ValueError, "hidden_dims must be widths of at least 4 for this flow, got 3"),
        (lambda: posterior(hidden_dims=()), ValueError, r"hidden_dims must be widths .*, got \(\)"),
        (lambda: posterior(min_scale=0), ValueError, "min_scale must be a finite number > 0, got 0"),
        (lambda: FlowPrior(0), ValueError, "latent_dim must be a whole number >= 1, got 0"),
        (lambda: FlowPrior(K, flow="iaf"), ValueError, "flow must be transforms or one of maf, spline; got 'iaf'"),
        (lambda: FlowPrior(K, hidden_dims="128"), ValueError, "hidden_dims must be a positive int or a sequence"),
    ],
)
def test_errors_name_the_argument(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_net_whose_last_module_declares_its_shape_will_do():
    net = nn.Sequential(nn.Linear(D, 3 * K), Reshape(3 * K, (3, K)))
    assert FlowPosterior(net)(torch.zeros(7, D)).rsample().shape == (7, K)


def test_the_net_is_held_to_its_shape():
    piece = posterior()
    piece.net = MLP(D, (), (K, 3))
    with pytest.raises(ValueError, match=r"net must return \(\.\.\., 3, \*event_shape\)"):
        piece(torch.zeros(7, D))


@pytest.mark.parametrize(
    ("dims", "transform"),
    [(4, transforms.ReshapeTransform((4,), (2, 2))), (3, transforms.CorrCholeskyTransform())],
    ids=["reshape", "cholesky"],
)
def test_transforms_that_change_the_dims_of_an_event(dims, transform):
    torch.manual_seed(0)
    p_z = FlowPrior(dims, flow=[transforms.AffineTransform(0.0, 2.0), transform])()
    base = torch.distributions.Normal(torch.zeros(dims), 1.0)
    expected = torch.distributions.TransformedDistribution(
        torch.distributions.Independent(base, 1), [transforms.AffineTransform(0.0, 2.0), transform]
    )
    z = p_z.sample((5,))
    assert p_z.log_prob(z).shape == (5,)
    torch.testing.assert_close(p_z.log_prob(z), expected.log_prob(z), rtol=1e-4, atol=1e-4)
