"""What the traces of a step say of the latent sites: their KL terms, dimension by dimension, and their scale."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from ppvae.traces import Scale, Site, latent_of, same_scale, shown_scale, sites


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
        for site in (of_trace[name], *parts_of(name, of_trace))
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
    after it; else log q − log p of the draw. A latent that the guide makes of another draw (`z_unconstrained` of Pyro's
    autoguides) has log q of both, and counts as one dimension.

    Args:
        name: of the site.
        model_trace: with log-probabilities.
        guide_trace: with log-probabilities.
        weight: of each datum in the average, (n,); None is all alike.
    """
    of_model, of_guide = sites(model_trace), sites(guide_trace)
    site, parts = of_guide[name], parts_of(name, of_guide)
    q, p = site.fn, of_model[name].fn
    q, p, dims = (q, p, 0) if parts else _elements(q, p)
    try:
        if parts or not _parents_first(name, model_trace, guide_trace):
            raise NotImplementedError
        kl = torch.as_tensor(kl_divergence(q, p))
    except NotImplementedError:
        kl = _estimate(site, of_model[name], dims)
    mask = site.mask
    if isinstance(mask, Tensor):
        mask = mask[(...,) + (None,) * dims]
    kl = scale_and_mask(kl, mask=mask)
    for part in parts:
        kl = kl + part.density()
    if weight is None:
        return kl.mean(-1 - dims)
    return (weight[(...,) + (None,) * dims] * kl).sum(-1 - dims) / weight.sum()


def parts_of(name: str, of_guide: dict[str, Site]) -> list[Site]:
    """The other sites of the guide that log q of this latent is made of."""
    return [site for other, site in of_guide.items() if other != name and latent_of(other, (name,)) == name]


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


def _estimate(of_guide: Site, of_model: Site, dims: int) -> Tensor:
    """Log q − log p of the draw."""
    if not dims:  # as the traces have it: of a flow, the density that belongs to the draw
        return of_guide.log_prob - of_model.log_prob
    value = of_guide.value
    return of_guide.fn.base_dist.log_prob(value) - of_model.fn.base_dist.log_prob(value)
