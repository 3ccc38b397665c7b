"""The step of stochastic variational inference: a pair, a Pyro ELBO and one torch optimizer.

`SVI` stands in for `pyro.infer.SVI`. It computes Pyro's own losses from Pyro's own traces, but updates all
parameters with one (fused) optimizer in place of one per tensor, and leaves the loss on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import isfinite
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from pyro.infer.abstract_infer import TracePosterior
from pyro.optim import PyroOptim
from pyro.poutine.trace_struct import Trace
from pyro.util import warn_if_nan
from torch import Tensor, nn

from ppvae._internals import StoreContents, gradient_hooks_off
from ppvae._validate import check_autocast
from ppvae.compile.compiled import Compiled
from ppvae.compile.guards import Contents, Same, check_no_buffers, fingerprint, has_code_of_the_user, modules_that_run
from ppvae.compile.policy import Compile, check_compile, repays
from ppvae.compile.stored import check_computed
from ppvae.compile.verification import Label
from ppvae.infer.compiled_step import StepFromOutputs
from ppvae.infer.nonfinite import NonFiniteError, check_finite
from ppvae.infer.optim import OnGradients, OptimizerFactory, ParamGroups, Stepper
from ppvae.isolation import check_trainable, one_at_a_time
from ppvae.loans import users_store
from ppvae.objectives.base import (
    Evaluation,
    LossAndGrads,
    Traces,
    as_number,
    differentiated,
    evaluate_objective,
    networks_of,
    reaches_nothing,
)
from ppvae.objectives.step_terms import StepTerms
from ppvae.pair import Batch, owner_of
from ppvae.params import BASELINES, LocalParams, lend_params, module_local, pyro_name

Part = tuple[tuple[Any, ...], dict[str, Any], float | None]
"""Of a part of a minibatch, or all of it: the arguments of the pair, those by name, and the weight of the loss."""

SAVED = 1.0
"""Milliseconds that compiling saves at a step of a small model, roughly: it repays itself in 10,000 steps."""


class SVI(pyro.infer.SVI):
    """Stochastic variational inference, a drop-in for `pyro.infer.SVI`, of which it is one: `run` is Pyro's own.

    Trains the parameters of the modules that `model` and `guide` belong to (or are), and whatever `pyro.module`,
    `pyro.param` and lazily created guides register. All of it lives on those modules; where one of the two is a
    plain function and there is no `owner`, in Pyro's parameter store, as Pyro's users expect.

    Args:
        model: the generative model.
        guide: the variational posterior.
        optim: a function from parameters to a torch optimizer, or a `pyro.optim` object. torch's fused kernel is used
            where there is one (Adam, AdamW, SGD, Adagrad) and nothing else was asked for. An object of Pyro's keeps its
            options, states and schedules by parameter name (`get_state`, `save`, `optim_objs`): `svi.optimizer` then
            steps all of its optimizers at once.
        loss: any Pyro ELBO object, or a function `(model, guide, *args) -> differentiable loss`.
        loss_and_grads: of a function `loss`, what also adds the gradient to the parameters; an ELBO has its own.
        num_samples: how many traces `run` draws; deprecated in Pyro.
        num_steps: how many steps `run` takes; deprecated in Pyro.
        compile: whether to run the step as one compiled graph, see `ppvae.compile.compiled`. "auto" compiles where it
            repays itself: in 10,000 steps, `svi.planned_steps` or, where that is None, those taken.
        autocast: dtype of matrix products and convolutions (`torch.autocast`), e.g. `torch.bfloat16` for large nets on
            a GPU. Parameters keep theirs, and the distributions of `ppvae.distributions` compute in float32.
        clip_norm: the gradient is scaled down to this global norm where it is longer.
        param_groups: options of the optimizer by patterns of parameters' names, as `named_parameters` has them, e.g.
            `{"q_z_given_x.*": {"lr": 1e-4}, "*.bias": {"weight_decay": 0.0}}`.
        on_gradients: is called with the parameters at every step, their gradients in place, before these are clipped:
            the place for a collective among processes. On a GPU it is recorded with the step, so that it must launch
            the same work every time.
        owner: the module that parameters live on, where `model` or `guide` is no method of it.

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
        loss: ELBO | Callable[..., Any],
        loss_and_grads: Callable[..., Any] | None = None,
        num_samples: int = 0,
        num_steps: int = 0,
        *,
        compile: Compile = "auto",
        autocast: torch.dtype | None = None,
        clip_norm: float | None = None,
        param_groups: ParamGroups | None = None,
        on_gradients: OnGradients | None = None,
        owner: nn.Module | None = None,
    ) -> None:
        check_compile(compile)
        if isinstance(loss, type) or not callable(loss):
            example = f", e.g. {loss.__name__}()" if isinstance(loss, type) else ""
            raise TypeError(f"loss must be a pyro.infer ELBO object or a function{example}, got {loss!r}")
        for name, function in (("model", model), ("guide", guide)):
            if not callable(function):
                raise TypeError(f"{name} must be a function of the data, got {function!r}")
        if not isinstance(owner, nn.Module | None):
            raise TypeError(f"owner must be a module or None, got {owner!r}")
        check_autocast(autocast)
        TracePosterior.__init__(self)  # Pyro's SVI takes no optimizer but Pyro's
        self.model = model
        self.guide = guide
        self.num_samples = num_samples
        self.num_steps = num_steps
        self.objective: Any = loss
        if loss_and_grads is not None and not isinstance(loss, ELBO):
            self.objective = LossAndGrads(loss, loss_and_grads)
        self.compile = compile
        self.planned_steps: int | None = None
        self.strict = False  # what `fit` says and Pyro does not: of an idle first step, of shared values
        self.agreed: Callable[[NonFiniteError | None], NonFiniteError | None] = lambda error: error  # of many processes
        self.autocast = autocast
        self.optim = optim
        self.stepper = Stepper(
            optim, clip_norm, param_groups=param_groups, on_gradients=on_gradients, capturable=bool(compile)
        )
        owners = [owner_of(model), owner_of(guide)]
        self._local = owner is not None or None not in owners
        self._owners = list(dict.fromkeys(m for m in (owner, *owners) if m is not None))
        networks = networks_of(loss, beside=self._owners)
        self._owners += networks.values()
        self._prefixes = [*[""] * (len(self._owners) - len(networks)), *(f"objective.{name}." for name in networks)]
        self._modules = list(self._owners)  # and those of plain functions, once they have run
        self._compiled = Compiled(
            self._gradient_as_outputs,
            self._modules,
            parameters=self.parameters,
            guarded=self._guarded,
            finish=StepFromOutputs(self.stepper, self.names_of_step, self.parameters, self.objective),
            names=("weight", "args", "kwargs"),
            labels=self._labels,
            autocast=autocast is not None,
        )
        self._steps = 0
        self._in_doubt = False  # after a loss that was not finite
        self._met: dict[int, tuple[str, Tensor]] = {}
        self._met_now: set[int] = set()
        self._stored: dict[str, Tensor] = {}  # those of Pyro's store
        self._parameters: list[Tensor] = []
        self._tree: Contents | None = None

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The torch optimizer, once the first step or `setup` made it; None where Pyro steps one by one."""
        return self.stepper.optimizer

    @property
    def loss(self) -> Callable[..., Any]:
        """The loss as a function of model, guide and their arguments, as Pyro has it; `objective` is what was given."""
        return self.objective.loss if isinstance(self.objective, ELBO | LossAndGrads) else self.objective

    @property
    def loss_and_grads(self) -> Callable[..., Any]:
        """The same, and the gradient is added to the parameters."""
        if isinstance(self.objective, ELBO | LossAndGrads):
            return self.objective.loss_and_grads
        return differentiated(self.objective)

    def step(self, *args: Any, **kwargs: Any) -> float | tuple[float, ...]:
        """Takes one gradient step and returns the loss: summed over the batch, as Pyro's is.

        Where an objective is several losses (`ReweightedWakeSleep`), all of them.
        """
        check_trainable("SVI.step")
        with self.running():
            loss = as_number(self._update([(args, kwargs, None)])[0])
        whole = loss if isinstance(loss, float) else sum(loss)
        self._in_doubt = not isfinite(warn_if_nan(whole, "loss"))
        return loss

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float | tuple[float, ...]:
        """The loss on `args`, without a step."""
        with self.running(), torch.no_grad():
            return as_number(self._evaluate(args, kwargs))

    @contextmanager
    def running(self, *, steady: bool = False) -> Iterator[None]:
        """Context in which the parameters of modules live on the modules; `update` must run inside.

        Args:
            steady: nothing changes in it between steps but minibatches, the values of tensors, and learning rates: what
                a compiled step takes for granted is not looked at every time.
        """
        takes_turns = bool(getattr(self.objective, "before", ()))
        changes = not steady or takes_turns or has_code_of_the_user(self.objective)  # which may count its steps
        with one_at_a_time(), nullcontext() if changes else self._compiled.steady():
            if not self._local:
                with users_store():
                    yield
                return
            try:
                with module_local(), LocalParams(self._owners[0], attach=True, warns=self.strict):
                    yield
            finally:
                lend_params(self._owners[0], trained=True)

    def update(self, *args: Any, weight: float | None = None, check: bool = False) -> StepTerms:
        """Takes one gradient step; with `Trace_ELBO` and its like nothing is read back from the device.

        Args:
            args: the batch.
            weight: multiplies the loss before the gradient is taken, e.g. 1/n for the mean over a batch.
            check: stop before the step where a site or a gradient is not finite (reads from the device).

        Returns:
            The terms of the loss, unweighted.

        Raises:
            NonFiniteError: with `check`, naming the first non-finite site or parameter.
        """
        return self._update([(args, {}, weight)], check=check)[0]

    def update_in_parts(self, parts: Sequence[tuple[Batch, float]], *, check: bool = False) -> list[StepTerms]:
        """Takes one step from the sum of the gradients of a minibatch's parts, which run one after another.

        Args:
            parts: of the minibatch, each with its weight.
            check: as of `update`.

        Returns:
            The terms of each part, unweighted.
        """
        return self._update([(part, {}, weight) for part, weight in parts], check=check)

    def parameters(self) -> list[Tensor]:
        """The tensors that are trained, in a fixed order."""
        if not self._parameters:
            self._parameters = [parameter for _, parameter in self.named_parameters()]
            for p in self._parameters:
                if any(step == 0 and size > 1 for step, size in zip(p.stride(), p.shape, strict=True)):
                    p.data = p.data.contiguous()  # an expanded initial value, as one in Pyro's store is
        return self._parameters

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        """The tensors that are trained, with their names, in a fixed order.

        A module's parameter has the name that it has there, a `pyro.param` its own, and one of a network that the
        objective brings along `objective.<attribute>.<name>`.
        """
        named = self._met | {id(p): (name, p) for name, p in self._owned()}  # a module's own name for it counts
        order = dict.fromkeys([*(id(p) for _, p in self._owned()), *self._met])
        return [named[key] for key in order if named[key][1].requires_grad]

    def names_of_step(self) -> list[tuple[str, Tensor]]:
        """The same with the names that the optimizer goes by: of one of Pyro's, those of Pyro statements."""
        named = self.named_parameters()
        return [self._met.get(id(p), (name, p)) for name, p in named] if isinstance(self.optim, PyroOptim) else named

    def _owned(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters of modules; what several hold goes by its name in the first, the pair before the objective."""
        seen: set[int] = set()
        for prefix, owner in zip(self._prefixes, self._owners, strict=True):
            for name, parameter in owner.named_parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield prefix + (pyro_name(name) or name), parameter

    def setup(self, *batches: Batch) -> None:
        """Runs the pair once on each batch, so that parameters created at first use exist, and makes the optimizer.

        Raises:
            TypeError: where `optim` gives no torch optimizer.
            ValueError: where there is nothing to train.
        """
        for batch in batches:
            with torch.no_grad(), pyro.poutine.trace(param_only=True) as params, modules_that_run(self._modules):
                guide_trace = pyro.poutine.trace(self.guide).get_trace(*batch)
                pyro.poutine.replay(self.model, trace=guide_trace)(*batch)
            self._remember(params.trace)
        self._parameters = []
        self.stepper.prepare(self.names_of_step())
        self.parameters()  # known from here on, so that the first step can run compiled

    def check_buffers(self) -> None:
        """Checks that the networks which ran outside the pair hold no buffers, see `ppvae.compile.guards`."""
        check_no_buffers(self._modules[len(self._owners) :])

    def _update(self, parts: Sequence[Part], *, check: bool = False) -> list[StepTerms]:
        whole = self.objective
        for objective in getattr(whole, "before", ()):
            self.objective = objective
            try:
                self._take_step(parts, check=check)
            finally:
                self.objective = whole
        return self._take_step(parts, check=check)

    def _take_step(self, parts: Sequence[Part], *, check: bool) -> list[StepTerms]:
        """One step of the objective of now."""
        self._forget_cleared()
        self.stepper.expect(len(parts))
        return [self._take_part(*part, check=check) for part in parts]

    def _take_part(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], weight: float | None, *, check: bool
    ) -> StepTerms:
        """The gradient of a part; with that of the last one the step is taken."""
        if self._compiles() and not check:
            terms, (names, *_) = self._compiled((weight, args, kwargs))
            self._steps += 1
            return StepTerms.of(dict(zip(names, terms, strict=True)))
        with nullcontext() if self._steps else modules_that_run(self._modules):
            result = self._gradient(args, weight, kwargs, check=check)
        self._steps += 1
        if self.parameters():
            self.stepper.step(self.names_of_step, self.parameters())
        return result

    def _compiles(self) -> bool:
        """Whether this step is to run compiled: it repays itself, and Pyro has not to say what is not finite."""
        if not self.compile or not self._parameters or self._in_doubt:
            return False
        steps = self._steps if self.planned_steps is None else self.planned_steps
        return repays(self.compile, steps, saved=SAVED)

    def _guarded(self) -> Any:
        """What else a compiled gradient depends on: which parameters are trained, and what of."""
        if not self._local:
            check_computed()
        trained = tuple((id(p), p.requires_grad) for p in self.parameters())
        step = Same(self.stepper.settled(self.names_of_step, self.parameters()))
        return (trained, Same(self.objective), fingerprint(self.objective), self.model, self.guide, self.autocast, step)

    def _gradient_as_outputs(self, args: tuple[Any, ...]) -> tuple[list[Any], Any]:
        """The gradient of a batch as a computation: the terms, and the gradients of the parameters that have one."""
        weight, batch, options = args
        with gradient_hooks_off(self.parameters()):  # they are called once for each step, when it is taken
            terms = self._gradient(batch, weight, options).named()
        trained = [p for p in self.parameters() if p.grad is not None]
        return [*terms.values(), *(p.grad for p in trained)], (list(terms), trained, None)

    def _gradient(
        self, args: tuple[Any, ...], weight: float | None, kwargs: dict[str, Any] | None = None, *, check: bool = False
    ) -> StepTerms:
        """Adds the gradient of a batch to the parameters, eagerly."""
        evaluation = self._evaluate(args, kwargs or {})
        surrogate = evaluation.surrogate
        self._find_new_parameters()
        parameters = self.parameters()
        if surrogate is not None and surrogate.requires_grad:
            surrogate = surrogate if weight is None else surrogate * weight
            surrogate.backward(retain_graph=getattr(self.objective, "retain_graph", None))
        elif surrogate is None and weight is not None:
            for gradient in (p.grad for p in parameters if p.grad is not None):
                gradient.mul_(weight)
        if self.strict and not self._steps and all(parameter.grad is None for parameter in parameters):
            raise ValueError(reaches_nothing(self.objective, self.named_parameters()))
        # Pyro's statements name what a step trains; a module that announces none is trained whole.
        self.stepper.complete([p for p in parameters if id(p) in self._met_now or id(p) not in self._met])
        terms = evaluation.terms()
        if check:
            self._check_finite(evaluation.all_traces(), terms)
        return terms

    def _labels(self, layout: Any) -> list[Label]:
        """What the outputs of a compiled gradient are called."""
        names, trained, _ = layout
        called = {id(p): name for name, p in self.named_parameters()}
        gradients = [("the gradient of", called.get(id(p), "a parameter")) for p in trained]
        return [*(("the term", name) for name in names), *gradients]

    def _evaluate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Evaluation:
        """The objective on a minibatch, with the parameters that it met noted."""
        with pyro.poutine.trace(param_only=True) as params, self._precision():
            result = evaluate_objective(self.objective, self.model, self.guide, args, kwargs)
        self._remember(params.trace)
        return result

    def _precision(self) -> AbstractContextManager[Any]:
        """The context of `autocast`, on the device of the parameters."""
        if self.autocast is None:
            return nullcontext()
        device = next((p.device.type for p in self.parameters()), "cpu")
        return torch.autocast(device, self.autocast)

    def _remember(self, trace: Trace) -> None:
        """Notes the parameters that Pyro statements met; one met for the first time joins the optimizer."""
        self._met_now.clear()
        for name, site in trace.nodes.items():
            if name.startswith(BASELINES):
                continue
            value = site["value"]
            parameter = value.unconstrained() if hasattr(value, "unconstrained") else value
            self._met_now.add(id(parameter))
            if parameter.requires_grad and parameter.is_leaf and id(parameter) not in self._met:
                self._met[id(parameter)] = (name, parameter)
                self._parameters = []
                self.stepper.add([(name, parameter)])
                if not self._local and (stored := StoreContents.now().values.get(name)) is parameter:
                    self._stored[name] = stored

    def _forget_cleared(self) -> None:
        """Forgets parameters that Pyro's store holds no more: after `pyro.clear_param_store()` training starts anew."""
        if not self._stored:
            return
        values = StoreContents.now().values
        if cleared := [(name, p) for name, p in self._stored.items() if values.get(name) is not p]:
            for name, tensor in cleared:
                del self._stored[name], self._met[id(tensor)]
            self._parameters = []
            self._compiled.distrust()  # their graphs make room for others

    def _find_new_parameters(self) -> None:
        """Notices parameters and modules that were put in place of others; their parameters join the optimizer."""
        if self._parameters and (self._tree is None or self._tree.changed() is not None):
            known = {id(p) for p in self._parameters}
            owned = {id(p): (name, p) for name, p in self._owned()}
            found = [(name, p) for name, p in owned.values() if p.requires_grad and id(p) not in known]
            self._parameters = [p for p in self._parameters if id(p) in owned or id(p) in self._met]
            self._parameters += [p for _, p in found]
            self.stepper.add(found)
            self._tree = Contents(self._owners, only=("_parameters", "_modules"))

    def _check_finite(self, traces: Traces, terms: StepTerms) -> None:
        gradients = (
            (name, p.grad) for owner in self._owners for name, p in owner.named_parameters() if p.grad is not None
        )
        found: NonFiniteError | None = None
        try:
            check_finite(traces, terms.named(), gradients)
        except NonFiniteError as error:
            found = error
        if (found := self.agreed(found)) is not None:
            for parameter in self.parameters():
                parameter.grad = None
            raise found
