import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppvae.distributions import Codebook, CodePosterior
from ppvae.nn import MLP

K, P, DIM, N = 4, 3, 2, 40


def squares(z, codes):
    """All squared distances, from the differences."""
    return (z.unsqueeze(-2) - codes).square().sum(-1)


def test_distances_are_squares_but_for_that_of_the_point():
    codebook, z = Codebook(K, DIM), torch.randn(5, N, P, DIM)
    expected = squares(z, codebook.vectors)
    torch.testing.assert_close(codebook.distances(z) + z.square().sum(-1, keepdim=True), expected)
    assert torch.equal(codebook.nearest(z), expected.argmin(-1))
    assert torch.equal(codebook(codebook.nearest(z)), codebook.vectors[expected.argmin(-1)])


def test_the_angle_alone_counts_where_it_is_asked_for():
    codebook, z = Codebook(K, DIM, cosine=True), torch.randn(N, P, DIM)
    cosines = torch.cosine_similarity(z.unsqueeze(-2), codebook.vectors, dim=-1)
    assert torch.equal(codebook.nearest(z), cosines.argmax(-1))
    assert torch.equal(codebook.nearest(z), codebook.nearest(7 * z))
    torch.testing.assert_close(codebook(torch.arange(K)).norm(dim=-1), torch.ones(K))


@pytest.mark.parametrize("cosine", [False, True])
def test_moving_averages_are_those_of_the_paper(cosine):
    """N ← γN + (1−γ)n, m ← γm + (1−γ)Σz, e = m / N, with both sums kept here."""
    codebook = Codebook(K, DIM, decay=0.9, restart=0.0, cosine=cosine)
    counts, sums, codes = torch.zeros(K), torch.zeros(K, DIM), codebook.vectors.clone()
    for _ in range(4):
        z = torch.randn(N, P, DIM)
        k = codebook.nearest(z)
        codebook.update(z, k)
        points = (z / z.norm(dim=-1, keepdim=True) if cosine else z).reshape(-1, DIM)
        one_hot = torch.eye(K)[k.flatten()]
        counts = 0.9 * counts + 0.1 * one_hot.sum(0)
        sums = 0.9 * sums + 0.1 * one_hot.T @ points
        codes = torch.where((counts > 0).unsqueeze(-1), sums / counts.unsqueeze(-1), codes)
        torch.testing.assert_close(codebook.counts, counts)
        torch.testing.assert_close(codebook.vectors, codes, rtol=1e-4, atol=1e-5)


def test_a_code_that_nothing_is_near_to_moves_to_a_point():
    codebook = Codebook(K, DIM, decay=0.5, restart=0.1)
    codebook.vectors.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0], [50.0, 0.0], [60.0, 0.0]]))
    codebook.counts.fill_(N * P / K)
    z = 0.1 * torch.randn(N, P, DIM)
    for _ in range(3):  # a share of 1/8 of the mean use is left
        codebook.update(z, codebook.nearest(z))
        assert torch.equal(codebook.vectors[2:], torch.tensor([[50.0, 0.0], [60.0, 0.0]]))
    codebook.update(z, codebook.nearest(z))
    assert all((z.reshape(-1, DIM) == code).all(-1).any() for code in codebook.vectors[2:])
    assert not torch.equal(codebook.vectors[2], codebook.vectors[3])
    assert (codebook.counts[2:] == N * P / K).all()
    before = codebook.vectors[2:].clone()
    codebook.update(z, codebook.nearest(z))
    assert (codebook.vectors[2:] - before).norm() < 1  # it has time to be used


def test_without_restarts_a_code_that_is_not_used_stays_where_it_is():
    codebook = Codebook(2, DIM, decay=0.0, restart=0.0)
    codebook.vectors.copy_(torch.tensor([[0.0, 0.0], [50.0, 0.0]]))
    for _ in range(200):
        codebook.update(torch.randn(N, DIM), torch.zeros(N, dtype=torch.long))
    assert torch.equal(codebook.vectors[1], torch.tensor([50.0, 0.0]))
    assert codebook.vectors.isfinite().all()


def test_the_first_points_place_codes_that_start_elsewhere():
    """Whatever the scale of the encoder: most codes are far from all of its points at first."""
    codebook, z = Codebook(K, DIM), 1000 + torch.randn(N, P, DIM)
    codebook.update(z, codebook.nearest(z))
    assert (codebook.vectors - 1000).abs().max() < 5


def test_several_samples_of_a_datum_count_each():
    one, many = Codebook(K, DIM, restart=0.0), Codebook(K, DIM, restart=0.0)
    many.load_state_dict(one.state_dict())
    z, k = torch.randn(N, P, DIM), torch.randint(K, (5, N, P))
    one.update(z.expand(5, N, P, DIM).reshape(-1, DIM), k.reshape(-1))
    many.update(z, k)
    assert torch.equal(one.vectors, many.vectors)


@pytest.mark.parametrize("learned", ["gradient", "fixed"])
def test_only_moving_averages_are_updated(learned):
    codebook, z = Codebook(K, DIM, learned=learned), torch.randn(N, DIM)
    before = codebook.vectors.detach().clone()
    codebook.update(z, codebook.nearest(z))
    assert torch.equal(codebook.vectors, before)
    assert len(list(codebook.parameters())) == (learned == "gradient")
    assert set(codebook.state_dict()) == {"vectors"}


def test_perplexity_is_of_all_indices_together():
    codebook = Codebook(K, DIM)
    assert float(codebook.perplexity(torch.zeros(N, P, dtype=torch.long))) == 1
    assert float(codebook.perplexity(torch.arange(K).repeat(5))) == pytest.approx(K)
    k = torch.randint(K, (1000,))
    shares = torch.bincount(k).double() / 1000
    assert float(codebook.perplexity(k)) == pytest.approx(math.exp(-float((shares * shares.log()).sum())))
    minibatches = torch.stack([codebook.perplexity(part) for part in k.split(10)])
    assert float(minibatches.mean()) < float(codebook.perplexity(k)) - 0.3  # why it is not of a minibatch
    with pytest.raises(ValueError, match="k must hold class indices from 0 to 3, got values from 4 to 4"):
        codebook.perplexity(torch.tensor([4]))


def posterior(**options):
    return CodePosterior(MLP(6, (8,), (P, DIM)), Codebook(K, DIM, **options)).eval()


def test_the_posterior_is_the_nearest_code_at_first_and_in_training_mode():
    q_k_given_x, x = posterior(), torch.randn(5, N, 6)
    expected = squares(q_k_given_x.net(x), q_k_given_x.codebook.vectors).argmin(-1)
    for q in (q_k_given_x(x), q_k_given_x.train()(x)):
        assert isinstance(q, dist.Delta)
        assert (q.batch_shape, q.event_shape) == ((5, N), (P,))
        assert torch.equal(q.sample(), expected)
        assert torch.equal(q.log_prob(expected), torch.zeros(5, N))
        assert torch.equal(q.log_prob(expected.roll(1, 1)) == 0, (expected.roll(1, 1) == expected).all(-1))
        q_k_given_x.temperature.fill_(1.0)


@pytest.mark.parametrize("cosine", [False, True])
def test_at_a_temperature_it_is_a_softmax_of_the_distances(cosine):
    q_k_given_x, x = posterior(cosine=cosine), torch.randn(N, 6)
    q_k_given_x.temperature.fill_(0.7)
    distances = squares(q_k_given_x.points(x), q_k_given_x.codebook(torch.arange(K)))
    q = q_k_given_x(x)
    torch.testing.assert_close(q.base_dist.probs, (-distances / 0.7).softmax(-1))
    words = torch.cartesian_prod(*[torch.arange(K)] * P)
    torch.testing.assert_close(q.log_prob(words.unsqueeze(1)).exp().sum(0), torch.ones(N))
    q_k_given_x.temperature.fill_(1e-6)
    assert torch.equal(q_k_given_x(x).sample(), distances.argmin(-1))


def test_distances_and_averages_are_in_full_precision_under_autocast():
    q_k_given_x, x = posterior(), torch.randn(N, 6)
    h = q_k_given_x.net(x).bfloat16()
    q_k_given_x.net = nn.Identity()
    q_k_given_x.temperature.fill_(0.5)
    twin = Codebook(K, DIM)
    twin.load_state_dict(q_k_given_x.codebook.state_dict())
    logits, codebook = q_k_given_x(h.float()).base_dist.logits, q_k_given_x.codebook
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(q_k_given_x(h).base_dist.logits, logits)
        pyro.set_rng_seed(0)
        codebook.update(h, codebook.nearest(h))
    pyro.set_rng_seed(0)
    twin.update(h.float(), twin.nearest(h.float()))
    assert torch.equal(codebook.vectors, twin.vectors)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Codebook(0, 2), "num_codes must be a whole number >= 1, got 0"),
        (lambda: Codebook(4, 2.5), r"code_dim must be a whole number >= 1, got 2\.5"),
        (lambda: Codebook(4, 2, learned="ema"), "learned must be 'average', 'gradient' or 'fixed', got 'ema'"),
        (lambda: Codebook(4, 2, decay=1.0), "decay must be a finite number >= 0 and < 1"),
        (lambda: Codebook(4, 2, restart=-1), "restart must be a finite number >= 0 and < 1"),
        (
            lambda: CodePosterior(MLP(6, (), (P, 3)), Codebook(K, 2)),
            r"net must declare an out_shape \(positions, 2\), got \(3, 3\)",
        ),
        (lambda: CodePosterior(MLP(6, (), 2), Codebook(K, 2)), r"net must declare .*, got \(2,\)"),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_kinds_are_named():
    with pytest.raises(TypeError, match=r"codebook must be a ppvae.distributions.Codebook, got Embedding"):
        CodePosterior(MLP(6, (), (P, DIM)), nn.Embedding(K, DIM))
    with pytest.raises(TypeError, match=r"net must be a torch.nn.Module, got function"):
        CodePosterior(lambda x: x, Codebook(K, DIM))
    with pytest.raises(TypeError, match="cosine must be True or False, got 'no'"):
        Codebook(K, DIM, cosine="no")
