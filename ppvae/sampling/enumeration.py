"""Discrete latents that are summed over exactly: which they are, and the joint values that they take."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ppvae._internals import mask_of_distribution
from ppvae.traces import Site, sites

MAX_VALUES = 1000
"""The most joint values of one datum's enumerated latents that are tried each.

Where there are more, those that only the model has are summed over one after another; more of the others are an error.
"""


Sites = dict[str, Site]


@dataclass(frozen=True)
class Enumeration:
    """The joint values of the latents that are marked for enumeration.

    Attributes:
        guide: sites that the guide marks, as `TraceEnum_ELBO` asks: `infer={"enumerate": "parallel"}`.
        model: sites that the model marks and the guide does not sample.
        values: the value of each site at each joint value, (*plates, 1, *event): the same for every datum. Those of
            the model's sites vary fastest.
        event_dims: the event dims of each site that has them.
        num_values: how many values one element of each site has.
        num_model: joint values of the model's sites alone.
        eliminates: whether the model's sites have no `values` here but are summed over one after another.
        nesting: how many dims the plates take.
    """

    guide: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    values: tuple[dict[str, Tensor], ...] = field(default_factory=lambda: ({},))
    event_dims: dict[str, int] = field(default_factory=dict)
    num_values: dict[str, int] = field(default_factory=dict)
    num_model: int = 1
    eliminates: bool = False
    nesting: int = 1

    @classmethod
    def of(cls, model_trace: Trace, guide_trace: Trace) -> Enumeration:
        """Reads the marks in traces of one sample of each datum, made without enumeration.

        Raises:
            ValueError: naming a site whose values cannot be listed, are too many, or of which some would be left out.
        """
        sampled, latents = sites(guide_trace), sites(model_trace)
        latents = {name: site for name, site in latents.items() if site.is_drawn}
        guide = {name: site for name, site in sampled.items() if site.is_marked and name in latents}
        model = {name: site for name, site in latents.items() if name not in sampled and site.is_marked}
        _check_marks(guide, model, latents, sampled)
        plates = [plate for site in (*latents.values(), *sampled.values()) for plate in site.plates]
        eliminates = bool(model) and _joint_values(guide | model) > MAX_VALUES >= _joint_values(guide)
        listed = cls._of_sites(guide if eliminates else guide | model)
        return replace(
            listed,
            guide=tuple(guide),
            model=tuple(model),
            num_values={name: len(_listed(site)) for name, site in (guide | model).items()},
            num_model=1 if eliminates else math.prod(len(_support(site)) for site in model.values()),
            eliminates=eliminates,
            nesting=max((-(plate.dim or 0) for plate in plates), default=1),
        )

    @classmethod
    def of_auxiliary(cls, marked: Sites) -> Enumeration:
        """The joint values of draws that the guide alone has, and that log q(z|x) is summed over."""
        return cls._of_sites(marked)

    @classmethod
    def _of_sites(cls, marked: Sites) -> Enumeration:
        supports = {name: _support(site) for name, site in marked.items()}
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
            values=tuple(dict(zip(supports, values, strict=True)) for values in joint),
            event_dims={name: site.event_dim for name, site in marked.items()},
            num_values={name: len(_listed(site)) for name, site in marked.items()},
        )

    def scoring(self, other: Enumeration) -> Enumeration:
        """The same, to score draws of the sites of another one too."""
        return replace(
            self, event_dims=self.event_dims | other.event_dims, num_values=self.num_values | other.num_values
        )

    @property
    def tried(self) -> tuple[str, ...]:
        """The model's sites whose joint values are tried each."""
        return () if self.eliminates else self.model

    def values_for(self, values: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
        """One joint value for so many rows of data: (*plates, rows, *event)."""
        expanded = {}
        for name, value in values.items():
            data_dim = value.dim() - 1 - self.event_dims[name]
            expanded[name] = value.expand(*value.shape[:data_dim], rows, *value.shape[data_dim + 1 :])
        return expanded

    def check(self, trace: Trace, *, names: tuple[str, ...]) -> None:
        """Checks that these sites of a trace still have the values that are summed over.

        Raises:
            ValueError: naming a site that is not always sampled, or whose values depend on the data.
        """
        found = sites(trace) if names else {}
        for name in names:
            if name not in found:
                raise ValueError(f"the site {name!r} is summed over, but not sampled at every value of the others")
            if len(_listed(found[name])) != self.num_values[name]:
                raise ValueError(
                    f"the site {name!r} is marked for enumeration, but how many values it has depends on the data"
                )

    def unmasked(self, site: Site, log_prob: Tensor) -> Tensor:
        """The log-probability of a site's values; all c of an element that a mask leaves out count 1/c, together 1."""
        for mask in (site.mask, mask_of_distribution(site.fn)):
            if mask is not None and mask is not True:
                mask = torch.as_tensor(mask, device=log_prob.device)
                log_prob = torch.where(mask, log_prob, -math.log(self.num_values[site.name]))
        return log_prob


def _check_marks(guide: Sites, model: Sites, latents: Sites, sampled: Sites) -> None:
    """Checks that every latent of the model is either sampled by the guide or summed over, at all of its values."""
    for name in latents:
        if name not in sampled and name not in model:
            raise ValueError(f"the guide misses the latent site {name!r}, which the model marks for sampling")
    for name, site in guide.items():
        try:
            of_model = len(latents[name].fn.enumerate_support(expand=False))
        except NotImplementedError:
            continue
        if (of_guide := len(_listed(site))) < of_model:
            raise ValueError(
                f"the guide lists {of_guide} values of {name!r}, and the model {of_model}: the sum leaves some out"
            )


def _joint_values(marked: Sites) -> int:
    """How many joint values these sites of one datum have."""
    count = 1
    for site in marked.values():
        *plates, _ = site.fn.batch_shape
        count *= len(_listed(site)) ** torch.Size(plates).numel()
    return count


def _support(site: Site) -> list[Tensor]:
    """Every value of a site, (*plates, 1, *event); of several elements in plates of one datum, every combination."""
    fn, support = site.fn, _listed(site)
    event = fn.event_shape
    values = support.reshape(len(support), *event)
    *plates, _ = fn.batch_shape
    elements = torch.Size(plates).numel()
    if len(values) ** elements > MAX_VALUES:
        raise ValueError(
            f"the latent {site.name!r} has {len(values)} values in each of {elements} elements of one datum: too many "
            "to sum over; without infer={'enumerate': ...} it is drawn"
        )
    combinations = itertools.product(values, repeat=elements)
    return [torch.stack(combination).reshape(*plates, 1, *event) for combination in combinations]


def _listed(site: Site) -> Tensor:
    """Every value of one element of a site, (c, *1, *event)."""
    try:
        return site.fn.enumerate_support(expand=False)
    except NotImplementedError as error:
        raise ValueError(
            f"the site {site.name!r} is marked for enumeration, but the values of {type(site.fn).__name__} cannot be "
            f"listed: {error or 'it has no enumerate_support'}"
        ) from error
