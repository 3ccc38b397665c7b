"""Training a pair whose guide draws auxiliary variables: the reverse model stands beside the model.

The bound E_q[log p(x, z) + log r(u|z, x) − log q(u, z|x)] of Maaløe et al. 2016 ("Auxiliary deep generative models",
arXiv 1602.05473) is the ELBO of the guide and of a model that goes on with u ~ r(u|z, x), which any objective takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro import poutine
from pyro.distributions import Delta
from torch import nn

from ppvae._internals import is_subsampling
from ppvae.pair import Batch
from ppvae.traces import leaf, sites


def trained_model(pair: nn.Module, batch: Batch) -> Callable[..., Any]:
    """What is trained against the guide: the model, and then the `reverse` of the pair where the guide needs one.

    Args:
        pair: a model/guide pair.
        batch: a minibatch, on which guide and model are run once.

    Returns:
        A function of a minibatch.
    """
    model: Callable[..., Any] = pair.model  # type: ignore[assignment]
    reverse: Any = getattr(pair, "reverse", None)
    if not callable(reverse):
        return model
    guide_trace = poutine.trace(pair.guide).get_trace(*batch)
    latents = sites(poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*batch))
    drawn = [site for name, site in sites(guide_trace).items() if site.is_drawn and name not in latents]
    if all(site.is_marked or isinstance(leaf(site.fn), Delta) for site in drawn):
        return model

    def with_reverse(*batch: Any) -> Any:
        with poutine.trace() as tracer:
            returned = model(*batch)
        plates = [name for name, node in tracer.trace.nodes.items() if is_subsampling(node["fn"])]
        with poutine.block(hide=plates), poutine.replay(trace=tracer.trace):  # the same plates, noted once
            reverse(*batch, **{name: site.value for name, site in sites(tracer.trace).items() if site.is_drawn})
        return returned

    return with_reverse
