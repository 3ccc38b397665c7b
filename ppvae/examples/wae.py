"""A Wasserstein autoencoder: `python -m ppvae.examples.wae` (Tolstikhin et al. 2018, arXiv 1711.01558).

With `--alpha` the InfoVAE of Zhao et al. 2019 (arXiv 1706.02262). Trains on scikit-learn's embedded digits in under a
minute; `--dataset mnist --cuda` for the real thing.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal, Self

from pyro.infer import ELBO

from ppvae._validate import check_number
from ppvae.cli.experiment import Experiment
from ppvae.cli.flags import Likelihood
from ppvae.examples import codes
from ppvae.objectives import MMD, WAE, Critic, InfoVAE


@dataclass(frozen=True)
class Args(codes.CriticArgs):
    """Train a Wasserstein autoencoder or an InfoVAE on images; report reconstructions and how codes fill the prior."""

    posterior: Literal["point", "normal"] = "point"
    """q(z|x): the point that a net gives (a deterministic encoder, without an ELBO), or a diagonal normal."""
    likelihood: Likelihood = "gaussian"
    """Family of p(x|z): bernoulli is of binarized pixels, categorical and discretized-logistic of grey levels."""
    divergence: Literal["mmd", "gan"] = "mmd"
    """Between codes and draws of the prior: by a kernel, or by a critic."""
    kernel: Literal["imq", "rbf"] = "imq"
    """Inverse multiquadratic, or Gaussian (mmd)."""
    latent_dim: int = 8
    """Dimensions of z."""
    weight: float = 100.0
    """λ, the weight of the divergence."""
    alpha: float | None = None
    """Of InfoVAE: 1 − α weights the KL term, α + λ − 1 the divergence; --posterior normal. By default there is none."""

    def resolved(self) -> Self:
        """These arguments with every default that depends on another filled in."""
        check_number("--weight", self.weight, at_least=0)
        if self.alpha is not None:
            check_number("--alpha", self.alpha, at_most=1)
            if self.posterior == "point":
                raise ValueError("--alpha weights a KL term, which --posterior point has not: give --posterior normal")
        return super().resolved()


def objective(args: Args) -> ELBO:
    """The objective that the flags describe."""
    by_critic = args.divergence == "gan"
    divergence = Critic(args.critic(), "non-saturating", args.critic_steps) if by_critic else MMD(args.kernel)
    if args.alpha is None:
        return WAE(divergence, weight=args.weight)
    return InfoVAE(alpha=args.alpha, lam=args.weight, divergence=divergence)


def groups(args: Args) -> dict[str, dict[str, float]] | None:
    """The critic's learning rate, where there is one."""
    return codes.critic_groups(args) if args.divergence == "gan" else None


EXPERIMENT = Experiment(
    "wae",
    Args,
    codes.build,
    codes.write_code_figures,
    objective=objective,
    param_groups=groups,
    measure=codes.measure_codes,
)


def main(argv: list[str] | None = None) -> int:
    """Runs the example; returns its exit status."""
    return EXPERIMENT.main(argv)


if __name__ == "__main__":
    sys.exit(main())
