import pytest
import torch
from torch import nn

from ppvae.nn import MLP, ConcatInputs


def test_is_the_net_of_the_concatenation():
    torch.manual_seed(0)
    mlp = MLP(3 + 8 + 1, (5,), (2, 4))
    net = ConcatInputs((3, (2, 4), ()), mlp)
    a, b, c = torch.randn(7, 3), torch.randn(7, 2, 4), torch.randn(7)
    torch.testing.assert_close(net(a, b, c), mlp(torch.cat([a, b.flatten(1), c.unsqueeze(-1)], -1)))
    assert net.out_shape == (2, 4)
    assert not hasattr(ConcatInputs((3, 1), nn.Linear(4, 2)), "out_shape")


def test_leading_dims_broadcast():
    torch.manual_seed(0)
    net = ConcatInputs((3, 2, 1), MLP(6, (5,), 4))
    a, b, c = torch.randn(5, 1, 7, 3), torch.randn(4, 7, 2), torch.randn(1)
    out = net(a, b, c)
    assert out.shape == (5, 4, 7, 4)
    torch.testing.assert_close(out[2, 3], net(a[2, 0], b[3], c.expand(7, 1)))


def test_one_input():
    mlp = MLP(3, (5,), 4)
    x = torch.randn(7, 3)
    torch.testing.assert_close(ConcatInputs((3,), mlp)(x), mlp(x))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: ConcatInputs((), MLP(3, (), 1)),
            ValueError,
            "in_shapes must hold the shape of at least one input, got none",
        ),
        (lambda: ConcatInputs((3, 0), MLP(3, (), 1)), ValueError, r"in_shapes\[1\] must be a positive int"),
        (
            lambda: ConcatInputs((3, 2), MLP(4, (), 1)),
            ValueError,
            r"vectors of 5 elements, as the inputs have, got \(4,\)",
        ),
        (lambda: ConcatInputs((3, 2), len), TypeError, "net must be a torch.nn.Module, got builtin"),
        (lambda: ConcatInputs((3, 2), MLP(5, (), 1))(torch.zeros(3)), ValueError, "expected 2 inputs, got 1"),
        (
            lambda: ConcatInputs((3, 2), MLP(5, (), 1))(torch.zeros(7, 2), torch.zeros(7, 3)),
            ValueError,
            r"shape \(..., 3,\), got \(7, 2\)",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
