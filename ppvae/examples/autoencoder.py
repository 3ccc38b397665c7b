"""A deterministic autoencoder, beside PCA: `python -m ppvae.examples.autoencoder` (Ghosh et al. 2020).

"From variational to deterministic autoencoders", arXiv 1903.12436. After training a mixture of normals is fitted to the
codes and becomes the prior, which makes a generative model of it. Without hidden layers (`--hidden-dims` alone) it is
PCA, up to a linear map of the codes. Trains on scikit-learn's embedded digits in under a minute; `--dataset mnist` and
`--cuda` for more.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pyro.infer import ELBO

from ppvae._validate import check_count, check_number
from ppvae.cli.experiment import Experiment
from ppvae.cli.flags import Likelihood
from ppvae.cli.images import ImageData
from ppvae.cli.report import Report
from ppvae.data import binarize
from ppvae.distributions import MixturePrior
from ppvae.examples import codes
from ppvae.infer import Run
from ppvae.models import VAE, fit_prior
from ppvae.objectives import AE, RAE


@dataclass(frozen=True)
class Args(codes.CodeArgs):
    """Train an autoencoder on images, fit a prior to its codes; report reconstructions beside PCA's."""

    posterior: Literal["point", "normal"] = "point"
    """q(z|x): the point that a net gives (a deterministic encoder, without an ELBO), or a diagonal normal."""
    likelihood: Likelihood = "gaussian"
    """Family of p(x|z): bernoulli is of binarized pixels, categorical and discretized-logistic of grey levels."""
    code_weight: float = 1e-2
    """β of β/2 ‖z‖², which keeps the codes small; 0 is the plain autoencoder."""
    weight_decay: float = 0.0
    """L2 on the decoder's weights."""
    num_components: int = 10
    """Normals in the mixture that is fitted to the codes."""

    def resolved(self) -> Self:
        """These arguments with every default that depends on another filled in."""
        check_number("--code-weight", self.code_weight, at_least=0)
        check_number("--weight-decay", self.weight_decay, at_least=0)
        check_count("--num-components", self.num_components)
        return super().resolved()


def build(args: Args, data: ImageData) -> VAE:
    """The pair that the flags describe, its prior as it is before it is fitted."""
    pair = codes.build(args, data)
    pair.p_z = MixturePrior(args.num_components, args.latent_dim, covariance="full")
    return pair


def objective(args: Args) -> ELBO:
    """The objective that the flags name."""
    return RAE(args.code_weight) if args.code_weight else AE()


def decay(args: Args) -> dict[str, dict[str, float]] | None:
    """L2 on the decoder's weights."""
    return {"p_x_given_z.*": {"weight_decay": args.weight_decay}} if args.weight_decay else None


def fit(pair: VAE, args: Args, data: ImageData, run: Run) -> None:
    """Fits the prior to the codes of the training images."""
    x = data.train[0]
    fit_prior(
        pair, binarize(x) if args.binarize == "dynamic" else x, num_components=args.num_components, seed=args.seed
    )


@torch.no_grad()
def measure(pair: VAE, args: Args, data: ImageData) -> Report:
    """What is measured of codes, with PCA beside."""
    return codes.measure_codes(pair, args, data) | codes.pca_error(args, data)


EXPERIMENT = Experiment(
    "autoencoder",
    Args,
    build,
    codes.write_code_figures,
    objective=objective,
    after=fit,
    param_groups=decay,
    measure=measure,
)


def main(argv: list[str] | None = None) -> int:
    """Runs the example; returns its exit status."""
    return EXPERIMENT.main(argv)


if __name__ == "__main__":
    sys.exit(main())
