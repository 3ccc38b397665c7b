"""Inductor, torch's compiler: traced graphs become machine code; what costs seconds or pages on a CPU is cut short."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from threading import Thread
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from ppvae._internals import cpp_builder, forget_instruction_sets, inductor_compile, trusting_the_compiler
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
    spare = copy.deepcopy(module.graph)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`?torch._prims_common.check", FutureWarning)  # torch about itself
        warnings.filterwarnings("ignore", "`?torch.jit.script_method", DeprecationWarning)  # and 2.11 about itself
        warnings.filterwarnings("ignore", "TensorFloat32", UserWarning)  # coarser products are the user's choice
        warnings.filterwarnings("ignore", "\\s*Online softmax is disabled", UserWarning)  # slower, and right
        try:
            with trusting_the_compiler():
                return inductor_compile(module, inputs, OPTIONS)
        except Exception:  # a C++ compiler that is older than the CPU: Inductor then finds out what it can do
            forget_instruction_sets()
            return inductor_compile(GraphModule(nn.Module(), spare), inputs, OPTIONS)


@cache
def build_headers() -> None:
    """Starts to build torch's C++ headers, which every graph for a CPU includes, beside what this thread does next.

    They take longer than any graph, once on a machine: Inductor keeps them, and waits where they are being built.
    """
    with suppress(Exception):  # without a compiler, or with another Inductor, there is no head start
        build_kernel = cpp_builder()

        def build() -> None:
            with suppress(Exception):
                build_kernel(_NO_KERNEL)

        Thread(target=build, name="ppvae C++ headers").start()
