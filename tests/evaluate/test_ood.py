"""Anomaly scores against their definitions, and the area under the ROC curve against a count of pairs."""

import pytest
import torch
from torch import nn

import ppvae
from ppvae.evaluate import Annealed
from ppvae.evaluate.ood import AnomalyScores, anomaly_scores, auroc
from ppvae.models import PPCA
from tests.reference import linear_gaussian, ppca


def test_scores_are_their_definitions():
    reference, background = ppca(), PPCA(6, 2, guide="exact")
    (x,) = reference.data
    scores = anomaly_scores(reference.pair, x, num_samples=3000, background=background)
    torch.testing.assert_close(scores.negative_log_marginal, -reference.log_prob, rtol=0, atol=0.1)
    exact = background.log_prob(x).detach().double()
    torch.testing.assert_close(scores.likelihood_ratio, exact - reference.log_prob, rtol=0, atol=0.1)
    error = ppvae.elbo(reference.pair, x, num_samples=100).reconstruction
    torch.testing.assert_close(scores.reconstruction_error, -error)
    assert anomaly_scores(reference.pair, x, num_samples=5).likelihood_ratio is None


def test_log_p_is_estimated_by_the_method_that_was_asked_for():
    reference, method = ppca(), Annealed(num_chains=3, num_temperatures=4)
    scores = anomaly_scores(reference.pair, *reference.data, method=method, background=reference.pair)
    expected = ppvae.log_marginal(reference.pair, *reference.data, method=method)
    assert torch.equal(scores.negative_log_marginal, -expected.values)
    assert torch.equal(scores.likelihood_ratio, torch.zeros(11).double())
    with pytest.raises(ValueError, match="num_samples=3 belongs on the method"):
        anomaly_scores(reference.pair, *reference.data, method=method, num_samples=3)


def test_scores_are_higher_for_what_the_model_does_not_know():
    pair = linear_gaussian().pair
    near = anomaly_scores(pair, pair.d.detach() + 0.1 * torch.randn(20), num_samples=50)
    far = anomaly_scores(pair, pair.d.detach() + 9 + torch.rand(30), num_samples=50)
    assert near.auroc(far) == {"negative_log_marginal": 1.0, "reconstruction_error": 1.0}
    assert far.auroc(near)["negative_log_marginal"] == 0.0


def test_what_both_models_share_is_taken_off():
    """x = (content, nuisance): the nuisance varies far more out of the set, but the background explains it."""
    torch.manual_seed(0)
    pair, background = PPCA(2, 1, guide="exact"), PPCA(2, 1, guide="exact")
    with torch.no_grad():
        for each, weights in ((pair, [[0.1], [0.0]]), (background, [[3.0], [0.0]])):
            each.p_x_given_z.net[0].weight.copy_(torch.tensor(weights))
            each.p_x_given_z.net[0].bias.zero_()
    normal = torch.stack([torch.randn(300), 4 * torch.randn(300)], 1)
    odd = torch.stack([4 * torch.randn(300), torch.zeros(300)], 1)
    scores, other = (anomaly_scores(pair, x, num_samples=2, background=background) for x in (normal, odd))
    area = scores.auroc(other)
    assert area["negative_log_marginal"] < 0.6
    assert area["likelihood_ratio"] > 0.75


def test_the_area_is_the_share_of_ordered_pairs():
    torch.manual_seed(1)
    a, b = torch.randint(6, (40,)).float(), torch.randint(9, (25,)).float()
    wins = (b > a.unsqueeze(-1)).double() + 0.5 * (b == a.unsqueeze(-1)).double()
    assert auroc(a, b) == pytest.approx(float(wins.mean()))
    assert auroc(torch.zeros(3), torch.tensor([torch.inf, 1.0])) == 1.0
    assert auroc(torch.tensor([torch.inf]), torch.tensor([torch.inf])) == 0.5


def test_a_score_that_one_set_lacks_has_no_area():
    a, b = torch.zeros(2), torch.ones(2)
    assert set(AnomalyScores(a, a, a).auroc(AnomalyScores(b, b))) == {"negative_log_marginal", "reconstruction_error"}


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (lambda: auroc([1.0], torch.ones(2)), TypeError, "scores_in must be a torch.Tensor, got list"),
        (lambda: auroc(torch.ones(2), torch.ones(0)), ValueError, r"scores_out must have shape .*got \(0,\)"),
        (lambda: auroc(torch.ones(2, 2), torch.ones(2)), ValueError, r"scores_in must have shape .*got \(2, 2\)"),
        (lambda: auroc(torch.tensor([1.0, torch.nan]), torch.ones(2)), ValueError, "scores_in holds 1 NaN of 2"),
        (lambda: anomaly_scores(PPCA(4, 2), torch.zeros(0, 4)), ValueError, "empty"),
        (lambda: anomaly_scores(PPCA(4, 2), torch.zeros(3, 4), num_samples=0), ValueError, "num_samples must be"),
        (lambda: anomaly_scores(nn.Linear(2, 2), torch.zeros(3, 4)), TypeError, "pair must be"),
        (
            lambda: anomaly_scores(PPCA(4, 2), torch.zeros(3, 4), background=nn.Linear(2, 2)),
            TypeError,
            "background must be an nn.Module with methods",
        ),
    ],
)
def test_wrong_arguments(run, error, message):
    with pytest.raises(error, match=message):
        run()
