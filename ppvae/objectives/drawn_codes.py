"""What objectives that look at the codes themselves share: the draws z ~ q(z|x) of a minibatch, and of the prior.

    loss = −Σ E_q[log p(x|z)] + n · (weight of KL · KL + penalty(z_1, …, z_n))

The codes of a pair with several continuous latents are joined: a row holds all of a datum. They may come of a `Delta`,
a deterministic encoder: where the KL term has no weight nothing asks for log q(z|x).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from ppvae.objectives.base import Objective
from ppvae.objectives.divergence import Critic, Divergence
from ppvae.objectives.kl import checked_latents, data_size, mean_kl, other_terms, penalty_weights, point_masses
from ppvae.objectives.scheduled import ScheduledObjective, Value
from ppvae.traces import Site, sites


class CodeObjective(ScheduledObjective):
    """Minus the expected log-likelihood, plus KL terms of one weight, plus what the subclass makes of the draws.

    For pairs whose latents are continuous, reparameterized and in the data plate. A subsampled plate scales everything,
    a KL weight (`VAE(beta=...)`, `fit(kl_weight=...)`) the KL terms and the penalty.

    Args:
        values: the numbers of the penalty, by name; those that are schedules move.
        num_particles: draws per datum and step, over which everything is averaged.
        kl_weight: of the KL terms; with 0 they are not computed.
    """

    def __init__(self, values: Mapping[str, Value], num_particles: int, *, kl_weight: float) -> None:
        super().__init__(values, num_particles)
        self.kl_weight = kl_weight

    @abstractmethod
    def _penalty(self, z: Tensor, prior: Callable[[], Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What is made of codes (n, k).

        Args:
            z: one row for each datum.
            prior: gives as many draws of p(z), without gradients.

        Returns:
            The penalty per datum, which a KL weight multiplies; the loss per datum of what else is trained; and what to
            show, per datum, by column; all 0-d.
        """

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss, summed over the batch.

        Raises:
            NotImplementedError: naming a site of the guide that does not go with it.
            ValueError: naming sites whose scales differ, or a minibatch that is too small.
        """
        loss: Any = 0.0
        shown: dict[str, Any] = {}
        for model_trace, guide_trace in self.traces(model, guide, args, kwargs):
            latents = checked_latents(model_trace, guide_trace, objective=type(self).__name__)
            self._check_codes(latents, model_trace, guide_trace)
            total, weights = penalty_weights(latents, model_trace, guide_trace)
            if weights is not None:
                raise NotImplementedError(
                    f"{type(self).__name__} takes the codes of a minibatch as draws of one distribution, and these "
                    "data have scales of their own"
                )
            of_guide = sites(guide_trace)
            n, z = data_size(of_guide[latents[0]]), joined(of_guide[name] for name in latents)
            penalty, other_loss, columns = self._penalty(z, partial(prior_draws, model, latents, args, kwargs))
            if self.kl_weight:
                kl = [mean_kl(name, model_trace, guide_trace).sum() for name in latents]
                penalty = penalty + self.kl_weight * torch.stack(kl).sum()
            loss = loss + total * penalty + n * other_loss - other_terms(model_trace, guide_trace, latents)
            for name, value in columns.items():
                shown[name] = shown.get(name, 0.0) + n * value.detach() / self.num_particles
        for name, value in shown.items():
            self.record(name, value)
        return loss / self.num_particles

    def _check_codes(self, latents: Sequence[str], model_trace: Trace, guide_trace: Trace) -> None:
        """Checks what Pyro's validation does before training: values are read."""
        if not is_validation_enabled():
            return
        called = type(self).__name__
        if masked := [name for name in latents if sites(guide_trace)[name].is_masked]:
            raise NotImplementedError(f"{called} compares whole codes, and a mask leaves elements of {masked} out")
        if self.kl_weight and (points := point_masses(model_trace, guide_trace)):
            raise NotImplementedError(
                f"{called} has a KL term, and the guide gives the latents {points} one value (a Delta), which has "
                "none: use a guide that draws them, or an objective without a KL term (AE, RAE, WAE, AAE)"
            )


class MatchingObjective(CodeObjective):
    """A penalty on how far the codes of a minibatch are from other draws.

    Args:
        divergence: between the codes and these draws.
        weight: of the divergence.
        called: what the argument is that gives the weight.
        column: what the divergence is called in the history.
        kl_weight: of the KL terms.
        num_particles: draws per datum and step.
    """

    mixes_data = True

    def __init__(
        self, divergence: Divergence, weight: Value, num_particles: int, *, called: str, column: str, kl_weight: float
    ) -> None:
        if not callable(divergence) and not isinstance(divergence, Critic):
            raise TypeError(
                f"divergence must be MMD(), Critic(net) or a function of two tensors of draws, got {divergence!r}"
            )
        super().__init__({called: weight}, num_particles, kl_weight=kl_weight)
        self.divergence, self.weight = divergence, weight
        self._called, self._column = called, column
        if isinstance(divergence, Critic) and divergence.steps > 1:
            self.before = (_CriticStep(self),) * (divergence.steps - 1)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The critic's net, as `critic`; without one, none."""
        divergence = self.divergence
        if isinstance(divergence, Critic):
            return {"critic": divergence.net}
        return {"divergence": divergence} if isinstance(divergence, nn.Module) else {}

    @abstractmethod
    def others(self, z: Tensor, prior: Callable[[], Tensor]) -> Tensor:
        """The draws (n, k) that the codes are compared with; see `_penalty` for the arguments."""

    def _penalty(self, z: Tensor, prior: Callable[[], Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        others, weight, divergence = self.others(z, prior), self._values[self._called], self.divergence
        if not isinstance(divergence, Critic):
            distance = divergence(z, others)
            return weight * distance, z.new_zeros(()), {self._column: distance}
        log_ratio, critic_loss = divergence.log_ratio(z), divergence.loss(z, others)
        shown = {self._column: log_ratio.mean(), "critic": critic_loss}
        return weight * divergence.penalty(log_ratio), critic_loss, shown


class _CriticStep(Objective):
    """The critic's loss alone, which its further steps minimise."""

    def __init__(self, objective: MatchingObjective) -> None:
        super().__init__()
        self._objective = objective

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        critic = self._objective.divergence
        assert isinstance(critic, Critic)
        with torch.no_grad():
            drawn = sites(poutine.trace(guide).get_trace(*args, **kwargs))
            latents = [name for name, site in drawn.items() if site.role == "latent"]
            z = joined(drawn[name] for name in latents)
            others = self._objective.others(z, partial(prior_draws, model, latents, args, kwargs))
        return len(z) * critic.loss(z, others)


def joined(of_latents: Iterable[Site]) -> Tensor:
    """The values of some sites side by side, one row for each datum: (n, k)."""
    return torch.cat([_rows(site) for site in of_latents], -1)


def _rows(site: Site) -> Tensor:
    """The value of a site with the datum first, and all that it has of it in one dim."""
    value = site.value.expand(site.fn.shape())
    return value.movedim(value.dim() - 1 - site.event_dim, 0).flatten(1) if value.dim() > 1 else value.unsqueeze(-1)


@torch.no_grad()
def prior_draws(
    model: Callable[..., Any], latents: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Tensor:
    """Draws of the latents from the model itself, one for each datum, (n, k).

    The model runs until the last of them is drawn: no decoder is run, and no batch norm in it sees these draws.

    Args:
        model: the generative model.
        latents: names of its sites, in the order in which they are joined.
        args: of the model.
        kwargs: of the model.
    """
    with poutine.trace() as tracer:
        try:
            with _UntilDrawn(latents):
                model(*args, **kwargs)
        except _Drawn:
            pass
    drawn = sites(tracer.trace)
    return joined(drawn[name] for name in latents)


class _Drawn(Exception):
    """All latents are drawn."""


class _UntilDrawn(Messenger):
    """Stops a model once these sites are drawn."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self._left = set(names)

    def _pyro_post_sample(self, msg: Any) -> None:
        self._left.discard(msg["name"])
        if not self._left:
            raise _Drawn
