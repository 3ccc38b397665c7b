import pytest
import torch
from pyro.distributions.transforms.planar import Planar
from torch import nn

from ppvae.distributions.planar import InvertiblePlanar


class Fixed(nn.Module):
    """b, u and w whatever the context."""

    def __init__(self, bias, u, w):
        super().__init__()
        self.params = nn.ParameterList([bias, u, w])

    def forward(self, context):
        return tuple(self.params)


@pytest.mark.parametrize("size", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("seed", range(5))
def test_inverse_is_exact_for_any_slope(size, seed):
    torch.manual_seed(seed)
    w = torch.randn(3, dtype=torch.float64)
    for u in (size * torch.randn(3, dtype=torch.float64), -size * w, size * w):  # below, near -1, and steep
        net = Fixed(torch.randn(1, dtype=torch.float64), u, w)
        transform = InvertiblePlanar(net).condition(torch.zeros(1))
        x = 3 * torch.randn(50, 3, dtype=torch.float64)
        y = transform(x)
        found = InvertiblePlanar(net).condition(torch.zeros(1))._inv_call(y)
        torch.testing.assert_close(transform(found), y, rtol=1e-6, atol=1e-6)


def test_forward_and_volume_are_pyros():
    torch.manual_seed(0)
    theirs = Planar(3)
    ours = InvertiblePlanar(Fixed(theirs.bias, theirs.u, theirs.w)).condition(torch.zeros(1))
    x = torch.randn(50, 3)
    y = ours(x)
    assert torch.equal(y, theirs(x))
    assert torch.equal(ours.log_abs_det_jacobian(x, y), theirs.log_abs_det_jacobian(x, theirs(x)))
    with pytest.raises(KeyError):
        theirs._inv_call(y.clone())
