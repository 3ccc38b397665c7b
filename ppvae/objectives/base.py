"""Objectives: the ELBO of several data sets, and Pyro's ELBO objects evaluated for a step.

A step knows the traces behind its loss, and reads nothing from the device.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer import (
    ELBO,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    Trace_ELBO,
)
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ppvae.traces import is_objective_only, latent_of, sample_sites

Traces = list[tuple[Trace, Trace]]
"""The (model, guide) traces of one step, a pair for each particle."""


_COMPILED = (JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO, JitTraceMeanField_ELBO)


@dataclass(frozen=True)
class StepTerms:
    """One step's loss and the unscaled terms of its ELBO, each a 0-d tensor, summed over the batch, in nats.

    Attributes:
        loss: what was minimised, with its scales (KL weight).
        reconstruction: Σ E_q[log p(x|z)] over the observed sites; None where a latent is enumerated.
        kl: for each latent site, Σ E_q[log q(z|x) − log p(z)], by the samples that the step drew; auxiliary
            sites of the guide have no log p.
    """

    loss: Tensor
    reconstruction: Tensor | None
    kl: dict[str, Tensor]

    def named(self) -> dict[str, Tensor]:
        """The terms by column name: `loss`, `reconstruction`, `kl_<site>`."""
        terms = {"loss": self.loss}
        if self.reconstruction is not None:
            terms["reconstruction"] = self.reconstruction
        return terms | {f"kl_{site}": value for site, value in self.kl.items()}

    @classmethod
    def of(cls, named: dict[str, Tensor]) -> StepTerms:
        """The terms that have these names."""
        kl = {name.removeprefix("kl_"): value for name, value in named.items() if name.startswith("kl_")}
        return cls(named["loss"], named.get("reconstruction"), kl)


class Objective(ELBO):
    """An objective that says what is differentiated, and works wherever a Pyro ELBO does."""

    @abstractmethod
    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss, summed over the batch; its gradient is the estimator's."""

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """The same as a number, without gradients."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """The same, its gradient added to the parameters: what `pyro.infer.SVI` calls."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return float(loss.detach())


def evaluate_objective(
    objective: Any, model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor | None, Traces]:
    """Runs the pair and computes the loss.

    Args:
        objective: a Pyro ELBO, or a function `(model, guide, *args) -> differentiable loss`.
        model: the generative model.
        guide: the variational posterior.
        args: of both.
        kwargs: of both.

    Returns:
        The loss, detached; what to differentiate in its place, or None where Pyro has added the gradient to the
        parameters itself; the traces, as far as Pyro gives them.
    """
    if not isinstance(objective, ELBO):
        loss = torch.as_tensor(objective(model, guide, *args, **kwargs))
        return loss.detach(), loss, []
    from ppvae.objectives.joint import JointELBO, _joint_elbo

    if isinstance(objective, JointELBO):
        return _joint_elbo(objective, model, guide, args, kwargs)
    traces: Traces = []
    recording = _recording(objective, traces)
    if getattr(type(recording), "differentiable_loss", None) is Trace_ELBO.differentiable_loss:
        return *_trace_elbo(recording, model, guide, args, kwargs), traces
    if not torch.is_grad_enabled():
        return _as_tensor(recording.loss(model, guide, *args, **kwargs)), None, traces
    if hasattr(recording, "differentiable_loss"):
        loss = recording.differentiable_loss(model, guide, *args, **kwargs)
        return loss.detach(), loss, traces
    return _as_tensor(recording.loss_and_grads(model, guide, *args, **kwargs)), None, traces


def _as_tensor(loss: Any) -> Tensor:
    """A loss as Pyro returns it, in full precision; of several (ReweightedWakeSleep), their sum."""
    total = sum(loss) if isinstance(loss, tuple) else loss
    return total.detach() if isinstance(total, Tensor) else torch.tensor(total, dtype=torch.float64)


def _recording(objective: ELBO, traces: Traces) -> Any:
    """A shallow copy of a Pyro ELBO that also keeps the (model, guide) traces which it computes from.

    The copy of a `Jit…_ELBO` is the ELBO that it compiles: torch.jit hides the traces, and is deprecated.
    """
    recording: Any = copy.copy(objective)
    if isinstance(objective, _COMPILED):
        recording.__class__ = type(objective).__base__

    def get_traces(*args: Any) -> Iterator[tuple[Trace, Trace]]:
        for model_trace, guide_trace in objective._get_traces(*args):  # which may note a plate nesting on itself
            # Some ELBOs take no gradient where they see no parameter, and a module announces none.
            model_trace.add_node("_trained_by_ppvae", type="param", name="_trained_by_ppvae", value=None)
            traces.append((model_trace, guide_trace))
            yield model_trace, guide_trace

    recording._get_traces = get_traces
    return recording


class _ItemsStay(torch.overrides.TorchFunctionMode):
    """Lets `Tensor.item` return the detached tensor: Pyro reads a number per site, and each would sync a GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.item:
            return args[0].detach()
        return func(*args, **(kwargs or {}))


def _trace_elbo(
    objective: Any, model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Loss and surrogate of a `Trace_ELBO`, as its `differentiable_loss`, without reading from the device."""
    loss, surrogate = 0.0, 0.0
    for model_trace, guide_trace in objective._get_traces(model, guide, args, kwargs):
        with _ItemsStay():
            terms = objective._differentiable_loss_particle(model_trace, guide_trace)
        loss = loss + terms[0] / objective.num_particles
        surrogate = surrogate + terms[1] / objective.num_particles
    return torch.as_tensor(loss).detach(), torch.as_tensor(surrogate)


@torch.no_grad()
def elbo_terms(objective: Any, traces: Traces) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Reconstruction and KL per latent site of the drawn samples, unscaled, averaged over the particles.

    None and nothing where a latent is enumerated, or where the traces are of several data sets.
    """
    from ppvae.objectives.joint import JointELBO

    if isinstance(objective, JointELBO):
        return None, {}
    num_particles = getattr(objective, "num_particles", 1)
    reconstruction: Any = 0.0
    kl: dict[str, Any] = {}
    for model_trace, guide_trace in traces:
        share = _share(model_trace)
        sites = [(1, *site) for site in sample_sites(model_trace)] + [(-1, *site) for site in sample_sites(guide_trace)]
        for sign, name, site in sites:
            if "_enumerate_dim" in site["infer"] or "_enum_total" in site["infer"]:
                return None, {}
            if not site["is_observed"]:
                name = latent_of(name, kl)
                part = 1.0 if any(_is_data_plate(frame) for frame in site["cond_indep_stack"]) else share
                kl[name] = kl.get(name, 0.0) - sign * part * _unscaled_sum(site) / num_particles
            elif sign == 1 and not is_objective_only(site):
                reconstruction = reconstruction + _unscaled_sum(site) / num_particles
    return torch.as_tensor(reconstruction) if traces else None, {z: torch.as_tensor(value) for z, value in kl.items()}


def _share(model_trace: Trace) -> float:
    """Which part of all data a minibatch is, where a subsampled data plate says so: it has that much of a global KL."""
    frames = [f for _, site in sample_sites(model_trace) for f in site["cond_indep_stack"] if _is_data_plate(f)]
    return min((frame.size / frame.full_size for frame in frames if frame.full_size), default=1.0)


def _is_data_plate(frame: Any) -> bool:
    return bool(frame.vectorized and frame.dim == -1)


def _unscaled_sum(site: Any) -> Any:
    """Σ log-probability of a site over the batch without its scale, reusing Pyro's own sum where there is none."""
    if isinstance(site["scale"], float) and site["scale"] == 1.0:
        return site["log_prob_sum"]
    return scale_and_mask(site["unscaled_log_prob"], mask=site["mask"]).sum()
