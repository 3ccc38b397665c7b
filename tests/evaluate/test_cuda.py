"""On a GPU: what is estimated there is what the CPU estimates, with other draws."""

import pytest
import torch

from ppvae import evaluate
from ppvae.models import PPCA

pytestmark = [pytest.mark.inductor, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return PPCA(6, 2).cuda()


@pytest.fixture
def x(pair):
    with torch.no_grad():
        return pair.sample(40)


def test_likelihoods(pair, x):
    exact = pair.log_prob(x).double().detach()
    for estimate in (
        evaluate.log_marginal(pair, x, num_samples=200),
        evaluate.log_marginal(pair, x, method=evaluate.Annealed(num_temperatures=200)),
        evaluate.log_marginal(pair, x, method=evaluate.Annealed(num_temperatures=200, start="prior")),
    ):
        torch.testing.assert_close(estimate.values.double().to(exact.device), exact, rtol=0, atol=0.3)
    assert evaluate.elbo(pair, x, num_samples=500).mean() == pytest.approx(float(exact.mean().detach()), abs=0.01)
    both = evaluate.bidirectional(pair, x, method=evaluate.Annealed(num_temperatures=200))
    assert both.upper.mean() == pytest.approx(both.lower.mean(), abs=0.2)


def test_checks_of_the_posterior(pair, x):
    gap = evaluate.inference_gap(pair, x, num_samples=2000, num_steps=100)
    assert float(gap.approximation.mean()) >= -0.05
    assert evaluate.latent_report(pair, x).sites["z"].active.all()
    ranks = evaluate.run_sbc(pair, x, num_simulations=50)
    assert set(evaluate.check_sbc(ranks).p_values) == {"z[0]", "z[1]"}
    evaluate.to_arviz(evaluate.posterior_predictive(pair, x, num_samples=10))
    evaluate.anomaly_scores(pair, x, num_samples=10)
