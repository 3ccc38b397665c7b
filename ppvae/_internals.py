"""The private names of torch and Pyro that this package stands on: where to look when one of them moves.

Tested with torch 2.14.1 and Pyro 1.9.2, and on a GPU once with torch 2.11. What a subclass of `Distribution`
and `Transform` is meant to use of torch (`self._validate_sample`, `self._extended_shape`) is not listed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from threading import get_ident
from typing import Any
from unittest import mock

import pyro
import torch
from pyro.distributions import MaskedDistribution
from pyro.distributions.conditional import _ConditionalInverseTransformModule
from pyro.infer import ELBO
from pyro.nn.module import _Context
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from pyro.optim.optim import _load_state_dict
from pyro.poutine.messenger import _bound_partial, _context_wrap
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK, effectful
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.distributions.constraints import Constraint
from torch.distributions.kl import _KL_REGISTRY
from torch.distributions.transforms import _InverseTransform
from torch.distributions.utils import _sum_rightmost
from torch.fx import GraphModule
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import SequenceKey, keystr, tree_flatten, tree_flatten_with_path, tree_unflatten

__all__ = ["TorchDispatchMode"]

# Pyro


def handlers() -> list[Any]:
    """The Pyro handlers around the caller, the outermost first."""
    return _PYRO_STACK


@contextmanager
def no_handlers() -> Iterator[None]:
    """Runs without the Pyro handlers around the caller, the dims of their plates free."""
    stacks = [_PYRO_STACK, _DIM_ALLOCATOR._stack]
    around = [stack[:] for stack in stacks]
    for stack in stacks:
        stack.clear()
    try:
        yield
    finally:
        for stack, before in zip(stacks, around, strict=True):
            stack[:] = before


def handled(function: Any) -> tuple[Any, ...]:
    """What a handler is around, as in `poutine.scale(f, scale=2.0)`, and what is bound to it; empty of other functions.

    A method that its class decorates with a handler is bound to its object so.
    """
    if isinstance(function, _bound_partial):
        function = function.func
    return function.args[1:] if isinstance(function, partial) and function.func is _context_wrap else ()


def is_subsampling(fn: Any) -> bool:
    """Whether the distribution of a site is a plate's subsampling of its indices."""
    return type(fn).__name__ == "_Subsample"


def mask_of_distribution(fn: Any) -> Any:
    """The mask of a `MaskedDistribution`; None of any other."""
    return fn._mask if isinstance(fn, MaskedDistribution) else None


def checks_support(fn: Any) -> bool:
    """Whether a distribution was made to validate its arguments and values."""
    return bool(getattr(fn, "_validate_args", False))


def has_own_kl(fn: Any) -> bool:
    """Whether what torch knows of the KL of a distribution is of its density, and not of one that it replaced."""
    kind = type(fn)
    defines = next(base for base in kind.__mro__ if "log_prob" in vars(base))
    library = defines.__module__.split(".")[0] in ("torch", "pyro", "ppvae")
    return library or any(kind in pair for pair in _KL_REGISTRY)


def enumerated_dims(infer: Any) -> dict[int, int]:
    """For each dim of a density that lists values of enumerated sites, which of these sites it is."""
    return infer.get("_dim_to_id", {})


def enumerated_site(infer: Any) -> int:
    """Which of the enumerated sites this one is."""
    return infer["_dim_to_id"][infer["_enumerate_dim"]]


def packed_dims(tensor: Tensor) -> str:
    """The letters of the dims of a tensor as Pyro's contraction takes and gives them."""
    dims: str = vars(tensor)["_pyro_dims"]
    return dims


def traces_of(elbo: ELBO, *args: Any) -> Iterator[tuple[Trace, Trace]]:
    """The (model, guide) traces that an ELBO computes from: one for each particle."""
    return elbo._get_traces(*args)


def loss_of_particle(elbo: Any, model_trace: Trace, guide_trace: Trace) -> tuple[Any, Any]:
    """The loss and the surrogate of one particle of a `Trace_ELBO`."""
    return elbo._differentiable_loss_particle(model_trace, guide_trace)


def refuses_constant(error: ValueError) -> bool:
    """Whether `TraceEnum_ELBO` refused to differentiate a loss for having no gradient."""
    return str(error).startswith("ELBO is cannot be differentiated")


def announce(name: str, parameter: Tensor) -> None:
    """Lets the handlers around the caller see a parameter, as `pyro.param` does, without a place in Pyro's store."""

    @effectful(type="param")
    def same(alias: Tensor) -> Tensor:
        return alias

    with torch.no_grad():
        alias: Any = parameter.view_as(parameter)
    alias.unconstrained = lambda: parameter  # what `pyro.infer.SVI` asks for; an attribute of the parameter would stay
    same(alias, name=name)


@contextmanager
def parameters_named(names: Mapping[Tensor, str]) -> Iterator[None]:
    """Lets Pyro's store give these names for parameters, as a Pyro optimizer asks it to; of others its own."""
    store = pyro.get_param_store()
    with mock.patch.object(store, "param_name", lambda p: names.get(p) or type(store).param_name(store, p)):
        yield


def make_optimizer(optim: Any, parameter: Tensor, name: str) -> None:
    """Lets a Pyro optimizer make what it needs for a parameter, as before its first step with it."""
    with parameters_named({parameter: name}):
        optim.optim_objs[parameter] = optim._get_optim(parameter)
        optim.grad_clip[parameter] = optim._get_grad_clip(parameter)
    if (state := optim._state_waiting_to_be_consumed.pop(name, None)) is not None:
        _load_state_dict(optim.optim_objs[parameter], state)


def steps_as_pyro_does(optim: PyroOptim) -> bool:
    """Whether an object steps the optimizers of all parameters, one after the other, and does nothing else."""
    return type(optim).__call__ in (PyroOptim.__call__, PyroLRScheduler.__call__)


@dataclass
class StoreContents:
    """What Pyro's parameter store holds.

    Attributes:
        values: unconstrained, by name.
        names: by value.
        constraints: by name.
    """

    values: MutableMapping[str, Tensor]
    names: MutableMapping[Tensor, str]
    constraints: MutableMapping[str, Constraint]

    @classmethod
    def now(cls) -> StoreContents:
        """Those of the moment, for reading and writing."""
        store = pyro.get_param_store()
        return cls(store._params, store._param_to_name, store._constraints)

    @property
    def is_users(self) -> bool:
        """Whether these are what Pyro itself keeps, and not put there by `show`."""
        return isinstance(self.values, dict)

    def show(self) -> None:
        """Puts these in the place of what the store holds."""
        store: Any = pyro.get_param_store()
        store._params, store._param_to_name, store._constraints = self.values, self.names, self.constraints

    def put(self, name: str, value: Tensor, constraint: Constraint) -> None:
        """Adds an unconstrained value."""
        self.values[name], self.names[value], self.constraints[name] = value, name, constraint

    def take(self, name: str) -> tuple[Tensor, Constraint]:
        """Removes a value."""
        value = self.values.pop(name)
        self.names.pop(value, None)
        return value, self.constraints.pop(name)


@contextmanager
def modules_in_one_store() -> Iterator[None]:
    """Runs every `PyroModule` in the parameter store that is there: with `module_local_params` each opens its own."""
    contexts: Any = _Context
    before = contexts.__enter__, contexts.__exit__
    contexts.__enter__, contexts.__exit__ = _enter, _exit
    try:
        yield
    finally:
        contexts.__enter__, contexts.__exit__ = before


def _enter(context: Any) -> None:
    context.active += 1
    context.used = True


def _exit(context: Any, *error: Any) -> None:
    context.active -= 1
    if not context.active:
        context.cache.clear()


# Tensors, modules, optimizers


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to."""
    return tensor._version


def persistent_buffers(module: nn.Module) -> set[str]:
    """The names of a module's own buffers that its state dict holds."""
    return module._buffers.keys() - module._non_persistent_buffers_set


def hooked_steps(optimizer: torch.optim.Optimizer) -> bool:
    """Whether anything else is done where this optimizer steps: hooks, or a `step` that was put in place of its own."""
    hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    replaced = "step" in vars(optimizer) and not hasattr(optimizer.step, "_wrapped_by_lr_sched")
    return bool(hooks or replaced or _global_optimizer_pre_hooks or _global_optimizer_post_hooks)


def note_step(optimizer: torch.optim.Optimizer) -> None:
    """Lets torch's schedulers know of a step that was not taken by `optimizer.step`."""
    vars(optimizer)["_opt_called"] = True


def _gradient_hooks(tensor: Tensor) -> list[dict[int, Callable[..., Any]]]:
    return [hooks for hooks in (tensor._backward_hooks, tensor._post_accumulate_grad_hooks) if hooks]


def has_gradient_hooks(tensor: Tensor) -> bool:
    """Whether anything is called with the gradient of a parameter."""
    return bool(tensor._backward_hooks or tensor._post_accumulate_grad_hooks)


@contextmanager
def gradient_hooks_off(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Calls none of the hooks on the gradients of some parameters."""
    emptied = [(hooks, dict(hooks)) for tensor in tensors for hooks in _gradient_hooks(tensor)]
    for hooks, _ in emptied:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, before in emptied:
            hooks.update(before)


def put_gradient(parameter: Tensor, gradient: Tensor) -> None:
    """Puts a gradient on a parameter that has none, through the hooks on both, as autograd does."""
    for hook in tuple((parameter._backward_hooks or {}).values()):
        changed = hook(gradient)
        gradient = gradient if changed is None else changed
    parameter.grad = gradient
    for hook in tuple((parameter._post_accumulate_grad_hooks or {}).values()):
        hook(parameter)


# Containers


def flatten(values: Any) -> tuple[list[Any], Any]:
    """What some containers hold, those in them included, and what they are: compared by `==`, and hashable."""
    return tree_flatten(values)


def unflatten(leaves: Sequence[Any], structure: Any) -> Any:
    """Containers like those of `structure` that hold these."""
    return tree_unflatten(leaves, structure)


def path_of_leaf(values: Any, leaf: int) -> tuple[int, str]:
    """Where a leaf of a sequence lies: the place of its element, and the way from there."""
    (place, *way), _ = tree_flatten_with_path(values)[0][leaf]
    assert isinstance(place, SequenceKey)
    return place.idx, keystr(tuple(way))


# Transforms


def sum_rightmost(values: Tensor, dims: int) -> Tensor:
    """The sum over so many dims on the right."""
    return _sum_rightmost(values, dims)


def invert(transform: Any, value: Tensor) -> Tensor:
    """The inverse of a transform at a value, without the object `transform.inv`, which refers to it in a circle."""
    return transform._inv_call(value)


def is_inverse(transform: Any) -> bool:
    """Whether this is the inverse of another transform, torch's or Pyro's."""
    return isinstance(transform, _InverseTransform | _ConditionalInverseTransformModule)


# Dispatch and compilers


def scalar_read() -> Any:
    """The operation by which Python reads a number from a tensor."""
    return torch.ops.aten._local_scalar_dense.default


@cache
def packed_functions() -> tuple[Any, ...]:
    """The functions of torch that read integers inside (lengths, batch sizes, places), past every dispatch mode."""
    recurrent = (torch._VF.gru, torch._VF.lstm, torch._VF.rnn_tanh, torch._VF.rnn_relu)
    packing = (torch._VF._pack_padded_sequence, torch._VF._pad_packed_sequence)
    losses = (torch.ctc_loss, nn.functional.ctc_loss)
    return (*recurrent, *packing, torch.tensor_split, Tensor.tensor_split, *losses)


@cache
def from_data() -> tuple[Any, ...]:
    """The functions that make tensors of lists, which may hold tensors: these are read past every dispatch mode."""
    sparse = (torch.sparse_coo_tensor, torch.sparse_csr_tensor)
    return (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor, Tensor.new, *sparse)


def index_writes() -> tuple[Any, ...]:
    """The operations that write where indices say."""
    aten = torch.ops.aten
    return aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default


def returns_view(func: Any) -> list[bool]:
    """For each of the results of an operation, whether it is a view of an argument."""
    return [returned.alias_info is not None for returned in func._schema.returns]


def declared_arguments(func: Any) -> list[Any]:
    """An operation's arguments as its schema declares them, each with `name`, `default_value` and `kwarg_only`."""
    return list(func._schema.arguments)


def argument_names(func: Any) -> list[str]:
    """The names of an operation's arguments."""
    return [argument.name for argument in declared_arguments(func)]


def written_arguments(func: Any) -> list[str]:
    """The names of the arguments that an operation writes to."""
    return [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]


def modes_off() -> AbstractContextManager[Any]:
    """Runs what is inside past every dispatch mode."""
    return _disable_current_modes()


def is_traced() -> bool:
    """Whether what runs here is written down as a graph."""
    from torch.fx.experimental import proxy_tensor

    return proxy_tensor.get_proxy_mode() is not None


@contextmanager
def onednn_off() -> Iterator[None]:
    """Context in which operations on a CPU are torch's own, and not oneDNN's."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


@contextmanager
def undescribed() -> Iterator[None]:
    """Spares a tracer in this thread a picture of each tensor: for each it makes a mode, which looks at the stack.

    Neither a graph's arithmetic nor its compiler asks for these pictures.
    """
    from torch.fx.experimental import proxy_tensor

    picture, here = proxy_tensor.extract_val, get_ident()

    def none_here(*args: Any, **kwargs: Any) -> Any:
        return None if get_ident() == here else picture(*args, **kwargs)

    with mock.patch.object(proxy_tensor, "extract_val", none_here):
        yield


def code_written_late() -> AbstractContextManager[None]:
    """Lets a traced graph have no Python code until it first runs as it is: one that is compiled needs none."""
    from torch.fx._lazy_graph_module import _use_lazy_graph_module

    return _use_lazy_graph_module(True)


def inductor_compile(module: GraphModule, inputs: Sequence[Tensor], options: dict[str, Any]) -> Callable[..., Any]:
    """Compiles a graph by Inductor."""
    return torch._inductor.compile(module, list(inputs), dict(options))


def trusting_the_compiler() -> AbstractContextManager[Any]:
    """Takes the C++ compiler for one that knows the CPU's vector instructions: trial builds of them take seconds."""
    from torch._inductor.cpu_vec_isa import VecISA

    return mock.patch.object(VecISA, "check_build", return_value=True)


def forget_instruction_sets() -> None:
    """Lets Inductor find out anew which of the CPU's vector instructions the C++ compiler knows."""
    from torch._inductor import cpu_vec_isa

    cpu_vec_isa.valid_vec_isa_list.cache_clear()
    for instructions in cpu_vec_isa.supported_vec_isa_list:
        vars(instructions).clear()
        for known in (value for kind in type(instructions).__mro__ for value in vars(kind).values()):
            if hasattr(known, "cache_clear"):
                known.cache_clear()


def cpp_builder() -> Callable[[str], Any]:
    """A function that lets Inductor build a C++ kernel, and with it the headers that it includes."""
    from torch._inductor.codecache import CppPythonBindingsCodeCache as Kernels
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    with trusting_the_compiler():
        pick_vec_isa()
    return lambda code: Kernels.load_pybinding_async(["float*"], code, submit_fn=lambda kernel: None)
