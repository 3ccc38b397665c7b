import pytest
import torch
from torch.nn import functional as F

from ppvae.nn import MLP, ConvDecoder, ConvEncoder, ConvResidualBlock, ResidualBlock, ResidualMLP, activation


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "softplus"])
def test_activation_is_torchs_of_that_name(name):
    x = torch.linspace(-3, 3, 13)
    torch.testing.assert_close(activation(name)(x), getattr(torch if name == "tanh" else F, name)(x))


def test_identity_is_one():
    x = torch.linspace(-3, 3, 13)
    assert torch.equal(activation("identity")(x), x)


def test_activation_error_lists_the_names():
    with pytest.raises(ValueError, match=r"activation must be one of relu, leaky_relu, .*identity; got 'swish'"):
        activation("swish")


NETS = [
    lambda **options: MLP(4, (4,), 2, **options),
    lambda **options: ResidualMLP(4, 4, 1, 2, **options),
    lambda **options: ResidualBlock(4, **options),
    lambda **options: ConvResidualBlock(4, **options),
    lambda **options: ConvEncoder((1, 4, 4), (2,), 2, **options),
    lambda **options: ConvDecoder(2, (2,), (1, 4, 4), **options),
]


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "sigmoidal"}, "activation must be one of .*; got 'sigmoidal'"),
        ({"norm": "group"}, "norm must be None, 'batch' or 'layer', got 'group'"),
        ({"dropout": 1.0}, r"dropout must be a finite number >= 0 and < 1, got 1.0"),
        ({"dropout": "0.1"}, r"dropout must be a finite number >= 0 and < 1, got '0.1'"),
        ({"spectral_norm": 1}, "spectral_norm must be a bool, got 1"),
    ],
)
def test_every_net_checks_its_options(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize("make", NETS[1:])
def test_only_the_mlp_has_gates(make):
    with pytest.raises(ValueError, match=r"activation must be one of .*; got 'gated'"):
        make(activation="gated")


@pytest.mark.parametrize("make", NETS)
def test_dropout_acts_in_training_only(make):
    torch.manual_seed(0)
    net = make(dropout=0.5)
    in_shape = getattr(net, "in_shape", (4, 4, 4))
    x = torch.randn(64, *in_shape)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))
