"""Gradients of importance-weighted objectives: their means, their noise, and the compiled step."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppvae.objectives import CIWAE, IWAE, MIWAE, PIWAE
from tests.compile.test_compiled import assert_same, compiled_graphs
from tests.reference import LinearGaussian


def many_gradients(pair, batch, objective, repeats):
    """Gradients of every parameter, (repeats, parameters)."""
    rows = []
    with pyro.validation_enabled(False):
        for _ in range(repeats):
            loss = objective.differentiable_loss(pair.model, pair.guide, *batch)
            gradient = torch.autograd.grad(loss, list(pair.parameters()), materialize_grads=True)
            rows.append(torch.cat([value.flatten() for value in gradient]))
    return torch.stack(rows).double()


class Chain(nn.Module):
    """z2 ~ N(0, 1), z1 ~ N(a z2, 1), x ~ N(z1, s²); guide q(z1|x) q(z2|z1), all scalar: draws depend on draws."""

    def __init__(self):
        super().__init__()
        self.a, self.log_s, self.b, self.c, self.log_t = (
            nn.Parameter(torch.tensor(v)) for v in (0.8, -0.2, 0.5, 0.3, -0.4)
        )

    def model(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(()), 1.0))
            z1 = pyro.sample("z1", dist.Normal(self.a * z2, 1.0))
            pyro.sample("x", dist.Normal(z1, self.log_s.exp()), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(self.b * x, 0.7))
            pyro.sample("z2", dist.Normal(self.c * z1, self.log_t.exp()))


class Flow(LinearGaussian):
    """A guide with a flow: learned splines, which can be inverted, or a planar one, which cannot."""

    def __init__(self, flow=dist.transforms.Spline):
        super().__init__()
        self.flow = flow(1)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.c * z[..., 0] + self.d, self.log_s.exp()), obs=x)

    def guide(self, x):
        base = dist.Normal((self.a * x + self.b).unsqueeze(-1), self.log_t.exp()).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(base, [self.flow]))


@pytest.mark.parametrize("make", [LinearGaussian, Chain, Flow])
@pytest.mark.parametrize("objective", [partial(IWAE, 5), partial(PIWAE, 3, 2), partial(CIWAE, 4, 0.4)])
def test_estimators_agree_in_mean(make, objective):
    torch.manual_seed(0)
    pair = make()
    x = (torch.randn(400),)
    means, errors = [], []
    for gradient in ("standard", "dreg"):
        rows = many_gradients(pair, x, objective(gradient=gradient), 60)
        means.append(rows.mean(0))
        errors.append(rows.std(0) / math.sqrt(len(rows)))
    difference = (means[0] - means[1]) / (errors[0].square() + errors[1].square()).sqrt()
    assert float(difference.abs().max()) < 4


def test_sticking_the_landing_is_unbiased_for_the_elbo_alone_and_vanishes_at_the_posterior():
    torch.manual_seed(0)
    x = (torch.randn(400),)
    pair = Chain()
    standard = many_gradients(pair, x, IWAE(1), 60)
    stl = many_gradients(pair, x, IWAE(1, gradient="stl"), 60)
    error = (standard.var(0) / 60 + stl.var(0) / 60).sqrt()
    assert float(((standard - stl).mean(0) / error).abs().max()) < 4
    dreg = many_gradients(pair, x, IWAE(1, gradient="dreg"), 1)
    assert dreg.shape == stl[:1].shape  # of one sample the two are one estimator
    biased = many_gradients(pair, x, IWAE(5, gradient="stl"), 60)
    right = many_gradients(pair, x, IWAE(5, gradient="dreg"), 60)
    error = (biased.var(0) / 60 + right.var(0) / 60).sqrt()
    assert float(((biased - right).mean(0) / error)[2:].abs().max()) > 10
    reference = LinearGaussian()
    with torch.no_grad():
        reference.log_t += math.log(1 / 1.3)  # the exact posterior
    for gradient in ("dreg", "stl"):
        rows = many_gradients(reference, x, IWAE(5, gradient=gradient), 3)
        assert float(rows[:, 3:].abs().max()) < 1e-2
    assert float(many_gradients(reference, x, IWAE(5), 3)[:, 3:].abs().max()) > 1


def test_signal_to_noise_of_the_guides_gradient():
    torch.manual_seed(0)
    pair, x = LinearGaussian(), (torch.randn(20),)
    ratio = {}
    for gradient in ("standard", "dreg"):
        for k in (1, 100):
            rows = many_gradients(pair, x, IWAE(k, gradient=gradient), 300)[:, 5]  # of log_t
            ratio[gradient, k] = float(rows.mean().abs() / rows.std())
    assert ratio["standard", 100] < 0.5 * ratio["standard", 1]
    assert ratio["dreg", 100] > ratio["dreg", 1]


@pytest.mark.usefixtures("with_and_without_inductor")
@pytest.mark.parametrize(
    "objective",
    [
        partial(IWAE, 3),
        partial(IWAE, 3, gradient="dreg"),
        partial(IWAE, 3, gradient="stl"),
        partial(PIWAE, 2, 2),
        partial(MIWAE, 2, 2),
        partial(CIWAE, 2, 0.5),
    ],
)
def test_compiled_equals_eager(objective):
    assert compiled_graphs(assert_same(Chain, objective, [(torch.randn(6),)], steps=6)) == 1
