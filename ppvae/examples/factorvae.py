"""FactorVAE: `python -m ppvae.examples.factorvae` (Kim & Mnih 2018, arXiv 1802.05983).

"Disentangling by factorising": a VAE whose codes are made independent by a critic. Trains on scikit-learn's embedded
digits in under two minutes; `--dataset sprites` has factors that can be found.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Self

import torch
from pyro.infer import ELBO

from ppvae._validate import check_number
from ppvae.cli.experiment import Experiment
from ppvae.cli.images import ImageData
from ppvae.cli.report import Report
from ppvae.examples import codes
from ppvae.examples.latents import active_units, write_unit_figures
from ppvae.models import VAE
from ppvae.objectives import FactorVAE


@dataclass(frozen=True)
class Args(codes.CriticArgs):
    """Train a FactorVAE on images; report its active units, how far its codes are from independent, and log p(x)."""

    gamma: float = 10.0
    """γ, the weight of the total correlation."""
    spectral_norm: bool = False
    """Whether the critic's slope is bounded; its total correlation is then too."""
    latent_dim: int = 10
    """Dimensions of z."""

    def resolved(self) -> Self:
        """These arguments with every default that depends on another filled in."""
        check_number("--gamma", self.gamma, at_least=0)
        if self.posterior != "normal":
            raise ValueError("--posterior point has no KL term, which FactorVAE needs: give --posterior normal")
        return super().resolved()


def objective(args: Args) -> ELBO:
    """The objective that the flags describe."""
    return FactorVAE(args.critic(), gamma=args.gamma, critic_steps=args.critic_steps)


@torch.no_grad()
def measure(pair: VAE, args: Args, data: ImageData) -> Report:
    """Active units, and the total correlation of a normal with the covariance of the test images' codes."""
    torch.manual_seed(0)
    z = pair.encode(data.test[0][: args.num_eval].to(next(pair.parameters()).device)).sample()
    correlation = torch.corrcoef(z.double().T)
    total = float(-0.5 * torch.linalg.slogdet(correlation).logabsdet) if args.latent_dim > 1 else 0.0
    shown = {"total correlation of the codes, by their covariance, nats": {"mean": total, "std_error": None}}
    return active_units(pair, args, data) | shown


EXPERIMENT = Experiment(
    "factorvae",
    Args,
    codes.build,
    write_unit_figures,
    objective=objective,
    param_groups=codes.critic_groups,
    measure=measure,
)


def main(argv: list[str] | None = None) -> int:
    """Runs the example; returns its exit status."""
    return EXPERIMENT.main(argv)


if __name__ == "__main__":
    sys.exit(main())
