"""Distances and shares against closed forms and sets whose answer is known; samples of pairs against their own data."""

import math
import sys
from functools import partial

import pytest
import torch
from torch import nn

import ppvae
from ppvae.evaluate.sample_quality import (
    compare_features,
    compute_features,
    draw_samples,
    frechet_distance,
    kernel_distance,
    sample_quality,
)
from ppvae.models import CVAE, PPCA
from tests.reference import ppca

D = 6
MODULE = sys.modules["ppvae.evaluate.sample_quality"]


def features(n, d=D, *, seed=0, shift=0.0, scale=1.0):
    return shift + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_moments(mean, cov, n=400):
    """Features whose mean and covariance are exactly these."""
    x = features(n, len(mean))
    x = x - x.mean(0)
    values, vectors = torch.linalg.eigh(cov)
    return x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T @ (vectors * values.clamp_min(0).sqrt()).T + mean


# The Fréchet distance.


def test_distance_of_normals_whose_covariances_commute_is_the_closed_form():
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(D, D).double())[0]
    a, b, mean = torch.rand(D).double() + 0.5, torch.rand(D).double() + 0.5, torch.randn(D).double()
    exact = mean.square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    both = [rotation @ v.diag() @ rotation.T for v in (a, b)]
    found = frechet_distance(of_moments(torch.zeros(D).double(), both[0]), of_moments(mean, both[1]))
    assert found == pytest.approx(float(exact), rel=1e-9)


def test_distance_in_two_dimensions_is_the_closed_form_of_a_trace_and_a_determinant():
    """Of 2 × 2 matrices tr √M = √(tr M + 2 √det M), also where the covariances do not commute."""
    a, b = torch.tensor([[2.0, 0.7], [0.7, 1.0]]).double(), torch.tensor([[0.5, -0.3], [-0.3, 3.0]]).double()
    root = ((a @ b).trace() + 2 * (torch.det(a) * torch.det(b)).sqrt()).sqrt()
    zero = torch.zeros(2).double()
    found = frechet_distance(of_moments(zero, a), of_moments(zero, b))
    assert found == pytest.approx(float(a.trace() + b.trace() - 2 * root), rel=1e-9)


def test_distance_is_symmetric_and_does_not_see_rotations():
    torch.manual_seed(0)
    a, b = features(50), features(70, seed=1, shift=0.3, scale=2.0)
    rotation = torch.linalg.qr(torch.randn(D, D).double())[0]
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(frechet_distance(a, b))


@pytest.mark.parametrize("n", [2, 5, 40])
def test_singular_covariances_have_a_distance(n):
    a = features(n, 30)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-5)
    assert frechet_distance(a, a + 1.0) == pytest.approx(30.0, rel=1e-6)
    constant = torch.ones(n, 30)
    assert frechet_distance(constant, constant + 2) == pytest.approx(120.0)
    exact = a.mean(0).square().sum() + a.var(0).sum()  # of a point and a normal
    assert frechet_distance(a, 0 * constant) == pytest.approx(float(exact), rel=1e-6)


def test_float32_is_computed_in_float64():
    a, b = features(100), features(100, seed=1)
    far = frechet_distance((a + 1e4).float(), (b + 1e4).float())
    assert far == pytest.approx(frechet_distance(a, b), abs=0.01)


def test_the_extrapolation_takes_the_bias_off():
    """Of two equal normals; d (d + 1) / 2n and more at finite n."""
    d, n, runs = 16, 200, 12
    found = [compare_features(features(n, d, seed=2 * i), features(n, d, seed=2 * i + 1)) for i in range(runs)]
    plain, extrapolated, kernel = (
        torch.tensor([getattr(one, name).value for one in found])
        for name in ("frechet", "frechet_extrapolated", "kernel")
    )
    assert float(plain.mean()) > 0.5
    assert abs(float(extrapolated.mean())) < 4 * float(extrapolated.std()) / math.sqrt(runs) + 0.02
    assert abs(float(kernel.mean())) < 4 * float(kernel.std()) / math.sqrt(runs)


@pytest.mark.parametrize("name", ["frechet", "frechet_extrapolated", "kernel"])
def test_standard_errors_are_the_spread_of_repetitions(name):
    found = [
        getattr(
            compare_features(features(150, 3, seed=2 * i, shift=0.7, scale=1.5), features(150, 3, seed=2 * i + 1)), name
        )
        for i in range(60)
    ]
    spread = float(torch.tensor([one.value for one in found]).std())
    mean_error = float(torch.tensor([one.std_error for one in found]).mean())
    assert mean_error == pytest.approx(spread, rel=0.35)


# The kernel distance.


def test_kernel_distance_is_the_sum_over_pairs():
    a, b = features(23), features(31, seed=1, shift=0.5)
    kernel = lambda x, y: (x @ y.T / D + 1) ** 3  # noqa: E731
    apart = [kernel(x, x)[~torch.eye(len(x), dtype=torch.bool)].mean() for x in (a, b)]
    exact = float(sum(apart) - 2 * kernel(a, b).mean())
    assert kernel_distance(a, b) == pytest.approx(exact)
    assert compare_features(a, b).kernel.value == pytest.approx(exact)


def test_leaving_a_group_out_is_the_estimate_without_it():
    a, b, first = features(47), features(33, seed=1, shift=0.5), torch.arange(10) == 0
    kept = (~first).double()
    without = [x[torch.arange(len(x)) % 10 != 0] for x in (a, b)]
    assert MODULE._FrechetOfGroups(a, b)(kept) == pytest.approx(frechet_distance(*without))
    assert MODULE._KernelOfGroups(a, b)(kept) == pytest.approx(kernel_distance(*without))


# Precision, recall, density, coverage.


def by_hand(a, b):
    """The four shares by whole matrices of distances."""
    within = torch.cdist(a, a), torch.cdist(b, b)
    third, fifth = ([d.sort(1).values[:, k] for d in within] for k in (3, 5))
    between = torch.cdist(a, b)
    return {
        "precision": (between <= third[1]).any(1).double().mean(),
        "recall": (between <= third[0][:, None]).any(0).double().mean(),
        "density": (between <= fifth[1]).sum(1).double().mean() / 5,
        "coverage": (between <= fifth[1]).any(0).double().mean(),
    }


def test_shares_are_counts_of_balls():
    a, b = features(60), features(80, seed=1, shift=0.4)
    found = compare_features(a, b)
    for name, share in by_hand(a, b).items():
        assert getattr(found, name).value == pytest.approx(float(share)), name


def test_samples_far_away_have_no_precision_and_copies_have_all():
    a = features(50)
    apart = compare_features(a + 100, a)
    assert {getattr(apart, name).value for name in ("precision", "recall", "density", "coverage")} == {0.0}
    same = compare_features(a, a)
    assert (same.precision.value, same.recall.value, same.coverage.value) == (1.0, 1.0, 1.0)
    repeated = torch.ones(30, 2).double()  # balls of no size around rows that are all alike
    assert compare_features(repeated, repeated).precision.value == 1.0
    assert compare_features(repeated + 1e-9, repeated).coverage.value == 0.0


def test_one_mode_of_two_has_precision_and_half_the_recall():
    one, two = features(100), features(200, seed=1)
    two[100:] += 50
    found = compare_features(one, two)
    assert found.precision.value > 0.9
    assert 0.35 < found.recall.value <= 0.5
    assert 0.35 < found.coverage.value <= 0.5


def test_of_equal_distributions_density_is_one_and_coverage_that_of_the_paper():
    found = [compare_features(features(300, 2, seed=2 * i), features(300, 2, seed=2 * i + 1)) for i in range(8)]
    density, coverage = (torch.tensor([getattr(one, name).value for one in found]) for name in ("density", "coverage"))
    assert abs(float(density.mean()) - 1) < 4 * float(density.std()) / math.sqrt(8)
    assert float(coverage.mean()) == pytest.approx(1 - 0.5**5, abs=0.02)


@pytest.mark.parametrize("block_bytes", [8, 8 * 30 * 7])
def test_blocks_are_the_whole(block_bytes, monkeypatch):
    a, b = features(41), features(30, seed=1, shift=0.2)
    whole = compare_features(a, b)
    monkeypatch.setattr(MODULE, "BLOCK_BYTES", block_bytes)
    for name, value in compare_features(a, b).figures().items():
        assert value == pytest.approx(whole.figures()[name]), name


# Samples of a pair.


def test_samples_of_the_true_model_are_like_its_data_and_those_of_another_are_not():
    reference = ppca()
    torch.manual_seed(0)
    x = draw_samples(reference.pair, (reference.data[0].repeat(50, 1),), seed=1)
    net = nn.Linear(x.shape[1], 4)
    own, other = (sample_quality(pair, x, features=net) for pair in (reference.pair, PPCA(x.shape[1], 2)))
    assert abs(own.frechet_extrapolated.value) < 4 * own.frechet_extrapolated.std_error
    assert other.frechet_extrapolated.value > 4 * other.frechet_extrapolated.std_error
    assert own.features.startswith("features of Linear, sha256 ")
    assert "not to be compared" in own.summary()


def test_draws_are_those_of_the_seed_and_leave_the_global_state_alone():
    pair, x = PPCA(8, 2), torch.randn(30, 8)
    state = torch.get_rng_state()
    first, again, other = (draw_samples(pair, (x,), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == x.shape


def test_conditions_stay_and_cannot_be_judged():
    from ppvae.distributions import ConditionalNormal, StandardNormal
    from ppvae.nn import ConditionalMLP, OneHot

    torch.manual_seed(0)
    cvae = CVAE(
        StandardNormal(2),
        ConditionalNormal(ConditionalMLP(2, 3, (8,), 4, embed=OneHot(3)), scale=1e-3),
        ConditionalNormal(ConditionalMLP(4, 3, (8,), (2, 2), embed=OneHot(3))),
    )
    x, y = torch.randn(40, 4), torch.arange(40) % 3
    drawn = draw_samples(cvae, (x, y))
    assert drawn.shape == x.shape
    assert sample_quality(cvae, x, y, features=nn.Identity()).num_samples == 40
    with pytest.raises(ValueError, match="argument 1 is a condition"):
        draw_samples(cvae, (x, y), argument=1)


def test_features_run_in_eval_mode_in_blocks_and_come_back():
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8)).train()
    x = torch.randn(25, 4)
    whole, parts = compute_features(net, x), compute_features(net, x, batch_size=7)
    torch.testing.assert_close(whole, parts)
    assert net[1].training
    assert whole.dtype == torch.float64


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (lambda: compare_features(features(19), features(30)), ValueError, "at least 20 samples and data.* 19 and 30"),
        (lambda: compare_features(features(30), features(30, 5)), ValueError, "equally many features, got 6 and 5"),
        (lambda: frechet_distance(features(1), features(30)), ValueError, "at least 2 samples"),
        (
            lambda: frechet_distance(features(3) * torch.nan, features(30)),
            ValueError,
            "samples must be finite.* 3 rows",
        ),
        (lambda: kernel_distance(features(3)[0], features(30)), ValueError, r"must have shape \(n, d\), got \(6,\)"),
        (lambda: kernel_distance([1.0], features(30)), TypeError, "features of samples must be a torch.Tensor"),
        (lambda: compute_features(torch.relu, features(3)), TypeError, "features must be a module"),
        (
            lambda: compute_features(nn.Flatten(0), features(3)),
            ValueError,
            r"must return \(n, d\) for 3 data, got \(18,",
        ),
        (lambda: compute_features(nn.Identity(), features(3), batch_size=0), ValueError, "batch_size must be"),
        (
            lambda: sample_quality(PPCA(6, 2), features(30).float(), features=nn.Identity(), argument=1),
            ValueError,
            "argument must be the number of one of the pair's 1 arguments, got 1",
        ),
        (
            lambda: sample_quality(PPCA(6, 2), features(30).float(), features=nn.Identity(), argument=True),
            ValueError,
            "argument must be",
        ),
    ],
)
def test_wrong_arguments(run, error, message):
    with pytest.raises(error, match=message):
        run()


def test_few_data_for_many_features_are_said():
    found = compare_features(features(25, 30), features(25, 30, seed=1))
    assert "not to be trusted" in found.summary()
    assert "not to be trusted" not in compare_features(features(25), features(25, seed=1)).summary()


def test_a_model_without_a_fault_is_as_good_as_the_data_in_its_place():
    """What a trained pair draws has a distance, and more training makes it smaller."""
    torch.manual_seed(0)
    x = torch.randn(400, 2) @ torch.randn(2, 8) + 0.1 * torch.randn(400, 8)
    train, test = x[:200], x[200:]
    pair, compare = PPCA(8, 2, guide="exact"), partial(sample_quality, features=nn.Identity())
    before = compare(pair, test).frechet.value
    ppvae.fit(pair, train, epochs=60, lr=3e-2, batch_size=50, progress=False)
    assert compare(pair, test).frechet.value < before / 5
