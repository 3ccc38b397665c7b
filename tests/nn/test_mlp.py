import pytest
import torch
from torch import nn

from ppvae.nn import MLP


def test_is_the_formula():
    torch.manual_seed(0)
    net = MLP(4, (5, 6), 3, activation="tanh")
    first, _, second, _, last = net
    x = torch.randn(7, 4)
    h = torch.tanh(torch.tanh(x @ first.weight.T + first.bias) @ second.weight.T + second.bias)
    torch.testing.assert_close(net(x), h @ last.weight.T + last.bias)


@pytest.mark.parametrize("norm", [None, "layer"])
def test_gated_is_the_formula(norm):
    torch.manual_seed(0)
    net = MLP(4, (5, 6), 3, activation="gated", norm=norm, dropout=0.2).eval()
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    h = x = torch.randn(2, 7, 4)
    for layer in linear[:-1]:
        features = layer(h)
        if norm:
            features = nn.functional.layer_norm(features, features.shape[-1:])
        a, b = features.chunk(2, -1)
        h = a * torch.sigmoid(b)
    torch.testing.assert_close(net(x), linear[-1](h))
    assert [tuple(layer.weight.shape) for layer in linear] == [(10, 4), (12, 5), (3, 6)]


def test_without_hidden_layers_is_one_affine_map():
    net = MLP(4, (), 3)
    assert [type(layer) for layer in net] == [nn.Linear]


def test_vectors_pass_through_nothing_but_linear_and_activation():
    kinds = [type(layer) for layer in MLP(4, (5, 6), 3)]
    assert kinds == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]


@pytest.mark.parametrize(("in_shape", "out_shape"), [(6, (2, 3)), ((2, 3), 4), ((1, 2, 3), (2, 1, 2, 2))])
def test_flattens_and_unflattens_from_the_right(in_shape, out_shape):
    torch.manual_seed(0)
    net = MLP(in_shape, (5,), out_shape)
    x = torch.randn(2, 7, *net.in_shape)
    vectors = nn.Sequential(*(layer for layer in net if isinstance(layer, nn.Linear | nn.ReLU)))
    expected = vectors(x.reshape(2, 7, -1)).reshape(2, 7, *net.out_shape)
    assert torch.equal(net(x), expected)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((0, (5,), 3), "in_shape must be a positive int or a sequence of positive ints, got 0"),
        ((4, (5, -1), 3), r"hidden_dims must be .*, got \(5, -1\)"),
        ((4, (5,), (3, 0)), r"out_shape must be .*, got \(3, 0\)"),
    ],
)
def test_errors_name_the_argument(args, message):
    with pytest.raises(ValueError, match=message):
        MLP(*args)


def test_deep_nets_are_made_whatever_the_product_of_their_widths():
    assert len([layer for layer in MLP(8, (256,) * 12, 4) if isinstance(layer, torch.nn.Linear)]) == 13
