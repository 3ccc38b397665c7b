"""Scales multiply an importance-weighted bound, and not its weights."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from ppvae.objectives import IWAE
from tests.objectives.test_importance_weighted import evaluate, gradients
from tests.reference import LinearGaussian


class Subsampled(LinearGaussian):
    """A minibatch of 100 data, told by their indices."""

    def model(self, x):
        with pyro.plate("data", 100, subsample=torch.arange(len(x)), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.c), 1.0))
            pyro.sample("x", dist.Normal(self.c * z + self.d, self.log_s.exp()), obs=x)

    def guide(self, x):
        with pyro.plate("data", 100, subsample=torch.arange(len(x)), dim=-1):
            pyro.sample("z", dist.Normal(self.a * x + self.b, self.log_t.exp()))


class Scaled(LinearGaussian):
    """Everything scaled alike: by a number, or each datum by its own."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def model(self, x):
        with poutine.scale(scale=self.scale(x)):
            super().model(x)

    def guide(self, x):
        with poutine.scale(scale=self.scale(x)):
            super().guide(x)


@pytest.mark.parametrize(
    ("pair", "scale"),
    [
        (Subsampled(), lambda x: 10.0),
        (Scaled(lambda x: 0.25), lambda x: 0.25),
        (Scaled(lambda x: torch.tensor(0.25)), lambda x: 0.25),
        (Scaled(torch.exp), torch.exp),
    ],
    ids=["subsampled", "scaled", "by a tensor", "datum by datum"],
)
@pytest.mark.parametrize("gradient", ["standard", "dreg"])
def test_scales_multiply_the_bound_and_not_the_weights(pair, scale, gradient):
    x = (torch.randn(10),)
    loss, gradient_ = evaluate(IWAE(8, gradient=gradient), pair, x)
    plain = LinearGaussian()
    torch.manual_seed(0)
    with pyro.plate("outer", 8, dim=-2):
        guide_trace = poutine.trace(plain.guide).get_trace(*x)
        z = guide_trace.nodes["z"]["value"]
    log_w = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(plain.c * z + plain.d, plain.log_s.exp()).log_prob(x[0])
    log_w = log_w - guide_trace.nodes["z"]["fn"].log_prob(z)
    expected = -(scale(x[0]) * (log_w.logsumexp(0) - math.log(8))).sum()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    by_hand = gradients(expected, plain)
    for parameter in ("c", "d", "log_s") if gradient == "dreg" else by_hand:
        torch.testing.assert_close(gradient_[parameter], by_hand[parameter], rtol=1e-4, atol=1e-3)


class ScaledRepeated(Scaled):
    """The same, in code that an outer plate of draws does not fit into."""

    def model(self, x):
        with poutine.scale(scale=self.scale(x)), pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal((self.c * z + self.d).view(len(x)), self.log_s.exp()), obs=x)


@pytest.mark.parametrize("gradient", ["standard", "dreg"])
def test_scales_of_each_datum_where_the_data_are_repeated(gradient):
    x = torch.randn(10)
    loss, gradient_ = evaluate(IWAE(8, gradient=gradient), ScaledRepeated(torch.exp), (x.repeat(1),))
    pair = ScaledRepeated(torch.exp)
    torch.manual_seed(0)
    z = poutine.trace(Scaled(torch.exp).guide).get_trace(x.repeat(8)).nodes["z"]
    log_w = dist.Normal(0.0, 1.0).log_prob(z["value"]) - z["fn"].log_prob(z["value"])
    log_w = log_w + dist.Normal(pair.c * z["value"] + pair.d, pair.log_s.exp()).log_prob(x.repeat(8))
    expected = -(x.exp() * (log_w.view(8, 10).logsumexp(0) - math.log(8))).sum()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    by_hand = gradients(expected, pair)
    for parameter in ("c", "d", "log_s"):
        torch.testing.assert_close(gradient_[parameter], by_hand[parameter], rtol=1e-4, atol=1e-3)


def test_a_scale_of_each_inner_plate_is_refused():
    class Inner(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale = torch.tensor(scale).unsqueeze(-1)

        def model(self, x):
            with pyro.plate("data", len(x)), pyro.plate("time", 2, dim=-2), poutine.scale(scale=self.scale):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

        def guide(self, x):
            with pyro.plate("data", len(x)), pyro.plate("time", 2, dim=-2), poutine.scale(scale=self.scale):
                pyro.sample("z", dist.Normal(x.T, 1.0))

    pair, x = Inner([1.0, 2.0]), torch.randn(7, 2)
    with pytest.raises(ValueError, match=r"a scale of shape \(2, 1\) differs within a datum, among its draws"):
        IWAE(3).loss(pair.model, pair.guide, x)
    alike, plain = Inner([2.0, 2.0]), Inner([1.0, 1.0])
    assert evaluate_loss(alike, x) == pytest.approx(2 * evaluate_loss(plain, x))


def evaluate_loss(pair, x):
    torch.manual_seed(0)
    return IWAE(3).loss(pair.model, pair.guide, x)


def test_a_subsampled_plate_and_code_that_does_not_broadcast():
    class Both(Subsampled):
        def model(self, x):
            torch.cat([x, x.new_zeros(len(x))]).view(2, len(x))
            with pyro.plate("data", 100, subsample=torch.arange(len(x)), dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]))
                rows = torch.stack([z, torch.ones(len(x))])
                pyro.sample("x", dist.Normal(rows.sum(0), 1.0), obs=x)

    pair = Both()
    assert IWAE(1).loss(pair.model, pair.guide, torch.randn(7)) > 0
    with pytest.raises(NotImplementedError, match="lies in a subsampled plate, and the pair's code does not broadcast"):
        IWAE(3).loss(pair.model, pair.guide, torch.randn(7))
