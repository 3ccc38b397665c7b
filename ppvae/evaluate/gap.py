"""Why the ELBO lies below log p(x): the family of the guide, or the encoder that has to serve all data.

    log p(x) − L[q] = (log p(x) − L[q*])  +  (L[q*] − L[q])
                      approximation gap      amortization gap

L[q] is the ELBO with the guide's answer q(z|x), and q* the best member of the guide's family for that one datum
(Cremer et al. 2018). A richer family (a flow, a full covariance) closes the first gap, a better encoder the second.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ppvae.evaluate.estimates import standard_error
from ppvae.evaluate.offsets import Offsets
from ppvae.infer.conditioned import Conditioned, Latents, conditioned
from ppvae.infer.drawer import blocks
from ppvae.infer.importance import check_count, validation
from ppvae.infer.state import get_rng, set_rng
from ppvae.pair import check_batch

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


@dataclass(frozen=True)
class InferenceGap:
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


def inference_gap(
    pair: nn.Module,
    *data: Any,
    num_samples: int = 1000,
    num_steps: int = 2000,
    num_particles: int = 10,
    log_marginal: Tensor | None = None,
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
        data: its arguments, tensors of shape (n, ...), on any device.
        num_samples: draws per datum from each of q and q* for the bounds and log p̂(x).
        num_steps: the most steps of the search.
        num_particles: draws per datum in each step.
        log_marginal: log p(x) of each datum, (n,), nats, estimated otherwise (annealed importance sampling).
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
    n = check_batch(data)
    if log_marginal is not None and not isinstance(log_marginal, Tensor):
        raise TypeError(f"log_marginal must be a tensor, got {type(log_marginal).__name__}")
    if log_marginal is not None and log_marginal.shape != (n,):
        raise ValueError(f"log_marginal must have shape {(n,)}, one value per datum, got {tuple(log_marginal.shape)}")
    results: list[dict[str, Tensor]] = []
    with conditioned(pair, data, seed=seed) as whole:
        for index, c in whole.parts(num_particles):
            offsets = Offsets(c)
            converged = _optimise(c, offsets, num_particles, num_steps, progress)
            known = None if log_marginal is None else log_marginal[index].detach().double().cpu()
            results.append(_evaluate(c, offsets, num_samples, num_particles, known))
            results[-1]["converged"] = torch.full((len(c),), converged)
    gap = InferenceGap(**{name: torch.cat([part[name] for part in results]) for name in results[0]})
    nan = (gap.elbo.isnan() | gap.best_elbo.isnan()).nonzero()
    if len(nan):
        raise ValueError(f"the ELBO of datum {int(nan[0])} is NaN: check that datum and the pair's weights")
    return gap


def _optimise(c: Conditioned, offsets: Offsets, s: int, num_steps: int, progress: bool) -> bool:
    """Finds q* for each datum; returns whether the ELBO had stopped improving."""
    device = _device(c)
    look_rng = get_rng(device)
    best = first = _look(c, offsets, s)
    if not offsets.values:
        raise ValueError("no distribution of the guide has parameters to optimise: all its sites are Delta")
    start, drops = offsets.merged(), 0
    optimizer = torch.optim.Adam(offsets.values.values(), lr=RATES[0])
    with validation(False):  # the first look has validated
        for step in tqdm(range(1, num_steps + 1), desc="best ELBO", leave=False, disable=not progress):
            _step(c, offsets, s, optimizer)
            if step % CHECK_EVERY and step < num_steps:
                continue
            rng = get_rng(device)
            set_rng(look_rng, device)
            found = _look(c, offsets, s)
            set_rng(rng, device)
            gain = (found - best).nan_to_num(0.0, 0.0, 0.0).mean()
            best = found if gain > 0 else best
            drops += bool(gain < TOLERANCE)
            if drops == len(RATES):
                break
            optimizer.param_groups[0]["lr"] = RATES[drops]
    offsets.load(offsets.merged(found > first, start))
    return drops == len(RATES)


def _step(c: Conditioned, offsets: Offsets, s: int, optimizer: torch.optim.Optimizer) -> None:
    values = list(offsets.values.values())
    with torch.enable_grad():
        _, log_p, log_q = _draw(c, s, offsets)
        # The data do not share an offset: the gradient of the sum is that of each, and nothing of the pair gets one.
        gradients = torch.autograd.grad((log_q - log_p).mean(0).sum(), values)
    for value, gradient in zip(values, gradients, strict=True):
        value.grad = gradient.nan_to_num(0.0, 0.0, 0.0)  # of a datum whose ELBO is infinite
    optimizer.step()


def _look(c: Conditioned, offsets: Offsets, s: int) -> Tensor:
    """The ELBO with these offsets, (n,)."""
    draws = (_draw(c, s, offsets) for _ in range(CHECK_BLOCKS))
    return torch.cat([log_p - log_q for _, log_p, log_q in draws]).mean(0)


def _evaluate(c: Conditioned, offsets: Offsets, num_samples: int, s: int, known: Tensor | None) -> dict[str, Tensor]:
    """The bounds of a block of data, on draws of their own."""
    rows = []
    with validation(False):
        for start, stop in blocks(num_samples, s):
            rng = get_rng(_device(c))
            own = _draw(c, stop - start, None)
            set_rng(rng, _device(c))
            best = _draw(c, stop - start, offsets)
            weight = own[1] if known is not None else _mixture_weight(c, offsets, own, best)
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


def _mixture_weight(c: Conditioned, offsets: Offsets, own: Draw, best: Draw) -> Tensor:
    """Log of the mean weight of one draw from q and one from q* in the mixture of both, (s, n)."""
    try:
        other = _log_q(c, own[0], offsets), _log_q(c, best[0], None)
    except (KeyError, NotImplementedError):  # a transform without an inverse, in Pyro's words and in torch's
        return best[1] - best[2]
    weights = [log_p - torch.logaddexp(log_q, o) for (_, log_p, log_q), o in zip((own, best), other, strict=True)]
    return torch.logaddexp(*weights)  # the halves of the mixture and of the mean cancel


def _draw(c: Conditioned, s: int, offsets: Offsets | None) -> Draw:
    with offsets or nullcontext():
        latents, log_q = c.draw(s)
    likelihood, prior = c.log_joint(latents)
    return latents, (likelihood + sum(prior.values())).double(), _total(log_q)


def _log_q(c: Conditioned, latents: Latents, offsets: Offsets | None) -> Tensor:
    with offsets or nullcontext():
        return _total(c.log_posterior(latents))


def _total(log_probs: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(log_probs.values())).sum(0).double()


def _std_error(values: Tensor) -> Tensor:
    """Of the mean over the draws, (n,)."""
    return values.std(0) / math.sqrt(len(values)) if len(values) > 1 else torch.full_like(values[0], math.nan)


def _device(c: Conditioned) -> torch.device:
    return next(t.device for t in c.data if t is not None)
