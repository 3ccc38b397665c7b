"""What every result shares: a line in a console, a list in a notebook, a table for pandas."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from dataclasses import fields
from math import nan
from typing import Any

import torch
from torch import Tensor


class Result(ABC):
    """A dataclass that says in words what was found; what prints it shows these, and no tensors.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.models import PPCA
        >>> terms = ppvae.elbo(PPCA(8, 2), torch.zeros(3, 8), num_samples=1)
        >>> repr(terms).split(" = ")[0], terms.to_dataframe().shape
        ('Elbo: ELBO', (3, 5))
    """

    @abstractmethod
    def summary(self) -> str:
        """What was found, for a person; clauses end in semicolons."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self.summary().splitlines()[0].split('; ')[0]}"

    def _repr_html_(self) -> str:
        """The summary as a list, which notebooks show."""
        clauses = [html.escape(clause) for line in self.summary().splitlines() for clause in line.split("; ")]
        return f"<b>{type(self).__name__}</b><ul>{''.join(f'<li>{clause}</li>' for clause in clauses)}</ul>"

    def to_dataframe(self) -> Any:
        """What is known of each datum, or epoch, as a table of pandas: a row for each, nats where nothing else is said.

        Raises:
            TypeError: where nothing is known of each datum.
        """
        import pandas as pd

        columns: dict[str, Any] = {}
        for field in fields(self):  # type: ignore[arg-type]
            columns |= _columns(field.name, getattr(self, field.name))
        n = next((len(values) for values in columns.values()), None)
        if n is None:
            raise TypeError(f"{type(self).__name__} is of all data together: it has no value for each")
        return pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items() if len(values) == n})


def _columns(name: str, value: Any) -> dict[str, Tensor]:
    """The vectors in a field, by name: itself, those of a dictionary, of a method's evidence, of rows of numbers."""
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        names = dict.fromkeys(key for row in value for key in row)
        return {key: torch.tensor([row.get(key, nan) for row in value], dtype=torch.float64) for key in names}
    if isinstance(value, Tensor):
        return {name: value.detach()} if value.dim() == 1 else {}
    if isinstance(value, dict):
        return {key: found for part, each in value.items() for key, found in _columns(f"{name}_{part}", each).items()}
    if hasattr(value, "of_datum"):
        return {key: found for part, each in value.of_datum().items() for key, found in _columns(part, each).items()}
    return {}
