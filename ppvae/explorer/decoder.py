"""E[x|z] as a function of the latents, whatever the pair: its own model, run at values that are given.

Where one latent moves, those whose prior depends on it follow, each at its mean given what is above it; the others, and
what the model is given besides (a condition y), stay those of a datum. In a hierarchy z2 ~ p(z2), z1 ~ p(z1|z2),
x ~ p(x|z1) the decoder of z1 is E[x|z1], and that of z2 is E[x|z1] at z1 = E[z1|z2].
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from ppvae.evaluate.codes import AtMean, codes_of
from ppvae.evaluate.sites import inner_plates, mask_of, observed_value, once
from ppvae.means import mean_of
from ppvae.pair import device_of
from ppvae.params import LocalParams
from ppvae.sampling.eval_mode import evaluating, validation
from ppvae.sampling.posterior_draws import PosteriorSampler
from ppvae.traces import Site, leaf, same_values, site_of, sites

FEW_DATA = 16
"""Data on which it is found out which latents follow which."""
MOST_CHOICES = 50
"""The most values of a condition that one can choose among."""


@dataclass(frozen=True)
class Input:
    """What a decoder takes of each datum.

    Attributes:
        name: of a latent, or of an argument of the model.
        rows: its values, (n, ...), on the CPU: of a latent the codes.
        kind: "latent" (continuous), "discrete" (a latent), "condition" or "observed": what is shown is observed there.
        choices: the values that it can take, where they are few.
    """

    name: str
    rows: Tensor
    kind: str
    choices: tuple[int, ...] = ()


class Decoder(nn.Module):
    """E[x|z] at values of one latent, given the other inputs.

    Args:
        pair: the pair.
        site: what is decoded.
        inputs: the latent that moves, then all others that stay, then the arguments of the model.
        places: of each latent, at which dim of the pair's own run the data lie, counted from the right.
    """

    def __init__(self, pair: nn.Module, site: str, inputs: Sequence[Input], places: Mapping[str, int]) -> None:
        super().__init__()
        self.pair, self.site = pair, site
        self.inputs, self.places = tuple(inputs), dict(places)

    @property
    def latent(self) -> str:
        """The latent that moves."""
        return self.inputs[0].name

    def forward(self, *values: Tensor) -> Tensor:
        """E[x|z] for values (n, ...) of each input, in their order: (n, *event)."""
        site = site_of(_run(self, values).nodes[self.site])
        mean = mean_of(site.fn).expand(site.fn.shape())
        return mean.movedim(-1 - site.event_dim, 0)

    def means(self, values: Mapping[str, Tensor]) -> Tensor:
        """The same for inputs by name, with the pair in eval mode, on the CPU.

        Args:
            values: rows (n, ...) of each input.
        """
        device = device_of(self.pair, tuple(values.values()))
        with running(self.pair, device):
            return self(*(values[each.name].to(device) for each in self.inputs)).cpu()

    def example(self) -> dict[str, Tensor]:
        """The inputs of the first datum, by name."""
        return {each.name: each.rows[:1] for each in self.inputs}


@contextmanager
def running(pair: nn.Module, device: torch.device) -> Iterator[None]:
    """Runs a pair in eval mode, without gradients and checks of values; what is drawn is the same every time."""
    with evaluating(pair, 0, device=device, params=LocalParams(pair, attach=False)), validation(False):
        yield


def _run(decoder: Decoder, values: Sequence[Tensor]) -> Trace:
    """The model's trace at values of the inputs."""
    given = dict(zip((each.name for each in decoder.inputs), values, strict=True))
    latents = {name: given[name].movedim(0, place) for name, place in decoder.places.items() if name in given}
    arguments = [given.get(name) for name in argument_names(decoder.pair) if name not in decoder.places]
    while arguments and arguments[-1] is None:
        arguments.pop()
    with poutine.trace() as tracer, AtMean(latents):
        decoder.pair.model(*arguments)  # type: ignore[operator]
    return tracer.trace


def argument_names(pair: Any) -> list[str]:
    """What the model calls its arguments.

    Example:
        >>> from ppvae.models import PPCA
        >>> argument_names(PPCA(8, 2))
        ['x']
    """
    return [name for name, p in inspect.signature(pair.model).parameters.items() if p.kind is not p.VAR_KEYWORD]


@dataclass(frozen=True)
class Decoded:
    """A pair's data, and a decoder for each of its continuous latents.

    Attributes:
        x: the values of the site that is shown, (n, *event), on the CPU; NaN where a mask leaves them out.
        decoders: the nearest to the data first.
    """

    x: Tensor
    decoders: tuple[Decoder, ...]


def decoders_of(posterior: PosteriorSampler) -> Decoded:
    """Makes the decoders of a pair on its data.

    Args:
        posterior: the pair on its data.

    Raises:
        ValueError: where no latent is continuous, or no observed site takes the first argument.

    Example:
        >>> from ppvae.models import PPCA
        >>> from ppvae.sampling.posterior_draws import posterior_sampler
        >>> pair, x = PPCA(8, 2), torch.randn(5, 8)
        >>> with posterior_sampler(pair, (x,)) as posterior:
        ...     (decoder,) = decoders_of(posterior).decoders
        >>> decoder.means({"z": torch.zeros(3, 2), "x": x[:3]}).shape
        torch.Size([3, 8])
    """
    pair = posterior.sampler.pair
    found = once(posterior)
    shown = _shown(posterior, found)
    latents, places = _latents(posterior, found)
    if not any(each.kind == "latent" for each in latents):
        raise ValueError(
            "the explorer moves along continuous latents of each datum, and this pair has none: its latents are "
            f"{[each.name for each in latents]}, all discrete"
        )
    arguments = _arguments(posterior, found[shown])
    decoders = []
    for moved in reversed([each for each in latents if each.kind == "latent"]):
        others = [each for each in latents if each is not moved]
        decoder = Decoder(pair, shown, [moved, *others, *arguments], places)
        follow = _followers(decoder, [each.name for each in latents], posterior.device)
        kept = [each for each in others if each.name not in follow]
        decoders.append(Decoder(pair, shown, [moved, *kept, *arguments], places))
    plates = inner_plates(posterior)[shown]
    x, there = observed_value(found[shown], plates).cpu(), mask_of(found[shown], plates).cpu()
    return Decoded(x if bool(there.all()) else torch.where(there, x, torch.nan), tuple(decoders))


def _shown(posterior: PosteriorSampler, found: Mapping[str, Site]) -> str:
    """The observed site that is decoded: the only one, or the one that takes the first argument as it is."""
    if len(posterior.observed) == 1:
        return posterior.observed[0]
    for name in posterior.observed:
        if same_values(found[name].value, posterior.data[0]):
            return name
    raise ValueError(
        "the explorer shows the observed site that takes the pair's first argument as it is, and none of "
        f"{list(posterior.observed)} does"
    )


def _latents(posterior: PosteriorSampler, found: Mapping[str, Site]) -> tuple[list[Input], dict[str, int]]:
    """The codes of all latents in the model's order, and where the data lie in each, from the right."""
    parts = [codes_of(part) for _, part in posterior.parts(1)]
    inputs, places = [], {}
    for name in posterior.latents:
        code = parts[0][name]
        places[name] = -1 - code.event_dim
        rows = torch.cat([part[name].folded().movedim(places[name], 0) for part in parts]).cpu()
        if rows.is_floating_point() and not found[name].is_discrete:
            inputs.append(Input(name, rows, "latent"))
        else:
            inputs.append(Input(name, rows, "discrete", _choices(found[name], rows)))
    return inputs, places


def _choices(site: Site, rows: Tensor) -> tuple[int, ...]:
    """The values of a discrete latent that has one number for each datum."""
    fn = leaf(site.fn)
    if rows.dim() > 1 or not fn.has_enumerate_support:
        return ()
    return tuple(range(min(MOST_CHOICES, len(fn.enumerate_support(expand=False)))))


def _arguments(posterior: PosteriorSampler, shown: Site) -> list[Input]:
    """The arguments of the model as inputs."""
    inputs = []
    for name, value in zip(argument_names(posterior.sampler.pair), posterior.data, strict=False):
        if value is None:
            continue
        rows, choices = value.cpu(), ()
        if rows.dim() == 1 and not rows.is_floating_point() and rows.dtype != torch.bool:
            different = tuple(rows.unique().tolist())
            choices = different if len(different) <= MOST_CHOICES else ()
        kind = "observed" if same_values(shown.value, value) else "condition"
        inputs.append(Input(name, rows, kind, choices))
    return inputs


def _followers(decoder: Decoder, latents: Sequence[str], device: torch.device) -> set[str]:
    """The latents whose prior depends on the one that moves, or on one that follows it: those that change with it."""
    follow: set[str] = set()
    values = {each.name: each.rows[:FEW_DATA].to(device) for each in decoder.inputs}
    moved = values | {decoder.latent: values[decoder.latent] + 1.0}
    for name in latents[latents.index(decoder.latent) + 1 :]:  # in the model's order
        kept = [each for each in decoder.inputs if each.name not in follow | {name}]
        part = Decoder(decoder.pair, decoder.site, kept, decoder.places)
        means = []
        for at in (values, moved):
            with running(decoder.pair, device):
                trace = _run(part, [at[each.name] for each in kept])
            means.append(sites(trace)[name].value)
        if not torch.equal(*means):
            follow.add(name)
    return follow
