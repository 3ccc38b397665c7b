"""A VAE with a flow as its posterior: `python -m ppvae.examples.flow_vae` (Kingma et al. 2016, arXiv 1606.04934).

Inverse autoregressive, planar (Rezende & Mohamed 2015, arXiv 1505.05770), Householder (Tomczak & Welling 2016, arXiv
1611.09630) and spline flows (Durkan et al. 2019, arXiv 1906.04032), or a normal with a full covariance. Trains on
scikit-learn's embedded digits in under a minute; `--dataset mnist --cuda` for the real thing, `--flow none` for what
they are compared with.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Literal, Self

from torch import nn

from ppvae.cli.experiment import Experiment
from ppvae.cli.flags import check_used
from ppvae.cli.images import ImageData
from ppvae.distributions import ConditionalMultivariateNormal, ConditionalNormal, FlowPosterior, StandardNormal
from ppvae.examples.figures import write_figures
from ppvae.examples.nets import NetArgs, decoder, encoder
from ppvae.models import VAE


@dataclass(frozen=True)
class Args(NetArgs):
    """Train a VAE whose posterior is richer than a diagonal normal on images; report its ELBO and log p(x)."""

    warmup: float = 20.0
    """Epochs over which the weight of the KL term rises from 0 to its value. Without, z easily goes unused."""
    flow: Literal["iaf", "planar", "householder", "spline", "full-covariance", "none"] = "iaf"
    """q(z|x): a diagonal normal pushed through a flow of this kind, a normal with a full covariance, or one with a
    diagonal covariance."""
    num_flows: int = 2
    """Number of transforms of a flow."""
    flow_dims: tuple[int, ...] | None = None
    """Widths of the hidden layers of the nets in the transforms, of iaf and spline each at least --latent-dim; by
    default 128, or as many as that."""

    def resolved(self) -> Self:
        """These arguments with every default that depends on another filled in."""
        flows = ("iaf", "planar", "householder", "spline")
        check_used(self, "flow", num_flows=flows, flow_dims=flows)
        least = self.latent_dim if self.flow in ("iaf", "spline") else 1
        dims = (max(128, self.latent_dim),) if self.flow_dims is None else self.flow_dims
        if not dims or min(dims) < least:
            raise ValueError(f"--flow-dims must be widths of at least {least} for this flow, got {dims}")
        return replace(super().resolved(), flow_dims=dims)


def build(args: Args, data: ImageData) -> VAE:
    """The pair that the flags describe."""
    return VAE(StandardNormal(args.latent_dim), decoder(args, data), posterior(args, data))


def posterior(args: Args, data: ImageData) -> nn.Module:
    """q(z|x); the context of a flow is as large as z."""
    k = args.latent_dim
    if args.flow == "none":
        return ConditionalNormal(encoder(args, data, (2, k)))
    if args.flow == "full-covariance":
        return ConditionalMultivariateNormal(encoder(args, data, k + k * (k + 1) // 2))
    net = encoder(args, data, (3, k))
    assert args.flow_dims is not None
    return FlowPosterior(net, flow=args.flow, num_flows=args.num_flows, hidden_dims=args.flow_dims)


EXPERIMENT = Experiment("flow_vae", Args, build, write_figures)


def main(argv: list[str] | None = None) -> int:
    """Runs the example; returns its exit status."""
    return EXPERIMENT.main(argv)


if __name__ == "__main__":
    sys.exit(main())
