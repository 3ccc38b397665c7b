"""What the examples of models with several levels of latents share: their flags, and the nets that these describe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from torch import nn

from ppvae._validate import check_count
from ppvae.cli.flags import ImageArgs
from ppvae.cli.images import ImageData
from ppvae.distributions import ConditionalNormal, StandardNormal
from ppvae.examples.nets import observed
from ppvae.nn import MLP, ConcatInputs, as_shape

Shape = int | tuple[int, ...]


@dataclass(frozen=True)
class LevelArgs(ImageArgs):
    """The flags of models with latents z1 … zL, from the data upwards."""

    latent_dims: tuple[int, ...] = (32, 16)
    """Dimensions of z1, z2, ..., as many as there are to be levels."""
    hidden_dims: tuple[int, ...] | None = None
    """Width of the hidden layers at each level; by default 200, and half as many at each further one."""
    num_hidden: int = 2
    """Hidden layers between one level and the next."""
    activation: str = "tanh"
    """Activation of the hidden layers: relu, leaky_relu, tanh, gated, ..."""
    norm: Literal["batch", "layer"] | None = None
    """Normalisation before each activation."""
    skip: bool = False
    """Give every conditional all levels that are drawn before its own, and not the nearest alone."""
    beta: float = 1.0
    """Weight of the KL terms while training."""
    warmup: float = 20.0
    """Epochs over which the weight of the KL terms rises linearly from 0 to its value."""

    def resolved(self) -> Self:
        """These arguments with every default that depends on another filled in."""
        for k in self.latent_dims:
            check_count("--latent-dims", k)
        return super().resolved()

    def widths(self) -> tuple[int, ...]:
        """The width of the hidden layers at each level.

        Raises:
            ValueError: where the flags do not go together.
        """
        check_count("--num-hidden", self.num_hidden)
        num_levels = len(self.latent_dims)
        if not num_levels:
            raise ValueError("--latent-dims must hold at least one number, got none")
        widths = tuple(max(1, 200 >> i) for i in range(num_levels)) if self.hidden_dims is None else self.hidden_dims
        if len(widths) != num_levels:
            raise ValueError(f"--hidden-dims must hold a width for each of {num_levels} levels, got {len(widths)}")
        return widths

    def net(self, in_shapes: Sequence[Shape], width: int, out_shape: Shape) -> nn.Module:
        """A net of one input, or of several, with hidden layers of this width."""
        shapes = [as_shape(shape, "in_shapes") for shape in in_shapes]
        dim = shapes[0] if len(shapes) == 1 else sum(map(math.prod, shapes))
        mlp = MLP(dim, (width,) * self.num_hidden, out_shape, activation=self.activation, norm=self.norm)
        return mlp if len(shapes) == 1 else ConcatInputs(shapes, mlp)


def model_pieces(args: LevelArgs, data: ImageData) -> dict[str, Any]:
    """The arguments of either model that say what its generative story is."""
    widths, dims = args.widths(), args.latent_dims
    above = [dims[i:] if args.skip else dims[i : i + 1] for i in range(len(dims))]
    p_z: list[nn.Module] = [
        ConditionalNormal(args.net(above[i + 1], widths[i + 1], (2, dims[i]))) for i in range(len(dims) - 1)
    ]
    return {
        "p_z": [*p_z, StandardNormal(dims[-1])],
        "p_x_given_z": observed(args, data, lambda shape: args.net(above[0], widths[0], shape)),
        "skip": args.skip,
        "beta": args.beta,
    }
