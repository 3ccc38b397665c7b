"""Ctrl-C without a lost run: a request to stop, which the training loop grants after its step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ppvae.pair import Batch


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that Ctrl-C (or a scheduler's SIGTERM) sets once; a second signal interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def request(number: int, frame: Any) -> None:
        stop.set()
        put_back()

    try:
        for number in before:
            signal.signal(number, request)
        yield stop
    finally:
        put_back()


def until(stop: threading.Event, minibatches: Iterator[Batch]) -> Iterator[Batch]:
    """The minibatches; they end where the workers of a `DataLoader` died of the same Ctrl-C."""
    try:
        yield from minibatches
    except RuntimeError:
        if not stop.is_set():
            raise
