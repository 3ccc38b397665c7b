import pytest
import torch
from torch import nn

from ppvae.distributions import (
    ConditionalBernoulli,
    ConditionalCategorical,
    ConditionalContinuousBernoulli,
    ConditionalDiscretizedLogistic,
    ConditionalNormal,
)
from ppvae.nn import MLP, Batched, Rescale

PLAIN = nn.Linear(3, 4)  # declares no out_shape


def test_event_dim_is_read_off_the_net():
    assert ConditionalBernoulli(MLP(3, (), (1, 8, 8))).event_dim == 3
    assert ConditionalNormal(MLP(3, (), (2, 5))).event_dim == 1
    assert ConditionalNormal(MLP(3, (), 2)).event_dim == 0
    assert ConditionalNormal(MLP(3, (), (2, 5)), scale=1.0).event_dim == 2
    assert ConditionalCategorical(MLP(3, (), (7, 2, 2)), num_classes=7).event_dim == 2
    assert ConditionalContinuousBernoulli(MLP(3, (), ())).event_dim == 0
    assert ConditionalDiscretizedLogistic(MLP(3, (), (1, 2, 2))).event_dim == 3


def test_event_dim_is_one_where_the_net_declares_nothing():
    assert ConditionalBernoulli(PLAIN).event_dim == 1
    assert ConditionalBernoulli(nn.Sequential(MLP(3, (), (2, 2)), nn.ReLU())).event_dim == 1


def test_a_sequence_declares_what_its_last_module_does():
    image = MLP(3, (), (1, 8, 8))
    assert ConditionalBernoulli(nn.Sequential(Rescale(2.0), nn.Sequential(PLAIN, image))).event_dim == 3


def test_event_dim_of_the_user_wins():
    p = ConditionalBernoulli(MLP(3, (), (5, 4)), event_dim=1)
    assert p(torch.zeros(7, 3)).batch_shape == (7, 5)
    assert ConditionalNormal(Batched(PLAIN, 3, (6, 2, 4)), event_dim=1).event_dim == 1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: ConditionalNormal(MLP(3, (), 20)),
            ValueError,
            r"net must declare an out_shape \(..., 2, \*event_shape\) with 0 event dimensions, got \(20,\)",
        ),
        (
            lambda: ConditionalNormal(MLP(3, (), (20, 2))),
            ValueError,
            r"\(..., 2, \*event_shape\) with 1 event dimensions, got \(20, 2\)",
        ),
        (
            lambda: ConditionalCategorical(MLP(3, (), (9, 4)), num_classes=10),
            ValueError,
            r"\(..., 10, \*event_shape\) with 1 event dimensions, got \(9, 4\)",
        ),
        (
            lambda: ConditionalNormal(MLP(3, (), (2, 4)), event_dim=2),
            ValueError,
            r"at least 3 dimensions for event_dim=2, got \(2, 4\)",
        ),
        (
            lambda: ConditionalNormal(MLP(3, (), ())),
            ValueError,
            r"at least 1 dimensions for event_dim=0, got \(\)",
        ),
        (
            lambda: ConditionalBernoulli(PLAIN, event_dim=-1),
            ValueError,
            "event_dim must be None or an int .*, got -1",
        ),
        (
            lambda: ConditionalBernoulli(torch.sigmoid),
            TypeError,
            "net must be a torch.nn.Module, got builtin",
        ),
        (
            lambda: ConditionalNormal(PLAIN, scale="fixed"),
            ValueError,
            "scale must be 'conditional', 'learned' or a positive number, got 'fixed'",
        ),
        (lambda: ConditionalNormal(PLAIN, scale=0.0), ValueError, "scale must be .*, got 0.0"),
        (lambda: ConditionalNormal(PLAIN, scale=True), ValueError, "scale must be .*, got True"),
        (lambda: ConditionalNormal(PLAIN, scale=None), ValueError, "scale must be .*, got None"),
        (
            lambda: ConditionalNormal(PLAIN, min_scale=0),
            ValueError,
            "min_scale must be a finite number > 0, got 0",
        ),
        (
            lambda: ConditionalNormal(PLAIN, scale="learned", min_scale=2.0),
            ValueError,
            "min_scale must be below 1.0, a learned scale's start, got 2.0",
        ),
        (lambda: ConditionalCategorical(PLAIN, num_classes=0), ValueError, "num_classes must be .*, got 0"),
        (
            lambda: ConditionalDiscretizedLogistic(PLAIN, num_levels=1),
            ValueError,
            "num_levels must be a whole number >= 2, got 1",
        ),
    ],
)
def test_errors_at_construction(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_net_that_declares_nothing_is_checked_when_it_runs():
    message = r"net must return \(..., {}, \*event_shape\) with 1 event dimensions, got \(5, 4\)"
    with pytest.raises(ValueError, match=message.format(2)):
        ConditionalNormal(PLAIN)(torch.zeros(5, 3))
    with pytest.raises(ValueError, match=message.format(10)):
        ConditionalCategorical(PLAIN, num_classes=10)(torch.zeros(5, 3))


def test_a_net_that_returns_two_tensors_is_named():
    class Both(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(
        TypeError, match=r"net must return one tensor, .* got tuple: .* torch.stack\(\(loc, raw_scale\), -2\)"
    ):
        ConditionalNormal(Both())(torch.zeros(3, 2))
