"""An adversarial autoencoder: `python -m ppvae.examples.aae` (Makhzani et al. 2015, arXiv 1511.05644).

Trains on scikit-learn's embedded digits in under two minutes; `--dataset mnist --cuda` for the real thing.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal, Self

from pyro.infer import ELBO

from ppvae._validate import check_number
from ppvae.cli.experiment import Experiment
from ppvae.examples import codes
from ppvae.objectives import AAE


@dataclass(frozen=True)
class Args(codes.CriticArgs):
    """Train an adversarial autoencoder on images; report reconstructions, how codes fill the prior, and log p(x)."""

    posterior: Literal["point", "normal"] = "point"
    """q(z|x): the point that a net gives (a deterministic encoder, without an ELBO), or a diagonal normal. One as wide
    as the prior matches it at once and says nothing of the image: give it a small --weight."""
    latent_dim: int = 8
    """Dimensions of z."""
    weight: float = 10.0
    """λ, the weight of the encoder's adversarial loss."""
    encoder_loss: Literal["non-saturating", "ratio"] = "non-saturating"
    """What the encoder minimises of the critic's logit T = log q(z)/p(z): log (1 + exp T), or T."""

    def resolved(self) -> Self:
        """These arguments with every default that depends on another filled in."""
        check_number("--weight", self.weight, at_least=0)
        return super().resolved()


def objective(args: Args) -> ELBO:
    """The objective that the flags describe."""
    return AAE(args.critic(), weight=args.weight, encoder_loss=args.encoder_loss, critic_steps=args.critic_steps)


EXPERIMENT = Experiment(
    "aae",
    Args,
    codes.build,
    codes.write_code_figures,
    objective=objective,
    param_groups=codes.critic_groups,
    measure=codes.measure_codes,
)


def main(argv: list[str] | None = None) -> int:
    """Runs the example; returns its exit status."""
    return EXPERIMENT.main(argv)


if __name__ == "__main__":
    sys.exit(main())
