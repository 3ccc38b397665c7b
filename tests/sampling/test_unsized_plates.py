"""`pyro.plate("data")` without a size, as Pyro's ss_vae_M2 and CVAE have it, is the data plate: the same numbers."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppvae
from ppvae.evaluate import (
    Annealed,
    inference_gap,
    latent_report,
    num_observed,
    posterior_predictive,
    run_sbc,
)
from ppvae.objectives import IWAE, FreeBitsELBO

X = torch.linspace(-1.5, 2.0, 7)


class Line(nn.Module):
    """z ~ N(0, 1), x ~ N(z, 1); with its plates sized or not."""

    def __init__(self, sized):
        super().__init__()
        self.sized = sized
        self.slope = nn.Parameter(torch.tensor(0.4))

    def plate(self, name, size, dim=None):
        return pyro.plate(name, size, dim=dim) if self.sized else pyro.plate(name, dim=dim)

    def model(self, x):
        with self.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with self.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x, 0.8))


class Flat(Line):
    """It does not broadcast."""

    def model(self, x):
        with self.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z.view(len(x)), 1.0), obs=x)


class Nested(Line):
    """w_1 … w_3 in a plate of their own, x_t ~ N(w_t, 1)."""

    def model(self, x):
        with self.plate("data", len(x)), self.plate("time", 3, dim=-2):
            w = pyro.sample("w", dist.Normal(torch.zeros(3, len(x)), 1.0))
            pyro.sample("x", dist.Normal(w, 1.0), obs=x + torch.arange(3.0)[:, None])

    def guide(self, x):
        with self.plate("data", len(x)), self.plate("time", 3, dim=-2):
            pyro.sample("w", dist.Normal(self.slope * x + torch.zeros(3, 1), 0.8))


class Mixture(Line):
    """y is one of two classes, summed over; z ~ N(y, 1), x ~ N(z, 1)."""

    def model(self, x):
        with self.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(torch.full((len(x),), 0.3)))
            z = pyro.sample("z", dist.Normal(y + torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with self.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(torch.sigmoid(x)), infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal(self.slope * (x + y), 0.8))


PAIRS = [Line, Flat, Nested, Mixture]


def trained(pair, loss=None):
    run = ppvae.fit(pair, X, X, loss=loss, epochs=2, batch_size=4, progress=False)
    return torch.tensor([[row["loss"], row["valid_elbo"]] for row in run.history])


ESTIMATES = {
    "elbo": lambda pair: ppvae.elbo(pair, X, num_samples=20).values,
    "log_marginal": lambda pair: ppvae.log_marginal(pair, X, num_samples=300).values,
    "one sample": lambda pair: ppvae.log_marginal(pair, X, num_samples=1).values,
    "one datum": lambda pair: ppvae.log_marginal(pair, X[:1], num_samples=300).values,
    "fit": trained,
    "num_observed": lambda pair: torch.tensor(num_observed(pair, (X,), ())),
    "predictive": lambda pair: posterior_predictive(pair, X, num_samples=5).predictive["x"],
}
CONTINUOUS = {
    "annealed": lambda pair: ppvae.log_marginal(pair, X, method=Annealed(num_chains=4, num_temperatures=5)).values,
    "IWAE": lambda pair: trained(pair, IWAE(3)),
    "free bits": lambda pair: trained(pair, FreeBitsELBO(0.1)),
    "report": lambda pair: [site.mutual_information for site in latent_report(pair, X, num_samples=20).sites.values()],
    "gap": lambda pair: inference_gap(pair, X, num_samples=20, num_steps=3).elbo,
    "sbc": lambda pair: list(run_sbc(pair, X, num_samples=4).ranks.values()),
}


CASES = [(make, name) for make in PAIRS for name in (ESTIMATES | CONTINUOUS if make is not Mixture else ESTIMATES)]
CASES.remove((Nested, "sbc"))  # which needs what is observed to be an argument as it is


@pytest.mark.parametrize(("make", "name"), CASES, ids=lambda case: case if isinstance(case, str) else case.__name__)
def test_a_plate_without_a_size_is_as_large_as_what_lies_in_it(make, name):
    estimate = (ESTIMATES | CONTINUOUS)[name]
    expected, actual = estimate(make(True)), estimate(make(False))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


class DrawnOnce(Line):
    """Prior and posterior have the parameters of one datum, and in a plate without a size nothing repeats the draw."""

    def model(self, x):
        with self.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with self.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope, 0.8))


class PriorDrawnOnce(DrawnOnce):
    """Only the prior has them: Pyro's ELBOs refuse it too."""

    guide = Line.guide


def test_one_draw_for_all_data_is_no_latent_of_each():
    with pytest.raises(ValueError, match=r"'data' is given no size and what lies in it has 1 element:"):
        ppvae.elbo(DrawnOnce(False), X)
    with pytest.raises(
        ValueError, match=r"other plates in the guide than in the model: in the guide its shape is \(5,\)"
    ):
        ppvae.elbo(PriorDrawnOnce(False), X)
    torch.testing.assert_close(ESTIMATES["elbo"](PriorDrawnOnce(True)), ESTIMATES["elbo"](Line(True)))


def test_an_observation_may_have_the_parameters_of_one_datum():
    class Observed(Line):
        def model(self, x):
            super().model(x)
            with self.plate("data again", len(x)):
                pyro.sample("x2", dist.Normal(0.0, 1.0), obs=x**2)

    for name in ("elbo", "num_observed"):
        expected, actual = (ESTIMATES[name](Observed(sized)) for sized in (True, False))
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
