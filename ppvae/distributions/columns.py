"""The likelihood of a table: a family for each column, whose values lie side by side in one tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from ppvae.data.table import Column
from ppvae.distributions.counts import NegativeBinomial
from ppvae.distributions.parameters import full_precision, resolve_event_dim
from ppvae.nn import MLP

MIN_SCALE = 1e-3
"""The least scale of a normal column, in units of its own."""


class ColumnProduct(TorchDistribution):
    """Independent columns, each of a family of its own, as the last dim of the batch.

    Args:
        parts: the columns that a distribution is of, by place, and the distribution, of batch shape (..., k). Places
            that are tensors are on its device, so that nothing is copied there at a call.
        validate_args: Whether to check values; None follows the global setting.

    Example:
        >>> parts = [([1], dist.Bernoulli(torch.tensor([0.5]))), ([0, 2], dist.Normal(torch.zeros(2), 1.0))]
        >>> ColumnProduct(parts).log_prob(torch.tensor([0.0, 1.0, 0.0]))
        tensor([-0.9189, -0.6931, -0.9189])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self, parts: Sequence[tuple[Sequence[int] | Tensor, TorchDistribution]], *, validate_args: bool | None = None
    ) -> None:
        self.parts = [(torch.as_tensor(places), fn) for places, fn in parts]
        lead = torch.broadcast_shapes(*(fn.batch_shape[:-1] for _, fn in self.parts))
        self._back = torch.cat([places for places, _ in self.parts]).argsort()
        super().__init__(Size((*lead, len(self._back))), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ColumnProduct:
        """Returns the distribution with its batch shape expanded."""
        parts = [(places, fn.expand((*batch_shape[:-1], len(places)))) for places, fn in self.parts]
        return ColumnProduct(parts, validate_args=self.__dict__.get("_validate_args"))

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """Each column's own."""
        return _Support(self)

    @property
    def mixes_units(self) -> bool:
        """Whether some columns have densities and others probabilities."""
        return len({bool(fn.support.is_discrete) for _, fn in self.parts}) > 1

    @property
    def has_rsample(self) -> bool:
        """Whether draws of all columns are differentiable."""
        return all(fn.has_rsample for _, fn in self.parts)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p of each cell, (..., d): densities in the unit of their column, or probabilities."""
        if self._validate_args:
            self._validate_sample(value)
        return self.side_by_side([fn.log_prob(value[..., places]) for places, fn in self.parts])

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draws rows."""
        with torch.no_grad():
            drawn = [fn.sample(sample_shape) for _, fn in self.parts]
            return self.side_by_side([value.to(torch.get_default_dtype()) for value in drawn])

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draws rows, differentiable where all columns are."""
        return self.side_by_side([fn.rsample(sample_shape) for _, fn in self.parts])

    @property
    def mean(self) -> Tensor:
        """The means; of levels the most probable one."""
        return self.side_by_side([_mean(fn) for _, fn in self.parts])

    def side_by_side(self, values: list[Tensor]) -> Tensor:
        """What each part gives, (..., k), in the order of the columns."""
        lead = torch.broadcast_shapes(*(value.shape[:-1] for value in values))
        joined = torch.cat([value.expand(*lead, value.shape[-1]) for value in values], -1)
        return joined[..., self._back]


class _Support(constraints.Constraint):
    """Of each column its own support."""

    def __init__(self, columns: ColumnProduct) -> None:
        self.columns = columns

    def check(self, value: Tensor) -> Tensor:
        """Whether each cell lies in it."""
        return self.columns.side_by_side([fn.support.check(value[..., places]) for places, fn in self.columns.parts])

    def __repr__(self) -> str:
        return "the support of its column each"


def _mean(fn: TorchDistribution) -> Tensor:
    if isinstance(fn, dist.Categorical):  # and what is derived of it
        return fn.probs.argmax(-1).to(fn.probs.dtype)
    return (fn.probs > 0.5).to(fn.probs.dtype) if isinstance(fn, dist.Bernoulli) else fn.mean


class ConditionalColumns(nn.Module):
    r"""The cells of a row given a context, each column of its family.

    Normal and log-normal columns are standardised inside, by the location and scale of the column, so that nets of any
    column start alike; log p(x) is in the columns' own units. Counts are negative binomial, their dispersion learned
    from that of the column on.
    Ordinal levels are those of a logistic variable between learned cut points.

    Args:
        net: A module from the context to the parameters of all columns, ``(..., num_params(columns))``.
        columns: What the columns are of, e.g. those of a `ppvae.data.Table`.

    Raises:
        ValueError: If the net declares another ``out_shape``.
        TypeError: If ``net`` is not a module.

    References:
        Handling incomplete heterogeneous data using VAEs (Nazábal et al. 2020), arXiv 1807.03653.

    Example:
        >>> columns = [Column("size", loc=170.0, scale=10.0), Column("kind", "categorical", ("a", "b", "c"))]
        >>> p_x_given_z = ConditionalColumns(MLP(2, (16,), num_params(columns)), columns)
        >>> p_x_given_z(torch.zeros(5, 2)).log_prob(torch.tensor([180.0, 2.0])).shape
        torch.Size([5])
    """

    def __init__(self, net: nn.Module, columns: Sequence[Column]) -> None:
        super().__init__()
        self.event_dim = resolve_event_dim(net, num_params=None, event_dim=1)
        if (declared := getattr(net, "out_shape", None)) not in (None, (num_params(columns),)):
            raise ValueError(f"net must give the {num_params(columns)} parameters of the columns, it gives {declared}")
        self.net, self.columns = net, tuple(columns)
        for name, of in (("loc", [c.loc for c in columns]), ("scale", [c.scale for c in columns])):
            self.register_buffer(name, torch.tensor(of), persistent=False)
        self.places = _places(columns)
        for number, places in enumerate(self.places.values()):  # on the module's device
            self.register_buffer(f"places_{number}", torch.tensor(places), persistent=False)
        counts = [columns[j] for j in self.places.get(("count", 0), [])]
        start = torch.tensor([_first_log_inverse_dispersion(column) for column in counts])
        self.log_inverse_dispersion = nn.Parameter(start) if counts else None
        cuts = {num: len(places) for (family, num), places in self.places.items() if family == "ordinal"}
        self.raw_cuts = nn.ParameterDict({str(num): nn.Parameter(_first_cuts(k, num)) for num, k in cuts.items()})

    loc: Tensor
    scale: Tensor

    def forward(self, *context: Tensor) -> TorchDistribution:
        """Returns p(x|c) of the row, one event dimension."""
        output = full_precision(self.net(*context))
        start, parts = 0, []
        for number, (family, num) in enumerate(self.places):
            places = getattr(self, f"places_{number}")
            size = len(places) * _params_of(family, num)
            params = output[..., start : start + size].unflatten(-1, (len(places), -1))
            parts.append((places, self._part(family, num, places, params)))
            start += size
        return ColumnProduct(parts).to_event(1)

    def _part(self, family: str, num: int, places: Tensor, params: Tensor) -> TorchDistribution:
        """The columns of one family, from their parameters (..., k, P)."""
        if family in ("normal", "log-normal"):
            loc, scale = self.loc[places], self.scale[places]
            fn = dist.Normal if family == "normal" else dist.LogNormal
            return fn(loc + scale * params[..., 0], scale * (F.softplus(params[..., 1]) + MIN_SCALE))
        if family == "count":  # log1p of the counts is what was averaged
            assert self.log_inverse_dispersion is not None
            return NegativeBinomial(self.loc[places] + self.scale[places] * params[..., 0], self.log_inverse_dispersion)
        if family == "bernoulli":
            return dist.Bernoulli(logits=params[..., 0])
        if family == "categorical":
            return dist.Categorical(logits=params)
        raw = self.raw_cuts[str(num)]
        cuts = torch.cat([raw[:, :1], raw[:, :1] + F.softplus(raw[:, 1:]).cumsum(-1)], -1)
        return dist.OrderedLogistic(params[..., 0], cuts)


class ColumnEncoder(nn.Module):
    """An MLP of a row and of which of its cells are there.

    Numbers are standardised, counts by their logarithms, levels are one-hot; all are zero where a cell is missing.

    Args:
        columns: What the columns are of.
        hidden_dims: Widths of the hidden layers.
        out_shape: Event shape of the output.

    Example:
        >>> encoder = ColumnEncoder([Column("size"), Column("kind", "categorical", ("a", "b", "c"))], (16,), (2, 4))
        >>> encoder(torch.zeros(5, 2), torch.ones(5, 2, dtype=torch.bool)).shape
        torch.Size([5, 2, 4])
    """

    def __init__(self, columns: Sequence[Column], hidden_dims: Sequence[int], out_shape: int | tuple[int, ...]) -> None:
        super().__init__()
        self.columns = tuple(columns)
        width = sum(len(c.levels) if c.family in ("categorical", "ordinal") else 1 for c in columns) + len(self.columns)
        self.net = MLP(width, tuple(hidden_dims), out_shape)
        self.out_shape = self.net.out_shape

    def forward(self, x: Tensor, observed: Tensor) -> Tensor:
        """Maps rows ``(..., d)`` and their masks to ``(..., *out_shape)``."""
        x, observed = torch.broadcast_tensors(x, observed)
        features = [self._features(c, x[..., j]) * observed[..., j, None] for j, c in enumerate(self.columns)]
        return self.net(torch.cat([*features, observed.to(x.dtype)], -1))

    def _features(self, column: Column, value: Tensor) -> Tensor:
        """A column as numbers that a net takes, (..., f)."""
        if column.family in ("categorical", "ordinal"):
            levels = torch.arange(len(column.levels), device=value.device)
            return (value.unsqueeze(-1) == levels).to(value.dtype)
        if column.family == "bernoulli":
            return value.unsqueeze(-1) - 0.5
        if column.family == "normal":
            shown = value
        else:
            shown = value.clamp(min=1e-30).log() if column.family == "log-normal" else value.clamp(min=0).log1p()
        return ((shown - column.loc) / column.scale).unsqueeze(-1)


def num_params(columns: Sequence[Column]) -> int:
    """How many numbers a net gives for all columns.

    Example:
        >>> num_params([Column("size"), Column("kind", "categorical", ("a", "b", "c"))])
        5
    """
    return sum(_params_of(column.family, len(column.levels)) for column in columns)


def _params_of(family: str, num_levels: int) -> int:
    return {"normal": 2, "log-normal": 2, "categorical": num_levels}.get(family, 1)


def _places(columns: Sequence[Column]) -> dict[tuple[str, int], list[int]]:
    """The columns by family and number of levels: each is one distribution."""
    found: dict[tuple[str, int], list[int]] = {}
    for j, column in enumerate(columns):
        num = len(column.levels) if column.family in ("categorical", "ordinal") else 0
        found.setdefault((column.family, num), []).append(j)
    return found


def _first_log_inverse_dispersion(column: Column) -> float:
    """Log θ with which counts are about as spread as those of the column: Var log x ≈ 1/mean + 1/θ."""
    beyond_poisson = column.scale**2 - math.exp(-column.loc)
    return -math.log(min(max(beyond_poisson, MIN_SCALE), 1.0))


def _first_cuts(num_columns: int, num_levels: int) -> Tensor:
    """Raw cut points of which the levels are about equally probable: the first, and the steps to the others."""
    shares = torch.arange(1, num_levels) / num_levels
    cuts = shares.logit()
    steps = cuts.diff().expm1().log()
    return torch.cat([cuts[:1], steps]).expand(num_columns, -1).clone()
