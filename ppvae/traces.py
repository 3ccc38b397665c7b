"""Reading a trace."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution, Unit
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Independent


def sample_sites(trace: Trace) -> list[tuple[str, Any]]:
    """The sites of `trace` that carry a density: no subsampling indices, no `pyro.deterministic`."""
    return [
        (name, site)
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not site["infer"].get("_deterministic")
        and type(site["fn"]).__name__ != "_Subsample"
    ]


def counted(site: Any) -> Tensor:
    """Which elements of a site count in its density: true or false, of the shape of its value."""
    counts = torch.ones(site["fn"].shape(), dtype=torch.bool, device=site["value"].device)
    for mask, event_dim in _masks(site):
        counts = counts & (mask.bool().reshape(mask.shape + (1,) * event_dim) if isinstance(mask, Tensor) else mask)
    return counts


def is_masked(site: Any) -> bool:
    """Whether a mask may leave elements of a site out."""
    return any(mask is not True for mask, _ in _masks(site))


def _masks(site: Any) -> list[tuple[Tensor | bool, int]]:
    """The masks around a site and in its distribution, each with the number of event dims that it covers whole."""
    fn = site["fn"]
    masks = [(site["mask"], fn.event_dim)]
    while isinstance(fn, Independent | ExpandedDistribution | MaskedDistribution):
        if isinstance(fn, MaskedDistribution):
            masks.append((fn._mask, fn.event_dim))
        fn = fn.base_dist
    return [(mask, event_dim) for mask, event_dim in masks if mask is not None]


def is_objective_only(site: Any) -> bool:
    """Whether an observed site of a model is a term of the training objective and no part of p(x, z).

    Such a site is marked `infer={"is_auxiliary": True}`: a classifier's log q(y|x) of observed labels. Pyro marks its
    factors so as well, but those are part of the model.
    """
    return bool(site["is_observed"] and site["infer"].get("is_auxiliary") and not isinstance(site["fn"], Unit))


def latent_of(site: str, latents: Collection[str]) -> str:
    """The latent whose posterior a site of the guide belongs to: `z` for the `z_unconstrained` of Pyro's autoguides.

    They draw z_unconstrained and make z of it by a `Delta` that holds the change of volume: log q(z|x) is their sum.
    """
    latent = site.removesuffix("_unconstrained")
    return latent if latent in latents else site


def same_values(value: Any, tensor: Any) -> bool:
    """Whether `value` is `tensor`, or all of it in another shape."""
    return (
        isinstance(value, Tensor)
        and isinstance(tensor, Tensor)
        and (value.data_ptr(), value.numel(), value.dtype) == (tensor.data_ptr(), tensor.numel(), tensor.dtype)
    )
