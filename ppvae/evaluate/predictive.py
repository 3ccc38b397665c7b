"""Posterior predictive checks: data drawn anew given what the guide makes of each datum, beside the data.

    z ~ q(z|x),   x_rep ~ p(x|z)

A model that fits draws data like those that it is given; a statistic T in which it does not has an extreme tail
probability P(T(x_rep) ≥ T(x)) (Gelman, Meng & Stern 1996, "Posterior predictive assessment of model fitness via
realized discrepancies").
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ppvae._validate import check_count
from ppvae.evaluate.shared import shared_posterior, shares_latents
from ppvae.evaluate.sites import (
    Plates,
    by_datum,
    in_blocks,
    inner_plates,
    inner_plates_of,
    mask_of,
    observed_value,
    once,
)
from ppvae.inputs import takes_data
from ppvae.pair import Batch, take
from ppvae.result import Result
from ppvae.sampling.posterior_draws import PosteriorSampler, check_predictable, posterior_sampler
from ppvae.sampling.sampler import PROBE_DATA
from ppvae.traces import same_values, sites

MAX_BYTES = 2**32
"""The most bytes of draws that are kept."""

Statistic = Callable[[Tensor], Any]
"""From data (n, ...) to a number for all of them, or to one for each, (n,)."""


@dataclass(frozen=True)
class PosteriorPredictive:
    """Draws of the latents and of the observed sites given each datum, on the CPU.

    Attributes:
        posterior: z ~ q(z|x) by latent site, each (s, n, *plates, *event); those that all data share have no n.
        predictive: x_rep ~ p(x|z) by observed site, each (s, n, *plates, *event).
        log_likelihood: log p(x|z) of each observed site, (s, n), nats.
        observed: what each observed site was given, (n, *plates, *event).
        conditions: the other arguments of the pair by name, (n, ...).
        plates: names of the plates inside the data plate, by site.
        shared: the latents that all data share.
    """

    posterior: dict[str, Tensor]
    predictive: dict[str, Tensor]
    log_likelihood: dict[str, Tensor]
    observed: dict[str, Tensor]
    conditions: dict[str, Tensor]
    plates: dict[str, tuple[str, ...]]
    shared: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class PredictiveCheck(Result):
    """Statistics of the data and of their replicates.

    Attributes:
        observed: T(x) by statistic, a number or one per datum (n,).
        replicated: T(x_rep), (s,) or (s, n).
        tail_probability: P(T(x_rep) > T(x)) + ½ P(T(x_rep) = T(x)), a number or one per datum (n,).
    """

    observed: dict[str, Tensor]
    replicated: dict[str, Tensor]
    tail_probability: dict[str, Tensor]

    def summary(self) -> str:
        """One line per statistic for a person: the data's, the replicates', and how extreme the former is."""
        return "\n".join(self._line(name) for name in self.observed)

    def _line(self, name: str) -> str:
        observed, replicated, tail = self.observed[name], self.replicated[name], self.tail_probability[name]
        extreme = (tail < 0.025) | (tail > 0.975)
        if tail.dim() > 0:
            return (
                f"{name}: the tail probability is below 0.025 or above 0.975 for {int(extreme.sum())} of {len(tail)} "
                f"data ({100 * float(extreme.double().mean()):.1f} %; 5 % of uniform ones are); its mean is "
                f"{float(tail.mean()):.3f}"
            )
        low, high = replicated.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
        error = math.sqrt(float(tail * (1 - tail)) / len(replicated))
        return (
            f"{name}: {float(observed):.4g}; 90 % of replicates lie between {low:.4g} and {high:.4g}; tail probability "
            f"{float(tail):.3f} ± {error:.3f}" + (": the model does not reproduce it" if bool(extreme) else "")
        )


@takes_data
def posterior_predictive(pair: nn.Module, *data: Any, num_samples: int = 100, seed: int = 0) -> PosteriorPredictive:
    """Draws latents from the guide and new data from the model given them, for every datum.

    All observed sites are drawn anew, also one that others depend on, such as a label with a prior of its own; an
    argument that no site observes, such as the label of a `CVAE`, is a condition and stays.

    Latents that all data share (Bayesian weights) are drawn once for all data.

    Args:
        pair: any model/guide pair.
        data: its arguments, tensors of shape (n, ...), or None.
        num_samples: s, draws per datum.
        seed: of the draws; the global random state is left alone.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the pair or the data break the contract, an argument is out of range, the density of an
            observed site is fed the data that it should draw, or the draws would take more than `MAX_BYTES`.

    Example:
        >>> import torch
        >>> from ppvae.models import PPCA
        >>> draws = posterior_predictive(PPCA(8, 2), torch.randn(100, 8), num_samples=10)
        >>> draws.posterior["z"].shape, draws.predictive["x"].shape, draws.log_likelihood["x"].shape
        (torch.Size([10, 100, 2]), torch.Size([10, 100, 8]), torch.Size([10, 100]))
    """
    check_count("num_samples", num_samples)
    if shares_latents(pair, data):
        return _of_shared(pair, data, num_samples, seed)
    with posterior_sampler(pair, data, seed=seed) as posterior:
        if not posterior.observed:
            raise ValueError("the model observes no site (pyro.factor draws nothing): there is nothing to predict")
        check_predictable(posterior)
        plates = inner_plates(posterior)

        def draw(part: PosteriorSampler, s: int) -> dict[tuple[str, str], Tensor]:
            latents, _ = part.draw(s)
            drawn = {("posterior", z): by_datum(latents[z], plates[z]) for z in part.latents}
            drawn |= {("predictive", x): by_datum(new, plates[x]) for x, new in part.predict(latents).items()}
            return drawn | {("log_likelihood", x): log_p for x, log_p in part.log_likelihood(latents).items()}

        _check_memory(posterior, num_samples, draw)
        blocks = list(in_blocks(posterior, num_samples, draw))
        groups: dict[str, dict[str, Tensor]] = {"posterior": {}}
        for group, name in blocks[0]:
            groups.setdefault(group, {})[name] = torch.cat([block[group, name] for block in blocks])
        return PosteriorPredictive(
            posterior=groups["posterior"],
            predictive=groups["predictive"],
            log_likelihood=groups["log_likelihood"],
            observed={name: value for name, (value, _) in _observed(posterior, plates).items()},
            conditions=_conditions_of(posterior),
            plates={name: tuple(of.values()) for name, of in plates.items()},
        )


@takes_data
def ppc(
    pair: nn.Module,
    *data: Any,
    statistics: Mapping[str, Statistic],
    site: str | None = None,
    num_samples: int = 200,
    seed: int = 0,
) -> PredictiveCheck:
    """Compares statistics of the data with those of data drawn anew given the same latents.

    P(T(x_rep) ≥ T(x)), in which ties count by half so that it is fair for discrete data too. It is 1/2 on average
    where the model is true, and less spread than uniform, since the latents have seen x.

    Args:
        pair: any model/guide pair.
        data: its arguments, tensors of shape (n, ...), or None.
        statistics: functions T by name, each from the values of the observed site (n, *plates, *event) on the CPU to
            a number for the whole set, or to one per datum, (n,). Elements that a mask leaves out are those of the
            data in every replicate.
        site: the observed site; needed where there are several.
        num_samples: s, replicates of the data.
        seed: of the draws; the global random state is left alone.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the pair or the data break the contract, an argument is out of range, the density of an
            observed site is fed the data that it should draw, or a statistic gives something else than finite numbers
            of one of those shapes.

    Example:
        >>> import torch
        >>> from ppvae.models import PPCA
        >>> check = ppc(PPCA(8, 2), torch.randn(100, 8), statistics={"mean": torch.mean}, num_samples=20)
        >>> check.replicated["mean"].shape
        torch.Size([20])
    """
    check_count("num_samples", num_samples)
    _check_statistics(statistics)
    with posterior_sampler(pair, data, seed=seed) as posterior:
        site = _choose(site, posterior.observed)
        check_predictable(posterior)
        plates = inner_plates(posterior)
        x, counts = _observed(posterior, plates)[site]
        observed = {name: _evaluate(name, function, x) for name, function in statistics.items()}

        def draw(part: PosteriorSampler, s: int) -> dict[str, Tensor]:
            return {site: by_datum(part.predict(part.draw(s)[0])[site], plates[site])}

        rows = [
            {name: _evaluate(name, function, new) for name, function in statistics.items()}
            for block in in_blocks(posterior, num_samples, draw)
            for new in torch.where(counts, block[site], x)
        ]
    replicated = {name: torch.stack([row[name] for row in rows]) for name in statistics}
    above = {name: (value > observed[name]).double().mean(0) for name, value in replicated.items()}
    ties = {name: (value == observed[name]).double().mean(0) for name, value in replicated.items()}
    return PredictiveCheck(observed, replicated, {name: above[name] + ties[name] / 2 for name in statistics})


def _of_shared(pair: nn.Module, data: Batch, num_samples: int, seed: int) -> PosteriorPredictive:
    """Draws of latents that all data share, and of all data given each."""
    with shared_posterior(pair, data, seed=seed) as posterior:
        if posterior.plate is None or not posterior.observed:
            raise ValueError("the model observes no site in a data plate: there is no datum to predict")
        posterior.check_predictable()
        rows = [posterior.replicate()]
        size = sum(value.numel() * value.element_size() for group in rows[0].values() for value in group.values())
        _check_bytes(size, num_samples, len(posterior))
        rows += [posterior.replicate() for _ in range(num_samples - 1)]
        few = take(posterior.data, slice(0, PROBE_DATA))
        trace = posterior.draw()
        seen, drawn = posterior.model(few, trace), sites(trace)
        plates = {name: tuple(inner_plates_of(seen[name]).values()) for name in posterior.observed}
        plates |= {z: tuple(p.name for p in drawn[z].plates[::-1]) for z in posterior.latents}
        groups = {
            group: {name: torch.stack([row[group][name] for row in rows]) for name in of}
            for group, of in rows[0].items()
        }
        return PosteriorPredictive(
            posterior=groups["posterior"],
            predictive=groups["predictive"],
            log_likelihood=groups["log_likelihood"],
            observed=posterior.observations(),
            conditions=_conditions(pair, posterior.data, few, [seen[x].value for x in posterior.observed]),
            plates=plates,
            shared=posterior.latents,
        )


def _check_statistics(statistics: Any) -> None:
    if not isinstance(statistics, Mapping) or not all(
        isinstance(name, str) and callable(function) for name, function in statistics.items()
    ):
        raise TypeError(f"statistics must map names to functions, got {statistics!r}")
    if not statistics:
        raise ValueError("statistics is empty: give at least one function by its name")


def _choose(site: str | None, observed: tuple[str, ...]) -> str:
    """The observed site that is meant."""
    if site is None and len(observed) == 1:
        return observed[0]
    if site not in observed:
        raise ValueError(f"site must be one of the observed sites {list(observed)}, got {site!r}")
    return site


def _evaluate(name: str, function: Statistic, x: Tensor) -> Tensor:
    """T(x) as float64 of shape () or (n,)."""
    value = torch.as_tensor(function(x), dtype=torch.float64)
    if value.shape not in (torch.Size([]), torch.Size([len(x)])):
        raise ValueError(
            f"statistics[{name!r}] must give a number for the whole set, or one per datum, ({len(x)},), got shape "
            f"{tuple(value.shape)} from data {tuple(x.shape)}"
        )
    if not bool(value.isfinite().all()):
        raise ValueError(f"statistics[{name!r}] must give finite numbers, got NaN or infinite ones")
    return value


def _observed(posterior: PosteriorSampler, plates: dict[str, Plates]) -> dict[str, tuple[Tensor, Tensor]]:
    """What each site observes and which of its elements count, (n, *plates, *event), on the CPU."""
    parts = []
    for _, part in posterior.parts(1):
        sites = once(part)
        parts.append({x: (observed_value(sites[x], plates[x]), mask_of(sites[x], plates[x])) for x in part.observed})
    return {x: (torch.cat([p[x][0] for p in parts]).cpu(), torch.cat([p[x][1] for p in parts]).cpu()) for x in parts[0]}


def _conditions_of(posterior: PosteriorSampler) -> dict[str, Tensor]:
    """The arguments that no site observes as they are, by their names in the model's signature."""
    few = replace(posterior, data=take(posterior.data, slice(0, PROBE_DATA)))
    seen = once(few)
    return _conditions(posterior.sampler.pair, posterior.data, few.data, [seen[x].value for x in few.observed])


def _conditions(pair: nn.Module, data: Batch, few: Batch, observed: list[Tensor]) -> dict[str, Tensor]:
    """The same, from what the sites observe of a few data."""
    model: Callable[..., Any] = pair.model  # type: ignore[assignment]
    parameters = list(inspect.signature(model).parameters.values())
    plain = all(p.kind is not p.VAR_POSITIONAL for p in parameters)
    names = [p.name for p in parameters] if plain else [f"argument_{i}" for i in range(len(few))]
    return {
        name: whole.cpu()
        for name, part, whole in zip(names, few, data, strict=False)
        if whole is not None and not any(same_values(value, part) for value in observed)
    }


def _check_memory(
    posterior: PosteriorSampler, s: int, draw: Callable[[PosteriorSampler, int], dict[tuple[str, str], Tensor]]
) -> None:
    """Refuses what would not fit, before it is drawn."""
    n, few = len(posterior), replace(posterior, data=take(posterior.data, slice(0, PROBE_DATA)))
    per_draw = sum(value.numel() * value.element_size() for value in draw(few, 1).values()) / len(few)
    _check_bytes(per_draw * n, s, n)


def _check_bytes(of_draw: float, s: int, n: int) -> None:
    if of_draw * s > MAX_BYTES:
        raise ValueError(
            f"num_samples = {s} draws of {n} data would take {of_draw * s / 2**30:.1f} GiB, more than "
            f"{MAX_BYTES / 2**30:g}: ask for fewer samples or data; ppc keeps their statistics alone"
        )
