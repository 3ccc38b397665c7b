"""A ladder VAE: `python -m ppvae.examples.ladder` (Sønderby et al. 2016, arXiv 1602.02282).

Trains two levels on scikit-learn's embedded digits in under a minute. The five-level model of the paper is
`--dataset mnist --cuda --latent-dims 64 32 16 8 4 --hidden-dims 512 256 128 64 32 --batch-size 256 --epochs 2000
--warmup 200`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from torch import nn

from ppvae.cli.experiment import Experiment
from ppvae.cli.images import ImageData
from ppvae.distributions import ConditionalNormal
from ppvae.examples.figures import write_level_figures
from ppvae.examples.levels import LevelArgs, Shape, model_pieces
from ppvae.models import LadderVAE
from ppvae.nn import MLP, Rescale
from ppvae.nn.layers import Layers


@dataclass(frozen=True)
class Args(LevelArgs):
    """Train a ladder VAE on images; report its ELBO, the KL of each level, and log p(x)."""

    activation: str = "leaky_relu"
    """Activation of the hidden layers: relu, leaky_relu, tanh, ..."""
    norm: Literal["batch", "layer"] | None = "batch"
    """Normalisation before each activation."""
    skip: bool = False
    """Give every conditional of the model all levels above its own, and not the nearest alone."""


def build(args: Args, data: ImageData) -> LadderVAE:
    """The pair that the flags describe."""
    widths = args.widths()
    d: list[nn.Module] = []
    below: Shape = data.event_shape
    for width in widths:
        # The last layer of each net is a hidden one too: what it gives goes up, and to the level's posterior.
        last = Layers(args.activation, args.norm).vector(width)
        hidden = (width,) * (args.num_hidden - 1)
        d.append(nn.Sequential(MLP(below, hidden, width, activation=args.activation, norm=args.norm), *last))
        below = width
    if args.likelihood == "categorical":  # integer levels to [0, 1]
        d[0] = nn.Sequential(Rescale(1 / (data.levels - 1)), d[0])
    q_z_given_d = [ConditionalNormal(MLP(width, (), (2, k))) for width, k in zip(widths, args.latent_dims, strict=True)]
    return LadderVAE(**model_pieces(args, data), d=d, q_z_given_d=q_z_given_d)


EXPERIMENT = Experiment("ladder", Args, build, write_level_figures)


def main(argv: list[str] | None = None) -> int:
    """Runs the example; returns its exit status."""
    return EXPERIMENT.main(argv)


if __name__ == "__main__":
    sys.exit(main())
