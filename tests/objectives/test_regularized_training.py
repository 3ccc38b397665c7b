"""Objectives that treat the KL term otherwise, in training: what it ends at, compiled, by Pyro's SVI, and resumed."""

from functools import partial

import pyro
import pytest
import torch

import ppvae
from ppvae.data import JointBatches, load
from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
from ppvae.infer import SVI
from ppvae.models import VAE
from ppvae.nn import MLP
from ppvae.objectives import BalancedELBO, CapacityELBO, ConstrainedELBO, JointELBO, Linear
from tests.compile.compiling import assert_same, compiled_graphs
from tests.infer.pairs import Published, binary, same, small_vae, state
from tests.infer.test_resume import Interrupted
from tests.objectives.test_importance_weighted_gradients import Chain
from tests.objectives.test_regularized import OBJECTIVES


def digits_vae():
    torch.manual_seed(0)
    return VAE(
        p_z=StandardNormal(8),
        p_x_given_z=ConditionalBernoulli(MLP(8, (64,), 64)),
        q_z_given_x=ConditionalNormal(MLP(64, (64,), (2, 8))),
    )


@pytest.mark.parametrize("capacity", [6.0, Linear(epochs=10, end=12.0)])
def test_the_kl_of_a_trained_digit_model_lands_on_the_capacity(capacity):
    x = (load("digits").train.x.flatten(1) > 0.5).float()
    options = {"epochs": 20, "lr": 3e-3, "progress": False, "compile": False}
    run = ppvae.fit(digits_vae(), x, loss=CapacityELBO(capacity, gamma=30.0), **options)
    target = capacity if isinstance(capacity, float) else 12.0
    assert run.history[-1]["kl_z"] == pytest.approx(target, rel=0.1)
    assert run.history[-1].keys() >= {"loss", "elbo", "reconstruction", "kl_z"}
    if callable(capacity):
        assert run.history[4]["kl_z"] == pytest.approx(capacity(4.5), rel=0.1)  # a mean over the fifth epoch


@pytest.mark.parametrize("max_kl", [1.5, 6.0])
def test_the_constraint_holds_and_binds(max_kl):
    """On either side of the KL that the ELBO, of multiplier 1, comes to here: 3.4 nats."""
    x = (load("digits").train.x.flatten(1) > 0.5).float()
    pair = digits_vae()
    run = ppvae.fit(pair, x, loss=ConstrainedELBO(max_kl), epochs=40, lr=3e-3, progress=False, compile=False)
    kl = sum(row["kl_z"] for row in run.history[-5:]) / 5
    assert 0.95 * max_kl < kl <= 1.03 * max_kl
    multiplier = float((10.0 * pair.pyro_params["kl_multiplier"].detach()).exp())
    assert (multiplier < 1.0) == (max_kl == 6.0)


@pytest.mark.usefixtures("with_and_without_inductor")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_compiled_equals_eager(name):
    make = OBJECTIVES[name] if name != "balanced" else partial(BalancedELBO, {"z1": 0.5})
    assert compiled_graphs(assert_same(Chain, make, [(torch.randn(6),)], steps=6)) == 1


@pytest.mark.usefixtures("with_and_without_inductor")
def test_a_schedule_moves_a_compiled_step_without_a_new_graph():
    results = []
    for compile in (False, True):
        pair, loss = Chain(), CapacityELBO(Linear(10, end=3.0), gamma=Linear(5, end=2.0))
        svi = SVI(pair.model, pair.guide, partial(torch.optim.Adam, lr=1e-2), loss, compile=compile)
        torch.manual_seed(1)
        x, losses = torch.randn(6), []
        for i in range(10):
            loss.set_time(float(i))
            losses.append(svi.step(x))
        results.append(losses)
    torch.testing.assert_close(torch.tensor(results[0]), torch.tensor(results[1]), rtol=1e-5, atol=1e-5)
    assert compiled_graphs(svi) == 1


@pytest.mark.parametrize("name", OBJECTIVES)
def test_pyros_svi_takes_the_same_steps(name):
    objective, results = OBJECTIVES[name], []
    if name == "balanced":
        objective = partial(BalancedELBO, {"latent": 0.5})
    for kind in (pyro.infer.SVI, SVI):
        with pyro.get_param_store().scope():
            pair = Published()
            svi = kind(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-2}), objective())
            torch.manual_seed(0)
            losses = [svi.step(binary(8)) for _ in range(5)]
            losses.append(svi.evaluate_loss(binary(8)))
            results.append((losses, state(pair)["encoder.0.weight"]))
    (theirs, a), (ours, b) = results
    assert ours == pytest.approx(theirs, rel=1e-5)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", [partial(ConstrainedELBO, 0.5), partial(CapacityELBO, Linear(3, end=2.0))])
def test_an_interrupted_run_continues_as_if_it_never_stopped(tmp_path, objective):
    def train(pair, out, **options):
        options = {"epochs": 4, "batch_size": 8, "lr": 0.02, "progress": False, **options}
        return ppvae.fit(pair, binary(28), loss=objective(), out=tmp_path / out, **options)

    whole = train(Interrupted(small_vae()), "whole")
    train(Interrupted(small_vae(), {6}), "parts")
    pair = Interrupted(small_vae(seed=9))
    resumed = train(pair, "parts", resume=True)
    assert resumed.history == whole.history
    assert same(state(pair), ppvae.infer.RunFolder(tmp_path / "whole").weights())
    if isinstance(objective(), ConstrainedELBO):
        assert float(pair.pyro_params["kl_multiplier"].detach()) != 0.0
        fresh = Interrupted(small_vae(seed=9))
        ppvae.load(fresh, tmp_path / "whole" / "model.safetensors")
        assert same(state(fresh), state(pair))


def test_the_data_sets_of_a_joint_objective_share_the_time():
    schedule = Linear(epochs=2, end=4.0)
    loss = CapacityELBO(schedule, gamma=3.0)
    joint, pair, x = JointELBO(loss, [2.0, 1.0]), small_vae(), binary(9)
    joint.set_time(1.0)
    torch.manual_seed(0)
    value = joint.loss(pair.model, pair.guide, (x[:4],), (x[4:],))
    torch.manual_seed(0)
    parts = [CapacityELBO(2.0, gamma=3.0).loss(pair.model, pair.guide, part) for part in (x[:4], x[4:])]
    assert value == pytest.approx(2 * parts[0] + parts[1], rel=1e-5)
    data = JointBatches(ppvae.data.Batches(x[:4], batch_size=2), ppvae.data.Batches(x[4:], batch_size=2))
    ppvae.fit(pair, data, loss=loss, epochs=2, progress=False)
    assert float(loss._values["capacity"]) == pytest.approx(schedule(1 + 2 / 3), rel=1e-5)  # at the last of three steps
