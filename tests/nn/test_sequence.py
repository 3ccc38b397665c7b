"""Nets over sequences: padding changes no number, leading dims are free, each step sees what it may."""

import copy

import pytest
import torch
from torch import nn

from ppvae.nn import RNN, TemporalConv, Transformer, check_lengths
from ppvae.nn.sequence import reversed_within

T, D = 6, 3
LENGTHS = torch.tensor([6, 1, 4, 3])
NETS = {
    "gru": lambda: RNN(D, 4),
    "lstm": lambda: RNN(D, 4, cell="lstm"),
    "backward": lambda: RNN(D, 4, direction="backward"),
    "both": lambda: RNN(D, 4, direction="both"),
    "deep": lambda: RNN(D, 4, direction="both", num_layers=2, dropout=0.3),
    "attention": lambda: Transformer(D, 20, num_heads=3),
    "causal attention": lambda: Transformer(D, 20, num_heads=1, causal=True, dropout=0.3),
    "convolution": lambda: TemporalConv(D, num_blocks=2),
    "causal convolution": lambda: TemporalConv(D, kernel_size=2, num_blocks=3, causal=True, dropout=0.3),
}


@pytest.fixture(params=NETS)
def net(request):
    return NETS[request.param]().eval()


def test_padding_and_batching_change_no_number(net):
    x = torch.randn(4, T, D)
    h = net(x, LENGTHS)
    longer = torch.cat(
        [torch.where(torch.arange(T)[:, None] < LENGTHS[:, None, None], x, 1e3), 1e3 * torch.ones(4, 5, D)], 1
    )
    padded = net(longer, LENGTHS)
    torch.testing.assert_close(padded[:, :T], h, rtol=0, atol=1e-6)
    assert not padded[:, T:].any()
    torch.testing.assert_close(net.pool(padded, LENGTHS), net.pool(h, LENGTHS), rtol=0, atol=1e-6)
    for i, length in enumerate(LENGTHS.tolist()):
        alone = net(x[i, :length])
        torch.testing.assert_close(h[i, :length], alone, rtol=0, atol=1e-6)
        assert not h[i, length:].any()
        torch.testing.assert_close(net.pool(h, LENGTHS)[i], net.pool(alone), rtol=0, atol=1e-6)


def test_leading_dims_are_free(net):
    x = torch.randn(2, 4, T, D)
    h = net(x, LENGTHS)
    assert h.shape == (2, 4, T, net.out_dim)
    torch.testing.assert_close(h[1], net(x[1], LENGTHS), rtol=0, atol=1e-6)
    assert net.pool(h, LENGTHS).shape == (2, 4, net.out_dim)
    torch.testing.assert_close(net(x[0, 0]), net(x[0, 0], torch.tensor(T)))


def test_each_step_sees_what_it_says(net):
    def sees(step, t):
        if isinstance(net, TemporalConv) and not net.causal:
            return abs(step - t) <= net.reach // 2
        ways = getattr(net, "ways", ("forward",) if net.causal else ("forward", "backward"))
        return (step >= t and "forward" in ways) or (step <= t and "backward" in ways)

    x = torch.randn(T, D)
    for t in range(T):
        other = x.clone()
        other[t] = torch.randn(D)
        changed = (net(other) - net(x)).abs().amax(-1) > 1e-6
        assert changed.tolist() == [sees(step, t) for step in range(T)]
    assert net.causal == (not any(sees(step, t) for t in range(T) for step in range(t)))


def test_padding_has_no_gradient(net):
    x = torch.randn(4, T, D, requires_grad=True)
    net(x, LENGTHS).square().sum().backward()
    inside = torch.arange(T) < LENGTHS[:, None]
    assert (x.grad.abs().sum(-1) > 0).equal(inside)
    assert all(p.grad.abs().max() > 0 for p in net.parameters())


def test_recurrent_net_is_torchs():
    x = torch.randn(5, T, D)
    for cell, reference in (("gru", nn.GRU), ("lstm", nn.LSTM)):
        net = RNN(D, 4, cell=cell, direction="both", num_layers=2)
        of_torch = reference(D, 4, batch_first=True, num_layers=2, bidirectional=True)
        for i, layer in enumerate(net.layers):
            for way, suffix in zip(layer, ("", "_reverse"), strict=True):
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    getattr(of_torch, f"{name}_l{i}{suffix}").data.copy_(getattr(way, f"{name}_l0"))
        packed = nn.utils.rnn.pack_padded_sequence(x[:4], LENGTHS, batch_first=True, enforce_sorted=False)
        expected, _ = nn.utils.rnn.pad_packed_sequence(of_torch(packed)[0], batch_first=True)
        torch.testing.assert_close(net(x[:4], LENGTHS), expected, rtol=0, atol=1e-6)


def test_dropout_is_of_training():
    net, x = RNN(D, 8, num_layers=2, dropout=0.5), torch.randn(T, D)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), copy.deepcopy(net)(x))


def test_reversed_twice_is_as_it_was():
    x = torch.randn(4, T, D)
    assert torch.equal(reversed_within(reversed_within(x, LENGTHS), LENGTHS), x)
    assert torch.equal(reversed_within(x, None), x.flip(-2))


@pytest.mark.parametrize(
    ("x", "lengths", "error", "message"),
    [
        ([[1.0]], None, TypeError, "x of RNN must be a tensor, got list"),
        (torch.zeros(T, D + 1), None, ValueError, rf"x of RNN must have shape \(\.\.\., steps, {D}\), got \({T}, 4\)"),
        (torch.zeros(D), None, ValueError, r"x of RNN must have shape"),
        (torch.zeros(T, D), 3, TypeError, "lengths of RNN must be a tensor of integers, got int"),
        (
            torch.zeros(T, D),
            torch.tensor(3.0),
            TypeError,
            "lengths of RNN must be of an integer dtype, got torch.float32",
        ),
    ],
)
def test_wrong_inputs(x, lengths, error, message):
    with pytest.raises(error, match=message):
        RNN(D, 4)(x, lengths)


@pytest.mark.parametrize("lengths", [torch.tensor([0, 2]), torch.tensor([7, 2])])
def test_lengths_out_of_range(lengths):
    with pytest.raises(ValueError, match="lengths must be from 1 to 6, the steps that there are, got values from"):
        check_lengths(lengths, 6)
    check_lengths(torch.tensor([1, 6]), 6)
    check_lengths(torch.zeros(0, dtype=torch.long), 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_dim": 0}, "in_dim must be a whole number >= 1, got 0"),
        ({"hidden_dim": 2.5}, "hidden_dim must be a whole number >= 1, got 2.5"),
        ({"cell": "rnn"}, "cell must be one of gru, lstm; got 'rnn'"),
        ({"direction": None}, "direction must be one of forward, backward, both; got None"),
        ({"num_layers": 0}, "num_layers must be a whole number >= 1, got 0"),
        ({"dropout": 1.0}, "dropout must be a finite number >= 0 and < 1"),
    ],
)
def test_errors_name_the_argument(options, message):
    with pytest.raises(ValueError, match=message):
        RNN(**{"in_dim": D, "hidden_dim": 4} | options)
