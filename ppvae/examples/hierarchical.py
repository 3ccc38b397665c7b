"""A VAE with several levels of latents: `python -m ppvae.examples.hierarchical` (Burda et al. 2016, arXiv 1509.00519).

Trains two levels on scikit-learn's embedded digits in under a minute. The two-level model of the paper is
`--dataset mnist --cuda --latent-dims 100 50 --hidden-dims 200 100 --warmup 0 --batch-size 20 --adam-eps 1e-4
--epochs 3280 --lr-schedule burda`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from ppvae.distributions import ConditionalNormal
from ppvae.examples.experiment import Experiment
from ppvae.examples.figures import write_level_figures
from ppvae.examples.images import ImageData
from ppvae.examples.levels import LevelArgs, Shape, model_pieces
from ppvae.models import HierarchicalVAE
from ppvae.nn import Rescale


@dataclass(frozen=True)
class Args(LevelArgs):
    """Train a VAE with several levels of latents on images; report its ELBO, the KL of each level, and log p(x)."""

    loss: Literal["trace"] = "trace"
    """Pyro's ELBO, from the samples alone: with a bottom-up guide no KL term has a closed form."""


class OfIntensities(nn.Module):
    """A net whose last input is an image of integer levels, which it sees as intensities in [0, 1]."""

    def __init__(self, net: nn.Module, levels: int) -> None:
        super().__init__()
        self.net, self.rescale, self.out_shape = net, Rescale(1 / (levels - 1)), net.out_shape

    def forward(self, *inputs: Tensor) -> Tensor:
        """Maps codes (..., k), if any, and an image (..., c, h, w) to (..., *out_shape)."""
        *codes, x = inputs
        return self.net(*codes, self.rescale(x))


def build(args: Args, data: ImageData) -> HierarchicalVAE:
    """The pair that the flags describe."""
    pieces = model_pieces(args, data)
    below: list[Shape] = [data.event_shape, *args.latent_dims]
    q_z: list[nn.Module] = []
    for i, (width, k) in enumerate(zip(args.widths(), args.latent_dims, strict=True)):
        seen = below[i::-1] if args.skip else below[i : i + 1]
        net = args.net(seen, width, (2, k))
        sees_levels = args.likelihood == "categorical" and (args.skip or i == 0)
        q_z.append(ConditionalNormal(OfIntensities(net, data.levels) if sees_levels else net))
    return HierarchicalVAE(**pieces, q_z=q_z)


EXPERIMENT = Experiment("hierarchical", Args, build, write_level_figures)


def main(argv: list[str] | None = None) -> int:
    """Runs the example; returns its exit status."""
    return EXPERIMENT.main(argv)


if __name__ == "__main__":
    sys.exit(main())
