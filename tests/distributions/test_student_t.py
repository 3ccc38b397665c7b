"""Student's t against SciPy, and as a likelihood that outliers do not move."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import ppvae
from ppvae.distributions import ConditionalNormal, ConditionalStudentT, StandardNormal
from ppvae.models import VAE
from ppvae.nn import MLP


@pytest.mark.parametrize("df", [0.5, 3.0, 1e6])
def test_density_is_scipys(df):
    params = torch.tensor([[[0.5, -1.0], [0.3, 2.0]]])
    fn = ConditionalStudentT(nn.Identity(), df=df)(params)
    x = torch.tensor([[[1.0, 1e3]], [[-1e3, 0.0]]])
    scale = nn.functional.softplus(params[0, 1]) + 1e-4
    expected = stats.t.logpdf(x.double().numpy(), df, params[0, 0].numpy(), scale.numpy()).sum(-1)
    np.testing.assert_allclose(fn.log_prob(x).numpy(), expected, rtol=1e-4)


def test_learned_degrees_of_freedom_start_at_four_and_train():
    piece = ConditionalStudentT(MLP(2, (4,), (2, 3)))
    fn = piece(torch.zeros(1, 2))
    assert float(fn.base_dist.df.detach().flatten()[0]) == pytest.approx(4.0)
    fn.log_prob(torch.ones(1, 3)).sum().backward()
    assert piece.raw_df.grad is not None
    assert ConditionalStudentT(MLP(2, (4,), 3), scale=1.0, df=2.5).df == 2.5


def test_an_outlier_moves_a_normal_and_not_it():
    x = torch.zeros(60, 1)
    x[0] = 60.0
    found = {}
    for name, cls in (("normal", ConditionalNormal), ("t", ConditionalStudentT)):
        torch.manual_seed(0)
        decoder = nn.Sequential(nn.Linear(1, 1))
        pair = VAE(StandardNormal(1), cls(decoder, scale="learned"), ConditionalNormal(MLP(1, (), (2, 1))))
        ppvae.fit(pair, x, epochs=60, batch_size=60, lr=0.1, progress=False)
        found[name] = float(pair.reconstruct(torch.zeros(1, 1)).abs())
    assert found["t"] < 0.5 < found["normal"]


def test_options_are_checked():
    with pytest.raises(ValueError, match="df must be 'learned' or a number > 0, got 'heavy'"):
        ConditionalStudentT(MLP(2, (), (2, 3)), df="heavy")
    with pytest.raises(ValueError, match="df must be a finite number > 0, got 0"):
        ConditionalStudentT(MLP(2, (), (2, 3)), df=0)
