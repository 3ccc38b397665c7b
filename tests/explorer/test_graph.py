"""The list of operations gives what the module gives: replayed in torch, and run by the page's interpreter."""

import json
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ppvae.explorer.graph import UnknownOperationError, graph_of, known_operations, packed, run, unpacked
from ppvae.nn import MLP, ConditionalMLP, ConvDecoder, OneHot
from tests.explorer.javascript import needs_node, run_in_node

Z = {"z": torch.randn(1, 3, generator=torch.Generator().manual_seed(0))}
IMAGES = {"z": torch.randn(2, 4, 5, 4, generator=torch.Generator().manual_seed(0))}


SERIES = {"z": torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0))}


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


class OfTheFirst(nn.Module):
    """A net of the first of two inputs."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, z, unused):
        return self.net(z)


def shuffled(z, w):
    """Views, reductions and indices of many kinds."""
    a = torch.stack([z, z.flip(-1)], -2).cumsum(-1)
    b = torch.where(a > 0, a, torch.expm1(a)).clamp(-0.5, 0.9)
    c = torch.cat([b[..., 1:], b[..., :1]], -1).amax(-1, keepdim=True)
    d = (a / (c.abs() + 1)).sum(-2) + w[:, [2, 0, 1]].mean(-1, keepdim=True) + F.pad(z, (1, -1), value=2.0)
    return d + torch.logsumexp(z, -1, keepdim=True) + (2.5 * z).round() + torch.std(z, -1, keepdim=True)


def elementary(z):
    """Elementwise operations, on both sides of where they change."""
    x = torch.linspace(-4, 4, 27).reshape(9, 3) + z
    parts = [
        x.erf(),
        x.tanh(),
        x.sigmoid(),
        F.softplus(x),
        F.gelu(x, approximate="tanh"),
        x.abs().sqrt(),
        x.exp().log1p(),
    ]
    parts += [x.sin() * x.cos(), x**3, 2.0**x, x.sign(), x.floor(), x.ceil(), torch.maximum(x, -x), F.hardtanh(x)]
    parts += [torch.atan2(x, x + 1), (x >= 1).float() * (x != 0), x.abs().rsqrt(), x.abs().sqrt(), 1 / (x * x + 1)]
    parts += [torch.full_like(x, 0.3) + x]
    return torch.stack(parts)


def mlp(**options):
    return MLP(3, (6,), (2, 5), **options)


def images(norm):
    return ConvDecoder(3, (4, 6), (2, 1, 9, 7), norm=norm, num_residual=1)


def conditional(how):
    return ConditionalMLP(3, 4, (8,), 5, embed=OneHot(4), conditioning=how)


ACTIVATIONS = ("relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "softplus", "gated")
LABEL = Z | {"y": torch.tensor([2])}
CASES = {
    **{
        name: (mlp(activation=name), Z)
        for name in ("relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "softplus", "gated")
    },
    **{f"{norm} norm": (mlp(norm=norm), Z) for norm in ("batch", "layer")},
    **{
        f"images, {norm} norm": (ConvDecoder(3, (4, 6), (2, 1, 9, 7), norm=norm, num_residual=1), Z)
        for norm in ("batch", "layer")
    },
    "spectral norm": (mlp(spectral_norm=True), Z),
    **{how: (conditional(how), LABEL) for how in ("concat", "film", "batch_norm", "attention")},
    "strided, dilated, grouped": (nn.Conv2d(4, 8, 3, padding=(1, 2), groups=2, stride=(2, 1), dilation=2), IMAGES),
    "transposed, grouped": (nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), IMAGES),
    "in one dimension": (
        nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.ConvTranspose1d(4, 2, 4, 2, 1)),
        {"z": torch.ones(1, 3, 5)},
    ),
    "nearest": (nn.Upsample(scale_factor=2), IMAGES),
    "bilinear": (nn.Upsample(size=(9, 7), mode="bilinear"), IMAGES),
    "bilinear, corners": (nn.Upsample(scale_factor=3, mode="bilinear", align_corners=True), IMAGES),
    "group norm, shuffled": (nn.Sequential(nn.GroupNorm(2, 4), nn.PixelShuffle(2), nn.Softmax(-1)), IMAGES),
    "shuffled": (Of(shuffled), Z | {"w": torch.tensor([[1.0, -2.0, 0.5]])}),
    "elementary": (Of(elementary), Z),
}


def prepared(module):
    """In eval mode, and where there are running statistics, with some that are not their start."""
    torch.manual_seed(1)
    for each in module.modules():
        if isinstance(each, nn.BatchNorm1d | nn.BatchNorm2d):
            each.running_mean.normal_()
            each.running_var.uniform_(0.5, 2)
    return module.eval()


@cache
def by_hand(case):
    module, inputs = CASES[case]
    graph = json.loads(json.dumps(graph_of(prepared(module), inputs), allow_nan=False))
    with torch.no_grad():
        return graph, inputs, module(*inputs.values())


@pytest.mark.parametrize("case", CASES)
def test_replayed_in_torch_it_is_the_module(case):
    graph, inputs, expected = by_hand(case)
    assert {each["name"] for each in graph["operations"]} <= known_operations()
    torch.testing.assert_close(run(graph, inputs), expected, rtol=1e-5, atol=1e-6)


@needs_node
def test_in_javascript_it_is_the_module():
    by_case = {case: by_hand(case) for case in CASES}
    found = run_in_node([(graph, inputs) for graph, inputs, _ in by_case.values()])
    for case, result in zip(CASES, found, strict=True):
        torch.testing.assert_close(
            result, by_case[case][2], rtol=2e-5, atol=2e-6, msg=lambda text, case=case: f"{case}: {text}"
        )


def test_what_does_not_depend_on_the_inputs_is_computed_before():
    graph = graph_of(OfTheFirst(mlp(spectral_norm=True)).eval(), Z | {"unused": torch.ones(1, 2)})
    assert graph["inputs"] == ["z"]
    assert [each["name"] for each in graph["operations"]] == [
        "addmm.default",
        "relu.default",
        "addmm.default",
        "view.default",
    ]


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (torch.special.bessel_j0, UnknownOperationError, "needs the operation special_bessel_j0.default"),
        (lambda z: z + torch.randn(3), UnknownOperationError, r"draws \(randn.default\)"),
        (lambda z: z if z.sum() > 0 else -z, ValueError, "no fixed list of operations"),
    ],
)
def test_what_no_list_holds_is_named(function, error, message):
    with pytest.raises(error, match=message):
        graph_of(Of(function), Z)


def test_tensors_come_back():
    for value in (
        torch.tensor([[1.5, -torch.inf]]),
        torch.tensor([3, 4]),
        torch.tensor([True, False]),
        torch.zeros(0, 2),
    ):
        back = unpacked(packed(value))
        assert back.dtype == value.dtype
        assert torch.equal(back, value)
