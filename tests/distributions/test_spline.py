import pytest
import torch
from pyro.distributions.transforms.spline import _monotonic_rational_spline
from torch.nn import functional as F

from ppvae.distributions.spline import BOUND, LEAST, _spline

BINS = 8


def parameters(spread):
    torch.manual_seed(0)
    return spread * torch.randn(50, 3 * BINS - 1, 2, dtype=torch.float64)


@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
def test_is_monotonic_inverted_and_its_volume_that_of_autograd(spread):
    params = parameters(spread)
    x = (1.5 * torch.randn(50, 2, dtype=torch.float64)).requires_grad_()
    y, log_det = _spline(x, params)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_det, slope.log())
    found, inverse_log_det = _spline(y, params, inverse=True)
    torch.testing.assert_close(found, x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(inverse_log_det, log_det, rtol=1e-4, atol=1e-4)


def test_is_the_identity_outside_and_where_the_net_gives_zero():
    x = torch.tensor([[-9.0, -3.0], [3.0, 50.0]], dtype=torch.float64)
    y, log_det = _spline(x, parameters(1.0)[:2])
    assert torch.equal(y, x)
    assert torch.equal(log_det, torch.zeros_like(x))
    x = torch.linspace(-4, 4, 50, dtype=torch.float64).unsqueeze(-1).expand(50, 2)
    torch.testing.assert_close(_spline(x, parameters(0.0))[0], x, rtol=0, atol=2e-3)


def test_agrees_with_pyros_quadratic_spline():
    params, x = parameters(1.0), 1.5 * torch.randn(50, 2, dtype=torch.float64)
    w, h, d = params.mT.split([BINS, BINS, BINS - 1], -1)
    slopes = F.softplus(d + 0.5413)
    y, log_det = _monotonic_rational_spline(x, w.softmax(-1), h.softmax(-1), slopes, bound=BOUND, min_derivative=LEAST)
    found, found_log_det = _spline(x, params)
    torch.testing.assert_close(found, y, rtol=0, atol=5e-4)  # Pyro's slope at the ends is 1 - 0.001
    inner = x.abs() < 2.0
    torch.testing.assert_close(found_log_det[inner], log_det[inner], rtol=0, atol=5e-3)
