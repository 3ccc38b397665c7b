"""Minibatches of several sets side by side: each set in whole epochs of its own, weighted to its size."""

import pytest
import torch

from ppvae.data import Batches, JointBatches


def sets(*sizes, batch_size=4, **options):
    """Data sets whose values are their own row numbers, with 100 added for each set before."""
    return [Batches(torch.arange(n) + 100 * i, batch_size=batch_size, **options) for i, n in enumerate(sizes)]


def values(epoch, i):
    """The rows of set `i` in an epoch, step by step."""
    return [batches[i][0].tolist() for batches in epoch]


def own_epochs(part, *indices):
    """The minibatches of some epochs of one set, one after another."""
    return [x.tolist() for index in indices for (x,) in part.epoch(index)]


def test_an_epoch_is_one_pass_over_the_longest_set():
    both = JointBatches(*sets(8, 21))
    epoch = list(both.epoch(3))
    assert len(both) == len(epoch) == 6
    assert sorted(row for rows in values(epoch, 1) for row in rows) == list(range(100, 121))
    assert both.num_data == 29
    assert all(isinstance(batch, tuple) for batches in epoch for batch in batches)


def test_shorter_sets_go_round_in_new_orders_from_epoch_to_epoch():
    small, large = sets(7, 18)  # 2 and 5 minibatches: epochs of the small one begin in the middle
    both = JointBatches(small, large)
    seen = [step for index in range(4) for step in values(both.epoch(index), 0)]
    assert seen == own_epochs(small, *range(10))
    assert len({tuple(map(tuple, seen[i : i + 2])) for i in range(0, 20, 2)}) == 10
    assert [step for index in range(4) for step in values(both.epoch(index), 1)] == own_epochs(large, *range(4))


def test_an_epoch_is_a_function_of_its_number():
    one, two = (JointBatches(*sets(7, 18, seed=3)) for _ in range(2))
    list(one), list(one)
    for i in (0, 1):
        assert values(one.epoch(5), i) == values(two.epoch(5), i)
        assert values(iter(one), i) == values(two.epoch(2 + i), i)  # iteration counts the epochs
    assert values(one.epoch(0), 1) != values(one.epoch(1), 1)
    # Part of an epoch, however far it was taken, says nothing about the next.
    next(one.epoch(6))
    assert values(one.epoch(6), 0) == values(two.epoch(6), 0)


def test_transforms_draw_the_same_in_a_round_that_begins_in_another_epoch():
    def noisy(generator, x):
        return (x + torch.rand(len(x), generator=generator),)

    small = sets(7, transform=noisy)[0]
    both = JointBatches(small, sets(18)[0])
    assert [step for index in range(2) for step in values(both.epoch(index), 0)] == own_epochs(small, *range(5))


@pytest.mark.parametrize(
    ("n", "drop_last", "weight"),
    [
        (8, False, 2.0),
        (9, False, 3.0),
        (9, True, 9 / 4),
        (3, False, 1.0),
        (4, True, 1.0),
    ],
)
def test_weights(n, drop_last, weight):
    part = sets(n, drop_last=drop_last)[0]
    both = JointBatches(part, *sets(12))
    assert both.weights == pytest.approx((weight, 3.0))
    # Σ over an epoch of its own, averaged over the steps, is N/n̄ · Σ rows: 1 for each row that is in it
    rows = sum(len(x) for (x,) in part.epoch(0))
    assert both.weights[0] * rows / len(part) == pytest.approx(n)


def test_one_set_alone():
    part = sets(9)[0]
    alone = JointBatches(part)
    assert values(alone.epoch(2), 0) == own_epochs(part, 2)
    assert alone.weights == (3.0,)
    assert len(alone) == 3


def test_several_tensors_stay_aligned():
    x = torch.arange(10)
    labelled = Batches(x, x * 2.0, batch_size=3)
    for (a, b), (c,) in JointBatches(labelled, *sets(20)):
        assert torch.equal(b, a * 2.0)
        assert len(c) == 4


def test_moving_keeps_the_place():
    both = JointBatches(*sets(7, 18))
    list(both)
    moved = both.to("cpu")
    assert moved.device == both.device == torch.device("cpu")
    assert moved.sets[0].tensors[0] is both.sets[0].tensors[0]
    assert values(iter(moved), 0) == values(both.epoch(1), 0)


def test_errors():
    with pytest.raises(ValueError, match="at least one is needed"):
        JointBatches()
    with pytest.raises(TypeError, match=r"sets\[1\] must be Batches, got Tensor"):
        JointBatches(*sets(3), torch.zeros(3))
    with pytest.raises(TypeError, match=r"sets\[0\] must be Batches, got JointBatches"):
        JointBatches(JointBatches(*sets(3)))
    both = JointBatches(*sets(3, 9))
    with pytest.raises(ValueError, match="index"):
        both.epoch(-1)
    with pytest.raises(ValueError, match="index"):
        both.epoch(1.0)
    (elsewhere,) = sets(3)
    elsewhere.device = torch.device("meta")
    with pytest.raises(ValueError, match="one device"):
        JointBatches(*sets(3), elsewhere)
