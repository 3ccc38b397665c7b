"""Objectives that treat the KL term otherwise, against losses and gradients written out by hand."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn

import ppvae
from ppvae.objectives import BalancedELBO, CapacityELBO, ConstrainedELBO, FreeBitsELBO, beta_from_norm
from tests.infer.pairs import TwoLatents, binary, small_vae
from tests.objectives.test_importance_weighted import gradients, series
from tests.objectives.test_importance_weighted_gradients import Chain
from tests.objectives.test_importance_weighted_scales import Subsampled
from tests.reference import REFERENCES, local_params

OBJECTIVES = {
    "capacity": partial(CapacityELBO, 0.7, gamma=5.0),
    "constrained": partial(ConstrainedELBO, 0.7),
    "free bits": partial(FreeBitsELBO, 0.3),
    "balanced": partial(BalancedELBO, {"z": 0.5}),
}
PENALTIES = {  # of the mean KL of each dimension, by hand
    "capacity": lambda kl: 5.0 * (kl.sum() - 0.7).abs(),
    "constrained": lambda kl: kl.sum() - 0.7,
    "free bits": lambda kl: sum(k if k > 0.3 else torch.tensor(0.3) for k in kl),
    "balanced": lambda kl: 0.5 * kl.sum(),
}


def likelihood_and_kl(pair, x, seed=0):
    """Σ log p(x|z) of a draw, and KL(q ‖ p) of each datum and dimension, of a Gaussian posterior."""
    q = pair.q_z_given_x(x).base_dist
    torch.manual_seed(seed)
    z = q.loc + q.scale * torch.empty_like(q.loc).normal_()
    kl = 0.5 * (q.loc.square() + q.scale.square() - 1) - q.scale.log()
    return pair.p_x_given_z(z).log_prob(x).sum(), kl


def evaluate(objective, pair, batch, seed=0):
    torch.manual_seed(seed)
    with local_params(pair):
        loss = objective.differentiable_loss(pair.model, pair.guide, *batch)
        return float(loss.detach()), gradients(loss, pair)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradient(name):
    pair, x = small_vae(), binary(9)
    log_likelihood, kl = likelihood_and_kl(pair, x)
    expected = -log_likelihood + 9 * PENALTIES[name](kl.mean(0))
    loss, gradient = evaluate(OBJECTIVES[name](), pair, (x,))
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    for parameter, value in gradients(expected, pair).items():
        torch.testing.assert_close(gradient[parameter], value, rtol=1e-4, atol=1e-4)


def test_the_free_bits_case_has_a_dimension_on_either_side():
    kl = likelihood_and_kl(small_vae(), binary(9))[1].detach().mean(0)
    assert float(kl.min()) < 0.3 < float(kl.max())


def test_particles_are_averaged_before_the_penalty():
    pair, x = small_vae(), binary(9)
    _, kl = likelihood_and_kl(pair, x)
    with torch.no_grad():
        q = pair.q_z_given_x(x).base_dist
        torch.manual_seed(0)
        parts = [pair.p_x_given_z(q.loc + q.scale * torch.empty_like(q.loc).normal_()).log_prob(x) for _ in range(3)]
        expected = -sum(part.sum() for part in parts) / 3 + 9 * kl.mean(0).clamp(min=0.3).sum()
    loss, _ = evaluate(FreeBitsELBO(0.3, num_particles=3), pair, (x,))
    assert loss == pytest.approx(float(expected), rel=1e-5)


def test_free_bits_of_a_latent_have_no_gradient():
    pair, x = small_vae(), binary(9)
    with torch.no_grad():
        pair.p_x_given_z.net[0].weight.zero_()  # nothing but the KL term moves the guide
    for free_bits in (0.3, {"z": 0.3}):
        _, gradient = evaluate(FreeBitsELBO(free_bits), pair, (x,))
        weight = gradient["q_z_given_x.net.2.weight"].reshape(2, 2, 8)  # (loc or scale, dimension of z, hidden)
        assert bool((weight[:, 0] != 0).any())
        assert bool((weight[:, 1] == 0).all())
    _, gradient = evaluate(FreeBitsELBO({}), pair, (x,))
    assert bool((gradient["q_z_given_x.net.2.weight"].reshape(2, 2, 8)[:, 1] != 0).any())


def test_nested_plates_and_masks():
    """Each time step counts as a dimension; the masked ones have no KL."""
    pair, (x, length) = series()
    torch.manual_seed(0)
    guide_trace = poutine.trace(pair.guide).get_trace(x, length)
    model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(x, length)
    kl = {
        z: torch.distributions.kl_divergence(guide_trace.nodes[z]["fn"], model_trace.nodes[z]["fn"]) for z in ("z", "w")
    }
    mask = torch.arange(4).unsqueeze(-1) < length
    kl["w"] = torch.where(mask, kl["w"], 0.0)
    log_p = model_trace.nodes["x"]["fn"].log_prob(model_trace.nodes["x"]["value"])
    floors = torch.maximum(kl["w"].mean(-1), torch.tensor(0.2)).sum() + torch.maximum(kl["z"].mean(), torch.tensor(0.2))
    expected = -torch.where(mask, log_p, 0.0).sum() + len(x) * floors
    loss, gradient = evaluate(FreeBitsELBO(0.2), pair, (x, length))
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    for parameter, value in gradients(expected, pair).items():
        torch.testing.assert_close(gradient[parameter], value, rtol=1e-4, atol=1e-4)


class Transformed(nn.Module):
    """ln z ~ N(0, 1), x ~ N(ln z, 1); the guide draws ln z and makes z of it, as Pyro's autoguides do."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.3))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z.log(), 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("z_unconstrained", dist.Normal(self.a * x, 0.3), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(u.exp(), log_density=-u))


@pytest.mark.parametrize(
    ("objective", "penalty"),
    [
        (BalancedELBO({"z": 0.5}), lambda kl: 0.5 * kl),
        (CapacityELBO(0.1, gamma=3.0), lambda kl: 3.0 * (kl - 0.1).abs()),
        (FreeBitsELBO({"z": 5.0}), lambda kl: 0.0 * kl + 5.0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_latent_that_is_made_of_another_draw(objective, penalty):
    pair, x = Transformed(), torch.linspace(-1, 1, 7)
    torch.manual_seed(0)
    u = pair.a * x + 0.3 * torch.empty(7).normal_()
    kl = dist.Normal(pair.a * x, 0.3).log_prob(u) - dist.Normal(0.0, 1.0).log_prob(u)
    expected = -dist.Normal(u, 1.0).log_prob(x).sum() + 7 * penalty(kl.mean())
    loss, gradient = evaluate(objective, pair, (x,))
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(gradient["a"], gradients(expected, pair)["a"], rtol=1e-4, atol=1e-4)


class Weighted(nn.Module):
    """The pair with a scale of each datum around everything."""

    def __init__(self, pair, weight):
        super().__init__()
        self.pair, self.weight = pair, weight

    def model(self, x):
        with poutine.scale(scale=self.weight):
            self.pair.model(x)

    def guide(self, x):
        with poutine.scale(scale=self.weight):
            self.pair.guide(x)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_scale_of_each_datum_weights_its_kl(name):
    pair, x, weight = small_vae(), binary(9), torch.linspace(0.1, 2.0, 9)
    _, kl = likelihood_and_kl(pair, x)
    torch.manual_seed(0)
    q = pair.q_z_given_x(x).base_dist
    log_likelihood = pair.p_x_given_z(q.loc + q.scale * torch.empty_like(q.loc).normal_()).log_prob(x)
    mean_kl = (weight[:, None] * kl).sum(0) / weight.sum()
    expected = -(weight * log_likelihood).sum() + weight.sum() * PENALTIES[name](mean_kl)
    loss, gradient = evaluate(OBJECTIVES[name](), Weighted(pair, weight), (x,))
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    for parameter, value in gradients(expected, pair).items():
        torch.testing.assert_close(gradient[f"pair.{parameter}"], value, rtol=1e-4, atol=1e-4)


def test_a_scale_within_a_datum_and_no_latents_are_named():
    class Steps(nn.Module):
        def model(self, x):
            with pyro.plate("data", len(x)), pyro.plate("time", 2, dim=-2):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

        def guide(self, x):
            with pyro.plate("data", len(x)), pyro.plate("time", 2, dim=-2):
                pyro.sample("z", dist.Normal(x.T, 1.0))

    pair = Weighted(Steps(), torch.tensor([[1.0], [2.0]]).expand(2, 7))
    with pytest.raises(ValueError, match=r"a scale of shape \(2, 7\) differs within a datum"):
        BalancedELBO({}).loss(pair.model, pair.guide, torch.randn(7, 2))
    with pytest.raises(ValueError, match="CapacityELBO is of the latents of a pair, and this one has none"):
        CapacityELBO(1.0).loss(lambda x: pyro.sample("x", dist.Normal(0.0, 1.0), obs=x), lambda x: None, torch.ones(()))


@pytest.mark.parametrize("name", ["hierarchy", "masked", "ppca", "published_style_vae", "gamma_poisson", "autoguide"])
def test_without_a_penalty_of_its_own_it_is_the_elbo(name):
    """Bottom-up guides included, where the closed form given the other draws would be wrong."""
    if name == "masked":
        pair, batch = series()
    else:
        reference = REFERENCES[name]()
        pair, batch = reference.pair, reference.data
    values = {}
    with local_params(pair), pyro.validation_enabled(False), torch.no_grad():
        for objective in (BalancedELBO({}), Trace_ELBO()):
            torch.manual_seed(0)
            losses = [objective.loss(pair.model, pair.guide, *batch) for _ in range(200)]
            values[type(objective)] = torch.tensor(losses, dtype=torch.float64)
    ours, theirs = values.values()
    error = (ours.var() / 200 + theirs.var() / 200).sqrt()
    assert abs(float(ours.mean() - theirs.mean())) < 4 * float(error)


def test_a_posterior_that_does_not_factorise_counts_as_one_dimension():
    class Correlated(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.tensor([0.5, 0.0]))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z[:, 0], 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.MultivariateNormal(self.loc, torch.tensor([[1.0, 0.5], [0.5, 1.0]])))

    pair, x = Correlated(), torch.randn(5)
    torch.manual_seed(0)
    trace = poutine.trace(pair.guide).get_trace(x)
    z = trace.nodes["z"]["value"]
    kl = trace.nodes["z"]["fn"].log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    expected = -dist.Normal(z[:, 0], 1.0).log_prob(x).sum() + 5 * torch.maximum(kl.mean(), torch.tensor(0.1))
    assert evaluate(FreeBitsELBO(0.1), pair, (x,))[0] == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_kl_weight_multiplies_the_penalty_and_a_subsampled_plate_everything(name):
    pair, x = small_vae(), binary(9)
    log_likelihood, kl = likelihood_and_kl(pair, x)
    with ppvae.KLWeight(torch.tensor(0.25)):
        loss, _ = evaluate(OBJECTIVES[name](), pair, (x,))
    expected = -log_likelihood + 0.25 * 9 * PENALTIES[name](kl.mean(0))
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    plain, y = ppvae.Pair(*_without_plate(Subsampled())), torch.randn(9)
    assert evaluate(OBJECTIVES[name](), Subsampled(), (y,))[0] == pytest.approx(
        100 / 9 * evaluate(OBJECTIVES[name](), plain, (y,))[0], rel=1e-4
    )


def _without_plate(pair):
    """The same story, its plate of the size of the minibatch."""
    return super(Subsampled, pair).model, super(Subsampled, pair).guide


def test_beta_from_norm():
    assert beta_from_norm(0.001, latent_dim=10, data_dim=4096) == pytest.approx(0.4096)
    for options in ({"latent_dim": 0, "data_dim": 3}, {"latent_dim": 3, "data_dim": 0}):
        with pytest.raises(ValueError, match="_dim must be a whole number >= 1, got 0"):
            beta_from_norm(0.1, **options)


# Errors.


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (partial(CapacityELBO, -1.0), ValueError, "capacity must be a finite number >= 0, got -1.0"),
        (partial(CapacityELBO, 1.0, gamma=math.inf), ValueError, "gamma must be a finite number >= 0, got inf"),
        (partial(CapacityELBO, "1"), TypeError, "capacity must be a number or a function of the epoch, got str"),
        (partial(ConstrainedELBO, None), TypeError, "max_kl must be a number .* got NoneType"),
        (partial(ConstrainedELBO, 1.0, rate=-1.0), ValueError, "rate must be a finite number >= 0"),
        (partial(FreeBitsELBO, {"z": -0.1}), ValueError, r"free_bits\['z'\] must be a finite number >= 0, got -0.1"),
        (partial(FreeBitsELBO, [0.1]), TypeError, "free_bits must be a number .* got list"),
        (partial(BalancedELBO, 0.5), TypeError, "weights must be a dict from the names of sites, got float"),
        (partial(FreeBitsELBO, 0.1, num_particles=0), ValueError, "num_particles must be a whole number >= 1, got 0"),
    ],
)
def test_options_are_checked(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_pairs_that_do_not_go_with_it_are_named(tmp_path):
    def fit(pair, batch, loss):
        ppvae.fit(pair, batch, loss=loss, epochs=1, progress=False, out=tmp_path / "run")

    for argument, loss in (("free_bits", FreeBitsELBO({"z1": 0.1, "y": 0.2})), ("weights", BalancedELBO({"y": 0.2}))):
        with pytest.raises(
            ValueError, match=rf"{argument} names \['y'\], which are no latents .* it has \['z1', 'z2'\]"
        ):
            fit(TwoLatents(), binary(9), loss)
    mixture = REFERENCES["mixture"]()
    with pytest.raises(
        ValueError, match=r"FreeBitsELBO does not go with this pair: .* site 'y' are not \(Categorical\)"
    ):
        fit(mixture.pair, mixture.data, FreeBitsELBO(0.1))
    assert not (tmp_path / "run").exists()


def test_values_of_sites_are_named_with_their_argument():
    with pytest.raises(TypeError, match=r"free_bits\['z'\] must be a number or a function of the epoch, got list"):
        FreeBitsELBO({"z": [0.1, 0.2]})
    with pytest.raises(ValueError, match=r"weights\['z'\] must be a finite number >= 0, got -1"):
        BalancedELBO({"z": -1.0})


def test_sites_in_no_plate_or_of_unequal_scales_are_named():
    class Unequal(Chain):
        def guide(self, x):
            with poutine.scale(scale=2.0):
                super().guide(x)

        def model(self, x):
            with pyro.plate("data", len(x)):
                z2 = pyro.sample("z2", dist.Normal(x.new_zeros(()), 1.0))
                with poutine.scale(scale=2.0):
                    z1 = pyro.sample("z1", dist.Normal(self.a * z2, 1.0))
                pyro.sample("x", dist.Normal(z1, 1.0), obs=x)

    pair = Unequal()
    with pytest.raises(ValueError, match=r"site 'z1' of the model has the scale 2 and site 'z2' of the model 1"):
        CapacityELBO(1.0).loss(pair.model, pair.guide, torch.randn(5))

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match="site 'z' lies in no data plate"):
        CapacityELBO(1.0).loss(model, lambda x: pyro.sample("z", dist.Normal(0.0, 1.0)), torch.randn(5))
