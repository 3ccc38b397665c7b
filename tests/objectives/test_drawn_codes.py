"""Objectives on the codes themselves: their values by hand, whose parameters each part reaches, and how they train."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.nn.functional import softplus

import ppvae
from ppvae.data import Batches, JointBatches
from ppvae.distributions import ConditionalBernoulli, ConditionalDelta, StandardNormal
from ppvae.infer import SVI
from ppvae.models import VAE
from ppvae.nn import MLP
from ppvae.objectives import AAE, AE, MMD, RAE, WAE, Critic, FactorVAE, InfoVAE, Linear
from ppvae.objectives.drawn_codes import prior_draws
from tests.compile.compiling import compiled_graphs
from tests.infer.pairs import D, K, Store, TwoLatents, binary, same, small_vae, state
from tests.reference import REFERENCES


def net(k=K, seed=3, norm=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MLP(k, (4,), 1, norm=norm)


def autoencoder(seed=0, *, norm=None):
    """The same decoder with a deterministic encoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = ConditionalBernoulli(MLP(K, (8,), D, norm=norm))
        return VAE(StandardNormal(K), decoder, ConditionalDelta(MLP(D, (8,), K)))


OBJECTIVES = {
    "ae": AE,
    "rae": partial(RAE, 0.3),
    "aae": lambda: AAE(net(), weight=2.0),
    "aae by the ratio": lambda: AAE(net(), weight=2.0, encoder_loss="ratio"),
    "wae": lambda: WAE(MMD("rbf"), weight=3.0),
    "wae-gan": lambda: WAE(Critic(net(), "non-saturating"), weight=2.0),
    "infovae": partial(InfoVAE, alpha=0.25, lam=3.0),
    "factorvae": lambda: FactorVAE(net(), gamma=2.0),
}


def by_hand(name, pair, x, critic, seed=0):
    """The loss, and what of it is the critic's own, in the order in which they draw."""
    q, n = pair.q_z_given_x(x), len(x)
    torch.manual_seed(seed)
    z = q.rsample()
    kl = torch.distributions.kl_divergence(q.base_dist, dist.Normal(0.0, 1.0)).sum()
    minus_log_likelihood = -pair.p_x_given_z(z).log_prob(x).sum()
    if name == "ae":
        return minus_log_likelihood, None
    if name == "rae":
        return minus_log_likelihood + 0.15 * z.square().sum(), None
    others = z.detach().gather(0, torch.rand_like(z).argsort(0)) if name == "factorvae" else torch.randn(n, K)
    if name in ("wae", "infovae"):
        mmd = (MMD("rbf") if name == "wae" else MMD())(z, others)
        return minus_log_likelihood + (3 * n * mmd if name == "wae" else 0.75 * kl + 2.25 * n * mmd), None
    own = softplus(-critic(z.detach())).sum() + softplus(critic(others)).sum()
    logit = critic(z).sum() if name in ("aae by the ratio", "factorvae") else softplus(critic(z)).sum()
    return minus_log_likelihood + 2 * logit + (kl if name == "factorvae" else 0.0), own


@pytest.mark.parametrize("name", OBJECTIVES)
def test_value_and_gradients_are_those_taken_apart(name):
    """The pair's are of everything but the critic's loss, the critic's of that alone."""
    pair, x, objective = small_vae(), binary(9), OBJECTIVES[name]()
    critic = objective.networks.get("critic")
    own_parameters = [] if critic is None else list(critic.parameters())
    torch.manual_seed(0)
    loss = objective.differentiable_loss(pair.model, pair.guide, x)
    found = torch.autograd.grad(loss, [*pair.parameters(), *own_parameters], allow_unused=True)
    of_pair, own = by_hand(name, pair, x, critic)
    torch.testing.assert_close(loss, of_pair + (0.0 if own is None else own), rtol=1e-5, atol=1e-5)
    expected = torch.autograd.grad(of_pair, list(pair.parameters()), allow_unused=True)
    expected += () if own is None else torch.autograd.grad(own, own_parameters)
    for value, gradient in zip(found, expected, strict=True):
        torch.testing.assert_close(value, gradient, rtol=1e-4, atol=1e-5)


def test_particles_are_averaged():
    pair, x = small_vae(), binary(9)
    torch.manual_seed(0)
    parts = [RAE(0.3).loss(pair.model, pair.guide, x) for _ in range(3)]
    torch.manual_seed(0)
    assert RAE(0.3, num_particles=3).loss(pair.model, pair.guide, x) == pytest.approx(sum(parts) / 3, rel=1e-5)


def test_a_kl_weight_multiplies_the_penalty_and_not_the_critic():
    pair, x = small_vae(), binary(9)
    for make in (OBJECTIVES["aae"], OBJECTIVES["infovae"]):
        values = []
        for weight in (0.0, 0.5, 1.0):
            torch.manual_seed(0)
            with ppvae.KLWeight(weight):
                values.append(make().loss(pair.model, pair.guide, x))
        assert values[1] == pytest.approx((values[0] + values[2]) / 2, rel=1e-5)
        assert values[2] > values[0] + 1


@pytest.mark.parametrize("name", OBJECTIVES)
def test_several_latents_are_one_code(name):
    """Of a hierarchy with a mask on the data, which is no mask on the codes."""
    pair, x = TwoLatents(), binary(9)
    objective = OBJECTIVES[name]()
    if "critic" in objective.networks:  # of codes of 1 + K dimensions
        make = {"factorvae": FactorVAE, "wae-gan": lambda critic: WAE(Critic(critic))}.get(name, AAE)
        objective = make(net(K + 1))
    run = ppvae.fit(pair, x, loss=objective, epochs=1, batch_size=5, progress=False)
    assert run.history[0]["elbo"] == pytest.approx(
        run.history[0]["reconstruction"] - run.history[0]["kl_z1"] - run.history[0]["kl_z2"]
    )


def test_draws_of_the_prior_are_those_of_the_model_and_run_no_decoder():
    class Counted(TwoLatents):
        calls = 0

        def model(self, x):
            super().model(x)
            self.calls += 1

    pair, x = Counted(), binary(2000)
    z = prior_draws(pair.model, ["z1", "z2"], (x,), {})
    assert pair.calls == 0
    assert z.shape == (2000, K + 1)
    with torch.no_grad():
        weight, bias = pair.down2.weight[:, 0], pair.down2.bias
        covariance = torch.eye(K + 1)
        covariance[:K, :K] += torch.outer(weight, weight)
        covariance[:K, K] = covariance[K, :K] = weight
        expected = torch.cat([bias, torch.zeros(1)])
    torch.testing.assert_close(z.mean(0), expected, atol=0.15, rtol=0)
    torch.testing.assert_close(torch.cov(z.T), covariance, atol=0.3, rtol=0.1)


def test_batch_norm_of_the_decoder_sees_no_draws_of_the_prior():
    pair, x = autoencoder(norm="batch"), binary(20)
    objective = WAE()
    pair.p_x_given_z(pair.q_z_given_x(x).mean)
    before = state(pair.p_x_given_z)
    pair.p_x_given_z.load_state_dict(state(autoencoder(norm="batch").p_x_given_z))
    objective.loss(pair.model, pair.guide, x)
    assert same(state(pair.p_x_given_z), before)


def test_codes_in_inner_plates_and_scalar_ones():
    class Series(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(0.5))

        def model(self, x):
            with pyro.plate("data", len(x)):
                w = pyro.sample("w", dist.Normal(0.0, 1.0))
                with pyro.plate("time", 3, dim=-2):
                    z = pyro.sample("z", dist.Normal(w, 1.0))
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("w", dist.Delta(self.slope * x.mean(-1)))
                with pyro.plate("time", 3, dim=-2):
                    pyro.sample("z", dist.Delta(self.slope * x.T))

    pair, x = Series(), torch.randn(6, 3)
    codes = torch.cat([0.5 * x.mean(-1, keepdim=True), 0.5 * x], -1)
    loss = RAE(2.0).loss(pair.model, pair.guide, x)
    expected = codes.square().sum() - dist.Normal(0.5 * x, 1.0).log_prob(x).sum()
    assert loss == pytest.approx(float(expected), rel=1e-5)
    assert prior_draws(pair.model, ["w", "z"], (x,), {}).shape == (6, 4)


# Training.


def fit(objective, pair, x=None, **options):
    options = {"epochs": 2, "batch_size": 8, "lr": 0.02, "progress": False, **options}
    return ppvae.fit(pair, binary(24) if x is None else x, loss=objective, **options)


@pytest.mark.usefixtures("with_and_without_inductor")
@pytest.mark.parametrize(
    "make",
    [OBJECTIVES["wae"], OBJECTIVES["aae"], OBJECTIVES["infovae"], lambda: FactorVAE(net(), critic_steps=3)],
    ids=["wae", "aae", "infovae", "factorvae, three steps of the critic"],
)
def test_compiled_equals_eager(make):
    results = []
    for compile in (False, True):
        pair, objective = small_vae(), make()
        optim = partial(torch.optim.Adam, lr=1e-2, fused=True)
        svi = SVI(pair.model, pair.guide, optim, objective, compile=compile)
        torch.manual_seed(1)
        losses = torch.tensor([svi.step(binary(8)) for _ in range(4)])
        trained = [*pair.parameters(), *(p for network in objective.networks.values() for p in network.parameters())]
        results.append((losses, trained))
    (losses, eager), (of_compiled, compiled) = results
    assert compiled_graphs(svi) == 1 + len(set(objective.before))
    torch.testing.assert_close(of_compiled, losses, rtol=1e-5, atol=1e-5)
    for a, b in zip(eager, compiled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_further_steps_of_the_critic_move_nothing_but_the_critic():
    """One step of each, with all learning rates zero but the critic's, against three critic's losses by hand."""
    pair, x, objective = small_vae(), binary(8), AAE(net(), critic_steps=3)
    before, critic = state(pair), net()
    options = {"objective.critic.*": {"lr": 0.1}}
    sgd = partial(torch.optim.SGD, lr=0.0)
    svi = SVI(pair.model, pair.guide, sgd, objective, param_groups=options, compile=False)
    torch.manual_seed(0)
    svi.step(x)
    torch.manual_seed(0)
    for _ in range(3):
        z = pair.q_z_given_x(x).sample()
        loss = softplus(-critic(z)).sum() + softplus(critic(torch.randn(8, K))).sum()
        with torch.no_grad():
            for parameter, gradient in zip(
                critic.parameters(), torch.autograd.grad(loss, list(critic.parameters())), strict=True
            ):
                parameter -= 0.1 * gradient
    assert same(state(pair), before)
    for a, b in zip(objective.divergence.net.parameters(), critic.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "make",
    [
        lambda: AAE(net(norm="batch"), critic_steps=2),
        lambda: FactorVAE(net(), gamma=Linear(3, end=2.0)),
        partial(RAE, 0.1),
    ],
    ids=["aae", "factorvae", "rae"],
)
def test_a_resumed_run_is_the_one_that_never_stopped(make, tmp_path):
    encode = autoencoder if make().kl_weight == 0 else small_vae
    pairs = [encode(), encode(), encode(seed=9)]
    options = {"valid": binary(10, seed=5)}
    whole = fit(make(), pairs[0], epochs=4, **options)
    fit(make(), pairs[1], out=tmp_path, **options)
    resumed = fit(make(), pairs[2], epochs=4, out=tmp_path, resume=True, **options)
    assert resumed.history == whole.history
    assert same(state(pairs[2]), state(pairs[0]))


def test_several_data_sets_share_a_critic_and_its_further_steps():
    objective, pair = AAE(net(), critic_steps=2), small_vae()
    both = JointBatches(Batches(binary(16), batch_size=8), Batches(binary(12, seed=4), batch_size=6))
    seen = []
    run = fit(objective, pair, both, param_groups={"objective.critic.*": {"lr": 1e-3}})
    seen += [row["aggregated_kl"] for row in run.history]
    assert len(seen) == 2
    svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=0.0), objective)
    svi.step(binary(8))
    assert len(objective.before) == 1


def test_a_weight_may_be_a_schedule():
    pair, x, objective = small_vae(), binary(8), WAE(weight=Linear(2, end=4.0))
    values = []
    for epoch in (0.0, 1.0, 2.0):
        objective.set_time(epoch)
        torch.manual_seed(0)
        values.append(objective.loss(pair.model, pair.guide, x))
    assert values[1] == pytest.approx((values[0] + values[2]) / 2, rel=1e-5)
    assert values[0] != values[2]


@pytest.mark.parametrize("make", [OBJECTIVES["wae"], OBJECTIVES["aae"]], ids=["wae", "aae"])
def test_the_penalty_brings_codes_to_the_prior(make):
    """From codes far from it, with nothing to reconstruct."""

    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc, self.scale = nn.Parameter(torch.tensor([2.0, -1.0])), nn.Parameter(torch.tensor([0.3, 2.0]))

        def model(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(0.0, 1.0).expand([D]).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Delta(self.loc + self.scale * x[:, :K], event_dim=1))

        @torch.no_grad()
        def kl(self):
            """Of the normal that the codes of normal data are drawn from."""
            return float(0.5 * (self.loc.square() + self.scale.square() - 1 - self.scale.square().log()).sum())

    pair = Constant()
    before, critic = pair.kl(), {"param_groups": {"objective.critic.*": {"lr": 0.02}}} if make().networks else {}
    fit(make(), pair, torch.randn(512, D), epochs=50, batch_size=128, lr=0.02, **critic)
    assert pair.kl() < 0.2 * before


# Errors.


@pytest.mark.parametrize(
    ("make", "pair", "message"),
    [
        (AE, "mixture", r"AE needs reparameterized draws, and those of site 'y' are not"),
        (
            InfoVAE,
            "autoencoder",
            r"InfoVAE has a KL term, and the guide gives the latents \['z'\] one value \(a Delta\)",
        ),
        (lambda: FactorVAE(net()), "autoencoder", r"FactorVAE has a KL term"),
        (lambda: AAE(net(5)), "vae", "loss AAE fails on a minibatch of train"),
    ],
)
def test_pairs_that_do_not_go_with_it_are_named(make, pair, message):
    mixture = REFERENCES["mixture"]()
    pairs = {
        "mixture": (mixture.pair, mixture.data),
        "autoencoder": (autoencoder(), binary(9)),
        "vae": (small_vae(), binary(9)),
    }
    pair, data = pairs[pair]
    with pytest.raises(ValueError, match=message):
        ppvae.fit(pair, data, loss=make(), epochs=1, progress=False)


@pytest.mark.parametrize("make", [WAE, lambda: FactorVAE(net())], ids=["wae", "factorvae"])
@pytest.mark.parametrize("short", ["train", "valid"])
def test_a_last_minibatch_of_one_datum_is_refused_before_any_training(make, short, tmp_path):
    pair = small_vae() if make().kl_weight else autoencoder()
    train, valid = (binary(9), binary(8)) if short == "train" else (binary(8), binary(1))
    if short == "valid" and make().kl_weight:
        fit(make(), pair, train, valid=valid)  # an ELBO, of each datum
        return
    with pytest.raises(ValueError, match=f"fails on a minibatch of {short}: .*a minibatch of one datum has"):
        fit(make(), pair, train, valid=valid, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_masked_codes_and_scales_of_each_datum_are_named():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.vae = small_vae()

        def model(self, x):
            with poutine.mask(mask=x[:, 0] > 0):
                self.vae.model(x)

        def guide(self, x):
            with poutine.mask(mask=x[:, 0] > 0):
                self.vae.guide(x)

    pair = Masked()
    with pytest.raises(
        NotImplementedError, match=r"WAE compares whole codes, and a mask leaves elements of \['z'\] out"
    ):
        WAE().loss(pair.model, pair.guide, binary(9))
    vae, weight = small_vae(), torch.linspace(0.5, 1.5, 9)
    with (
        poutine.scale(scale=weight),
        pytest.raises(NotImplementedError, match="these data have scales of their own"),
    ):
        WAE().loss(vae.model, vae.guide, binary(9))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: WAE(3), TypeError, r"divergence must be MMD\(\), Critic\(net\) or a function of two tensors .* got 3"),
        (lambda: WAE(weight=-1.0), ValueError, "weight must be a finite number >= 0, got -1.0"),
        (lambda: AAE(None), TypeError, "critic must be a torch.nn.Module, got NoneType"),
        (lambda: FactorVAE(net(), gamma="1"), TypeError, "gamma must be a number or a function of the epoch, got str"),
        (lambda: InfoVAE(alpha=1.5), ValueError, "alpha must be a finite number <= 1, got 1.5"),
        (lambda: InfoVAE(alpha=0.5, lam=0.1), ValueError, "lam must be a finite number >= 0.5, got 0.1"),
        (lambda: RAE(-0.1), ValueError, "code_weight must be a finite number >= 0, got -0.1"),
        (lambda: AE(num_particles=0), ValueError, "num_particles must be a whole number >= 1, got 0"),
    ],
)
def test_options_are_checked(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_pyros_svi_trains_with_it():
    with pyro.get_param_store().scope():
        pair, objective = small_vae(), AAE(net())
        before = state(objective.divergence.net)

        def model(x):
            pyro.module("pair", pair)
            pair.model(x)

        pyro.infer.SVI(model, pair.guide, pyro.optim.SGD({"lr": 1e-2}), objective).step(binary(8))
        assert not same(state(objective.divergence.net), before)


def test_a_pair_of_pyro_params_and_a_scalar_latent():
    run = fit(WAE(), Store(), torch.randn(20) + 1, epochs=1)
    assert "mmd" in run.history[0]
