"""Objectives: the base class of ours, and how any of Pyro's is evaluated for a step.

A step knows the traces behind its loss, and reads nothing from the device.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from pyro.infer import (
    ELBO,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    Trace_ELBO,
)
from pyro.infer.enum import get_importance_trace
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from ppvae._internals import announce, loss_of_particle, refuses_constant, traces_of
from ppvae.objectives.step_terms import StepTerms, elbo_terms, loss_terms
from ppvae.traces import sites

Traces = list[tuple[Trace, Trace]]
"""The (model, guide) traces of one step, a pair for each particle."""

_COMPILED = (JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO, JitTraceMeanField_ELBO)


@dataclass(frozen=True)
class Evaluation:
    """An objective on a minibatch.

    Attributes:
        loss: its value, detached.
        surrogate: what to differentiate in its place; None where Pyro has added the gradient to the parameters itself.
        traces: of the pair, as far as the objective gives them.
        num_particles: over which they are averaged.
        columns: what the objective itself recorded for the history.
        parts: of an objective over several data sets, the weight and the evaluation of each.
        num_data: how many data it was given; None where its arguments do not say.
        losses: of an objective that is several, each.
    """

    loss: Tensor
    surrogate: Tensor | None
    traces: Traces = field(default_factory=list)
    num_particles: int = 1
    columns: dict[str, Tensor] = field(default_factory=dict)
    parts: list[tuple[float, Evaluation]] = field(default_factory=list)
    num_data: int | None = None
    losses: tuple[Tensor, ...] = ()

    def terms(self) -> StepTerms:
        """The terms of the loss; of several data sets, those that the user named, weighted as they are in it.

        Where a plate takes a random part of the data that it is given, or of what a datum has, they are estimates for
        the whole, as the loss is.

        Raises:
            ValueError: where two of these have one name.
        """
        read = [(sites(model_trace), sites(guide_trace)) for model_trace, guide_trace in self.traces]
        columns = loss_terms(read, self.num_particles, self.num_data)
        if twice := columns.keys() & self.columns.keys():
            raise ValueError(f"{min(twice)!r} is recorded by the objective, and is a loss_term of the pair: rename one")
        columns |= self.columns
        for weight, part in self.parts:
            for name, value in part.terms().columns.items():
                columns[name] = columns.get(name, 0.0) + weight * value
        return StepTerms(self.loss, *elbo_terms(read, self.num_particles, self.num_data), columns, self.losses)

    def all_traces(self) -> Traces:
        """The traces of all data sets."""
        return [*self.traces, *(trace for _, part in self.parts for trace in part.all_traces())]


@dataclass(frozen=True)
class LossAndGrads:
    """An objective as two functions of model, guide and their arguments, as `pyro.infer.SVI` takes it.

    Attributes:
        loss: its value.
        loss_and_grads: the same; it adds the gradient to the parameters itself.
    """

    loss: Callable[..., Any]
    loss_and_grads: Callable[..., Any]


def differentiated(loss: Callable[..., Any]) -> Callable[..., Any]:
    """What a function `(model, guide, *args) -> differentiable loss` returns, its gradient added to the parameters."""

    def loss_and_grads(*args: Any, **kwargs: Any) -> Any:
        value = loss(*args, **kwargs)
        if getattr(value, "requires_grad", False):
            value.backward(retain_graph=True)
        return value

    return loss_and_grads


def as_number(result: StepTerms | Evaluation) -> float | tuple[float, ...]:
    """The loss as `pyro.infer.SVI` returns it: of an objective that is several, each."""
    return tuple(map(float, result.losses)) or float(result.loss)


def reaches_nothing(objective: Any, parameters: Iterable[tuple[str, Tensor]]) -> str:
    """What is wrong with a loss that has no gradient, as a message."""
    return (
        f"loss {type(objective).__name__} depends on none of the parameters {[name for name, _ in parameters]}: "
        "is it a constant, or is something detached, or computed under torch.no_grad(), on the way to it?"
    )


class Objective(ELBO):
    """What training minimises, for anyone to subclass: a `differentiable_loss`, and what else it may need.

    An instance works wherever a Pyro ELBO does: `ppvae.fit(loss=...)`, `ppvae.SVI`, `pyro.infer.SVI`.

    - `networks`: every `nn.Module` among its attributes (a critic) is trained with the pair in the same step, moved to
      its device, and kept in checkpoints. Its parameters are called `objective.<attribute>.<name>` where
      `param_groups` asks for names, e.g. `{"objective.critic.*": {"lr": 1e-4}}`.
    - `record(name, value)` shows a term in the history.
    - `mixes_data`: whether the loss is more than a sum over the data (a distance between all codes of a minibatch, a
      nonlinear function of its mean KL), so that many processes cannot each take a part of a minibatch.
    - `before`: objectives of which SVI takes a step each, on the same minibatch, before every step of this one.
    - `set_time(epoch)` is called before every step of `ppvae.fit`: what a schedule gives is written there into tensors,
      in place, so that a compiled step sees it.
    - `set_data(num_data)` is called once before training, with what the minibatches are a part of.

    Args:
        num_particles: draws per datum and step.
        retain_graph: as of a Pyro ELBO.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.models import PPCA
        >>> from ppvae.traces import sites
        >>> class NoisyELBO(Objective):
        ...     def differentiable_loss(self, model, guide, *args, **kwargs):
        ...         ((model_trace, guide_trace),) = self.traces(model, guide, args, kwargs)
        ...         size = sites(guide_trace)["z"].value.pow(2).sum()
        ...         self.record("size", size)
        ...         return guide_trace.log_prob_sum() - model_trace.log_prob_sum() + 0.1 * size
        >>> run = ppvae.fit(PPCA(8, 2), torch.randn(100, 8), loss=NoisyELBO(), epochs=1, progress=False)
        >>> "size" in run.history[0]
        True
    """

    before: Sequence[Objective] = ()
    mixes_data: bool = False

    def __init__(self, *, num_particles: int = 1, retain_graph: bool | None = None) -> None:
        super().__init__(num_particles=num_particles, retain_graph=retain_graph)
        self._traces: Traces = []
        self._columns: dict[str, Tensor] = {}

    @abstractmethod
    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss, a 0-d tensor, summed over the batch; its gradient is the estimator's."""

    def set_time(self, epoch: float, device: torch.device | None = None) -> None:
        """Sets what depends on the time.

        Args:
            epoch: the time in epochs.
            device: where the values are to lie.
        """

    def set_data(self, *num_data: int | None) -> None:
        """Hears how many data there are, of several sets in each; None where the source cannot tell."""

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The modules among the attributes, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, nn.Module)}

    def traces(self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any) -> Traces:
        """Runs guide and model once for each particle, scored; the history shows their terms."""
        self._traces = list(traces_of(self, model, guide, args, kwargs))
        return self._traces

    def record(self, name: str, value: Tensor) -> None:
        """Shows a value in the history under this name.

        Args:
            name: of the column.
            value: 0-d, summed over the batch as the loss is; its gradient is not followed.

        Raises:
            TypeError: where the value is no such tensor.
        """
        if not isinstance(value, Tensor) or value.dim():
            got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(
                f"the value of record({name!r}, ...) must be a 0-d tensor, summed over the batch, got {got}"
            )
        self._columns[name] = value.detach().clone()  # a parameter is another after the step

    def evaluate(self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any) -> Evaluation:
        """The loss with its traces and what was recorded."""
        self._traces, self._columns = [], {}
        try:
            with torch.enable_grad():  # what it is made of may be Pyro's, which refuses what has no gradient
                loss = self.differentiable_loss(model, guide, *args, **kwargs)
            return Evaluation(loss.detach(), loss, self._traces, self.num_particles, self._columns)
        finally:
            self._traces, self._columns = [], {}  # nothing of a step stays on the objective

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """The same as a number, without gradients."""
        with torch.no_grad():
            return float(self.evaluate(model, guide, args, kwargs).loss)

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """The same, its gradient added to the parameters: what `pyro.infer.SVI` calls, to train what it hears of."""
        for network_name, network in self.networks.items():
            for name, parameter in network.named_parameters():
                announce(f"objective.{network_name}.{name}", parameter)
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        self._traces, self._columns = [], {}
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return float(loss.detach())

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)


def evaluate_objective(
    objective: Any, model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Evaluation:
    """Runs the pair and computes the loss.

    Args:
        objective: a Pyro ELBO, one of ours, or a function `(model, guide, *args) -> differentiable loss`.
        model: the generative model.
        guide: the variational posterior.
        args: of both.
        kwargs: of both.
    """
    sizes = {len(a) for a in args if isinstance(a, Tensor) and a.dim()}
    result = _evaluated(objective, model, guide, args, kwargs)
    return replace(result, num_data=sizes.pop()) if len(sizes) == 1 else result


def _evaluated(
    objective: Any, model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Evaluation:
    if isinstance(objective, LossAndGrads):
        function = objective.loss_and_grads if torch.is_grad_enabled() else objective.loss
        return _gradient_added(function(model, guide, *args, **kwargs))
    if not isinstance(objective, ELBO):
        with torch.enable_grad():  # Pyro's `differentiable_loss`, of which it may be made, refuses what has no gradient
            loss = torch.as_tensor(objective(model, guide, *args, **kwargs))
        return Evaluation(loss.detach(), loss)
    if isinstance(objective, Objective):
        return objective.evaluate(model, guide, args, kwargs)
    recording, particles = _recording(objective), objective.num_particles
    own = _is_of_the_user(objective, "loss_and_grads" if torch.is_grad_enabled() else "loss")
    if not own and getattr(type(recording), "differentiable_loss", None) is Trace_ELBO.differentiable_loss:
        return Evaluation(*_trace_elbo(recording, model, guide, args, kwargs), recording.traces, particles)
    if not torch.is_grad_enabled():
        return _gradient_added(recording.loss(model, guide, *args, **kwargs), recording.traces, particles)
    if not own and hasattr(recording, "differentiable_loss"):
        loss = _differentiable_loss(recording, model, guide, args, kwargs)
        return Evaluation(loss.detach(), loss, recording.traces, particles)
    return _gradient_added(recording.loss_and_grads(model, guide, *args, **kwargs), recording.traces, particles)


def _is_of_the_user(objective: ELBO, name: str) -> bool:
    """Whether the user's own class has this method, which Pyro's SVI calls, and no `differentiable_loss` beside it."""
    defined = next(vars(kind) for kind in type(objective).__mro__ if {name, "differentiable_loss"} & vars(kind).keys())
    library = getattr(defined.get(name), "__module__", "pyro").split(".")[0] == "pyro"
    return "differentiable_loss" not in defined and not library


def _differentiable_loss(recording: Any, model: Any, guide: Any, args: Any, kwargs: Any) -> Tensor:
    """The loss of an ELBO of Pyro's; also one without a gradient, which `TraceEnum_ELBO` refuses and a step takes."""
    try:
        return torch.as_tensor(recording.differentiable_loss(model, guide, *args, **kwargs))
    except ValueError as error:
        if not refuses_constant(error):
            raise
        recording.replays = True  # the traces that it was computed from
        return torch.as_tensor(recording.loss(model, guide, *args, **kwargs))


def networks_of(objective: Any, *, beside: Iterable[nn.Module] = ()) -> dict[str, nn.Module]:
    """The modules that an objective brings along; none of Pyro's does.

    Args:
        objective: of any kind.
        beside: modules whose own an objective may know: the pair, or a part of it, is none that it brings.
    """
    known = {id(module) for root in beside for module in root.modules()}
    networks = objective.networks if isinstance(objective, Objective) else {}
    return {name: network for name, network in networks.items() if id(network) not in known}


def _gradient_added(loss: Any, traces: Traces | None = None, num_particles: int = 1) -> Evaluation:
    """Of a loss as Pyro returns it when it has added the gradient; `ReweightedWakeSleep` returns several."""
    losses = tuple(map(_as_tensor, loss)) if isinstance(loss, tuple) else ()
    total = torch.stack(losses).sum() if losses else _as_tensor(loss)
    return Evaluation(total, None, traces or [], num_particles, losses=losses)


def _as_tensor(loss: Any) -> Tensor:
    """A loss as Pyro returns it, in full precision."""
    return loss.detach() if isinstance(loss, Tensor) else torch.tensor(loss, dtype=torch.float64)


def _recording(objective: ELBO) -> Any:
    """A Pyro ELBO of the same attributes that also keeps the (model, guide) traces which it computes from.

    What its methods set is set on the objective. Of a `Jit…_ELBO` it is the ELBO that is compiled there: torch.jit
    hides the traces, and is deprecated.
    """
    kind = type(objective)
    recording_kind = _recording_kind(kind.__base__ if kind in _COMPILED else kind)
    recording = recording_kind.__new__(recording_kind)
    recording.__dict__, recording.traces, recording.replays = vars(objective), [], False
    return recording


@cache
def _recording_kind(elbo: Any) -> Any:
    class Recording(elbo):
        __slots__ = ("replays", "traces")  # beside the attributes, which are the objective's

        def _get_traces(self, *args: Any) -> Iterator[tuple[Trace, Trace]]:
            if self.replays:
                yield from self.traces
                return
            for model_trace, guide_trace in super()._get_traces(*args):
                # Some ELBOs take no gradient where they see no parameter, and a module announces none.
                model_trace.add_node("_trained_by_ppvae", type="param", name="_trained_by_ppvae", value=None)
                self.traces.append((model_trace, guide_trace))
                yield model_trace, guide_trace

    return Recording


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
    for model_trace, guide_trace in traces_of(objective, model, guide, args, kwargs):
        with _ItemsStay():
            terms = loss_of_particle(objective, model_trace, guide_trace)
        loss = loss + terms[0] / objective.num_particles
        surrogate = surrogate + terms[1] / objective.num_particles
    return torch.as_tensor(loss).detach(), torch.as_tensor(surrogate)
