"""A VAE with several levels of latents: `python -m ppvae.examples.hierarchical` (Burda et al. 2016, arXiv 1509.00519).

Trains two levels on scikit-learn's embedded digits in under a minute. The two-level model of the paper is
`--dataset mnist --cuda --latent-dims 100 50 --hidden-dims 200 100 --warmup 0 --batch-size 20 --adam-eps 1e-4
--epochs 3280 --lr-schedule burda`. That of Tomczak & Welling (2018, arXiv 1705.07120), with a VampPrior, is
`--dataset mnist --cuda --guide top-down --prior vamp --num-components 500 --skip --latent-dims 40 40
--hidden-dims 300 300 --activation gated --warmup 100 --batch-size 100 --lr 5e-4 --epochs 2000 --patience 50`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from torch import Tensor, nn

from ppvae._validate import check_count
from ppvae.cli.experiment import Experiment
from ppvae.cli.flags import check_used
from ppvae.cli.images import ImageData
from ppvae.distributions import ConditionalNormal
from ppvae.examples.figures import write_level_figures
from ppvae.examples.levels import LevelArgs, Shape, model_pieces
from ppvae.examples.nets import vamp_prior
from ppvae.models import HierarchicalVAE, TopDownVAE
from ppvae.models.levels import Levels
from ppvae.nn import Rescale


@dataclass(frozen=True)
class Args(LevelArgs):
    """Train a VAE with several levels of latents on images; report its ELBO, the KL of each level, and log p(x)."""

    loss: Literal["trace"] = "trace"
    """Pyro's ELBO, from the samples alone: with a bottom-up guide no KL term has a closed form, nor has a mixture's."""
    guide: Literal["bottom-up", "top-down"] = "bottom-up"
    """Order of the guide: z1 given x, z2 given z1, ..., or the model's own, zL first, each level given x too."""
    prior: Literal["standard", "vamp"] = "standard"
    """Prior of the top level: N(0, I), or the average of q(zL|x) at pseudo-inputs (top-down)."""
    num_components: int = 100
    """Pseudo-inputs, which start at training images (vamp)."""

    def resolved(self) -> Self:
        """These arguments with every default that depends on another filled in."""
        check_count("--num-components", self.num_components)
        check_used(self, "prior", num_components=("vamp",))
        if self.guide == "bottom-up" and self.prior == "vamp":
            raise ValueError("--prior vamp needs --guide top-down: its q(zL|x) takes an image alone")
        return super().resolved()


class OfIntensities(nn.Module):
    """A net whose last input is an image of integer levels, which it sees as intensities in [0, 1]."""

    def __init__(self, net: nn.Module, levels: int) -> None:
        super().__init__()
        self.net, self.rescale, self.out_shape = net, Rescale(1 / (levels - 1)), net.out_shape

    def forward(self, *inputs: Tensor) -> Tensor:
        """Maps codes (..., k), if any, and an image (..., c, h, w) to (..., *out_shape)."""
        *codes, x = inputs
        return self.net(*codes, self.rescale(x))


def build(args: Args, data: ImageData) -> Levels:
    """The pair that the flags describe."""
    pieces = model_pieces(args, data)
    return bottom_up(args, data, pieces) if args.guide == "bottom-up" else top_down(args, data, pieces)


def bottom_up(args: Args, data: ImageData, pieces: dict[str, Any]) -> HierarchicalVAE:
    """The pair whose guide goes from the image upwards."""
    below: list[Shape] = [data.event_shape, *args.latent_dims]
    q_z = [
        posterior(args, data, below[i::-1] if args.skip else below[i : i + 1], i) for i in range(len(args.latent_dims))
    ]
    return HierarchicalVAE(**pieces, q_z=q_z)


def top_down(args: Args, data: ImageData, pieces: dict[str, Any]) -> TopDownVAE:
    """The pair whose guide goes from the top downwards."""
    dims = args.latent_dims
    above = [dims[i + 1 :] if args.skip else dims[i + 1 : i + 2] for i in range(len(dims))]
    q_z = [posterior(args, data, (*above[i], data.event_shape), i) for i in range(len(dims))]
    if args.prior == "vamp":
        pieces["p_z"][-1] = vamp_prior(args, data, q_z[-1], args.num_components, start_at="data")
    return TopDownVAE(**pieces, q_z=q_z)


def posterior(args: Args, data: ImageData, seen: Sequence[Shape], level: int) -> ConditionalNormal:
    """The posterior of a level (0 is z1), given inputs of these shapes."""
    net = args.net(seen, args.widths()[level], (2, args.latent_dims[level]))
    sees_levels = args.likelihood == "categorical" and seen[-1] == data.event_shape
    return ConditionalNormal(OfIntensities(net, data.levels) if sees_levels else net)


EXPERIMENT = Experiment("hierarchical", Args, build, write_level_figures)


def main(argv: list[str] | None = None) -> int:
    """Runs the example; returns its exit status."""
    return EXPERIMENT.main(argv)


if __name__ == "__main__":
    sys.exit(main())
