"""A part of a datum given, the rest drawn, in a pair that was trained on whole data.

    p(z|x_o) ∝ p(z) p(x_o|z),     p(x_u|x_o) = E p(x_u|z) over p(z|x_o),     log p(x_u|x_o) = log p(x) − log p(x_o)

`PartOf` is the pair of the part: the same story, of whose observed site only what was seen counts. Whatever takes a
pair takes it. Its guide is that of the pair, shown the part alone; or a partial encoder, trained with the decoder as it
is, by the ELBO of the part, or to match the guide of the whole (`PartOf.matching`).

References:
    Conditional image generation by conditioning variational auto-encoders (Harvey et al. 2022), arXiv 2102.12037.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ppvae._validate import check_number, check_tensor
from ppvae.evaluate.adaptive import Adaptive
from ppvae.evaluate.ais import Annealed
from ppvae.evaluate.auto import Auto
from ppvae.evaluate.estimates import LogMarginal
from ppvae.evaluate.estimator import Estimator
from ppvae.evaluate.impute import NUM_PARTICLES, Imputation, impute
from ppvae.evaluate.marginal import estimator_of, log_marginal
from ppvae.inputs import takes_data
from ppvae.observed import of_observed
from ppvae.pair import Pair, check_pair
from ppvae.result import Result


class PartOf(nn.Module):
    """A pair of which a part of the observed site is seen: its arguments are those of the pair, and which part.

    Args:
        pair: a model/guide pair whose observed site is of independent elements, and takes the first argument.
        encoder: c(z | x seen, which), a module `(x, seen) -> distribution` of the one latent, given zeros where nothing
            was seen; None is the guide of the pair, given those.
        site: the observed site, x.
        latent: the latent that the encoder is of.
        fill: what stands in the place of what was not seen; it changes no likelihood.

    Raises:
        TypeError: where `pair` is none, or `encoder` is no module.

    Example:
        >>> import ppvae
        >>> from ppvae.models import PPCA
        >>> part, x = PartOf(PPCA(8, 2)), torch.randn(10, 8)
        >>> seen = torch.arange(8).expand(10, 8) < 5
        >>> ppvae.log_marginal(part, x, seen, num_samples=20).values.shape
        torch.Size([10])
    """

    pair: Any
    encoder: Any

    def __init__(
        self,
        pair: nn.Module,
        encoder: nn.Module | None = None,
        *,
        site: str = "x",
        latent: str = "z",
        fill: float = 0.0,
    ) -> None:
        super().__init__()
        check_pair(pair)
        if encoder is not None and not isinstance(encoder, nn.Module):
            raise TypeError(f"encoder must be a module (x, seen) -> distribution, got {type(encoder).__name__}")
        check_number("fill", fill)
        self.pair, self.encoder = pair, encoder
        self.site, self.latent, self.fill = site, latent, fill

    def model(self, x: Tensor, *rest: Any) -> None:
        """The model of the pair, of whose observed site the elements that were seen count."""
        *others, seen = rest
        with _Seen(self.site, seen):
            self.pair.model(x.masked_fill(~seen, self.fill), *others)

    def guide(self, x: Tensor, *rest: Any) -> None:
        """Z ~ c(z | x seen, which), or the guide of the pair, shown what was seen."""
        *others, seen = rest
        shown = x.masked_fill(~seen, self.fill)
        if self.encoder is None:
            self.pair.guide(shown, *others)
            return
        with pyro.plate("data", len(x)):
            pyro.sample(self.latent, self.encoder(shown, seen))

    def matching(self) -> Pair:
        """The pair with c(z|x_o) as its prior, which trains the encoder on KL(q(z|x) ‖ c(z|x_o)): the "forward" KL.

        Its ELBO is E_q[log p(x|z)] − KL(q(z|x) ‖ c(z|x_o)), of which an encoder alone changes the KL. It covers all
        that the guide of the whole gives, where the ELBO of the part may narrow onto some of it.

        Raises:
            ValueError: where there is no encoder to train.
        """
        if self.encoder is None:
            raise ValueError("encoder must be given: without one there is nothing to train")
        return Pair(self._given_part, self._given_all, modules=[self])

    def _given_part(self, x: Tensor, *rest: Any) -> None:
        """The model of the pair, its latent z ~ c(z | x seen, which)."""
        *others, seen = rest
        with _Prior(self.latent, self.encoder(x.masked_fill(~seen, self.fill), seen)):
            self.pair.model(x, *others)

    def _given_all(self, x: Tensor, *rest: Any) -> None:
        """The guide of the pair, shown all of x."""
        self.pair.guide(x, *rest[:-1])


class _Prior(Messenger):
    """Gives a latent another prior."""

    def __init__(self, latent: str, prior: Any) -> None:
        super().__init__()
        self._latent, self._prior = latent, prior

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self._latent and not msg["is_observed"]:
            msg["fn"] = self._prior


class _Seen(Messenger):
    """Leaves the elements of a site that were not seen out of its log-probability."""

    def __init__(self, site: str, seen: Tensor) -> None:
        super().__init__()
        self._site, self._seen = site, seen

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self._site and msg["is_observed"]:
            msg["fn"] = of_observed(msg["fn"], self._seen)


@dataclass(frozen=True, repr=False)
class Conditional(Result):
    """What a pair says of the rest of each datum, given a part of it.

    Attributes:
        completed: completions, the latents that they were drawn with, and k̂ of their weights.
        of_seen: log p(x_o) of the part.
        of_all: log p(x) of the whole.
    """

    completed: Imputation
    of_seen: LogMarginal
    of_all: LogMarginal

    @property
    def log_prob(self) -> Tensor:
        """Log p(x_u|x_o) of each datum, (n,), nats."""
        return self.of_all.values - self.of_seen.values

    @property
    def std_error(self) -> Tensor:
        """Its standard error, (n,), nats."""
        return (self.of_all.std_error.square() + self.of_seen.std_error.square()).sqrt()

    def summary(self) -> str:
        """The means over the data, and how far the draws are to be trusted."""
        k = self.completed.pareto_k
        return (
            f"log p(rest | part) = {float(self.log_prob.mean()):.3f} nats, of log p(x) = "
            f"{float(self.of_all.values.mean()):.3f}, mean over {len(self.log_prob)} data; standard error per datum: "
            f"median {float(self.std_error.median()):.3f}; k̂ of the completions > 0.7 for {int((k > 0.7).sum())}"
        )


@takes_data
def condition(
    pair: nn.Module,
    *data: Any,
    num_samples: int = 100,
    num_particles: int = NUM_PARTICLES,
    method: str | Estimator = "importance",
    seed: int = 0,
) -> Conditional:
    """The rest of each datum given a part of it: draws, and log p(x_u|x_o).

    Args:
        pair: a `PartOf`; or any pair, which is then `PartOf(pair)`.
        data: the arguments of the pair, the observed one first and complete, and last which of its elements are seen,
            boolean, of its shape. Where the rest is not known, `impute` draws it.
        num_samples: s, completions of each datum.
        num_particles: draws from the guide for each datum, among which s are drawn by their weights.
        method: the estimator of both log marginals, as of `ppvae.log_marginal`; "importance" takes `num_particles`.
            With "adaptive", "annealed" and "auto" the completions owe nothing to the guide either: they are drawn from
            proposals fitted to each datum (`impute`).
        seed: of the draws; the global random state is left alone.

    Returns:
        The completions and the log marginals, on the CPU.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the pair or the data break the contract, or no part is given.

    Example:
        >>> from ppvae.models import PPCA
        >>> x = torch.randn(10, 8)
        >>> found = condition(PPCA(8, 2), x, torch.arange(8).expand(10, 8) < 5, num_samples=5, num_particles=100)
        >>> found.completed.draws.shape, found.completed.latents["z"].shape, found.log_prob.shape
        (torch.Size([5, 10, 8]), torch.Size([5, 10, 2]), torch.Size([10]))
    """
    seen = check_tensor("seen", data[-1]) if len(data) > 1 else None
    if seen is None or seen.dtype != torch.bool or seen.shape != data[0].shape:
        got = "nothing" if seen is None else f"{seen.dtype} of shape {tuple(seen.shape)}"
        raise ValueError(f"the last argument must say which elements of the first are seen, boolean, got {got}")
    part = pair if isinstance(pair, PartOf) else PartOf(pair)
    count = num_particles if isinstance(method, str) and method == "importance" else None
    of_seen, of_all = (
        log_marginal(part, *data[:-1], which, method=method, num_samples=count, seed=seed)
        for which in (seen, torch.ones_like(seen))
    )
    fitted = isinstance(estimator_of(method), Adaptive | Annealed | Auto)
    drawn = impute(
        part,
        *data,
        num_samples=num_samples,
        num_particles=num_particles,
        site=part.site,
        method="adaptive" if fitted else "importance",
        seed=seed,
    )
    return Conditional(drawn, of_seen, of_all)
