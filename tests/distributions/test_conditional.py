import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ppvae.distributions import (
    ConditionalBernoulli,
    ConditionalCategorical,
    ConditionalContinuousBernoulli,
    ConditionalDiscretizedLogistic,
    ConditionalNormal,
)
from ppvae.nn import MLP

FAMILIES = {
    "normal": lambda: ConditionalNormal(MLP(3, (5,), (2, 4))),
    "normal-learned": lambda: ConditionalNormal(MLP(3, (5,), (2, 4)), scale="learned"),
    "normal-fixed": lambda: ConditionalNormal(MLP(3, (5,), 4), scale=0.3),
    "normal-scalar": lambda: ConditionalNormal(MLP(3, (5,), 2)),
    "bernoulli": lambda: ConditionalBernoulli(MLP(3, (5,), (1, 2, 2))),
    "continuous-bernoulli": lambda: ConditionalContinuousBernoulli(MLP(3, (5,), 4)),
    "label": lambda: ConditionalCategorical(MLP(3, (5,), 6), num_classes=6),
    "tokens": lambda: ConditionalCategorical(MLP(3, (5,), (6, 4)), num_classes=6),
    "pixels": lambda: ConditionalCategorical(MLP(3, (5,), (6, 1, 2, 2)), num_classes=6),
    "logistic": lambda: ConditionalDiscretizedLogistic(MLP(3, (5,), (1, 2, 2))),
    "logistic-conditional": lambda: ConditionalDiscretizedLogistic(MLP(3, (5,), (2, 4)), scale="conditional"),
    "logistic-fixed": lambda: ConditionalDiscretizedLogistic(MLP(3, (5,), 4), scale=0.05, num_levels=4),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    torch.manual_seed(0)
    return FAMILIES[request.param]()


def test_leading_dims_are_free_and_rows_are_independent(family):
    context = torch.randn(2, 5, 3)
    p = family(context)
    assert p.batch_shape == (2, 5)
    assert len(p.event_shape) == family.event_dim
    x = p.sample()
    assert x.shape == (2, 5, *p.event_shape)
    rows = [family(context[s, i]).log_prob(x[s, i]) for s in range(2) for i in range(5)]
    torch.testing.assert_close(p.log_prob(x), torch.stack(rows).reshape(2, 5))


def test_values_and_contexts_broadcast(family):
    context = torch.randn(2, 1, 3)
    x = family(context[0]).expand([5]).sample()
    assert x.shape[0] == 5
    assert family(context).log_prob(x).shape == (2, 5)
    assert family(context).expand([2, 5]).sample((3,)).shape[:3] == (3, 2, 5)


def test_gradients_reach_every_parameter(family):
    for _ in range(20):
        p = family(torch.randn(64, 3))
        p.log_prob(p.sample()).sum().backward()
    for name, parameter in family.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 1e-3, name


def test_validates_its_values(family):
    assert pyro.distributions.is_validation_enabled()
    p = family(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="to be within the support"):
        p.log_prob(torch.full((2, *p.event_shape), math.nan))


def test_follows_dtype_and_state(family):
    state = {key: value.clone() + 1 for key, value in family.state_dict().items()}
    family.load_state_dict(state)
    family.double()
    p = family(torch.zeros(2, 3, dtype=torch.float64))
    assert p.log_prob(p.sample()).dtype == torch.float64
    assert family.state_dict().keys() == state.keys()


def test_samples_under_a_plate_and_enumeration_on_the_left(family):
    context = torch.randn(5, 3)

    def model():
        with pyro.plate("particles", 4, dim=-2), pyro.plate("data", 5):
            return pyro.sample("x", family(context))

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"].shape == (4, 5)


@pytest.mark.parametrize("event", [(4,), (1, 2, 2), ()])
def test_normal_is_the_formula(event):
    torch.manual_seed(0)
    net = MLP(3, (), (2, *event))
    context, x = torch.randn(7, 3), torch.randn(7, *event)
    loc, raw = net(context).unbind(1)
    scale = 0.01 + F.softplus(raw)
    density = -0.5 * ((x - loc) / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)
    p = ConditionalNormal(net, min_scale=0.01)(context)
    torch.testing.assert_close(p.log_prob(x), density.reshape(7, -1).sum(-1))
    assert p.has_rsample
    assert p.rsample().requires_grad


def test_normal_learned_scale_starts_at_one_and_is_shared():
    family = ConditionalNormal(MLP(3, (), 4), scale="learned")
    p = family(torch.zeros(2, 3))
    torch.testing.assert_close(p.stddev, torch.ones(2, 4))
    assert [parameter.numel() for name, parameter in family.named_parameters() if "scale" in name] == [1]
    with torch.no_grad():
        family.raw_scale.fill_(-1000.0)
    torch.testing.assert_close(family(torch.zeros(2, 3)).stddev, torch.full((2, 4), 1e-4))


def test_normal_fixed_scale_is_no_parameter_and_no_state():
    family = ConditionalNormal(nn.Linear(3, 4), scale=2)
    assert torch.equal(family(torch.zeros(3)).stddev, torch.full((4,), 2.0))
    assert set(family.state_dict()) == {"net.weight", "net.bias"}


def test_bernoulli_is_the_cross_entropy_of_its_logits():
    torch.manual_seed(0)
    net = MLP(3, (), (1, 2, 2))
    context, x = torch.randn(7, 3), torch.randint(2, (7, 1, 2, 2)).float()
    expected = -F.binary_cross_entropy_with_logits(net(context), x, reduction="none").sum((1, 2, 3))
    torch.testing.assert_close(ConditionalBernoulli(net)(context).log_prob(x), expected)


@pytest.mark.parametrize("event", [(), (4,), (1, 2, 2)])
def test_categorical_has_its_classes_before_the_event(event):
    torch.manual_seed(0)
    net = MLP(3, (), (6, *event))
    context, x = torch.randn(7, 3), torch.randint(6, (7, *event))
    p = ConditionalCategorical(net, num_classes=6)(context)
    assert (p.batch_shape, p.event_shape) == ((7,), event)
    expected = -F.cross_entropy(net(context), x, reduction="none").reshape(7, -1).sum(-1)
    torch.testing.assert_close(p.log_prob(x), expected)


def test_a_label_can_be_enumerated():
    p = ConditionalCategorical(MLP(3, (), 6), num_classes=6)(torch.randn(7, 3))
    assert isinstance(p, dist.Categorical)
    y = p.enumerate_support(expand=False)
    assert y.shape == (6, 1)
    torch.testing.assert_close(p.log_prob(y).exp().sum(0), torch.ones(7))


def test_several_contexts_reach_the_net():
    class Add(nn.Module):
        out_shape = (4,)

        def forward(self, a, b):
            return a + b

    p = ConditionalNormal(Add(), scale=1.0)(torch.ones(5, 1, 4), torch.ones(7, 4))
    assert p.batch_shape == (5, 7)
    assert torch.equal(p.mean, torch.full((5, 7, 4), 2.0))
