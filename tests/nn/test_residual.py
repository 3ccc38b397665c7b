import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ppvae.nn import ConvResidualBlock, ResidualBlock, ResidualMLP


def test_vector_block_is_the_formula():
    torch.manual_seed(0)
    block = ResidualBlock(4)
    first, second = (m for m in block.modules() if isinstance(m, nn.Linear))
    x = torch.randn(3, 5, 4)
    torch.testing.assert_close(block(x), x + second(F.relu(first(F.relu(x)))))


def test_image_block_is_the_formula():
    torch.manual_seed(0)
    block = ConvResidualBlock(4, norm="layer", activation="elu")
    first, second = (m for m in block.modules() if isinstance(m, nn.Conv2d))
    x = torch.randn(3, 4, 7, 5)

    def norm(x):  # at its initial unit gain: each image standardised over channels and pixels
        flat = x.flatten(1)
        scale = (flat.var(1, correction=0) + 1e-5).sqrt()
        return (x - flat.mean(1)[:, None, None, None]) / scale[:, None, None, None]

    torch.testing.assert_close(block(x), x + second(F.elu(norm(first(F.elu(norm(x)))))))


@pytest.mark.parametrize("norm", [None, "batch", "layer"])
def test_a_block_without_residual_weights_is_the_identity(norm):
    torch.manual_seed(0)
    for block, x in (
        (ResidualBlock(4, norm=norm), torch.randn(6, 4)),
        (ConvResidualBlock(4, norm=norm), torch.randn(2, 4, 3, 3)),
    ):
        for parameter in block.body[-1].parameters():
            nn.init.zeros_(parameter)
        assert torch.equal(block(x), x)


def test_residual_mlp_has_its_blocks():
    net = ResidualMLP(3, 8, 5, 2)
    assert sum(isinstance(m, ResidualBlock) for m in net.modules()) == 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResidualBlock(0), "dim must be a whole number >= 1, got 0"),
        (lambda: ConvResidualBlock(2.0), "channels must be a whole number >= 1, got 2.0"),
        (lambda: ResidualMLP(3, 0, 1, 2), "hidden_dim must be a whole number >= 1, got 0"),
        (lambda: ResidualMLP(3, 8, 0, 2), "num_blocks must be a whole number >= 1, got 0"),
        (lambda: ResidualMLP(3, 8, 1, -2), "out_shape must be .*, got -2"),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()
