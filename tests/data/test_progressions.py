"""Generated progressions: their likelihood against a sum over all paths, their draws against it."""

import pytest
import torch

from ppvae.data import Progressions


@pytest.fixture(scope="module")
def process():
    return Progressions()


def test_probabilities_are_some(process):
    torch.testing.assert_close(process.transition.sum(1), torch.ones(21).double())
    torch.testing.assert_close(process.first.sum(), torch.tensor(1.0).double())
    assert ((process.sounds > 0) & (process.sounds < 1)).all()
    assert ((process.sounds > 0.9).sum(1) == 4).all()
    assert len({tuple(row.tolist()) for row in process.sounds}) == 21


def test_the_likelihood_is_a_sum_over_all_paths(process):
    x, _ = process.draw(5, num_steps=3)
    lengths = torch.tensor([3, 1, 2, 3, 2])
    paths = torch.cartesian_prod(*[torch.arange(21)] * 3)
    given = torch.distributions.Bernoulli(process.sounds).log_prob(x.double().unsqueeze(2)).sum(-1)  # (n, T, 21)
    expected = []
    for of_datum, m in zip(given, lengths.tolist(), strict=True):
        seen = paths[:: 21 ** (3 - m), :m]
        prior = process.first[seen[:, 0]].log()
        for t in range(1, m):
            prior = prior + process.transition[seen[:, t - 1], seen[:, t]].log()
        expected.append((prior + sum(of_datum[t, seen[:, t]] for t in range(m))).logsumexp(0))
    torch.testing.assert_close(process.log_prob(x, lengths), torch.stack(expected))


def test_draws_have_the_frequencies_of_the_process(process):
    n = 20_000
    x, lengths = process.draw(n, num_steps=4)
    state = process.first
    for t in range(4):
        sounding, there = state @ process.sounds, lengths > t
        found = x[there, t].double().mean(0)
        assert ((found - sounding).abs() < 5 * (sounding * (1 - sounding) / there.sum()).sqrt()).all()
        state = state @ process.transition
    assert (x[lengths < 4, 3] == 0).all()
    assert lengths.unique().tolist() == [1, 2, 3, 4]


def test_what_follows_the_end_changes_no_number(process):
    x, lengths = process.draw(5, num_steps=6)
    padded = torch.cat([x, torch.ones(5, 3, 88)], 1)
    assert torch.equal(process.log_prob(x, lengths), process.log_prob(padded, lengths))


def test_equal_seeds_give_equal_series(process):
    a, b, c = (process.draw(5, seed=seed).x for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_wrong_arguments_are_named(process):
    with pytest.raises(ValueError, match="n must be"):
        process.draw(0)
    with pytest.raises(ValueError, match="num_steps"):
        process.draw(3, num_steps=0)
    with pytest.raises(ValueError, match=r"x must be of shape \(n, steps, 88\)"):
        process.log_prob(torch.zeros(3, 4, 12), torch.tensor([4, 4, 4]))
    with pytest.raises(ValueError, match="lengths must be from 1 to 4"):
        process.log_prob(torch.zeros(3, 4, 88), torch.tensor([4, 4, 5]))
