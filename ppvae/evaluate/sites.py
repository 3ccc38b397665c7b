"""Values of a pair's sites with the datum first, (n, *plates, *event), whatever plates they lie in."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from pyro import poutine
from torch import Tensor, nn

from ppvae.pair import Batch, blocks, check_batch, check_data, device_of, take
from ppvae.params import LocalParams
from ppvae.sampling.eval_mode import evaluating, validation
from ppvae.sampling.latent import Latent
from ppvae.sampling.posterior_draws import PosteriorSampler
from ppvae.sampling.sampler import PROBE_DATA
from ppvae.traces import Site, leaf, sites

Key = TypeVar("Key", bound=Hashable)
"""What draws are kept under: a site's name, or a name with what it is a draw of."""

Plates = dict[int, str]
"""Names of the plates inside the data plate, by their dim, from the left."""

MASKED_DATA = 256
"""The most data that are run at once to count what their masks leave out."""


def once(posterior: PosteriorSampler) -> dict[str, Site]:
    """The model's sites on the data as they are, at one draw from the guide."""
    latents, _ = posterior.draw(1)
    return sites(replace(posterior.sampler, plate_dim=None).model(posterior.data, 1, latents, {}))


def num_observed(pair: nn.Module, data: Batch, given: Sequence[str], params: LocalParams | None = None) -> float:
    """Elements of a datum that the model scores: of its observed sites, without those that are given.

    Where a mask leaves some out, the mean over the data of those that count. Of the first argument where the model
    observes nothing, but scores the data by `pyro.factor`. NaN where some are numbers, with a density in their unit,
    and others levels or counts, with a probability: bits of the two do not add up to bits per dimension.

    Args:
        pair: any model/guide pair.
        data: its arguments for n data.
        given: observed sites that are not scored.
        params: where the values of its `pyro.param` live; by default the pair's own.

    Example:
        >>> import torch
        >>> from ppvae.models import PPCA
        >>> num_observed(PPCA(8, 2), (torch.zeros(5, 8),), given=())
        8
    """
    device, n = device_of(pair, data), check_data(data)
    with evaluating(pair, 0, device=device, params=params), validation(False):
        probe = take(data, slice(0, PROBE_DATA), device)
        scored = _scored_sites(pair, probe, given)
        if len({site.is_discrete for site in scored}) > 1 or any(_mixes_units(site) for site in scored):
            return math.nan
        if not any(site.is_masked for site in scored):
            elements = sum(site.fn.shape().numel() for site in scored) // check_batch(probe)
            return elements or next(t for t in probe if t is not None)[0].numel()
        total = sum(
            int(site.counted().sum())
            for first, last in blocks(n, MASKED_DATA)
            for site in _scored_sites(pair, take(data, slice(first, last), device), given)
        )
    return total / n


def _scored_sites(pair: nn.Module, data: Batch, given: Sequence[str]) -> list[Site]:
    """The observed sites of the model whose density is part of log p(x)."""
    guide = poutine.trace(pair.guide).get_trace(*data)
    model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(*data)
    observed = [site for site in sites(model).values() if site.role == "observed" and not site.is_factor]
    return [site for site in observed if site.name not in given]


def _mixes_units(site: Site) -> bool:
    """Whether the elements of one site are of several kinds, as the columns of a table."""
    return bool(getattr(leaf(site.fn), "mixes_units", False))


def inner_plates(posterior: PosteriorSampler) -> dict[str, Plates]:
    """The plates inside the data plate, for every site of the model."""
    found = once(replace(posterior, data=take(posterior.data, slice(0, PROBE_DATA))))
    return {name: inner_plates_of(found[name]) for name in (*posterior.latents, *posterior.observed)}


def inner_plates_of(site: Site) -> Plates:
    """The plates inside the data plate that one site lies in."""
    return {dim: name for dim, name in sorted((plate.dim or 0, plate.name) for plate in site.plates) if dim < -1}


def by_datum(latent: Latent, plates: Plates) -> Tensor:
    """Values (s, *plates, n, *event) as (s, n, *plates, *event), without the places of plates that are not the site's.

    Args:
        latent: the values.
        plates: of the site, by their dim.
    """
    value, dim = latent.value.movedim(latent.data_dim, 1), latent.data_dim
    empty = [i + 1 for i in range(1, dim) if i - dim - 1 not in plates and value.shape[i + 1] == 1]
    return value.squeeze(empty) if empty else value


def observed_value(site: Site, plates: Plates) -> Tensor:
    """What a site of `once` observes, (n, *plates, *event)."""
    return _of_one(site.value.expand(site.fn.shape()), site.event_dim, plates)


def mask_of(site: Site, plates: Plates) -> Tensor:
    """Which elements of a site of `once` count in its density: true or false, (n, *plates, *event)."""
    return _of_one(site.counted(), site.event_dim, plates)


def _of_one(value: Tensor, event_dim: int, plates: Plates) -> Tensor:
    return by_datum(Latent(value.unsqueeze(0), event_dim, len(plates)), plates)[0]


def in_blocks(
    posterior: PosteriorSampler, num_samples: int, draw: Callable[[PosteriorSampler, int], dict[Key, Tensor]]
) -> Iterator[dict[Key, Tensor]]:
    """Draws for all data, as many samples at a time as the memory budget allows, on the CPU.

    Args:
        posterior: the pair on its data.
        num_samples: s, in all.
        draw: from some of the data and a number of samples to tensors (samples, data, ...) by name.

    Yields:
        Tensors of shape (samples, n, ...).
    """
    size = max(1, posterior.sampler.rows // len(posterior))
    for start in range(0, num_samples, size):
        s = min(size, num_samples - start)
        parts = [{name: value.cpu() for name, value in draw(part, s).items()} for _, part in posterior.parts(s)]
        yield {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}


def elements(name: str, shape: tuple[int, ...]) -> list[str]:
    """Names of a site's elements in the order in which it is flattened: z, or z[0], z[1], or z[0,0], ..."""
    if not shape:
        return [name]
    return [f"{name}[{','.join(map(str, place))}]" for place in torch.ones(shape).nonzero().tolist()]
