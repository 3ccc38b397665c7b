"""Data of which each of many processes is given its own part."""

import pytest
import torch

import ppvae
from ppvae import processes
from ppvae.data import Source
from tests.group import values
from tests.infer.pairs import ADAM, FixedNoise, binary, noise, state, summary

N = 67


class Streamed(torch.utils.data.IterableDataset):
    """Rows of which every process reads its part."""

    def __init__(self, sizes):
        self.sizes = sizes

    def __iter__(self):
        start = sum(self.sizes[: processes.rank()])
        yield from zip(binary(N)[start:][: self.sizes[processes.rank()]], noise()[start:], strict=False)


def streamed(sizes, batch_size):
    pair, data = FixedNoise(), torch.utils.data.DataLoader(Streamed(sizes), batch_size=batch_size)
    return summary(pair, ppvae.fit(pair, data, epochs=2, optim=ADAM, compile=False, progress=False))


@pytest.mark.parametrize("sizes", [(34, 33), (30, 29, 8)])
def test_streams_of_each_process(group, sizes):
    """The minibatches of all together are one; a stream that is shorter than the others ends before them."""
    rows = [list(zip(binary(N), noise(), strict=True))[sum(sizes[:i]) :][:n] for i, n in enumerate(sizes)]
    minibatches = [
        tuple(torch.stack(column) for column in zip(*(row for part in rows for row in part[i : i + 8]), strict=True))
        for i in range(0, max(sizes), 8)
    ]
    pair = FixedNoise()
    run = ppvae.fit(pair, minibatches, epochs=2, optim=ADAM, compile=False, progress=False)
    for weights, history in values(group(len(sizes), streamed, sizes, 8)):
        assert all(torch.allclose(weights[name], value, atol=2e-5) for name, value in state(pair).items())
        assert history[-1]["loss"] == pytest.approx(run.history[-1]["loss"], rel=1e-5)


def sampled():
    rows = torch.utils.data.TensorDataset(binary(64), noise(64))
    sampler = torch.utils.data.DistributedSampler(rows, seed=5)
    pair, data = FixedNoise(), torch.utils.data.DataLoader(rows, batch_size=8, sampler=sampler)
    return summary(pair, ppvae.fit(pair, data, epochs=2, optim=ADAM, compile=False, progress=False))


def test_distributed_samplers_shuffle_every_epoch(group):
    """As one process with the order that both samplers have together."""
    (weights, history), (_, theirs) = values(group(2, sampled))
    assert history == theirs
    samplers = [torch.utils.data.DistributedSampler(range(64), 2, rank, seed=5) for rank in (0, 1)]

    class Both(Source):
        num_batches = 4

        def epoch(self, index):
            for sampler in samplers:
                sampler.set_epoch(index)
            orders = [torch.tensor(list(sampler)).split(8) for sampler in samplers]
            for rows in zip(*orders, strict=True):
                yield binary(64)[torch.cat(rows)], noise(64)[torch.cat(rows)]

    pair = FixedNoise()
    run = ppvae.fit(pair, Both(), epochs=2, optim=ADAM, compile=False, progress=False)
    assert all(torch.allclose(weights[name], value, atol=2e-5) for name, value in state(pair).items())
    assert history[-1]["loss"] == pytest.approx(run.history[-1]["loss"], rel=1e-5)
