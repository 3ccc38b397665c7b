"""β-TCVAE: weights, parts and gradients against formulas by hand; the size of the data set is known or asked for."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from torch import nn

import ppvae
from ppvae.data import Batches, JointBatches, Source
from ppvae.infer import SVI
from ppvae.objectives import JointELBO, Linear, TotalCorrelationELBO
from ppvae.objectives.total_correlation import log_aggregated, log_weights
from ppvae.traces import sites
from tests.compile.test_compiled import assert_same, compiled_graphs
from tests.infer.pairs import Published, TwoLatents, binary, same, small_vae, state
from tests.infer.test_resume import Interrupted
from tests.objectives.test_importance_weighted import gradients
from tests.objectives.test_regularized import Transformed, Weighted, evaluate
from tests.reference import REFERENCES, local_params

PARTS = ("mutual_information", "total_correlation", "dimensions_kl")


def drawn(pair, x, seed=0):
    """The guide's site, and log p(x|z) and log p(z) of the draw, of the same draws as an objective's."""
    torch.manual_seed(seed)
    guide_trace = poutine.trace(pair.guide).get_trace(x)
    model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(x)
    for trace in (guide_trace, model_trace):
        trace.compute_log_prob()
    return sites(guide_trace)["z"], sites(model_trace)


def by_hand(q, num_data):
    """Log q(z) and Σ_j log q(z_j) of stratified weights, one draw and one datum after another."""
    loc, scale, z = q.fn.base_dist.loc, q.fn.base_dist.scale, q.value
    n, joint, single = len(z), [], []
    for i in range(n):
        weights = [1 / num_data if j == i else (num_data - 1) / (num_data * (n - 1)) for j in range(n)]
        of_each = torch.stack([dist.Normal(loc[j], scale[j]).log_prob(z[i]).exp() for j in range(n)])
        w = torch.tensor(weights)
        joint.append((w * of_each.prod(-1)).sum().log())
        single.append((w[:, None] * of_each).sum(0).log().sum())
    return torch.stack(joint), torch.stack(single)


@pytest.mark.parametrize("num_data", [7, 100])
def test_loss_parts_and_gradient(num_data):
    pair, x = small_vae(), binary(7)
    q, of_model = drawn(pair, x)
    log_q_z, log_q_dims = by_hand(q, num_data)
    kl = torch.distributions.kl_divergence(q.fn.base_dist, dist.Normal(0.0, 1.0)).sum()
    correlation, dimensions = log_q_z - log_q_dims, log_q_dims - of_model["z"].log_prob
    expected = (
        -of_model["x"].log_prob.sum() + 0.5 * kl + (4.0 - 0.5) * correlation.sum() + (2.0 - 0.5) * dimensions.sum()
    )
    objective = TotalCorrelationELBO(4.0, alpha=0.5, gamma=2.0, num_data=num_data)
    loss, gradient = evaluate(objective, pair, (x,))
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    for parameter, value in gradients(expected, pair).items():
        torch.testing.assert_close(gradient[parameter], value, rtol=1e-3, atol=1e-4)
    torch.manual_seed(0)
    columns = objective.evaluate(pair.model, pair.guide, (x,), {}).terms().named()
    values = torch.stack([q.log_prob - log_q_z, correlation, dimensions]).sum(1).tolist()
    assert [float(columns[name]) for name in PARTS] == pytest.approx(values, rel=1e-3)
    assert sum(float(columns[name]) for name in PARTS) == pytest.approx(float(columns["kl_z"]), rel=1e-5)


def test_all_data_at_once_give_the_aggregated_posterior_exactly():
    pair, x = small_vae(), binary(9)
    q, _ = drawn(pair, x)
    density = dist.Normal(q.fn.base_dist.loc, q.fn.base_dist.scale).log_prob(q.value.unsqueeze(1))
    exact = density.sum(-1).logsumexp(1) - math.log(9), (density.logsumexp(1) - math.log(9)).sum(-1)
    for ours, theirs in zip(log_aggregated(q, "stratified", 9), exact, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_minibatches_estimate_the_density_without_bias():
    """The mean of q̂(z)/q(z) over minibatches is one; that of the published weights is not."""
    torch.manual_seed(0)
    num_data, n = 200, 16
    loc, scale = torch.randn(num_data, 2) @ torch.randn(2, 2), torch.full((num_data, 2), 0.5)
    ratios = {name: [] for name in ("stratified", "minibatch", "paper")}
    for _ in range(300):
        rows = torch.randperm(num_data)[:n]
        z = loc[rows] + scale[rows] * torch.randn(n, 2)
        log_q = dist.Normal(loc, scale).log_prob(z[:, None]).sum(-1)
        exact = log_q.logsumexp(1) - math.log(num_data)
        for name in ratios:
            estimate = (log_q[:, rows] + log_weights(name, n, num_data, log_q)).logsumexp(1)
            ratios[name].append((estimate - exact).exp().mean())
    means = {name: float(torch.stack(values).mean()) for name, values in ratios.items()}
    assert means["stratified"] == pytest.approx(1.0, abs=0.03)
    assert means["minibatch"] < 0.1
    assert abs(means["paper"] - 1.0) > 0.3


def test_total_correlation_of_a_known_mixture():
    """N = 1,000 codes of correlation, whose exact total correlation is known: the order that the docs give."""
    torch.manual_seed(0)
    num_data, k = 1000, 4
    loc, scale = torch.randn(num_data, k) @ torch.randn(k, k) * 0.7, torch.full((num_data, k), 0.3)

    def correlation(rows, weights):
        q = dist.Normal(loc[rows], scale[rows]).to_event(1)
        with pyro.plate("data", len(rows)):
            trace = poutine.trace(lambda: pyro.sample("z", q)).get_trace()
        log_q_z, log_q_dims = log_aggregated(sites(trace)["z"], weights, num_data)
        return (log_q_z - log_q_dims).mean()

    def of_minibatches(n, weights):
        return float(torch.stack([correlation(torch.randperm(num_data)[:n], weights) for _ in range(20)]).mean())

    exact = float(correlation(torch.arange(num_data), "stratified"))
    estimates = [of_minibatches(n, "stratified") for n in (64, 256)]
    assert 0.6 * exact < estimates[0] < estimates[1] < exact
    assert of_minibatches(64, "paper") > 1.4 * exact
    assert of_minibatches(64, "minibatch") > 10 * exact


def test_the_published_weights():
    """As in the code of Chen et al.: a matrix that is filled row after row with a stride of its own width."""
    n, num_data = 5, 40
    m = n - 1
    weights = torch.full((n, n), 1 / m)
    weights.view(-1)[:: m + 1] = 1 / num_data
    weights.view(-1)[1 :: m + 1] = (num_data - m) / (num_data * m)
    weights[m - 1, 0] = (num_data - m) / (num_data * m)
    torch.testing.assert_close(log_weights("paper", n, num_data, weights), weights.log())


@pytest.mark.parametrize("weights", ["stratified", "paper", "minibatch"])
def test_with_all_weights_one_it_is_the_elbo(weights):
    pair, x = small_vae(), binary(9)
    ours, gradient = evaluate(TotalCorrelationELBO(1.0, num_data=30, weights=weights), pair, (x,))
    torch.manual_seed(0)
    theirs = TraceMeanField_ELBO().differentiable_loss(pair.model, pair.guide, x)
    assert ours == pytest.approx(float(theirs.detach()), rel=1e-5)
    for parameter, value in gradients(theirs, pair).items():
        torch.testing.assert_close(gradient[parameter], value, rtol=1e-4, atol=1e-4)


def test_particles_are_averaged():
    pair, x = small_vae(), binary(9)
    objective = TotalCorrelationELBO(5.0, num_data=30, num_particles=3)
    torch.manual_seed(0)
    loss = objective.loss(pair.model, pair.guide, x)
    torch.manual_seed(0)
    parts = [TotalCorrelationELBO(5.0, num_data=30).loss(pair.model, pair.guide, x) for _ in range(3)]
    assert loss == pytest.approx(sum(parts) / 3, rel=1e-5)


class OneNumber(nn.Module):
    """A latent of one dimension without event dims, and a posterior that is the same for all data."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.3))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 0.5))


def test_one_dimension_has_no_total_correlation_and_one_posterior_no_information():
    objective, pair, x = TotalCorrelationELBO(9.0, num_data=20), OneNumber(), torch.randn(8)
    terms = objective.evaluate(pair.model, pair.guide, (x,), {}).terms()
    assert [float(terms.columns[name]) for name in PARTS[:2]] == pytest.approx([0.0, 0.0], abs=1e-5)
    assert float(terms.columns["dimensions_kl"]) == pytest.approx(float(terms.kl["z"]), rel=1e-5)


class Image(nn.Module):
    """A latent of several event dims."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
            pyro.sample("x", dist.Normal(z.sum((-1, -2)), 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, None, None] * torch.ones(2, 3), torch.ones(3)).to_event(2))


def test_event_dims_are_dimensions():
    pair, x = Image(), torch.randn(5)
    q, _ = drawn(pair, x)
    flat = dist.Normal(x[:, None].expand(5, 6), 1.0).log_prob(q.value.flatten(1)[:, None])
    log_q_z, log_q_dims = log_aggregated(q, "stratified", 5)
    torch.testing.assert_close(log_q_z, flat.sum(-1).logsumexp(1) - math.log(5))
    torch.testing.assert_close(log_q_dims, (flat.logsumexp(1) - math.log(5)).sum(-1))


# The size of the data set.


def test_fit_tells_how_many_data_there_are():
    loss, x = TotalCorrelationELBO(4.0), binary(40)
    ppvae.fit(small_vae(), x, loss=loss, batch_size=8, epochs=1, progress=False)
    torch.manual_seed(0)
    told = loss.loss(small_vae().model, small_vae().guide, x[:8])
    torch.manual_seed(0)
    assert told == TotalCorrelationELBO(4.0, num_data=40).loss(small_vae().model, small_vae().guide, x[:8])
    assert loss.num_data is None  # what it was made with: for other data it is told again
    ppvae.fit(small_vae(), x[:20], loss=loss, batch_size=8, epochs=1, progress=False)


def test_another_number_than_that_of_the_data_is_refused():
    with pytest.raises(ValueError, match="num_data must be that of the training data, 40, got 50"):
        ppvae.fit(small_vae(), binary(40), loss=TotalCorrelationELBO(4.0, num_data=50), epochs=1, progress=False)
    ppvae.fit(small_vae(), binary(40), loss=TotalCorrelationELBO(4.0, num_data=40), epochs=1, progress=False)


class Unsized(Source):
    """Data of which nobody knows how many there are."""

    num_batches = 2

    def epoch(self, index):
        yield from [(binary(8, seed=i),) for i in range(2)]


def test_where_nobody_knows_it_must_be_given():
    message = "num_data must be given, the number of data that the minibatches are of"
    with pytest.raises(ValueError, match=message):
        ppvae.fit(small_vae(), Unsized(), loss=TotalCorrelationELBO(4.0), epochs=1, progress=False)
    ppvae.fit(small_vae(), Unsized(), loss=TotalCorrelationELBO(4.0, num_data=16), epochs=1, progress=False)
    pair = small_vae()
    with pytest.raises(ValueError, match=message):
        SVI(pair.model, pair.guide, torch.optim.Adam, TotalCorrelationELBO(4.0)).step(binary(8))
    with pytest.raises(ValueError, match="num_data must be at least the 8 data of a minibatch, got 7"):
        TotalCorrelationELBO(4.0, num_data=7).loss(pair.model, pair.guide, binary(8))


def test_every_set_of_a_joint_objective_has_its_own():
    x, y, pair = binary(4), binary(20, seed=1), small_vae()
    loss = TotalCorrelationELBO(4.0)
    data = JointBatches(Batches(x, batch_size=2), Batches(y, batch_size=5))
    joint = JointELBO(loss, data.weights)
    run = ppvae.fit(small_vae(), data, loss=joint, epochs=1, progress=False)
    assert run.history[0].keys() >= set(PARTS)
    torch.manual_seed(0)
    value = joint.loss(pair.model, pair.guide, (x[:2],), (y[:5],))
    torch.manual_seed(0)
    sizes = zip(data.weights, (4, 20), (x[:2], y[:5]), strict=True)
    parts = [w * TotalCorrelationELBO(4.0, num_data=n).loss(pair.model, pair.guide, part) for w, n, part in sizes]
    assert value == pytest.approx(sum(parts), rel=1e-5)
    ppvae.fit(small_vae(), data, loss=TotalCorrelationELBO(4.0), epochs=1, progress=False)


def test_a_last_minibatch_of_one_datum_is_refused_before_training(tmp_path):
    message = "TotalCorrelationELBO fails on a minibatch of train: .* there is one of a single datum: .*drop_last=True"
    for data in (
        Batches(binary(17), batch_size=8),
        JointBatches(Batches(binary(16), batch_size=8), Batches(binary(17), batch_size=8)),
    ):
        with pytest.raises(ValueError, match=message.replace("TotalCorrelationELBO fails", r"\w+ fails")):
            ppvae.fit(small_vae(), data, loss=TotalCorrelationELBO(4.0), epochs=1, progress=False, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    ppvae.fit(small_vae(), binary(18), loss=TotalCorrelationELBO(4.0), batch_size=8, epochs=1, progress=False)


# Training.


def test_scales_and_kl_weights():
    pair, x = small_vae(), binary(9)
    objective = TotalCorrelationELBO(4.0, num_data=30)
    _, of_model = drawn(pair, x)
    log_likelihood = float(of_model["x"].log_prob.sum().detach())
    loss, _ = evaluate(objective, pair, (x,))
    with ppvae.KLWeight(torch.tensor(0.25)):
        weighted, _ = evaluate(objective, pair, (x,))
    assert weighted == pytest.approx(-log_likelihood + 0.25 * (loss + log_likelihood), rel=1e-5)
    with pytest.raises(ValueError, match=r"TotalCorrelationELBO is of data that count alike, and site 'z' has a scale"):
        evaluate(objective, Weighted(pair, torch.linspace(0.1, 2.0, 9)), (x,))


@pytest.mark.usefixtures("with_and_without_inductor")
def test_compiled_equals_eager():
    make = partial(TotalCorrelationELBO, 4.0, num_data=50)
    assert compiled_graphs(assert_same(small_vae, make, [(binary(8),)], steps=4)) == 1


def test_a_schedule_moves_it():
    loss, pair, x = TotalCorrelationELBO(Linear(10, end=8.0), num_data=30), small_vae(), binary(9)
    for epoch in (0.0, 5.0):
        loss.set_time(epoch)
        torch.manual_seed(0)
        now = loss.loss(pair.model, pair.guide, x)
        torch.manual_seed(0)
        constant = TotalCorrelationELBO(0.8 * epoch, num_data=30).loss(pair.model, pair.guide, x)
        assert now == pytest.approx(constant, rel=1e-6)


def test_pyros_svi_takes_the_same_steps():
    results = []
    for kind in (pyro.infer.SVI, SVI):
        with pyro.get_param_store().scope():
            pair, loss = Published(), TotalCorrelationELBO(4.0, num_data=50)
            svi = kind(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-2}), loss)
            torch.manual_seed(0)
            results.append(([svi.step(binary(8)) for _ in range(4)], state(pair)["encoder.0.weight"]))
    (theirs, a), (ours, b) = results
    assert ours == pytest.approx(theirs, rel=1e-5)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_an_interrupted_run_continues_as_if_it_never_stopped(tmp_path):
    def train(pair, out, **options):
        loss = TotalCorrelationELBO(Linear(3, end=4.0))
        return ppvae.fit(pair, binary(28), loss=loss, epochs=4, batch_size=8, out=out, progress=False, **options)

    whole = train(Interrupted(small_vae()), tmp_path / "whole")
    train(Interrupted(small_vae(), {6}), tmp_path / "parts")
    pair = Interrupted(small_vae(seed=9))
    resumed = train(pair, tmp_path / "parts", resume=True)
    assert resumed.history == whole.history
    assert same(state(pair), ppvae.infer.RunFolder(tmp_path / "whole").weights())


def test_the_elbo_is_that_of_the_model():
    run = ppvae.fit(
        small_vae(), binary(40), binary(20, seed=5), loss=TotalCorrelationELBO(9.0), epochs=1, progress=False
    )
    row = run.history[0]
    assert row["elbo"] == pytest.approx(row["reconstruction"] - row["kl_z"], rel=1e-5)
    assert row["loss"] != pytest.approx(-row["elbo"], rel=1e-3)
    assert row["valid_elbo"] < 0


# Pairs that do not go with it.


class Flow(nn.Module):
    """A posterior that does not factorise."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(x, torch.eye(2)))


class Masked(OneNumber):
    """A latent that some data lack."""

    def model(self, x):
        with poutine.mask(mask=x > 0):
            super().model(x)

    def guide(self, x):
        with poutine.mask(mask=x > 0):
            super().guide(x)


class Code(OneNumber):
    """A posterior that is a point."""

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(self.loc * x))


@pytest.mark.parametrize(
    ("pair", "batch", "message"),
    [
        (TwoLatents(), (binary(9),), r"guide draws one latent, which the model has: it draws \['z1', 'z2'\]"),
        (Transformed(), (torch.randn(9),), r"it draws \['z_unconstrained', 'z'\]"),
        (Flow(), (torch.randn(9, 2),), "factorises over the dimensions of z, .*: 'z' is a MultivariateNormal"),
        (Code(), (torch.randn(9),), "with a density, .*: 'z' is a Delta"),
        (Masked(), (torch.randn(9),), "needs the latent 'z' of every datum, and a mask may leave it out"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_pairs_that_do_not_go_with_it_are_named(pair, batch, message):
    with local_params(pair), pytest.raises(NotImplementedError, match=message):
        TotalCorrelationELBO(4.0, num_data=20).loss(pair.model, pair.guide, *batch)
    with pytest.raises(ValueError, match=r"loss TotalCorrelationELBO does not go with this pair"):
        ppvae.fit(pair, batch, loss=TotalCorrelationELBO(4.0), epochs=1, progress=False)


def test_a_discrete_latent_is_named():
    mixture = REFERENCES["mixture"]()
    with pytest.raises(ValueError, match=r"TotalCorrelationELBO does not go with this pair: .* site 'y' are not"):
        ppvae.fit(mixture.pair, mixture.data, loss=TotalCorrelationELBO(4.0), epochs=1, progress=False)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (partial(TotalCorrelationELBO, -1.0), ValueError, "beta must be a finite number >= 0, got -1.0"),
        (partial(TotalCorrelationELBO, 1.0, gamma=math.nan), ValueError, "gamma must be a finite number >= 0, got nan"),
        (partial(TotalCorrelationELBO, 1.0, alpha="1"), TypeError, "alpha must be a number or a function of the epoch"),
        (partial(TotalCorrelationELBO, 1.0, num_data=0), ValueError, "num_data must be a whole number >= 1, got 0"),
        (
            partial(TotalCorrelationELBO, 1.0, weights="right"),
            ValueError,
            "weights must be one of stratified, minibatch, paper, got 'right'",
        ),
    ],
)
def test_options_are_checked(make, kind, message):
    with pytest.raises(kind, match=message):
        make()
