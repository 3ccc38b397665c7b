"""What the examples of autoencoders share: flags, pieces, what is measured of the codes, and the pictures.

They differ in the objective: `autoencoder`, `aae`, `wae` and `factorvae`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ppvae import plot
from ppvae.cli.flags import ImageArgs
from ppvae.cli.images import ImageData
from ppvae.cli.report import Report
from ppvae.distributions import ConditionalDelta, ConditionalNormal, StandardNormal
from ppvae.examples.figures import write_figures
from ppvae.examples.nets import NetArgs, decoder, encoder
from ppvae.infer import Run
from ppvae.means import mean_of
from ppvae.models import VAE
from ppvae.nn import MLP
from ppvae.objectives import MMD

NUM_BLOCKS = 10
"""Parts of the test data, each compared with as many draws of the prior: their spread is the error of the mean."""


@dataclass(frozen=True)
class CodeArgs(NetArgs):
    """The flags of an autoencoder."""

    posterior: Literal["point", "normal"] = "normal"
    """q(z|x): the point that a net gives (a deterministic encoder, without an ELBO), or a diagonal normal."""
    num_valid: int | None = 0
    """Training data held out for validation. With none the last weights are kept; with some those of the best ELBO, of
    a deterministic encoder those of the least loss."""


@dataclass(frozen=True)
class CriticArgs(CodeArgs):
    """The flags of an autoencoder with a critic."""

    critic_dims: tuple[int, ...] = (200, 200)
    """Widths of the critic's hidden layers."""
    critic_lr: float = 1e-3
    """Learning rate of the critic."""
    critic_steps: int = 1
    """Steps of the critic for each of the pair."""
    spectral_norm: bool = True
    """Whether the critic's slope is bounded: one step cannot throw the codes far then."""

    def critic(self) -> MLP:
        """A net from codes to one number."""
        return MLP(self.latent_dim, self.critic_dims, 1, activation="leaky_relu", spectral_norm=self.spectral_norm)


def critic_groups(args: CriticArgs) -> dict[str, dict[str, float]] | None:
    """The critic's learning rate, where it is not that of the pair."""
    return None if args.critic_lr == args.lr else {"objective.critic.*": {"lr": args.critic_lr}}


def build(args: CodeArgs, data: ImageData) -> VAE:
    """The pair that the flags describe."""
    k = args.latent_dim
    point = args.posterior == "point"
    net = encoder(args, data, k if point else (2, k))
    return VAE(StandardNormal(k), decoder(args, data), ConditionalDelta(net) if point else ConditionalNormal(net))


@torch.no_grad()
def measure_codes(pair: VAE, args: CodeArgs, data: ImageData) -> Report:
    """How far reconstructions are from test images, and the codes of these from draws of the prior."""
    x, codes = _test_codes(pair, args, data)
    errors = (mean_of(pair.decode(codes)) - x).square().flatten(1).sum(-1)
    return {"squared error": _mean(errors), "1000 MMD² of q(z) and p(z)": _mean(1000 * mmd_to_prior(pair, codes))}


def mmd_to_prior(pair: VAE, codes: Tensor) -> Tensor:
    """The squared MMD of codes and draws of the prior, of each of some blocks of the data."""
    blocks = codes.chunk(min(NUM_BLOCKS, len(codes) // 2))
    return torch.stack([MMD()(z, pair.p_z().sample((len(z),))) for z in blocks if len(z) > 1])


@torch.no_grad()
def pca_error(args: CodeArgs, data: ImageData) -> Report:
    """The squared error of test images as PCA with as many dimensions reconstructs them."""
    train, test = data.train[0].flatten(1).double(), data.test[0][: args.num_eval].flatten(1).double()
    centre = train.mean(0)
    *_, directions = torch.linalg.svd(train - centre, full_matrices=False)
    axes = directions[: args.latent_dim]
    rest = (test - centre) - (test - centre) @ axes.T @ axes
    return {f"squared error of PCA with {len(axes)} dimensions": _mean(rest.square().sum(-1))}


@torch.no_grad()
def write_code_figures(pair: VAE, args: CodeArgs, data: ImageData, run: Run) -> None:
    """Writes the pictures of a VAE, and the codes of test images over draws of the prior."""
    write_figures(pair, args, data, run)
    assert run.folder is not None
    _, codes = _test_codes(pair, args, data)
    figure = plot.aggregated_posterior(codes.cpu(), pair.p_z().sample((len(codes),)).cpu())
    plot.save(figure, run.folder / "figures" / "aggregated.png")


def _test_codes(pair: VAE, args: ImageArgs, data: ImageData) -> tuple[Tensor, Tensor]:
    """Test images, and a draw z ~ q(z|x) of each."""
    torch.manual_seed(0)
    x = data.test[0][: args.num_eval].to(next(pair.parameters()).device)
    return x, pair.encode(x).sample()


def _mean(values: Tensor) -> dict[str, float]:
    """A mean with its standard error."""
    return {"mean": float(values.mean()), "std_error": float(values.std()) / math.sqrt(len(values))}
