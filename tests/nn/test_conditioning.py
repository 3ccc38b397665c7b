import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from ppvae.distributions import ConditionalBernoulli, ConditionalNormal
from ppvae.nn import (
    MLP,
    Batched,
    Concat,
    ConditionalBatchNorm,
    ConditionalMLP,
    ConditionalSequential,
    Conditioning,
    ConvDecoder,
    ConvEncoder,
    CrossAttention,
    FiLM,
    OneHot,
    check_context,
    check_labels,
)

D, C = 8, 3
LAYERS = {
    "concat": (lambda: Concat(D, C, 5), (D,), (C,)),
    "film": (lambda: FiLM(D, C), (D,), (C,)),
    "film-images": (lambda: FiLM(D, C, spatial_dims=2), (D, 4, 2), (C,)),
    "batch-norm": (lambda: ConditionalBatchNorm(D, C), (D,), (C,)),
    "batch-norm-images": (lambda: ConditionalBatchNorm(D, C, spatial_dims=2), (D, 4, 2), (C,)),
    "attention": (lambda: CrossAttention(D, C), (D,), (C,)),
    "attention-tokens": (lambda: CrossAttention(D, (5, C), num_heads=4), (D,), (5, C)),
    "attention-queries": (lambda: CrossAttention((4, D), (5, C), num_heads=2), (4, D), (5, C)),
}
WAYS = ("concat", "film", "batch_norm", "attention")
NETS = {
    f"mlp-{how}": (lambda how=how: ConditionalMLP(D, C, (16, 12), (2, 5), conditioning=how), (D,), (C,)) for how in WAYS
}
IMAGE_NETS = {
    f"mlp-{how}-images": (
        lambda how=how: ConditionalMLP((2, 4), (1, 4, 2), (16,), (2, 5), conditioning=how, activation="tanh"),
        (2, 4),
        (1, 4, 2),
    )
    for how in WAYS
}
OPTIONS = {
    f"mlp-{how}-{name}": (lambda how=how, o=options: ConditionalMLP(D, C, 16, 5, conditioning=how, **o), (D,), (C,))
    for how in ("concat", "film", "attention")
    for name, options in {"layer": {"norm": "layer"}, "batch": {"norm": "batch"}, "dropout": {"dropout": 0.3}}.items()
}
SEQUENCES = {
    "decoder": (
        lambda: ConditionalSequential(Concat(D, C, 6), nn.SiLU(), ConvDecoder(6, (5, 4), (1, 8, 6))),
        (D,),
        (C,),
    ),
    "encoder": (
        lambda: ConditionalSequential(
            ConvEncoder((1, 8, 6), (4,), 16), nn.SiLU(), ConditionalMLP(16, C, (8,), (2, 3), activation="silu")
        ),
        (1, 8, 6),
        (C,),
    ),
    "modulated": (
        lambda: ConditionalSequential(
            Batched(nn.Conv2d(1, 4, 3, padding=1), (1, 8, 6), (4, 8, 6)), FiLM(4, C, spatial_dims=2), nn.SiLU()
        ),
        (1, 8, 6),
        (C,),
    ),
}
ALL = LAYERS | NETS | IMAGE_NETS | OPTIONS | SEQUENCES


def make(name):
    """A layer away from its start, where its condition may not count yet, and the event shapes of h and c."""
    torch.manual_seed(0)
    build, h_shape, c_shape = ALL[name]
    layer = build()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer, h_shape, c_shape


@pytest.mark.parametrize("name", ALL)
def test_equals_a_loop_over_all_leading_dims(name):
    layer, h_shape, c_shape = make(name)
    layer.eval()
    h, c = torch.randn(2, 1, 3, *h_shape), torch.randn(4, 3, *c_shape)
    out = layer(h, c)
    for s in range(2):
        for j in range(4):
            rows = torch.stack([layer(h[s, 0, i], c[j, i]) for i in range(3)])
            torch.testing.assert_close(out[s, j], rows)
    assert (out[:, 0] - out[:, 1]).abs().max() > 1e-3  # the condition counts


@pytest.mark.parametrize("name", ALL)
def test_enumeration_on_the_left_of_either(name):
    layer, h_shape, c_shape = make(name)
    layer.eval()
    h, c = torch.randn(3, *h_shape), torch.randn(4, 1, *c_shape)
    labels = torch.stack([layer(h, c_j.expand(3, *c_shape)) for c_j in c[:, 0]])
    torch.testing.assert_close(layer(h, c), labels)
    h, c = torch.randn(2, 3, *h_shape), torch.randn(3, *c_shape)
    torch.testing.assert_close(layer(h, c), torch.stack([layer(h_s, c) for h_s in h]))
    assert layer(h[:, :0], c[:0]).shape[:2] == (2, 0)


@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_every_parameter(name):
    layer, h_shape, c_shape = make(name)
    h, c = torch.randn(16, *h_shape, requires_grad=True), torch.randn(16, *c_shape, requires_grad=True)
    for _ in range(5):
        out = layer(h, c)
        (out * torch.randn_like(out)).sum().backward()
    for parameter_name, parameter in [*layer.named_parameters(), ("h", h), ("c", c)]:
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().max() > 1e-4, parameter_name


@pytest.mark.parametrize("name", ["film", "film-images", "batch-norm", "attention", "concat"])
def test_gradients_reach_every_parameter_at_the_start(name):
    torch.manual_seed(0)
    build, h_shape, c_shape = LAYERS[name]
    layer = build()
    out = layer(torch.randn(16, *h_shape), torch.randn(16, *c_shape))
    (out * torch.randn_like(out)).sum().backward()
    assert all(parameter.grad.abs().max() > 1e-4 for parameter in layer.parameters())


@pytest.mark.parametrize("name", ALL)
def test_state_round_trip(name):
    layer, h_shape, c_shape = make(name)
    fresh = ALL[name][0]()
    layer(torch.randn(9, *h_shape), torch.randn(9, *c_shape))  # moves running statistics
    fresh.load_state_dict(layer.state_dict())
    h, c = torch.randn(7, *h_shape), torch.randn(7, *c_shape)
    assert torch.equal(fresh.eval()(h, c), layer.eval()(h, c))


@pytest.mark.parametrize("name", ALL)
def test_traced(name):
    layer, h_shape, c_shape = make(name)
    layer.eval()
    h, c = torch.randn(5, 1, 3, *h_shape), torch.randn(4, 3, *c_shape)
    graph = make_fx(lambda h, c: layer(h, c))(h, c)
    h, c = torch.randn_like(h), torch.randn_like(c)
    torch.testing.assert_close(graph(h, c), layer(h, c))


def test_concat_is_the_linear_map_of_the_concatenation():
    torch.manual_seed(0)
    layer, plain = Concat(D, C, 5), nn.Linear(D + C, 5)
    plain.load_state_dict(layer.linear.state_dict())
    h, c = torch.randn(7, D), torch.randn(7, C)
    torch.testing.assert_close(layer(h, c), plain(torch.cat([h, c], -1)))
    assert layer.linear.weight.abs().max() <= (D + C) ** -0.5
    assert Concat(D, C, 5, bias=False).linear.bias is None


@pytest.mark.parametrize("name", ["film", "film-images"])
def test_film_starts_as_the_identity(name):
    torch.manual_seed(0)
    build, h_shape, c_shape = LAYERS[name]
    h = torch.randn(7, *h_shape)
    assert torch.equal(build()(h, torch.randn(7, *c_shape)), h)


def test_film_is_the_formula():
    layer, _, _ = make("film-images")
    h, c = torch.randn(7, D, 4, 2), torch.randn(7, C)
    scale, shift = layer.linear(c)[:, :D, None, None], layer.linear(c)[:, D:, None, None]
    torch.testing.assert_close(layer(h, c), h * (1 + scale) + shift)


@pytest.mark.parametrize("name", ["batch-norm", "batch-norm-images"])
def test_conditional_batch_norm_starts_as_batch_norm_over_all_leading_dims(name):
    torch.manual_seed(0)
    build, h_shape, c_shape = LAYERS[name]
    layer, plain = build(), nn.BatchNorm1d(D)
    h = 3 * torch.randn(2, 5, *h_shape) + 1
    flat = h.reshape(10, D, -1)
    torch.testing.assert_close(layer(h, torch.randn(5, *c_shape)), plain(flat).reshape(h.shape))
    torch.testing.assert_close(layer.norm.running_mean, plain.running_mean)
    layer.eval(), plain.eval()
    torch.testing.assert_close(layer(h, torch.randn(4, 1, 1, *c_shape))[3], plain(flat).reshape(h.shape))


def test_attention_is_that_of_torch():
    """Against `nn.MultiheadAttention` on the same tokens, with the token for nothing among them."""
    layer, _, _ = make("attention-queries")
    h, c = torch.randn(7, 4, D), torch.randn(7, 5, C)
    plain = nn.MultiheadAttention(D, 2, batch_first=True)
    with torch.no_grad():
        plain.in_proj_weight.copy_(torch.cat([layer.query.weight, layer.key_value.weight]))
        plain.in_proj_bias.copy_(torch.cat([layer.query.bias, torch.zeros(2 * D)]))
        plain.out_proj.weight.copy_(layer.out.weight)
        plain.out_proj.bias.copy_(layer.out.bias)
    tokens = torch.cat([torch.zeros(7, 1, D), layer.token(c)], 1) + layer.position
    torch.testing.assert_close(layer(h, c), h + plain(layer.norm(h), tokens, tokens)[0])


def test_the_condition_enters_where_it_should():
    kinds = {how: [type(layer).__name__ for layer in make(f"mlp-{how}")[0].net.layers] for how in WAYS}
    assert kinds == {
        "concat": ["Concat", "ReLU", "Linear", "ReLU", "Linear", "Reshape"],
        "film": ["Linear", "FiLM", "ReLU", "Linear", "FiLM", "ReLU", "Linear", "Reshape"],
        "batch_norm": [*["Linear", "ConditionalBatchNorm", "ReLU"] * 2, "Linear", "Reshape"],
        "attention": [*["Linear", "ReLU", "CrossAttention"] * 2, "Linear", "Reshape"],
    }
    net = ConditionalMLP(D, C, 16, 5, conditioning="film", norm="layer", dropout=0.1)
    assert [type(layer).__name__ for layer in net.net.layers[:5]] == ["Linear", "LayerNorm", "FiLM", "ReLU", "Dropout"]
    assert make("mlp-batch_norm")[0].net.layers[0].bias is None


def test_without_hidden_layers_is_one_affine_map_of_both():
    torch.manual_seed(0)
    net = ConditionalMLP(D, C, (), (2, 3))
    (affine, _) = net.net.layers
    h, c = torch.randn(7, D), torch.randn(7, C)
    torch.testing.assert_close(net(h, c), affine.linear(torch.cat([h, c], -1)).reshape(7, 2, 3))


def test_equals_an_mlp_of_the_concatenation():
    torch.manual_seed(0)
    net, plain = ConditionalMLP(D, C, (16, 12), 5), MLP(D + C, (16, 12), 5)
    plain.load_state_dict(dict(zip(plain.state_dict(), net.state_dict().values(), strict=True)))
    h, c = torch.randn(7, D), torch.randn(7, C)
    torch.testing.assert_close(net(h, c), plain(torch.cat([h, c], -1)))


@pytest.mark.parametrize("how", WAYS)
def test_labels_in_distributions(how):
    torch.manual_seed(0)
    options = {"conditioning": how, "embed": OneHot(10)}
    p_x_given_zy = ConditionalBernoulli(ConditionalMLP(20, 10, (16,), 49, **options)).eval()
    q_z_given_xy = ConditionalNormal(ConditionalMLP((1, 7, 7), 10, (16,), (2, 20), **options)).eval()
    y, every = torch.arange(6), torch.arange(10).unsqueeze(-1)
    assert p_x_given_zy(torch.randn(6, 20), y).batch_shape == (6,)
    assert p_x_given_zy(torch.randn(5, 1, 6, 20), every).batch_shape == (5, 10, 6)
    assert p_x_given_zy(torch.randn(5, 1, 6, 20), every).event_shape == (49,)
    q_z = q_z_given_xy(torch.randn(6, 1, 7, 7), every)
    assert (q_z.batch_shape, q_z.event_shape) == ((10, 6), (20,))


def test_declared_shapes_reach_the_distribution():
    net = ConditionalSequential(Concat(D, C, 6), ConvDecoder(6, (4,), (2, 1, 8, 6)))
    assert (net.in_shape, net.out_shape) == ((D,), (2, 1, 8, 6))
    assert ConditionalNormal(net).event_dim == 3
    undeclared = ConditionalSequential(Concat(D, C, 6), nn.Linear(6, 5))
    assert not hasattr(undeclared, "out_shape")
    assert ConditionalBernoulli(undeclared).event_dim == 1


def test_one_hot():
    y = torch.tensor([[0, 2], [1, 1]])
    expected = nn.functional.one_hot(y, 3).float()
    for dtype in (torch.int64, torch.int32, torch.uint8):
        assert torch.equal(OneHot(3)(y.to(dtype)), expected)
    assert OneHot(3).double()(y).dtype == torch.float64
    assert not OneHot(3).state_dict()
    assert OneHot(3)(y[:0]).shape == (0, 2, 3)


def test_one_hot_of_an_index_out_of_range_is_nan_and_nothing_else():
    code = OneHot(3)(torch.tensor([-1, 0, 3, -100, 100, 2]))
    assert code.isnan().all(-1).tolist() == [True, False, True, True, True, False]
    assert not code[[1, 5]].isnan().any()


def test_one_hot_traced():
    one_hot = OneHot(3)
    graph = make_fx(lambda y: one_hot(y))(torch.tensor([0, 1]))
    assert torch.equal(graph(torch.tensor([2, 0])), one_hot(torch.tensor([2, 0])))


@pytest.mark.parametrize("check", [lambda y: OneHot(3)(y), lambda y: check_labels(y, 3)], ids=["one-hot", "check"])
def test_labels_of_another_dtype(check):
    text = r"y must hold class indices of an integer dtype, got torch.float32 of shape \(7, 3\); y.argmax\(-1\) turns"
    with pytest.raises(TypeError, match=text):
        check(torch.zeros(7, 3))
    with pytest.raises(TypeError, match=r"got torch.float64 of shape \(7,\); try y.long\(\)"):
        check(torch.zeros(7, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"got torch\.bool"):
        check(torch.zeros(7, dtype=torch.bool))
    with pytest.raises(TypeError, match="must be a tensor of class indices, got list"):
        check([0, 1])


@pytest.mark.parametrize(("values", "text"), [([0, 3], "from 0 to 3"), ([-1, 2], "from -1 to 2")])
def test_labels_out_of_range(values, text):
    with pytest.raises(ValueError, match=f"labels must hold class indices from 0 to 2, got values {text}"):
        check_labels(torch.tensor(values), 3, name="labels")
    check_labels(torch.tensor([[0], [2]]), 3)
    check_labels(torch.zeros(0, dtype=torch.long), 3)


def test_check_context():
    labels = ConditionalMLP(D, 10, (), 5, embed=OneHot(10))
    through = ConditionalSequential(nn.Linear(4, D), labels)
    learned = ConditionalMLP(D, 6, (), 5, embed=nn.Sequential(OneHot(10), nn.Linear(10, 6)))
    for net in (labels, through, learned, ConditionalBernoulli(learned)):
        assert check_context(net, torch.tensor([[9], [0]])) == ()
        with pytest.raises(ValueError, match="y must hold class indices from 0 to 9, got values from 10 to 10"):
            check_context(net, torch.tensor([10]), name="y")
    vector = nn.ModuleList([nn.Linear(3, 4), ConditionalMLP(D, 4, (), 5)])
    assert check_context(vector, torch.zeros(7, 4)) == (4,)
    with pytest.raises(ValueError, match=r"c must have shape \(..., 4,\), got \(7, 3\)"):
        check_context(vector, torch.zeros(7, 3))
    with pytest.raises(TypeError, match=r"must be floating point, got torch.int64 of shape \(7, 4\); .*embed=OneHot"):
        check_context(vector, torch.zeros(7, 4, dtype=torch.long))
    with pytest.raises(TypeError, match="c must be a tensor, got NoneType"):
        check_context(vector, None)
    image = ConditionalMLP(D, 16, (), 5, embed=ConvEncoder((1, 8, 6), (4,), 16))
    assert check_context(image, torch.zeros(7, 1, 8, 6)) == (1, 8, 6)
    assert check_context(ConditionalMLP(D, 16, (), 5, embed=nn.Embedding(10, 16)), torch.zeros(7).long()) is None
    assert check_context(nn.Linear(3, 4), torch.zeros(7)) is None


class Gate(Conditioning):
    """A layer of a user's."""

    def forward(self, h, c):
        return h * c.sigmoid()


def test_a_layer_of_a_users():
    net = ConditionalSequential(nn.Linear(4, 3), Gate(), embed=nn.Embedding(10, 3))
    h, y = torch.randn(7, 4), torch.arange(7)
    torch.testing.assert_close(net(h, y), net.layers[0](h) * net.embed(y).sigmoid())
    assert check_context(Gate(), torch.arange(3)) is None


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: OneHot(0), ValueError, "num_classes must be a whole number >= 1, got 0"),
        (lambda: Concat(0, 1, 1), ValueError, "dim must be a whole number >= 1, got 0"),
        (lambda: Concat(1, 1.0, 1), ValueError, "context_dim must be a whole number >= 1, got 1.0"),
        (lambda: Concat(1, 1, "5"), ValueError, "out_dim must be a whole number >= 1, got '5'"),
        (lambda: FiLM(4, -1), ValueError, "context_dim must be a whole number >= 1, got -1"),
        (lambda: FiLM(4, 1, spatial_dims=-1), ValueError, "spatial_dims must be a whole number >= 0, got -1"),
        (lambda: CrossAttention(6, 3, num_heads=4), ValueError, "num_heads must divide the size of h, 6, got 4"),
        (lambda: CrossAttention((1, 2, 3), 3), ValueError, r"in_shape must have one dimension, or two .* \(1, 2, 3\)"),
        (lambda: CrossAttention(3, ()), ValueError, r"context_shape must have one dimension, or two .* \(\)"),
        (lambda: ConditionalMLP(4, 0, 5, 3), ValueError, "context_shape must be a positive int"),
        (lambda: ConditionalMLP(4, 3, 5, 3, conditioning="add"), ValueError, "conditioning must be one of concat, "),
        (lambda: ConditionalMLP(4, 3, (), 3, conditioning="film"), ValueError, "hidden_dims must not be empty"),
        (
            lambda: ConditionalMLP(4, 3, 5, 3, conditioning="batch_norm", norm="layer"),
            ValueError,
            "norm must be None with conditioning='batch_norm', which is a normalisation, got 'layer'",
        ),
        (
            lambda: ConditionalMLP(4, 3, 5, 3, embed=OneHot(10)),
            ValueError,
            r"context_shape must be what embed returns, \(10,\), got \(3,\)",
        ),
        (lambda: ConditionalMLP(4, 3, 5, 3, embed=torch.relu), TypeError, "embed must be a torch.nn.Module, got"),
        (lambda: ConditionalSequential(), ValueError, "layers must hold one that takes the condition, got 0"),
        (lambda: ConditionalSequential(nn.ReLU()), ValueError, "got 1 without any"),
        (lambda: ConditionalSequential(Concat(1, 1, 1), torch.relu), TypeError, r"layers\[1\] must be a torch.nn.Mod"),
        (
            lambda: ConditionalSequential(Concat(1, 1, 1), embed=3),
            TypeError,
            "embed must be a torch.nn.Module, got int",
        ),
    ],
)
def test_errors_name_the_argument(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_another_event_shape_is_an_error_and_never_broadcast():
    for layer in (FiLM(D, C), ConditionalBatchNorm(D, C)):
        with pytest.raises(ValueError, match=r"expected h of shape \(..., 8\), got \(7, 1\)"):
            layer(torch.zeros(7, 1), torch.zeros(7, C))
    with pytest.raises(ValueError, match=r"expected h of shape \(..., 8, \*spatial\), got \(7, 4, 4\)"):
        FiLM(D, C, spatial_dims=2)(torch.zeros(7, 4, 4), torch.zeros(C))
    with pytest.raises(ValueError, match=r"expected an input of shape \(..., 5, 3\), got \(7, 4, 3\)"):
        CrossAttention(D, (5, C))(torch.zeros(7, D), torch.zeros(7, 4, C))
    with pytest.raises(ValueError, match=r"c must have shape \(..., 1, 4, 4\), got \(7, 16\)"):
        ConditionalMLP(D, (1, 4, 4), 5, 3)(torch.zeros(7, D), torch.zeros(7, 16))
