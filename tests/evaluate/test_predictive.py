import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppvae.evaluate import predictive
from ppvae.evaluate.predictive import posterior_predictive, ppc
from tests.reference import (
    REFERENCES,
    beta_bernoulli,
    hierarchy,
    linear_gaussian,
    masked_series,
    mixture,
    ppca,
)

S = 4000


def moments(pair, x):
    """Mean and variance of z given x, and of what it predicts, in closed form."""
    z_mean, z_variance = pair.a * x + pair.b, (2 * pair.log_t).exp()
    return z_mean, z_variance, pair.c * z_mean + pair.d, pair.c**2 * z_variance + (2 * pair.log_s).exp()


def test_draws_have_the_moments_of_the_closed_form():
    reference = linear_gaussian()
    pair, (x,) = reference.pair, reference.data
    with torch.no_grad():
        z_mean, z_variance, x_mean, x_variance = moments(pair, x)
    draws = posterior_predictive(pair, x, num_samples=S)
    for values, mean, variance in (
        (draws.posterior["z"], z_mean, z_variance),
        (draws.predictive["x"], x_mean, x_variance),
    ):
        assert values.shape == (S, len(x))
        assert ((values.mean(0) - mean).abs() < 4.5 * (variance / S).sqrt()).all()
        assert ((values.var(0) / variance - 1).abs() < 4.5 * (2 / S) ** 0.5).all()
    log_p = dist.Normal(pair.c * draws.posterior["z"] + pair.d, pair.log_s.exp()).log_prob(x)
    assert torch.allclose(draws.log_likelihood["x"], log_p.detach(), atol=1e-4)
    assert torch.equal(draws.observed["x"], x)
    assert draws.conditions == {}


def test_sites_in_plates_come_by_datum():
    reference = masked_series()
    x, length = reference.data
    draws = posterior_predictive(reference.pair, x, length, num_samples=5)
    z, w = draws.posterior["z"], draws.posterior["w"]
    assert (z.shape, w.shape, draws.predictive["x"].shape) == ((5, 11), (5, 11, 4), (5, 11, 4))
    assert torch.equal(draws.observed["x"], x)
    assert draws.plates == {"z": (), "w": ("time",), "x": ("time",)}
    assert torch.equal(draws.conditions["length"], length)
    log_p = dist.Normal(w, 1.0).log_prob(x) * (torch.arange(4) < length.unsqueeze(-1))
    assert torch.allclose(draws.log_likelihood["x"], log_p.sum(-1), rtol=1e-4)


@pytest.mark.parametrize("make", REFERENCES.values(), ids=REFERENCES)
def test_any_pair_can_be_checked(make):
    reference = make()
    draws = posterior_predictive(reference.pair, *reference.data, num_samples=3)
    for name, x in draws.observed.items():
        assert draws.predictive[name].shape == (3, *x.shape)
        assert draws.log_likelihood[name].shape == (3, len(x))
    assert all(z.shape[:2] == (3, len(x)) for z in draws.posterior.values())


def test_names_of_conditions_without_a_signature():
    reference = REFERENCES["autoguide"]()
    draws = posterior_predictive(reference.pair, *reference.data, num_samples=1)
    assert list(draws.conditions) == ["argument_1"]


def test_draws_are_of_the_seed_and_leave_the_global_state_alone():
    reference = hierarchy()
    before = torch.get_rng_state()
    a, b, c = (posterior_predictive(reference.pair, *reference.data, num_samples=2, seed=s) for s in (0, 0, 1))
    assert torch.equal(a.predictive["x"], b.predictive["x"])
    assert not torch.equal(a.predictive["x"], c.predictive["x"])
    assert torch.equal(before, torch.get_rng_state())


def test_too_many_draws_are_refused(monkeypatch):
    reference = linear_gaussian()
    monkeypatch.setattr(predictive, "MAX_BYTES", 11 * 10 * 3 * 4)  # z, x and log p(x|z), four bytes each
    assert len(posterior_predictive(reference.pair, *reference.data, num_samples=10).posterior["z"]) == 10
    with pytest.raises(ValueError, match="num_samples = 11 draws of 11 data would take"):
        posterior_predictive(reference.pair, *reference.data, num_samples=11)


def test_tail_probability_of_each_datum_in_closed_form():
    reference = linear_gaussian()
    pair, (x,) = reference.pair, reference.data
    with torch.no_grad():
        _, _, mean, variance = moments(pair, x)
    check = ppc(pair, x, statistics={"value": lambda x: x, "mean": torch.mean}, num_samples=S)
    exact = 1 - dist.Normal(mean, variance.sqrt()).cdf(x).double()
    assert ((check.tail_probability["value"] - exact).abs() < 4.5 * (exact * (1 - exact) / S).sqrt() + 1e-3).all()
    exact = 1 - dist.Normal(mean.mean(), (variance / len(x)).sqrt()).cdf(x.mean())
    assert float(check.tail_probability["mean"]) == pytest.approx(float(exact), abs=4.5 * 0.5 / math.sqrt(S))
    assert torch.equal(check.observed["value"], x.double())
    assert (check.replicated["value"].shape, check.replicated["mean"].shape) == ((S, len(x)), (S,))


def test_ties_count_by_half():
    reference = beta_bernoulli()
    (x,) = reference.data
    a, b = 0.8 * (2 + x.sum(-1)), 0.8 * (8 - x.sum(-1))
    p = (a / (a + b)).double()
    check = ppc(reference.pair, x, statistics={"first": lambda x: x[:, 0], "constant": lambda x: 1}, num_samples=S)
    exact = torch.where(x[:, 0] == 1, p / 2, p + (1 - p) / 2)
    assert (check.tail_probability["first"] - exact).abs().max() < 4.5 * 0.5 / math.sqrt(S)
    assert float(check.tail_probability["constant"]) == 0.5


def test_the_model_passes_on_its_own_data_and_fails_where_it_is_wrong():
    reference = ppca(guide="exact")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        x = reference.pair.sample(1000)
    statistics = {"mean of each": lambda x: x.mean(-1), "spread": lambda x: x.std()}
    check = ppc(reference.pair, x, statistics=statistics, num_samples=300)
    each = check.tail_probability["mean of each"]
    assert float(each.mean()) == pytest.approx(0.5, abs=0.03)
    assert ((each < 0.025) | (each > 0.975)).double().mean() < 0.06
    assert 0.01 < float(check.tail_probability["spread"]) < 0.99
    assert "does not reproduce" not in check.summary()
    wrong = ppc(reference.pair, 3 * x, statistics=statistics, num_samples=300)
    assert float(wrong.tail_probability["spread"]) == 0.0
    assert "tail probability 0.000 ± 0.000: the model does not reproduce it" in wrong.summary()
    assert ((each < 0.025) | (each > 0.975)).sum() < (wrong.tail_probability["mean of each"] < 0.025).sum()


def test_masked_elements_of_replicates_are_those_of_the_data():
    reference = masked_series()
    x, length = reference.data
    counts = torch.arange(4) < length.unsqueeze(-1)
    statistics = {"masked": lambda x: x[~counts].sum(), "kept": lambda x: x[counts].sum()}
    check = ppc(reference.pair, x, length, statistics=statistics, num_samples=20)
    assert (check.replicated["masked"] == check.observed["masked"]).all()
    assert check.replicated["kept"].unique().numel() == 20


class Labelled(nn.Module):
    """Observes two sites."""

    def model(self, x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("y", dist.Bernoulli(logits=z), obs=y)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7))


def test_one_of_several_observed_sites():
    x, y = torch.randn(8), torch.ones(8)
    check = ppc(Labelled(), x, y, statistics={"mean": torch.mean}, site="y", num_samples=10)
    assert float(check.observed["mean"]) == 1.0
    for site in (None, "z"):
        with pytest.raises(ValueError, match=r"site must be one of the observed sites \['y', 'x'\], got"):
            ppc(Labelled(), x, y, statistics={"mean": torch.mean}, site=site)


class Lacking(Labelled):
    def guide(self, x, y):
        pass


@pytest.mark.parametrize(
    ("statistics", "error", "message"),
    [
        (torch.mean, TypeError, "statistics must map names to functions"),
        ({"mean": 3.0}, TypeError, "statistics must map names to functions"),
        ({}, ValueError, "statistics is empty"),
        ({"all": lambda x: x}, ValueError, r"statistics\['all'\] must give a number .* got shape \(11, 2\)"),
        ({"log": lambda x: x.min().log()}, ValueError, r"statistics\['log'\] must give finite numbers"),
    ],
)
def test_statistics_that_are_none(statistics, error, message):
    reference = mixture()
    with pytest.raises(error, match=message):
        ppc(reference.pair, *reference.data, statistics=statistics)


@pytest.mark.parametrize("estimate", [posterior_predictive, lambda *a, **k: ppc(*a, statistics={"m": torch.mean}, **k)])
def test_errors(estimate):
    pair, x = linear_gaussian().pair, torch.randn(5)
    with pytest.raises(ValueError, match="num_samples must be a whole number >= 1, got 0"):
        estimate(pair, x, num_samples=0)
    with pytest.raises(ValueError, match="data is empty"):
        estimate(pair, torch.zeros(0))
    with pytest.raises(TypeError, match="pair must be"):
        estimate(nn.Linear(1, 1), x)
    with pytest.raises(ValueError, match="the guide misses the latent site 'z'"):
        estimate(Lacking(), x, torch.ones(5))


class ReadsItsLabel(nn.Module):
    """x ~ N(z + 10 y, 0.01), where y is the drawn label, or what the model was given."""

    def __init__(self, given):
        super().__init__()
        self.given = given

    def model(self, x, y):
        with pyro.plate("data", len(x)):
            label = pyro.sample("y", dist.Bernoulli(0.5), obs=y)
            z = pyro.sample("z", dist.Normal(0.0, 0.01))
            pyro.sample("x", dist.Normal(z + 10 * (y if self.given else label), 0.01), obs=x)

    def guide(self, x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0 * x, 0.01))


class FedItself(nn.Module):
    """x_1 ~ N(z, 1), x_2 ~ N(x_1, 0.01), with x_1 read from the data."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = torch.stack(torch.broadcast_tensors(z, x[:, 0]), -1)
            pyro.sample("x", dist.Normal(loc, torch.tensor([1.0, 0.01])).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0] / 2, 0.7))


def test_a_label_that_is_drawn_anew_decides_what_is_drawn_after_it():
    x, y = torch.tensor([0.0, 10.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    drawn = posterior_predictive(ReadsItsLabel(given=False), x, y, num_samples=50).predictive
    assert torch.allclose(drawn["x"], 10 * drawn["y"], atol=0.2)
    assert 0 < float(drawn["y"].mean()) < 1


@pytest.mark.parametrize(
    ("pair", "data"),
    [
        (ReadsItsLabel(given=True), (torch.tensor([0.0, 10.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]))),
        (FedItself(), (5 * torch.randn(20, 2, generator=torch.Generator().manual_seed(0)),)),
    ],
    ids=["label", "autoregressive"],
)
def test_data_that_are_fed_what_they_should_predict_are_refused(pair, data):
    with pytest.raises(ValueError, match="'x' depends on the data that the model is given besides"):
        posterior_predictive(pair, *data, num_samples=2)
    with pytest.raises(ValueError, match="'x' depends on the data that the model is given besides"):
        ppc(pair, *data, site="x", statistics={"mean": torch.mean}, num_samples=2)


class Missing(nn.Module):
    """x ~ N(z, 1) where it is not negative."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            p_x = dist.Normal(z.unsqueeze(-1).expand(*z.shape, 2), 0.1).mask(x >= 0).to_event(1)
            pyro.sample("x", p_x, obs=self.seen(x))

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.amax(-1), 0.01))


@pytest.mark.parametrize("seen", [lambda x: x, lambda x: x.clamp(min=0)], ids=["as it is", "computed"])
def test_a_mask_that_is_made_of_the_data_is_no_reason_to_refuse(seen):
    pair, x = Missing(), torch.tensor([[1.5, -1.0], [1.0, 2.0], [-1.0, 3.0]])
    pair.seen = seen
    assert posterior_predictive(pair, x, num_samples=3).predictive["x"].shape == (3, 3, 2)


class Factor(nn.Module):
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("fit", dist.Normal(z, 1.0).log_prob(x))

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7))


def test_a_model_that_observes_nothing_predicts_nothing():
    with pytest.raises(ValueError, match="the model observes no site"):
        posterior_predictive(Factor(), torch.zeros(3))
