"""Memory while processes train on a stream larger than they could hold: each generates its part, and reads it once.

python benchmarks/streaming.py --processes 2 --gibibytes 2
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

import ppvae
from ppvae import processes
from ppvae.models import PPCA

DIM, BATCH = 1024, 256
"""Numbers of a datum, and data of a minibatch: one mebibyte."""


@dataclass(frozen=True)
class Args:
    """Train on a generated stream, and print the memory of the first process."""

    processes: int = 2
    """How many processes, on this machine."""
    gibibytes: float = 2.0
    """Size of the stream, of all processes together."""


class Stream(IterableDataset[Tensor]):
    """This process's part of minibatches, each made when it is asked for."""

    def __init__(self, num_minibatches: int) -> None:
        self.num_minibatches = num_minibatches

    def __iter__(self) -> Iterator[Tensor]:
        for i in range(processes.rank(), self.num_minibatches, processes.world()):
            if i % (self.num_minibatches // 4 or 1) < processes.world():
                show_memory(i, self.num_minibatches)
            yield torch.randn(BATCH, DIM, generator=torch.Generator().manual_seed(i))


def show_memory(i: int, of: int) -> None:
    """Prints how much memory the first process holds now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    mebibytes = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    processes.show(f"minibatch {i:>6} of {of}: {mebibytes:8.0f} MiB resident")


def train(args: Args) -> None:
    """Runs in every process."""
    stream = Stream(int(1024 * args.gibibytes))
    run = ppvae.fit(PPCA(DIM, 8), DataLoader(stream, batch_size=None), epochs=1, compile=False, progress=False)
    processes.show(f"one pass over {args.gibibytes:g} GiB, loss {run.history[0]['loss']:.2f}")


if __name__ == "__main__":
    options = tyro.cli(Args)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        train(options)
    else:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        sys.exit(subprocess.run([*launch, str(options.processes), *sys.argv]).returncode)
