"""What the explorer shows of a pair on data: maps of its codes, terms of each likelihood, a decoder for each latent."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ppvae._validate import check_flag
from ppvae.data.table import Column
from ppvae.evaluate.estimator import Estimator
from ppvae.evaluate.expected_log_likelihood import expected_log_likelihood
from ppvae.evaluate.latents import ACTIVE
from ppvae.evaluate.marginal import elbo, estimator_of, log_marginal
from ppvae.evaluate.psis import ParetoWarning
from ppvae.evaluate.sites import elements
from ppvae.explorer.decoder import Decoder, decoders_of
from ppvae.inputs import as_batch, as_tensor, is_array
from ppvae.pair import Batch, check_data, check_pair
from ppvae.plot.projection import FEWEST_FOR_TSNE, principal_components, tsne_of
from ppvae.sampling.guide_density import PointMassError
from ppvae.sampling.posterior_draws import check_predictable, posterior_sampler

PAIRED = 4
"""The most active units, of which every two are a map."""
IMPORTANCE_SAMPLES = 500
"""Draws of log p̂(x), where nothing else is said: seconds for a thousand data, and k̂ says where they are too few."""
ELBO_SAMPLES = 10
"""Draws of which the terms of the ELBO are means."""


@dataclass(frozen=True)
class Map:
    """The codes in two dimensions.

    Attributes:
        name: of the map.
        points: (n, 2).
        axes: what the two are called; "" where they mean nothing.
        plane: a point of the plane, (k,), and the two directions, (k, 2), where it is one in the space of codes.
    """

    name: str
    points: NDArray[Any]
    axes: tuple[str, str]
    plane: tuple[NDArray[Any], NDArray[Any]] | None


@dataclass(frozen=True)
class View:
    """One latent: its codes, its units by how active they are, its maps, and what is decoded.

    Attributes:
        decoder: E[x|z] as this latent moves.
        codes: (n, k).
        units: all of them, that whose codes vary most first.
        num_active: of how many the variance is above 0.01.
        maps: the first is shown first.
    """

    decoder: Decoder
    codes: NDArray[Any]
    units: tuple[int, ...]
    num_active: int
    maps: tuple[Map, ...]


@dataclass(frozen=True)
class Exploration:
    """All that the page is made of.

    Attributes:
        x: the data that are shown, (n, *event); NaN where a mask leaves them out.
        labels: (n,), or None.
        terms: of each datum by name, (n,), nats; k̂ among them.
        views: of the continuous latents, the nearest to the data first.
        columns: of a table, what its columns are.
        title: of the page.
    """

    x: Tensor
    labels: Tensor | None
    terms: dict[str, Tensor]
    views: tuple[View, ...]
    columns: tuple[Column, ...]
    title: str


def look_at(
    pair: nn.Module,
    *data: Any,
    labels: Any = None,
    num_samples: int | None = None,
    method: str | Estimator = "importance",
    tsne: bool = True,
    symbol: str = "log p(x)",
    title: str = "",
    seed: int = 0,
) -> Exploration:
    """Computes what the explorer shows.

    Args:
        pair: any model/guide pair with a continuous latent for each datum.
        data: its arguments for n data, at least 2.
        labels: classes of the data, integers (n,).
        num_samples: draws of each log p̂(x); by default 500 of importance sampling, of other methods what they say.
        method: by which log p(x) is estimated, see `ppvae.log_marginal`.
        tsne: whether there is a map by t-SNE, which takes seconds for a thousand data.
        symbol: what the marginal likelihood is called.
        title: of the page; by default the class of the pair.
        seed: of the draws; the global random state is left alone.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where no latent is continuous, the likelihood is fed the data that it is of, or the pair or the
            data break the contract.
        NotImplementedError: where the mean of the likelihood is not known.

    Example:
        >>> import torch
        >>> from ppvae.models import PPCA
        >>> found = look_at(PPCA(8, 3), torch.randn(20, 8), num_samples=100)
        >>> [each.name for each in found.views[0].maps][:2], list(found.terms)
        (['principal components', 't-SNE'], ['log p(x|z)', 'KL of z', 'ELBO', 'log p(x)', 'k̂'])
    """
    check_pair(pair)
    check_flag("tsne", tsne)
    if num_samples is None and method == "importance":
        num_samples = IMPORTANCE_SAMPLES
    estimator = estimator_of(method, num_samples)
    batch = as_batch(data, pair)
    if (n := check_data(batch)) < 2:
        raise ValueError("data must hold at least 2 data: a map is of several, got 1")
    classes = checked_labels(labels, n)
    with posterior_sampler(pair, batch, seed=seed) as posterior:
        check_predictable(posterior)
        found = decoders_of(posterior)
    for decoder in found.decoders:  # a likelihood whose mean is not known says so before anything takes long
        decoder.means(decoder.example())
    terms = _terms(pair, batch, estimator, symbol, seed)
    height = next(reversed(terms.values())) if symbol not in terms else terms[symbol]
    views = tuple(_view(decoder, height, tsne) for decoder in found.decoders)
    return Exploration(found.x, classes, terms, views, _columns(pair, found.x), title or type(pair).__name__)


def checked_labels(labels: Any, n: int) -> Tensor | None:
    """The labels as a tensor on the CPU.

    Raises:
        TypeError: where they are no integers.
        ValueError: where there is not one for each datum.
    """
    if labels is None:
        return None
    found = as_tensor("labels", labels) if is_array(labels) else labels
    if not isinstance(found, Tensor) or found.is_floating_point():
        kind = found.dtype if isinstance(found, Tensor) else type(labels).__name__
        raise TypeError(f"labels must be integers, one for each datum, got {kind}")
    if found.shape != (n,):
        raise ValueError(f"labels must have shape ({n},), one for each datum, got {tuple(found.shape)}")
    return found.cpu().long()


def _terms(pair: nn.Module, data: Batch, estimator: Estimator, symbol: str, seed: int) -> dict[str, Tensor]:
    """The terms of each datum's likelihood; of a deterministic encoder the reconstruction alone."""
    try:
        bound = elbo(pair, *data, num_samples=ELBO_SAMPLES, seed=seed)
        with warnings.catch_warnings(action="ignore", category=ParetoWarning):  # k̂ of each datum is shown
            estimate = log_marginal(pair, *data, method=estimator, seed=seed)
    except PointMassError:
        return {"log p(x|z)": expected_log_likelihood(pair, *data, seed=seed).values}
    terms = {"log p(x|z)": bound.reconstruction} | {f"KL of {name}": kl for name, kl in bound.kl.items()}
    terms |= {"ELBO": bound.values, symbol: estimate.values}
    return terms | ({} if bool(estimate.pareto_k.isnan().all()) else {"k̂": estimate.pareto_k})


def _view(decoder: Decoder, height: Tensor, tsne: bool) -> View:
    """The codes of one latent, and where they lie.

    Args:
        decoder: of the latent.
        height: of each datum, for the map of a latent of one unit.
        tsne: whether there is a map by t-SNE.
    """
    codes = decoder.inputs[0].rows.flatten(1).double().numpy()
    variance = codes.var(0)
    units = tuple(int(unit) for unit in np.argsort(-variance, kind="stable"))
    num_active = int((variance > ACTIVE).sum())
    return View(decoder, codes, units, num_active, tuple(_maps(decoder, codes, units, num_active, height, tsne)))


def _maps(
    decoder: Decoder, codes: NDArray[Any], units: Sequence[int], num_active: int, height: Tensor, tsne: bool
) -> list[Map]:
    """Principal components and t-SNE of the active units, and the most active units two by two."""
    k, names = codes.shape[1], unit_names(decoder)
    if k == 1:
        return [Map(names[0], np.column_stack([codes[:, 0], height.numpy()]), (names[0], "nats"), None)]
    used = sorted(units[: max(2, num_active)])
    maps = []
    if k > 2:
        mean, basis, explained = principal_components(codes[:, used])
        plane = np.zeros(k), np.zeros((k, 2))
        plane[0][used], plane[1][used] = mean, basis
        axes = [f"principal component {i + 1} ({part:.0%} of variance)" for i, part in enumerate(explained)]
        maps.append(Map("principal components", (codes - plane[0]) @ plane[1], (axes[0], axes[1]), plane))
        if tsne and len(used) > 2 and len(codes) >= FEWEST_FOR_TSNE:
            maps.append(Map("t-SNE", tsne_of(codes[:, used], maps[0].points), ("", ""), None))
    for i, j in combinations(sorted(units[:PAIRED]), 2):
        plane = np.zeros(k), np.eye(k)[:, [i, j]]
        maps.append(Map(f"{names[i]} and {names[j]}", codes[:, [i, j]], (names[i], names[j]), plane))
    return maps


def unit_names(decoder: Decoder) -> list[str]:
    """What the units of the latent that moves are called, in the order of the flattened code: z[0], z[1], ..."""
    return elements(decoder.latent, tuple(decoder.inputs[0].rows.shape[1:]))


def _columns(pair: nn.Module, x: Tensor) -> tuple[Column, ...]:
    """The columns of a table, where a likelihood of the pair knows them."""
    for module in pair.modules():
        columns = getattr(module, "columns", ())
        if isinstance(columns, tuple) and columns and isinstance(columns[0], Column) and x.shape[1:] == (len(columns),):
            return columns
    return ()
