"""Per-datum importance samples z ~ q(z|x) of any pair, and their log-probabilities site by site.

The one mechanism behind the ELBO, log p(x) and validation. For each block of data it yields

    log p(x|z),  log p(z) and log q(z|x) of every latent site,  each of shape (e, s, n),

without any scale (KL weight), without the factors of the guide, with masks. Discrete latents that are marked for
enumeration are not drawn but take each of their values in turn. What is drawn does not depend on how many data are
scored at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import pyro
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ppvae.infer.drawer import Drawer, blocks, take
from ppvae.infer.draws import Draws
from ppvae.infer.sampler import PROBE_DATA, choose_sampler
from ppvae.pair import Batch, check_batch, check_pair, device_of
from ppvae.params import LocalParams, module_local

SAMPLE_BLOCK = 256
"""The most samples of one datum that are drawn at once."""

VALIDATION_BLOCK = 16
"""Up to so many samples of a datum are drawn in one block, eagerly and under Pyro's validation."""

COMPILE_FROM = 1000
"""Blocks from which compiling repays itself."""


def importance_draws(
    pair: nn.Module,
    data: Batch,
    *,
    num_samples: int,
    batch_size: int | None = None,
    seed: int = 0,
    compile: bool | Literal["auto"] = False,
    given: Sequence[str] = (),
    params: LocalParams | None = None,
) -> Iterator[Draws]:
    """Draws `num_samples` times from the guide for every datum and scores each draw, in eval mode, no gradients.

    The samples of one datum arrive in consecutive blocks, the data in order; exactly `num_samples` per datum.

    Args:
        pair: any model/guide pair.
        data: its arguments, tensors of shape (n, ...), or None.
        num_samples: s, draws per datum.
        batch_size: the most data that the model scores at once; by default what a memory budget allows.
        seed: of all draws; the global random state is neither read nor changed.
        compile: whether to run the blocks as one compiled graph (`ppvae.infer.compile`); "auto" does from
            `COMPILE_FROM` blocks. A datum's first samples always run eagerly, under Pyro's validation.
        given: observed sites to condition on: their density is left out.
        params: where Pyro parameters that are made at first use live; by default they end with the draws.

    Yields:
        Blocks of draws, on the pair's device.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the pair or the data break the contract, naming the argument or site.
    """
    check_pair(pair)
    n = check_batch(data)
    check_count("num_samples", num_samples)
    if batch_size is not None:
        check_count("batch_size", batch_size)
    check_seed(seed)
    if compile not in (True, False, "auto"):
        raise ValueError(f"compile must be True, False or 'auto', got {compile!r}")
    device, given = device_of(pair, data), names_of(given)
    params = params or LocalParams(pair, attach=False)  # one for all blocks: what is made at first use is made once
    with evaluating(pair, seed, device=device, params=params), naming_nonfinite(data):
        sampler = choose_sampler(pair, take(data, slice(0, PROBE_DATA), device), num_samples, given)
    samples = _parts(num_samples, min(SAMPLE_BLOCK, sampler.rows))
    seeds = torch.Generator().manual_seed(seed)
    data_blocks = blocks(n, max(1, sampler.rows // max(samples)))
    runs = len(data_blocks) * len(samples) * len(sampler.enumeration.values)
    compiles = compile is True or (compile == "auto" and runs >= COMPILE_FROM)
    compiles = compiles and len(samples) > 1
    draw = Drawer.of(sampler, batch_size, kept=compiles and not params.forgets)

    def drawn(block: tuple[Batch, int, int], block_seed: int, *, first: bool = False, eagerly: bool = True) -> Draws:
        # Validation costs time: a datum's first samples are enough to find a value off the support.
        with evaluating(pair, block_seed, device=device, params=params), validation(first), naming_nonfinite(data):
            return draw(*block, eagerly=eagerly)

    trusted: set[tuple[int, int]] = set()
    for start, stop in data_blocks:
        for i, s in enumerate(samples):
            block = (take(data, slice(start, stop), device), s, start)
            block_seed = int(torch.randint(2**62, (), generator=seeds))
            size = (s, stop - start)
            if size in trusted and i > 0:
                yield drawn(block, block_seed, eagerly=False)
                continue
            draws = drawn(block, block_seed, first=i == 0)
            if compiles and i > 0:
                agrees = draw.agrees(draws, drawn(block, block_seed, eagerly=False))
                trusted = trusted | {size} if agrees else set()
            yield draws
    if compiles and trusted and not params.forgets:
        draw.keep()


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
    Restores the modules' modes and the global random state.

    Args:
        pair: any model/guide pair.
        seed: of the CPU's and the device's generators.
        device: where the pair runs; by default that of its parameters.
        params: where its Pyro parameters live; by default its own, and a new one stays with `attach`.
        attach: whether parameters created inside stay with the pair.
    """
    device = device or device_of(pair)
    with (
        eval_mode(pair),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.no_grad(),
        module_local(),
        params or LocalParams(pair, attach=attach),
    ):
        # torch.manual_seed would seed every device, and not all of them are put back.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.default_generators[device.index or 0].manual_seed(seed)
        yield


@contextmanager
def naming_nonfinite(data: Batch) -> Iterator[None]:
    """Where Pyro's validation stops on what a pair made of NaN or infinite data, says which datum that is."""
    try:
        yield
    except ValueError as error:
        problem = str(error).split(", but found invalid")[0]
        for i, tensor in enumerate(data):
            if problem.startswith("Expected ") and isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                bad = ~tensor.isfinite().reshape(len(tensor), -1).all(1)
                if bool(bad.any()):
                    where = f"data[{i}] holds NaN or infinite values, first in row {int(bad.nonzero()[0])}"
                    raise ValueError(f"{where}, and the pair fails on them: {problem}") from error
        raise


@contextmanager
def eval_mode(pair: nn.Module) -> Iterator[None]:
    """Every module that runs inside is in eval mode, also one that the pair does not own; all modes come back."""
    training = {module: module.training for module in pair.modules()}

    def freeze(module: nn.Module, args: Any) -> None:
        if module.training:
            training.setdefault(module, True)
            module.training = False

    foreign = register_module_forward_pre_hook(freeze)
    pair.eval()
    try:
        yield
    finally:
        foreign.remove()
        for module, mode in training.items():
            module.training = mode


@contextmanager
def validation(on: bool) -> Iterator[None]:
    """Pyro's validation: as the user has set it where `on`, else off; restored on leaving."""
    if on:
        yield
        return
    with pyro.validation_enabled(False):
        yield


def _parts(total: int, size: int) -> list[int]:
    """`total` samples in blocks of at most `size`: a small one to validate with, and others that are all equal."""
    if total <= min(VALIDATION_BLOCK, size):
        return [total]
    each = (total - 1) // -(-(total - 1) // size)
    parts = (total - 1) // each
    return [total - parts * each, *[each] * parts]


def check_seed(seed: Any) -> None:
    """Checks that a seed is a whole number >= 0."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number >= 0, got {seed!r}")


def names_of(given: Any) -> tuple[str, ...]:
    """The sites to condition on; a single name is one of them.

    Raises:
        TypeError: where they are no names.
    """
    names = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"given must be a list of names of observed sites, got {given!r}")
    return names


def check_count(name: str, value: int) -> None:
    """Checks that the argument `name` is a whole number >= 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
