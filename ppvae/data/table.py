"""Tables: what each column is of, and a data frame as the tensors of a pair, with a mask where a cell is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor

from ppvae._validate import check_number, check_tensor

Family = Literal["normal", "log-normal", "bernoulli", "categorical", "ordinal", "count"]

FAMILIES: tuple[str, ...] = get_args(Family)
"""What a column may be of."""

OF_LEVELS = ("bernoulli", "categorical", "ordinal")
"""The families whose values are numbers of levels."""


def split_missing(x: Tensor, *, fill: float = 0.0) -> tuple[Tensor, Tensor]:
    """Data with NaN where a value is missing, as finite values and a mask.

    Args:
        x: data of any shape, floating-point.
        fill: what stands where a value is missing; it must lie in the support of the likelihood, and changes no number.

    Returns:
        The data without NaN, and where they were observed, boolean, both of x's shape: the arguments of a `MaskedVAE`.

    Raises:
        TypeError: where x is no tensor of floating-point numbers.

    Example:
        >>> import math
        >>> split_missing(torch.tensor([1.0, math.nan]))
        (tensor([1., 0.]), tensor([ True, False]))
    """
    if not check_tensor("x", x).is_floating_point():
        raise TypeError(f"x must be of floating-point numbers, of which NaN is one, got {x.dtype}")
    check_number("fill", fill)
    observed = ~x.isnan()
    return torch.where(observed, x, fill), observed


@dataclass(frozen=True)
class Column:
    """One column of a table, and the family of its likelihood.

    Attributes:
        name: of the column.
        family: "normal" and "log-normal" are densities, in the column's own unit; "bernoulli", "categorical" and
            "ordinal" are of levels, ordinal ones in their order; "count" is of whole numbers from 0.
        levels: the labels of its levels, in their order; values are their numbers. None for the others.
        loc: where the likelihood starts: the mean of the values, or of their logarithms.
        scale: its first scale: their standard deviation.
    """

    name: str
    family: Family = "normal"
    levels: tuple[Any, ...] = ()
    loc: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"the family of {self.name!r} must be one of {', '.join(FAMILIES)}; got {self.family!r}")
        if (self.family in OF_LEVELS) != bool(self.levels):
            raise ValueError(f"{self.name!r} is {self.family}, and has {len(self.levels)} levels")
        if self.family == "bernoulli" and len(self.levels) != 2:
            raise ValueError(f"{self.name!r} is bernoulli, and has {len(self.levels)} levels in place of 2")
        check_number(f"the scale of {self.name!r}", self.scale, above=0)
        check_number(f"the loc of {self.name!r}", self.loc)


@dataclass(frozen=True)
class Table:
    """The columns of a table, by which data frames become tensors and come back.

    Attributes:
        columns: in the order of the tensors.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"size": [1.5, None, 3.5], "kind": ["a", "b", "c"], "visits": [3, 0, 12]})
        >>> table = Table.of(frame)
        >>> [(column.name, column.family) for column in table.columns]
        [('size', 'normal'), ('kind', 'categorical'), ('visits', 'count')]
        >>> x, observed = table.tensors(frame)
        >>> x.shape, observed[:, 0]
        (torch.Size([3, 3]), tensor([ True, False,  True]))
    """

    columns: tuple[Column, ...]

    @classmethod
    def of(cls, frame: Any, *, families: Mapping[str, Family] | None = None) -> Self:
        """The columns of a data frame, their families by what they hold.

        Booleans and pairs of labels are Bernoulli, other labels categorical, ordered categories ordinal, whole numbers
        from 0 counts, and all other numbers normal.

        Args:
            frame: a pandas frame, of training data: levels, means and scales are read off it.
            families: by column, where they are to be others.

        Raises:
            TypeError: where it is no frame.
            ValueError: naming a column without values, or whose values do not fit its family.
        """
        if not (hasattr(frame, "columns") and hasattr(frame, "dtypes")):
            raise TypeError(f"frame must be a pandas data frame, got {type(frame).__name__}")
        chosen = dict(families or {})
        if unknown := chosen.keys() - set(frame.columns):
            raise ValueError(f"families names columns that are not there: {sorted(map(str, unknown))}")
        return cls(tuple(_column(name, frame[name], chosen.get(name)) for name in frame.columns))

    def tensors(self, frame: Any) -> tuple[Tensor, Tensor]:
        """A data frame as the arguments of a `MaskedVAE`.

        Args:
            frame: with these columns, in any order; others are left out.

        Returns:
            The values, (n, d), float32, levels by their numbers; and which cells are there, (n, d), boolean.

        Raises:
            ValueError: naming a column that is missing, or a value that its family does not have.
        """
        if missing := [column.name for column in self.columns if column.name not in frame.columns]:
            raise ValueError(f"the frame lacks the columns {missing}")
        parts = [_values(column, frame[column.name]) for column in self.columns]
        x, observed = (torch.from_numpy(np.stack(of, -1)) for of in zip(*parts, strict=True))
        return x.float(), observed

    def frame(self, x: Tensor, observed: Tensor | None = None) -> Any:
        """Values as a data frame: levels by their labels, and cells that are not observed as missing.

        Args:
            x: (n, d).
            observed: which cells are there, (n, d); None is all.
        """
        import pandas as pd

        there = torch.ones_like(x, dtype=torch.bool) if observed is None else observed
        found = {}
        for j, column in enumerate(self.columns):
            values: Any = x[:, j].cpu().numpy().astype(object if column.levels else float)
            if column.levels:
                values = np.array([column.levels[int(v)] for v in values], dtype=object)
            found[column.name] = pd.Series(values).where(pd.Series(there[:, j].cpu().numpy()))
        return pd.DataFrame(found)


def _column(name: str, series: Any, family: Family | None) -> Column:
    """What a column is of."""
    known = series.dropna()
    if not len(known):
        raise ValueError(f"column {name!r} has no values")
    family = _family(known) if family is None else family
    column = Column(name, family, tuple(_levels(known)) if family in OF_LEVELS else ())
    values, observed = _values(column, series)
    if family in OF_LEVELS:
        return column
    of = values[observed]
    of = np.log(of) if family == "log-normal" else np.log1p(of) if family == "count" else of
    spread = float(of.std())
    return replace(column, loc=float(of.mean()), scale=spread if spread > 0 else 1.0)


def _family(known: Any) -> Family:
    if getattr(known.dtype, "ordered", False):
        return "ordinal"
    if not _is_number(known):
        return "bernoulli" if len(_levels(known)) == 2 else "categorical"
    values = known.to_numpy(dtype=float)
    if known.dtype.kind == "b":
        return "bernoulli"
    whole = bool((values >= 0).all() and (values == np.round(values)).all())
    if whole and set(np.unique(values)) == {0.0, 1.0}:
        return "bernoulli"
    return "count" if whole else "normal"


def _is_number(series: Any) -> bool:
    return getattr(series.dtype, "kind", "O") in "biuf"


def _levels(known: Any) -> Sequence[Any]:
    """The labels of a column's levels: in their own order where it has one, else sorted."""
    if hasattr(known.dtype, "categories"):
        return list(known.dtype.categories)
    if known.dtype.kind == "b":
        return [False, True]
    return sorted(known.unique().tolist())


def _values(column: Column, series: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The values of a column, with one of its support where there is none; and where there is one.

    Raises:
        ValueError: naming the first row with a value that is not of its family.
    """
    observed = series.notna().to_numpy()
    fill = 1.0 if column.family == "log-normal" else 0.0
    if column.levels:
        codes = {level: float(number) for number, level in enumerate(column.levels)}
        found = [codes.get(v, np.nan) if there else fill for v, there in zip(series, observed, strict=True)]
        values = np.array(found)
        wrong, wanted = np.isnan(values), f"one of {list(column.levels)[:8]}"
    else:
        if not _is_number(series.dropna().infer_objects()):
            raise ValueError(f"column {column.name!r} is {column.family}, and holds {series.dtype} in place of numbers")
        values = np.where(observed, series.to_numpy(dtype=float, na_value=np.nan), fill)
        right, wanted = {
            "normal": (np.isfinite(values), "a finite number"),
            "log-normal": (np.isfinite(values) & (values > 0), "a number > 0"),
            "count": (np.isfinite(values) & (values >= 0) & (values == np.round(values)), "a whole number >= 0"),
        }[column.family]
        wrong = ~right
    if wrong.any():
        row = int(wrong.argmax())
        got = series.iloc[row]
        raise ValueError(f"column {column.name!r} is {column.family}: row {row} must hold {wanted}, got {got!r}")
    return values, observed
