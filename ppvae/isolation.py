"""What belongs to the whole process and not to a pair: Pyro's handlers and settings, torch's random state and hooks.

One thread at a time runs a pair, the others wait, and none of the handlers around a caller reach into it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ppvae._internals import handlers, no_handlers

_RUNNING = threading.RLock()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Waits for what other threads run."""
    with _RUNNING:
        yield


@contextmanager
def isolated() -> Iterator[None]:
    """Runs without the Pyro handlers around the caller and outside of `torch.inference_mode`; other threads wait.

    Example:
        >>> import pyro
        >>> with pyro.poutine.scale(scale=0.5), isolated():
        ...     handlers()
        []
    """
    with _RUNNING, torch.inference_mode(False), no_handlers():
        yield


def check_trainable(caller: str) -> None:
    """Checks that what `caller` computes will have gradients.

    Raises:
        RuntimeError: in a context without them.
    """
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        context = "torch.inference_mode()" if torch.is_inference_mode_enabled() else "torch.no_grad()"
        raise RuntimeError(f"{caller} trains by gradients, and runs inside of {context}, which has none: move it out")


def check_unhandled(caller: str) -> None:
    """Checks that no Pyro handler is around `caller`, in which it would do nothing.

    Raises:
        RuntimeError: naming the handlers.
    """
    with _RUNNING:  # those of another thread are gone then
        names = ", ".join(type(handler).__name__ for handler in handlers())
    if names:
        raise RuntimeError(
            f"{caller} runs inside of the Pyro handlers {names}, which would do nothing in it: give it a pair that has "
            "them inside, Pair(handler(pair.model), handler(pair.guide), [pair])"
        )
