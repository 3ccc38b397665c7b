import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppvae
from ppvae.evaluate import fit_temperature


def tempered():
    """z ~ N(0, 1), x ~ N(z, 1): the posterior is N(x/2, 1/2), of which the guide has the variance wrong."""
    variance = torch.tensor(9.0)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, variance.sqrt()))

    return ppvae.Pair(model, guide), variance, torch.randn(50)


def test_the_best_temperature_is_near_that_of_the_posterior():
    """And the best of all that were tried, on the same draws."""
    pair, variance, x = tempered()
    found = fit_temperature(pair, variance, x, num_samples=16, seed=3)
    assert found == float(variance) == pytest.approx(0.5, rel=0.5)
    at = ppvae.log_marginal(pair, x, num_samples=16, seed=3)
    exact = dist.Normal(0.0, math.sqrt(2.0)).log_prob(x).double()
    assert float((at.values - exact).mean()) == pytest.approx(0, abs=0.03)
    for other in (0.1, 0.25, 1.0, 9.0):
        variance.fill_(other)
        assert ppvae.log_marginal(pair, x, num_samples=16, seed=3).mean() < at.mean()


def test_bounds_are_kept():
    pair, variance, x = tempered()
    assert fit_temperature(pair, variance, x, num_samples=5, least=2.0, most=4.0, num_steps=0) == pytest.approx(2.0)


def test_an_error_leaves_it_as_it_was():
    pair, variance, x = tempered()
    with pytest.raises(ValueError, match="NaN"):
        fit_temperature(pair, variance, x.index_fill(0, torch.tensor([2]), torch.nan))
    assert float(variance) == 9.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples must be a whole number >= 1, got 0"),
        ({"num_steps": -1}, "num_steps must be a whole number >= 0, got -1"),
        ({"least": 0.0}, "least must be a finite number > 0, got 0"),
        ({"least": 2.0, "most": 1.0}, "most must be a finite number > 2, got 1"),
    ],
)
def test_errors_name_the_argument(options, message):
    pair, variance, x = tempered()
    with pytest.raises(ValueError, match=message):
        fit_temperature(pair, variance, x, **options)


@pytest.mark.parametrize("temperature", [1.0, torch.ones(2), torch.tensor(1)])
def test_what_is_no_number_is_refused(temperature):
    pair, _, x = tempered()
    with pytest.raises(TypeError, match="temperature must be a tensor of one floating-point number, got"):
        fit_temperature(pair, temperature, x)
