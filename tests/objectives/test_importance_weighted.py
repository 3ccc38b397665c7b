"""Importance-weighted objectives against brute force: every draw by hand, every weight written out."""

import math
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn

import ppvae
from ppvae.infer import SVI
from ppvae.objectives import CIWAE, IWAE, MIWAE, PIWAE, JointELBO, Linear
from tests.infer.pairs import Published, binary, same, small_vae, state
from tests.objectives.test_importance_weighted_gradients import Flow
from tests.reference import (
    REFERENCES,
    Concatenating,
    LinearGaussian,
    linear_gaussian,
    local_params,
    masked_series,
    ppca,
)
from tests.reference_latents import MaskedSeries


def mean_of_groups(log_w, draws):
    """Mean over groups of `draws` weights of their bounds, by hand: (n,)."""
    groups = log_w.split(draws)
    return sum(group.exp().mean(0).log() for group in groups) / len(groups)


OBJECTIVES = {
    "IWAE": (partial(IWAE, 6), lambda log_w: log_w.exp().mean(0).log()),
    "MIWAE": (partial(MIWAE, 3, 2), lambda log_w: mean_of_groups(log_w, 2)),
    "CIWAE": (partial(CIWAE, 6, 0.3), lambda log_w: 0.3 * log_w.exp().mean(0).log() + 0.7 * log_w.mean(0)),
    "PIWAE": (partial(PIWAE, 3, 2), lambda log_w: log_w.exp().mean(0).log()),
}


class Series(MaskedSeries):
    """The masked series with learned parameters, and a guide without a factor."""

    def __init__(self):
        super().__init__()
        self.loc, self.slope = nn.Parameter(torch.tensor(0.1)), nn.Parameter(torch.tensor(0.7))

    def model(self, x, length):
        t = torch.arange(x.shape[1]).unsqueeze(-1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.loc, 1.0))
            with pyro.plate("time", x.shape[1], dim=-2), poutine.mask(mask=t < length):
                w = pyro.sample("w", dist.Normal(z, 0.5))
                pyro.sample("x", dist.Normal(w, 1.0), obs=torch.where(t < length, x.T, 0.0))

    def guide(self, x, length):
        t = torch.arange(x.shape[1]).unsqueeze(-1)
        total = torch.where(t < length, x.T, 0.0)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.slope * total.sum(0) / length, 0.8))
            with pyro.plate("time", x.shape[1], dim=-2), poutine.mask(mask=t < length):
                pyro.sample("w", dist.Normal(self.slope * (z + total), 0.7))


def series():
    return Series(), masked_series().data


def draws_of(pair, batch, s, seed=0):
    """Log-weights (s, n) of a pair that broadcasts, in one outer plate written here, with a graph."""
    torch.manual_seed(seed)
    with pyro.plate("outer", s, dim=-3):
        guide_trace = poutine.trace(pair.guide).get_trace(*batch)
        model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(*batch)
    n = len(batch[0])

    def total(trace):
        trace.compute_log_prob()
        sites = [site for site in trace.nodes.values() if site["type"] == "sample" and "log_prob" in site]
        log_probs = [site["log_prob"] for site in sites if site["log_prob"].dim() > 0]
        return sum(lp.expand(s, *lp.shape[-2:]).sum(1) for lp in log_probs if lp.shape[-1] == n)

    return total(model_trace) - total(guide_trace)


def gradients(loss, pair):
    loss.backward()
    found = {name: p.grad.clone() for name, p in pair.named_parameters() if p.grad is not None}
    pair.zero_grad(set_to_none=True)
    return found


def evaluate(objective, pair, batch, seed=0):
    """The loss and its gradient, with a draw that starts from a seed."""
    objective.loss(pair.model, pair.guide, *batch)  # chooses the form of the pair
    torch.manual_seed(seed)
    loss = objective.differentiable_loss(pair.model, pair.guide, *batch)
    return float(loss.detach()), gradients(loss, pair)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_bounds_against_brute_force_with_nested_plates_and_masks(name):
    pair, batch = series()
    make, by_hand = OBJECTIVES[name]
    loss, gradient = evaluate(make(), pair, batch)
    expected = -by_hand(draws_of(pair, batch, 6)).sum()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    for parameter, value in gradients(expected, pair).items():
        if name != "PIWAE" or parameter == "loc":  # the guide's parameter has another target there
            torch.testing.assert_close(gradient[parameter], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [1, 5])
def test_the_bound_of_ppca_by_brute_force(k):
    reference = ppca()
    x, pair = reference.data[0], reference.pair
    loss, _ = evaluate(IWAE(k), pair, (x,))
    log_w = draws_of(pair, (x,), k).detach()
    assert loss == pytest.approx(-float((log_w.logsumexp(0) - math.log(k)).sum()), rel=1e-5)


def test_the_encoder_of_piwae_follows_miwae():
    pair, batch = series()
    _, partial_ = evaluate(PIWAE(3, 2), pair, batch)
    _, multiple = evaluate(MIWAE(3, 2), pair, batch)
    torch.testing.assert_close(partial_["slope"], multiple["slope"], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(partial_["loc"], multiple["loc"], rtol=1e-2)


@pytest.mark.parametrize("name", ["ppca", "factor_analysis", "hierarchy", "published_style_vae", "concatenating"])
@pytest.mark.parametrize("objective", [partial(IWAE, 1), partial(MIWAE, 1, 1), partial(CIWAE, 1, 0.3)])
def test_one_sample_is_the_elbo(name, objective):
    reference = REFERENCES[name]()
    with local_params(reference.pair):
        loss, gradient = evaluate(objective(), reference.pair, reference.data)
        expected, of_elbo = evaluate(Trace_ELBO(), reference.pair, reference.data)
    assert loss == pytest.approx(expected, rel=1e-5)
    for parameter, value in of_elbo.items():
        torch.testing.assert_close(gradient[parameter], value, rtol=1e-4, atol=1e-4)


def bounds(reference, objective, repeats=200):
    """Losses per datum over many seeds."""
    torch.manual_seed(0)
    with local_params(reference.pair), pyro.validation_enabled(False), torch.no_grad():
        losses = [objective.loss(reference.pair.model, reference.pair.guide, *reference.data) for _ in range(repeats)]
    return -torch.tensor(losses, dtype=torch.float64) / len(reference.log_prob)


def test_the_bound_grows_with_the_samples_up_to_log_p():
    reference = ppca()
    exact, last = float(reference.log_prob.mean()), -math.inf
    for k in (1, 2, 8, 64):
        bound = bounds(reference, IWAE(k))
        mean, error = float(bound.mean()), float(bound.std() / math.sqrt(len(bound)))
        assert last < mean < exact + 3 * error
        last = mean
    assert last == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("name", ["concatenating", "wrong_softmax", "pyro_params", "gamma_poisson", "beta_bernoulli"])
def test_any_pair_loudly_or_silently_unable_to_broadcast(name):
    reference = REFERENCES[name]()
    bound = bounds(reference, IWAE(64), repeats=60)
    error = float(bound.std() / math.sqrt(len(bound)))
    assert float(bound.mean()) == pytest.approx(float(reference.log_prob.mean()), abs=0.02 + 3 * error)


def test_latents_and_networks_run_as_often_as_said():
    pair, drawn, encoded = small_vae(), [], []
    pair.q_z_given_x.register_forward_hook(lambda module, args, out: encoded.append(args[0].shape[:-1]))
    pair.p_x_given_z.register_forward_hook(lambda module, args, out: drawn.append(args[0].shape[:-1]))
    for objective, s in ((IWAE(7), 7), (MIWAE(3, 4), 12), (PIWAE(2, 5), 10), (CIWAE(6, 0.5), 6)):
        objective.loss(pair.model, pair.guide, binary(9))
        drawn.clear()
        encoded.clear()
        objective.loss(pair.model, pair.guide, binary(9))
        assert (drawn, encoded) == ([(s, 9)], [(9,)])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_pyros_svi_takes_the_same_steps(name):
    results = []
    for kind in (pyro.infer.SVI, SVI):
        with pyro.get_param_store().scope():
            pair, objective = Published(), OBJECTIVES[name][0]()
            svi = kind(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-2}), objective)
            torch.manual_seed(0)
            losses = [svi.step(binary(8)) for _ in range(5)]
            losses.append(svi.evaluate_loss(binary(8)))
            results.append((losses, state(pair)["encoder.0.weight"]))
    (theirs, a), (ours, b) = results
    assert ours == pytest.approx(theirs, rel=1e-5)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_keyword_arguments_are_those_of_each_call():
    class Noisy(nn.Module):
        def model(self, x, noise=1.0):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, noise), obs=x)

        def guide(self, x, noise=1.0):
            variance = 1 / (1 + noise**-2)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(variance * noise**-2 * x, variance**0.5))  # the posterior

    pair, x, objective = Noisy(), torch.randn(7), IWAE(3)
    for options in ({"noise": 1.0}, {"noise": 0.1}, {}, {"noise": 2.0}):
        exact = dist.Normal(0.0, (1 + options.get("noise", 1.0) ** 2) ** 0.5).log_prob(x).sum()
        assert objective.loss(pair.model, pair.guide, x, **options) == pytest.approx(-float(exact), rel=1e-5)


# What else an objective has.


class Classified(LinearGaussian):
    """With a term of the objective beside p(x, z), and a factor in the guide."""

    def model(self, x):
        super().model(x)
        with pyro.plate("data2", len(x), dim=-1):
            pyro.sample("side", dist.Normal(self.d, 1.0), obs=x, infer={"is_auxiliary": True})

    def guide(self, x):
        super().guide(x)
        with pyro.plate("data2", len(x), dim=-1):
            pyro.factor("penalty", 0.3 * self.a * x, has_rsample=True)


@pytest.mark.parametrize("gradient", ["standard", "dreg"])
def test_terms_of_the_objective_alone_stay_outside(gradient):
    x, pair = torch.randn(10), Classified()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*'penalty' is ignored in log q")
        loss, found = evaluate(IWAE(8, gradient=gradient), pair, (x,))
    expected, without = evaluate(IWAE(8, gradient=gradient), LinearGaussian(), (x,))
    outside = -dist.Normal(pair.d, 1.0).log_prob(x).sum() + (0.3 * pair.a * x).sum()
    assert loss == pytest.approx(expected + float(outside.detach()), rel=1e-5)
    for parameter, value in gradients(outside, pair).items():
        torch.testing.assert_close(found[parameter], without[parameter] + value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("base", [LinearGaussian, Concatenating])
def test_a_term_outside_the_data_plate_counts_once_whatever_the_form(base):
    class Decayed(base):
        def model(self, x):
            ppvae.loss_term("decay", 0.3 * self.c**2)
            super().model(x)

        def guide(self, x):
            ppvae.loss_term("decay_of_the_guide", 0.2 * self.a**2)
            super().guide(x)

    x, pair = torch.randn(10), Decayed()
    loss, found = evaluate(IWAE(8), pair, (x,))
    expected, without = evaluate(IWAE(8), base(), (x,))
    outside = 0.3 * pair.c**2 + 0.2 * pair.a**2
    assert loss == pytest.approx(expected + float(outside.detach()), rel=1e-5)
    for parameter, value in gradients(outside, pair).items():
        torch.testing.assert_close(found[parameter], without[parameter] + value, rtol=1e-4, atol=1e-4)


def test_history_has_the_terms_of_the_elbo():
    x = binary(64)
    run = ppvae.fit(small_vae(), x, loss=IWAE(5, gradient="dreg"), epochs=2, batch_size=32, progress=False)
    row = run.history[-1]
    assert row.keys() >= {"loss", "elbo", "reconstruction", "kl_z"}
    assert row["elbo"] < -row["loss"]
    pair = small_vae()
    svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=0.0), IWAE(400))
    torch.manual_seed(0)
    with svi.running():
        terms = svi.update(x)
    elbo = ppvae.elbo(pair, x, num_samples=400)
    assert float(terms.reconstruction - terms.kl["z"]) == pytest.approx(float(elbo.values.sum()), rel=5e-3)


def test_the_data_sets_of_a_joint_objective():
    pair, x = LinearGaussian(), torch.randn(12)
    joint = JointELBO(IWAE(3), [2.0, 1.0])
    joint.loss(pair.model, pair.guide, (x[:4],), (x[4:],))
    torch.manual_seed(0)
    loss = joint.loss(pair.model, pair.guide, (x[:4],), (x[4:],))
    torch.manual_seed(0)
    parts = [IWAE(3).loss(pair.model, pair.guide, part) for part in (x[:4], x[4:])]
    assert loss == pytest.approx(2 * parts[0] + parts[1], rel=1e-5)


def test_choosing_the_form_changes_nothing():
    pair = small_vae(dropout=0.3, norm="batch")
    pair.train()
    before, random = state(pair), torch.get_rng_state()
    objective = IWAE(4)
    objective._sampler(pair.model, pair.guide, (binary(9),), {})
    assert objective._samplers
    assert same(before, state(pair))
    assert torch.equal(random, torch.get_rng_state())
    assert all(module.training for module in pair.modules())


# Errors.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(IWAE, 0), "num_samples must be a whole number >= 1, got 0"),
        (partial(IWAE, 2.0), "num_samples must be a whole number >= 1, got 2.0"),
        (partial(MIWAE, 0, 2), "num_groups must be a whole number >= 1, got 0"),
        (partial(PIWAE, 2, 0), "num_samples must be .* got 0"),
        (partial(CIWAE, 2, 1.5), r"beta must be a number between 0 \(the ELBO\) and 1 \(IWAE\), got 1.5"),
        (partial(IWAE, 2, gradient="path"), "gradient must be one of .*'dreg'.*, got 'path'"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_pairs_that_do_not_go_with_it_are_named(tmp_path):
    def fit(pair, x, **options):
        options = {"loss": IWAE(3), "out": tmp_path / "run", **options}
        ppvae.fit(pair, x, epochs=1, progress=False, **options)

    mixture = REFERENCES["mixture"]()
    with pytest.raises(ValueError, match=r"IWAE does not go with this pair: .* site 'y' are not \(Categorical\)"):
        fit(mixture.pair, *mixture.data)
    with pytest.raises(ValueError, match=r"needs log q.* at a given z.*flow without an inverse"):
        fit(Flow(dist.transforms.Planar), torch.randn(20), loss=IWAE(3, gradient="dreg"))
    fit(Flow(dist.transforms.Planar), torch.randn(20), out=None)
    with pytest.raises(ValueError, match=r"site 'z' of the model has the scale 2 .* KL weight"):
        fit(small_vae(beta=2.0), binary(9))
    for kl_weight in (0.5, Linear(epochs=5, start=1.0, end=2.0)):
        with pytest.raises(ValueError, match=r"kl_weight does not go with the loss IWAE: .* has no KL term"):
            fit(small_vae(), binary(9), kl_weight=kl_weight)
    with pytest.raises(ValueError, match="site 'z' of the guide lies in no plate"):
        IWAE(2).loss(lambda x: _no_plate(x, x), lambda x: _no_plate(x, None), torch.randn(7))
    assert not (tmp_path / "run").exists()


def _no_plate(x, obs):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    if obs is not None:
        pyro.sample("x", dist.Normal(z, 1.0).expand([len(x)]).to_event(1), obs=obs)


def test_enumerated_latents_are_named():
    class Marked(type(REFERENCES["mixture"]().pair)):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                q = dist.Categorical(self.joint(x).softmax(-1))
                pyro.sample("y", q, infer={"enumerate": "parallel"})

    pair = Marked()
    with pytest.raises(NotImplementedError, match=r"\['y'\] are marked to be summed over: train with TraceEnum_ELBO"):
        IWAE(2).loss(pair.model, pair.guide, torch.randn(7, 2))


def test_linear_gaussian_is_the_pair_it_says():
    reference = linear_gaussian()
    torch.testing.assert_close(reference.pair.exact(*reference.data), reference.log_prob)


class Squeezing(nn.Module):
    """Its code takes any minibatch alone, but an outer plate of draws only of two data or more."""

    def __init__(self):
        super().__init__()
        self.decoder, self.encoder = nn.Linear(2, 1), nn.Linear(1, 4)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z).squeeze(), 1.0), obs=x)

    def guide(self, x):
        h = self.encoder(x[:, None])
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(h[:, :2], h[:, 2:].exp()).to_event(1))


def test_a_minibatch_that_an_outer_plate_fails_on_is_repeated_in_place_of_it():
    torch.manual_seed(0)
    pair, x = Squeezing(), torch.randn(9)
    loss = IWAE(3)
    assert ppvae.fit(pair, x, epochs=2, batch_size=4, loss=loss, progress=False).history[-1]["loss"] > 0
    values = [loss.loss(pair.model, pair.guide, x[8:]) for _ in range(500)]
    bound = ppvae.log_marginal(pair, x[8:].expand(6000), num_samples=3, seed=1).values
    error = torch.tensor(values).std() / 500**0.5
    assert abs(torch.tensor(values).mean() + bound.mean()) < 4 * error
