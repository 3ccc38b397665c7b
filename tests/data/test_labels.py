"""Which data keep their labels: as many of each class, a function of the seed."""

import pytest
import torch

from ppvae.data import split_labels


def labels(*counts, seed=0):
    """Labels with so many of each class, shuffled."""
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]


@pytest.mark.parametrize(
    ("num_labels", "expected"),
    [(0, [0, 0, 0]), (1, [1, 0, 0]), (2, [1, 1, 0]), (3, [1, 1, 1]), (10, [4, 3, 3]), (15, [5, 5, 5])],
)
def test_classes_are_balanced(num_labels, expected):
    y = labels(50, 5, 20)
    labelled, unlabelled = split_labels(y, num_labels)
    assert y[labelled].bincount(minlength=3).tolist() == expected
    assert torch.equal(torch.cat([labelled, unlabelled]).sort().values, torch.arange(75))
    for rows in (labelled, unlabelled):
        assert rows.dtype == torch.int64
        assert torch.equal(rows, rows.sort().values)


def test_all_labels_whatever_the_balance():
    labelled, unlabelled = split_labels(labels(9, 1), 10)
    assert torch.equal(labelled, torch.arange(10))
    assert unlabelled.shape == (0,)
    assert torch.zeros(10, 2)[unlabelled].shape == (0, 2)


def test_a_draw_is_a_function_of_the_seed():
    y = labels(40, 40)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = split_labels(y, 10, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(first, split_labels(y, 10, seed=3), strict=True))
    assert len({tuple(split_labels(y, 10, seed=seed)[0].tolist()) for seed in range(20)}) == 20
    # More labels keep the ones that there were: experiments with 10 and 20 labels are nested.
    assert set(first[0].tolist()) < set(split_labels(y, 20, seed=3)[0].tolist())


def test_every_datum_of_a_class_is_drawn_alike():
    y = labels(6, 6)
    counts = torch.zeros(12)
    for seed in range(600):
        counts[split_labels(y, 4, seed=seed)[0]] += 1
    # each has the chance 1/3 of being drawn: 200 ± 11.5
    assert (counts - 200).abs().max() < 4 * 11.6


def test_only_labels_of_the_same_class_matter():
    y = labels(30, 30)
    chosen = split_labels(y, 6)[0]
    renamed = split_labels(torch.where(y == 0, 7, -2), 6)[0]
    assert torch.equal(chosen, renamed)
    assert torch.equal(chosen, split_labels(y.to(torch.uint8), 6)[0])


@pytest.mark.parametrize(
    ("y", "num_labels", "error", "message"),
    [
        ([0, 1], 1, TypeError, "y must be a torch.Tensor"),
        (torch.zeros(3), 1, TypeError, "integer labels, got torch.float32"),
        (torch.tensor([True, False]), 1, TypeError, "integer labels, got torch.bool"),
        (torch.zeros(3, 2, dtype=torch.int64), 1, ValueError, "argmax"),
        (labels(2, 2), 5, ValueError, "at most the 4 data"),
        (labels(2, 2), -1, ValueError, "num_labels"),
        (labels(2, 2), 1.0, ValueError, "num_labels"),
        (labels(9, 1), 4, ValueError, "needs 2 data of class 1, there are 1"),
    ],
)
def test_errors(y, num_labels, error, message):
    with pytest.raises(error, match=message):
        split_labels(y, num_labels)


def test_bad_seeds():
    for seed in (-1, 0.5):
        with pytest.raises(ValueError, match="seed"):
            split_labels(labels(2, 2), 2, seed=seed)
