"""The ELBO and the marginal likelihood log p(x), per datum, by importance sampling from the guide.

    ELBO(x)  = E_q[log w],              w = p(x, z) / q(z|x),  z ~ q(z|x)
    log p(x) ≈ log (1/s) Σ_i w_i        (Burda et al. 2016, "Importance weighted autoencoders", 1509.00519)

Both are lower bounds on log p(x) in expectation, in nats, and higher is better; the second rises to log p(x)
with s. Scales (a KL weight) and the guide's auxiliary factors are ignored: this is the likelihood of the
generative model, whatever objective trained it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ppvae._validate import check_count
from ppvae.evaluate.estimates import AnnealedLogMarginal, Elbo, Estimate, LogMarginal, Moments
from ppvae.evaluate.psis import ParetoWarning, bound_curve, pareto_k
from ppvae.evaluate.sites import num_observed
from ppvae.pair import check_batch, check_pair
from ppvae.params import LocalParams
from ppvae.sampling.importance import Draws, importance_draws


def elbo(
    pair: nn.Module,
    *data: Any,
    num_samples: int = 1,
    batch_size: int | None = None,
    seed: int = 0,
    compile: bool | Literal["auto"] = "auto",
    given: Sequence[str] = (),
    progress: bool = False,
) -> Elbo:
    """Estimates the ELBO of each datum and its terms, E_q[log p(x|z)] − Σ KL(q ‖ p).

    Args:
        pair: any model/guide pair.
        data: its arguments, tensors of shape (n, ...), on any device.
        num_samples: draws from the guide per datum.
        batch_size: the most data scored at once; by default what a memory budget allows.
        seed: of the draws; the global random state is left alone.
        compile: whether to run the draws as one compiled graph, see `ppvae.compile.compiled`; "auto" does where the
            estimate takes long enough to repay it.
        given: observed sites to condition on, e.g. `["y"]` for log p(x|y) in place of log p(x, y); they must depend
            on no latent.
        progress: whether to show a progress bar.

    Returns:
        The estimates, as float64 tensors on the CPU.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the pair or the data break the contract, or a weight is NaN or infinite, naming the
            argument, the site or the datum.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.models import PPCA
        >>> terms = ppvae.elbo(PPCA(8, 2), torch.randn(100, 8), num_samples=10)
        >>> terms.values.shape
        torch.Size([100])
    """
    blocks: list[dict[str, Moments]] = []
    start = -1
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "compile": compile, "given": given}
    draws_of = importance_draws(pair, data, num_samples=num_samples, **options)
    for draws in _checked(draws_of, data, num_samples, progress):
        terms = {"elbo": draws.elbo(), "reconstruction": draws.reconstruction()}
        terms |= {f"kl_{site}": value for site, value in draws.kl().items()}
        if draws.start != start:
            start = draws.start
            blocks.append({name: Moments() for name in terms})
        for name, value in terms.items():
            blocks[-1][name].add(value.double())
    moments = {name: _cat([block[name].mean for block in blocks]) for name in blocks[0]}
    variance = _cat([block["elbo"].variance() for block in blocks])
    return Elbo(
        values=moments.pop("elbo"),
        reconstruction=moments.pop("reconstruction"),
        kl={name.removeprefix("kl_"): value for name, value in moments.items()},
        std_error=(variance / num_samples).sqrt(),
        num_samples=num_samples,
    )


@overload
def log_marginal(
    pair: nn.Module,
    *data: Any,
    num_samples: int | None = None,
    method: Literal["importance"] = "importance",
    batch_size: int | None = None,
    seed: int = 0,
    compile: bool | Literal["auto"] = "auto",
    given: Sequence[str] = (),
    progress: bool = False,
) -> LogMarginal: ...


@overload
def log_marginal(
    pair: nn.Module,
    *data: Any,
    num_samples: int | None = None,
    method: Literal["annealed"],
    batch_size: int | None = None,
    seed: int = 0,
    compile: bool | Literal["auto"] = "auto",
    given: Sequence[str] = (),
    progress: bool = False,
) -> AnnealedLogMarginal: ...


def log_marginal(
    pair: nn.Module,
    *data: Any,
    num_samples: int | None = None,
    method: Literal["importance", "annealed"] = "importance",
    batch_size: int | None = None,
    seed: int = 0,
    compile: bool | Literal["auto"] = "auto",
    given: Sequence[str] = (),
    progress: bool = False,
) -> Estimate:
    """Estimates log p(x) of each datum, and says how far to trust it.

    By importance sampling from the guide, log p̂(x) = log (1/s) Σ_i p(x, z_i) / q(z_i|x), z_i ~ q(z|x): a lower bound in
    expectation that rises to log p(x) with s (Burda et al. 2016, arXiv 1509.00519). Latents may be continuous or
    discrete. Those that the guide (or the model alone) marks with `infer={"enumerate": "parallel"}` are summed over
    exactly, and s samples of the others are drawn for each of their values:
    log p̂(x) = log Σ_y (1/s) Σ_i p(x, y, z_i) / q(z_i|x, y).

    With `method="annealed"` by `ppvae.evaluate.annealed_log_marginal`, which has further options: s chains that move
    from the guide to the posterior. Slower, and right where the guide misses part of the posterior.

    Args:
        pair: any model/guide pair.
        data: its arguments, tensors of shape (n, ...), on any device.
        num_samples: s, draws from the guide per datum, by default 1,000, or chains, by default 16; exactly that many,
            whatever the chunking.
        method: "importance" or "annealed".
        batch_size: the most data scored at once; by default what a memory budget allows.
        seed: of the draws; the global random state is left alone.
        compile: whether to run the draws as one compiled graph, see `ppvae.compile.compiled`; "auto" does where the
            estimate takes long enough to repay it.
        given: observed sites to condition on, e.g. `["y"]` for log p(x|y) in place of log p(x, y); they must depend
            on no latent.
        progress: whether to show a progress bar.

    Returns:
        The estimates with their standard errors and effective sample sizes, and k̂ and bounds or the acceptance of the
        chains, as float64 tensors on the CPU.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the pair or the data break the contract, or a weight is NaN or infinite, naming the
            argument, the site or the datum.

    Warns:
        ParetoWarning: where k̂ > 0.7, which makes the estimates of those data unreliable; it counts them.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.models import PPCA
        >>> estimate = ppvae.log_marginal(PPCA(8, 2), torch.randn(100, 8), num_samples=50)
        >>> estimate.values.shape
        torch.Size([100])
    """
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "compile": compile, "given": given}
    if method == "annealed":
        from ppvae.evaluate.ais import annealed_log_marginal

        num_chains = 16 if num_samples is None else num_samples
        return annealed_log_marginal(pair, *data, num_chains=num_chains, progress=progress, **options)
    if method != "importance":
        raise ValueError(f"method must be 'importance' or 'annealed', got {method!r}")
    num_samples = 1000 if num_samples is None else num_samples
    estimate = _by_importance(pair, data, num_samples, options, progress)
    if estimate.num_unreliable():
        warnings.warn(estimate.verdict(), ParetoWarning, stacklevel=2)
    return estimate


def _by_importance(pair: nn.Module, data: Any, num_samples: int, options: Any, progress: bool) -> LogMarginal:
    check_pair(pair)
    params = LocalParams(pair, attach=False)  # one for the draws and for the look at what is observed
    draws_of = importance_draws(pair, data, num_samples=num_samples, params=params, **options)
    blocks: list[dict[str, Tensor]] = []
    bounds: list[dict[int, Tensor]] = []
    for _, of_block in groupby(_checked(draws_of, data, num_samples, progress), key=lambda draws: draws.start):
        log_weight = torch.cat([draws.log_weight() for draws in of_block]).double()
        bounds.append(bound_curve(log_weight))
        log_sums = {"log_sum": log_weight.logsumexp(0), "log_sum_squares": (2 * log_weight).logsumexp(0)}
        blocks.append({**log_sums, "pareto_k": pareto_k(log_weight)})
    log_sum, log_sum_squares, k = (_cat([block[name] for block in blocks]) for name in blocks[0])
    ess = torch.exp(2 * log_sum - log_sum_squares).clamp(1, num_samples)
    unbiased = num_samples / (num_samples - 1) if num_samples > 1 else math.nan
    return LogMarginal(
        values=log_sum - math.log(num_samples),
        std_error=((1 / ess - 1 / num_samples) * unbiased).sqrt(),
        ess=ess,
        num_dims=num_observed(pair, data, options["given"], params),
        pareto_k=k,
        bound={size: _cat([bound[size] for bound in bounds]) for size in bounds[0]},
        num_samples=num_samples,
    )


def _checked(draws_of: Iterator[Draws], data: Any, num_samples: int, progress: bool) -> Iterator[Draws]:
    """The draws, each of whose weights is a number below infinity."""
    check_count("num_samples", num_samples)
    total = num_samples * check_batch(data)
    with tqdm(total=total, unit="draw", unit_scale=True, desc="log p(x)", leave=False, disable=not progress) as bar:
        for draws in draws_of:
            bad = ~(draws.log_ratio() < math.inf)
            if bool(bad.any()):
                raise ValueError(_describe(draws, *bad.nonzero()[0].tolist()))
            yield draws
            bar.update(bad[0].numel())


def _describe(draws: Draws, value: int, sample: int, datum: int) -> str:
    """What went wrong in one weight, term by term; `value` is the joint value of the enumerated sites."""
    terms = {"log p(x|z)": draws.log_likelihood}
    terms |= {f"log p({site})": value for site, value in draws.log_prior.items()}
    terms |= {f"log q({site}|x)": value for site, value in draws.log_posterior.items()}
    values = {name: float(term[value, sample, datum]) for name, term in terms.items()}
    found = ", ".join(f"{name} = {found:g}" for name, found in values.items() if not math.isfinite(found))
    weight = float(draws.log_ratio()[value, sample, datum])
    return (
        f"the log importance weight of datum {draws.start + datum} is {weight:g}, because {found}: "
        "check that datum and the weights of the pair"
    )


def _cat(blocks: list[Tensor]) -> Tensor:
    """Values of all data, shape (n,), on the CPU."""
    return torch.cat(blocks).cpu()
