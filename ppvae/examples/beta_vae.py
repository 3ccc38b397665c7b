"""β-VAE and what it led to: `python -m ppvae.examples.beta_vae` (Higgins et al. 2017).

"beta-VAE: learning basic visual concepts with a constrained variational framework". Four ways to say how much of an
image z may hold: a weight on the KL term, a growing target for it (Burgess et al. 2018, arXiv 1804.03599), an upper
bound (Rezende & Viola 2018, arXiv 1810.00597), and nats that cost nothing (Kingma et al. 2016, arXiv 1606.04934).
Trains on scikit-learn's embedded digits in under a minute; `--dataset mnist --cuda` for the real thing.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Literal, Self

from pyro.infer import ELBO

from ppvae._validate import check_number
from ppvae.cli.experiment import Experiment, elbo_of_flag
from ppvae.cli.flags import check_used
from ppvae.cli.images import ImageData
from ppvae.distributions import ConditionalNormal, StandardNormal
from ppvae.examples.latents import active_units, write_unit_figures
from ppvae.examples.nets import NetArgs, decoder, encoder
from ppvae.models import VAE
from ppvae.objectives import CapacityELBO, ConstrainedELBO, FreeBitsELBO, Linear, beta_from_norm


@dataclass(frozen=True)
class Args(NetArgs):
    """Train a VAE with a weighted, targeted or bounded KL term on images; report its active units and log p(x)."""

    objective: Literal["beta", "capacity", "constrained", "free-bits"] = "beta"
    """beta: E log p(x|z) − β KL; capacity: E log p(x|z) − γ |KL − C|, with C growing; constrained: the best
    E log p(x|z) with KL ≤ δ; free-bits: the first κ nats of every unit cost nothing."""
    beta: float = 2.0
    """β, the weight of the KL term (beta)."""
    beta_norm: float | None = None
    """β k / d in place of β: comparable across sizes of latent and data (beta)."""
    capacity: float = 10.0
    """C at its end, in nats per image (capacity)."""
    capacity_epochs: float | None = None
    """Epochs over which C grows linearly from 0; by default half of all (capacity)."""
    gamma: float = 2.0
    """γ, the cost of a nat between KL and C: more than what a nat of KL gains, little enough that the nats are used to
    tell images apart; the paper has 1000, with 4096 pixels (capacity)."""
    max_kl: float = 10.0
    """δ, in nats per image (constrained)."""
    free_bits: float = 0.5
    """κ, in nats per unit (free-bits)."""
    num_valid: int | None = 0
    """Training data held out for validation. With none the last weights are kept; with some those of the best ELBO,
    which is not what is trained for here."""

    def resolved(self) -> Self:
        """These arguments with every default that depends on another filled in."""
        weight, target = ("beta",), ("capacity",)
        check_used(self, "objective", beta=weight, beta_norm=weight, max_kl=("constrained",), free_bits=("free-bits",))
        check_used(self, "objective", capacity=target, capacity_epochs=target, gamma=target, loss=weight)
        if self.beta_norm is not None and self.beta != Args.beta:
            raise ValueError(f"--beta-norm takes the place of --beta, got both: {self.beta_norm:g} and {self.beta:g}")
        if self.capacity_epochs is not None:
            check_number("--capacity-epochs", self.capacity_epochs, above=0)
        check_number("--capacity", self.capacity, at_least=0)
        return super().resolved()


def build(args: Args, data: ImageData) -> VAE:
    """The pair that the flags describe."""
    k, beta = args.latent_dim, args.beta
    if args.beta_norm is not None:
        beta = beta_from_norm(args.beta_norm, latent_dim=k, data_dim=math.prod(data.event_shape))
    q_z_given_x = ConditionalNormal(encoder(args, data, (2, k)))
    return VAE(StandardNormal(k), decoder(args, data), q_z_given_x, beta=beta if args.objective == "beta" else 1.0)


def objective(args: Args) -> ELBO:
    """The objective that the flags name."""
    if args.objective == "capacity":
        assert args.epochs is not None
        epochs = args.epochs / 2 if args.capacity_epochs is None else args.capacity_epochs
        return CapacityELBO(Linear(epochs, end=args.capacity), gamma=args.gamma)
    if args.objective == "constrained":
        return ConstrainedELBO(args.max_kl)
    return FreeBitsELBO(args.free_bits) if args.objective == "free-bits" else elbo_of_flag(args)


EXPERIMENT = Experiment("beta_vae", Args, build, write_unit_figures, objective=objective, measure=active_units)


def main(argv: list[str] | None = None) -> int:
    """Runs the example; returns its exit status."""
    return EXPERIMENT.main(argv)


if __name__ == "__main__":
    sys.exit(main())
