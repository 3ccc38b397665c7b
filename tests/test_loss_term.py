"""`ppvae.loss_term`: in every ELBO it is added to the loss, in model and guide alike, and nothing else sees it."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

import ppvae
from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
from ppvae.nn import MLP
from ppvae.objectives import CIWAE, IWAE, BalancedELBO, CapacityELBO, JointELBO

N, D, K = 7, 5, 2
ELBOS = {
    "trace": Trace_ELBO,
    "particles": partial(Trace_ELBO, num_particles=2),
    "vectorized": partial(Trace_ELBO, num_particles=2, vectorize_particles=True, max_plate_nesting=1),
    "mean-field": TraceMeanField_ELBO,
    "graph": TraceGraph_ELBO,
    "enumerated": partial(TraceEnum_ELBO, max_plate_nesting=1, strict_enumeration_warning=False),
    "renyi": partial(RenyiELBO, alpha=0.5, num_particles=1),
    "iwae": partial(IWAE, 3),
    "dreg": partial(IWAE, 3, gradient="dreg"),
    "ciwae": partial(CIWAE, 3, 0.5),
    "balanced": partial(BalancedELBO, {"z": 1.0}),
    "capacity": partial(CapacityELBO, 0.0, gamma=1.0),
}


class Penalised(nn.Module):
    """A VAE with terms of the loss in its model, its guide, both or none; they hold a parameter of their own."""

    def __init__(self, where=()):
        super().__init__()
        self.where = where
        self.p_z = StandardNormal(K)
        self.p_x_given_z = ConditionalBernoulli(MLP(K, (4,), D))
        self.q_z_given_x = ConditionalNormal(MLP(D, (4,), (2, K)))
        self.slope = nn.Parameter(torch.tensor(0.7))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.p_z())
            if "model" in self.where:
                ppvae.loss_term("of_model", self.slope * x.sum(-1))
            pyro.sample("x", self.p_x_given_z(z), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.q_z_given_x(x))
            if "guide" in self.where:
                ppvae.loss_term("of_guide", self.slope**2 * x.sum(-1))


def make(where, seed=0):
    torch.manual_seed(seed)
    return Penalised(where)


def data():
    return torch.bernoulli(torch.full((N, D), 0.4), generator=torch.Generator().manual_seed(1))


def announced(pair, model):
    """The model with the statement by which a user of Pyro's SVI makes known what is trained."""

    def run(x):
        pyro.module("pair", pair)
        model(x)

    return run


def loss_and_slope(elbo, where, *, pyro_svi):
    """The first loss, and the gradient of the term's parameter, by what one step of gradient descent changes."""
    pair, x, rate = make(where), data(), 1e-3
    torch.manual_seed(2)
    if pyro_svi:
        with pyro.get_param_store().scope():
            svi = pyro.infer.SVI(announced(pair, pair.model), pair.guide, pyro.optim.SGD({"lr": rate}), elbo())
            loss = svi.step(x)
        return loss, (0.7 - float(pair.slope.detach())) / rate
    svi = ppvae.SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=rate), elbo(), compile=False)
    loss = svi.step(x)
    return loss, (0.7 - float(pair.slope.detach())) / rate


@pytest.mark.parametrize("where", [("model",), ("guide",), ("model", "guide")], ids="+".join)
@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize("pyro_svi", [False, True], ids=["ppvae", "pyro"])
def test_it_is_added_to_the_loss_once_with_its_own_sign(elbo, where, pyro_svi):
    total = float(data().sum())
    plain, _ = loss_and_slope(ELBOS[elbo], (), pyro_svi=pyro_svi)
    loss, slope = loss_and_slope(ELBOS[elbo], where, pyro_svi=pyro_svi)
    expected = ("model" in where) * 0.7 * total + ("guide" in where) * 0.49 * total
    assert loss - plain == pytest.approx(expected, rel=1e-4)
    assert slope == pytest.approx(("model" in where) * total + ("guide" in where) * 1.4 * total, rel=2e-3)


def test_the_history_shows_it_by_name_and_the_elbo_without_it():
    x, rows = data(), {}
    for where in ((), ("model", "guide")):
        rows[where] = ppvae.fit(make(where), x, epochs=1, seed=3, progress=False).history[0]
    row, plain = rows["model", "guide"], rows[()]
    each = float(x.sum()) / N
    assert row["of_model"] == pytest.approx(0.7 * each, rel=1e-5)
    assert row["of_guide"] == pytest.approx(0.49 * each, rel=1e-5)
    assert row["elbo"] == pytest.approx(plain["elbo"], rel=1e-6)
    assert row["loss"] == pytest.approx(plain["loss"] + 1.19 * each, rel=1e-5)


def test_estimates_are_blind_to_it():
    x = data()
    for estimate in (partial(ppvae.elbo, num_samples=5), partial(ppvae.log_marginal, num_samples=20)):
        assert torch.equal(estimate(make(("model", "guide")), x).values, estimate(make(()), x).values)


def test_it_takes_masks_and_scales_as_a_factor_does():
    x = data()

    def model(x, *, term):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.poutine.scale(scale=3.0), pyro.poutine.mask(mask=torch.arange(N) < 2):
                if term:
                    ppvae.loss_term("term", torch.ones(N))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x, *, term):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    losses = []
    for term in (False, True):
        torch.manual_seed(0)
        losses.append(Trace_ELBO().loss(model, guide, x, term=term))
    assert losses[1] - losses[0] == pytest.approx(6.0, rel=1e-5)


def test_several_data_sets_weigh_it_as_they_weigh_the_rest():
    x, pair = data(), make(("model",))
    joint = JointELBO(Trace_ELBO(), (2.0, 3.0))
    terms = joint.evaluate(pair.model, pair.guide, ((x,), (x[:3],)), {}).terms()
    expected = 0.7 * (2.0 * float(x.sum()) + 3.0 * float(x[:3].sum()))
    assert float(terms.columns["of_model"]) == pytest.approx(expected, rel=1e-5)


def test_a_name_of_ours_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            ppvae.loss_term("loss", z**2)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="a term of the loss is called 'loss'"):
        ppvae.fit(ppvae.Pair(model, guide, [nn.Linear(1, 1)]), torch.randn(5), epochs=1, progress=False)
