import pytest
import torch

from ppvae.distributions import FlowPrior, MixturePrior, StandardNormal
from ppvae.examples.figures import _spread_of, swept


def test_one_unit_of_a_row_is_swept():
    z, units = torch.tensor([10.0, 20.0, 30.0]), torch.tensor([2, 0])
    grid = swept(z, units, torch.tensor([-1.0, 1.0]))
    assert grid.tolist() == [[[10, 20, -1], [10, 20, 1]], [[-1, 20, 30], [1, 20, 30]]]
    own = swept(z, units, torch.tensor([[-1.0, 1.0], [-2.0, 2.0]]))
    assert own.tolist() == [[[10, 20, -1], [10, 20, 1]], [[-2, 20, 30], [2, 20, 30]]]


@pytest.mark.parametrize(("kind", "sizes"), [(StandardNormal, (3,)), (MixturePrior, (4, 3)), (FlowPrior, (3,))])
@torch.no_grad()
def test_a_prior_has_a_centre_and_a_scale(kind, sizes):
    torch.manual_seed(0)
    p_z = kind(*sizes)
    centre, scale = _spread_of(p_z())
    draws = p_z().sample((20000,))
    torch.testing.assert_close(centre, draws.mean(0), atol=0.15, rtol=0.0)
    torch.testing.assert_close(scale, draws.std(0), atol=0.0, rtol=0.1)
