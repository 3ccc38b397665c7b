"""What the examples of models with one latent share: the flags of their nets, and the nets that these describe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import nn

from ppvae._validate import check_count
from ppvae.cli.flags import ImageArgs
from ppvae.cli.images import ImageData, likelihood, start_at_mean
from ppvae.distributions import VampPrior
from ppvae.nn import MLP, ConvDecoder, ConvEncoder, Rescale


@dataclass(frozen=True)
class NetArgs(ImageArgs):
    """The flags of a model with one latent z."""

    encoder: Literal["mlp", "conv"] = "mlp"
    """Kind of the networks: fully connected, or convolutional."""
    latent_dim: int = 16
    """Dimensions of z."""
    hidden_dims: tuple[int, ...] | None = None
    """Widths of the encoder's hidden layers (the decoder's are reversed), or channels where it is convolutional,
    each of which halves the image; by default 200 200, or 32 64."""
    activation: str = "relu"
    """Activation of the hidden layers: relu, tanh, gelu, ..., or gated (fully connected only)."""
    norm: Literal["batch", "layer"] | None = None
    """Normalisation before each activation."""
    dropout: float = 0.0
    """Probability with which a hidden unit is dropped while training."""

    def resolved(self) -> Self:
        """These arguments with every default that depends on another filled in."""
        check_count("--latent-dim", self.latent_dim)
        if self.encoder == "conv" and self.activation == "gated":
            raise ValueError("--encoder conv does not go with --activation gated: give another, such as relu")
        return super().resolved()

    def widths(self) -> tuple[int, ...]:
        """The hidden layers of the encoder."""
        default = (200, 200) if self.encoder == "mlp" else (32, 64)
        return default if self.hidden_dims is None else self.hidden_dims

    def layers(self) -> dict[str, Any]:
        """The options of both nets."""
        return {"activation": self.activation, "norm": self.norm, "dropout": self.dropout}


def encoder(args: NetArgs, data: ImageData, out_shape: int | tuple[int, ...]) -> nn.Module:
    """The net from an image to what a posterior is made of, of shape `out_shape`."""
    kind = MLP if args.encoder == "mlp" else ConvEncoder
    net = kind(data.event_shape, args.widths(), out_shape, **args.layers())
    return of_intensities(args, data, net)


def of_intensities(args: ImageArgs, data: ImageData, net: nn.Module) -> nn.Module:
    """The net as one of what the data hold: where pixels are integer levels it sees them in [0, 1]."""
    if args.likelihood != "categorical":
        return net
    whole = nn.Sequential(Rescale(1 / (data.levels - 1)), net)
    whole.out_shape = net.out_shape  # what distributions read the size off
    return whole


def decoder(args: NetArgs, data: ImageData) -> nn.Module:
    """p(x|z), of the family that `--likelihood` names."""
    kind = MLP if args.encoder == "mlp" else ConvDecoder
    return observed(args, data, lambda shape: kind(args.latent_dim, args.widths()[::-1], shape, **args.layers()))


def observed(args: ImageArgs, data: ImageData, make: Callable[[tuple[int, ...]], nn.Module]) -> nn.Module:
    """p(x|·), by the net that `make` gives for the shape of its parameters; logits start at those of the mean image."""
    parameters = (data.levels,) if args.likelihood == "categorical" else ()
    net = make((*parameters, *data.event_shape))
    if args.likelihood == "bernoulli" and not isinstance(net, ConvDecoder):
        start_at_mean(net, data.train[0])
    return likelihood(args, net, data.levels)


def vamp_prior(args: ImageArgs, data: ImageData, q_z_given_x: nn.Module, num: int, *, start_at: str) -> VampPrior:
    """The mixture of an encoder's posteriors at so many pseudo-inputs, which start at training images or near zero.

    Raises:
        ValueError: where there are not so many training images.
    """
    x = data.train[0]
    highest = float(data.levels - 1) if args.likelihood == "categorical" else 1.0
    if start_at == "random":
        start = highest * (0.05 + 0.01 * torch.randn(num, *data.event_shape))
    elif num > len(x):
        raise ValueError(f"--num-components {num} is more than the {len(x)} training images that they start at")
    else:
        start = x[torch.randperm(len(x))[:num]].float()
    return VampPrior(q_z_given_x, start, bounds=(0.0, highest))
