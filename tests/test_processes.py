"""What many processes agree on, in two and three of them."""

import pytest
import torch

from ppvae import processes
from tests.group import values


def agreements():
    rank = processes.rank()
    return (
        processes.world(),
        processes.gather({"rank": torch.tensor(rank)}),
        processes.any_of(rank == 1, False),
        processes.on_first(lambda: (processes.rank(), processes.world())),
        processes.in_turn(lambda: processes.rank()),
        list(processes.dealt(range(5), lambda i: (rank, i))),
    )


@pytest.mark.parametrize("world", [2, 3])
def test_agreements(group, world):
    for rank, (size, told, flags, first, turn, squares) in enumerate(values(group(world, agreements))):
        assert size == world
        assert flags == (True, False)
        assert first == (0, 1)
        assert turn == rank
        assert [int(t["rank"]) for t in told] == list(range(world))
        assert squares == [(i % world, i) for i in range(5)]


def errors():
    def fails_from(first):
        def fail(i):
            if i >= first:
                raise ValueError(f"item {i}")
            return i

        return fail

    found = []
    for attempt in (
        lambda: processes.on_first(lambda: 1 / 0),
        lambda: list(processes.dealt(range(9), fails_from(4))),
        lambda: processes.check_same("the seed", str(processes.rank())),
    ):
        with pytest.raises((ZeroDivisionError, ValueError)) as caught:
            attempt()
        found.append((type(caught.value), str(caught.value)))
    return found


def test_an_error_of_one_is_everybodys(group):
    first, second = values(group(2, errors))
    assert first == second
    kinds, texts = zip(*first, strict=True)
    assert kinds == (ZeroDivisionError, ValueError, ValueError)
    assert texts[1] == "item 4"
    assert "the seed must be the same" in texts[2]
    assert "process 1" in texts[2]


def summed(dtype):
    rank = processes.rank()
    parameters = [torch.nn.Parameter(torch.zeros(2, 3, dtype=dtype)) for _ in range(4)]
    parameters.append(torch.nn.Parameter(torch.zeros(5, dtype=torch.float64)))
    for i, p in enumerate(parameters):
        if i != 2 and (i != 1 or rank == 1):  # one has a gradient in process 1 alone, one nowhere
            p.grad = torch.full_like(p, rank + i + 1.0)
    parameters[0].grad = parameters[0].grad.t().contiguous().t()  # strides of another order
    parameters[0].grad[1, 2] = 0.5
    processes.sum_gradients(parameters)
    return [p.grad for p in parameters]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_summed(group, dtype):
    for zeroth, first, second, third, fourth in values(group(2, summed, dtype)):
        assert zeroth.dtype == dtype
        assert zeroth[0, 0] == 3.0
        assert zeroth[1, 2] == 1.0
        assert bool((first == 3.0).all())
        assert second is None
        assert bool((third == 9.0).all())
        assert fourth.dtype == torch.float64
        assert bool((fourth == 11.0).all())


def sparse():
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    processes.sum_gradients([embedding.weight])


def test_sparse_gradients_are_refused(group):
    for error in group(2, sparse):
        assert isinstance(error, TypeError)
        assert "sparse=False" in str(error)


def in_buckets():
    processes.BUCKET = 10
    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in (4, 7, 20, 3)]
    for i, p in enumerate(parameters):
        p.grad = torch.full_like(p, float(i))
    processes.sum_gradients(parameters)
    processes.BUCKET = 2**22
    return [float(p.grad.sum()) / p.numel() for p in parameters]


def test_buckets(group):
    assert values(group(2, in_buckets)) == [[0.0, 2.0, 4.0, 6.0]] * 2


def shared():
    tensors = [torch.full((2, 3), float(processes.rank() + 1)).t(), torch.tensor([processes.rank()])]
    processes.share([("weights", tensors[0]), ("count", tensors[1])])
    return tensors


def test_the_first_shares(group):
    for weights, count in values(group(3, shared)):
        assert bool((weights == 1.0).all())
        assert count.tolist() == [0]


def apart():
    with processes.alone():
        return processes.world(), processes.is_first(), processes.gather(1)


def test_alone(group):
    assert values(group(2, apart)) == [(1, True, [1])] * 2
    assert processes.world() == 1
    assert processes.gather(3) == [3]
