"""Importance-weighted objectives: tighter bounds on log p(x) from several draws of each datum.

    L_K = E[log 1/K Σ_k w_k],    w_k = p(x, z_k) / q(z_k|x),    log p(x) ≥ L_{K+1} ≥ L_K ≥ L_1 = ELBO

`IWAE` maximises L_K; `MIWAE`, `CIWAE` and `PIWAE` combine bounds with other numbers of draws.

Weights are of each datum, and unscaled: log-probabilities are summed over everything but the draws and the data, and
what scales them all (a subsampled plate) multiplies the bound. A KL weight is an error, as a bound of tempered weights
bounds nothing: L_K has no KL term; `CIWAE` moves between it and the ELBO.

Gradients of the guide's parameters φ, of the draws z_k = z(ε_k, φ), with w̃_k = w_k / Σ w:

    "standard"   Σ_k w̃_k d log w_k / dφ                      its signal-to-noise ratio falls with K
    "dreg"       Σ_k w̃_k² ∂ log w_k / ∂z_k · dz_k / dφ       unbiased too, and its ratio does not fall
    "stl"        Σ_k w̃_k  ∂ log w_k / ∂z_k · dz_k / dφ       no score term; unbiased for K = 1 alone
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ppvae._validate import check_count
from ppvae.objectives.base import Objective
from ppvae.objectives.kl import check_reparameterized, common_scale, scale_of_each_datum
from ppvae.objectives.pathwise import CutAtDraws, pathwise
from ppvae.pair import Batch, Pair, check_batch, take
from ppvae.sampling.eval_mode import eval_mode
from ppvae.sampling.sampler import PROBE_DATA, Sampler, choose_sampler
from ppvae.traces import Site, sites

Gradient = Literal["standard", "dreg", "stl"]
"""How the gradient of the guide's parameters is estimated."""

Bound = tuple[tuple[float, int], ...]
"""A sum of bounds as pairs (factor, K): the draws are taken in groups of K, and the groups averaged."""


class ImportanceWeightedELBO(Objective):
    """The importance-weighted bounds of the literature, told apart by how they group the draws of a datum.

    Works with `pyro.infer.SVI`, `ppvae.SVI` and `ppvae.fit`, for pairs whose guides are reparameterized and whose
    data plate is at dim -1. The draws lie in an outer plate, so that the guide's networks run once for a datum; where a
    pair's code does not broadcast over it, on repeated data, see `ppvae.sampling.sampler`.

    "dreg" and "stl" differentiate log q(z|x) as a function of z alone: the guide goes on from a copy of each draw, the
    bound is differentiated with respect to the copies, and these derivatives are passed on to the draws, from the last
    to the first. So they work for any guide, hierarchies included, and flows that can be inverted.

    Args:
        num_samples: draws per datum.
        gradient: the estimator.
        encoder: the bound that the guide's draws are trained for.
        decoder: the bound that the model is trained for; the loss is minus it.
    """

    def __init__(self, num_samples: int, gradient: Gradient, *, encoder: Bound, decoder: Bound) -> None:
        if gradient not in get_args(Gradient):
            raise ValueError(f"gradient must be one of {get_args(Gradient)}, got {gradient!r}")
        super().__init__(num_particles=num_samples)
        self.gradient = gradient
        self.encoder = encoder
        self.decoder = decoder
        self._samplers: dict[Any, Sampler] = {}  # shared by shallow copies

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Minus the bound, summed over the batch.

        Raises:
            NotImplementedError: where the pair has latents that are not reparameterized, or are summed over.
            ValueError: where sites have unequal scales, or the pair breaks the contract.
        """
        ((model_trace, guide_trace),) = self.traces(model, guide, args, kwargs)
        sampler, s = self._sampler(model, guide, args, kwargs), self.num_particles
        log_likelihood, log_prior = sampler.joint(model_trace, s)
        log_q: Any = sum(sampler.posterior(guide_trace, s)[1].values())
        log_joint = log_likelihood + sum(log_prior.values())
        log_weight = log_joint - log_q
        scale = _scale(sampler, s, model_trace, guide_trace)
        extra = _outside(sampler, s, model_trace, guide_trace)
        elbo = (scale * _bound(log_weight, self.decoder)).sum() + extra
        if not self._cuts or not torch.is_grad_enabled():
            return -elbo
        of_model = (scale * _slopes(log_weight, self.decoder) * log_joint).sum() + extra
        slopes = _slopes(log_weight, self.encoder)
        if self.gradient == "standard":
            of_model = of_model - (scale * slopes * log_q).sum()
        if self.gradient == "dreg":
            slopes = _slopes(log_weight, self.encoder, power=2)
        surrogate = of_model + pathwise((scale * slopes * log_weight).sum(), guide_trace)
        return -(elbo.detach() + surrogate - surrogate.detach())

    @property
    def _cuts(self) -> bool:
        """Whether the graph is cut at the draws: where model and draws do not share one gradient."""
        return self.gradient != "standard" or self.encoder != self.decoder

    def _get_traces(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[tuple[Trace, Trace]]:
        yield self._get_trace(model, guide, args, kwargs)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        sampler = self._sampler(model, guide, args, kwargs)
        try:
            return self._draw(sampler, args)
        except Exception as error:  # an outer plate may fail on a size that the trial runs had not, such as one datum
            if sampler.plate_dim is None or isinstance(error, NotImplementedError):
                raise
        self._samplers[self._kind(model, guide, args, kwargs)] = replace(sampler, plate_dim=None)
        return self._draw(replace(sampler, plate_dim=None), args)

    def _draw(self, sampler: Sampler, args: Batch) -> tuple[Trace, Trace]:
        s = self.num_particles
        guide_trace = self._cut_guide(sampler, args) if self._cuts else sampler.guide(args, s, {}, {})
        check_reparameterized(sites(guide_trace), objective=type(self).__name__)
        return sampler.model(args, s, sampler.posterior(guide_trace, s)[0], {}), guide_trace

    def _cut_guide(self, sampler: Sampler, args: Batch) -> Trace:
        """The guide's trace, its graph cut at the draws."""
        try:
            with CutAtDraws():
                return sampler.guide(args, self.num_particles, {}, {})
        except (KeyError, NotImplementedError) as error:  # what transforms without an inverse raise
            raise NotImplementedError(
                f"gradient={self.gradient!r} of {type(self).__name__} needs log q(z|x) at a given z, which the guide "
                f"does not have ({type(error).__name__}: {error}): a flow without an inverse trains with IWAE or MIWAE "
                "and gradient='standard'"
            ) from error

    def _sampler(self, model: Any, guide: Any, args: Batch, kwargs: Any) -> Sampler:
        """How the pair is run, found out once for each kind of minibatch."""
        kind = self._kind(model, guide, args, kwargs)
        functions: Any = [partial(f, **kwargs) if kwargs else f for f in (model, guide)]
        if kind not in self._samplers:
            self._samplers[kind] = self._choose(Pair(*functions), args)
        return replace(self._samplers[kind], pair=Pair(*functions)) if kwargs else self._samplers[kind]

    def _kind(self, model: Any, guide: Any, args: Batch, kwargs: Any) -> Any:
        return (model, guide, *(a is None for a in args), *sorted(kwargs))

    def _choose(self, pair: Pair, args: Batch) -> Sampler:
        """The form that works on a few data; the random state and the modules' modes stay as they are."""
        check_batch(args, name="the minibatch")
        device = next(a.device for a in args if a is not None)
        devices = [device] if device.type == "cuda" else []
        with eval_mode(pair), torch.random.fork_rng(devices), torch.no_grad():
            sampler = choose_sampler(pair, take(args, slice(0, PROBE_DATA), device), self.num_particles)
        if enumerated := sampler.enumeration.num_values:
            raise NotImplementedError(
                f"{type(self).__name__} draws every latent, and {list(enumerated)} are marked to be summed over: "
                "train with TraceEnum_ELBO"
            )
        return sampler


class IWAE(ImportanceWeightedELBO):
    r"""The importance-weighted bound.

    .. math:: \mathcal{L}_K = E_{z_1 \dots z_K \sim q(z \mid x)} \log \frac{1}{K} \sum_k \frac{p(x, z_k)}{q(z_k \mid x)}

    Args:
        num_samples: K, draws per datum.
        gradient: "standard", "dreg" or "stl", see the module.

    Raises:
        ValueError: where an option is not one of the above.

    References:
        Importance weighted autoencoders (Burda et al. 2016), arXiv 1509.00519. Doubly reparameterized gradient
        estimators for Monte Carlo objectives (Tucker et al. 2018), arXiv 1810.04152. Sticking the landing (Roeder et
        al. 2017), arXiv 1703.09194.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.objectives import IWAE
        >>> from ppvae.models import PPCA
        >>> loss = IWAE(5, gradient="dreg")
        >>> run = ppvae.fit(PPCA(8, 2, guide="amortized"), torch.randn(100, 8), loss=loss, epochs=1, progress=False)
    """

    def __init__(self, num_samples: int, *, gradient: Gradient = "standard") -> None:
        check_count("num_samples", num_samples)
        bound = ((1.0, num_samples),)
        super().__init__(num_samples, gradient, encoder=bound, decoder=bound)


class MIWAE(ImportanceWeightedELBO):
    r"""The mean of M importance-weighted bounds of K draws each: less noise in the guide's gradient than IWAE(MK).

    Args:
        num_groups: M.
        num_samples: K; a datum has MK draws.
        gradient: "standard", "dreg" or "stl", see the module.

    Raises:
        ValueError: where an option is not one of the above.

    References:
        Tighter variational bounds are not necessarily better (Rainforth et al. 2018), arXiv 1802.04537.

    Example:
        With the exact posterior as the guide every bound is log p(x):

        >>> import torch
        >>> from ppvae.models import PPCA
        >>> ppca, x = PPCA(8, 2), torch.randn(10, 8)
        >>> bound = -MIWAE(3, 5).loss(ppca.model, ppca.guide, x)
        >>> torch.allclose(torch.tensor(bound), ppca.log_prob(x).sum(), atol=0.01)
        True
    """

    def __init__(self, num_groups: int, num_samples: int, *, gradient: Gradient = "standard") -> None:
        check_count("num_groups", num_groups)
        check_count("num_samples", num_samples)
        bound = ((1.0, num_samples),)
        super().__init__(num_groups * num_samples, gradient, encoder=bound, decoder=bound)


class CIWAE(ImportanceWeightedELBO):
    r"""A combination of the importance-weighted bound and the ELBO on the same draws, (1 - β) ELBO + β L_K.

    Args:
        num_samples: K, draws per datum.
        beta: β between 0, the ELBO, and 1, IWAE.
        gradient: "standard", "dreg" or "stl", see the module.

    Raises:
        ValueError: where an option is not one of the above.

    References:
        Tighter variational bounds are not necessarily better (Rainforth et al. 2018), arXiv 1802.04537.

    Example:
        With the exact posterior as the guide every bound is log p(x):

        >>> import torch
        >>> from ppvae.models import PPCA
        >>> ppca, x = PPCA(8, 2), torch.randn(10, 8)
        >>> bound = -CIWAE(5, 0.5).loss(ppca.model, ppca.guide, x)
        >>> torch.allclose(torch.tensor(bound), ppca.log_prob(x).sum(), atol=0.01)
        True
    """

    def __init__(self, num_samples: int, beta: float, *, gradient: Gradient = "standard") -> None:
        check_count("num_samples", num_samples)
        if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 <= beta <= 1:
            raise ValueError(f"beta must be a number between 0 (the ELBO) and 1 (IWAE), got {beta!r}")
        bound = ((float(beta), num_samples), (1.0 - beta, 1))
        super().__init__(num_samples, gradient, encoder=bound, decoder=bound)


class PIWAE(ImportanceWeightedELBO):
    r"""A bound for each part: the model is trained with IWAE(MK), the guide's draws with MIWAE(M, K).

    The loss is minus the model's bound.

    Args:
        num_groups: M.
        num_samples: K; a datum has MK draws.
        gradient: "standard", "dreg" or "stl", see the module. Each of them needs a guide without flows that cannot be
            inverted.

    Raises:
        ValueError: where an option is not one of the above.

    References:
        Tighter variational bounds are not necessarily better (Rainforth et al. 2018), arXiv 1802.04537.

    Example:
        With the exact posterior as the guide every bound is log p(x):

        >>> import torch
        >>> from ppvae.models import PPCA
        >>> ppca, x = PPCA(8, 2), torch.randn(10, 8)
        >>> bound = -PIWAE(3, 5).loss(ppca.model, ppca.guide, x)
        >>> torch.allclose(torch.tensor(bound), ppca.log_prob(x).sum(), atol=0.01)
        True
    """

    def __init__(self, num_groups: int, num_samples: int, *, gradient: Gradient = "standard") -> None:
        check_count("num_groups", num_groups)
        check_count("num_samples", num_samples)
        draws = num_groups * num_samples
        super().__init__(draws, gradient, encoder=((1.0, num_samples),), decoder=((1.0, draws),))


def _bound(log_weight: Tensor, bound: Bound) -> Tensor:
    """The bound of each datum, (n,), from log-weights (s, n)."""
    parts = [c * log_weight.unflatten(0, (-1, k)).logsumexp(1).sub(math.log(k)).mean(0) for c, k in bound]
    return torch.stack(parts).sum(0)


@torch.no_grad()
def _slopes(log_weight: Tensor, bound: Bound, *, power: int = 1) -> Tensor:
    """The derivative of the bound with respect to each log-weight, (s, n); w̃ to the power 2 for "dreg"."""
    parts = [c * k / len(log_weight) * log_weight.unflatten(0, (-1, k)).softmax(1) ** power for c, k in bound]
    return torch.stack([part.flatten(0, 1) for part in parts]).sum(0)


def _outside(sampler: Sampler, s: int, model_trace: Trace, guide_trace: Trace) -> Any:
    """What the objective has besides p(x, z) and q(z|x): scaled, the mean over the draws."""

    def mean(site: Site) -> Any:
        # What lies outside the data plate counts once for all repeated data, and in an outer plate for each draw.
        once = sampler.plate_dim is None and all(plate.dim != -1 for plate in site.plates)
        return site.log_prob_sum if once else site.log_prob_sum / s

    in_model = [mean(site) for site in sites(model_trace).values() if site.role == "training"]
    in_guide = [mean(site) for site in sites(guide_trace).values() if not site.is_drawn]
    return sum(in_model) - sum(in_guide)


def _scale(sampler: Sampler, s: int, model_trace: Trace, guide_trace: Trace) -> Any:
    """The scale of the whole bound, a number or that of each datum, (n,)."""
    named = {
        f"site {name!r} of the {where}": site
        for where, trace in (("model", model_trace), ("guide", guide_trace))
        for name, site in sites(trace).items()
        if site.role != "training" and (where == "model" or site.is_drawn)
    }
    if sampler.plate_dim is None and s > 1:  # the plate takes the repeated data for so many more
        for name, site in named.items():
            if any(plate.full_size not in (None, plate.size) for plate in site.plates):
                raise NotImplementedError(
                    f"{name} lies in a subsampled plate, and the pair's code does not broadcast over an outer plate of "
                    "draws, which only together cannot be trained: see ppvae.sampling.sampler"
                )
    scale = common_scale(named, consequence="an importance-weighted bound has no part that could be weighted alone")
    return scale_of_each_datum(scale, repeats=s if sampler.plate_dim is None else 1)
