"""A deep Markov model of piano rolls: `python -m ppvae.examples.chorales` (Krishnan et al. 2017, arXiv 1609.09869).

    z_1 ~ N(0, I)   z_t ~ p(z_t|z_{t-1})   x_t ~ p(x_t|z_t), 88 keys      guide: z_t ~ q(z_t|z_{t-1}, x_t, ..., x_T)

Trains on generated progressions of chords, whose log p(x) is known; `--dataset jsb` takes the chorales of J. S. Bach
that music21 ships. Reports ELBO and log p(x) for each step of a series.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from ppvae import plot
from ppvae._validate import check_count
from ppvae.cli.experiment import Experiment
from ppvae.cli.flags import ExperimentArgs, check_used
from ppvae.cli.images import start_at_mean
from ppvae.cli.report import Report, first
from ppvae.cli.tables import RowData, both_arguments, split_rows
from ppvae.data import LengthBuckets, Progressions, load_chorales
from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, FlowPosterior, MarkovPosterior, StandardNormal
from ppvae.evaluate import elbo, log_marginal
from ppvae.infer import Run
from ppvae.models import DeepMarkovModel
from ppvae.nn import MLP, RNN, Combiner, GatedTransition
from ppvae.nn.sequence import within

NUM_SERIES, LONGEST = 2000, 24
"""Generated progressions in all, and steps of the longest."""
NUM_BUCKETS = 4
"""Numbers of steps that minibatches are padded to."""
SHOWN = 96
"""Steps of a figure, at most."""


@dataclass(frozen=True)
class Args(ExperimentArgs):
    """Train a deep Markov model on piano rolls; report its ELBO and log p(x) for each step."""

    batch_size: int = 32
    """Series per minibatch."""
    lr: float = 6e-3
    """Learning rate of Adam."""
    lr_schedule: Literal["constant", "cosine", "burda"] = "cosine"
    """Whether the learning rate falls over the epochs: along half a cosine to a hundredth of --lr, or to a tenth in
    eight stages."""
    warmup: float = 5.0
    """Epochs over which the weight of the KL term goes from --warmup-from to its value."""
    num_samples: int = 200
    """Importance samples per series for log p(x) in the final table."""
    num_eval: int = 100
    """Series of each split that the final table is of."""
    dataset: Literal["progressions", "jsb"] = "progressions"
    """Data set: generated chords, or Bach's chorales, read from an installed music21 and kept in data-root."""
    steps_per_quarter: int = 1
    """Steps in a quarter note of a chorale: 1 as in the papers."""
    latent_dim: int | None = None
    """Dimensions of the state of a step; by default 8 on the progressions, 48 on the chorales."""
    hidden_dim: int | None = None
    """Width of the nets of transition and emission; by default 64, or 128."""
    rnn_dim: int | None = None
    """Size of the recurrent net's state; by default 64, or 128."""
    num_flows: int = 0
    """Inverse autoregressive flows at each step of the guide; none is a normal."""

    def resolved(self) -> Self:
        """These arguments with every default that depends on another filled in."""
        check_used(self, "dataset", steps_per_quarter=("jsb",))
        check_count("--steps-per-quarter", self.steps_per_quarter)
        check_count("--num-flows", self.num_flows, at_least=0)
        done = super().resolved()
        epochs, latent_dim, width = (30, 8, 64) if self.dataset == "progressions" else (200, 48, 128)
        return replace(
            done,
            epochs=epochs if done.epochs is None else done.epochs,
            latent_dim=latent_dim if done.latent_dim is None else done.latent_dim,
            hidden_dim=width if done.hidden_dim is None else done.hidden_dim,
            rnn_dim=width if done.rnn_dim is None else done.rnn_dim,
        )


def load_rolls(args: Args, *, download: bool = True) -> RowData:
    """The rolls of `args` (n, T, 88), and their lengths (n,); nothing is ever fetched.

    Raises:
        FileNotFoundError: where the chorales are neither kept nor to be read.
        ValueError: where the flags leave nothing to train on.
    """
    if args.dataset == "progressions":
        x, lengths = Progressions().draw(NUM_SERIES, num_steps=LONGEST)
        parts = [(x[rows], lengths[rows]) for rows in split_rows(len(x), args)]
    else:
        if args.num_valid is not None:
            raise ValueError("--num-valid goes with --dataset progressions: the chorales have a split of their own")
        data = load_chorales(args.data_root, steps_per_quarter=args.steps_per_quarter)
        keep = 40 if args.smoke else None
        parts = [(part.x[:keep], part.lengths[:keep]) for part in (data.train, data.valid, data.test)]
    train, valid, test = parts
    notes, steps = (sum(int(part[i].sum()) for part in parts) for i in (0, 1))
    said = (
        f"{args.dataset}: {len(train[0])} rolls to train on, {len(valid[0])} for validation, {len(test[0])} for "
        f"testing, {steps / sum(len(part[0]) for part in parts):.1f} steps each, {notes / steps:.2f} keys at a step"
    )
    return RowData(train, valid, test, said, "")


def build(args: Args, data: RowData) -> DeepMarkovModel:
    """The pair that the flags describe."""
    assert args.latent_dim is not None
    assert args.hidden_dim is not None
    assert args.rnn_dim is not None
    k, (x, lengths) = args.latent_dim, data.train
    emission = MLP(k, (args.hidden_dim,), x.shape[-1])
    start_at_mean(emission, x[within(lengths, x.shape[1])])
    step: nn.Module = ConditionalNormal(Combiner(k, args.rnn_dim, (2, k)))
    if args.num_flows:
        combiner = Combiner(k, args.rnn_dim, (3, k))
        step = FlowPosterior(combiner, num_flows=args.num_flows, hidden_dims=args.hidden_dim)
    return DeepMarkovModel(
        p_z1=StandardNormal(k),
        p_z_given_z=ConditionalNormal(GatedTransition(k, args.hidden_dim)),
        p_x_given_z=ConditionalBernoulli(emission),
        q_z_given_x=MarkovPosterior(RNN(x.shape[-1], args.rnn_dim, direction="backward"), step, latent_dim=k),
    )


def batches(args: Args, data: RowData, device: torch.device) -> LengthBuckets:
    """Minibatches of series that are about as long."""
    x, lengths = data.train
    return LengthBuckets(x, lengths, batch_size=args.batch_size, num_buckets=NUM_BUCKETS, device=device, seed=args.seed)


def measure(pair: DeepMarkovModel, args: Args, data: RowData) -> Report:
    """What the papers report, nats for each step of the test series; of progressions also that of the process."""
    x, lengths = first(data.test, args.num_eval)
    assert x is not None
    assert lengths is not None
    device = next(pair.parameters()).device
    batch = x.to(device), lengths.to(device)
    estimate = log_marginal(pair, *batch, num_samples=args.num_samples, seed=args.seed)
    found: Report = {
        "ELBO for each step, one sample": per_step(elbo(pair, *batch, num_samples=1, seed=args.seed).values, lengths),
        f"log p(x) for each step, {args.num_samples} samples": per_step(estimate.values, lengths),
        "effective sample size, median": {"mean": float(estimate.ess.median()), "std_error": None},
    }
    if args.dataset == "progressions":
        found["log p(x) for each step of the process itself"] = per_step(Progressions().log_prob(x, lengths), lengths)
    return found


def per_step(values: Tensor, lengths: Tensor) -> dict[str, float]:
    """The sum of values over that of lengths, as the papers average, and the standard error of that ratio."""
    ratio = values.sum() / lengths.sum()
    error = (values - ratio * lengths).std() / (math.sqrt(len(values)) * lengths.double().mean())
    return {"mean": float(ratio), "std_error": float(error)}


@torch.no_grad()
def draw(pair: DeepMarkovModel, args: Args, data: RowData, run: Run) -> None:
    """Writes a test series, its reconstruction and a sample of the model as piano rolls, and training curves."""
    assert run.folder is not None
    device = next(pair.parameters()).device
    x, lengths = data.test
    steps = min(SHOWN, int(lengths.max()))
    row = int((lengths >= steps).nonzero()[0])
    seen = x[row, : int(lengths[row])].to(device)
    torch.manual_seed(args.seed)
    rolls = {
        "x": seen[:steps],
        "E[x|z]": pair.reconstruct(seen)[:steps],
        "sample": pair.sample(1, num_steps=steps)[0],
    }
    figures = {"rolls": plot.rolls(rolls), "training": plot.training_curves(run.history)}
    for name, figure in figures.items():
        plot.save(figure, run.folder / "figures" / f"{name}.png")


EXPERIMENT = Experiment(
    "chorales",
    Args,
    build,
    draw,
    load=load_rolls,
    arguments=both_arguments,
    batches=batches,
    measure=measure,
)


def main(argv: list[str] | None = None) -> int:
    """Runs the example; returns its exit status."""
    return EXPERIMENT.main(argv)


if __name__ == "__main__":
    sys.exit(main())
