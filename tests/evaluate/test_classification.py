import math
import warnings

import pytest
import torch

import ppvae
from ppvae.evaluate import Annealed, ParetoWarning, SupportWarning, error_rate, label_posterior, reliability
from ppvae.models import CVAE
from tests.models.by_hand import C
from tests.models.linear_gaussian import LinearGaussian, Prior

N = 9


@pytest.fixture(params=[False, True], ids=["p(z)", "p(z|y)"])
def case(request):
    """A pair, data, and log p(x, y) in closed form, (n, c)."""
    story = LinearGaussian(sees_label=request.param)
    torch.manual_seed(0)
    pair = story.pair(alpha=7.0)
    x = pair.sample(torch.arange(N) % C)
    return pair, x, story.log_joint(x)


def conditional_part(ssvae):
    """The CVAE of the same story, which scores no label."""
    return CVAE(ssvae.p_z, ssvae.p_x_given_zy, ssvae.q_z_given_xy)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_is_bayes_rule_in_closed_form(case):
    pair, x, log_joint = case
    probabilities = label_posterior(pair, x, num_classes=C, num_samples=1)
    assert (probabilities.dtype, probabilities.shape, probabilities.device.type) == (torch.float64, (N, C), "cpu")
    close(probabilities, log_joint.softmax(-1))


def test_the_classifier_plays_no_part(case):
    pair, x, log_joint = case
    with torch.no_grad():
        for parameter in pair.q_y_given_x.parameters():
            parameter.normal_(std=100.0)
    close(label_posterior(pair, x, num_classes=C, num_samples=1), log_joint.softmax(-1))


def test_a_pair_that_scores_no_label_takes_a_prior(case):
    pair, x, log_joint = case
    cvae, log_prior = conditional_part(pair), Prior().probs.log()
    close(label_posterior(cvae, x, num_classes=C, log_prior=log_prior, num_samples=1), log_joint.softmax(-1))
    uniform = (log_joint - log_prior).softmax(-1)
    close(label_posterior(cvae, x, num_classes=C, num_samples=1), uniform)
    close(label_posterior(cvae, x, num_classes=C, num_samples=1, log_prior=torch.zeros(C)), uniform)
    # Where the pair's own p(y) is left out, another may take its place.
    close(label_posterior(pair, x, num_classes=C, num_samples=1, given=("y",)), uniform)


def test_a_guide_that_is_not_exact_needs_samples(case):
    pair, x, log_joint = case
    with torch.no_grad():
        next(pair.q_z_given_xy.parameters()).mul_(0.7)
    exact = log_joint.softmax(-1)
    many = label_posterior(pair, x, num_classes=C, num_samples=4000)
    torch.testing.assert_close(many, exact, rtol=0, atol=0.02)
    torch.testing.assert_close(many.sum(-1), torch.ones(N, dtype=torch.float64))
    few = label_posterior(pair, x, num_classes=C, num_samples=2)
    assert (few - exact).abs().max() > (many - exact).abs().max()


def test_only_the_most_probable_class_warns(case):
    pair, x, log_joint = case
    with torch.no_grad():
        next(pair.q_z_given_xy.parameters()).mul_(0.7)
    k = torch.stack([ppvae.log_marginal(pair, x, torch.full((N,), c), num_samples=400).pareto_k for c in range(C)], -1)
    for limit in (k.max() + 1, k.median()):  # the guide counts as reliable, and as not
        bad = int((k.gather(1, log_joint.argmax(-1, keepdim=True)) > limit).sum())
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as record:
            patch.setattr("ppvae.evaluate.classification.PARETO_GOOD", float(limit))
            patch.setattr("ppvae.evaluate.psis.PARETO_GOOD", -math.inf)  # every estimate warns, none is heard
            warnings.simplefilter("always")
            label_posterior(pair, x, num_classes=C, num_samples=400)
        assert len(record) == (bad > 0)
        if bad:
            assert f"for {bad} of 9 data in their most probable class" in str(record[0].message)
            assert record[0].category is ParetoWarning
            assert record[0].filename == __file__
    assert bad


def test_options_are_those_of_log_marginal(case):
    pair, x, _ = case
    with torch.no_grad():
        next(pair.q_z_given_xy.parameters()).mul_(0.7)
    of_seed = [label_posterior(pair, x, num_classes=C, num_samples=3, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(of_seed[0], of_seed[1])
    assert not torch.equal(of_seed[0], of_seed[2])
    by_hand = [ppvae.log_marginal(pair, x, torch.full((N,), c), num_samples=3).values for c in range(C)]
    assert torch.equal(of_seed[0], torch.stack(by_hand, -1).softmax(-1))


def test_errors(case):
    pair, x, _ = case
    for num_classes in (0, -1, True, 2.0):
        with pytest.raises(ValueError, match="num_classes must be a whole number >= 2"):
            label_posterior(pair, x, num_classes=num_classes)
    with pytest.raises(ValueError, match=r"log_prior must have shape \(3,\), got \(4,\)"):
        label_posterior(pair, x, num_classes=C, log_prior=torch.zeros(4))
    with pytest.raises(TypeError, match=r"log_prior must be a torch.Tensor, got list"):
        label_posterior(pair, x, num_classes=C, log_prior=[0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="y must hold class indices from 0 to 2, got values from 3 to 3"):
        label_posterior(pair, x, num_classes=C + 1, num_samples=1)
    with pytest.raises(ValueError, match="num_samples"):
        label_posterior(pair, x, num_classes=C, num_samples=0)


def test_a_datum_that_no_class_explains_is_an_error(case):
    pair, x, _ = case
    x = x.index_fill(0, torch.tensor([4]), 1e30)
    outside = pytest.warns(SupportWarning, match="for 1 of 9 data most draws of the guide have weight zero")
    with outside, pytest.raises(ValueError, match="datum 4 has probability zero in every class"):
        label_posterior(pair, x, num_classes=C, num_samples=1)
    x = case[1]
    with pytest.raises(ValueError, match="datum 0 has probability zero in every class"):
        label_posterior(pair, x, num_classes=C, num_samples=1, log_prior=torch.full((C,), -math.inf))


def test_error_rate():
    probabilities = torch.tensor([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1], [0.2, 0.8]])
    rate = error_rate(probabilities, torch.tensor([0, 1, 1, 1]))
    assert rate == {"mean": 25.0, "std_error": pytest.approx(25.0)}  # 100 √(3/16 · 4/3 / 4)
    assert error_rate(probabilities, probabilities.argmax(-1)) == {"mean": 0.0, "std_error": 0.0}
    assert math.isnan(error_rate(probabilities[:1], torch.tensor([0]))["std_error"])


def test_error_rate_checks_shapes():
    for probabilities, y in (
        (torch.zeros(4), torch.zeros(4)),
        (torch.zeros(4, 2), torch.zeros(3)),
        (torch.zeros(4, 2), torch.zeros(4, 2)),
    ):
        with pytest.raises(ValueError, match=r"probabilities must have shape \(n, c\) and y \(n,\)"):
            error_rate(probabilities, y)


# Calibration.


def two_classes(*of_first):
    """Probabilities (n, 2) of two classes."""
    p = torch.tensor(of_first, dtype=torch.float64)
    return torch.stack([p, 1 - p], -1)


def test_reliability_by_hand():
    """Confidences 0.55 (wrong), 0.65 (right) | 0.9, 0.95, 0.85 (two right) in five bins of [0, 1]."""
    probabilities = two_classes(0.55, 0.35, 0.9, 0.05, 0.85)
    found = reliability(probabilities, torch.tensor([1, 1, 0, 1, 1]), num_bins=5)
    assert found.count.tolist() == [0, 0, 1, 1, 3]
    torch.testing.assert_close(found.confidence[2:], torch.tensor([0.55, 0.65, 0.9]).double())
    torch.testing.assert_close(found.accuracy[2:], torch.tensor([0.0, 1.0, 2 / 3]).double())
    assert found.confidence[:2].isnan().all()
    assert found.accuracy[:2].isnan().all()
    gaps = [0.55, 0.35, 0.9 - 2 / 3]
    assert found.expected_calibration_error() == pytest.approx((gaps[0] + gaps[1] + 3 * gaps[2]) / 5)
    assert found.maximum_calibration_error() == pytest.approx(0.55)
    # each datum's signed part: confidence − right where the bin is too sure, else right − confidence
    parts = torch.tensor([0.55, 0.35, 0.9 - 1, 0.95 - 1, 0.85])
    assert found.std_error == pytest.approx(float(parts.std()) / math.sqrt(5))


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_a_calibrated_classifier_has_no_error(num_bins):
    generator = torch.Generator().manual_seed(0)
    probabilities = (2 * torch.randn(20_000, 4, generator=generator)).softmax(-1)
    y = torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)
    found = reliability(probabilities, y, num_bins=num_bins)
    assert int(found.count.sum()) == 20_000
    assert found.expected_calibration_error() < 0.015
    sharpened = (3 * probabilities.log()).softmax(-1)
    assert reliability(sharpened, y, num_bins=num_bins).expected_calibration_error() > 0.1
    right = float((probabilities.argmax(-1) == y).double().mean())
    one = reliability(sharpened, y, num_bins=1)
    assert one.accuracy.item() == pytest.approx(right)
    assert one.expected_calibration_error() == pytest.approx(float(sharpened.amax(-1).mean()) - right, abs=1e-6)


def test_bins_are_closed_above():
    found = reliability(two_classes(0.5, 1.0, 0.0, 0.75), torch.tensor([0, 0, 1, 0]), num_bins=4)
    assert found.count.tolist() == [0, 1, 1, 2]
    assert found.accuracy[1:].tolist() == [1, 1, 1]


def test_reliability_checks_its_input():
    fine, y = two_classes(0.5, 0.2), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"probabilities must have shape \(n, c\) and y \(n,\)"):
        reliability(fine, y[:1])
    with pytest.raises(ValueError, match="num_bins must be a whole number >= 1, got 0"):
        reliability(fine, y, num_bins=0)
    with pytest.raises(ValueError, match="at least one datum"):
        reliability(fine[:0], y[:0])
    for bad in (fine.log(), fine / 2, fine * math.nan, fine * 2 - 0.5):
        with pytest.raises(ValueError, match="nonnegative and sum to 1"):
            reliability(bad, y)


def test_annealed_estimates_have_no_tails_to_warn_of(case):
    pair, x, log_joint = case
    with warnings.catch_warnings(action="error"):
        probabilities = label_posterior(pair, x[:4], num_classes=C, method=Annealed(num_temperatures=20))
    torch.testing.assert_close(probabilities, log_joint[:4].softmax(-1), rtol=0, atol=0.15)
