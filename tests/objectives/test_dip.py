"""DIP-VAE I and II against the sample covariance, with numbers and gradients by hand."""

import math
from functools import partial

import pytest
import torch

import ppvae
from ppvae.objectives import DIPELBO, Linear
from tests.compile.test_compiled import assert_same, compiled_graphs
from tests.infer.pairs import TwoLatents, binary, small_vae
from tests.objectives.test_importance_weighted import gradients
from tests.objectives.test_regularized import Weighted, evaluate, likelihood_and_kl
from tests.objectives.test_total_correlation import Code, Flow, Masked


def covariance(pair, x, kind):
    q = pair.q_z_given_x(x)
    c = torch.cov(q.mean.T)
    return c if kind == "I" else c + torch.diag(q.variance.mean(0))


@pytest.mark.parametrize("kind", ["I", "II"])
def test_loss_and_gradient(kind):
    pair, x = small_vae(), binary(9)
    log_likelihood, kl = likelihood_and_kl(pair, x)
    c = covariance(pair, x, kind)
    penalty = 3.0 * 2 * c[0, 1] ** 2 + 5.0 * ((c[0, 0] - 1) ** 2 + (c[1, 1] - 1) ** 2)
    expected = -log_likelihood + kl.sum() + 9 * penalty
    objective = DIPELBO(3.0, 5.0, kind=kind)
    loss, gradient = evaluate(objective, pair, (x,))
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    for parameter, value in gradients(expected, pair).items():
        torch.testing.assert_close(gradient[parameter], value, rtol=1e-4, atol=1e-4)
    column = objective.evaluate(pair.model, pair.guide, (x,), {}).terms().columns["covariance_penalty"]
    assert float(column) == pytest.approx(9 * float(penalty.detach()), rel=1e-5)


def test_the_covariance_of_the_second_kind_is_that_of_the_draws():
    pair, x = small_vae(), binary(500)
    with torch.no_grad():
        pair.q_z_given_x.net[2].weight.mul_(3.0)
        draws = pair.q_z_given_x(x).sample((200,)).flatten(0, 1)
        objective = DIPELBO(1.0, 1.0)
        q = pair.q_z_given_x(x)
        torch.testing.assert_close(objective._covariance(q.mean, q.variance), torch.cov(draws.T), rtol=0.03, atol=0.01)


def test_training_draws_the_covariance_to_the_identity():
    x = binary(200)
    pair = small_vae()
    ppvae.fit(pair, x, loss=DIPELBO(50.0, 50.0), epochs=40, batch_size=50, lr=0.03, progress=False, compile=False)
    c = covariance(pair, x, "II").detach()
    torch.testing.assert_close(c, torch.eye(2), atol=0.15, rtol=0.0)


def test_a_schedule_and_a_kl_weight():
    pair, x = small_vae(), binary(9)
    log_likelihood, kl = likelihood_and_kl(pair, x)
    objective = DIPELBO(Linear(2, end=4.0), 0.0, kind="I")
    objective.set_time(1.0)
    c = covariance(pair, x, "I")
    with ppvae.KLWeight(torch.tensor(0.25)):
        loss, _ = evaluate(objective, pair, (x,))
    expected = -log_likelihood + 0.25 * (kl.sum() + 9 * 2.0 * 2 * c[0, 1] ** 2)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.usefixtures("with_and_without_inductor")
def test_compiled_equals_eager():
    assert compiled_graphs(assert_same(small_vae, partial(DIPELBO, 2.0, 20.0, kind="I"), [(binary(8),)], steps=3)) == 1


@pytest.mark.parametrize(
    ("pair", "batch", "message"),
    [
        (TwoLatents(), (binary(9),), r"DIPELBO .* draws \['z1', 'z2'\]"),
        (Flow(), (torch.randn(9, 2),), "DIPELBO .* 'z' is a MultivariateNormal"),
        (Code(), (torch.randn(9),), "DIPELBO .*'z' is a Delta"),
        (Masked(), (torch.randn(9),), "DIPELBO needs the latent 'z' of every datum"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_pairs_that_do_not_go_with_it_are_named(pair, batch, message):
    with pytest.raises(NotImplementedError, match=message):
        DIPELBO(1.0, 1.0).loss(pair.model, pair.guide, *batch)


def test_data_that_do_not_go_with_it_are_named():
    with pytest.raises(ValueError, match=r"DIPELBO fails on a minibatch of train: .* single datum"):
        ppvae.fit(small_vae(), binary(9), loss=DIPELBO(1.0, 1.0), batch_size=4, epochs=1, progress=False)
    with pytest.raises(ValueError, match="DIPELBO is of data that count alike"):
        evaluate(DIPELBO(1.0, 1.0), Weighted(small_vae(), torch.linspace(0.1, 2.0, 9)), (binary(9),))


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (partial(DIPELBO, -1.0, 1.0), ValueError, "off_diagonal must be a finite number >= 0, got -1.0"),
        (partial(DIPELBO, 1.0, math.inf), ValueError, "diagonal must be a finite number >= 0, got inf"),
        (partial(DIPELBO, 1.0, None), TypeError, "diagonal must be a number or a function of the epoch, got NoneType"),
        (partial(DIPELBO, 1.0, 1.0, kind="i"), ValueError, "kind must be one of I, II, got 'i'"),
    ],
)
def test_options_are_checked(make, kind, message):
    with pytest.raises(kind, match=message):
        make()
