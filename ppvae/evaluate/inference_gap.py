"""Why the ELBO lies below log p(x): the family of the guide, or the encoder that has to serve all data.

    log p(x) − L[q] = (log p(x) − L[q*])  +  (L[q*] − L[q])
                      approximation gap      amortization gap

L[q] is the ELBO with the guide's answer q(z|x), and q* the best member of the guide's family for that one datum
(Cremer et al. 2018). A richer family (a flow, a full covariance) closes the first gap, a better encoder the second.
"""

from __future__ import annotations

import copy
import inspect
import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import Delta, ExpandedDistribution, TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Size, Tensor, nn
from torch.distributions import transform_to
from tqdm.auto import tqdm

from ppvae._internals import is_subsampling
from ppvae._validate import check_count, check_flag
from ppvae.evaluate.estimates import standard_error
from ppvae.evaluate.estimator import Estimator, EvaluationOptions
from ppvae.evaluate.marginal import estimator_of
from ppvae.inputs import takes_data
from ppvae.pair import blocks, check_data
from ppvae.processes import each_seeded, is_first
from ppvae.result import Result
from ppvae.rng import get_rng, set_rng
from ppvae.sampling.eval_mode import validation
from ppvae.sampling.posterior_draws import Latents, PosteriorSampler, posterior_sampler
from ppvae.traces import leaf

RATES = (0.05, 0.015, 0.005)
"""Adam's learning rates, in unconstrained space: the next one as soon as the ELBO stops improving."""


CHECK_EVERY = 50
"""Steps between two looks at whether it does."""


CHECK_BLOCKS = 20
"""Blocks of `num_particles` draws at each look, the same ones every time."""


TOLERANCE = 0.005
"""Nats, in the mean over the data, that count as an improvement."""


Draw = tuple[Latents, Tensor, Tensor]
"""Latents, and their log p(x, z) and log q(z|x), each (s, n) in float64."""


@dataclass(frozen=True, repr=False)
class InferenceGap(Result):
    """The two parts of log p(x) − ELBO for each datum.

    Attributes:
        log_marginal: log p̂(x), shape (n,), nats.
        elbo: L[q], the ELBO with the guide as it is, (n,), nats.
        best_elbo: L[q*], with the best parameters of its distributions for each datum, (n,), nats.
        approximation_std_error: standard error of `approximation` from the draws, (n,), nats.
        amortization_std_error: standard error of `amortization` from the draws, (n,), nats; both bounds are estimated
            with the same random numbers.
        converged: where the search for q* ended because the ELBO no longer improved, (n,).
    """

    log_marginal: Tensor
    elbo: Tensor
    best_elbo: Tensor
    approximation_std_error: Tensor
    amortization_std_error: Tensor
    converged: Tensor

    @property
    def approximation(self) -> Tensor:
        """The difference log p̂(x) − L[q*], (n,), nats: what the family of the guide costs."""
        return self.log_marginal - self.best_elbo

    @property
    def amortization(self) -> Tensor:
        """L[q*] − L[q], (n,), nats: what one encoder for all data costs."""
        return self.best_elbo - self.elbo

    @property
    def total(self) -> Tensor:
        """The whole of log p̂(x) − L[q], (n,), nats."""
        return self.log_marginal - self.elbo

    def summary(self) -> str:
        """One paragraph for a person."""
        terms = {name: getattr(self, name) for name in ("total", "approximation", "amortization")}
        means = {name: f"{float(v.mean()):.3f} ± {standard_error(v):.3f}" for name, v in terms.items()}
        unfinished = int((~self.converged).sum())
        rising = f"; for {unfinished} data the best ELBO still rose at the last step" if unfinished else ""
        return (
            f"inference gap {means['total']} nats = approximation {means['approximation']} + amortization "
            f"{means['amortization']}; "
            f"log p(x) = {float(self.log_marginal.mean()):.3f}, best ELBO {float(self.best_elbo.mean()):.3f}, "
            f"ELBO {float(self.elbo.mean()):.3f}: mean ± standard error over {len(self.elbo)} data{rising}"
        )


@takes_data
def inference_gap(
    pair: nn.Module,
    *data: Any,
    num_samples: int = 1000,
    num_steps: int = 2000,
    num_particles: int = 10,
    log_marginal: Tensor | str | Estimator | None = None,
    seed: int = 0,
    progress: bool = False,
) -> InferenceGap:
    """Splits log p(x) − ELBO of each datum into the approximation gap and the amortization gap.

    q* is found by Adam from the encoder's answer: offsets are added to the parameters of every latent site's
    distribution in unconstrained space, for each datum its own. Of a flow the base is shifted; of a hierarchical guide
    q(z1|x) q(z2|z1), an offset of z2 is the same for all z1: q* is the best of that family. The model, the encoder and
    everything else of the pair stay as they are.

    Of the start and the end of the search, q* is for each datum the one with the higher ELBO on draws of their own.
    The bounds that are returned are estimated on others, so that L[q*] is not too high because it was chosen.

    log p̂(x) is estimated by importance sampling from q and q* together, each draw weighted by
    p(x, z) / (½ q(z) + ½ q*(z)) (Veach & Guibas 1995, the balance heuristic): a lower bound in expectation that is
    about as good as the better of the two. Where the guide cannot score values that it has not drawn (Pyro's `Planar`),
    it is from q* alone. The approximation gap is too small by as much as log p̂(x) is too low: with `log_marginal` a
    better estimate takes its place.

    Args:
        pair: any model/guide pair whose latents have reparameterized draws.
        data: its arguments, tensors or arrays of shape (n, ...), on any device; or one iterable of minibatches of them.
        num_samples: draws per datum from each of q and q* for the bounds and log p̂(x).
        num_steps: the most steps of the search.
        num_particles: draws per datum in each step.
        log_marginal: log p(x) of each datum, (n,), nats, estimated otherwise; or how to estimate it, as the `method` of
            `ppvae.log_marginal`.
        seed: of all draws; the global random state is left alone.
        progress: whether to show a progress bar.

    Returns:
        The bounds and gaps, as float64 tensors on the CPU.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the pair or the data break the contract, a latent site has no reparameterized draws, nothing
            of the guide can be shifted, or a bound is NaN.

    References:
        Inference Suboptimality in Variational Autoencoders (Cremer, Li & Duvenaud 2018), arXiv 1801.03558.

    Example:
        >>> import torch
        >>> from ppvae.models import PPCA
        >>> gap = inference_gap(PPCA(8, 2), torch.randn(20, 8), num_samples=50, num_steps=10)
        >>> torch.allclose(gap.total, gap.approximation + gap.amortization)
        True
    """
    for name, count in (("num_samples", num_samples), ("num_steps", num_steps), ("num_particles", num_particles)):
        check_count(name, count)
    check_flag("progress", progress)
    n = check_data(data)
    if isinstance(log_marginal, str | Estimator):
        log_marginal = estimator_of(log_marginal).estimate(pair, data, EvaluationOptions(seed=seed)).values
    if log_marginal is not None and not isinstance(log_marginal, Tensor):
        raise TypeError(f"log_marginal must be a tensor or a method, got {type(log_marginal).__name__}")
    if log_marginal is not None and log_marginal.shape != (n,):
        raise ValueError(f"log_marginal must have shape {(n,)}, one value per datum, got {tuple(log_marginal.shape)}")
    shown = progress and is_first()
    with posterior_sampler(pair, data, seed=seed) as whole:
        whole.check_density()

        def of_part(place: tuple[slice, PosteriorSampler]) -> dict[str, Tensor]:
            index, posterior = place
            offsets = Offsets(posterior)
            converged = _optimise(posterior, offsets, num_particles, num_steps, shown)
            known = None if log_marginal is None else log_marginal[index].detach().double().cpu()
            found = _evaluate(posterior, offsets, num_samples, num_particles, known)
            return {**found, "converged": torch.full((len(posterior),), converged)}

        results = each_seeded(list(whole.parts(num_particles)), of_part, device=whole.device)
    gap = InferenceGap(**{name: torch.cat([part[name] for part in results]) for name in results[0]})
    nan = (gap.elbo.isnan() | gap.best_elbo.isnan()).nonzero()
    if len(nan):
        raise ValueError(f"the ELBO of datum {int(nan[0])} is NaN: check that datum and the pair's weights")
    return gap


def _optimise(posterior: PosteriorSampler, offsets: Offsets, s: int, num_steps: int, progress: bool) -> bool:
    """Finds q* for each datum; returns whether the ELBO had stopped improving."""
    device = posterior.device
    look_rng = get_rng(device)
    best = first = _look(posterior, offsets, s)
    if not offsets.values:
        raise ValueError("no distribution of the guide has parameters to optimise: all its sites are Delta")
    start, drops = offsets.merged(), 0
    optimizer = torch.optim.Adam(offsets.values.values(), lr=RATES[0])
    with validation(False):  # the first look has validated
        for step in tqdm(range(1, num_steps + 1), desc="best ELBO", leave=False, disable=not progress):
            _step(posterior, offsets, s, optimizer)
            if step % CHECK_EVERY and step < num_steps:
                continue
            rng = get_rng(device)
            set_rng(look_rng, device)
            found = _look(posterior, offsets, s)
            set_rng(rng, device)
            gain = (found - best).nan_to_num(0.0, 0.0, 0.0).mean()
            best = found if gain > 0 else best
            drops += bool(gain < TOLERANCE)
            if drops == len(RATES):
                break
            optimizer.param_groups[0]["lr"] = RATES[drops]
    offsets.load(offsets.merged(found > first, start))
    return drops == len(RATES)


def _step(posterior: PosteriorSampler, offsets: Offsets, s: int, optimizer: torch.optim.Optimizer) -> None:
    values = list(offsets.values.values())
    with torch.enable_grad():
        _, log_p, log_q = _draw(posterior, s, offsets)
        # The data do not share an offset: the gradient of the sum is that of each, and nothing of the pair gets one.
        gradients = torch.autograd.grad((log_q - log_p).mean(0).sum(), values)
    for value, gradient in zip(values, gradients, strict=True):
        value.grad = gradient.nan_to_num(0.0, 0.0, 0.0)  # of a datum whose ELBO is infinite
    optimizer.step()


def _look(posterior: PosteriorSampler, offsets: Offsets, s: int) -> Tensor:
    """The ELBO with these offsets, (n,)."""
    draws = (_draw(posterior, s, offsets) for _ in range(CHECK_BLOCKS))
    return torch.cat([log_p - log_q for _, log_p, log_q in draws]).mean(0)


def _evaluate(
    posterior: PosteriorSampler, offsets: Offsets, num_samples: int, s: int, known: Tensor | None
) -> dict[str, Tensor]:
    """The bounds of a block of data, on draws of their own."""
    rows = []
    with validation(False):
        for start, stop in blocks(num_samples, s):
            rng = get_rng(posterior.device)
            own = _draw(posterior, stop - start, None)
            set_rng(rng, posterior.device)
            best = _draw(posterior, stop - start, offsets)
            weight = own[1] if known is not None else _mixture_weight(posterior, offsets, own, best)
            rows.append((own[1] - own[2], best[1] - best[2], weight))
    elbo, best_elbo, log_weight = (torch.cat(parts).cpu() for parts in zip(*rows, strict=True))
    log_p = log_weight.logsumexp(0) - math.log(num_samples) if known is None else known
    # what each draw adds to log p̂ − L[q*], by the delta method
    part = (log_weight - log_p).exp() - best_elbo if known is None else -best_elbo
    return {
        "log_marginal": log_p,
        "elbo": elbo.mean(0),
        "best_elbo": best_elbo.mean(0),
        "approximation_std_error": _std_error(part),
        "amortization_std_error": _std_error(best_elbo - elbo),
    }


def _mixture_weight(posterior: PosteriorSampler, offsets: Offsets, own: Draw, best: Draw) -> Tensor:
    """Log of the mean weight of one draw from q and one from q* in the mixture of both, (s, n)."""
    try:
        other = _log_q(posterior, own[0], offsets), _log_q(posterior, best[0], None)
    except (KeyError, NotImplementedError):  # a transform without an inverse, in Pyro's words and in torch's
        return best[1] - best[2]
    weights = [log_p - torch.logaddexp(log_q, o) for (_, log_p, log_q), o in zip((own, best), other, strict=True)]
    return torch.logaddexp(*weights)  # the halves of the mixture and of the mean cancel


def _draw(posterior: PosteriorSampler, s: int, offsets: Offsets | None) -> Draw:
    with offsets or nullcontext():
        latents, log_q = posterior.draw(s)
    likelihood, prior = posterior.log_joint(latents)
    return latents, (likelihood + sum(prior.values())).double(), _total(log_q)


def _log_q(posterior: PosteriorSampler, latents: Latents, offsets: Offsets | None) -> Tensor:
    with offsets or nullcontext():
        return _total(posterior.log_posterior(latents))


def _total(log_probs: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(log_probs.values())).sum(0).double()


def _std_error(values: Tensor) -> Tensor:
    """Of the mean over the draws, (n,)."""
    return values.std(0) / math.sqrt(len(values)) if len(values) > 1 else torch.full_like(values[0], math.nan)


_SAID_TWICE = {"probs": "logits", "covariance_matrix": "scale_tril", "precision_matrix": "scale_tril"}
"""Parameters that a family takes in place of another one."""


Values = dict[tuple[str, ...], Tensor]
"""Offsets by site and parameter."""


class Offsets(Messenger):
    """Shifts the parameters of the guide that runs inside, for each datum by offsets of its own.

    Of a distribution that is transformed (a flow), the base is shifted. A `Delta` is a function of what was drawn
    before and stays. Where a later site's parameters depend on earlier draws, its offset is the same for all draws.

    Args:
        posterior: the pair on its data; `draw` and `log_posterior` of this very one may run inside.

    Attributes:
        values: the offsets by site and parameter, made at the first run, of shape (*plates, n, ...).
    """

    def __init__(self, posterior: PosteriorSampler) -> None:
        super().__init__()
        self._num_data = len(posterior)
        self._plated = posterior.sampler.plate_dim is not None
        self.values: Values = {}
        self._inner_dims: dict[tuple[str, ...], int] = {}

    def merged(self, where: Tensor | None = None, others: Values | None = None) -> Values:
        """A copy of the offsets, of the data `where` (n,) says so; of the rest those of `others`."""
        values = {key: value.detach().clone() for key, value in self.values.items()}
        if where is None or others is None:
            return values
        of_datum = {key: where.view(-1, *[1] * dims) for key, dims in self._inner_dims.items()}
        return {key: torch.where(of_datum[key], value, others[key]) for key, value in values.items()}

    @torch.no_grad()
    def load(self, values: Values) -> None:
        """Takes over the offsets of a copy."""
        for key, value in values.items():
            self.values[key].copy_(value)

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if msg["is_observed"] or is_subsampling(fn):
            return
        if not fn.has_rsample:
            raise ValueError(
                f"the guide's site {msg['name']!r} has no reparameterized draws ({_family(fn)}): its parameters cannot "
                "be optimised by gradients through the draws"
            )
        msg["fn"] = self._shifted(fn, fn.batch_shape, (msg["name"],), len(fn.batch_shape) - 1)

    def _shifted(self, fn: Any, shape: Size, key: tuple[str, ...], data_dim: int) -> Any:
        """`fn`, expanded to the batch shape `shape`, with shifted parameters; the data lie at `data_dim`."""
        if isinstance(fn, Delta):
            return fn
        if fn.arg_constraints:
            return self._rebuilt(fn, shape, key, data_dim)
        if not hasattr(fn, "base_dist"):
            raise ValueError(f"the guide's site {key[0]!r} is a {_family(fn)}, whose parameters are not known")
        if isinstance(fn, ExpandedDistribution):
            return self._shifted(fn.base_dist, shape, key, data_dim)
        shape = shape + fn.base_dist.batch_shape[len(fn.batch_shape) :]
        new = copy.copy(fn)
        new.base_dist = self._shifted(fn.base_dist, shape, key, data_dim)
        return new

    def _rebuilt(self, fn: Any, shape: Size, key: tuple[str, ...], data_dim: int) -> TorchDistribution:
        arguments = {}
        for name, parameter in inspect.signature(type(fn).__init__).parameters.items():
            if name in ("self", "validate_args") or _SAID_TWICE.get(name) in fn.arg_constraints:
                continue
            if not hasattr(fn, name):
                if parameter.default is inspect.Parameter.empty:
                    raise ValueError(f"the guide's site {key[0]!r} is a {_family(fn)}, which hides its {name!r}")
                continue
            arguments[name] = value = getattr(fn, name)
            constraint = fn.arg_constraints.get(name)
            if constraint is not None and not constraint.is_discrete:
                transform = transform_to(constraint)
                free = transform.inv(value)
                free = free.expand(shape + free.shape[free.dim() - transform.domain.event_dim :])
                arguments[name] = transform(free + self._offset((*key, name), free, data_dim))
        return type(fn)(**arguments)

    def _offset(self, key: tuple[str, ...], like: Tensor, data_dim: int) -> Tensor:
        n = self._num_data
        if key not in self.values:
            # in an outer plate the samples come first, else they are repeated along the data
            shape = like.shape[1:] if self._plated else (*like.shape[:data_dim], n, *like.shape[data_dim + 1 :])
            self._inner_dims[key] = like.dim() - data_dim - 1
            self.values[key] = torch.zeros(shape, dtype=like.dtype, device=like.device, requires_grad=True)
        offset = self.values[key]
        if self._plated:
            return offset
        return offset.repeat(*[1] * data_dim, like.shape[data_dim] // n, *[1] * (like.dim() - data_dim - 1))


def _family(fn: Any) -> str:
    return type(leaf(fn)).__name__
