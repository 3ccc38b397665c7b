"""A VAE of counts: `python -m ppvae.examples.counts`.

    z ~ N(0, I)    x_j ~ NB(size · exp(f_j(z)), θ_j)    or Poisson, or with zeros added      guide: z ~ q(z | x, size)

Trains on generated cells, of four kinds, in which genes are counted as deep as each cell was read (its size), with more
spread than Poisson's; `--dataset digits` takes the grey levels 0 to 16 of the embedded digits, and `--dataset csv
--data-root FILE` whole numbers of your own. As in scVI (Lopez et al. 2018, doi 10.1038/s41592-018-0229-2).
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
from ppvae.cli.report import Report
from ppvae.cli.tables import RowData, both_arguments, read_csv, row_batches, split_rows
from ppvae.distributions import ConditionalNegativeBinomial, ConditionalNormal, ConditionalPoisson, StandardNormal
from ppvae.evaluate import encode
from ppvae.infer import Run
from ppvae.models import CVAE
from ppvae.nn import MLP, ConcatInputs, Log1p

GENES, CELLS, KINDS = 60, 2000, 4
"""Of the generated data."""
SHAPE = 5
"""θ of their spread: the variance is mean + mean² / 5."""


@dataclass(frozen=True)
class Args(ExperimentArgs):
    """Train a VAE on counts, and compare their spread with that of its samples."""

    dataset: Literal["cells", "digits", "csv"] = "cells"
    """Data set: generated cells, the grey levels of scikit-learn's digits, or the file that --data-root names, of a
    header and a row of whole numbers for each datum."""
    size_column: str | None = None
    """Column of a file that holds the size of each row, by which its means are multiplied: an exposure, a depth. By
    default all are of size one."""
    likelihood: Literal["poisson", "negative-binomial", "zero-inflated"] = "negative-binomial"
    """Family of p(x|z): the last is negative binomial with zeros added."""
    latent_dim: int = 4
    """Dimensions of z."""
    hidden_dims: tuple[int, ...] = (128,)
    """Widths of the encoder's hidden layers; the decoder's are reversed."""

    def resolved(self) -> Self:
        """These arguments with every default that depends on another filled in."""
        check_used(self, "dataset", size_column=("csv",))
        check_count("--latent-dim", self.latent_dim)
        done = super().resolved()
        return replace(done, epochs=60 if done.epochs is None else done.epochs)


@dataclass(frozen=True)
class CountData(RowData):
    """Counts (n, d), and the size of each datum (n,).

    Attributes:
        kinds: what the test data are of, (n,); None where nobody knows.
    """

    kinds: Tensor | None


def load_counts(args: Args, *, download: bool = True) -> CountData:
    """The counts of `args`; nothing is ever fetched.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it holds other things than counts.
    """
    x, size, kinds, fingerprint = {"cells": _cells, "digits": _digits, "csv": _file}[args.dataset](args)
    train, valid, test = split_rows(len(x), args)
    parts = [(x[rows], size[rows]) for rows in (train, valid, test)]
    text = (
        f"{args.dataset}: {len(train)} data to train on, {len(valid)} for validation, {len(test)} for testing; "
        f"{x.shape[1]} counts each, {100 * float((x == 0).double().mean()):.0f} % of them zero, the largest "
        f"{int(x.max())}; sizes from {float(size.min()):.4g} to {float(size.max()):.4g}"
    )
    return CountData(parts[0], parts[1], parts[2], text, fingerprint, None if kinds is None else kinds[test])


def _cells(args: Args) -> tuple[Tensor, Tensor, Tensor | None, str]:
    """Cells of a few kinds, each gene a share of what was read, with gamma noise."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randint(KINDS, (CELLS,), generator=generator)
    centres = 1.2 * torch.randn(KINDS, GENES, generator=generator)
    within = 0.3 * torch.randn(CELLS, 2, generator=generator) @ torch.randn(2, GENES, generator=generator)
    share = (torch.randn(GENES, generator=generator) + centres[kinds] + within).softmax(-1)
    depth = (6.0 + 0.7 * torch.randn(CELLS, generator=generator)).exp()
    noise = torch.empty(SHAPE, CELLS, GENES).exponential_(generator=generator).mean(0)  # gamma, of mean one
    return torch.poisson(depth.unsqueeze(-1) * share * noise, generator=generator), depth, kinds, ""


def _digits(args: Args) -> tuple[Tensor, Tensor, Tensor | None, str]:
    """The grey levels of scikit-learn's digits, and which digits they are."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.from_numpy(digits.data).float()
    return x, torch.ones(len(x)), torch.from_numpy(digits.target).long(), ""


def _file(args: Args) -> tuple[Tensor, Tensor, Tensor | None, str]:
    """A CSV file of whole numbers."""
    frame, fingerprint = read_csv(args.data_root)
    size = torch.ones(len(frame))
    if args.size_column is not None:
        if args.size_column not in frame.columns:
            raise ValueError(f"--size-column must be a column of {args.data_root}, got {args.size_column!r}")
        size = torch.from_numpy(frame.pop(args.size_column).to_numpy(dtype=float)).float()
        if not bool((size.isfinite() & (size > 0)).all()):
            raise ValueError(f"--size-column {args.size_column} must hold numbers > 0")
    for name in frame.columns:
        kind = frame[name].dtype.kind
        if kind not in "buif" or not bool(((frame[name] >= 0) & (frame[name] % 1 == 0)).all()):
            raise ValueError(f"column {name!r} of {args.data_root} must hold counts, whole numbers >= 0, in every row")
    return torch.from_numpy(frame.to_numpy(dtype=float)).float(), size, None, fingerprint


def build(args: Args, data: CountData) -> CVAE:
    """The pair that the flags describe."""
    d, k = data.train[0].shape[1], args.latent_dim
    inflated = args.likelihood == "zero-inflated"
    family = ConditionalPoisson if args.likelihood == "poisson" else ConditionalNegativeBinomial
    decoder = MLP(k, args.hidden_dims[::-1], (2, d) if inflated else d)
    start_at_mean_rate(decoder, *data.train)
    encoder = nn.Sequential(Log1p(), MLP(d + 1, args.hidden_dims, (2, k)))
    return CVAE(
        p_z=StandardNormal(k),
        p_x_given_zy=family(decoder, sized=True, zero_inflated=inflated),
        q_z_given_xy=ConditionalNormal(ConcatInputs((d, ()), encoder)),
    )


@torch.no_grad()
def start_at_mean_rate(decoder: nn.Module, x: Tensor, size: Tensor) -> None:
    """Sets the bias of the log rates to that of all data, which are far from one where sizes are."""
    *_, last = (layer for layer in decoder.modules() if isinstance(layer, nn.Linear))
    rate = (x.sum(0) + 0.5) / size.sum()
    last.bias[: len(rate)] = rate.log()


@torch.no_grad()
def drawn_again(pair: CVAE, args: Args, data: CountData) -> tuple[Tensor, Tensor]:
    """Test data, and one draw of the model for each, of its size."""
    device = next(pair.parameters()).device
    x, size = (t[: args.num_eval] for t in data.test)
    torch.manual_seed(args.seed)
    return x, pair.decode(pair.p_z().sample((len(size),)), size.to(device)).sample().cpu()


def measure(pair: CVAE, args: Args, data: CountData) -> Report:
    """The spread and the zeros of test data and of as many draws of the model."""
    found: Report = {}
    for name, values in zip(("test data", "draws of the model"), drawn_again(pair, args, data), strict=True):
        mean, variance = values.double().mean(0), values.double().var(0)
        varies = variance > 0
        found[f"{name}: log of a column's variance over its mean"] = _mean((variance / mean)[varies].log())
        found[f"{name}: zeros, %"] = _mean(100 * (values == 0).double().mean(-1))
    return found


def draw(pair: CVAE, args: Args, data: CountData, run: Run) -> None:
    """Writes the spread of data and model, the latent space and training curves."""
    assert run.folder is not None
    x, drawn = drawn_again(pair, args, data)
    figures = {"spread": plot.spread_of_counts(x, drawn), "training": plot.training_curves(run.history)}
    if args.latent_dim > 1:
        kinds = None if data.kinds is None else data.kinds[:1000]
        device = next(pair.parameters()).device
        codes = torch.from_numpy(encode(pair, *(t[:1000].to(device) for t in data.test)))
        figures["latent"] = plot.latent_scatter(codes, kinds)
    for name, figure in figures.items():
        plot.save(figure, run.folder / "figures" / f"{name}.png")


def _mean(values: Tensor) -> dict[str, float]:
    """A mean with its standard error."""
    return {"mean": float(values.mean()), "std_error": float(values.std()) / math.sqrt(len(values))}


EXPERIMENT = Experiment(
    "counts",
    Args,
    build,
    draw,
    load=load_counts,
    arguments=both_arguments,
    batches=row_batches,
    symbol="log p(x|size)",
    measure=measure,
)


def main(argv: list[str] | None = None) -> int:
    """Runs the example; returns its exit status."""
    return EXPERIMENT.main(argv)


if __name__ == "__main__":
    sys.exit(main())
