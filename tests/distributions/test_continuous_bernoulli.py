import math

import pytest
import torch

from ppvae.distributions import ConditionalContinuousBernoulli, ContinuousBernoulli
from ppvae.nn import MLP

SIZES = [0.0, 1e-8, 1e-3, 0.02, 0.03, 0.4999, 0.5, 1.0, 8.0, 15.0, 30.0, 500.0]
LOGITS = torch.tensor([-size for size in SIZES] + SIZES, dtype=torch.float64)


def exact_log_density(logit, x):
    """The formula itself, at the logit nearer to zero by the mirror symmetry, in Python's floats."""
    if abs(logit) < 1e-6:
        return logit * (x - 0.5)
    if logit > 0:
        logit, x = -logit, 1 - x
    return math.log(logit / math.expm1(logit)) + logit * x


@pytest.mark.parametrize("x", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 2e-6), (torch.float64, 1e-11)])
def test_density_is_the_formula(x, dtype, tol):
    expected = torch.tensor([exact_log_density(logit, x) for logit in LOGITS.tolist()], dtype=dtype)
    density = ContinuousBernoulli(LOGITS.to(dtype)).log_prob(torch.tensor(x, dtype=dtype))
    torch.testing.assert_close(density, expected, atol=tol, rtol=tol)


def test_agrees_with_torch_where_torch_does_not_clamp():
    logits = LOGITS[LOGITS.abs().le(15) & LOGITS.abs().ge(0.02)]
    ours, theirs = ContinuousBernoulli(logits), torch.distributions.ContinuousBernoulli(logits=logits)
    x = torch.tensor([[0.0], [0.4], [1.0]], dtype=torch.float64)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(ours.mean, theirs.mean, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(ours.variance, theirs.variance, atol=1e-6, rtol=1e-6)


def test_density_integrates_to_one_with_its_moments():
    logits = LOGITS[LOGITS.abs() <= 30]
    p = ContinuousBernoulli(logits)
    edges = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    x = ((edges[1:] + edges[:-1]) / 2)[:, None]
    mass = p.log_prob(x).exp() / 20_000
    mean = (x * mass).sum(0)
    torch.testing.assert_close(mass.sum(0), torch.ones_like(logits), atol=1e-6, rtol=0)
    torch.testing.assert_close(p.mean, mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(p.variance, ((x - mean).square() * mass).sum(0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_of_the_density_is_the_value_less_the_mean(dtype):
    """It is an exponential family in its logits; at no logit does the gradient vanish or blow up."""
    logits = LOGITS.to(dtype).requires_grad_()
    p = ContinuousBernoulli(logits)
    (gradient,) = torch.autograd.grad(p.log_prob(torch.tensor(0.25, dtype=dtype)).sum(), logits)
    torch.testing.assert_close(gradient, 0.25 - p.mean.detach(), atol=2e-6, rtol=1e-6)


def test_draws_are_uniform_after_the_cumulative_distribution():
    torch.manual_seed(0)
    logits = LOGITS.float()
    n = 10_000
    x = ContinuousBernoulli(logits).sample((n,))
    assert x.shape == (n, len(logits))
    assert ((x >= 0) & (x <= 1)).all()
    p = ContinuousBernoulli(LOGITS)
    error = (x.double().mean(0) - p.mean) / (p.variance / n).sqrt()
    assert error.abs().max() < 4.5
    # The distance of Kolmogorov and Smirnov, at the level of one in a million.
    size = LOGITS.abs().clamp(min=1e-6)
    falling = torch.where(LOGITS > 0, 1 - x.double(), x.double())
    u = (torch.expm1(-size * falling) / torch.expm1(-size)).sort(0).values
    ranks = (torch.arange(n, dtype=torch.float64)[:, None] + 0.5) / n
    assert (u - ranks).abs().max() < 2.7 / math.sqrt(n)


def test_draws_are_differentiable_and_continuous_in_the_logits():
    logits = LOGITS.clone().requires_grad_()
    torch.manual_seed(0)
    x = ContinuousBernoulli(logits).rsample((2000,))
    (gradient,) = torch.autograd.grad(x.mean(0).sum(), logits)
    assert gradient.isfinite().all()
    # The derivative of the mean is the variance.
    torch.testing.assert_close(gradient, ContinuousBernoulli(LOGITS).variance, atol=0.006, rtol=0.2)
    draws = []
    for logit in (-1e-7, 0.0, 1e-7):
        torch.manual_seed(0)
        draws.append(ContinuousBernoulli(torch.tensor(logit)).rsample((100,)))
    torch.testing.assert_close(draws[0], draws[2], atol=1e-6, rtol=0)
    torch.testing.assert_close(draws[1], draws[2], atol=1e-6, rtol=0)


def test_expand_and_validation():
    logits = torch.randn(3)
    p = ContinuousBernoulli(logits, validate_args=True)
    q = p.expand([2, 3])
    assert isinstance(q, ContinuousBernoulli)
    assert q.logits.data_ptr() == logits.data_ptr()
    assert q.rsample((4,)).shape == (4, 2, 3)
    for each in (p, q, p.to_event(1)):
        with pytest.raises(ValueError, match="to be within the support"):
            each.log_prob(torch.full((3,), 1.5))
    with pytest.raises(ValueError, match="logits"):
        ContinuousBernoulli(torch.tensor(math.nan), validate_args=True)
    with pytest.raises(TypeError, match="logits must be a tensor, got float"):
        ContinuousBernoulli(0.3)


def test_conditional_takes_logits_from_its_net():
    torch.manual_seed(0)
    net = MLP(3, (), (1, 2, 2))
    context, x = torch.randn(7, 3), torch.rand(7, 1, 2, 2)
    p = ConditionalContinuousBernoulli(net)(context)
    assert (p.batch_shape, p.event_shape) == ((7,), (1, 2, 2))
    torch.testing.assert_close(p.log_prob(x), ContinuousBernoulli(net(context)).log_prob(x).sum((1, 2, 3)))
    assert p.has_rsample
