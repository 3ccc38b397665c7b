"""What the traces of a step say of the latent sites: their KL terms, dimension by dimension, and their scale."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from ppvae.traces import latent_of, sample_sites

Scale = float | Tensor
"""What log-probabilities are multiplied with: a number, or a tensor that a schedule updates in place."""


def common_scale(sites: dict[str, Any], *, consequence: str) -> Scale:
    """The one scale of these sites: of a subsampled data plate, or of a `poutine.scale` around everything.

    Scales that are tensors are compared only under Pyro's validation: a step does not wait for the device.

    Args:
        sites: of the traces, by what to call them.
        consequence: what follows from unequal scales, for the message.

    Raises:
        ValueError: naming two sites whose scales differ.
    """
    (first, site), *others = sites.items()
    scale = site["scale"]
    for name, other in others:
        numbers = not isinstance(scale, Tensor) and not isinstance(other["scale"], Tensor)
        if (numbers or is_validation_enabled()) and not same_scale(scale, other["scale"]):
            raise ValueError(
                f"{first} has the scale {shown_scale(scale)} and {name} {shown_scale(other['scale'])} (a KL weight or "
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
    sites = {
        f"site {site['name']!r} of the {where}": site
        for where, trace in (("model", model_trace), ("guide", guide_trace))
        for name in latents
        for site in (trace.nodes[name], *parts_of(name, trace))
    }
    scale = scale_of_each_datum(common_scale(sites, consequence="the penalty has only one"))
    if not isinstance(scale, Tensor) or scale.numel() == 1:
        return scale * data_size(latents[0], guide_trace.nodes[latents[0]]), None
    return scale.sum(), scale


def check_reparameterized(sites: dict[str, Any], *, objective: str) -> None:
    """Checks that the draws of these sites of a guide are differentiable.

    Raises:
        NotImplementedError: naming a site whose draws are not.
    """
    for name, site in sites.items():
        if not getattr(site["fn"], "has_rsample", False):
            raise NotImplementedError(
                f"{objective} needs reparameterized draws, and those of site {name!r} are not "
                f"({type(site['fn']).__name__}); a discrete latent can be summed out with TraceEnum_ELBO"
            )


def data_size(name: str, site: Any) -> int:
    """The data of a minibatch: the size of the plate at dim -1 that a latent site lies in.

    Raises:
        ValueError: where it lies in none.
    """
    for frame in site["cond_indep_stack"]:
        if frame.dim == -1:
            return int(frame.size)
    raise ValueError(f"site {name!r} lies in no data plate: there must be one at dim -1, of the size of the batch")


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
    site, parts = guide_trace.nodes[name], parts_of(name, guide_trace)
    q, p = site["fn"], model_trace.nodes[name]["fn"]
    q, p, dims = (q, p, 0) if parts else _elements(q, p)
    try:
        if parts or not _parents_first(name, model_trace, guide_trace):
            raise NotImplementedError
        kl = torch.as_tensor(kl_divergence(q, p))
    except NotImplementedError:
        kl = _estimate(name, model_trace, guide_trace, dims)
    mask = site["mask"]
    if isinstance(mask, Tensor):
        mask = mask[(...,) + (None,) * dims]
    kl = scale_and_mask(kl, mask=mask)
    for part in parts:
        kl = kl + scale_and_mask(part["unscaled_log_prob"], mask=part["mask"])
    if weight is None:
        return kl.mean(-1 - dims)
    return (weight[(...,) + (None,) * dims] * kl).sum(-1 - dims) / weight.sum()


def parts_of(name: str, guide_trace: Trace) -> list[Any]:
    """The other sites of the guide that log q of this latent is made of."""
    return [site for other, site in sample_sites(guide_trace) if other != name and latent_of(other, (name,)) == name]


def latent_sites(model_trace: Trace, guide_trace: Trace) -> list[str]:
    """The latents that the two share, in the guide's order."""
    latents = {name for name, site in sample_sites(model_trace) if not site["is_observed"]}
    return [name for name, site in sample_sites(guide_trace) if name in latents]


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
    in_model = [site for site, _ in sample_sites(model_trace) if site in latents]
    return set(in_model[: in_model.index(name)]) <= drawn_before


def _estimate(name: str, model_trace: Trace, guide_trace: Trace, dims: int) -> Tensor:
    """Log q − log p of the draw."""
    site, other = guide_trace.nodes[name], model_trace.nodes[name]
    if not dims:  # as the traces have it: of a flow, the density that belongs to the draw
        return site["unscaled_log_prob"] - other["unscaled_log_prob"]
    return site["fn"].base_dist.log_prob(site["value"]) - other["fn"].base_dist.log_prob(site["value"])


def same_scale(a: Scale, b: Scale) -> bool:
    """Whether two scales are equal everywhere."""
    return a is b or bool((torch.as_tensor(a) == torch.as_tensor(b)).all())


def shown_scale(scale: Scale) -> str:
    """A scale as messages show it: the number, or its shape."""
    values = torch.as_tensor(scale)
    return f"{float(values):g}" if values.numel() == 1 else f"of shape {tuple(values.shape)}"
