"""The step of stochastic variational inference: a pair, a Pyro ELBO and one torch optimizer.

`SVI` stands in for `pyro.infer.SVI`. It computes Pyro's own losses from Pyro's own traces, but updates all
parameters with one (fused) optimizer in place of one per tensor, and leaves the loss on the device.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO, JitTrace_ELBO, Trace_ELBO
from pyro.optim import PyroOptim
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from ppvae.infer.nonfinite import NonFiniteError, check_finite
from ppvae.pair import sample_sites
from ppvae.params import local_params, module_local

OptimizerFactory = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
"""From parameters to a torch optimizer, e.g. `partial(torch.optim.Adam, lr=1e-3)`."""


@dataclass(frozen=True)
class StepTerms:
    """One step's loss and the unscaled terms of its ELBO, each a 0-d tensor, summed over the batch, in nats.

    Attributes:
        loss: what was minimised, with its scales (KL weight).
        reconstruction: Σ E_q[log p(x|z)] over the observed sites; None where a latent is enumerated.
        kl: for each latent site, Σ E_q[log q(z|x) − log p(z)], by the samples that the step drew.
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


class _ItemsStay(torch.overrides.TorchFunctionMode):
    """Lets `Tensor.item` return the detached tensor: Pyro reads a number per site, and each would sync a GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.item:
            return args[0].detach()
        return func(*args, **(kwargs or {}))


_TRACE_ELBO_LOSSES = (Trace_ELBO.differentiable_loss, JitTrace_ELBO.differentiable_loss)


class SVI:
    """Stochastic variational inference, a drop-in for `pyro.infer.SVI`.

    Trains the parameters of the modules that `model` and `guide` belong to (or are), and whatever
    `pyro.module`, `pyro.param` and lazily created guides register. For two methods of one module those live
    on the module; for plain functions they live in Pyro's parameter store, as Pyro's users expect.

    Args:
        model: the generative model.
        guide: the variational posterior.
        optim: a function from parameters to a torch optimizer, or a `pyro.optim` object.
        loss: any Pyro ELBO object, or a function `(model, guide, *args) -> differentiable loss`.
        clip_norm: the gradient is scaled down to this global norm where it is longer.

    Example:
        >>> from functools import partial
        >>> import torch
        >>> from pyro.infer import Trace_ELBO
        >>> from ppvae.infer import SVI
        >>> from ppvae.models import PPCA
        >>> pair = PPCA(8, 2)
        >>> svi = SVI(pair.model, pair.guide, partial(torch.optim.Adam, lr=1e-2), Trace_ELBO())
        >>> loss = svi.step(torch.randn(100, 8))
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: OptimizerFactory | PyroOptim,
        loss: ELBO | Callable[..., Tensor],
        *,
        clip_norm: float | None = None,
    ) -> None:
        if not callable(optim):
            raise TypeError(f"optim must be a function from parameters to an optimizer, got {optim!r}")
        if not (isinstance(loss, ELBO) or callable(loss)):
            raise TypeError(f"loss must be a pyro.infer ELBO object or a function, got {loss!r}")
        self.model = model
        self.guide = guide
        self.loss = loss
        self.clip_norm = clip_norm
        self.optim = _one_optimizer(optim)
        self.optimizer: torch.optim.Optimizer | None = None
        self._owners = _owners(model, guide)
        self._met: dict[int, Tensor] = {}
        self._parameters: list[Tensor] = []

    def step(self, *args: Any) -> float:
        """Takes one gradient step and returns the loss: summed over the batch, as Pyro's is."""
        with self.running():
            return float(self.update(*args).loss)

    def evaluate_loss(self, *args: Any) -> float:
        """The loss on `args`, without a step."""
        with self.running(), torch.no_grad():
            loss, _ = self._loss(args, weight=None)
            return float(loss)

    def running(self) -> Any:
        """Context in which the pair's parameters live on its module; `update` must run inside."""
        return local_params(self._owners[0]) if len(self._owners) == 1 else module_local(*self._owners)

    def update(self, *args: Any, weight: float | None = None, check: bool = False) -> StepTerms:
        """Takes one gradient step; nothing is read back from the device.

        Args:
            args: the batch.
            weight: multiplies the loss before the gradient is taken, e.g. 1/n for the mean over a batch.
            check: stop before the step where a site or a gradient is not finite (reads from the device).

        Returns:
            The terms of the loss, unweighted.

        Raises:
            NonFiniteError: with `check`, naming the first non-finite site or parameter.
        """
        loss, traces = self._loss(args, weight)
        parameters = self.parameters()
        if check:
            self._check_finite(traces)
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        self._step(parameters)
        particles = getattr(self.loss, "num_particles", 1)
        return StepTerms(loss, *_elbo_terms(traces, particles))

    def parameters(self) -> list[Tensor]:
        """The tensors that are trained, in a fixed order."""
        if not self._parameters:
            owned = {id(p): p for owner in self._owners for p in owner.parameters() if p.requires_grad}
            self._parameters = list((owned | self._met).values())
        return self._parameters

    def setup(self, *args: Any) -> None:
        """Runs the pair once on a batch, so that parameters created at first use exist, and makes the optimizer."""
        with torch.no_grad(), pyro.poutine.trace(param_only=True) as params:
            guide_trace = pyro.poutine.trace(self.guide).get_trace(*args)
            pyro.poutine.replay(self.model, trace=guide_trace)(*args)
        self._remember(params.trace)
        if not isinstance(self.optim, PyroOptim):
            self.optimizer = self.optim(self.parameters())

    def _loss(self, args: tuple[Any, ...], weight: float | None) -> tuple[Tensor, list[tuple[Trace, Trace]]]:
        """The loss, with its gradient added to the parameters where gradients are on, and its traces."""
        traces: list[tuple[Trace, Trace]] = []
        with pyro.poutine.trace(param_only=True) as params:
            loss = self._pyro_loss(_recording(self.loss, traces), args, weight)
        self._remember(params.trace)
        return loss, traces

    def _pyro_loss(self, objective: Any, args: tuple[Any, ...], weight: float | None) -> Tensor:
        if getattr(type(objective), "differentiable_loss", None) in _TRACE_ELBO_LOSSES:
            loss, surrogate = _trace_elbo(objective, self.model, self.guide, args)
        elif not isinstance(objective, ELBO):
            loss = surrogate = objective(self.model, self.guide, *args)
        elif hasattr(objective, "differentiable_loss"):
            loss = surrogate = objective.differentiable_loss(self.model, self.guide, *args)
        elif not torch.is_grad_enabled():
            return torch.as_tensor(objective.loss(self.model, self.guide, *args))
        else:  # an ELBO that can only do both at once, as RenyiELBO
            loss = torch.as_tensor(objective.loss_and_grads(self._announcing_model(), self.guide, *args))
            if weight is not None:
                torch._foreach_mul_([p.grad for p in self.parameters() if p.grad is not None], weight)
            return loss
        if torch.is_grad_enabled() and surrogate.requires_grad:
            (surrogate if weight is None else surrogate * weight).backward()
        return loss.detach()

    def _announcing_model(self) -> Callable[..., Any]:
        """The model, announcing its modules to Pyro: some ELBOs take no gradient where they see no parameter."""

        def model(*args: Any) -> Any:
            for i, owner in enumerate(self._owners):
                pyro.module(f"owner{i}", owner)
            return self.model(*args)

        return model

    def _remember(self, trace: Trace) -> None:
        """Notes the parameters that Pyro statements met; one met for the first time joins the optimizer."""
        for site in trace.nodes.values():
            value = site["value"]
            parameter = value.unconstrained() if hasattr(value, "unconstrained") else value
            if parameter.requires_grad and parameter.is_leaf and id(parameter) not in self._met:
                self._met[id(parameter)] = parameter
                self._parameters = []
                if self.optimizer is not None and not self._in_optimizer(parameter):
                    self.optimizer.add_param_group({"params": [parameter]})

    def _in_optimizer(self, parameter: Tensor) -> bool:
        assert self.optimizer is not None
        return any(parameter is p for group in self.optimizer.param_groups for p in group["params"])

    def _step(self, parameters: list[Tensor]) -> None:
        if isinstance(self.optim, PyroOptim):
            self.optim(parameters)
            pyro.infer.util.zero_grads(parameters)
            return
        if self.optimizer is None:
            self.optimizer = self.optim(parameters)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _check_finite(self, traces: list[tuple[Trace, Trace]]) -> None:
        named = [entry for owner in self._owners for entry in owner.named_parameters()]
        try:
            check_finite(traces, ((name, p.grad) for name, p in named if p.grad is not None))
        except NonFiniteError:
            for parameter in self.parameters():
                parameter.grad = None
            raise


def _owners(model: Callable[..., Any], guide: Callable[..., Any]) -> list[nn.Module]:
    """The modules that model and guide are, or are methods of, without repeats."""
    candidates = [f if isinstance(f, nn.Module) else getattr(f, "__self__", None) for f in (model, guide)]
    return list({id(m): m for m in candidates if isinstance(m, nn.Module)}.values())


def _one_optimizer(optim: Any) -> Any:
    """A plain `pyro.optim` object as one torch optimizer; one with schedules, clipping or a function as it is."""
    if type(optim) is PyroOptim and isinstance(optim.pt_optim_args, dict) and optim.pt_clip_args is None:
        return partial(optim.pt_optim_constructor, **optim.pt_optim_args)
    return optim


def _recording(loss: Any, traces: list[tuple[Trace, Trace]]) -> Any:
    """A shallow copy of a Pyro ELBO that also keeps the (model, guide) traces which it computes from."""
    if not isinstance(loss, ELBO):
        return loss
    recording = copy.copy(loss)

    def get_traces(*args: Any) -> Iterator[tuple[Trace, Trace]]:
        for pair_of_traces in loss._get_traces(*args):
            traces.append(pair_of_traces)
            yield pair_of_traces

    recording._get_traces = get_traces
    return recording


def _trace_elbo(
    objective: Any, model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...]
) -> tuple[Tensor, Tensor]:
    """Loss and surrogate of a `Trace_ELBO`, as its `differentiable_loss`, without reading from the device."""
    loss, surrogate = 0.0, 0.0
    for model_trace, guide_trace in objective._get_traces(model, guide, args, {}):
        with _ItemsStay():
            terms = objective._differentiable_loss_particle(model_trace, guide_trace)
        loss = loss + terms[0] / objective.num_particles
        surrogate = surrogate + terms[1] / objective.num_particles
    return torch.as_tensor(loss), torch.as_tensor(surrogate)


@torch.no_grad()
def _elbo_terms(traces: list[tuple[Trace, Trace]], num_particles: int) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Reconstruction and KL per latent site of the drawn samples, unscaled, averaged over the particles."""
    reconstruction: Any = 0.0
    kl: dict[str, Any] = {}
    for model_trace, guide_trace in traces:
        if any("_enumerate_dim" in s["infer"] for t in (model_trace, guide_trace) for _, s in sample_sites(t)):
            return None, {}
        guide_sites = dict(sample_sites(guide_trace))
        for name, site in sample_sites(model_trace):
            log_p = _unscaled_sum(site) / num_particles
            if site["is_observed"]:
                reconstruction = reconstruction + log_p
            else:
                log_q = _unscaled_sum(guide_sites[name]) / num_particles
                kl[name] = kl.get(name, 0.0) + (log_q - log_p)
    return torch.as_tensor(reconstruction) if traces else None, kl


def _unscaled_sum(site: Any) -> Any:
    """Σ log-probability of a site over the batch without its scale, reusing Pyro's own sum where there is none."""
    if isinstance(site["scale"], float) and site["scale"] == 1.0:
        return site["log_prob_sum"]
    return scale_and_mask(site["unscaled_log_prob"], mask=site["mask"]).sum()
