"""A VAE with a VampPrior: `python -m ppvae.examples.vamp` (Tomczak & Welling 2018, arXiv 1705.07120).

Trains on scikit-learn's embedded digits in under a minute. The one-level model of the paper is `--dataset mnist --cuda
--batch-size 100 --lr 5e-4 --warmup 100 --epochs 2000 --patience 50`; `--prior standard` is what it is compared with.
`python -m ppvae.examples.hierarchical --guide top-down --prior vamp` has several levels.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Literal, Self

from torch import nn

from ppvae._validate import check_count
from ppvae.cli.experiment import Experiment
from ppvae.cli.flags import check_used
from ppvae.cli.images import ImageData
from ppvae.distributions import ConditionalNormal, FlowPrior, MixturePrior, StandardNormal
from ppvae.examples.figures import write_figures
from ppvae.examples.nets import NetArgs, decoder, encoder, vamp_prior
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
        check_used(self, "prior", num_components=("vamp", "mixture"), pseudo_inputs=("vamp",))
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
        p_z = vamp_prior(args, data, q_z_given_x, args.num_components, start_at=args.pseudo_inputs)
    elif args.prior == "mixture":
        p_z = MixturePrior(args.num_components, k)
    elif args.prior == "flow":
        p_z = FlowPrior(k, hidden_dims=max(128, k))
    return VAE(p_z, decoder(args, data), q_z_given_x)


EXPERIMENT = Experiment("vamp", Args, build, write_figures)


def main(argv: list[str] | None = None) -> int:
    """Runs the example; returns its exit status."""
    return EXPERIMENT.main(argv)


if __name__ == "__main__":
    sys.exit(main())
