"""Inductor, torch's compiler: traced graphs become machine code; what costs seconds or pages on a CPU is cut short."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from functools import cache
from threading import Thread
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from ppvae.compile.allocator import keep_freed_memory

OPTIONS: dict[str, Any] = {"fallback_random": True, "reorder_for_peak_memory": False}
"""Random numbers come from torch's own kernels, as in the eager step, and draws keep their order."""

_NO_KERNEL = """
#include <torch/csrc/inductor/cpp_prefix.h>
extern "C" void kernel(float* out) { at::vec::Vectorized<float>(0).store(out); }
"""


def compile_graph(module: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """Compiles a graph for inputs like these.

    On a CPU the process then keeps what tensors free, see `keep_freed_memory`, as torch's allocator does on a GPU.
    """
    if all(tensor.is_cpu for tensor in inputs):
        keep_freed_memory()
    spare = GraphModule(nn.Module(), copy.deepcopy(module.graph))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`?torch._prims_common.check", FutureWarning)  # torch about itself
        warnings.filterwarnings("ignore", "`?torch.jit.script_method", DeprecationWarning)  # and 2.11 about itself
        warnings.filterwarnings("ignore", "TensorFloat32", UserWarning)  # coarser products are the user's choice
        warnings.filterwarnings("ignore", "\\s*Online softmax is disabled", UserWarning)  # slower, and right
        try:
            with _trusting_the_compiler():
                return torch._inductor.compile(spare, list(inputs), dict(OPTIONS))
        except Exception:  # a C++ compiler that is older than the CPU: Inductor then finds out what it can do
            _forget_instruction_sets()
            return torch._inductor.compile(module, list(inputs), dict(OPTIONS))


@cache
def build_headers() -> None:
    """Starts to build torch's C++ headers, which every graph for a CPU includes, beside what this thread does next.

    They take longer than any graph, once on a machine: Inductor keeps them, and waits where they are being built.
    """
    with suppress(Exception):  # without a compiler, or with another Inductor, there is no head start
        from torch._inductor.codecache import CppPythonBindingsCodeCache as Kernels
        from torch._inductor.cpu_vec_isa import pick_vec_isa

        with _trusting_the_compiler():
            pick_vec_isa()

        def build() -> None:
            with suppress(Exception):
                Kernels.load_pybinding_async(["float*"], _NO_KERNEL, submit_fn=lambda kernel: None)

        Thread(target=build, name="ppvae C++ headers").start()


def _trusting_the_compiler() -> AbstractContextManager[Any]:
    """Takes the C++ compiler for one that knows the CPU's vector instructions: trial builds of them take seconds."""
    from torch._inductor.cpu_vec_isa import VecISA

    return mock.patch.object(VecISA, "check_build", return_value=True)


def _forget_instruction_sets() -> None:
    """Lets Inductor find out anew which of the CPU's vector instructions the C++ compiler knows."""
    from torch._inductor import cpu_vec_isa

    cpu_vec_isa.valid_vec_isa_list.cache_clear()
    for instructions in cpu_vec_isa.supported_vec_isa_list:
        vars(instructions).clear()
        for known in (value for kind in type(instructions).__mro__ for value in vars(kind).values()):
            if hasattr(known, "cache_clear"):
                known.cache_clear()
