"""A VAE on images: `python -m ppvae.examples.vae` (Kingma & Welling 2014, arXiv 1312.6114).

Trains on scikit-learn's embedded digits in seconds; `--dataset mnist --cuda` for the real thing.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ppvae.cli.experiment import Experiment
from ppvae.cli.images import ImageData
from ppvae.distributions import ConditionalNormal, StandardNormal
from ppvae.examples.figures import write_figures
from ppvae.examples.nets import NetArgs, decoder, encoder
from ppvae.models import VAE


@dataclass(frozen=True)
class Args(NetArgs):
    """Train a VAE on images; report its ELBO and log p(x)."""

    beta: float = 1.0
    """Weight of the KL term while training (β-VAE)."""


def build(args: Args, data: ImageData) -> VAE:
    """The pair that the flags describe."""
    q_z_given_x = ConditionalNormal(encoder(args, data, (2, args.latent_dim)))
    return VAE(StandardNormal(args.latent_dim), decoder(args, data), q_z_given_x, beta=args.beta)


EXPERIMENT = Experiment("vae", Args, build, write_figures)


def main(argv: list[str] | None = None) -> int:
    """Runs the example; returns its exit status."""
    return EXPERIMENT.main(argv)


if __name__ == "__main__":
    sys.exit(main())
