"""How draws are cut into blocks: all of them, no block beyond its rows, and few kinds, each of which takes a graph."""

import pytest

from ppvae.sampling.block_sizes import block_sizes


@pytest.mark.parametrize("rows", [1, 2, 3, 16, 17, 250, 2000])
@pytest.mark.parametrize("n", [1, 7, 64, 101, 1000])
def test_samples_are_cut_into_two_sizes_at_most_that_fit(n, rows):
    for num_samples in [*range(1, 70), 101, 1000, 5000]:
        size, samples = block_sizes(n, num_samples, rows=rows)
        assert sum(samples) == num_samples
        assert 0 < min(samples) <= max(samples)
        assert size * max(samples) <= rows
        assert len(set(samples[1:])) <= 1  # one kind of graph


@pytest.mark.parametrize(("n", "size"), [(31, 31), (32, 16), (64, 16), (65, 13), (100, 25), (10_000, 25), (101, 26)])
def test_data_are_cut_into_equal_blocks_where_that_is_possible(n, size):
    assert block_sizes(n, 5000, rows=2000)[0] == size


def test_blocks_are_full_however_many_samples_and_data_there_are():
    for n in (1, 5, 64, 1000):
        size, samples = block_sizes(n, 5000, rows=2000)
        assert size * max(samples) > 1600
