"""An estimator that a newcomer adds from outside, through public names alone."""

import json
import math
from dataclasses import dataclass, replace
from itertools import groupby

import pytest
import torch

import ppvae
from ppvae.cli.report import by_class, describe, table
from ppvae.evaluate import (
    METHODS,
    Diagnostics,
    Estimator,
    LogMarginal,
    anomaly_scores,
    compare,
    elbo,
    label_posterior,
    log_marginal,
    num_observed,
)
from ppvae.sampling import importance_draws
from tests.models.by_hand import C
from tests.models.linear_gaussian import LinearGaussian
from tests.reference import ppca


class UnstableCorrection(UserWarning):
    """What the jackknife adds is large: it corrects a first order of what is no small error."""


@dataclass(frozen=True)
class JackknifeDiagnostics(Diagnostics):
    """What the correction added to each datum's log p(x), (n,), nats."""

    correction: torch.Tensor
    num_samples: int

    def in_words(self, estimate):
        return f"{self.num_samples} draws per datum, corrected by {float(self.correction.mean()):.3f} nats on average"

    def settings(self):
        return {"num_samples": self.num_samples, "draws": "jackknifed draws"}

    def figures(self):
        return {"correction": {"median": float(self.correction.median()), "most": float(self.correction.max())}}

    def of_datum(self):
        return {"correction": self.correction}

    def warning(self):
        return UnstableCorrection("more draws are needed") if float(self.correction.max()) > 1 else None


@dataclass(frozen=True)
class Jackknife(Estimator):
    """s log p̂_s − (s − 1) mean_i log p̂_{s∖i}: the bias of order 1/s gone (Nowozin 2018, "Debiasing evidence")."""

    num_draws: int = 100

    @classmethod
    def from_num_samples(cls, num_samples):
        return cls(num_draws=num_samples)

    def estimate(self, pair, data, options):
        s = self.num_draws
        draws = importance_draws(pair, data, num_samples=s, seed=options.seed, given=options.given)
        blocks = [[draw.log_weight() for draw in block] for _, block in groupby(draws, key=lambda draw: draw.start)]
        log_weight = torch.cat([torch.cat(block) for block in blocks], -1).double().cpu()
        value = log_weight.logsumexp(0) - math.log(s)
        left_out = log_weight.logsumexp(0) + torch.log1p(-log_weight.softmax(0)) - math.log(s - 1)
        correction = (s - 1) * (value - left_out.mean(0))
        num_dims, diagnostics = num_observed(pair, data, options.given), JackknifeDiagnostics(correction, s)
        plain = LogMarginal.of_weights(log_weight, num_dims=num_dims, diagnostics=diagnostics)
        return replace(plain, values=value + correction)


@pytest.fixture(scope="module")
def found():
    """A pair, data, and their log p(x): exact, and by the newcomer's estimator."""
    reference = ppca()
    x, exact = reference.data[0].repeat(100, 1), reference.log_prob.repeat(100)
    return reference.pair, x, exact, log_marginal(reference.pair, x, method=Jackknife(num_draws=10), seed=1)


def test_it_is_closer_to_log_p_than_the_bound(found):
    pair, x, exact, estimate = found
    error = estimate.values - exact
    bound = log_marginal(pair, x, num_samples=10, seed=1).values - exact
    assert abs(float(error.mean())) < 0.3 * abs(float(bound.mean()))
    assert float(((estimate.values - exact) / estimate.std_error).median().abs()) < 0.3
    assert estimate.num_dims == 6
    assert {t.dtype for t in (estimate.values, estimate.std_error, estimate.ess)} == {torch.float64}


def test_its_result_speaks_for_itself(found):
    *_, estimate = found
    assert estimate.pareto_k.shape == (1100,)
    assert estimate.pareto_k.isnan().all()  # which it does not estimate
    assert estimate.summary().startswith(f"log p(x) = {estimate.mean():.3f} ± ")
    assert "10 draws per datum, corrected by 0." in estimate.summary()


def test_it_goes_where_every_estimate_goes(found):
    pair, x, exact, estimate = found
    rows = compare({"exact": exact, "jackknife": estimate})
    assert rows["jackknife"]["difference"]["mean"] == pytest.approx(float((estimate.values - exact).mean()))
    terms = elbo(pair, x, num_samples=5)
    settings = estimate.diagnostics.settings()
    figures = {"symbol": "log p(x)", **settings, "num_dims": 6, "test": describe(terms, estimate)}
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    lines = table(figures).splitlines()
    assert any("log p(x), 10 jackknifed draws" in line for line in lines)
    assert any("effective jackknifed draws: median" in line for line in lines)
    most = float(estimate.diagnostics.correction.max())
    assert lines[-1].startswith("test    correction: median ")
    assert lines[-1].endswith(f", most {most:g}")
    of_classes = by_class(terms, estimate, torch.arange(1100) % 2)
    assert [row.keys() for row in of_classes.values()] == [{"num_data", "elbo", "log_marginal"}] * 2


def test_it_has_a_name_once_it_is_registered(monkeypatch):
    monkeypatch.setitem(METHODS, "jackknife", Jackknife)
    reference = ppca()
    by_name = ppvae.log_marginal(reference.pair, *reference.data, method="jackknife", num_samples=20)
    by_object = ppvae.log_marginal(reference.pair, *reference.data, method=Jackknife(20))
    assert torch.equal(by_name.values, by_object.values)
    scores = anomaly_scores(reference.pair, *reference.data, method="jackknife", num_samples=20)
    assert torch.equal(scores.negative_log_marginal, -by_name.values)
    with pytest.raises(ValueError, match=r"give one like method=Jackknife\(num_draws=7\)"):
        log_marginal(reference.pair, *reference.data, method=Jackknife(20), num_samples=7)
    with pytest.raises(ValueError, match=r"one of 'importance', .*, 'jackknife' or an Estimator"):
        log_marginal(reference.pair, *reference.data, method="bootstrap")


def test_its_warning_is_heard():
    reference = ppca()
    with torch.no_grad():
        reference.pair.q_z_given_x.net[0].bias.add_(1.0)  # off the posterior
    with pytest.warns(UnstableCorrection, match="more draws") as record:
        log_marginal(reference.pair, *reference.data, method=Jackknife(3))
    assert record[0].filename == __file__


def test_labels_follow_from_it():
    story = LinearGaussian(sees_label=False)
    torch.manual_seed(0)
    pair = story.pair(alpha=7.0)
    x = pair.sample(torch.arange(9) % C)
    probabilities = label_posterior(pair, x, num_classes=C, method=Jackknife(2))
    torch.testing.assert_close(probabilities, story.log_joint(x).softmax(-1), rtol=0, atol=1e-4)
