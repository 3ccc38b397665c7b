"""log p(x) of standardised data in the data's own units: as by hand, and the same whatever the units were."""

import math
import warnings

import pytest
import torch
from torch import nn

import ppvae
from ppvae.distributions import (
    ConditionalMultivariateNormal,
    ConditionalNormal,
    Standardize,
    Standardized,
    StandardNormal,
    of_observed,
)
from ppvae.models import VAE
from ppvae.nn import MLP

D, K = 5, 2


def vae(x, cls=ConditionalNormal):
    torch.manual_seed(0)
    standardize = Standardize.of(x)
    return VAE(
        StandardNormal(K),
        Standardized(cls(MLP(K, (8,), (2, D))), standardize),
        ConditionalNormal(nn.Sequential(standardize, MLP(D, (8,), (2, K)))),
    )


def data():
    return torch.tensor([1e3, -5.0, 0.0, 1e-3, 1e5]) + torch.tensor([50.0, 1.0, 1e-2, 1e-4, 3e4]) * torch.randn(200, D)


@pytest.mark.parametrize("whole", [False, True])
def test_density_is_that_of_the_standardised_data_less_the_volume(whole):
    x = data()
    standardize = Standardize.of(x)
    net = MLP(K, (8,), 20 if whole else (2, D))
    piece = ConditionalMultivariateNormal(net) if whole else ConditionalNormal(net)
    z = torch.randn(3, 200, K)
    found, u = Standardized(piece, standardize)(z), (x - standardize.loc) / standardize.scale
    expected = piece(z).log_prob(u) - standardize.scale.log().sum()
    torch.testing.assert_close(found.log_prob(x), expected, rtol=1e-4, atol=1e-3)
    assert (found.batch_shape, found.event_shape) == (piece(z).batch_shape, piece(z).event_shape)
    torch.testing.assert_close(found.mean, standardize.loc + standardize.scale * piece(z).mean)
    torch.testing.assert_close(found.variance, standardize.scale**2 * piece(z).variance)
    assert found.expand((4, 3, 200)).sample().shape == (4, 3, 200, D)


def test_another_unit_is_another_volume_and_nothing_else():
    x = data()
    pairs = [vae(x), vae(1000 * x)]
    values = []
    for pair, of in zip(pairs, (x, 1000 * x), strict=True):
        with warnings.catch_warnings(action="error"):  # none of a scale far from one
            ppvae.fit(pair, of, epochs=2, progress=False)
        values.append(ppvae.log_marginal(pair, of, num_samples=20).values)
    torch.testing.assert_close(values[0] - D * math.log(1000), values[1], rtol=1e-4, atol=2e-2)
    assert pairs[0].reconstruct(x).shape == x.shape
    assert float((pairs[0].sample(500).mean(0) - x.mean(0)).abs().div(x.std(0)).max()) < 1.5


def test_elements_can_be_left_out():
    x = data()
    fn = Standardized(ConditionalNormal(MLP(K, (8,), (2, D))), Standardize.of(x))(torch.zeros(K))
    observed = torch.tensor([True, False, True, False, False])
    torch.testing.assert_close(of_observed(fn, observed).log_prob(x), fn.base_dist.log_prob(x)[:, observed].sum(-1))


def test_what_does_not_vary_keeps_its_scale_and_files_keep_both():
    x = torch.tensor([[3.0, 1.0], [3.0, 5.0]])
    standardize = Standardize.of(x)
    assert standardize.scale.tolist() == [1.0, 2.0]
    assert {"loc", "scale"} == set(standardize.state_dict())
    assert Standardize.of(torch.tensor([[0], [2]])).loc.dtype == torch.float32


def test_options_are_checked():
    with pytest.raises(ValueError, match=r"loc and scale must be of one shape, got \(2,\) and \(3,\)"):
        Standardize(torch.zeros(2), torch.ones(3))
    with pytest.raises(ValueError, match="scale must be positive"):
        Standardize(torch.zeros(2), torch.zeros(2))
    with pytest.raises(TypeError, match="piece must be a module"):
        Standardized(None, Standardize(torch.zeros(2), torch.ones(2)))
