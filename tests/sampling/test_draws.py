"""What is made of log-probabilities that were drawn, at their edges."""

import math

import pytest
import torch

from ppvae.sampling.importance import Draws


def draws(log_p_y, log_q_y, log_likelihood, **options):
    """One latent y of so many values, one sample of each of n data: tables (e, n)."""
    likelihood, p, q = (
        torch.as_tensor(t, dtype=torch.float64).unsqueeze(1) for t in (log_likelihood, log_p_y, log_q_y)
    )
    return Draws(0, likelihood, {"y": p.expand_as(likelihood)}, {"y": q.expand_as(likelihood)}, ("y",), **options)


HALF, NEVER = math.log(0.5), -math.inf


def test_values_of_probability_zero_do_not_count():
    d = draws([[HALF], [HALF]], [[0.0], [NEVER]], [[-1.0], [NEVER]])
    assert d.elbo() == pytest.approx(HALF - 1)
    assert d.reconstruction() == pytest.approx(-1)
    assert d.kl()["y"] == pytest.approx(-HALF)
    assert d.log_weight() == pytest.approx(HALF - 1)


def test_an_impossible_value_of_positive_probability_is_infinite():
    d = draws([[HALF], [NEVER]], [[HALF], [HALF]], [[-1.0], [-1.0]])
    assert d.elbo() == -math.inf
    assert d.kl()["y"] == math.inf
    assert d.log_weight() == pytest.approx(HALF - 1)


def test_nan_is_never_averaged_away():
    d = draws([[HALF], [HALF]], [[math.nan], [math.nan]], [[-1.0], [-1.0]])
    assert d.elbo().isnan().all()
    assert d.kl()["y"].isnan().all()
    d = draws([[HALF], [HALF]], [[HALF], [HALF]], [[math.nan], [-1.0]])
    assert d.log_weight().isnan().all()
    assert d.reconstruction().isnan().all()


def of_the_model(likelihood):
    """y is summed over and in the model alone."""
    likelihood = torch.tensor(likelihood, dtype=torch.float64).unsqueeze(1)
    prior = {"y": torch.full_like(likelihood, HALF)}
    return Draws(0, likelihood, prior, {}, marginalized=("y",), num_marginalized=2)


def test_data_that_no_value_explains():
    d = of_the_model([[-1.0, NEVER, NEVER], [-2.0, -3.0, NEVER]])
    exact = torch.tensor([[-1.0, NEVER, NEVER], [-2.0, -3.0, NEVER]], dtype=torch.float64).logsumexp(0) + HALF
    for values in (d.elbo(), d.log_weight()):
        torch.testing.assert_close(values[0], exact)
    assert d.reconstruction()[0, 1:].tolist() == [-3.0, -math.inf]
    assert d.kl()["y"][0].tolist()[1:] == pytest.approx([-HALF, 0.0])


def test_every_log_probability_is_among_the_terms():
    d = draws([[HALF], [NEVER]], [[HALF], [HALF]], [[-1.0], [-2.0]])
    assert d.terms().shape == (3, 2, 1, 1)
    assert d.terms().flatten().tolist() == [-1.0, -2.0, HALF, NEVER, HALF, HALF]
