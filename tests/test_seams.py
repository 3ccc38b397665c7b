"""The places where something of one's own is put, each used from outside and through public names alone."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.func import functional_call

import ppvae
from ppvae.data import Batches, JointBatches
from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
from ppvae.models import VAE
from ppvae.nn import MLP
from ppvae.objectives import Linear, Objective
from ppvae.storage import load_state
from ppvae.traces import sites

D, K = 6, 2


def make_vae():
    torch.manual_seed(0)
    return VAE(
        p_z=StandardNormal(K),
        p_x_given_z=ConditionalBernoulli(MLP(K, (8,), D)),
        q_z_given_x=ConditionalNormal(MLP(D, (8,), (2, K))),
    )


def data(n=40):
    return torch.bernoulli(torch.full((n, D), 0.4), generator=torch.Generator().manual_seed(1))


class CriticELBO(Objective):
    """Log-density ratio of the codes by a critic: its own loss does not reach the encoder, nor the encoder's it."""

    def __init__(self, weight=1.0, *, seed=0, norm=None):
        super().__init__()
        torch.manual_seed(seed)
        self.critic = MLP(K, (8,), 1, norm=norm)
        self.weight = weight

    def differentiable_loss(self, model, guide, *args, **kwargs):
        ((model_trace, guide_trace),) = self.traces(model, guide, args, kwargs)
        z = sites(guide_trace)["z"].value
        prior = torch.randn_like(z)
        frozen = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
        ratio = functional_call(self.critic, frozen, (z,)).sum()
        of_codes, of_prior = self.critic(z.detach()), self.critic(prior)
        critic_loss = nn.functional.softplus(-of_codes).sum() + nn.functional.softplus(of_prior).sum()
        self.record("critic", critic_loss)
        likelihood = sites(model_trace)["x"].log_prob_sum
        return self.weight * ratio - likelihood + critic_loss


def fit(loss, pair=None, *, epochs=3, **options):
    pair = make_vae() if pair is None else pair
    run = ppvae.fit(pair, data(), loss=loss, epochs=epochs, batch_size=20, seed=3, progress=False, **options)
    return run, pair


def test_an_objective_trains_its_networks_and_shows_its_terms():
    loss = CriticELBO()
    before = [p.detach().clone() for p in loss.critic.parameters()]
    run, _ = fit(loss)
    assert all(not torch.equal(a, b) for a, b in zip(before, loss.critic.parameters(), strict=True))
    assert [row["critic"] > 0 for row in run.history] == [True] * 3
    assert run.history[0]["elbo"] == pytest.approx(run.history[0]["reconstruction"] - run.history[0]["kl_z"])


def test_gradients_of_critic_and_encoder_are_those_taken_apart():
    pair, loss, x = make_vae(), CriticELBO(), data()
    torch.manual_seed(5)
    loss.differentiable_loss(pair.model, pair.guide, x).backward()
    together = {name: p.grad.clone() for name, p in (*pair.named_parameters(), *loss.critic.named_parameters())}
    for part in (pair, loss.critic):
        part.zero_grad()
    torch.manual_seed(5)
    z = pair.q_z_given_x(x).rsample()
    prior = torch.randn_like(z)
    of_pair = loss.critic(z).sum() - pair.p_x_given_z(z).log_prob(x).sum()
    gradients = torch.autograd.grad(of_pair, list(pair.parameters()), allow_unused=True)
    for (name, _), gradient in zip(pair.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(together[name], gradient, msg=name)
    of_critic = (
        nn.functional.softplus(-loss.critic(z.detach())).sum() + nn.functional.softplus(loss.critic(prior)).sum()
    )
    gradients = torch.autograd.grad(of_critic, list(loss.critic.parameters()))
    for (name, _), gradient in zip(loss.critic.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(together[name], gradient, msg=name)


@pytest.mark.usefixtures("with_and_without_inductor")
def test_pair_and_networks_train_compiled_as_they_do_eagerly():
    results = []
    for compile in (False, True):
        loss = CriticELBO()
        run, pair = fit(loss, compile=compile)
        results.append((run.history, [*pair.parameters(), *loss.critic.parameters()]))
    (eager, of_eager), (compiled, of_compiled) = results
    for a, b in zip(eager, compiled, strict=True):
        assert b == pytest.approx(a, rel=1e-5)
    for a, b in zip(of_eager, of_compiled, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


def test_networks_are_kept_in_checkpoints_and_resumed_bit_for_bit(tmp_path):
    loss = CriticELBO(norm="batch")
    whole, _ = fit(loss, epochs=4)
    fit(CriticELBO(norm="batch"), epochs=2, out=tmp_path)
    other = CriticELBO(norm="batch", seed=9)  # its weights are those of the file
    parts, _ = fit(other, epochs=4, out=tmp_path, resume=True)
    assert parts.history == whole.history
    for (name, a), b in zip(loss.critic.state_dict().items(), other.critic.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_networks_have_options_of_their_own():
    loss = CriticELBO()
    before = [p.detach().clone() for p in loss.critic.parameters()]
    fit(loss, param_groups={"objective.critic.*": {"lr": 0.0}})
    assert all(torch.equal(a, b) for a, b in zip(before, loss.critic.parameters(), strict=True))


class Annealed(Objective):
    """A weight that a schedule moves, in place."""

    def __init__(self):
        super().__init__()
        self.value = torch.zeros(())

    def set_time(self, epoch, device=None):
        self.value.fill_(1.0 + epoch)

    def differentiable_loss(self, model, guide, *args, **kwargs):
        ((model_trace, guide_trace),) = self.traces(model, guide, args, kwargs)
        self.record("weight", self.value * len(args[0]))
        return guide_trace.log_prob_sum() - model_trace.log_prob_sum()


def test_a_schedule_of_an_objective_moves_in_a_compiled_step():
    run, _ = fit(Annealed(), compile=True)
    assert [row["weight"] for row in run.history] == pytest.approx([1.25, 2.25, 3.25])


def test_options_of_the_optimizer_go_by_names():
    pair = make_vae()
    frozen = pair.q_z_given_x.net
    before = {name: p.detach().clone() for name, p in pair.named_parameters()}
    groups = {"q_z_given_x.*": {"lr": 1e-5}, "*.bias": {"weight_decay": 0.0}}
    optim = partial(torch.optim.AdamW, weight_decay=0.1)
    svi = ppvae.SVI(pair.model, pair.guide, partial(optim, lr=1e-2), pyro.infer.Trace_ELBO(), param_groups=groups)
    svi.step(data())
    options = {
        id(p): (group["lr"], group["weight_decay"]) for group in svi.optimizer.param_groups for p in group["params"]
    }
    for name, p in pair.named_parameters():
        lr = 1e-5 if name.startswith("q_z_given_x") else 1e-2
        assert options[id(p)] == (lr, 0.0 if name.endswith("bias") else 0.1), name
    moved = {name: float((p.detach() - before[name]).abs().max()) for name, p in pair.named_parameters()}
    assert max(moved[f"q_z_given_x.net.{name}"] for name, _ in frozen.named_parameters()) < 2e-5
    assert min(value for name, value in moved.items() if name.startswith("p_x")) > 5e-3


def test_learning_rates_of_groups_have_schedules_of_their_own():
    still, moving = Linear(1, start=0.0, end=0.0), Linear(3, start=3e-3, end=0.0)
    run, pair = fit(None, lr=moving, param_groups={"p_x_given_z.*": {"lr": still}})
    for (name, before), after in zip(make_vae().named_parameters(), pair.parameters(), strict=True):
        assert torch.equal(before, after) == name.startswith("p_x_given_z"), name
    assert [row["lr"] for row in run.history] == pytest.approx(
        [2.5e-3, 1.5e-3, 5e-4]
    )  # of all others, at the last step


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"param_groups\['encoder.\*'\] matches none of the parameters \['p_x_given_z"):
        fit(None, param_groups={"encoder.*": {"lr": 1e-4}})


def test_groups_go_by_the_names_of_pyro_param():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.1)) * x, 0.7))

    pair = ppvae.Pair(model, guide)
    x = torch.randn(30) + 1
    ppvae.fit(pair, x, epochs=2, batch_size=10, lr=0.1, param_groups={"loc": {"lr": 0.0}}, progress=False)
    assert float(pair.pyro_params["loc"].detach()) == 0.0
    assert float(pair.pyro_params["slope"].detach()) != pytest.approx(0.1)


@pytest.mark.parametrize("compile", [False, True])
def test_what_stands_between_gradient_and_optimizer_sees_every_step(compile):
    """Two processes that share gradients, in one: each adds the other's, as an all-reduce would."""
    x, seen = data(), []

    def reduce(parameters):
        seen.append([None if p.grad is None else p.grad.clone() for p in parameters])
        for p in parameters:
            p.grad.mul_(2.0)

    states = []
    for hook, factor in ((None, 2.0), (reduce, 1.0)):
        pair = make_vae()

        def loss(model, guide, *args, factor=factor):
            return factor * pyro.infer.Trace_ELBO().differentiable_loss(model, guide, *args)

        sgd = partial(torch.optim.SGD, lr=1e-3)
        svi = ppvae.SVI(pair.model, pair.guide, sgd, loss, compile=compile, clip_norm=5.0, on_gradients=hook)
        torch.manual_seed(2)
        for _ in range(3):
            svi.step(x)
        states.append([p.detach().clone() for p in pair.parameters()])
    assert len(seen) == 3
    for a, b in zip(*states, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_several_data_sets_train_with_options_by_name():
    """A name may be one that only the second set's minibatches meet."""

    class Labelled(nn.Module):
        def model(self, x, y=None):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                if y is not None:
                    pyro.sample("y", dist.Normal(pyro.param("slope", torch.tensor(0.3)) * z, 1.0), obs=y)
                pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.2)) + z, 1.0), obs=x)

        def guide(self, x, y=None):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(pyro.param("weight", torch.tensor(0.1)) * x, 0.7))

    pair, x = Labelled(), torch.randn(30)
    both = JointBatches(Batches(x[:20], batch_size=10), Batches(x[20:], x[20:], batch_size=5))
    groups = {"slope": {"lr": 0.0}, "loc": {"lr": Linear(2, start=0.0, end=0.1)}}
    run = ppvae.fit(pair, both, epochs=2, lr=Linear(2), param_groups=groups, progress=False)
    values = {name: float(pair.pyro_params[name].detach()) for name in ("slope", "loc", "weight")}
    assert values["slope"] == pytest.approx(0.3)
    assert values["loc"] != pytest.approx(0.2)
    assert values["weight"] != pytest.approx(0.1)
    assert run.history[-1]["lr"] == pytest.approx(0.75)


def test_networks_train_in_pyros_own_svi():
    pair, loss, x = make_vae(), CriticELBO(), data()
    before = [p.detach().clone() for p in loss.critic.parameters()]

    def model(x):
        pyro.module("pair", pair)
        pair.model(x)

    svi = pyro.infer.SVI(model, pair.guide, pyro.optim.SGD({"lr": 1e-2}), loss)
    svi.step(x)
    assert all(not torch.equal(a, b) for a, b in zip(before, loss.critic.parameters(), strict=True))
    assert all(p.grad is None or not p.grad.any() for p in loss.critic.parameters())
    assert not [name for name in pyro.get_param_store() if "critic" in name]  # a second objective has its own


class PlainELBO(Objective):
    """What `Trace_ELBO` computes; a test adds to it."""

    def differentiable_loss(self, model, guide, *args, **kwargs):
        ((model_trace, guide_trace),) = self.traces(model, guide, args, kwargs)
        return guide_trace.log_prob_sum() - model_trace.log_prob_sum()


@pytest.mark.parametrize("compile", [False, True])
def test_what_an_objective_knows_of_the_pair_stays_the_pairs(tmp_path, compile):
    """It may hold the pair, or a part of it: these are trained once, under the pair's names, and saved once."""
    groups = {"q_z_given_x.*": {"lr": 1e-4}}
    plain, pair = fit(PlainELBO(), param_groups=groups, compile=compile)
    loss, other = PlainELBO(), make_vae()
    loss.pair, loss.encoder = other, other.q_z_given_x.net
    run, other = fit(loss, other, param_groups=groups, compile=compile, out=tmp_path)
    assert run.history == plain.history
    assert all(torch.equal(a, b) for a, b in zip(pair.parameters(), other.parameters(), strict=True))
    assert "objective" not in load_state(tmp_path / "checkpoints" / "last.safetensors")


class Recording(PlainELBO):
    def __init__(self, name, value):
        super().__init__()
        self.name, self.value = name, value

    def differentiable_loss(self, *args, **kwargs):
        self.record(self.name, self.value)
        return super().differentiable_loss(*args, **kwargs)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("loss", torch.ones(()), ValueError, "called 'loss', which is a column of the history already"),
        ("kl_z", torch.ones(()), ValueError, "called 'kl_z', which is a column of the history already"),
        ("size", torch.ones(()), ValueError, "'size' is recorded by the objective, and is a loss_term of the pair"),
        ("other", torch.ones(3), TypeError, r"record\('other', ...\) .* 0-d tensor, .* got a tensor of shape \(3,\)"),
        ("other", 1.0, TypeError, r"record\('other', ...\) .* 0-d tensor, .* got float"),
    ],
)
def test_a_column_that_cannot_be_is_refused_before_any_training(name, value, error, message):
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.vae = make_vae()

        def model(self, x):
            self.vae.model(x)
            ppvae.loss_term("size", torch.zeros(()))

        def guide(self, x):
            self.vae.guide(x)

    pair = Sized()
    before = {name: p.detach().clone() for name, p in pair.named_parameters()}
    with pytest.raises(error, match=message):
        fit(Recording(name, value), pair)
    assert all(torch.equal(p, before[name]) for name, p in pair.named_parameters())


class Late(PlainELBO):
    """A value that the first `set_time` makes, on the device that it is told."""

    def __init__(self):
        super().__init__()
        self.value = None

    def set_time(self, epoch, device=None):
        self.value = torch.zeros((), device=device) if self.value is None else self.value
        self.value.fill_(1.0 + epoch)

    def differentiable_loss(self, *args, **kwargs):
        self.record("value", torch.zeros(()) if self.value is None else self.value.clone())
        return super().differentiable_loss(*args, **kwargs)


@pytest.mark.parametrize("compile", [False, True])
def test_a_schedule_reaches_every_data_set(compile):
    both = JointBatches(Batches(data()[:20], batch_size=10), Batches(data()[20:], batch_size=10))
    run = ppvae.fit(make_vae(), both, loss=Late(), epochs=2, compile=compile, progress=False)
    assert [40 * row["value"] for row in run.history] == pytest.approx([2 * 2 * 1.25, 2 * 2 * 2.25])


def test_a_run_is_resumed_with_the_object_that_it_had(tmp_path):
    """What its schedules have written into it is no setting."""
    whole, _ = fit(Annealed(), epochs=4)
    loss = Annealed()
    fit(loss, epochs=2, out=tmp_path)
    parts, _ = fit(loss, epochs=4, out=tmp_path, resume=True)
    assert parts.history == whole.history
