"""What the traces of a step say of the latent sites: their KL terms, dimension by dimension, and their scale."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from ppvae._internals import has_own_kl, mask_of_distribution
from ppvae.traces import Scale, Site, latent_of, leaf, same_scale, shown_scale, sites


def common_scale(named: dict[str, Site], *, consequence: str) -> Scale:
    """The one scale of these sites: of a subsampled data plate, or of a `poutine.scale` around everything.

    Scales that are tensors are compared only under Pyro's validation: a step does not wait for the device.

    Args:
        named: sites of the traces, by what to call them.
        consequence: what follows from unequal scales, for the message.

    Raises:
        ValueError: naming two sites whose scales differ.
    """
    (first, site), *others = named.items()
    scale = site.scale
    for name, other in others:
        numbers = not isinstance(scale, Tensor) and not isinstance(other.scale, Tensor)
        if (numbers or is_validation_enabled()) and not same_scale(scale, other.scale):
            raise ValueError(
                f"{first} has the scale {shown_scale(scale)} and {name} {shown_scale(other.scale)} (a KL weight or "
                f"a poutine.scale): {consequence}"
            )
    return scale


def scale_of_each_datum(scale: Scale, *, repeats: int = 1) -> Scale:
    """A scale for objectives that have one term for each datum: a number, or that of each datum, (n,).

    Args:
        scale: as Pyro has it, of the shape of log-probabilities or broadcast to it.
        repeats: how often the data are repeated along the batch.

    Raises:
        ValueError: under Pyro's validation, where it differs within a datum.
    """
    if not isinstance(scale, Tensor) or scale.numel() == 1:
        return scale
    rows = scale.unflatten(-1, (repeats, -1)).flatten(0, -2)
    if is_validation_enabled() and not bool((rows == rows[0]).all()):
        raise ValueError(
            f"a scale of shape {tuple(scale.shape)} differs within a datum, among its draws or in a plate inside the "
            "data plate: the objective has one term for each datum, which can have only one scale"
        )
    return rows[0]


def penalty_weights(latents: list[str], model_trace: Trace, guide_trace: Trace) -> tuple[Scale, Tensor | None]:
    """What a penalty per datum is multiplied with, and the weight of each datum, (n,), where they differ."""
    of_traces = {"model": sites(model_trace), "guide": sites(guide_trace)}
    named = {
        f"site {site.name!r} of the {where}": site
        for where, of_trace in of_traces.items()
        for name in latents
        for site in (of_trace[name], *(parts_of(name, model_trace, guide_trace) if where == "guide" else ()))
    }
    scale = scale_of_each_datum(common_scale(named, consequence="the penalty has only one"))
    if not isinstance(scale, Tensor) or scale.numel() == 1:
        return scale * data_size(of_traces["guide"][latents[0]]), None
    return scale.sum(), scale


def check_reparameterized(of_guide: dict[str, Site], *, objective: str) -> None:
    """Checks that the draws of a guide are differentiable.

    Raises:
        NotImplementedError: naming a site whose draws are not.
    """
    for name, site in of_guide.items():
        if not site.is_reparameterized:
            raise NotImplementedError(
                f"{objective} needs reparameterized draws, and those of site {name!r} are not "
                f"({type(site.fn).__name__}); a discrete latent can be summed out with TraceEnum_ELBO"
            )


def checked_latents(model_trace: Trace, guide_trace: Trace, *, objective: str) -> list[str]:
    """The names of the latents that an objective is of, each of them reparameterized and in the data plate.

    Raises:
        NotImplementedError: naming a site of the guide whose draws are not differentiable.
        ValueError: naming a latent outside the data plate, or where there is none at all.
    """
    of_guide = sites(guide_trace)
    check_reparameterized(of_guide, objective=objective)
    latents = latent_sites(model_trace, guide_trace)
    if not latents:
        raise ValueError(f"{objective} is of the latents of a pair, and this one has none")
    for name in latents:
        data_size(of_guide[name])
    return latents


def other_terms(model_trace: Trace, guide_trace: Trace, latents: list[str]) -> Any:
    """What an ELBO has besides log p and log q of these latents, scaled."""
    in_model = [site.log_prob_sum for name, site in sites(model_trace).items() if name not in latents]
    parts = {part.name for name in latents for part in parts_of(name, model_trace, guide_trace)}
    apart = parts.union(latents)
    in_guide = [site.log_prob_sum for name, site in sites(guide_trace).items() if name not in apart]
    return sum(in_model) - sum(in_guide)


def point_masses(model_trace: Trace, guide_trace: Trace) -> list[str]:
    """The continuous latents that the guide gives one value: log q(z|x) does not exist, nor does an ELBO.

    A `Delta` that is made of other draws, or holds a density, is none; nor is one at a discrete latent.
    """
    in_model, of_guide = sites(model_trace), sites(guide_trace)
    return [
        name
        for name in latent_sites(model_trace, guide_trace)
        if isinstance(point := leaf(of_guide[name].fn), Delta)
        and not isinstance(leaf(in_model[name].fn), Delta)
        and not in_model[name].is_discrete
        and not parts_of(name, model_trace, guide_trace)
        and not bool((point.log_density != 0).any())
    ]


def data_size(site: Site) -> int:
    """The data of a minibatch: the size of the plate at dim -1 that a latent site lies in.

    Raises:
        ValueError: where it lies in none.
    """
    for plate in site.plates:
        if plate.dim == -1:
            return int(plate.size)
    raise ValueError(f"site {site.name!r} lies in no data plate: there must be one at dim -1, of the size of the batch")


def mean_kl(name: str, model_trace: Trace, guide_trace: Trace, weight: Tensor | None = None) -> Tensor:
    """KL(q ‖ p) of one latent site, unscaled, averaged over the minibatch: (*inner plates, *dims), nats.

    One value for each dimension where both distributions factorise over their event dims; else one for the event.
    Exact given the draws before it where torch or Pyro know the KL in closed form and p depends on none of the draws
    after it; else log q − log p of the draw. A latent that the guide makes of other draws (`z_unconstrained` of Pyro's
    autoguides, a change of volume by hand) has log q of all of them, and counts as one dimension.

    Args:
        name: of the site.
        model_trace: with log-probabilities.
        guide_trace: with log-probabilities.
        weight: of each datum in the average, (n,); None is all alike.
    """
    of_model, of_guide = sites(model_trace)[name], sites(guide_trace)
    site, parts = of_guide[name], parts_of(name, model_trace, guide_trace)
    q, p, dims = (site.fn, of_model.fn, 0) if parts else _elements(site.fn, of_model.fn)
    known = not parts and _parents_first(name, model_trace, guide_trace)
    kl = _masked_kl(site, of_model, q, p, dims, known=known)
    apart: list[Tensor] = []
    for part in parts:
        density = part.density()
        if density.shape == kl.shape:
            kl = kl + density
        else:
            apart.append(_mean_of_data(density, part, data_size(site), weight))
    mean = _mean(kl, -1 - dims, weight)
    return mean.sum() + torch.stack(apart).sum() if apart else mean


def parts_of(name: str, model_trace: Trace, guide_trace: Trace) -> list[Site]:
    """The other draws of the guide that log q of this latent is made of: `z_unconstrained`, or auxiliary ones.

    A `Delta` is made of what was drawn before it: an auxiliary draw belongs to the first latent after it that is one.
    """
    of_guide, latents = sites(guide_trace), latent_sites(model_trace, guide_trace)
    owned: dict[str, list[Site]] = {latent: [] for latent in latents}
    waiting: list[Site] = []
    for other, site in of_guide.items():
        latent = latent_of(other, latents)
        if latent != other and latent in owned:
            owned[latent].append(site)
        elif other in owned and isinstance(leaf(site.fn), Delta):
            owned[other] += waiting
            waiting = []
        elif site.role == "auxiliary":
            waiting.append(site)
    return owned[name]


def latent_sites(model_trace: Trace, guide_trace: Trace) -> list[str]:
    """The latents that the two share, in the guide's order."""
    latents = {name for name, site in sites(model_trace).items() if site.is_drawn}
    return [name for name in sites(guide_trace) if name in latents]


def _elements(q: Any, p: Any) -> tuple[Any, Any, int]:
    """The distributions of single elements where both factorise alike, and over how many dims; else as they are."""
    if isinstance(q, Independent) and isinstance(p, Independent):
        dims = q.reinterpreted_batch_ndims
        if dims == p.reinterpreted_batch_ndims:
            return q.base_dist, p.base_dist, dims
    return q, p, 0


def _parents_first(name: str, model_trace: Trace, guide_trace: Trace) -> bool:
    """Whether all that p(z) can depend on was drawn before z: only then is its KL given the rest that of the ELBO."""
    latents = latent_sites(model_trace, guide_trace)
    drawn_before = set(latents[: latents.index(name)])
    in_model = [site for site in sites(model_trace) if site in latents]
    return set(in_model[: in_model.index(name)]) <= drawn_before


def _masked_kl(site: Site, of_model: Site, q: Any, p: Any, dims: int, *, known: bool) -> Tensor:
    """Log q − log p, (*plates, *dims), each with its own mask: in closed form where that is known and both count."""
    q, of_q = _unmasked(q, site.mask, dims)
    p, of_p = _unmasked(p, of_model.mask, dims)
    kl = _closed_form(q, p) if known else None
    if kl is not None and of_q is of_p:
        return scale_and_mask(kl, mask=of_q)
    if dims:
        log_q, log_p = q.log_prob(site.value), p.log_prob(of_model.value)
    else:  # as the traces have it: of a flow, the density that belongs to the draw
        log_q, log_p = site.log_prob, of_model.log_prob
    estimate: Tensor = scale_and_mask(log_q, mask=of_q) - scale_and_mask(log_p, mask=of_p)
    if kl is None:
        return estimate
    both = (True if of_q is None else of_q) & (True if of_p is None else of_p)
    return torch.where(torch.as_tensor(both, device=kl.device), kl, estimate)


def _unmasked(fn: Any, mask: Tensor | bool | None, dims: int) -> tuple[Any, Tensor | bool | None]:
    """A distribution of elements without its mask, and that mask together with the one around its site."""
    if isinstance(mask, Tensor):
        mask = mask[(...,) + (None,) * dims]
    while (inside := mask_of_distribution(fn)) is not None:
        mask = inside if mask is None else mask & inside
        fn = fn.base_dist
    return fn, mask


def _closed_form(q: Any, p: Any) -> Tensor | None:
    """The KL that torch or Pyro know; None where they know none, or one of another density.

    Pyro's of a `Delta` leaves out its `log_density`, and a class of the user's inherits that of its parents.
    """
    if isinstance(leaf(q), Delta) or not all(has_own_kl(leaf(fn)) for fn in (q, p)):
        return None
    try:
        return torch.as_tensor(kl_divergence(q, p))
    except NotImplementedError:
        return None


def _mean(kl: Tensor, dim: int, weight: Tensor | None) -> Tensor:
    """The mean over the data, which lie at `dim`."""
    if weight is None:
        return kl.mean(dim)
    return (weight[(...,) + (None,) * (-1 - dim)] * kl).sum(dim) / weight.sum()


def _mean_of_data(density: Tensor, site: Site, n: int, weight: Tensor | None) -> Tensor:
    """The mean over n data of a density, 0-d; outside their plate it is one for all of them."""
    if not any(plate.dim == -1 for plate in site.plates):
        return density.sum() / n
    return _mean(density, -1, weight).sum()
