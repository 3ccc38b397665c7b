"""Discrete latents that are summed over exactly: which they are, and the joint values that they take."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ppvae.pair import sample_sites

MAX_VALUES = 1000
"""The most joint values of one datum's enumerated latents; more are an error."""


@dataclass(frozen=True)
class Enumeration:
    """The joint values of the latents that are marked for enumeration.

    Attributes:
        guide: sites that the guide marks, as `TraceEnum_ELBO` asks: `infer={"enumerate": "parallel"}`.
        model: sites that the model marks and the guide does not sample.
        values: the value of each site at each joint value, (*plates, 1, *event): the same for every datum. Those of
            the model's sites vary fastest.
        event_dims: the event dims of each site.
        num_model: joint values of the model's sites alone.
    """

    guide: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    values: tuple[dict[str, Tensor], ...] = field(default_factory=lambda: ({},))
    event_dims: dict[str, int] = field(default_factory=dict)
    num_model: int = 1

    @classmethod
    def of(cls, model_trace: Trace, guide_trace: Trace) -> Enumeration:
        """Reads the marks in traces of one sample of each datum, made without enumeration.

        Raises:
            ValueError: naming a site whose values cannot be listed, or are too many.
        """
        guide = {name: site for name, site in sample_sites(guide_trace) if _is_marked(site)}
        sampled = dict(sample_sites(guide_trace))
        model = {n: site for n, site in sample_sites(model_trace) if n not in sampled and _is_marked(site)}
        supports = {name: _support(name, site) for name, site in (guide | model).items()}
        count = 1
        for name, support in supports.items():
            count *= len(support)
            if count > MAX_VALUES:
                raise ValueError(
                    f"the latents {list(supports)} have more than {MAX_VALUES} joint values, {count} up to {name!r}: "
                    "too many to sum over; without infer={'enumerate': ...} they are drawn"
                )
        joint = itertools.product(*supports.values())
        return cls(
            tuple(guide),
            tuple(model),
            tuple(dict(zip(supports, values, strict=True)) for values in joint),
            {name: site["fn"].event_dim for name, site in (guide | model).items()},
            max(1, torch.Size(len(supports[name]) for name in model).numel()),
        )

    def values_for(self, values: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
        """One joint value for so many rows of data: (*plates, rows, *event)."""
        expanded = {}
        for name, value in values.items():
            data_dim = value.dim() - 1 - self.event_dims[name]
            expanded[name] = value.expand(*value.shape[:data_dim], rows, *value.shape[data_dim + 1 :])
        return expanded


def _is_marked(site: Any) -> bool:
    infer = site["infer"]  # with num_samples, Pyro's mark asks for samples side by side
    return not site["is_observed"] and bool(infer.get("enumerate")) and not infer.get("num_samples")


def _support(name: str, site: Any) -> list[Tensor]:
    """Every value of a site, (*plates, 1, *event); of several elements in plates of one datum, every combination."""
    fn = site["fn"]
    try:
        support = fn.enumerate_support(expand=False)
    except NotImplementedError as error:
        raise ValueError(
            f"the site {name!r} is marked for enumeration, but the values of {type(fn).__name__} cannot be listed: "
            f"{error or 'it has no enumerate_support'}"
        ) from error
    event = fn.event_shape
    values = support.reshape(len(support), *event)
    *plates, _ = fn.batch_shape
    elements = torch.Size(plates).numel()
    if len(values) ** elements > MAX_VALUES:
        raise ValueError(
            f"the latent {name!r} has {len(values)} values in each of {elements} elements of one datum: too many to "
            "sum over; without infer={'enumerate': ...} it is drawn"
        )
    combinations = itertools.product(values, repeat=elements)
    return [torch.stack(combination).reshape(*plates, 1, *event) for combination in combinations]
