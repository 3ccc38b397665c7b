"""A pair in eval mode: without gradients, with its own parameters and random numbers, and how all of it comes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pyro
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ppvae.isolation import isolated
from ppvae.pair import Batch, device_of
from ppvae.params import LocalParams, lend_params, module_local
from ppvae.rng import forked_rng


@contextmanager
def evaluating(
    pair: nn.Module,
    seed: int,
    *,
    device: torch.device | None = None,
    params: LocalParams | None = None,
    attach: bool = False,
) -> Iterator[None]:
    """Runs `pair` in eval mode without gradients, its parameters its own, its randomness that of `seed`.

    Every module that runs inside is in eval mode, also one that plain functions use and the pair does not own.
    Restores the modules' modes and the global random state. Handlers around the caller do not reach inside.

    Args:
        pair: any model/guide pair.
        seed: of the CPU's and the device's generators.
        device: where the pair runs; by default that of its parameters.
        params: where its Pyro parameters live; by default its own, and a new one stays with `attach`.
        attach: whether parameters created inside stay with the pair.
    """
    device = device or device_of(pair)
    with (
        isolated(),
        eval_mode(pair),
        forked_rng(device, seed),
        torch.no_grad(),
        module_local(),
        params or LocalParams(pair, attach=attach),
    ):
        yield
    lend_params(pair, trained=False)


@contextmanager
def naming_nonfinite(data: Batch) -> Iterator[None]:
    """Where Pyro's validation stops on what a pair made of NaN or infinite data, says which datum that is."""
    try:
        yield
    except ValueError as error:
        problem = str(error).split(", but found invalid")[0]
        for i, tensor in enumerate(data):
            if "Expected " in problem and isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                bad = ~tensor.isfinite().reshape(len(tensor), -1).all(1)
                if bool(bad.any()):
                    where = f"data[{i}] holds NaN or infinite values, first in row {int(bad.nonzero()[0])}"
                    raise ValueError(f"{where}, and the pair fails on them: {problem}") from error
        raise


@contextmanager
def eval_mode(pair: nn.Module) -> Iterator[None]:
    """Every module that runs inside is in eval mode, also one that the pair does not own; all modes come back."""
    with modes_kept(pair) as modes:

        def freeze(module: nn.Module, args: Any) -> None:
            if module.training:
                modes.setdefault(module, True)
                module.training = False

        foreign = register_module_forward_pre_hook(freeze)
        pair.eval()
        try:
            yield
        finally:
            foreign.remove()


@contextmanager
def modes_kept(pair: nn.Module) -> Iterator[dict[nn.Module, bool]]:
    """Every module of the pair comes back in the mode, training or not, that it was in.

    Yields:
        The modes; those of other modules that are put there come back too.
    """
    modes = {module: module.training for module in pair.modules()}
    try:
        yield modes
    finally:
        for module, mode in modes.items():
            module.training = mode


def precision(autocast: torch.dtype | None, data: Batch) -> AbstractContextManager[Any]:
    """Runs matrix products and convolutions in this dtype, on the device of the data; None changes nothing."""
    if autocast is None:
        return nullcontext()
    return torch.autocast(next(t.device.type for t in data if t is not None), autocast)


@contextmanager
def validation(on: bool) -> Iterator[None]:
    """Pyro's validation: as the user has set it where `on`, else off; restored on leaving."""
    if on:
        yield
        return
    with pyro.validation_enabled(False):
        yield
