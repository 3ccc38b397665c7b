"""Pairs whose latents all data share: Bayesian weights, a common location. No datum has a log p(x) of its own there.

    log p(x_1, ..., x_n, b) = log p(b) + Σ_i log p(x_i|b),    b ~ q(b)

Draws come one after another, so that a pair's code need not broadcast, and the data are scored in blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from ppvae._validate import check_count, check_seed
from ppvae.evaluate.sites import inner_plates_of, observed_value
from ppvae.failures import FAILURES, failing_on, naming_arguments
from ppvae.observed import check_observed
from ppvae.pair import Batch, blocks, check_batch, check_data, check_pair, check_sites, device_of, take, warn_of_factors
from ppvae.params import LocalParams
from ppvae.rng import get_rng, set_rng
from ppvae.sampling.eval_mode import evaluating, naming_nonfinite, validation
from ppvae.sampling.guide_density import GuideDensity
from ppvae.sampling.sampler import PROBE_DATA, PROBE_SAMPLES, ROW_BLOCK, Sampler
from ppvae.sampling.support import moved_by_latents, score_within, within_support
from ppvae.traces import Site, same_values, sites

Draws = dict[str, dict[str, Tensor]]
"""Values by site, in groups."""

MAX_SHOWN = 6
"""The most names that a message lists."""


@dataclass(frozen=True)
class SharedPosterior:
    """A pair whose latents all data share, on its data. Made by `shared_posterior`, and for use inside it.

    Attributes:
        pair: the pair.
        data: its arguments, on its device.
        latents: names of the sites that the model does not observe.
        observed: names of the sites that it observes, without `pyro.factor` and terms of training alone.
        plate: name of the data plate; None where nothing that is observed lies in one.
        size: the most data that the model scores at once.
        moved: the observed sites whose support depends on latents.
    """

    pair: nn.Module
    data: Batch
    latents: tuple[str, ...]
    observed: tuple[str, ...]
    plate: str | None
    size: int
    moved: tuple[str, ...]

    def __len__(self) -> int:
        """How many data, n."""
        return check_batch(self.data)

    def draw(self) -> Trace:
        """A run of the guide."""
        return _scored(self.pair.guide, self.data)

    def parts(self) -> Iterator[tuple[slice, Batch]]:
        """The data in blocks, with their places."""
        for start, stop in blocks(len(self), self.size):
            yield slice(start, stop), take(self.data, slice(start, stop))

    def model(self, block: Batch, drawn: Trace, *, anew: bool = False) -> dict[str, Site]:
        """The model's sites on some data at a draw; with `anew` what it observes is drawn too."""
        model = poutine.replay(self.pair.model, trace=drawn)
        return sites(_scored(poutine.uncondition(model) if anew else model, block, self.moved))

    def log_joint(self, drawn: Trace) -> Tensor:
        """Log p of all data and of the latents at a draw, 0-d, nats; −inf where the prior does not allow it."""
        terms = []
        for i, (_, block) in enumerate(self.parts()):
            for site in self.model(block, drawn).values():
                if site.role != "training" and (i == 0 or self.is_of_data(site)):  # what all share counts once
                    terms.append(site.density().sum() if not site.is_drawn or _allowed(site) else -torch.inf)
        return torch.stack([torch.as_tensor(term).double() for term in terms]).sum()

    def check_predictable(self) -> None:
        """Checks that a few data can be drawn anew: that no density is fed the data that it should draw.

        Raises:
            ValueError: naming the site whose density is.
        """
        _, block = next(self.parts())
        few = tuple(t if t is None else t.contiguous() for t in take(block, slice(0, PROBE_DATA)))
        trace, new = self.draw(), list(few)
        seen, drawn = self.model(few, trace), self.model(few, trace, anew=True)
        places = {x: i for x in self.observed for i, t in enumerate(few) if same_values(seen[x].value, t)}
        for x, i in places.items():  # it may be observed reshaped or transposed
            new[i] = argument = torch.empty_like(torch.as_tensor(few[i]))
            argument.as_strided(seen[x].value.shape, seen[x].value.stride()).copy_(drawn[x].value)
        again = self.model(tuple(new), trace)
        for x in places:
            if not torch.allclose(drawn[x].log_prob, again[x].log_prob, rtol=1e-3, atol=1e-3, equal_nan=True):
                raise ValueError(
                    f"the density of the observed site {x!r} depends on the data that the model is given besides: it "
                    "cannot be drawn in one pass"
                )

    def log_likelihood(self, site: Site) -> Tensor:
        """Log p of each datum of a block at an observed site in the data plate, (n,), nats."""
        return Sampler(self.pair).log_prob(site, 1)[0]

    def replicate(self) -> Draws:
        """One draw of the latents, and of all data given it, on the CPU.

        Returns:
            "posterior" by latent, (*plates, *event); by observed site "predictive", (n, *plates, *event), and
            "log_likelihood", (n,).
        """
        trace = self.draw()
        found: dict[str, list[Tensor]] = {}
        for _, block in self.parts():
            seen, new = self.model(block, trace), self.model(block, trace, anew=True)
            for x in self.observed:
                found.setdefault(f"predictive {x}", []).append(observed_value(new[x], inner_plates_of(new[x])))
                found.setdefault(f"log_likelihood {x}", []).append(self.log_likelihood(seen[x]))
        drawn = sites(trace)
        groups: Draws = {"posterior": {z: drawn[z].value.cpu() for z in self.latents}}
        for name, parts in found.items():
            group, x = name.split(" ", 1)
            groups.setdefault(group, {})[x] = torch.cat(parts).cpu()
        return groups

    def observations(self) -> dict[str, Tensor]:
        """What each site observes, (n, *plates, *event), on the CPU."""
        trace, parts = self.draw(), []
        for _, block in self.parts():
            seen = self.model(block, trace)
            parts.append({x: observed_value(seen[x], inner_plates_of(seen[x])) for x in self.observed})
        return {x: torch.cat([part[x] for part in parts]).cpu() for x in self.observed}

    def is_of_data(self, site: Site) -> bool:
        """Whether a site lies in the data plate."""
        return any(plate.name == self.plate for plate in site.plates)


@contextmanager
def shared_posterior(
    pair: nn.Module, data: Batch, *, seed: int = 0, batch_size: int | None = None
) -> Iterator[SharedPosterior]:
    """Gives a pair whose latents all data share, in eval mode and without gradients, as `posterior_sampler` others.

    Args:
        pair: a model/guide pair.
        data: its arguments, tensors of shape (n, ...), or None.
        seed: of all draws inside; the global random state is restored on leaving.
        batch_size: the most data that the model scores at once; by default 8,192, on a GPU 32,768.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the pair or the data break the contract, or some latent belongs to a datum.
    """
    check_pair(pair)
    n = check_data(data)
    check_seed(seed)
    device = device_of(pair, data)
    size = ROW_BLOCK.get(device.type, ROW_BLOCK["cuda"]) if batch_size is None else batch_size
    check_count("batch_size", size)
    everything = slice(None)
    data = take(data, everything, device)
    with evaluating(pair, seed, device=device, params=LocalParams(pair, attach=False)), naming_nonfinite(data):
        rng = get_rng(device)
        model_trace, guide_trace, plates = _looked_at(pair, data)
        of_model = sites(model_trace)
        check_sites(model_trace, guide_trace)
        check_observed(model_trace, data, None)
        _check_whole(of_model, plates)
        _check_shared(of_model, plates)
        _check_guide(pair, data, of_model, sites(guide_trace))
        warn_of_factors(guide_trace)
        seen = [site for site in of_model.values() if site.role == "observed"]
        plate = next((name for site in seen for name in sorted(plates & _plates(site))), None)
        latents = tuple(name for name, site in of_model.items() if site.is_drawn)
        observed = tuple(site.name for site in seen if not site.is_factor)

        def again() -> Trace:
            drawn = poutine.trace(pair.guide).get_trace(*data)
            return poutine.trace(poutine.replay(pair.model, trace=drawn)).get_trace(*data)

        moved = moved_by_latents(model_trace, again, PROBE_SAMPLES)
        _scored(poutine.replay(pair.model, trace=guide_trace), data, moved)  # validates all others
        set_rng(rng, device)  # the draws are the same whether or not the pair had made what it makes at first use
        with validation(False):
            yield SharedPosterior(pair, data, latents, observed, plate, size if plate else n, moved)


def shares_latents(pair: Any, data: Batch) -> bool:
    """Whether a pair has latents, and all of them lie outside the data plate; no where it fails on a few data."""
    check_pair(pair)
    check_data(data)
    device = device_of(pair, data)
    with evaluating(pair, 0, device=device, params=LocalParams(pair, attach=False)), validation(False):
        try:
            model_trace, _, plates = _looked_at(pair, take(data, slice(0, PROBE_DATA), device))
        except Exception:  # whatever the user's code raises: the way of other pairs says what is wrong
            return False
    latents = [site for site in sites(model_trace).values() if site.is_drawn]
    return bool(latents) and not any(plates & _plates(site) for site in latents)


def _scored(function: Any, data: Batch, moved: tuple[str, ...] | None = ()) -> Trace:
    """A run with its log-probabilities, −inf where a support that latents move is not around the data."""
    trace = poutine.trace(function).get_trace(*data)
    with naming_arguments(trace, data):
        if moved != ():
            score_within(trace, moved)
        trace.compute_log_prob()
    return trace


def _looked_at(pair: Any, data: Batch) -> tuple[Trace, Trace, set[str]]:
    """Traces of model and guide, and the plates at dim -1 that hold all data and, of fewer, all of these."""
    n = check_data(data)
    few, found = max(1, min(n, PROBE_DATA) - 1), []
    for size in sorted({few, n}, reverse=True):
        part = take(data, slice(0, size))
        what, also = (f"{few} of the {n} data, all of which it takes", [ValueError]) if size < n else ("data", [])
        with failing_on(part, pair, what, (*FAILURES, *also)):
            guide_trace = _scored(pair.guide, part)
            model_trace = _scored(poutine.replay(pair.model, trace=guide_trace), part, None)
        frames = [plate for trace in (model_trace, guide_trace) for s in sites(trace).values() for plate in s.plates]
        found.append((size, model_trace, guide_trace, {p.name for p in frames if p.dim == -1 and p.size == size}))
    _, model_trace, guide_trace, _ = max(found, key=lambda run: run[0])
    return model_trace, guide_trace, set.intersection(*(plates for *_, plates in found))


def _check_whole(of_model: dict[str, Site], plates: set[str]) -> None:
    """Checks that no plate takes a random part of what it is given; one with more data than are given is all right."""
    for site in of_model.values():
        parts = [
            f"the plate {plate.name!r} takes {plate.size} of {plate.full_size}"
            for plate in site.plates
            if plate.full_size not in (None, plate.size) and plate.name not in plates
        ]
        if parts or site.inner_share != 1.0:  # the latter also of a sequential plate, which no site holds
            raise ValueError(
                f"{parts[0] if parts else f'a plate around {site.name!r} takes some of its'} elements, a random part, "
                "of which there is no log evidence: give it all of them outside of training, e.g. "
                "pyro.plate(name, size, subsample_size=m if self.training else None)"
            )


def _check_shared(of_model: dict[str, Site], plates: set[str]) -> None:
    """Checks that there are latents, and that no datum has one of its own."""
    latents = [name for name, site in of_model.items() if site.is_drawn]
    local = [name for name in latents if plates & _plates(of_model[name])]
    if local and len(local) < len(latents):
        raise ValueError(
            f"each datum has the latents {local}, and all data share {[z for z in latents if z not in local]}: what is "
            "estimated for shared latents is of pairs that have no others"
        )
    if local or not latents:
        raise ValueError(
            f"no latent is shared by all data: each datum has the latents {local}, and log_marginal estimates its log "
            "p(x) (the sum over the data is the log evidence)"
        )


def _check_guide(pair: nn.Module, data: Batch, of_model: dict[str, Site], of_guide: dict[str, Site]) -> None:
    """Checks that the guide has a density over every latent, and draws nothing else."""
    if missing := [name for name, site in of_model.items() if site.is_drawn and name not in of_guide]:
        shown = (
            f"{missing}" if len(missing) <= MAX_SHOWN else f"{missing[:MAX_SHOWN]} and {len(missing) - MAX_SHOWN} more"
        )
        raise ValueError(f"the guide does not sample the latents {shown}: all are drawn here, and none is summed over")

    def draw_scored() -> Trace:
        return _scored(pair.guide, data)

    def draw() -> dict[str, Tensor]:
        drawn = [sites(draw_scored()) for _ in range(2)]
        return {name: torch.stack([of[name].value for of in drawn]) for name in of_guide}

    alone = [name for name, site in of_guide.items() if site.is_marked and name not in of_model]
    density = GuideDensity() if alone else GuideDensity.of(pair, of_model, of_guide, draw, draw_scored)
    density.check()
    if density.codes:
        raise ValueError(f"the guide gives the latents {list(density.codes)}, which all data share, one value")
    if alone := [*alone, *density.reversed]:
        raise ValueError(
            f"the guide draws {alone}, which the model does not have: for latents that all data share they are neither "
            "summed over nor is a reverse model asked for"
        )


def _allowed(site: Site) -> bool:
    """Whether a draw lies in the support of its prior."""
    outside = within_support(site.fn, site.value)[1]
    return outside is None or not bool(outside.any())


def _plates(site: Site) -> set[str]:
    return {plate.name for plate in site.plates}
