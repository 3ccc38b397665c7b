"""The codes of a minibatch: q(z|x) of the one latent that each datum has, for objectives of all codes together."""

from __future__ import annotations

from pyro.distributions import Delta
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ppvae.objectives.kl import latent_sites
from ppvae.traces import Site, leaf, sites


def codes_of(model_trace: Trace, guide_trace: Trace, *, objective: str) -> tuple[Site, Site]:
    """The sites of the one latent of a datum, of model and guide, whose q factorises over its dimensions.

    What is asked of it is what makes q(z) = (1/N) Σ_j q(z|x_j) known: q(z|x) depends on x alone, not on other draws,
    and every datum counts once.

    Raises:
        NotImplementedError: where the pair is not of this kind, with what it has instead.
        ValueError: where the data of a minibatch have unequal scales.
    """
    of_guide = sites(guide_trace)
    drawn = [name for name, site in of_guide.items() if site.is_drawn]
    if latent_sites(model_trace, guide_trace) != drawn or len(drawn) != 1:
        raise NotImplementedError(
            f"{objective} is of pairs whose guide draws one latent, which the model has: it draws {drawn}"
        )
    q, p = of_guide[drawn[0]], sites(model_trace)[drawn[0]]
    base = leaf(q.fn)
    if len(q.fn.batch_shape) != 1 or base.event_dim or isinstance(base, Delta) or not q.is_reparameterized:
        raise NotImplementedError(
            f"{objective} needs a q(z|x) that factorises over the dimensions of z, reparameterized and with a density, "
            f"in no plate but that of the data: {q.name!r} is a {type(base).__name__} of batch shape "
            f"{tuple(q.fn.batch_shape)}"
        )
    if q.is_masked or p.is_masked:
        raise NotImplementedError(
            f"{objective} needs the latent {q.name!r} of every datum, and a mask may leave it out"
        )
    if isinstance(q.scale, Tensor) and q.scale.numel() > 1:
        raise ValueError(
            f"{objective} is of data that count alike, and site {q.name!r} has a scale of shape {tuple(q.scale.shape)}"
        )
    return q, p


def check_several(site: Site, *, objective: str) -> int:
    """How many data a minibatch has, at least two.

    Raises:
        ValueError: where there is one.
    """
    n = len(site.value)
    if n == 1:
        raise ValueError(
            f"{objective} is of the codes of a minibatch together, and there is one of a single datum: choose another "
            "batch_size, or leave the last one out, ppvae.data.Batches(..., drop_last=True)"
        )
    return n
