"""Importance-weighted autoencoders: `python -m ppvae.examples.iwae` (Burda et al. 2016, arXiv 1509.00519).

Trains one level on scikit-learn's embedded digits in under a minute. The one-level model of the paper is
`--dataset mnist --cuda --num-particles 50 --batch-size 20 --adam-eps 1e-4 --lr-schedule burda --epochs 3280`, that with
two the same with `--latent-dims 100 50 --hidden-dims 200 100`. `--num-particles 1` is the VAE.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Literal, Self

from pyro.infer import ELBO

from ppvae._validate import check_count
from ppvae.cli.experiment import Experiment
from ppvae.cli.flags import check_used
from ppvae.cli.images import ImageData
from ppvae.examples import hierarchical
from ppvae.examples.figures import write_level_figures
from ppvae.examples.latents import active_units
from ppvae.models.levels import Levels
from ppvae.objectives import CIWAE, IWAE, MIWAE, PIWAE


@dataclass(frozen=True)
class Args(hierarchical.Args):
    """Train a VAE with one or more levels of latents on importance-weighted bounds; report its ELBO and log p(x)."""

    objective: Literal["iwae", "miwae", "ciwae", "piwae"] = "iwae"
    """iwae: the bound of K draws; miwae: the mean of M of them; ciwae: a mixture of it and the ELBO; piwae: iwae of MK
    draws for the model, miwae for the guide (Rainforth et al. 2018, arXiv 1802.04537)."""
    num_particles: int = 5
    """K, draws per datum in a bound; 1 is the ELBO."""
    num_groups: int = 8
    """M, of miwae and piwae: a datum has MK draws."""
    gradient: Literal["standard", "dreg", "stl"] = "standard"
    """Estimator of the guide's gradient: the paper's, doubly reparameterized (Tucker et al. 2018, arXiv 1810.04152), or
    sticking the landing (Roeder et al. 2017, arXiv 1703.09194)."""
    beta: float = 0.5
    """Of ciwae: the weight of the bound, between 0 (the ELBO) and 1 (iwae)."""
    warmup: float = 0.0
    """Must be 0: an importance-weighted bound has no KL term to weight."""
    num_valid: int | None = 0
    """Training data held out for validation. With none the last weights are kept, as in the paper; with some those of
    the best ELBO, which is not what is trained for here."""
    latent_dims: tuple[int, ...] = (50,)
    """Dimensions of z1, z2, ..., as many as there are to be levels."""

    def resolved(self) -> Self:
        """These arguments with every default that depends on another filled in."""
        check_count("--num-particles", self.num_particles)
        check_count("--num-groups", self.num_groups)
        check_used(self, "objective", num_groups=("miwae", "piwae"), beta=("ciwae",))
        if self.warmup:
            raise ValueError(
                f"--warmup must be 0: an importance-weighted bound has no KL term to weight, got {self.warmup}"
            )
        return super().resolved()


def build(args: Args, data: ImageData) -> Levels:
    """The pair that the flags describe."""
    return hierarchical.build(replace(args, beta=1.0), data)


def objective(args: Args) -> ELBO:
    """The bound that the flags name."""
    k, m, gradient = args.num_particles, args.num_groups, args.gradient
    if args.objective == "ciwae":
        return CIWAE(k, args.beta, gradient=gradient)
    if args.objective == "miwae":
        return MIWAE(m, k, gradient=gradient)
    return PIWAE(m, k, gradient=gradient) if args.objective == "piwae" else IWAE(k, gradient=gradient)


EXPERIMENT = Experiment("iwae", Args, build, write_level_figures, objective=objective, measure=active_units)


def main(argv: list[str] | None = None) -> int:
    """Runs the example; returns its exit status."""
    return EXPERIMENT.main(argv)


if __name__ == "__main__":
    sys.exit(main())
