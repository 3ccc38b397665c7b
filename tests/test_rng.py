"""Random numbers that start from a seed, and generators that come back as they were."""

import pytest
import torch

from ppvae.rng import RandomState, forked_rng, get_rng, set_rng, stream

CPU = torch.device("cpu")


@pytest.mark.parametrize("fails", [False, True])
def test_a_fork_starts_from_the_seed_and_restores(fails):
    before, drawn = torch.get_rng_state(), []
    for _ in range(2):
        try:
            with forked_rng(CPU, 7):
                drawn.append(torch.rand(3))
                if fails:
                    raise KeyError
        except KeyError:
            pass
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], torch.rand(3, generator=torch.Generator().manual_seed(7)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_fork_on_a_gpu():
    device = torch.device("cuda")
    before = get_rng(device)
    with forked_rng(device, 7):
        drawn = torch.rand(3, device=device)
    expected = torch.rand(3, device=device, generator=torch.Generator(device).manual_seed(7))
    assert torch.equal(drawn, expected)
    after = get_rng(device)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_generators_are_kept_and_put_back():
    own = torch.Generator().manual_seed(3)
    random = RandomState(CPU, [own])
    state = random.get()
    with random.kept():
        first = torch.rand(2), torch.rand(2, generator=own)
    random.set(state)
    second = torch.rand(2), torch.rand(2, generator=own)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    random.set(state)
    set_rng(get_rng(CPU), CPU)
    assert torch.equal(torch.rand(2), first[0])


def test_streams_are_functions_of_seed_and_key():
    one, same, other = (torch.rand(4, generator=stream(1, key)) for key in (5, 5, 6))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
