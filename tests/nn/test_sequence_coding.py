"""Encoders and decoders of sequences: what they see of them, and of padding nothing."""

import pytest
import torch
from torch import nn

import ppvae
from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
from ppvae.models import VAE
from ppvae.nn import MLP, RNN, Patches, SequenceDecoder, SequenceEncoder, TemporalConv, Transformer

V, T, K = 5, 6, 2
LENGTHS = torch.tensor([6, 1, 4])
NETS = {
    "rnn": lambda causal: RNN(8, 7, direction="forward" if causal else "both"),
    "attention": lambda causal: Transformer(8, 12, causal=causal),
    "convolution": lambda causal: TemporalConv(8, causal=causal),
}


@pytest.fixture(params=NETS)
def make(request):
    return NETS[request.param]


def tokens(*shape):
    return torch.randint(V, shape)


def test_the_code_of_a_sequence_is_its_own_whatever_the_padding(make):
    net = SequenceEncoder(nn.Embedding(V, 8), make(False), (2, K))
    x = tokens(3, T)
    padded = torch.cat([torch.where(torch.arange(T) < LENGTHS[:, None], x, V - 1), tokens(3, 4)], 1)
    found = net(padded, LENGTHS)
    assert found.shape == (3, 2, K) == (3, *net.out_shape)
    torch.testing.assert_close(found, net(x, LENGTHS), rtol=0, atol=1e-6)
    alone = torch.stack([net(x[i, :length]) for i, length in enumerate(LENGTHS.tolist())])
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(net(x.expand(4, 3, T), LENGTHS)[2], found, rtol=0, atol=1e-6)


def test_each_step_is_given_those_before_it_and_the_context(make):
    net = SequenceDecoder(nn.Embedding(V, 8), make(True), K, V)
    x, z = tokens(T), torch.randn(K)
    y = net(x, z)
    assert y.shape == (T, V)
    for t in range(T):
        other = x.clone()
        other[t] = (x[t] + 1) % V
        assert ((net(other, z) - y).abs().amax(-1) > 1e-6).tolist() == [step > t for step in range(T)]
    assert ((net(x, z + 1.0) - y).abs().amax(-1) > 1e-6).all()
    torch.testing.assert_close(net(x[:3], z), y[:3], rtol=0, atol=1e-6)


def test_leading_dims_of_values_and_contexts_broadcast(make):
    net = SequenceDecoder(nn.Linear(3, 8), make(True), K, (2, 3))
    x, z = torch.randn(4, T, 3), torch.randn(5, 4, K)
    y = net(x, z)
    assert y.shape == (5, 4, T, 2, 3)
    torch.testing.assert_close(y[1, 2], net(x[2], z[1, 2]), rtol=0, atol=1e-6)


def test_word_dropout_is_of_training_and_of_whole_values():
    net = SequenceDecoder(nn.Embedding(V, 8), RNN(8, 7), None, V, word_dropout=0.5)
    x = tokens(T)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))
    embedded = []
    net.net.register_forward_pre_hook(lambda module, inputs: embedded.append(inputs[0]))
    net.train()(tokens(2000, T))
    dropped = (embedded[0][:, 1:] == 0).float()
    assert dropped.mean().item() == pytest.approx(0.5, abs=0.02)
    assert set(dropped.mean(-1).unique().tolist()) == {0.0, 1.0}
    assert (embedded[0][:, 0] == net.first).all()


def test_gradients_reach_every_parameter(make):
    encoder = SequenceEncoder(nn.Embedding(V, 8), make(False), (2, K))
    decoder = SequenceDecoder(nn.Embedding(V, 8), make(True), K, V)
    x = tokens(20, T)
    loc, scale = encoder(x, torch.full((20,), T)).unbind(-2)
    decoder(x, loc * scale).log_softmax(-1).square().sum().backward()
    for net in (encoder, decoder):
        for name, parameter in net.named_parameters():
            assert parameter.grad.abs().max() > 1e-4, name


def test_patches_are_what_unfold_gives():
    x = torch.randn(2, 3, 2, 6, 9)
    patches = Patches((2, 6, 9), 3)(x)
    expected = nn.functional.unfold(x.flatten(0, 1), 3, stride=3).mT
    torch.testing.assert_close(patches, expected.unflatten(0, (2, 3)))
    assert patches.shape[-2:] == Patches((2, 6, 9), 3).out_shape


def test_a_vision_transformer_is_an_encoder_of_images():
    torch.manual_seed(0)
    patches = Patches((1, 8, 8), 4)
    embed = nn.Sequential(patches, nn.Linear(patches.out_dim, 16))
    vae = VAE(
        p_z=StandardNormal(2),
        p_x_given_z=ConditionalBernoulli(MLP(2, (32,), (1, 8, 8))),
        q_z_given_x=ConditionalNormal(SequenceEncoder(embed, Transformer(16, patches.num_patches), (2, 2))),
    )
    x = (torch.rand(256, 1, 8, 8) < 0.5) & (torch.arange(8) < 4) | (torch.rand(256, 1, 1, 1) < 0.5)  # half are all ones
    run = ppvae.fit(vae, x.float(), epochs=30, batch_size=32, lr=3e-3, compile=False, progress=False)
    assert run.history[-1]["loss"] < run.history[0]["loss"] - 10
    assert vae.encode(x[:5].expand(3, 5, 1, 8, 8).float()).mean.shape == (3, 5, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SequenceEncoder(3, RNN(2, 2), 2), TypeError, "embed must be a torch.nn.Module, got int"),
        (lambda: SequenceEncoder(nn.Linear(2, 2), nn.Linear(2, 2), 2), TypeError, "net must be a ppvae.nn.SequenceNet"),
        (lambda: SequenceEncoder(nn.Linear(2, 2), RNN(2, 2), 0), ValueError, "out_shape must be a positive int"),
        (lambda: decoder(net=RNN(8, 2, direction="both")), ValueError, "net must be causal"),
        (lambda: decoder(context_dim=0), ValueError, "context_dim must be a whole number >= 1, got 0"),
        (lambda: decoder(word_dropout=1.0), ValueError, "word_dropout must be a finite number >= 0 and < 1"),
        (lambda: decoder()(tokens(T)), ValueError, r"z of SequenceDecoder must be of shape \(\.\.\., 2\), got None"),
        (lambda: decoder()(tokens(T), torch.zeros(3)), ValueError, r"must be of shape \(\.\.\., 2\), got \(3,\)"),
        (lambda: decoder(context_dim=None)(tokens(T), torch.zeros(2)), ValueError, "must be None, got"),
        (lambda: decoder(net=Transformer(8, 4, causal=True))(tokens(T), torch.zeros(2)), ValueError, "num_positions=4"),
        (lambda: Patches((1, 6), 3), ValueError, r"in_shape must be \(channels, height, width\), got \(1, 6\)"),
        (lambda: Patches((1, 6, 8), 3), ValueError, "size must divide height and width, 6 and 8, got 3"),
        (
            lambda: Patches((1, 6, 6), 3)(torch.zeros(6, 6)),
            ValueError,
            r"x of Patches must have shape \(\.\.\., 1, 6, 6",
        ),
        (lambda: TemporalConv(8, kernel_size=2), ValueError, "kernel_size must be odd where causal=False, got 2"),
        (lambda: TemporalConv(8, causal="no"), TypeError, "causal must be True or False, got 'no'"),
        (lambda: Transformer(8, 4, num_heads=3), ValueError, "num_heads must divide dim, 8, got 3"),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()


def decoder(**options):
    arguments = {"embed": nn.Embedding(V, 8), "net": RNN(8, 7), "context_dim": K, "out_shape": V}
    return SequenceDecoder(**arguments | options)
