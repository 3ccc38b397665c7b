"""The deep Markov model of Pyro's examples beside ours on Bach's chorales, each trained for as much processor time.

Both are judged by ppvae's importance samples on the same test chorales: nats for each step. Pyro's class, optimizer and
settings are those of `examples/dmm.py` in a checkout of it; its annealing over 1,000 epochs, which so short a training
does not reach, is over `--anneal` of them. Ours is what `python -m ppvae.examples.chorales --dataset jsb` builds.

    python benchmarks/chorales.py --pyro CHECKOUT --data-root data --minutes 2
"""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
import tyro
from pyro.contrib.examples import polyphonic_data_loader as poly
from pyro.infer import Trace_ELBO
from pyro.optim import ClippedAdam
from torch import Tensor, nn

import ppvae
from ppvae.data import LengthBuckets, Series, SeriesData, load_chorales
from ppvae.examples import chorales
from ppvae.examples.chorales import per_step

BATCH = 20
GROUP = 9
"""Test chorales that are evaluated together, of similar lengths."""


@dataclass(frozen=True)
class Args:
    """Train both, evaluate both."""

    pyro: Path
    """Checkout of Pyro's repository."""
    data_root: Path = Path("data")
    """Where the chorales are kept."""
    minutes: float = 2.0
    """Processor time of either training."""
    anneal: int = 20
    """Epochs over which Pyro's KL weight goes from 0.2 to 1; its own default is 1000."""
    num_samples: int = 20
    """Importance samples of each chorale."""


class PyrosPair(nn.Module):
    """Pyro's class as a pair of series and their lengths."""

    def __init__(self, dmm: Any) -> None:
        super().__init__()
        self.dmm = dmm

    def model(self, x: Tensor, lengths: Tensor) -> None:
        """Its model."""
        self.dmm.model(*self.prepared(x, lengths))

    def guide(self, x: Tensor, lengths: Tensor) -> None:
        """Its guide."""
        self.dmm.guide(*self.prepared(x, lengths))

    def prepared(self, x: Tensor, lengths: Tensor) -> tuple[Any, ...]:
        """Its arguments: a series, the same reversed and packed, a mask and the lengths."""
        x = x[:, : int(lengths.max())]
        packed = nn.utils.rnn.pack_padded_sequence(
            poly.reverse_sequences(x, lengths), lengths, batch_first=True, enforce_sorted=False
        )
        return x, packed, poly.get_mini_batch_mask(x, lengths), lengths


def train_pyros(args: Args, data: SeriesData) -> tuple[nn.Module, int]:
    """Trains Pyro's example as it does; the pair, and the epochs that it came to."""
    spec = importlib.util.spec_from_file_location("dmm", args.pyro / "examples" / "dmm.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    torch.manual_seed(0)
    dmm = example.DMM(rnn_dropout_rate=0.1)
    options = {"lr": 3e-4, "betas": (0.96, 0.999), "clip_norm": 10.0, "lrd": 0.99996, "weight_decay": 2.0}
    svi = pyro.infer.SVI(dmm.model, dmm.guide, ClippedAdam(options), Trace_ELBO())
    x, lengths = data.train
    batches = -(-len(x) // BATCH)
    epoch = 0
    for epoch in epochs(args.minutes):
        for i, rows in enumerate(torch.randperm(len(x)).split(BATCH)):
            weight = min(1.0, 0.2 + 0.8 * (i + 1 + epoch * batches) / (args.anneal * batches))
            svi.step(*poly.get_mini_batch(rows, x, lengths), weight)
    return PyrosPair(dmm).eval(), epoch + 1


def train_ours(args: Args, data: SeriesData) -> tuple[nn.Module, int]:
    """Trains the example's pair; the weights of the last epoch."""
    flags = chorales.Args(dataset="jsb", data_root=args.data_root).resolved()
    torch.manual_seed(0)
    pair = chorales.build(flags, chorales.load_rolls(flags))
    svi = ppvae.SVI(pair.model, pair.guide, lambda ps: torch.optim.Adam(ps, lr=3e-3), Trace_ELBO(), compile=False)
    batches = LengthBuckets(*data.train, batch_size=BATCH)
    epoch = 0
    for epoch in epochs(args.minutes):
        pair.beta = min(1.0, (epoch + 1) / 10)
        for batch in batches.epoch(epoch):
            svi.step(*batch)
    return pair.eval(), epoch + 1


def epochs(minutes: float) -> Iterator[int]:
    """Numbers of epochs until the processor time is over."""
    start, epoch = time.process_time(), 0
    while time.process_time() - start < 60 * minutes:
        yield epoch
        epoch += 1


def evaluated(pair: nn.Module, test: Series, num_samples: int) -> str:
    """The ELBO by one sample and log p(x), nats for each step, of test series in groups of similar lengths."""
    bounds, values = [], []
    order = test.lengths.argsort(descending=True)
    for rows in order.split(GROUP):
        lengths = test.lengths[rows]
        batch = test.x[rows, : lengths.max()], lengths
        bounds.append(ppvae.elbo(pair, *batch, num_samples=1).values)
        values.append(ppvae.log_marginal(pair, *batch, num_samples=num_samples).values)
    found = [per_step(torch.cat(of), test.lengths[order]) for of in (bounds, values)]
    return "   ".join(f"{of['mean']:.2f} ± {of['std_error']:.2f}" for of in found)


def main() -> None:
    """Prints a row for each."""
    args = tyro.cli(Args)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    data = load_chorales(args.data_root)
    contestants: dict[str, Callable[[Args, SeriesData], tuple[nn.Module, int]]] = {
        "Pyro's example": train_pyros,
        "ppvae": train_ours,
    }
    print(f"{args.minutes:g} min of processor time each; ELBO and log p(x) with K = {args.num_samples}, nats per step")
    for name, train in contestants.items():
        pyro.clear_param_store()
        pyro.enable_validation(False)  # Pyro's scales may round to zero, which its checks refuse
        pair, count = train(args, data)
        print(f"{name:16} {count:5d} epochs   {evaluated(pair, data.test, args.num_samples)}", flush=True)


if __name__ == "__main__":
    main()
