"""The von Mises density against SciPy at every concentration, and nets that give directions."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from ppvae.distributions import ConditionalVonMises, VonMises
from ppvae.nn import MLP


@pytest.mark.parametrize("kappa", [1e-3, 1.0, 1e2, 1e4, 1e6])
def test_density_is_scipys_in_float32(kappa):
    off = torch.tensor([0.0, 0.5, 3.0]) / math.sqrt(max(kappa, 1.0))
    found = VonMises(torch.tensor(0.0), torch.tensor(kappa)).log_prob(off).double().numpy()
    expected = stats.vonmises.logpdf(off.double().numpy(), torch.tensor(kappa).double().item())
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=1e-5)


def test_it_integrates_to_one_around_the_circle():
    x = torch.linspace(-math.pi, math.pi, 2001, dtype=torch.float64)[:-1]
    fn = VonMises(torch.tensor(2.5, dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64))
    assert float(fn.log_prob(x).exp().mean() * 2 * math.pi) == pytest.approx(1, abs=1e-9)
    assert type(fn.expand((2,))) is VonMises


def test_a_net_gives_a_direction():
    params = torch.stack([torch.tensor([1.0, 0.0]), torch.tensor([0.0, -2.0]), torch.tensor([5.0, 5.0])])
    fn = ConditionalVonMises(nn.Identity())(params[None])
    torch.testing.assert_close(fn.mean[0], torch.tensor([math.pi / 2, math.pi]))
    draws = fn.sample((4000,))
    wrapped = torch.remainder(draws[:, 0] - fn.mean[0] + math.pi, 2 * math.pi) - math.pi
    assert float(wrapped.mean(0).abs().max()) < 5 * float(wrapped.std(0).max()) / math.sqrt(4000)
    piece = ConditionalVonMises(MLP(2, (4,), (3, 5)))
    loss = piece(torch.randn(7, 3, 2)).log_prob(torch.zeros(3, 5)).sum()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in piece.parameters())


def test_options_are_checked():
    with pytest.raises(ValueError, match="min_concentration must be a finite number > 0, got 0"):
        ConditionalVonMises(MLP(2, (), (3, 5)), min_concentration=0)
    with pytest.raises(ValueError, match="net must declare an out_shape"):
        ConditionalVonMises(MLP(2, (), (2, 5)))
