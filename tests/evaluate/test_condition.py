"""Of a linear model the rest of a datum given a part of it is normal, and so is the posterior of its latents."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppvae
from ppvae.data import Batches, RandomPart
from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
from ppvae.evaluate import Annealed, PartOf, condition, impute
from ppvae.models import CVAE, PPCA, VAE
from ppvae.nn import MLP, ConcatInputs
from ppvae.objectives import Cosine

D, K, N = 5, 2, 6


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(3)
    pair = PPCA(D, K).requires_grad_(False)
    for value in pair.parameters():
        value.copy_(0.8 * torch.randn(value.shape) - 0.3)
    return pair.eval()


class Exact(nn.Module):
    """p(z | x seen) of a linear model, wider or narrower."""

    def __init__(self, pair, spread=1.0):
        super().__init__()
        self.pair, self.spread = [pair], spread

    def forward(self, x, seen):
        mean, weight, variance = moments(self.pair[0])
        seen = seen.to(x.dtype) / variance
        precision = torch.eye(K) + torch.einsum("dk,...d,dl->...kl", weight, seen, weight)
        covariance = torch.linalg.inv(precision)
        loc = torch.einsum("...kl,dl,...d->...k", covariance, weight, seen * (x - mean))
        return dist.MultivariateNormal(loc, self.spread**2 * covariance)


def moments(pair):
    """The mean of x, the loadings (d, k) and the variance of the noise, by the pair's own decoder."""
    origin = pair.p_x_given_z(torch.zeros(K))
    weight = torch.stack([pair.p_x_given_z(e).mean - origin.mean for e in torch.eye(K)], -1)
    return origin.mean, weight, origin.variance


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, D, generator=generator)
    seen = torch.arange(D).expand(N, D) < torch.tensor([[2], [3], [4], [2], [3], [1]])
    return x, seen


def exact(pair, x, seen):
    """Mean and covariance of the rest, and log p of the part, of one datum."""
    mean, weight, variance = moments(pair)
    covariance = weight @ weight.T + torch.diag(variance)
    part = covariance[seen][:, seen]
    gain = covariance[~seen][:, seen] @ torch.linalg.inv(part)
    rest = mean[~seen] + gain @ (x - mean)[seen], covariance[~seen][:, ~seen] - gain @ covariance[seen][:, ~seen]
    return *rest, torch.distributions.MultivariateNormal(mean[seen], part).log_prob(x[seen])


@pytest.mark.parametrize("encoder", ["exact", "wide"])
def test_draws_and_log_prob_are_those_of_the_conditional(pair, encoder):
    x, seen = data()
    part = PartOf(pair, Exact(pair, 1.0 if encoder == "exact" else 1.3))
    found = condition(part, x, seen, num_samples=4000, num_particles=4000)
    for i in range(N):
        mean, covariance, log_seen = exact(pair, x[i], seen[i])
        rest = torch.distributions.MultivariateNormal(mean, covariance)
        drawn = found.completed.draws[:, i, ~seen[i]]
        assert ((drawn.mean(0) - mean).abs() < 6 * covariance.diagonal().sqrt() / math.sqrt(2000)).all()
        assert (
            (torch.cov(drawn.T).reshape(covariance.shape) - covariance).abs() < 0.15 * covariance.diagonal().max()
        ).all()
        assert abs(float(found.of_seen.values[i] - log_seen)) < 5 * float(found.of_seen.std_error[i]) + 1e-4
        error = float(found.log_prob[i] - rest.log_prob(x[i, ~seen[i]]))
        assert abs(error) < 5 * float(found.std_error[i]) + 2e-4
    assert torch.equal(found.completed.draws[:, seen], x[seen].expand(4000, -1))
    assert (found.completed.pareto_k < 0.7).all()


def test_latents_are_draws_of_their_posterior_given_the_part(pair):
    x, seen = data()
    found = impute(PartOf(pair, Exact(pair, 1.3)), x, seen, num_samples=4000, num_particles=4000)
    posterior = Exact(pair)(torch.where(seen, x, 0), seen)
    assert found.latents["z"].shape == (4000, N, K)
    deviation = posterior.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt()
    assert ((found.latents["z"].mean(0) - posterior.mean).abs() < 6 * deviation / math.sqrt(1500)).all()


def test_by_annealing_no_encoder_is_needed(pair):
    x, seen = data()
    method = Annealed(8, 60, start="prior")
    found = condition(pair, x, seen, num_samples=2000, num_particles=4000, method=method)
    assert (found.completed.pareto_k < 0.7).all()
    for i in range(N):
        mean, covariance, _ = exact(pair, x[i], seen[i])
        error = found.completed.draws[:, i, ~seen[i]].mean(0) - mean
        assert (error.abs() < 6 * covariance.diagonal().sqrt() / math.sqrt(500)).all()
        expected = torch.distributions.MultivariateNormal(mean, covariance).log_prob(x[i, ~seen[i]])
        assert abs(float(found.log_prob[i] - expected)) < 5 * float(found.std_error[i]) + 0.05
    assert "log p(rest | part) = " in found.summary()


def test_what_was_not_seen_changes_no_draw(pair):
    x, seen = data()
    other = torch.where(seen, x, 100 * torch.randn_like(x))
    one, two = (impute(PartOf(pair), of, seen, num_samples=5, num_particles=100).draws for of in (x, other))
    assert torch.equal(one, two)


class Linear(nn.Module):
    """c(z | x seen) with a net for each of the three parts that are trained on, so that it can be exact."""

    def __init__(self):
        super().__init__()
        self.loc = nn.ModuleList([nn.Linear(D, K) for _ in range(3)])
        self.tril = nn.Parameter(torch.eye(K).repeat(3, 1, 1))

    def forward(self, x, seen):
        which = seen.sum(-1) - 2
        loc = torch.stack([net(x) for net in self.loc], -2)
        index = which[..., None, None].expand(*which.shape, 1, K)
        return dist.MultivariateNormal(loc.gather(-2, index).squeeze(-2), scale_tril=self.tril.tril()[which])


def some_part(generator, x):
    num = torch.randint(2, 5, (len(x), 1), generator=generator)
    return x, (torch.arange(D) < num).expand(x.shape)


@pytest.mark.parametrize("way", ["elbo", "matching"])
def test_either_training_finds_the_posterior_of_the_part_with_the_decoder_as_it_was(pair, way):
    torch.manual_seed(0)
    x = pair.sample(2000)
    part = PartOf(pair, Linear())
    before = [value.clone() for value in pair.parameters()]
    trained = part if way == "elbo" else part.matching()
    batches = Batches(x, batch_size=200, transform=some_part)
    ppvae.fit(trained, batches, epochs=30, lr=Cosine(30, 3e-2, 3e-4), progress=False, compile=False)
    assert all(torch.equal(a, b) for a, b in zip(before, pair.parameters(), strict=True))
    x, seen = some_part(torch.Generator().manual_seed(5), pair.sample(200))
    found, expected = (encoder(torch.where(seen, x, 0), seen) for encoder in (part.encoder, Exact(pair)))
    assert float(torch.distributions.kl_divergence(expected, found).detach().mean()) < 0.05


def test_conditions_of_a_pair_pass_through():
    torch.manual_seed(0)
    likelihood = ConditionalBernoulli(ConcatInputs((K, ()), MLP(K + 1, (8,), 4)))
    cvae = CVAE(StandardNormal(K), likelihood, ConditionalNormal(ConcatInputs((4, ()), MLP(5, (8,), (2, K)))))
    x, y, seen = torch.ones(N, 4), torch.rand(N), torch.arange(4).expand(N, 4) < 2
    assert condition(cvae, x, y, seen, num_samples=3, num_particles=100).completed.draws.shape == (3, N, 4)


class Codes(nn.Module):
    """Two kinds of words of three letters, and a guide that looks the letters up: whole numbers all the way."""

    def __init__(self):
        super().__init__()
        self.table = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
        self.lookup = nn.Embedding(3, 2)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])), infer={"enumerate": "parallel"})
            letters = dist.Categorical(self.table[z].unsqueeze(-2).expand(*z.shape, x.shape[-1], 3))
            pyro.sample("x", letters.to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            logits = self.lookup(x).mean(-2)
            pyro.sample("z", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})


def test_data_of_whole_numbers_stay_whole_numbers():
    torch.manual_seed(0)
    pair = Codes()
    x = torch.randint(0, 3, (N, 4))
    seen = torch.arange(4).expand(N, 4) < torch.tensor([[2], [3], [4], [2], [3], [1]])
    found = condition(pair, x, seen, num_samples=7, num_particles=200)
    prior = torch.tensor([0.4, 0.6]).log()
    log_p = pair.table.log()[:, x]  # (2, n, 4)
    whole, part = ((prior[:, None] + (log_p * of).sum(-1)).logsumexp(0) for of in (torch.ones_like(seen), seen))
    assert torch.allclose(found.log_prob, (whole - part).double(), atol=1e-5)
    assert found.completed.draws.dtype == x.dtype
    assert found.completed.mean().shape == x.shape
    assert 0 <= found.completed.coverage(x) <= 1


def test_bad_input_is_named(pair):
    x, seen = data()
    with pytest.raises(ValueError, match="the last argument must say which elements of the first are seen, boolean"):
        condition(pair, x, seen.float())
    with pytest.raises(ValueError, match=r"are seen, boolean, got nothing"):
        condition(pair, x)
    with pytest.raises(TypeError, match=r"encoder must be a module \(x, seen\) -> distribution, got function"):
        PartOf(pair, lambda x, seen: x)
    with pytest.raises(ValueError, match="encoder must be given"):
        PartOf(pair).matching()
    full = VAE(StandardNormal(1), Joint(), ConditionalNormal(MLP(D, (), (2, 1))))
    with pytest.raises(TypeError, match="the likelihood must be of independent elements"):
        condition(full, x, seen, num_particles=100)


class Joint(nn.Module):
    def forward(self, z):
        return dist.MultivariateNormal(z.expand(*z.shape[:-1], D), torch.eye(D))


def test_random_parts_are_rectangles_of_every_size():
    x = torch.zeros(500, 1, 7, 9)
    _, seen = RandomPart()(torch.Generator().manual_seed(0), x)
    rows, columns = seen.any(-1, keepdim=True), seen.any(-2, keepdim=True)
    assert torch.equal(seen, rows & columns)
    for of in (rows.flatten(1), columns.flatten(1)):
        assert ((of.int().diff().abs().sum(-1)) <= 2).all()  # without a hole
    share = seen.double().flatten(1).mean(-1)
    assert float(share.mean()) == pytest.approx(0.25, abs=0.03)
    with pytest.raises(ValueError, match=r"tensors must be images \(n, channels, h, w\) alone"):
        Batches(torch.zeros(3, 4), batch_size=2, transform=RandomPart())
