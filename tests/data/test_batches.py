"""Minibatches: every row once, and an epoch is a function of (seed, index) only."""

import random
import time

import numpy as np
import pytest
import torch

from ppvae.data import Batches, Binarize


def rows(batches, index):
    """The rows of one epoch, in order, of data that are their own row numbers."""
    return torch.cat([x for x, *_ in batches.epoch(index)])


def draws(generator, x):
    """A transform that shows the generator's stream."""
    return x, torch.rand(len(x), generator=generator)


def test_an_epoch_holds_every_row_once_and_keeps_tensors_aligned():
    x = torch.arange(103)
    batches = Batches(x, x.reshape(-1, 1) * 2.0, batch_size=10)
    sizes, seen = [], []
    for a, b in batches.epoch(4):
        assert torch.equal(b, a.reshape(-1, 1) * 2.0)
        sizes.append(len(a))
        seen.append(a)
    assert sizes == [10] * 10 + [3]
    assert torch.equal(torch.cat(seen).sort().values, x)
    assert len(batches) == 11
    assert (batches.num_data, batches.batch_size, batches.device) == (103, 10, torch.device("cpu"))
    assert batches.tensors[0] is x


@pytest.mark.parametrize(
    ("n", "size", "drop_last", "count"),
    [
        (9, 3, False, 3),
        (9, 3, True, 3),
        (10, 3, True, 3),
        (10, 3, False, 4),
        (2, 5, False, 1),
        (5, 5, True, 1),
    ],
)
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_number_of_minibatches(n, size, drop_last, count, shuffle):
    batches = Batches(torch.arange(n), batch_size=size, drop_last=drop_last, shuffle=shuffle)
    found = [len(x) for (x,) in batches]
    assert len(found) == len(batches) == count
    assert sum(found) == (count * size if drop_last else n)
    assert not drop_last or set(found) == {size}


def test_without_shuffling_the_minibatches_are_slices():
    x = torch.arange(7)
    batches = Batches(x, batch_size=3, shuffle=False)
    assert torch.equal(rows(batches, 0), x)
    assert torch.equal(rows(batches, 1), x)
    (first,) = next(batches.epoch(0))
    assert first.data_ptr() == x.data_ptr()


def test_an_epoch_is_a_function_of_seed_and_index():
    x = torch.arange(50)
    one, two = (Batches(x, batch_size=7, seed=3, transform=draws) for _ in range(2))
    list(one), list(one)
    for (a, u), (b, v) in zip(one.epoch(5), two.epoch(5), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(u, v)
    orders = [
        tuple(rows(Batches(x, batch_size=7, seed=seed), index).tolist()) for seed in range(6) for index in range(6)
    ]
    assert len(set(orders)) == 36
    # Nor does a seed beyond 32 bits run into another seed's epochs.
    assert not torch.equal(rows(Batches(x, batch_size=7, seed=2**32), 0), rows(Batches(x, batch_size=7, seed=0), 1))


def test_the_order_does_not_depend_on_the_transform_or_the_batch_size():
    x = torch.arange(50)
    plain = rows(Batches(x, batch_size=7), 2)
    assert torch.equal(plain, rows(Batches(x, batch_size=7, transform=draws), 2))
    assert torch.equal(plain, rows(Batches(x, batch_size=50), 2))


def test_iteration_counts_the_epochs():
    batches = Batches(torch.arange(20), batch_size=4)
    for index in range(3):
        assert torch.equal(torch.cat([x for (x,) in batches]), rows(batches, index))
    # An iterator that is dropped half-way has used its epoch up.
    next(iter(batches))
    assert torch.equal(torch.cat([x for (x,) in batches]), rows(batches, 4))


def test_interleaved_iterations_do_not_disturb_each_other():
    x = torch.arange(30)
    one, two = (
        Batches(x, batch_size=4, seed=1, transform=draws),
        Batches(x, batch_size=4, seed=2, transform=draws),
    )
    alone = [list(one.epoch(0)), list(two.epoch(0)), list(one.epoch(1))]
    streams = [one.epoch(0), two.epoch(0), one.epoch(1)]
    together = zip(*[[next(stream) for stream in streams] for _ in range(len(one))], strict=True)
    for lone, mixed in zip(alone, together, strict=True):
        for (a, u), (b, v) in zip(lone, mixed, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(u, v)


def test_the_global_generators_are_neither_read_nor_changed():
    batches = Batches(torch.rand(40, 3, generator=torch.Generator().manual_seed(0)), batch_size=8, transform=Binarize())
    torch.manual_seed(1)
    first = rows(batches, 0)
    torch.manual_seed(2)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    second = rows(batches, 0)
    assert torch.equal(first, second)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


def test_to_gives_the_same_epochs_on_the_same_device():
    batches = Batches(torch.arange(20), batch_size=6, seed=9)
    list(batches)
    moved = batches.to("cpu")
    assert torch.equal(torch.cat([x for (x,) in moved]), rows(batches, 1))
    assert torch.equal(torch.cat([x for (x,) in batches]), rows(batches, 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_everything_happens_there():
    x = torch.arange(1000)
    batches = Batches(x, batch_size=64, seed=1).to("cuda")
    assert batches.device == torch.device("cuda", torch.cuda.current_device())
    before = torch.cuda.get_rng_state()
    order = rows(batches, 0)
    assert order.is_cuda
    assert torch.equal(order, rows(Batches(x, batch_size=64, seed=1, device="cuda"), 0))
    assert torch.equal(order.sort().values.cpu(), x)
    assert torch.equal(before, torch.cuda.get_rng_state())


def test_float64_and_integers_are_taken_as_they_are():
    batches = Batches(torch.zeros(4, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.uint8), batch_size=2)
    a, b = next(iter(batches))
    assert (a.dtype, b.dtype) == (torch.float64, torch.uint8)


X = torch.zeros(5, 2)
NAN, INF = torch.zeros(2, 5, 2).unbind()
NAN[3, 1] = torch.nan
INF[[2, 4], 0] = -torch.inf


@pytest.mark.parametrize(
    ("tensors", "options", "error", "match"),
    [
        ((), {}, ValueError, "at least one is needed, got none"),
        (
            (X, np.zeros(5)),
            {},
            TypeError,
            r"tensors\[1\] must be a torch.Tensor, got ndarray; .*torch.from_numpy",
        ),
        (((X, X),), {}, TypeError, r"tensors\[0\] .* got tuple; .* unpack a split with \*"),
        ((torch.tensor(1.0),), {}, ValueError, r"tensors\[0\] must have rows with values, got shape \(\)"),
        ((torch.zeros(0, 3),), {}, ValueError, r"got shape \(0, 3\)"),
        ((torch.zeros(3, 0),), {}, ValueError, r"got shape \(3, 0\)"),
        ((X, X[:4]), {}, ValueError, r"tensors\[0\] has 5 rows, tensors\[1\] 4"),
        ((X, NAN), {}, ValueError, r"tensors\[1\] must be finite, but 1 of its rows are not, first row 3"),
        ((INF,), {}, ValueError, r"tensors\[0\] must be finite, but 2 of its rows are not, first row 2"),
        ((X.to(torch.complex64),), {}, TypeError, r"tensors\[0\] must be real, got torch.complex64"),
        ((X.to_sparse(),), {}, TypeError, r"must be dense, got layout torch.sparse_coo"),
        ((X,), {"batch_size": 0}, ValueError, "batch_size must be a whole number >= 1, got 0"),
        ((X,), {"batch_size": 2.0}, ValueError, "batch_size must be a whole number .* got 2.0"),
        ((X,), {"batch_size": True}, ValueError, "batch_size must be a whole number .* got True"),
        (
            (X,),
            {"batch_size": 6, "drop_last": True},
            ValueError,
            "batch_size=6 with drop_last=True .* 5 rows",
        ),
        ((X,), {"seed": -1}, ValueError, "seed must be a whole number >= 0, got -1"),
        ((X,), {"seed": None}, ValueError, "seed must be a whole number .* got None"),
        ((X,), {"transform": 3}, TypeError, "transform must be a function of .* got 3"),
        ((X + 2,), {"transform": Binarize()}, ValueError, r"Binarize: the first tensor .* from 2 to 2"),
        ((X,), {"device": "abacus"}, ValueError, "device must be a torch device .* got 'abacus'"),
    ],
)
def test_bad_input_is_named(tensors, options, error, match):
    with pytest.raises(error, match=match):
        Batches(*tensors, **{"batch_size": 2, **options})


def test_bad_epochs_and_devices_are_named_at_the_call():
    batches = Batches(X, batch_size=2)
    with pytest.raises(ValueError, match="index must be a whole number >= 0, got -1"):
        batches.epoch(-1)
    with pytest.raises(ValueError, match=r"index must be a whole number >= 0, got 1\.0"):
        batches.epoch(1.0)
    with pytest.raises(ValueError, match=r"device must be a torch device .* got 'abacus'"):
        batches.to("abacus")


def test_a_transform_that_returns_a_bare_tensor_is_an_error():
    batches = Batches(X, batch_size=2, transform=lambda generator, x: x)
    with pytest.raises(TypeError, match="transform must return a tuple of tensors, got Tensor"):
        next(iter(batches))


def test_iteration_costs_little_more_than_indexing_by_hand():
    x = torch.zeros(20000, 1, 28, 28)
    batches = Batches(x, batch_size=100)

    def ours():
        for _ in batches:
            pass

    def by_hand():
        order = torch.randperm(len(x))
        for i in range(0, len(x), 100):
            x[order[i : i + 100]]

    def seconds(epoch):
        start = time.perf_counter()
        epoch()
        return time.perf_counter() - start

    # The best of several, so that a busy machine does not fail the test.
    assert min(seconds(ours) for _ in range(7)) < 2 * min(seconds(by_hand) for _ in range(7))
