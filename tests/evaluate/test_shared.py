"""Pairs whose latents all data share, against conjugate models and Pyro's autoguides."""

import math

import arviz as az
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from torch import nn

import ppvae
from ppvae.evaluate import log_evidence, posterior_predictive, to_arviz
from tests.exact import gaussian

N = 23


class Location(nn.Module):
    """b ~ N(0, 4 I) for all data, x ~ N(b, I); the guide is the posterior, shifted and widened."""

    def __init__(self, shift=0.0, width=1.0, dtype=torch.float32):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift, dtype=dtype))
        self.width = width

    def model(self, x):
        b = pyro.sample("b", dist.Normal(self.shift.new_zeros(2), 2.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(b, 1.0).to_event(1), obs=x)

    def guide(self, x):
        precision = N + 0.25
        scale = self.width * precision**-0.5
        pyro.sample("b", dist.Normal(self.mean(x) / precision + self.shift * scale, scale).to_event(1))

    def mean(self, x):
        return x.sum(0)


def exact(x):
    """Log p of all data."""
    return sum(float(gaussian(column, torch.eye(len(x)) + 4.0)) for column in x.T)


def test_an_exact_guide_gives_the_evidence_itself():
    x = torch.randn(N, 2, dtype=torch.float64) + 1
    evidence = log_evidence(Location(dtype=torch.float64), x, num_samples=3)
    assert evidence.value == pytest.approx(exact(x), abs=1e-9) == evidence.elbo
    assert evidence.std_error < 1e-6


def test_another_guide_gives_it_within_its_error_and_the_elbo_below():
    x = torch.randn(N, 2) + 1
    pair = Location(0.3, 1.3)
    evidence = log_evidence(pair, x, num_samples=2000)
    assert abs(evidence.value - exact(x)) < 5 * evidence.std_error < 0.1
    kl = 2 * (math.log(1 / 1.3) + (1.3**2 + 1.3**2 * 0.3**2 - 1) / 2)
    assert abs(evidence.elbo - exact(x) + kl) < 5 * evidence.elbo_std_error
    assert evidence.num_data == N
    assert evidence.pareto_k < 0.5
    assert f"{evidence.value:.3f}" in evidence.summary()


def test_blocks_of_data_do_not_matter():
    x = torch.randn(N, 2)
    whole, parts = (log_evidence(Location(0.3, 1.2), x, num_samples=20, batch_size=size) for size in (None, 4))
    assert parts.value == pytest.approx(whole.value, abs=1e-4)


@pytest.mark.parametrize("kind", [AutoNormal, AutoDiagonalNormal])
def test_autoguides(kind):
    x = torch.randn(N, 2) + 1
    pair = Location()
    with pyro.settings.context(module_local_params=True):
        guide = kind(pair.model, init_loc_fn=lambda site: x.sum(0) / (N + 0.25), init_scale=1.1 * (N + 0.25) ** -0.5)
        guide(x)
    evidence = log_evidence(ppvae.Pair(pair.model, guide), x, num_samples=1000)
    assert abs(evidence.value - exact(x)) < 5 * evidence.std_error + 1e-3


def test_a_draw_that_the_prior_does_not_allow_has_weight_zero():
    def model(x):
        rate = pyro.sample("rate", dist.Exponential(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Exponential(rate.clamp_min(1e-9)), obs=x)

    def guide(x):
        pyro.sample("rate", dist.Normal((len(x) + 1) / (x.sum() + 1), 1.0))

    x = torch.tensor([2.0, 4.0])
    evidence = log_evidence(ppvae.Pair(model, guide), x, num_samples=4000)
    assert abs(evidence.value - (math.lgamma(3) - 3 * math.log(7.0))) < 5 * evidence.std_error
    assert evidence.elbo == -math.inf


def test_what_has_no_such_evidence_is_refused():
    x = torch.randn(N, 2)
    pair = Location()
    with pytest.raises(ValueError, match=r"all data share.*log_evidence"):
        ppvae.log_marginal(pair, x)
    with pytest.raises(ValueError, match=r"all data share.*log_evidence"):
        ppvae.elbo(pair, x)
    with pytest.raises(ValueError, match=r"log_marginal"):
        log_evidence(ppvae.models.PPCA(2, 1), x)
    guide = AutoDelta(pair.model)
    guide(x)
    with pytest.raises(ValueError, match="one value"):
        log_evidence(ppvae.Pair(pair.model, guide), x)

    def part(x):
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        with pyro.plate("data", len(x), subsample_size=3) as i:
            pyro.sample("x", dist.Normal(b, 1.0).to_event(1), obs=x[i])

    with pytest.raises(ValueError, match="takes 3 of 23 elements, a random part"):
        log_evidence(ppvae.Pair(part, pair.guide), x)

    def both(x):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(b, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide_of_both(x):
        pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"\['z'\], and all data share \['b'\]"):
        log_evidence(ppvae.Pair(both, guide_of_both), x)


def test_what_a_guide_makes_at_first_use_changes_no_draw(tmp_path):
    """An autoguide draws where it begins, once."""
    x, pair = torch.randn(N, 2), Location()
    trained = ppvae.Pair(pair.model, AutoNormal(pair.model))
    ppvae.fit(trained, x, epochs=1, progress=False)
    loaded = ppvae.load(ppvae.Pair(pair.model, AutoNormal(pair.model)), ppvae.save(trained, tmp_path / "pair"))
    expected, actual = (log_evidence(of, x, num_samples=5) for of in (trained, loaded))
    assert (actual.value, actual.elbo) == (expected.value, expected.elbo)


@pytest.mark.parametrize(("size", "asserts"), [(None, False), (5, False), (None, True)])
def test_a_pair_of_certain_data_says_so(size, asserts):
    def model(x):
        assert not asserts or len(x) == N
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        with pyro.plate("data", N, subsample_size=size) as i:
            pyro.sample("x", dist.Normal(b, 1.0).to_event(1), obs=x if size is None else x[i])

    with pytest.raises(ValueError, match="fails on 4 of the 23 data, all of which it takes") as caught:
        log_evidence(ppvae.Pair(model, Location().guide), torch.randn(N, 2))
    assert "Trace Shapes" not in str(caught.value)


def test_latents_that_are_summed_over_are_counted():
    def model(x):
        for t in range(9):
            pyro.sample(f"s_{t}", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        Location().model(x)

    with pytest.raises(ValueError, match=r"does not sample the latents \[.s_0., .*.s_5.\] and 3 more"):
        log_evidence(ppvae.Pair(model, Location().guide), torch.randn(N, 2))


class Regression(nn.Module):
    """Logistic regression of y on x, with an inner plate of three answers."""

    def model(self, x, y):
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        with pyro.plate("data", len(x)):
            logits = (x * b).sum(-1)
            with pyro.plate("answers", 3, dim=-2):
                pyro.sample("y", dist.Bernoulli(logits=logits), obs=y.T)

    def guide(self, x, y):
        pyro.sample("b", dist.Normal(torch.ones(2), 0.3).to_event(1))


@pytest.mark.filterwarnings("ignore:Estimated shape:UserWarning")  # of PSIS: the guide is not the posterior
def test_draws_and_arviz():
    x, pair = torch.randn(N, 2), Regression()
    y = torch.bernoulli(torch.sigmoid(x.sum(-1, keepdim=True)).expand(-1, 3))
    draws = posterior_predictive(pair, x, y, num_samples=200)
    assert draws.posterior["b"].shape == (200, 2)
    assert draws.predictive["y"].shape == (200, N, 3)
    logits = draws.posterior["b"] @ x.T
    expected = dist.Bernoulli(logits=logits.unsqueeze(-1)).log_prob(y).sum(-1)
    torch.testing.assert_close(draws.log_likelihood["y"], expected)
    assert (draws.predictive["y"].mean((0, 2)) - torch.sigmoid(logits).mean(0)).abs().max() < 0.1
    torch.testing.assert_close(draws.observed["y"], y)
    assert list(draws.conditions) == ["x"]
    data = to_arviz(draws)
    assert dict(data.posterior["b"].sizes) == {"chain": 1, "draw": 200, "b_dim": 2}
    assert dict(data.posterior_predictive["y"].sizes) == {"chain": 1, "draw": 200, "datum": N, "answers": 3}
    b = {"b": draws.posterior["b"].numpy()[None]}
    by_hand = az.loo(az.from_dict(posterior=b, log_likelihood={"y": expected[None].numpy()}))
    assert az.loo(data).elpd_loo == pytest.approx(by_hand.elpd_loo, abs=1e-3)


def test_a_model_that_is_fed_the_data_is_not_drawn_from():
    def model(x):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            before = torch.cat([torch.zeros(len(x), 1), x[:, :-1]], -1)
            pyro.sample("x", dist.Normal(b * before, 1.0).to_event(1), obs=x)

    pair = ppvae.Pair(model, lambda x: pyro.sample("b", dist.Normal(0.0, 1.0)))
    with pytest.raises(ValueError, match="cannot be drawn in one pass"):
        posterior_predictive(pair, torch.randn(N, 4), num_samples=3)
