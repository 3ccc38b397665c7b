"""A VAE of a table with missing cells: `python -m ppvae.examples.table` (Nazábal et al. 2020, arXiv 1807.03653).

Trains on scikit-learn's wine data, a fifth of whose cells are hidden; `--dataset csv --data-root FILE` takes a table of
your own, whose columns are said before training. `--num-particles 20` is MIWAE (Mattei & Frellsen 2019, 1812.02633).
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import Self

import torch
from pyro.infer import ELBO
from torch import Tensor

from ppvae import plot
from ppvae._validate import check_count
from ppvae.cli.experiment import Experiment, elbo_of_flag
from ppvae.cli.report import Report
from ppvae.cli.tables import TableArgs, TableData, both_arguments, load_table, row_batches
from ppvae.data.table import OF_LEVELS
from ppvae.distributions import ColumnEncoder, ConditionalColumns, ConditionalNormal, StandardNormal, num_params
from ppvae.evaluate import Imputation, encode, impute
from ppvae.infer import Run
from ppvae.models import MaskedVAE
from ppvae.nn import MLP
from ppvae.objectives import IWAE

LEVEL = 0.9
"""Of the intervals of what is filled in."""
NUM_DRAWN = 5000
"""Rows that are drawn of the model."""


@dataclass(frozen=True)
class Args(TableArgs):
    """Train a VAE on a table, with a likelihood for each column and none where a cell is missing."""

    lr: float = 3e-3
    """Learning rate of Adam."""
    latent_dim: int = 3
    """Dimensions of z."""
    hidden_dims: tuple[int, ...] = (32,)
    """Widths of the encoder's hidden layers; the decoder's are reversed."""
    num_particles: int = 1
    """Importance samples per datum in the objective: one is the ELBO, more are MIWAE."""

    def resolved(self) -> Self:
        """These arguments with every default that depends on another filled in."""
        check_count("--latent-dim", self.latent_dim)
        check_count("--num-particles", self.num_particles)
        done = super().resolved()
        return replace(done, epochs=400 if done.epochs is None else done.epochs)


def build(args: Args, data: TableData) -> MaskedVAE:
    """The pair that the flags describe."""
    columns, k = data.table.columns, args.latent_dim
    return MaskedVAE(
        p_z=StandardNormal(k),
        p_x_given_z=ConditionalColumns(MLP(k, args.hidden_dims[::-1], num_params(columns)), columns),
        q_z_given_x=ConditionalNormal(ColumnEncoder(columns, args.hidden_dims, (2, k))),
    )


def objective(args: Args) -> ELBO:
    """The ELBO, or the importance-weighted bound."""
    return elbo_of_flag(args) if args.num_particles == 1 else IWAE(args.num_particles)


@torch.no_grad()
def measure(pair: MaskedVAE, args: Args, data: TableData) -> Report:
    """The likelihood of each column given the codes, and how well what was hidden is filled in."""
    x, observed = (t[: args.num_eval] for t in data.test)
    device = next(pair.parameters()).device
    torch.manual_seed(args.seed)
    z = pair.q_z_given_x(torch.where(observed, x, 0).to(device), observed.to(device)).sample((100,))
    cells = pair.p_x_given_z(z).base_dist.log_prob(x.to(device)).mean(0).cpu()
    found = {
        f"E log p({column.name}|z), {column.family}": _mean(cells[observed[:, j], j])
        for j, column in enumerate(data.table.columns)
        if observed[:, j].any()
    }
    return found | _judged(args, data, _filled(pair, args, data))


def _filled(pair: MaskedVAE, args: Args, data: TableData) -> Imputation:
    x, observed = (t[: args.num_eval] for t in data.test)
    device = next(pair.parameters()).device
    return impute(pair, x.to(device), observed.to(device), num_samples=200, seed=args.seed)


def _judged(args: Args, data: TableData, filled: Imputation) -> Report:
    """How the cells that were hidden compare with what was drawn in their place; a table without any is not judged."""
    truth = data.truth[: args.num_eval]
    hidden = ~filled.observed & truth.isfinite()
    of_levels = torch.tensor([column.family in OF_LEVELS for column in data.table.columns])
    found: Report = {}
    if (of_numbers := hidden & ~of_levels).any():
        low, high = (filled.draws.quantile(q, 0) for q in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        holds = ((truth >= low) & (truth <= high))[of_numbers]
        found["hidden numbers in their 90 % intervals, %"] = _mean(100 * holds.double())
        error = (_in_deviations(data, filled.mean()) - _in_deviations(data, truth))[of_numbers]
        found["squared error of hidden numbers, of 1 for the mean"] = _mean(error.square())
    if (of_labels := hidden & of_levels).any():
        found["hidden labels that are guessed, %"] = _mean(
            100 * (filled.draws.mode(0).values == truth)[of_labels].double()
        )
    return found


def _in_deviations(data: TableData, x: Tensor) -> Tensor:
    """Values in standard deviations of their column, over its mean, both of the training rows."""
    train, observed = data.train
    count = observed.sum(0).clamp(min=1)
    mean = torch.where(observed, train, 0).sum(0) / count
    spread = (torch.where(observed, train - mean, 0).square().sum(0) / count).sqrt()
    return (x - mean) / spread.clamp(min=1e-12)


@torch.no_grad()
def draw(pair: MaskedVAE, args: Args, data: TableData, run: Run) -> None:
    """Writes columns of data and model, what was filled in, the latent space and training curves."""
    assert run.folder is not None
    columns, (x, observed) = data.table.columns, data.test
    torch.manual_seed(0)
    drawn = pair.p_x_given_z(pair.p_z().sample((NUM_DRAWN,))).sample().cpu()
    seen = [(j, x[observed[:, j], j]) for j in range(len(columns)) if observed[:, j].any()]
    figures = {
        "columns": plot.columns_beside_data(
            [values for _, values in seen],
            [drawn[:, j] for j, _ in seen],
            [columns[j].name for j, _ in seen],
            [[str(level) for level in columns[j].levels] for j, _ in seen],
        ),
        "training": plot.training_curves(run.history),
    }
    filled, truth = _filled(pair, args, data), data.truth[: args.num_eval]
    numbers = torch.tensor([column.family not in OF_LEVELS for column in columns])
    if (hidden := ~filled.observed & truth.isfinite() & numbers).any():
        parts = (
            truth,
            filled.draws.quantile((1 - LEVEL) / 2, 0),
            filled.mean(),
            filled.draws.quantile((1 + LEVEL) / 2, 0),
        )
        figures["filled_in"] = plot.filled_in(*(_in_deviations(data, part)[hidden] for part in parts))
    if args.latent_dim > 1:
        figures["latent"] = plot.latent_scatter(*_codes(pair, data))
    for name, figure in figures.items():
        plot.save(figure, run.folder / "figures" / f"{name}.png")


def _codes(pair: MaskedVAE, data: TableData) -> tuple[Tensor, Tensor | None]:
    """The codes of all rows whose last column of labels is known, and its levels; of all rows where there is none."""
    device = next(pair.parameters()).device
    both = [torch.cat(parts).to(device) for parts in zip(data.train, data.test, strict=True)]
    z = torch.from_numpy(encode(pair, *both))
    labelled = [j for j, column in enumerate(data.table.columns) if column.family in OF_LEVELS]
    if not labelled:
        return z, None
    x, observed = both[0][:, labelled[-1]].cpu(), both[1][:, labelled[-1]].cpu()
    return z[observed], x[observed].long()


def _mean(values: Tensor) -> dict[str, float | None]:
    """A mean with its standard error."""
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": float(values.mean()), "std_error": error}


EXPERIMENT = Experiment(
    "table",
    Args,
    build,
    draw,
    load=load_table,
    arguments=both_arguments,
    batches=row_batches,
    objective=objective,
    measure=measure,
)


def main(argv: list[str] | None = None) -> int:
    """Runs the example; returns its exit status."""
    return EXPERIMENT.main(argv)


if __name__ == "__main__":
    sys.exit(main())
