"""A step of many processes: what summing the gradients costs, and how much faster a minibatch is done.

VAE 784-400-20, Bernoulli, Adam. In one run, taking turns: one process on the whole minibatch while the others
wait; every process on its rows without the others; the same with what makes it one training; and that alone.

    python benchmarks/processes.py --processes 2
    python benchmarks/processes.py --processes 8 --cuda
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
import tyro
from pyro.infer import Trace_ELBO

from ppvae import processes
from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
from ppvae.infer import SVI
from ppvae.models import VAE
from ppvae.nn import MLP


@dataclass(frozen=True)
class Args:
    """Time steps of one and of many processes, side by side."""

    processes: int = 2
    """How many processes, on this machine."""
    batch_sizes: tuple[int, ...] = (128, 1024)
    """Images per minibatch, of all processes together."""
    steps: int = 50
    """Steps of a turn, after one that warms up."""
    rounds: int = 7
    """Turns of each contestant."""
    compile: bool = True
    """Whether the gradient is one compiled graph."""
    cuda: bool = False
    """On GPUs, one a process."""


def make(device: str, *, compile: bool, together: bool) -> SVI:
    """A training of the VAE, its gradients summed over processes or not."""
    torch.manual_seed(0)
    pair = VAE(
        p_z=StandardNormal(20),
        p_x_given_z=ConditionalBernoulli(MLP(20, (400,), 784)),
        q_z_given_x=ConditionalNormal(MLP(784, (400,), (2, 20))),
    ).to(device)
    hook = processes.sum_gradients if together else None
    optim = partial(torch.optim.Adam, lr=1e-3)
    return SVI(pair.model, pair.guide, optim, Trace_ELBO(), compile=compile, on_gradients=hook)


def stepping(svi: SVI, x: torch.Tensor, n: int) -> Callable[[], None]:
    """One step on these rows of a minibatch of n."""
    return lambda: (svi.update(x, weight=1 / n), None)[1]


def agreeing(svi: SVI) -> Callable[[], None]:
    """What a step of `fit` does besides: gradients of this size are summed, and all ask whether to stop."""

    def agree() -> None:
        for parameter in svi.parameters():
            parameter.grad = torch.zeros_like(parameter)
        processes.sum_gradients(svi.parameters())
        processes.any_of(False, False)

    return agree


def milliseconds(step: Callable[[], None], steps: int, device: str) -> float:
    """The time of one step, of a turn that all begin together."""
    processes.gather(None)
    began = time.perf_counter()
    for _ in range(steps):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - began) / steps


def measure(args: Args) -> None:
    """Runs in every process; the first prints."""
    processes.join()
    device = "cuda" if args.cuda else "cpu"
    world, rank = processes.world(), processes.rank()
    with ExitStack() as stack:
        own, whole, together = (make(device, compile=args.compile, together=summed) for summed in (False, False, True))
        for svi in (own, whole, together):
            stack.enter_context(svi.running())
            svi.setup((torch.zeros(2, 784, device=device),))
        for n in args.batch_sizes:
            x = (torch.rand(n, 784, device=device) < 0.2).float()
            part = x[rank * n // world : (rank + 1) * n // world]
            contestants = {
                "one process, all rows": stepping(whole, x, n) if rank == 0 else (lambda: None),
                "each its rows, apart": stepping(own, part, n),
                "each its rows, together": stepping(together, part, n),
                "of this the agreement": agreeing(together),
            }
            show(contestants, n, args, device)


def show(contestants: dict[str, Callable[[], None]], n: int, args: Args, device: str) -> None:
    """Takes turns, and prints the medians."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(args.rounds + 1):
        for name, step in contestants.items():
            took = milliseconds(step, args.steps, device)
            if turn:
                found[name].append(took)
    one = statistics.median(found["one process, all rows"])
    for name, times in found.items():
        median = statistics.median(times)
        ratio = "" if name.startswith("of") else f"{one / median:8.2f} times as fast as one"
        processes.show(f"batch {n:>5}  {name:<26}{median:>8.3f} ms a step{ratio}")


if __name__ == "__main__":
    options = tyro.cli(Args)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        measure(options)
    else:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        sys.exit(subprocess.run([*launch, str(options.processes), *sys.argv]).returncode)
