"""A VAE with a VampPrior: `python -m ppvae.examples.vamp` (Tomczak & Welling 2018, arXiv 1705.07120).

Trains on scikit-learn's embedded digits in under a minute. The one-level model of the paper is `--dataset mnist --cuda
--batch-size 100 --lr 5e-4 --warmup 100 --epochs 2000 --patience 50`; `--prior standard` is what it is compared with.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from ppvae.distributions import ConditionalNormal, FlowPrior, MixturePrior, StandardNormal, VampPrior
from ppvae.examples.experiment import Experiment
from ppvae.examples.figures import write_figures
from ppvae.examples.images import ImageData
from ppvae.examples.nets import NetArgs, decoder, encoder
from ppvae.infer.importance import check_count
from ppvae.models import VAE


@dataclass(frozen=True)
class Args(NetArgs):
    """Train a VAE with a learned prior on images; report its ELBO and log p(x)."""

    prior: Literal["vamp", "standard", "mixture", "flow"] = "vamp"
    """p(z): the average of q(z|x) at pseudo-inputs, N(0, I), a mixture of normals, or an autoregressive flow."""
    epochs: int | None = None
    """Passes over the training data; by default 150 on the digits, 50 on larger sets."""
    warmup: float = 20.0
    """Epochs over which the weight of the KL term rises from 0 to its value. Without, z easily goes unused: where all
    posteriors are alike, so is the prior, and the KL term is zero."""
    num_components: int | None = None
    """Pseudo-inputs (vamp), or components (mixture); by default 100 on the digits, 500 on larger sets."""
    pseudo_inputs: Literal["data", "random"] = "data"
    """Where pseudo-inputs start: at training images, or near zero as in the paper's code (vamp)."""
    latent_dim: int = 40
    """Dimensions of z."""
    hidden_dims: tuple[int, ...] | None = (300, 300)
    """Widths of the encoder's hidden layers (the decoder's are reversed), or channels where it is convolutional,
    each of which halves the image."""
    activation: str = "gated"
    """Activation of the hidden layers: gated (fully connected only), relu, tanh, gelu, ..."""

    def resolved(self) -> Self:
        """These arguments with every default that depends on another filled in."""
        epochs, usual = (150, 100) if self.dataset == "digits" else (50, 500)
        num = usual if self.num_components is None else self.num_components
        check_count("--num-components", num)
        args = replace(self, epochs=epochs if self.epochs is None else self.epochs, num_components=num)
        return super(Args, args).resolved()


def build(args: Args, data: ImageData) -> VAE:
    """The pair that the flags describe."""
    assert args.num_components is not None
    k = args.latent_dim
    q_z_given_x = ConditionalNormal(encoder(args, data, (2, k)))
    p_z: nn.Module = StandardNormal(k)
    if args.prior == "vamp":
        highest = float(data.levels - 1) if args.likelihood == "categorical" else 1.0
        start = first_pseudo_inputs(args, data, args.num_components, highest)
        p_z = VampPrior(q_z_given_x, start, bounds=(0.0, highest))
    elif args.prior == "mixture":
        p_z = MixturePrior(args.num_components, k)
    elif args.prior == "flow":
        p_z = FlowPrior(k, hidden_dims=max(128, k))
    return VAE(p_z, decoder(args, data), q_z_given_x)


def first_pseudo_inputs(args: Args, data: ImageData, num: int, highest: float) -> Tensor:
    """Where so many pseudo-inputs start, (num, *event), for data from 0 to `highest`.

    Raises:
        ValueError: where there are not so many training images.
    """
    x = data.train[0]
    if args.pseudo_inputs == "random":
        return highest * (0.05 + 0.01 * torch.randn(num, *data.event_shape))
    if num > len(x):
        raise ValueError(f"--num-components {num} is more than the {len(x)} training images that they start at")
    return x[torch.randperm(len(x))[:num]].float()


EXPERIMENT = Experiment("vamp", Args, build, write_figures)


def main(argv: list[str] | None = None) -> int:
    """Runs the example; returns its exit status."""
    return EXPERIMENT.main(argv)


if __name__ == "__main__":
    sys.exit(main())
