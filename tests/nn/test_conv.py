import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ppvae.nn import ConvDecoder, ConvEncoder

IMAGES = [
    ((1, 1, 1), ()),
    ((3, 2, 1), (4,)),
    ((1, 8, 8), (4, 4, 4)),
    ((1, 28, 28), (4, 4)),
    ((3, 32, 32), (4, 4)),
    ((2, 33, 17), (4, 4, 4, 4, 4, 4)),
    ((1, 1, 100), (4, 4)),
]


@pytest.mark.parametrize("num_residual", [0, 1])
@pytest.mark.parametrize(("image", "channels"), IMAGES)
def test_any_image_size(image, channels, num_residual):
    torch.manual_seed(0)
    encoder = ConvEncoder(image, channels, (2, 3), num_residual=num_residual)
    decoder = ConvDecoder(3, channels, (2, *image), num_residual=num_residual)
    assert encoder(torch.randn(2, *image)).shape == (2, 2, 3)
    assert decoder(torch.randn(2, 3)).shape == (2, 2, *image)
    assert (encoder.in_shape, encoder.out_shape) == (image, (2, 3))
    assert (decoder.in_shape, decoder.out_shape) == ((3,), (2, *image))


@pytest.mark.parametrize(("image", "channels"), IMAGES)
def test_decoder_mirrors_the_sizes_of_the_encoder(image, channels):
    encoder = ConvEncoder(image, channels, 3)
    decoder = ConvDecoder(3, channels[::-1], image)

    def feature_maps(net, x):
        shapes = []
        for module in net.modules():
            module.register_forward_hook(lambda _, __, out: shapes.append(out.shape[1:]) if out.dim() == 4 else None)
        net(x)
        return {shape for shape in shapes if shape[0] == 4}  # in- and output of a decoder's cut differ

    down = feature_maps(encoder, torch.zeros(2, *image))
    up = feature_maps(decoder, torch.zeros(2, 3))
    assert down <= up


def test_encoder_is_the_formula():
    torch.manual_seed(0)
    net = ConvEncoder((2, 5, 4), (3,), 6)
    conv, linear = (m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    x = torch.randn(7, 2, 5, 4)
    h = F.relu(F.conv2d(x, conv.weight, conv.bias, stride=2, padding=1))
    assert h.shape == (7, 3, 3, 2)
    torch.testing.assert_close(net(x), h.flatten(1) @ linear.weight.T + linear.bias)


def test_decoder_pixels_have_two_by_two_taps_each():
    """With all weights one and no bias, the inside of the image is flat: no checkerboard."""
    net = ConvDecoder(1, (1,), (1, 11, 9), activation="identity")
    for name, parameter in net.named_parameters():
        nn.init.constant_(parameter, float(name.endswith("weight")))
    image = net(torch.ones(1))
    assert image.shape == (1, 11, 9)
    assert torch.equal(image[0, 1:-1, 1:-1], torch.full((9, 7), 4.0))


def test_parameters_of_a_pixel_are_channels_of_the_last_convolution():
    net = ConvDecoder(4, (8,), (2, 3, 6, 6))
    (conv,) = (m for m in net.modules() if isinstance(m, nn.ConvTranspose2d))
    assert conv.out_channels == 6
    z = torch.randn(5, 4)
    assert torch.equal(net(z).flatten(1, 2), net[0].net(z))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ConvEncoder((28, 28), (8,), 2),
            r"in_shape must be an image shape \(c, h, w\), got \(28, 28\)",
        ),
        (
            lambda: ConvDecoder(2, (8,), (28, 28)),
            r"out_shape must end in .* \(c, h, w\), got \(28, 28\)",
        ),
        (
            lambda: ConvEncoder((1, 8, 5), (4,) * 4, 2),
            "channels has 4 entries, each for one halving .*, but 8×5 can be halved 3 times at most",
        ),
        (lambda: ConvDecoder(2, (4,), (1, 1, 1)), "but 1×1 can be halved 0 times at most"),
        (lambda: ConvEncoder((1, 8, 8), (4, 0), 2), r"channels must be .*, got \(4, 0\)"),
        (
            lambda: ConvEncoder((1, 8, 8), (4,), 2, num_residual=-1),
            "num_residual must be a whole number >= 0, got -1",
        ),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()
