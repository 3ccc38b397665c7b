"""Texts come back as they went in, and every minibatch of a bucket holds whole sequences."""

import pytest
import torch

from ppvae.data import LengthBuckets, Vocabulary

TEXTS = ["so it goes", "so be it", "", "be"]


def test_texts_come_back():
    for unit in ("characters", "words"):
        vocabulary = Vocabulary.of(TEXTS, unit)
        x, lengths = vocabulary.encode(TEXTS)
        assert vocabulary.decode(x) == vocabulary.decode(x, lengths) == TEXTS
        assert (x.gather(1, lengths[:, None] - 1) == Vocabulary.end).all()
        assert ((x == Vocabulary.end) == (torch.arange(x.shape[1]) >= lengths[:, None] - 1)).all()
    assert lengths.tolist() == [4, 4, 1, 2]
    assert Vocabulary.of(TEXTS, "words").symbols == ("be", "it", "so", "goes")


def test_what_is_not_in_the_vocabulary_is_unknown():
    vocabulary = Vocabulary.of(TEXTS, "words", min_count=2)
    x, _ = vocabulary.encode(["so it went"], num_steps=6)
    assert x.shape == (1, 6)
    assert vocabulary.decode(x) == ["so it <unknown>"]
    assert len(vocabulary) == 5


def test_a_length_cuts_before_an_end():
    vocabulary = Vocabulary.of(TEXTS)
    x, _ = vocabulary.encode(["goes"])
    assert vocabulary.decode(x, torch.tensor([2])) == ["go"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Vocabulary.of("text"), TypeError, "texts must be a list of strings, got str"),
        (lambda: Vocabulary.of(["a", 3]), TypeError, r"texts\[1\] must be a string, got int"),
        (lambda: Vocabulary.of(["a"], "lines"), ValueError, "unit must be 'characters' or 'words', got 'lines'"),
        (lambda: Vocabulary.of(["a"], min_count=2), ValueError, "texts must hold a token that occurs 2 times"),
        (lambda: Vocabulary(("a", "a")), ValueError, "symbols must be different from each other"),
        (lambda: Vocabulary(("a",)).encode([]), ValueError, "texts must hold at least one, got none"),
        (
            lambda: Vocabulary(("a",)).encode(["a", "aaa"], num_steps=3),
            ValueError,
            r"num_steps=3 .*: 4; texts\[1\] has 4",
        ),
        (
            lambda: Vocabulary(("a",)).decode(torch.tensor([[3]])),
            ValueError,
            "x must hold tokens from 0 to 2, got 3 to 3",
        ),
        (lambda: Vocabulary(("a",)).decode(torch.zeros(3)), ValueError, r"x must be whole numbers of shape \(n, t\)"),
    ],
)
def test_errors_of_a_vocabulary(call, error, message):
    with pytest.raises(error, match=message):
        call()


def data(n=103):
    lengths = 1 + torch.randint(20, (n,))
    return torch.where(torch.arange(22) < lengths[:, None], 1 + torch.arange(n)[:, None], 0), lengths


def test_every_sequence_is_in_an_epoch_once_and_whole():
    x, lengths = data()
    buckets = LengthBuckets(x, lengths, batch_size=8, num_buckets=3)
    batches = list(buckets.epoch(0))
    assert len(batches) == buckets.num_batches == 13
    assert sorted(len(b) for b, _ in batches) == [buckets.last_rows] + [8] * 12
    rows = torch.cat([part[:, 0] for part, _ in batches]) - 1
    assert sorted(rows.tolist()) == list(range(103))
    assert torch.equal(torch.cat([n for _, n in batches]), lengths[rows])
    for part, n in batches:
        assert part.shape[1] in buckets.widths
        assert part.shape[1] >= n.max()
        assert torch.equal((part > 0).sum(1), n)


def test_few_shapes_and_less_padding():
    x, lengths = data()
    buckets = LengthBuckets(x, lengths, batch_size=8, num_buckets=3)
    shapes = {part.shape for epoch in range(5) for part, _ in buckets.epoch(epoch)}
    assert len({shape for shape in shapes if shape[0] == 8}) == 3
    assert len(shapes) == 4
    padded = sum(part.numel() for part, _ in buckets.epoch(0))
    assert padded < 0.75 * 103 * int(lengths.max())


def test_an_epoch_is_a_function_of_seed_and_number():
    x, lengths = data()
    buckets, again = (LengthBuckets(x, lengths, batch_size=8, seed=1) for _ in range(2))
    first = [part for part, _ in buckets.epoch(1)]
    assert all(torch.equal(a, b) for a, (b, _) in zip(first, again.epoch(1), strict=True))
    assert any(not torch.equal(a, b) for a, (b, _) in zip(first, again.epoch(0), strict=True) if a.shape == b.shape)
    neighbours = [{*(part[:, 0] - 1).tolist()} for epoch in range(2) for part, _ in buckets.epoch(epoch)]
    assert len(set(map(frozenset, neighbours))) == 26  # none comes back


def test_vectors_and_equal_lengths():
    buckets = LengthBuckets(torch.randn(10, 7, 3), torch.full((10,), 5), batch_size=4)
    assert [tuple(x.shape) for x, _ in buckets.epoch(0)].count((4, 5, 3)) == 2
    assert buckets.widths == (5,)
    assert buckets.to("cpu").digest() == buckets.digest()
    assert buckets.settings() == {"batch_size": 4, "num_buckets": 3, "seed": 0}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"x": [1]}, TypeError, "x must be a torch.Tensor, got list"),
        ({"x": torch.zeros(3)}, ValueError, r"x must be sequences of shape \(n, t, ...\), got \(3,\)"),
        ({"lengths": torch.ones(4, dtype=torch.long)}, ValueError, r"lengths must hold one number for each of 3 seq"),
        ({"lengths": torch.tensor([1, 2, 8])}, ValueError, "lengths must be from 1 to 7, the steps that there are"),
        ({"lengths": torch.ones(3)}, TypeError, "lengths must be of an integer dtype, got torch.float32"),
        ({"batch_size": 0}, ValueError, "batch_size must be a whole number >= 1, got 0"),
        ({"num_buckets": 0}, ValueError, "num_buckets must be a whole number >= 1, got 0"),
        ({"seed": -1}, ValueError, "seed must be a whole number >= 0, got -1"),
    ],
)
def test_errors_of_buckets(options, error, message):
    arguments = {"x": torch.zeros(3, 7), "lengths": torch.ones(3, dtype=torch.long), "batch_size": 2}
    with pytest.raises(error, match=message):
        LengthBuckets(**arguments | options)
