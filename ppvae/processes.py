"""Many processes of one run, as `torchrun` starts them: which one this is, what all agree on, work dealt among them.

torch's own engine does the rest: gloo between CPUs, nccl between GPUs. `ppvae.fit` and the estimators of
`ppvae.evaluate` join by themselves, so that every process must call them, with the same arguments. With one process
everything here is the identity.

```
torchrun --standalone --nproc-per-node 2 -m ppvae.examples.vae
```
"""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import get_worker_info

from ppvae.rng import forked_rng

__all__ = [
    "alone",
    "any_of",
    "check_same",
    "dealt",
    "each_seeded",
    "gather",
    "in_turn",
    "is_first",
    "join",
    "on_first",
    "quietly",
    "rank",
    "share",
    "show",
    "sum_gradients",
    "total",
    "world",
]

T = TypeVar("T")
Item = TypeVar("Item")

BUCKET = 2**22
"""The most numbers of the gradient that are summed in one collective: 16 MiB of float32."""

JOINED = "PPVAE_PROCESS"
"""The environment variable that tells what a process starts that it has joined the others."""

_is_alone: ContextVar[bool] = ContextVar("ppvae_is_alone", default=False)
_control: list[Any] = [None, None]
"""The processes that were joined last, and the same once more, for decisions: by gloo, which needs no GPU."""


def join() -> None:
    """Joins the processes that `torchrun` has started, where it did; before a GPU is chosen, which it does.

    `fit` and the estimators do it by themselves. A script that puts something on "cuda" before calls it first.
    """
    _decisions()


def world() -> int:
    """How many processes this run has."""
    return 1 if _decisions() is None else dist.get_world_size()


def rank() -> int:
    """The number of this process, from 0."""
    return 0 if _decisions() is None else dist.get_rank()


def is_first() -> bool:
    """Whether this is the process that writes, prints and shows progress.

    Example:
        >>> from ppvae import processes
        >>> processes.is_first(), processes.world()
        (True, 1)
    """
    return rank() == 0


@contextmanager
def alone() -> Iterator[None]:
    """Context for what this process does without the others: inside, it is the only one.

    Example:
        >>> from ppvae import processes
        >>> if processes.is_first():
        ...     with processes.alone():
        ...         processes.world()
        1
    """
    token = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(token)


@contextmanager
def quietly() -> Iterator[None]:
    """Context for what all processes do alike: the first alone shows its warnings."""
    with warnings.catch_warnings():
        if not is_first():
            warnings.simplefilter("ignore")
        yield


def show(text: str) -> None:
    """Prints a text, by the first process alone."""
    if is_first():
        print(text)


def gather(value: T) -> list[T]:
    """What every process has given as its `value`, in the order of their numbers; tensors are to lie on the CPU.

    Example:
        >>> gather(3)  # of one process
        [3]
    """
    if (group := _decisions()) is None:
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    with _answering():
        dist.all_gather_object(found, value, group=group)
    return found


def total(*counts: int) -> tuple[int, ...]:
    """The sum over all processes of each of the `counts`.

    Example:
        >>> total(2, 5)  # of one process
        (2, 5)
    """
    if (group := _decisions()) is None:
        return counts
    told = torch.tensor(counts, dtype=torch.int64)
    with _answering():
        dist.all_reduce(told, group=group)
    return tuple(told.tolist())


def any_of(*flags: bool) -> tuple[bool, ...]:
    """Whether some process has set it, for each of the `flags`.

    Example:
        >>> any_of(True, False)
        (True, False)
    """
    return tuple(map(bool, total(*flags)))


def on_first(function: Callable[[], T]) -> T:
    """What a function gives, called by the first process alone; its value, or its error, is everybody's."""
    if (group := _decisions()) is None:
        return function()
    answer: list[Any] = [None]
    if is_first():
        with alone():
            answer = [_attempt(function)]
    with _answering():
        dist.broadcast_object_list(answer, 0, group=group)
    return _value_of(answer[0])


def in_turn(function: Callable[[], T]) -> T:
    """What a function gives, called by every process, by the others when the first is done: it may fetch files."""
    mine: list[T] = []
    on_first(lambda: mine.append(function()))
    if not mine:
        mine.append(function())
    return mine[0]


def check_same(name: str, value: str) -> None:
    """Checks that a text is the same in every process.

    Args:
        name: what it is of, for the message.
        value: the text.

    Raises:
        ValueError: naming what is not, and a process where it is another.
    """
    for other, found in enumerate(told := gather(value)):
        if found != told[0]:
            raise ValueError(
                f"{name} must be the same in every process, but process 0 has {told[0]:.200} and process {other} "
                f"{found:.200} (what one process does for itself belongs into ppvae.processes.alone())"
            )


@torch.no_grad()
def share(named: Sequence[tuple[str, Tensor]]) -> None:
    """Gives tensors of every process the values that they have in the first.

    Args:
        named: the tensors with their names, in one order everywhere; written in place.

    Raises:
        ValueError: where names or shapes are not the same in every process.
    """
    if world() == 1:
        return
    check_same("the parameters", ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in named))
    for _, tensor in named:
        values = tensor.detach().contiguous()
        with _answering():
            dist.broadcast(values, 0, group=_group_of(values.device))
        tensor.detach().copy_(values)


@torch.no_grad()
def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Sums the gradients of all processes, so that each has the same; for `on_gradients` of `ppvae.SVI`.

    Every process weighs its loss by what its data are of the whole minibatch: `svi.update(x, weight=1 / n)`.

    Args:
        parameters: the same in every process. One that has a gradient in some process has it then in all.

    Raises:
        TypeError: naming the shape of a parameter whose gradient is sparse.
    """
    if world() == 1:
        return
    kinds = dict.fromkeys((p.device, p.dtype) for p in parameters)
    for kind in kinds:
        bucket: list[Tensor] = []
        for parameter in parameters:
            if (parameter.device, parameter.dtype) != kind:
                continue
            if bucket and sum(p.numel() for p in bucket) + parameter.numel() > BUCKET:
                _sum_bucket(bucket)
                bucket = []
            bucket.append(parameter)
        _sum_bucket(bucket)


def _sum_bucket(parameters: Sequence[Tensor]) -> None:
    """Sums the gradients of some parameters of one kind, and how many processes have each."""
    own = [p.grad is not None for p in parameters]
    parts = [_flat(p) for p in parameters]
    counts = torch.tensor(own, dtype=parts[0].dtype).to(parts[0].device)
    flat = torch.cat([*parts, counts])
    with _answering():
        dist.all_reduce(flat, group=_group_of(flat.device))
    *sums, total = flat.split([*(len(part) for part in parts), len(own)])
    somewhere = own if all(own) else total.tolist()  # a GPU is waited for only where a gradient is missing
    for parameter, found, has in zip(parameters, sums, somewhere, strict=True):
        if parameter.grad is not None:
            parameter.grad.copy_(found.view(parameter.shape))
        elif has:
            parameter.grad = found.view(parameter.shape).clone()


def _flat(parameter: Tensor) -> Tensor:
    """The gradient in one row; zeros where there is none."""
    if parameter.grad is None:
        return parameter.new_zeros(parameter.numel())
    if parameter.grad.is_sparse:
        raise TypeError(
            f"the gradient of a parameter of shape {tuple(parameter.shape)} is sparse, and many processes sum dense "
            "ones alone: let its embedding have sparse=False"
        )
    return parameter.grad.reshape(-1)


def dealt(items: Sequence[Item], compute: Callable[[Item], T], *, device: torch.device | str = "cpu") -> Iterator[T]:
    """What a computation gives for each item, in their order; each is done by one process, and everybody has all.

    The values are those of one process where an item alone decides what is drawn for it. An error of one process is
    everybody's: of several that of the first item.

    Args:
        items: the same in every process.
        compute: from an item to a value.
        device: where the tensors in values of other processes go.

    Example:
        >>> from ppvae import processes
        >>> list(processes.dealt([1, 2, 3], lambda i: i * i))
        [1, 4, 9]
    """
    size = world()
    if size == 1 or len(items) == 1:
        yield from map(compute, items)
        return
    mine = rank()
    for start in range(0, len(items), size):
        here = items[start : start + size]
        with alone():  # what is computed may itself be dealt elsewhere
            answer = _attempt(partial(compute, here[mine])) if mine < len(here) else None
        for number, sent in enumerate(gather(None if answer is None else _packed(answer))[: len(here)]):
            yield _value_of(answer if number == mine else _unpacked(sent, device))


def each_seeded(items: Sequence[Item], compute: Callable[[Item], T], *, device: torch.device) -> list[T]:
    """The same of a computation that draws from the global generators: of several items each has seeds of its own.

    These are drawn here, so that they are the same in every process, and an item's draws whoever computes it.

    Args:
        items: the same in every process.
        compute: a function of one of them.
        device: whose generators it draws from, beside the CPU's.
    """
    if len(items) == 1:
        return [compute(items[0])]
    seeded = [(item, int(torch.randint(2**62, ()))) for item in items]

    def apart(item_and_seed: tuple[Item, int]) -> T:
        item, seed = item_and_seed
        with forked_rng(device, seed):
            return compute(item)

    return list(dealt(seeded, apart, device=device))


Answer = tuple[Any, Exception | None]


def _attempt(function: Callable[[], Any]) -> Answer:
    """What a function gives, or raises."""
    try:
        return function(), None
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # an exception may take other arguments than it keeps
            return None, RuntimeError(f"{type(error).__name__}: {error}")
        return None, error


def _value_of(answer: Answer | None) -> Any:
    assert answer is not None
    value, error = answer
    if error is not None:
        raise error
    return value


def _packed(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpacked(sent: bytes | None, device: torch.device | str) -> Any:
    """What another process of this run has packed: no file, and nobody else's."""
    assert sent is not None
    return torch.load(io.BytesIO(sent), map_location=device, weights_only=False)


@contextmanager
def _answering() -> Iterator[None]:
    """Says what it means where the others do not answer."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"process {dist.get_rank()} of {dist.get_world_size()} has no answer from the others: one has ended, or is "
            "elsewhere in the script (every process must make the same calls of ppvae, in the same order)"
        ) from error


def _group_of(device: torch.device) -> Any:
    """The processes as they reach each other from a device."""
    return _decisions() if device.type == "cpu" else None


def _decisions() -> Any:
    """The processes for decisions, joined where they are not yet; None where this one is alone."""
    if _is_alone.get() or not dist.is_available() or get_worker_info() is not None:
        return None
    if not dist.is_initialized() and not _start():
        return None
    if dist.get_world_size() == 1:
        return None
    if _control[0] is not dist.group.WORLD:
        by_gloo = "cpu:gloo" in str(dist.get_backend_config()).split(",")
        _control[:] = [dist.group.WORLD, dist.group.WORLD if by_gloo else dist.new_group(backend="gloo")]
    return _control[1]


def _start() -> bool:
    """Starts what `torchrun` has prepared; whether it did."""
    if not dist.is_torchelastic_launched() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    if os.environ.setdefault(JOINED, str(os.getpid())) != str(os.getpid()):
        return False  # what a process of the run has started is none of them
    # Its functions take the processes as a default: imported later, as torch.compile does, it would keep them for good,
    # and gloo's threads with them, which abort an interpreter that ends before they have let go of their tensors.
    importlib.import_module("torch.distributed.nn.functional")
    on_gpus = 0 < int(os.environ["LOCAL_WORLD_SIZE"]) <= torch.cuda.device_count()
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, number, size = next(dist.rendezvous("env://"))
    if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]:
        # The store outlives a restart, and holds where the processes were that have ended.
        store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", store=store, rank=number, world_size=size)
    atexit.register(_leave)
    return True


def _leave() -> None:
    """Ends the joined processes, of which nothing may be left when the interpreter goes."""
    _control[:] = [None, None]
    gc.collect()  # an error that was caught has frames in which they are named
    if dist.is_initialized():
        dist.destroy_process_group()
