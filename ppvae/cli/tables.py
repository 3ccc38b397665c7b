"""Rows as an example's likelihood wants them: embedded tables with holes, or a CSV file of the user's own."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from ppvae._validate import check_count, check_number
from ppvae.cli.flags import ExperimentArgs
from ppvae.data import Batches, Column, Table
from ppvae.data.table import FAMILIES, OF_LEVELS
from ppvae.pair import Batch
from ppvae.rng import permutation

TEST_SHARE = 5
"""One row of so many is a test row."""
MOST_LABELS = 20
"""Labels that a column may have however short the table is; beyond, half as many as it has rows."""


@dataclass(frozen=True)
class TableArgs(ExperimentArgs):
    """The flags of an example on tables."""

    dataset: Literal["wine", "breast-cancer", "diabetes", "csv"] = "wine"
    """Data set: the first three come with scikit-learn; csv is the file that --data-root names, of a header and a row
    for each datum, an empty cell being a missing one."""
    families: tuple[str, ...] = ()
    """Families of columns, where they are to be others than those inferred: price=log-normal rating=ordinal."""
    leave_out: tuple[str, ...] = ()
    """Columns to leave out, such as a row's name."""
    hide: float | None = None
    """Share of the cells that are hidden, at random, so that filling them in can be judged; by default 0.2 of the
    embedded tables, none of a file."""

    def resolved(self) -> Self:
        """These arguments with every default that depends on another filled in."""
        hide = (0.0 if self.dataset == "csv" else 0.2) if self.hide is None else self.hide
        check_number("--hide", hide, at_least=0)
        if hide >= 1:
            raise ValueError(f"--hide must be a share below 1, got {hide:g}")
        for given in self.families:
            if given.rpartition("=")[2] not in FAMILIES or "=" not in given:
                raise ValueError(
                    f"--families must be of column=family, the family one of {', '.join(FAMILIES)}: {given!r}"
                )
        return replace(super().resolved(), hide=hide)


@dataclass(frozen=True)
class RowData:
    """Rows in three parts, each the two arguments of a pair: values (n, d), and what goes with them.

    Attributes:
        train: training rows.
        valid: rows held out while training.
        test: rows of the final table.
        text: what all of this was taken to be.
        fingerprint: a hash of the file; "" of data of ours.
    """

    train: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    text: str
    fingerprint: str

    @property
    def labels(self) -> None:
        """Rows have none: what is a label elsewhere is a column here."""

    def describe(self) -> str:
        """What the data were taken to be."""
        return self.text

    def training(self, limit: int | None = None, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        """The first training rows."""
        x, other = self.train
        return x[:limit], other[:limit]


@dataclass(frozen=True)
class TableData(RowData):
    """A table: its values, and which cells are there (n, d), as a `MaskedVAE` takes them.

    Attributes:
        truth: the test rows with the cells that were hidden, (n, d); NaN where nobody knows.
        table: the columns.
    """

    truth: Tensor
    table: Table


def both_arguments(args: ExperimentArgs, x: Tensor, other: Tensor) -> Batch:
    """The arguments of a pair of rows."""
    return x, other


def row_batches(args: ExperimentArgs, data: RowData, device: torch.device) -> Batches:
    """Minibatches of the training rows."""
    return Batches(*data.train, batch_size=args.batch_size, seed=args.seed, device=device)


def read_csv(path: Path) -> tuple[Any, str]:
    """The data frame of a CSV file, and a hash of the file.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it holds no table.
    """
    import pandas as pd

    if not path.is_file():
        raise FileNotFoundError(f"--data-root must be a CSV file, and there is none at {path}")
    content = path.read_bytes()
    try:
        frame = pd.read_csv(io.BytesIO(content))
    except ValueError as error:  # what pandas cannot parse, or decode, is one of these
        raise ValueError(f"{path} holds no table: {error}") from error
    if len(frame) < TEST_SHARE:
        raise ValueError(f"{path} must hold at least {TEST_SHARE} rows, got {len(frame)}")
    return frame, hashlib.sha256(content).hexdigest()


def split_rows(n: int, args: ExperimentArgs) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of the rows to train on, held out for validation, and for testing, by a fixed seed.

    Raises:
        ValueError: where --num-valid leaves nothing.
    """
    order = permutation(n, seed=0)[: 256 if args.smoke else None]
    num_test = max(1, len(order) // TEST_SHARE)
    usual = (len(order) - num_test) // 10
    num_valid = usual if args.num_valid is None else check_count("--num-valid", args.num_valid, at_least=0)
    if len(order) - num_test - num_valid < 1:
        raise ValueError(f"--num-valid {num_valid} leaves nothing of {n} rows, of which {num_test} are for testing")
    return order[num_test + num_valid :], order[num_test : num_test + num_valid], order[:num_test]


def load_table(args: TableArgs, *, download: bool = True) -> TableData:
    """The table of `args`; nothing is ever fetched.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it holds no table, or a column of it no family fits.
    """
    frame, fingerprint = _frame(args)
    if unknown := set(args.leave_out) - set(frame.columns):
        raise ValueError(f"--leave-out names columns that are not there: {sorted(unknown)}")
    frame = _with_levels(frame.drop(columns=list(args.leave_out)))
    train, valid, test = split_rows(len(frame), args)
    hidden = torch.rand(frame.shape, generator=torch.Generator().manual_seed(0)) < (args.hide or 0.0)
    families = dict(given.rpartition("=")[::2] for given in args.families)
    seen = frame.mask(hidden.numpy())
    table = Table.of(seen.iloc[train.numpy()], families=families)  # type: ignore[arg-type]
    x, observed = table.tensors(frame)
    parts = [(x[rows], (observed & ~hidden)[rows]) for rows in (train, valid, test)]
    truth = torch.where(observed, x, math.nan)[test]
    text = _described(args, table.columns, [len(part[0]) for part in parts], parts[0][1])
    return TableData(parts[0], parts[1], parts[2], text, fingerprint, truth, table)


def _frame(args: TableArgs) -> tuple[Any, str]:
    """The data frame, and a hash of its file."""
    if args.dataset == "csv":
        return read_csv(args.data_root)
    from sklearn import datasets

    if args.dataset == "diabetes":
        data = datasets.load_diabetes(as_frame=True, scaled=False)
        return data.frame.assign(sex=data.frame["sex"].map({1.0: "1", 2.0: "2"})), ""
    data = datasets.load_wine(as_frame=True) if args.dataset == "wine" else datasets.load_breast_cancer(as_frame=True)
    name = "grape" if args.dataset == "wine" else "diagnosis"
    return data.data.assign(**{name: data.target_names[data.target]}), ""


def _with_levels(frame: Any) -> Any:
    """The frame with its labels as categories, so that a level which no training row has is one of them too.

    Raises:
        ValueError: where a column has about as many labels as rows: a name, a date, a text.
    """
    frame = frame.dropna(axis="columns", how="all")
    for name in frame.columns:
        if frame[name].dtype.kind in "biuf":
            continue
        labels = frame[name].nunique()
        if labels > max(MOST_LABELS, len(frame) // 2):
            raise ValueError(
                f"column {name!r} holds {labels} labels in {len(frame)} rows, too many to learn: --leave-out {name}"
            )
        frame = frame.assign(**{name: frame[name].astype("category")})
    return frame


def _described(args: TableArgs, columns: Sequence[Column], sizes: list[int], observed: Tensor) -> str:
    """The columns, what they were taken for, and the units of log p(x)."""
    train, valid, test = sizes
    width = max(len(column.name) for column in columns)
    lines = [f"{args.dataset}: {train} rows to train on, {valid} for validation, {test} for testing"]
    for column, there in zip(columns, observed.double().mean(0).tolist(), strict=True):
        lines.append(
            f"  {column.name:<{width}}  {column.family:<12}{_shown(column):<40}{100 * (1 - there):3.0f} % missing"
        )
    masses = sum(column.family not in ("normal", "log-normal") for column in columns)
    kinds = [
        f"densities of {len(columns) - masses} columns in their own units" if masses < len(columns) else "",
        f"probabilities of {masses}" if masses else "",
    ]
    lines.append(f"log p(x) is of the cells that are there, in nats: {' and '.join(filter(None, kinds))}")
    return "\n".join(lines)


def _shown(column: Column) -> str:
    """What the values of a column are like."""
    if column.family in OF_LEVELS:
        levels = ", ".join(map(str, column.levels))
        return levels if len(levels) < 38 else f"{len(column.levels)} levels"
    if column.family == "normal":
        return f"{column.loc:.4g} ± {column.scale:.3g}"
    inverse = math.exp if column.family == "log-normal" else math.expm1
    low, high = (inverse(column.loc + side * column.scale) for side in (-1, 1))
    return f"mostly {max(low, 0):.4g} to {high:.4g}"
