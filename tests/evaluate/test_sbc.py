import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from ppvae.evaluate import sbc as calibration
from ppvae.evaluate.sbc import SBCRanks, check_sbc, ecdf_band, run_sbc
from tests.reference import (
    REFERENCES,
    LinearGaussian,
    hierarchy,
    linear_gaussian,
    masked_series,
    mixture,
    ppca,
)


def exact_guide(scale=1.0, shift=0.0):
    """A pair whose guide is the posterior, but for a factor of its scale and a shift in standard deviations."""
    pair = LinearGaussian()
    with torch.no_grad():
        posterior = pair.log_t - math.log(1.3)
        pair.log_t.copy_(posterior + math.log(scale))
        pair.b += shift * posterior.exp()
    return pair


def of_groups(pair, data, *, groups, size):
    """Verdicts on independent groups of simulations, all of one run."""
    ranks = run_sbc(pair, *data, num_simulations=groups * size)
    split = [
        SBCRanks(dict(zip(ranks.ranks, part, strict=True)), ranks.num_samples)
        for part in zip(*(values.split(size) for values in ranks.ranks.values()), strict=True)
    ]
    return [check_sbc(part) for part in split]


# The test and its band.


@pytest.mark.parametrize(("n", "num_samples"), [(1, 4), (4, 3), (6, 2), (3, 5)])
def test_p_values_and_bands_are_those_of_all_possible_ranks(n, num_samples):
    possible = [np.array(ranks) for ranks in itertools.product(range(num_samples + 1), repeat=n)]
    p_values = np.array([calibration._p_value(ranks, num_samples) for ranks in possible])
    for p in np.unique(p_values.round(9)):
        assert (p_values <= p + 1e-9).mean() == pytest.approx(p, abs=1e-9)
    for level in (0.05, 0.2, 0.5):
        low, high = ecdf_band(n, num_samples, level=level)
        ecdf = np.array([np.bincount(r, minlength=num_samples + 1).cumsum() / n for r in possible])
        leaves = ((ecdf < low - 1e-12) | (ecdf > high + 1e-12)).any(1)
        assert (leaves == (p_values <= level)).all()
        assert leaves.mean() <= level
        assert leaves.mean() == pytest.approx(max([0, *p_values[p_values <= level]]), abs=1e-9)


@pytest.mark.parametrize(("n", "num_samples", "level"), [(100, 9, 0.05), (200, 99, 0.05), (1000, 19, 0.2)])
def test_coverage_of_the_band(n, num_samples, level):
    rng, trials = np.random.default_rng(0), 2000
    low, high = ecdf_band(n, num_samples, level=level)
    ranks = rng.integers(0, num_samples + 1, (trials, n))
    counts = (ranks[:, :, None] <= np.arange(num_samples + 1)).sum(1) if n * num_samples < 5000 else None
    if counts is None:
        counts = np.stack([np.bincount(row, minlength=num_samples + 1).cumsum() for row in ranks])
    leaves = ((counts < low * n - 1e-6) | (counts > high * n + 1e-6)).any(1).mean()
    error = math.sqrt(level * (1 - level) / trials)
    assert level - 0.01 - 3 * error < leaves < level + 3 * error  # a step below, since counts are whole


def test_the_band_narrows_with_simulations_and_level():
    def width(*args, **kwargs):
        low, high = ecdf_band(*args, **kwargs)
        return (high - low).max()

    assert width(4000, 19) == pytest.approx(width(1000, 19) / 2, rel=0.1)
    assert width(1000, 19, level=0.5) < width(1000, 19) < width(1000, 19, level=1e-6)


# Guides.


def test_the_exact_posterior_is_calibrated_as_often_as_the_level_says():
    reference = ppca(guide="exact")
    verdicts = of_groups(reference.pair, reference.data, groups=80, size=200)
    rejected = sum(not verdict.calibrated for verdict in verdicts)
    assert list(verdicts[0].p_values) == ["z[0]", "z[1]"]
    assert 0 < rejected <= 10  # 4 expected; more in one of 300 such runs
    p_values = np.array([list(verdict.p_values.values()) for verdict in verdicts]).ravel()
    assert np.quantile(p_values, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.1)


def test_the_level_is_of_all_dimensions_together():
    generator = torch.Generator().manual_seed(0)
    verdicts = [
        check_sbc(SBCRanks({"z": torch.randint(20, (100, 20), generator=generator)}, 19), level=0.1) for _ in range(20)
    ]
    assert sum(not verdict.calibrated for verdict in verdicts) <= 5  # 2 expected, and 18 without a correction


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (exact_guide(1.2), "too wide (over-dispersed)"),
        (exact_guide(0.8), "too narrow (under-dispersed)"),
        (exact_guide(shift=0.3), "lies too high"),
        (exact_guide(shift=-0.3), "lies too low"),
    ],
)
def test_a_wrong_guide_is_rejected_every_time_and_the_way_is_named(pair, words):
    verdicts = of_groups(pair, (torch.zeros(1),), groups=10, size=1000)
    for verdict in verdicts:
        assert not verdict.calibrated
        assert words in verdict.findings[0]
        assert verdict.findings[0].startswith("z: ")
    assert "1 of 1 latent dimensions rejected at level 0.05" in verdicts[0].summary()
    assert words in verdicts[0].summary()


def test_findings_have_the_figures_of_the_ranks():
    narrow = torch.tensor([0, 9] * 200)
    verdict = check_sbc(SBCRanks({"z": narrow}, 9))
    assert verdict.findings == (
        "z: q(z|x) is too narrow (under-dispersed): the ranks' variance is 2.45 times that of uniform ones",
    )  # 0.45² / ((10² − 1) / 1200)
    low = torch.cat([torch.arange(10), torch.full((15,), 7)]).repeat(8)
    assert "lies too low: in 80.0 % of the simulations" in check_sbc(SBCRanks({"z": low}, 9)).findings[0]
    other = torch.tensor([0, 4, 5, 9]).repeat(200)  # the mean and nearly the variance of uniform ranks
    variance = torch.tensor([0, 0, 9, 9, 4, 4, 5, 5, 5, 4] * 60)
    assert not check_sbc(SBCRanks({"z": other}, 9)).calibrated
    assert "see their histogram" in check_sbc(SBCRanks({"z": variance}, 9)).findings[0]


def test_a_prior_that_ignores_the_data_has_uniform_ranks():
    """The limit that the module's docstring names."""
    pair = LinearGaussian()
    with torch.no_grad():
        for parameter, value in ((pair.a, 0), (pair.b, 0), (pair.log_t, 0)):
            parameter.fill_(value)
    assert check_sbc(run_sbc(pair, torch.zeros(1), num_simulations=1000)).calibrated


class ExactMixture(type(mixture().pair)):
    """The guide is the posterior of the discrete latent."""

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(self.joint(x).softmax(-1)))


def test_ties_of_discrete_latents_are_broken_at_random():
    torch.manual_seed(0)
    pair = ExactMixture()
    verdicts = of_groups(pair, (torch.zeros(1, 2),), groups=20, size=500)
    assert sum(not verdict.calibrated for verdict in verdicts) <= 4
    assert not check_sbc(run_sbc(mixture().pair, torch.zeros(1, 2), num_simulations=4000)).calibrated


class MaskedLatent(nn.Module):
    """The exact posterior where the latent counts, and nonsense where a mask leaves it out."""

    def model(self, x, keep):
        with pyro.plate("data", len(x)), pyro.plate("time", 2, dim=-2), poutine.mask(mask=keep.T):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

    def guide(self, x, keep):
        with pyro.plate("data", len(x)), pyro.plate("time", 2, dim=-2), poutine.mask(mask=keep.T):
            pyro.sample("z", dist.Normal(torch.where(keep.T, x.T / 2, 50.0), 0.5**0.5))


def test_masked_latents_have_no_rank():
    keep = torch.tensor([[True, True], [True, False]])
    ranks = run_sbc(MaskedLatent(), torch.zeros(2, 2), keep, num_simulations=1000)
    values = ranks.ranks["z"]
    assert values.shape == (1000, 2)
    assert torch.equal(values >= 0, keep.repeat(500, 1))
    assert {name: len(column) for name, column in ranks.by_element().items()} == {"z[0]": 1000, "z[1]": 500}
    assert check_sbc(ranks).calibrated
    alone = run_sbc(MaskedLatent(), torch.zeros(2, 2), keep & keep[1], num_simulations=10)
    assert list(check_sbc(alone).p_values) == ["z[0]"]


def test_conditions_stay_and_the_template_is_repeated():
    reference = masked_series()
    x, length = reference.data
    ranks = run_sbc(reference.pair, x, length, num_simulations=30, num_samples=5)
    counts = torch.arange(4) < length[torch.arange(30) % len(x)].unsqueeze(-1)
    assert torch.equal(ranks.ranks["w"] >= 0, counts)
    assert ranks.ranks["z"].shape == (30,)
    assert ranks.ranks["w"].max() <= 5


@pytest.mark.parametrize("make", REFERENCES.values(), ids=REFERENCES)
def test_any_pair_can_be_checked(make):
    reference = make()
    ranks = run_sbc(reference.pair, *reference.data, num_samples=9)
    assert all(len(values) == len(reference.data[0]) for values in ranks.ranks.values())
    assert check_sbc(ranks).num_simulations == len(reference.data[0])


def test_a_template_in_double_precision_for_a_pair_in_single():
    ranks = run_sbc(LinearGaussian(), torch.randn(6).double(), num_simulations=20, num_samples=9).ranks["z"]
    assert ranks.shape == (20,)
    assert 0 <= int(ranks.min()) < int(ranks.max()) <= 9


def test_ranks_are_of_the_seed_and_leave_the_global_state_alone():
    reference = hierarchy()
    before = torch.get_rng_state()
    a, b, c = (run_sbc(reference.pair, *reference.data, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a.ranks["z1"], b.ranks["z1"])
    assert not torch.equal(a.ranks["z1"], c.ranks["z1"])
    assert torch.equal(before, torch.get_rng_state())


class Doubles(LinearGaussian):
    def model(self, x):
        super().model(2 * x)


class Lacking(LinearGaussian):
    def guide(self, x):
        pass


def test_errors():
    pair, x = linear_gaussian().pair, torch.zeros(7)
    for option in ("num_samples", "num_simulations"):
        with pytest.raises(ValueError, match=f"{option} must be a whole number >= 1, got 0"):
            run_sbc(pair, x, **{option: 0})
    with pytest.raises(ValueError, match="data is empty"):
        run_sbc(pair, torch.zeros(0), num_simulations=10)
    with pytest.raises(ValueError, match="the guide misses the latent site 'z'"):
        run_sbc(Lacking(), x)
    with pytest.raises(ValueError, match="'x' takes no argument of the pair as it is"):
        run_sbc(Doubles(), x)
    for level in (0, 1, -0.1, math.nan):
        with pytest.raises(ValueError, match="level must be a finite number > 0 and < 1, got"):
            check_sbc(run_sbc(pair, x), level=level)
        with pytest.raises(ValueError, match="level must be a finite number > 0 and < 1, got"):
            ecdf_band(10, 9, level=level)
    with pytest.raises(ValueError, match="num_simulations must be a whole number >= 1, got 0"):
        ecdf_band(0, 9)
    with pytest.raises(ValueError, match=r"masks leave out all of \['z'\]"):
        check_sbc(SBCRanks({"z": torch.full((5, 2), -1)}, 9))
