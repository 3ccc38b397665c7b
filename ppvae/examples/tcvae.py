"""β-TCVAE and its kin, scored by known factors: `python -m ppvae.examples.tcvae` (Chen et al. 2018, arXiv 1802.04942).

"Isolating sources of disentanglement in variational autoencoders". Trains on images whose factors are known, each made
when it is needed, by an objective that asks for independent latents: the total correlation by minibatches (tc), by a
critic (factor: Kim & Mnih 2018, arXiv 1802.05983), the covariance of the codes (dip-i, dip-ii: Kumar et al. 2018, arXiv
1711.00848), or the whole KL term (beta: Higgins et al. 2017). Then it scores how well single latents stand for single
factors. Small sprites, under two minutes; `--dataset sprites64` or `dsprites` for the papers' task.
"""

from __future__ import annotations

import csv
import math
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal, Self

import torch
from pyro.infer import ELBO
from torch import nn

from ppvae import plot
from ppvae._validate import check_count, check_number
from ppvae.cli.experiment import Experiment, elbo_of_flag
from ppvae.cli.flags import check_used, flag
from ppvae.cli.images import ImageData
from ppvae.cli.report import Report
from ppvae.data import Batches, Binarize, FactorData, Render, load_factors
from ppvae.distributions import ConditionalNormal, StandardNormal
from ppvae.evaluate import disentanglement
from ppvae.evaluate.disentanglement import CodeKind
from ppvae.evaluate.disentanglement_scores import mutual_information
from ppvae.examples.latents import active_units, write_unit_figures
from ppvae.examples.nets import NetArgs, decoder, encoder
from ppvae.infer import Run
from ppvae.infer.callbacks import Callback
from ppvae.infer.run_folder import Row
from ppvae.means import code_of
from ppvae.models import VAE
from ppvae.nn import MLP
from ppvae.objectives import DIPELBO, FactorVAE, Linear, TotalCorrelationELBO
from ppvae.objectives.total_correlation import Weights

NUM_SCORED = 10_000
"""Images of which the scores are, drawn from all."""
CURVE = "mig.csv"
"""MIG after each epoch, in the run folder."""
NUM_TEST = 2000
"""The first of the images in their random order: those that `load` has for the test."""
SMOKE = 256
"""Training images of a run of seconds."""
EPOCHS = 4
PIXELS = 64 * 64
"""Of an image of dSprites, for which β, γ and λ are given."""
WIDTHS = (128, 128)


@dataclass(frozen=True)
class Args(NetArgs):
    """Train a VAE for independent latents on images with known factors; report disentanglement scores and log p(x)."""

    objective: Literal["tc", "factor", "dip-i", "dip-ii", "beta"] = "tc"
    """tc: β-TCVAE; factor: FactorVAE; dip-i, dip-ii: DIP-VAE; beta: β-VAE."""
    beta: float = 4.0
    """β, the weight of the total correlation (tc), or of the whole KL term (beta). As γ and λ it is given for images of
    64×64, as the papers have them; the penalties of smaller ones weigh less, in proportion to their pixels."""
    beta_from: float | None = 40.0
    """Where β starts, to go to --beta in a line over the first half of the epochs, so that the latents that are worth
    most come into use first, and alone; None is a constant β (tc)."""
    weights: Weights = "stratified"
    """How the density of all codes is estimated from a minibatch: see `TotalCorrelationELBO` (tc)."""
    gamma: float = 35.0
    """γ, the weight of the critic's total correlation (factor)."""
    critic_dims: tuple[int, ...] = (200, 200)
    """Widths of the critic's hidden layers (factor)."""
    critic_lr: float = 1e-3
    """Learning rate of the critic (factor)."""
    covariance: float = 10.0
    """λ of both parts of the covariance penalty; of the diagonal ten times as much in dip-i."""
    codes: CodeKind = "mean"
    """What is scored: the mean of q(z|x), or a draw from it."""
    num_train: int = 60_000
    """Images to train on, a random part of all but the test images."""
    latent_dim: int = 10
    """Dimensions of z."""
    batch_size: int = 64
    """Data per minibatch."""
    lr: float = 5e-3
    """Learning rate of Adam."""
    lr_schedule: Literal["constant", "cosine", "burda"] = "cosine"
    """Whether the learning rate falls over the epochs: along half a cosine to a hundredth of --lr, or to a tenth in
    eight stages, each three times as long as the one before (Burda et al. 2016, who have 3280 epochs)."""
    dataset: Literal["sprites", "sprites64", "dsprites", "3dshapes"] = "sprites"
    """Data set: sprites are generated (32×32, or 64×64 as dSprites); the files of dsprites and 3dshapes must lie in
    --data-root."""
    epochs: int | None = None
    """Passes over the training images; by default 4."""
    hidden_dims: tuple[int, ...] | None = None
    """Widths of the encoder's hidden layers (the decoder's are reversed); by default 128 128."""
    num_samples: int = 100
    """Importance samples per datum for log p(x) in the final table."""
    num_valid: int | None = 0
    """Must be 0: the last weights are kept, as the best ELBO is not what is trained for."""

    def resolved(self) -> Self:
        """These arguments with every default that depends on another filled in."""
        check_used(self, "objective", beta=("tc", "beta"), beta_from=("tc",), weights=("tc",), loss=("beta",))
        check_used(self, "objective", gamma=("factor",), critic_dims=("factor",), critic_lr=("factor",))
        check_used(self, "objective", covariance=("dip-i", "dip-ii"))
        for name in ("beta", "gamma", "covariance", "critic_lr"):
            check_number(flag(name), getattr(self, name), at_least=0)
        if self.num_valid:
            raise ValueError(f"--num-valid must be 0: the last weights are kept, got {self.num_valid}")
        if self.beta_from is not None:
            check_number("--beta-from", self.beta_from, at_least=0)
        check_count("--num-train", self.num_train)
        resolved = super().resolved()
        return resolved if self.smoke or self.epochs is not None else replace(resolved, epochs=EPOCHS)

    def widths(self) -> tuple[int, ...]:
        """The hidden layers of the encoder."""
        return WIDTHS if self.hidden_dims is None and self.encoder == "mlp" else super().widths()


def build(args: Args, data: ImageData) -> VAE:
    """The pair that the flags describe.

    Its KL weight multiplies whatever the objective makes of the codes: where an image has fewer pixels than those of
    the papers, less of it weighs as much against log p(x|z).
    """
    q_z_given_x = ConditionalNormal(encoder(args, data, (2, args.latent_dim)))
    weight = math.prod(data.event_shape) / PIXELS
    beta = weight * args.beta if args.objective == "beta" else weight
    return VAE(StandardNormal(args.latent_dim), decoder(args, data), q_z_given_x, beta=beta)


def objective(args: Args) -> ELBO:
    """The objective that the flags name."""
    if args.objective == "tc":
        assert args.epochs is not None
        beta = args.beta if args.beta_from is None else Linear(args.epochs / 2, start=args.beta_from, end=args.beta)
        return TotalCorrelationELBO(beta, weights=args.weights)
    if args.objective == "factor":
        return FactorVAE(MLP(args.latent_dim, args.critic_dims, 1, activation="leaky_relu"), gamma=args.gamma)
    if args.objective == "beta":
        return elbo_of_flag(args)
    if args.objective == "dip-i":
        return DIPELBO(args.covariance, 10 * args.covariance, kind="I")
    return DIPELBO(args.covariance, args.covariance, kind="II")


def critic_group(args: Args) -> dict[str, dict[str, float]] | None:
    """The critic's learning rate."""
    return {"objective.critic.*": {"lr": args.critic_lr}} if args.objective == "factor" else None


def batches(args: Args, data: ImageData, device: torch.device) -> Batches:
    """Minibatches of the training images, each made from its row; none of those that `load` has for the test."""
    factors = opened(args.dataset, args.data_root)
    rows = factors.subset(len(factors))[NUM_TEST:]
    num_train = SMOKE if args.smoke else args.num_train
    if num_train > len(rows):
        raise ValueError(f"--num-train must be at most {len(rows)}, got {num_train}")
    then = Binarize() if args.binarize == "dynamic" and factors.levels > 2 else None
    return Batches(
        rows[:num_train],
        batch_size=args.batch_size,
        transform=Render(factors, then),
        drop_last=True,
        seed=args.seed,
        device=device,
    )


@cache
def opened(name: str, root: Path) -> FactorData:
    """The images with known factors, read once."""
    return load_factors(name, root)


class Curve:
    """Notes MIG after every epoch, in a file of the run folder; a run that is resumed goes on with it.

    Args:
        args: the flags.
        folder: of the run.
    """

    def __init__(self, args: Args, folder: Path) -> None:
        self.path, self.codes = folder / CURVE, args.codes
        self.factors = opened(args.dataset, args.data_root)
        self.rows = self.factors.subset(NUM_SCORED // 5 if args.smoke else NUM_SCORED, seed=1)
        self.values = self.factors.factors(self.rows).numpy()

    def __call__(self, row: Row, pair: nn.Module, epoch: int) -> None:
        """Adds a line for a finished epoch."""
        assert isinstance(pair, VAE)
        x = self.factors.images(self.rows).to(next(pair.parameters()).device)
        q_z = pair.encode(x)
        z = q_z.sample() if self.codes == "sample" else code_of(q_z)
        _, gaps = mutual_information(z.double().cpu().numpy(), self.values, max(20, *self.factors.sizes))
        before = [old for old in read_curve(self.path) if old["epoch"] < epoch]
        with self.path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["epoch", "MIG"])
            writer.writeheader()
            writer.writerows([*before, {"epoch": epoch, "MIG": gaps.mean()}])


def read_curve(path: Path) -> list[Row]:
    """The rows that a `Curve` has noted: "epoch" and "MIG"."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def curve(args: Args, data: ImageData, out: Path) -> list[Callback]:
    """Notes MIG after every epoch."""
    return [Curve(args, out)]


def draw(pair: VAE, args: Args, data: ImageData, run: Run) -> None:
    """Writes the pictures of a VAE and its units, and the curve of MIG."""
    assert run.folder is not None
    write_unit_figures(pair, args, data, run)
    figure = plot.compare_curves({args.objective: read_curve(run.folder / CURVE)}, "MIG", unit="")
    plot.save(figure, run.folder / "figures" / "mig.png")


def measure(pair: nn.Module, args: Args, data: ImageData) -> Report:
    """Disentanglement scores over images drawn from all, and active units over the test images."""
    factors = opened(args.dataset, args.data_root)
    rows = factors.subset(NUM_SCORED // 5 if args.smoke else NUM_SCORED, seed=1)
    x = factors.images(rows).to(next(pair.parameters()).device)
    result = disentanglement(
        pair,
        x,
        factors=factors.factors(rows),
        names=factors.names,
        categorical=factors.categorical,
        codes=args.codes,
        num_repeats=2 if args.smoke else 3,
        seed=args.seed,
    )
    names = [f"gap of {name}" for name in factors.names]
    gaps = {name: {"mean": gap, "std_error": None} for name, gap in zip(names, result.gaps.tolist(), strict=True)}
    scores = {name: {"mean": score.mean, "std_error": score.std_error} for name, score in result.scores().items()}
    return scores | gaps | active_units(pair, args, data)


EXPERIMENT = Experiment(
    "tcvae",
    Args,
    build,
    draw,
    objective=objective,
    batches=batches,
    param_groups=critic_group,
    measure=measure,
    callbacks=curve,
)


def main(argv: list[str] | None = None) -> int:
    """Runs the example; returns its exit status."""
    return EXPERIMENT.main(argv)


if __name__ == "__main__":
    sys.exit(main())
