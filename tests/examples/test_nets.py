"""The flags and nets that the examples of models with one latent share."""

import pytest
import torch

from ppvae.cli.flags import ImageArgs
from ppvae.cli.images import load_images
from ppvae.examples import vae
from ppvae.examples.nets import NetArgs, decoder, encoder
from ppvae.nn import MLP, ConvDecoder, ConvEncoder


@pytest.fixture(scope="module")
def data():
    return load_images(ImageArgs(binarize="static"))


@pytest.mark.parametrize(
    ("kind", "widths", "nets"), [("mlp", (200, 200), (MLP, MLP)), ("conv", (32, 64), (ConvEncoder, ConvDecoder))]
)
def test_default_nets(kind, widths, nets, data):
    args = NetArgs(encoder=kind)
    assert args.widths() == widths
    assert isinstance(encoder(args, data, (2, 16)), nets[0])
    assert isinstance(decoder(args, data).net, nets[1])


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_layers_follow_the_flags(kind, data):
    args = NetArgs(encoder=kind, hidden_dims=(6, 5), activation="tanh", norm="batch", dropout=0.3)
    for net in (encoder(args, data, (2, 16)), decoder(args, data).net):
        kinds = [type(module).__name__ for module in net.modules()]
        assert kinds.count("Tanh") == 2
        assert sum(name.startswith("BatchNorm") for name in kinds) == 2
        assert [module.p for module in net.modules() if hasattr(module, "p")] == [0.3, 0.3]


def test_widths_of_many_layers_are_no_shape_that_memory_must_hold():
    assert NetArgs(hidden_dims=(512,) * 12).resolved().hidden_dims == (512,) * 12


def test_integer_levels_are_seen_as_intensities(data):
    torch.manual_seed(0)
    args = NetArgs(likelihood="categorical", hidden_dims=(5,))
    net = encoder(args, data, (2, 3))
    assert net.out_shape == (2, 3)
    x = torch.randint(0, data.levels, (4, 1, 8, 8))
    torch.testing.assert_close(net(x), net[1](x / (data.levels - 1)))
    assert decoder(args, data)(torch.zeros(4, 16)).log_prob(x).shape == (4,)


def test_logits_start_at_those_of_the_mean_image(data):
    p_x = decoder(NetArgs(), data)(torch.zeros(16))
    silent = decoder(NetArgs(hidden_dims=()), data)(torch.zeros(16))  # an affine map of zero is its bias
    mean = data.train[0].mean(0).clamp(1e-3, 1 - 1e-3)
    torch.testing.assert_close(silent.mean, mean)
    assert (p_x.mean - mean).abs().mean() < 0.05
    torch.testing.assert_close(silent.log_prob(torch.zeros(1, 8, 8)), (1 - mean).log().sum())


def test_gates_are_of_fully_connected_nets(tmp_path, capsys):
    assert vae.main(["--smoke", "--encoder", "conv", "--activation", "gated", "--out", str(tmp_path / "run")]) == 2
    assert "--encoder conv does not go with --activation gated" in capsys.readouterr().err
