"""A VAE on images: `python -m ppvae.examples.vae` (Kingma & Welling 2014, arXiv 1312.6114).

Trains on scikit-learn's embedded digits in seconds; `--dataset mnist --cuda` for the real thing.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from torch import nn

from ppvae.distributions import ConditionalNormal, StandardNormal
from ppvae.examples.experiment import Experiment
from ppvae.examples.figures import write_figures
from ppvae.examples.flags import ExperimentArgs
from ppvae.examples.images import ImageData, likelihood, start_at_mean
from ppvae.models import VAE
from ppvae.nn import MLP, ConvDecoder, ConvEncoder, Rescale


@dataclass(frozen=True)
class Args(ExperimentArgs):
    """Train a VAE on images; report its ELBO and log p(x)."""

    encoder: Literal["mlp", "conv"] = "mlp"
    """Kind of the networks: fully connected, or convolutional."""
    latent_dim: int = 16
    """Dimensions of z."""
    hidden_dims: tuple[int, ...] | None = None
    """Widths of the encoder's hidden layers (the decoder's are reversed), or channels where it is convolutional,
    each of which halves the image; by default 200 200, or 32 64."""
    activation: str = "relu"
    """Activation of the hidden layers: relu, tanh, gelu, ..."""
    beta: float = 1.0
    """Weight of the KL term while training (β-VAE)."""


def build(args: Args, data: ImageData) -> VAE:
    """The pair that the flags describe."""
    k, shape = args.latent_dim, data.event_shape
    parameters = {"categorical": (data.levels,)}.get(args.likelihood, ())
    if args.encoder == "mlp":
        hidden = args.hidden_dims if args.hidden_dims is not None else (200, 200)
        encoder: nn.Module = MLP(shape, hidden, (2, k), activation=args.activation)
        decoder: nn.Module = MLP(k, hidden[::-1], (*parameters, *shape), activation=args.activation)
    else:
        hidden = args.hidden_dims if args.hidden_dims is not None else (32, 64)
        encoder = ConvEncoder(shape, hidden, (2, k), activation=args.activation)
        decoder = ConvDecoder(k, hidden[::-1], (*parameters, *shape), activation=args.activation)
    if args.likelihood == "bernoulli" and isinstance(decoder, MLP):
        start_at_mean(decoder, data.train[0])
    if args.likelihood == "categorical":  # integer levels to [0, 1]
        encoder = nn.Sequential(Rescale(1 / (data.levels - 1)), encoder)
    return VAE(
        p_z=StandardNormal(k),
        p_x_given_z=likelihood(args, decoder, data.levels),
        q_z_given_x=ConditionalNormal(encoder),
        beta=args.beta,
    )


EXPERIMENT = Experiment("vae", Args, build, write_figures)


def main(argv: list[str] | None = None) -> int:
    """Runs the example; returns its exit status."""
    return EXPERIMENT.main(argv)


if __name__ == "__main__":
    sys.exit(main())
