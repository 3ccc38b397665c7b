"""The likelihood of a table: every column's probabilities, in its own unit, in one tensor."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from ppvae.data import Column
from ppvae.distributions import ColumnEncoder, ConditionalColumns, num_params, of_observed
from ppvae.nn import MLP

COLUMNS = [
    Column("city", "categorical", ("a", "b", "c")),
    Column("height", "normal", loc=170.0, scale=10.0),
    Column("size", "ordinal", ("s", "m", "l", "xl")),
    Column("income", "log-normal", loc=7.0, scale=0.5),
    Column("member", "bernoulli", (False, True)),
    Column("visits", "count", loc=1.0, scale=1.0),
    Column("weight", "normal", loc=70.0, scale=5.0),
]
D = len(COLUMNS)


def likelihood(columns=COLUMNS, seed=0):
    torch.manual_seed(seed)
    return ConditionalColumns(MLP(2, (4,), num_params(columns)), columns)


def row():
    return torch.tensor([1.0, 175.0, 2.0, 900.0, 1.0, 4.0, 66.0])


def cells(fn, value):
    return fn.base_dist.log_prob(value)


def grid(column):
    """Values of a column, and what each stands for in a sum or an integral."""
    if column.levels:
        return torch.arange(float(len(column.levels))), 1.0
    if column.family == "count":
        return torch.arange(4000.0), 1.0
    if column.family == "normal":
        return column.loc + column.scale * torch.linspace(-20, 20, 40_001), column.scale / 1000
    u = torch.linspace(-10, 24, 40_001)
    return u.exp(), u.exp() * 34 / 40_000


@pytest.mark.parametrize("j", range(D), ids=[c.family for c in COLUMNS])
def test_each_column_sums_to_one_in_its_own_unit(j):
    values, width = grid(COLUMNS[j])
    fn = likelihood().requires_grad_(False)(torch.tensor([0.3, -0.4]))
    rows = row().repeat(len(values), 1)
    rows[:, j] = values
    p = cells(fn, rows)[:, j].double().exp() * width
    assert float(p.sum()) == pytest.approx(1, abs=2e-4)
    drawn = fn.sample((4000,))[:, j].double()
    mean = float((values.double() * p).sum())
    assert abs(float(drawn.mean()) - mean) < 6 * float(drawn.std()) / math.sqrt(4000) + 1e-9


def test_numbers_by_hand():
    net = nn.Linear(1, num_params(COLUMNS))
    torch.nn.init.zeros_(net.weight)
    torch.nn.init.zeros_(net.bias)
    fn = ConditionalColumns(net, COLUMNS)(torch.zeros(1, 1))
    scale = math.log(2) + 1e-3
    theta = 1 / (1 - math.exp(-1))  # as spread as the column says: Var log x = 1 / mean + 1 / θ
    expected = [
        math.log(1 / 3),
        stats.norm.logpdf(175, 170, 10 * scale),
        math.log(1 / 4),
        stats.lognorm.logpdf(900, 0.5 * scale, scale=math.exp(7)),
        math.log(1 / 2),
        stats.nbinom.logpmf(4, theta, theta / (theta + math.e)),
        stats.norm.logpdf(66, 70, 5 * scale),
    ]
    np.testing.assert_allclose(cells(fn, row())[0].detach().numpy(), expected, rtol=1e-5)
    assert float(fn.log_prob(row()).detach()) == pytest.approx(sum(expected), rel=1e-5)


def test_another_unit_changes_the_density_by_its_volume():
    grams = [Column("w", loc=70_000.0, scale=5000.0)]
    kilos = [Column("w", loc=70.0, scale=5.0)]
    z = torch.randn(6, 2)
    a = likelihood(kilos)(z).log_prob(torch.tensor([66.0]))
    b = likelihood(grams)(z).log_prob(torch.tensor([66_000.0]))
    torch.testing.assert_close(a - math.log(1000), b, atol=1e-4, rtol=1e-5)


def test_leading_dims_order_and_means():
    p = likelihood()
    z = torch.randn(5, 3, 2)
    fn = p(z)
    assert (fn.batch_shape, fn.event_shape) == ((5, 3), (D,))
    torch.testing.assert_close(fn.log_prob(row())[2, 1], p(z[2, 1]).log_prob(row()))
    assert fn.expand((4, 5, 3)).sample().shape == (4, 5, 3, D)
    mean = fn.mean
    assert mean.shape == (5, 3, D)
    assert set(mean[..., 0].flatten().tolist()) <= {0.0, 1.0, 2.0}
    assert (mean[..., 3] > 0).all()
    fn.log_prob(row()).sum().backward()
    assert all(q.grad is not None and q.grad.isfinite().all() for q in p.parameters())


def test_a_value_outside_a_column_is_refused():
    fn = likelihood()(torch.zeros(2))
    for j, value in ((0, 3.0), (2, 1.5), (3, -1.0), (4, 0.5), (5, -2.0)):
        wrong = row()
        wrong[j] = value
        with pytest.raises(ValueError, match="within the support"):
            fn.log_prob(wrong)


def test_what_is_not_observed_does_not_count():
    fn = likelihood()(torch.randn(4, 2))
    observed = torch.rand(4, D) < 0.5
    expected = (cells(fn, row()) * observed).sum(-1)
    torch.testing.assert_close(of_observed(fn, observed).log_prob(row()), expected)
    with pytest.raises(TypeError, match="must be of independent elements"):
        of_observed(torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)), torch.ones(2))


def test_an_encoder_does_not_see_what_is_missing():
    encoder = ColumnEncoder(COLUMNS, (8,), (2, 3))
    x = row().repeat(5, 1)
    observed = torch.rand(5, D) < 0.5
    other = torch.where(observed, x, torch.tensor([2.0, 1.0, 0.0, 5.0, 0.0, 9.0, 1.0]))
    assert torch.equal(encoder(x, observed), encoder(other, observed))
    assert encoder(x.expand(3, 5, D), observed).shape == (3, 5, 2, 3)


def test_a_net_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r"net must give the 12 parameters of the columns, it gives \(9,\)"):
        ConditionalColumns(MLP(2, (4,), 9), COLUMNS)
