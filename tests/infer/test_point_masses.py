"""Guides that give a continuous latent one value: no ELBO in the history, and validation by the loss itself."""

import csv
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import nn

import ppvae
from ppvae.data import Batches, JointBatches
from ppvae.distributions import ConditionalBernoulli, ConditionalDelta, StandardNormal
from ppvae.models import VAE
from ppvae.nn import MLP
from ppvae.objectives import AE, RAE, Objective
from tests.infer.pairs import D, K, Scalar, binary, same, small_vae, state


def autoencoder(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VAE(StandardNormal(K), ConditionalBernoulli(MLP(K, (8,), D)), ConditionalDelta(MLP(D, (8,), K)))


def fit(pair, *data, **options):
    return ppvae.fit(pair, *data, **{"epochs": 3, "batch_size": 10, "lr": 0.05, "progress": False, **options})


@torch.no_grad()
def mean_loss(pair, x, weight=0.0):
    z = pair.q_z_given_x(x).mean
    return float((0.5 * weight * z.square().sum(-1) - pair.p_x_given_z(z).log_prob(x)).mean())


def test_the_best_epoch_is_that_of_the_least_loss_on_the_validation_data(tmp_path):
    pair, valid, weights = autoencoder(), binary(25, seed=8), []
    run = fit(
        pair,
        binary(40),
        valid,
        loss=RAE(0.5),
        epochs=6,
        out=tmp_path,
        callbacks=[lambda *seen: weights.append(state(pair))],
    )
    losses = [row["valid_loss"] for row in run.history]
    for loss, weight in zip(losses, weights, strict=True):
        other = autoencoder()
        other.load_state_dict(weight)
        assert loss == pytest.approx(mean_loss(other, valid, 0.5), rel=1e-5)
    best = min(range(6), key=losses.__getitem__)
    assert run.best_epoch == best + 1
    assert same(state(pair), weights[best])
    with (tmp_path / "history.csv").open() as file:
        assert "valid_loss" in next(csv.reader(file))


def test_there_is_no_elbo_and_no_kl_in_the_history():
    for loss in (AE(), Trace_ELBO()):  # the latter is minus log p(x, z), of MAP training
        (row,) = fit(autoencoder(), binary(40), loss=loss, epochs=1).history
        assert not row.keys() & {"elbo", "kl_z", "valid_elbo", "valid_loss"}
        assert math.isfinite(row["reconstruction"])


def test_patience_counts_epochs_without_a_smaller_loss():
    run = fit(autoencoder(), binary(40), binary(20, seed=8), loss=AE(), epochs=50, patience=2, lr=1.0)
    assert run.stopped == "early"
    losses = [row["valid_loss"] for row in run.history]
    assert min(losses) == losses[-3]


def test_a_guide_with_a_density_has_its_elbo_beside():
    (row,) = fit(small_vae(), binary(40), binary(20, seed=8), loss=AE(), epochs=1).history
    assert row["elbo"] == pytest.approx(row["reconstruction"] - row["kl_z"])
    assert "valid_elbo" in row
    assert "valid_loss" not in row


def test_a_delta_that_is_made_of_a_draw_has_a_density():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.randn(10)
    for guide, has_elbo in ((AutoNormal(model), True), (AutoDelta(model), False)):
        (row,) = fit(ppvae.Pair(model, guide), x, epochs=1).history
        assert ("elbo" in row) == has_elbo


def test_one_point_among_several_latents_is_enough():
    class Mixed(Scalar):
        def model(self, x):
            with pyro.plate("data", len(x)):
                w = pyro.sample("w", dist.Normal(0.0, 1.0))
                z = pyro.sample("z", dist.Normal(w, 1.0))
                pyro.sample("x", dist.Normal(self.c * z + self.d, self.scale), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("w", dist.Delta(self.a * x))
                pyro.sample("z", dist.Normal(self.b + x, 1.0))

    (row,) = fit(Mixed(), torch.randn(20), epochs=1).history
    assert "kl_z" in row
    assert not row.keys() & {"elbo", "kl_w"}


def test_several_data_sets_are_validated_on_one():
    both = JointBatches(Batches(binary(20), batch_size=10), Batches(binary(12, seed=4), batch_size=6))
    pair, valid = autoencoder(), binary(20, seed=8)
    run = fit(pair, both, valid, loss=AE(), epochs=1)
    assert run.history[0]["valid_loss"] == pytest.approx(mean_loss(pair, valid), rel=1e-5)


def test_validation_draws_the_same_every_epoch_and_changes_no_number_of_the_training():
    class Noisy(Objective):
        def differentiable_loss(self, model, guide, *args, **kwargs):
            self.traces(model, guide, args, kwargs)
            return torch.randn(()) + 0.0 * pair.p_x_given_z.net[0].weight.sum()

    pair = autoencoder()
    run = fit(pair, binary(40), binary(20, seed=8), loss=Noisy(), lr=0.0)
    assert len({row["valid_loss"] for row in run.history}) == 1
    alone, beside = autoencoder(), autoencoder()
    fit(alone, binary(40), loss=AE())
    fit(beside, binary(40), binary(20, seed=8), loss=AE(), epochs=2)
    fit(again := autoencoder(), binary(40), loss=AE(), epochs=2)
    assert not same(state(alone), state(again))
    assert same(state(beside), state(again))


def test_a_loss_that_is_not_finite_on_the_validation_data_is_named():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.vae = autoencoder()
            self.epochs = 0

        def model(self, x):
            self.vae.model(x)
            if not self.training and self.epochs:
                ppvae.loss_term("broken", torch.tensor(math.nan))

        def guide(self, x):
            self.vae.guide(x)

        def train(self, mode=True):
            self.epochs += mode
            return super().train(mode)

    with pytest.raises(ppvae.infer.NonFiniteError, match="the loss on the validation data is nan after epoch 1"):
        fit(Broken(), binary(20), binary(10), loss=Trace_ELBO(), epochs=1)
