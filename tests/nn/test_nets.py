"""What every net promises: event shapes, any leading dimensions, gradients everywhere."""

import pytest
import torch
from torch import nn

from ppvae.nn import MLP, Batched, ConvDecoder, ConvEncoder, ResidualBlock, ResidualMLP

OPTIONS = [
    {},
    {"norm": "layer", "activation": "silu"},
    {"norm": "batch", "activation": "elu"},
    {"dropout": 0.2, "activation": "tanh"},
    {"spectral_norm": True, "activation": "leaky_relu"},
]
NETS = {
    "mlp": lambda **options: MLP(6, (8, 7), 5, **options),
    "mlp-shapes": lambda **options: MLP((1, 2, 3), (8,), (2, 4), **options),
    "mlp-scalars": lambda **options: MLP((), 8, (), **options),
    "residual-mlp": lambda **options: ResidualMLP((2, 3), 8, 2, (2, 4), **options),
    "residual-block": lambda **options: ResidualBlock(6, **options),
    "encoder": lambda **options: ConvEncoder((2, 9, 6), (4, 5), (2, 3), **options),
    "encoder-residual": lambda **options: ConvEncoder((1, 8, 8), (4,), 3, num_residual=1, **options),
    "decoder": lambda **options: ConvDecoder(3, (5, 4), (2, 3, 9, 6), **options),
    "decoder-residual": lambda **options: ConvDecoder((2, 3), (4,), (1, 8, 8), num_residual=1, **options),
}


@pytest.fixture(params=[(name, i) for name in NETS for i in range(len(OPTIONS))], ids=str)
def net(request):
    torch.manual_seed(0)
    name, i = request.param
    return NETS[name](**OPTIONS[i])


def test_leading_dims_are_free_and_rows_are_independent(net):
    net.eval()
    x = torch.randn(2, 3, *net.in_shape)
    out = net(x)
    assert out.shape == (2, 3, *net.out_shape)
    rows = torch.stack([torch.stack([net(x[s, i]) for i in range(3)]) for s in range(2)])
    torch.testing.assert_close(out, rows)
    torch.testing.assert_close(net(x[:1].expand(4, 3, *net.in_shape)), out[:1].expand(4, 3, *net.out_shape))
    assert net(x[:, :0]).shape == (2, 0, *net.out_shape)


def test_gradients_reach_every_parameter(net):
    for _ in range(20):  # several inputs, so that no unit is dead in all of them
        out = net(torch.randn(16, *net.in_shape))
        (out * torch.randn_like(out)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 1e-4, name


def test_another_event_shape_is_an_error():
    for net in (MLP((1, 4, 4), (8,), 2), ConvEncoder((1, 4, 4), (8,), 2)):
        with pytest.raises(ValueError, match=r"x of \w+ must have shape \(..., 1, 4, 4\), got \(7, 4, 4, 1\)"):
            net(torch.zeros(7, 4, 4, 1))
        with pytest.raises(ValueError, match=r"got \(16,\)"):
            net(torch.zeros(16))


def test_spectral_norm_bounds_every_weight():
    torch.manual_seed(0)
    nets = [make(spectral_norm=True) for make in NETS.values()]
    for net in nets:
        for parameter in net.parameters():
            parameter.data.mul_(10)
        for _ in range(200):  # the power iterations of as many steps of training
            net(torch.randn(4, *net.in_shape))
        net.eval()
        weights = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
        assert weights
        for layer in weights:
            # A transposed convolution has its outputs in the second dimension.
            outputs = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
            matrix = layer.weight.movedim(outputs, 0).flatten(1)
            assert torch.linalg.matrix_norm(matrix, 2).item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("name", ["mlp", "encoder"])
def test_batch_norm_takes_its_statistics_over_all_leading_dims(name):
    torch.manual_seed(0)
    net, flat = NETS[name](norm="batch"), NETS[name](norm="batch")
    flat.load_state_dict(net.state_dict())
    x = torch.randn(2, 5, *net.in_shape)
    torch.testing.assert_close(net(x).flatten(0, 1), flat(x.flatten(0, 1)))
    for (key, a), b in zip(net.state_dict().items(), flat.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=key)
    first = next(m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d))
    assert first.running_mean.abs().max() > 0


def test_batched_wraps_a_net_from_elsewhere():
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 3, padding=1)
    net = Batched(conv, (2, 4, 4), (3, 4, 4))
    x = torch.randn(5, 6, 2, 4, 4)
    torch.testing.assert_close(net(x), torch.stack([conv(row) for row in x]))
    assert (net.in_shape, net.out_shape) == ((2, 4, 4), (3, 4, 4))
