"""PCA, as the limit of PPCA without noise, and as what a linear autoencoder finds."""

import math

import pytest
import torch
from sklearn.decomposition import PCA

import ppvae
from ppvae.distributions import ConditionalDelta, ConditionalNormal, StandardNormal
from ppvae.models import PPCA, VAE
from ppvae.nn import MLP
from ppvae.objectives import AE

N, D, K = 400, 6, 2


def data():
    scale = torch.tensor([3.0, 2.0, 0.5, 0.4, 0.3, 0.2])
    rotation, _ = torch.linalg.qr(torch.randn(D, D))
    return scale * torch.randn(N, D) @ rotation + torch.randn(D)


def angle(a, b):
    """The largest principal angle between the spans of the columns, in radians."""
    bases = [torch.linalg.qr(of.double()).Q for of in (a, b)]
    sines = torch.linalg.matrix_norm(bases[0] - bases[1] @ (bases[1].T @ bases[0]), 2)
    return math.asin(min(1.0, float(sines)))


def weight(pair):
    return pair.p_x_given_z.net[0].weight.detach()


def test_a_linear_autoencoder_spans_the_subspace_of_pca():
    x = data().double()
    known = PCA(K).fit(x.numpy())
    pair = VAE(StandardNormal(K), ConditionalNormal(MLP(K, (), D), scale=0.5), ConditionalDelta(MLP(D, (), K))).double()
    optimizer = torch.optim.LBFGS(pair.parameters(), max_iter=200, line_search_fn="strong_wolfe", tolerance_change=0.0)

    def closure():
        optimizer.zero_grad()
        loss = AE().differentiable_loss(pair.model, pair.guide, x)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert angle(weight(pair), torch.tensor(known.components_).T) < 1e-4
    expected = torch.tensor(known.inverse_transform(known.transform(x.numpy())))
    torch.testing.assert_close(pair.reconstruct(x), expected, rtol=0, atol=1e-3)


def test_ppca_of_data_is_the_maximum_of_the_likelihood():
    x = data()
    pair = PPCA.of_data(x, K)
    loss = -pair.log_prob(x).mean()
    assert all(float(g.abs().max()) < 1e-4 for g in torch.autograd.grad(loss, list(pair.parameters())))
    known = PCA(K).fit(x.double().numpy())  # whose covariance divides by n − 1
    assert -float(loss.detach()) == pytest.approx(known.score(x.double().numpy()), abs=1e-2)
    assert angle(weight(pair), torch.tensor(known.components_).T) < 1e-5
    assert float(ppvae.elbo(pair, x).mean()) == pytest.approx(-float(loss.detach()), abs=1e-4)


def test_without_noise_ppca_reconstructs_as_pca_does():
    x = data()
    pair, known = PPCA.of_data(x, K), PCA(K).fit(x.double().numpy())
    expected = torch.tensor(known.inverse_transform(known.transform(x.double().numpy())))
    errors = []
    for noise in (0.1, 0.01, 0.001):
        with torch.no_grad():
            pair.p_x_given_z.raw_scale.fill_(math.log(math.expm1(noise - pair.p_x_given_z.min_scale)))
        errors.append(float((pair.reconstruct(x).double() - expected).abs().max()))
    assert errors[0] > 10 * errors[1]
    assert errors[2] < 1e-4


def test_data_that_k_directions_hold_have_the_least_noise():
    x = torch.randn(50, 2) @ torch.randn(2, D)
    pair = PPCA.of_data(x, 2)
    assert bool(pair.log_prob(x).isfinite().all())
    torch.testing.assert_close(pair.reconstruct(x), x, rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("x", "k", "error", "message"),
    [
        ([1.0], 1, TypeError, "x must be a torch.Tensor"),
        (torch.zeros(5, 2), 2, ValueError, r"d more than latent_dim, 2, got \(5, 2\)"),
        (torch.zeros(1, 4), 2, ValueError, r"n at least 2 .* got \(1, 4\)"),
        (torch.full((5, 4), torch.nan), 2, ValueError, "x must be finite, got NaN"),
        (torch.zeros(5, 4), 0, ValueError, "latent_dim must be a whole number >= 1, got 0"),
    ],
)
def test_wrong_data_are_named(x, k, error, message):
    with pytest.raises(error, match=message):
        PPCA.of_data(x, k)
