"""The latents of a trained pair at hand: the codes of data, and what the model makes of codes.

A code is the mean of q(z|x), site by site in the guide's order: in a hierarchy q(z2|z1) is that at the mean of q(z1|x).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ppvae._validate import check_count
from ppvae.inputs import takes_data
from ppvae.means import mean_of
from ppvae.pair import check_names
from ppvae.sampling.latent import Latent
from ppvae.sampling.posterior_draws import Latents, PosteriorSampler, posterior_sampler
from ppvae.traces import sites as sites_of

MEAN_DRAWS = 64
"""Draws of which the mean is taken where a family does not know its own."""


class AtMean(Messenger):
    """Sets latents to the values that are given, every other to the mean of its distribution.

    A discrete one to its most probable value.

    Args:
        values: by site, in the shape that the pair draws them in.
    """

    def __init__(self, values: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.values = values or {}

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if msg["is_observed"] or msg["done"] or not isinstance(fn, TorchDistributionMixin):  # a plate's index is none
            return
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True
            return
        with suppress(NotImplementedError):
            value = fn.mode if fn.support.is_discrete else _mean(fn)
            msg["value"], msg["done"] = value.expand(fn.shape()), True


def _mean(fn: Any) -> Tensor:
    try:
        return fn.mean
    except NotImplementedError:
        return fn.sample((MEAN_DRAWS,)).mean(0)


@takes_data
def encode(pair: nn.Module, *data: Any, sites: Sequence[str] | None = None, seed: int = 0) -> NDArray[Any]:
    """The codes of data, for scikit-learn or a picture: the means of q(z|x).

    Args:
        pair: any model/guide pair.
        data: its arguments, tensors or arrays of shape (n, ...), on any device; or one iterable of minibatches of them.
        sites: the latents that are wanted, side by side in this order; None is all continuous ones, in the model's
            order.
        seed: of the 64 draws of which the mean is taken where a family (a flow) does not know its own.

    Returns:
        An array (n, k), k the elements of a datum's latents.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the pair or the data break the contract, or there is no such latent.

    Example:
        >>> import torch
        >>> from ppvae.models import PPCA
        >>> encode(PPCA(8, 2), torch.randn(10, 8)).shape
        (10, 2)
    """
    if sites is not None:
        check_names("sites", sites)
    with posterior_sampler(pair, data, seed=seed) as posterior:
        blocks = [_flat(codes_of(part), sites) for _, part in posterior.parts(1)]
    return torch.cat(blocks).cpu().numpy()


@takes_data
def reconstruct(pair: nn.Module, *data: Any, site: str | None = None, seed: int = 0) -> Tensor:
    """E[x|z] of each datum at its code.

    Args:
        pair: any model/guide pair.
        data: its arguments, tensors or arrays of shape (n, ...), on any device; or one iterable of minibatches of them.
        site: the observed site, where the model has several.
        seed: as of `encode`.

    Returns:
        The means, shape (n, *event), on the CPU.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the pair or the data break the contract, or it is not clear which site is meant.
        NotImplementedError: where the mean of the likelihood is not known.

    Example:
        >>> import torch
        >>> from ppvae.models import PPCA
        >>> reconstruct(PPCA(8, 2), torch.randn(10, 8)).shape
        torch.Size([10, 8])
    """
    with posterior_sampler(pair, data, seed=seed) as posterior:
        name = _observed(posterior, site)
        return torch.cat([_decoded(part, codes_of(part), name)[0] for _, part in posterior.parts(1)])


def interpolate(
    pair: nn.Module,
    data_from: Tensor | Sequence[Any],
    data_to: Tensor | Sequence[Any],
    *,
    num_steps: int = 9,
    site: str | None = None,
    seed: int = 0,
) -> Tensor:
    """E[x|z] along the straight lines between the codes of data.

    Args:
        pair: any model/guide pair.
        data_from: its arguments for n data, a tensor or a tuple of them. What is not observed (a condition y) stays
            theirs along the lines.
        data_to: the same for as many data.
        num_steps: points on each line, both ends included.
        site: the observed site, where the model has several.
        seed: as of `encode`.

    Returns:
        The means, shape (n, num_steps, *event), on the CPU.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the pair or the data break the contract, or their numbers differ.

    Example:
        >>> import torch
        >>> from ppvae.models import PPCA
        >>> interpolate(PPCA(8, 2), torch.randn(3, 8), torch.randn(3, 8), num_steps=5).shape
        torch.Size([3, 5, 8])
    """
    check_count("num_steps", num_steps, at_least=2)
    ends = [_arguments(data) for data in (data_from, data_to)]
    with posterior_sampler(pair, ends[1], seed=seed) as posterior:
        codes_to, n = codes_of(posterior), len(posterior)
    with posterior_sampler(pair, ends[0], seed=seed) as posterior:
        codes = codes_of(posterior)
        if len(posterior) != n:
            raise ValueError(f"data_to must hold as many data as data_from, {len(posterior)}, got {n}")
        lines = {name: _line(code, codes_to[name], num_steps) for name, code in codes.items()}
        return _decoded(posterior, lines, _observed(posterior, site)).movedim(0, 1)


def traverse(
    pair: nn.Module,
    *data: Any,
    latent: str | None = None,
    units: Sequence[int] | None = None,
    values: Sequence[float] | Tensor = (-3.0, -1.5, 0.0, 1.5, 3.0),
    site: str | None = None,
    seed: int = 0,
) -> Tensor:
    """E[x|z] where one unit after another of the code of each datum takes some values.

    Args:
        pair: any model/guide pair.
        data: its arguments for n data.
        latent: the latent site, where the model has several.
        units: which of its elements are moved; None is all.
        values: what each is set to; in a N(0, 1) prior's units these are standard deviations.
        site: the observed site, where the model has several.
        seed: as of `encode`.

    Returns:
        The means, shape (n, units, values, *event), on the CPU.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the pair or the data break the contract, or there is no such unit.

    Example:
        >>> import torch
        >>> from ppvae.models import PPCA
        >>> traverse(PPCA(8, 2), torch.randn(3, 8), values=(-1.0, 1.0)).shape
        torch.Size([3, 2, 2, 8])
    """
    with posterior_sampler(pair, _arguments(data), seed=seed) as posterior:
        codes, name = codes_of(posterior), _observed(posterior, site)
        moved = chosen("latent", latent, [n for n, code in codes.items() if code.value.is_floating_point()])
        k = _flat({moved: codes[moved]}, None).shape[-1]
        wanted = list(range(k)) if units is None else list(units)
        if wrong := [unit for unit in wanted if not (isinstance(unit, int) and 0 <= unit < k)]:
            raise ValueError(f"units must be numbers of elements of {moved!r}, 0 to {k - 1}, got {wrong[0]!r}")
        to = torch.as_tensor(values, dtype=codes[moved].value.dtype, device=codes[moved].value.device).flatten()
        found = [_decoded(posterior, codes | {moved: _swept(codes[moved], unit, to)}, name) for unit in wanted]
        return torch.stack(found).permute(2, 0, 1, *range(3, found[0].dim() + 1))


def _arguments(data: Any) -> tuple[Any, ...]:
    return tuple(data) if isinstance(data, tuple | list) else (data,)


def codes_of(posterior: PosteriorSampler) -> Latents:
    """The latents of the model at the means of the guide, once for each datum."""
    with AtMean():
        latents, _ = posterior.draw(1)
    return {name: latents[name] for name in posterior.latents}


def _flat(codes: Latents, names: Sequence[str] | None) -> Tensor:
    """Latents side by side, (n, k)."""
    if names is None:
        names = [name for name, code in codes.items() if code.value.is_floating_point()]
    if not names or (unknown := [name for name in names if name not in codes]):
        wanted = "a continuous one" if not names else repr(unknown[0])
        raise ValueError(f"sites must be latents of the model, which has {list(codes)} and not {wanted}")
    return torch.cat([_rows(codes[name]) for name in names], -1)


def _rows(code: Latent) -> Tensor:
    """A latent as (n, k)."""
    value = code.value.movedim(code.data_dim, 0)
    return value.reshape(len(value), -1)


def _line(a: Latent, b: Latent, num_steps: int) -> Latent:
    """Points on the straight line between two codes, in the place of samples; a discrete one stays."""
    if not a.value.is_floating_point():
        return replace(a, value=a.value.expand(num_steps, *a.value.shape[1:]))
    t = torch.linspace(0, 1, num_steps, dtype=a.value.dtype, device=a.value.device)
    return replace(a, value=torch.lerp(a.value, b.value, t.reshape(-1, *[1] * (a.value.dim() - 1))))


def _swept(code: Latent, unit: int, values: Tensor) -> Latent:
    """A code with one of its elements at each of some values, in the place of samples."""
    moved = code.value.movedim(code.data_dim, 1)
    rows = moved.reshape(1, moved.shape[1], -1).repeat(len(values), 1, 1)
    rows[..., unit] = values.unsqueeze(-1)
    return replace(code, value=rows.reshape(len(values), *moved.shape[1:]).movedim(1, code.data_dim))


def _decoded(posterior: PosteriorSampler, codes: Latents, name: str) -> Tensor:
    """E[x|z] at codes with s samples of each, (s, n, *event), on the CPU."""
    s = max(len(code.value) for code in codes.values())
    latents = {n: replace(code, value=code.value.expand(s, *code.value.shape[1:])) for n, code in codes.items()}
    site = sites_of(posterior.model_trace(latents))[name]
    mean = mean_of(site.fn).expand(site.fn.shape())
    found = posterior.sampler.value(replace(site, value=mean), s)
    return found.value.movedim(found.data_dim, 1).cpu()


def _observed(posterior: PosteriorSampler, site: str | None) -> str:
    return chosen("site", site, posterior.observed)


def chosen(argument: str, name: str | None, known: Sequence[str]) -> str:
    """The one that is meant.

    Raises:
        ValueError: where there are several, or none of that name.
    """
    meant = known[0] if name is None and len(known) == 1 else name
    if meant is None or meant not in known:
        raise ValueError(f"{argument} must be one of {list(known)}, got {name!r}")
    return meant
