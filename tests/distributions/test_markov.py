"""Chains against the joint distribution that they factorise: a normal of all steps, and a table of all words."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppvae.distributions import ConditionalNormal, FlowPosterior, MarkovChain, MarkovPosterior, StandardNormal, of_steps
from ppvae.nn import MLP, Combiner, GatedTransition

T, K = 4, 2


def linear(num_steps=T, **options):
    """A chain of normal distributions, z_1 ~ N(0, I), z_t ~ N(A z_{t-1}, 0.25 I), and its joint covariance."""
    torch.manual_seed(0)
    net = nn.Linear(K, K, bias=False).double()
    chain = MarkovChain(
        dist.Normal(torch.zeros(K).double(), 1.0).to_event(1),
        ConditionalNormal(net, scale=0.5),
        num_steps,
        **options,
    )
    difference = torch.eye(num_steps * K).double()
    for t in range(1, num_steps):
        difference[K * t : K * (t + 1), K * (t - 1) : K * t] = -net.weight.detach()
    noise = torch.cat([torch.ones(K), torch.full(((num_steps - 1) * K,), 0.25)]).double().diag()
    inverse = torch.linalg.inv(difference)
    return chain, inverse @ noise @ inverse.T


def test_log_prob_is_that_of_the_joint_normal():
    chain, covariance = linear()
    z = torch.randn(5, 3, T, K).double()
    joint = dist.MultivariateNormal(torch.zeros(T * K).double(), covariance)
    torch.testing.assert_close(chain.log_prob(z), joint.log_prob(z.flatten(-2)))


def test_draws_have_the_moments_of_the_joint_normal():
    chain, covariance = linear()
    draws, n = chain.sample((20_000,)).flatten(-2), 20_000
    bound = 4.5 * ((covariance.diag().outer(covariance.diag()) + covariance**2) / n).sqrt()
    assert (draws.mean(0).abs() < 4.5 * (covariance.diag() / n).sqrt()).all()
    assert ((draws.T @ draws / n - covariance).abs() < bound).all()


def test_a_trajectory_that_ends_has_the_density_of_its_steps():
    lengths = torch.tensor([T, 1, 3])
    chain, covariance = linear(lengths=lengths)
    z = torch.randn(3, T, K).double()
    expected = [
        dist.MultivariateNormal(torch.zeros(K * m).double(), covariance[: K * m, : K * m]).log_prob(row[:m].flatten())
        for m, row in zip(lengths.tolist(), z, strict=True)
    ]
    torch.testing.assert_close(chain.log_prob(z), torch.stack(expected))
    drawn = chain.sample()
    assert (drawn[1, 1:] == 0).all()
    assert (drawn[2, 3:] == 0).all()
    assert (drawn[2, :3] != 0).all()


def test_what_follows_the_end_changes_neither_density_nor_gradient():
    lengths = torch.tensor([2, 1, 3])
    short, _ = linear(3, lengths=lengths)
    long, _ = linear(7, lengths=lengths)
    z = torch.randn(3, 3, K).double().requires_grad_()
    padded = torch.cat([z.detach(), torch.full((3, 4, K), torch.nan).double()], 1).requires_grad_()
    torch.testing.assert_close(short.log_prob(z), long.log_prob(padded), rtol=0, atol=0)
    (of_short,) = torch.autograd.grad(short.log_prob(z).sum(), z)
    (of_long,) = torch.autograd.grad(long.log_prob(padded).sum(), padded)
    torch.testing.assert_close(of_short, of_long[:, :3])
    assert (of_long[:, 3:] == 0).all()


def test_equal_seeds_give_equal_draws_however_much_is_padded():
    lengths, draws = torch.tensor([2, 3]), []
    for num_steps in (3, 8):
        chain, _ = linear(num_steps, lengths=lengths)
        torch.manual_seed(1)
        draws.append(chain.sample())
    assert torch.equal(draws[0], draws[1][:, :3])


def test_an_unstable_chain_stays_finite_after_its_end():
    weight = torch.full((1,), 1e6, requires_grad=True)
    start = dist.Normal(torch.zeros(1), 1.0).to_event(1)
    chain = MarkovChain(start, lambda z: dist.Normal(weight * z, 1.0).to_event(1), 20, lengths=torch.tensor([2]))
    chain.log_prob(chain.rsample()).sum().backward()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("step", ["normal", "iaf"])
def test_a_draw_is_scored_as_it_was_drawn(step):
    torch.manual_seed(0)
    posterior = MarkovPosterior(Summaries(), steps(step), K)
    q = posterior(torch.randn(3, T, 5), torch.tensor([T, 1, 3]))
    z = q.rsample((6,))
    torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()), rtol=1e-4, atol=1e-4)
    of_draw, of_value = (
        torch.autograd.grad(q.log_prob(value).sum(), list(posterior.parameters()), retain_graph=True)
        for value in (z, z.clone())
    )
    for ours, theirs in zip(of_draw, of_value, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


class Summaries(nn.Module):
    def forward(self, x, lengths):
        return x.tanh()


def steps(kind):
    if kind == "normal":
        return ConditionalNormal(Combiner(K, 5, (2, K)))
    return FlowPosterior(Combiner(K, 5, (4, K)), flow="iaf", hidden_dims=8)


def test_a_posterior_is_the_chain_of_its_steps():
    torch.manual_seed(0)
    posterior = MarkovPosterior(Summaries(), steps("normal"), K)
    nn.init.normal_(posterior.z_0)
    x, z = torch.randn(3, T, 5), torch.randn(3, T, K)
    before = torch.cat([posterior.z_0.expand(3, 1, K), z[:, :-1]], 1)
    expected = posterior.q_z_given_zh(before, x.tanh()).log_prob(z).sum(-1)
    torch.testing.assert_close(posterior(x).log_prob(z), expected)


def test_words_have_probabilities_that_sum_to_one_and_draws_have_them():
    torch.manual_seed(0)
    start, table = dist.Categorical(logits=torch.randn(3)), torch.randn(3, 3)
    chain = MarkovChain(start, lambda k: dist.Categorical(logits=table[k]), 3)
    words = torch.cartesian_prod(*[torch.arange(3)] * 3)
    probability = chain.log_prob(words).exp()
    torch.testing.assert_close(probability.sum(), torch.tensor(1.0))
    n = 20_000
    found = (chain.sample((n,)) @ torch.tensor([9, 3, 1])).bincount(minlength=27) / n
    assert ((found - probability).abs() < 4.5 * (probability * (1 - probability) / n).sqrt()).all()
    assert not chain.has_rsample
    assert chain.support.is_discrete


def test_leading_dims_and_plates():
    torch.manual_seed(0)
    chain = MarkovChain(StandardNormal(K)(), ConditionalNormal(GatedTransition(K, 8)), T)
    z = torch.randn(5, 7, T, K)
    rows = torch.stack([chain.log_prob(row) for row in z.reshape(-1, T, K)]).reshape(5, 7)
    torch.testing.assert_close(chain.expand([7]).log_prob(z), rows)
    assert chain.expand([7]).log_prob(z[0, 0]).shape == (7,)
    assert chain.expand([7]).rsample((5,)).shape == (5, 7, T, K)

    def model():
        with pyro.plate("data", 7):
            return pyro.sample("z", chain)

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["z"]["log_prob"].shape == (7,)


def test_one_step_is_the_initial_distribution():
    chain, _ = linear(1)
    z = torch.randn(5, 1, K).double()
    torch.testing.assert_close(chain.log_prob(z), chain.initial.log_prob(z[:, 0]))
    assert chain.sample().shape == (1, K)


def test_series_of_independent_steps():
    x, lengths = torch.randn(3, T, 5), torch.tensor([T, 1, 3])
    fn = ConditionalNormal(MLP(2, (), 5), scale=1.0)(torch.randn(3, T, 2))
    per_step = fn.log_prob(x)
    torch.testing.assert_close(of_steps(fn, None).log_prob(x), per_step.sum(-1))
    expected = torch.stack([row[:m].sum() for row, m in zip(per_step, lengths.tolist(), strict=True)])
    torch.testing.assert_close(of_steps(fn, lengths).log_prob(x), expected)


def test_wrong_arguments_are_named():
    start = StandardNormal(K)()
    with pytest.raises(ValueError, match="num_steps"):
        MarkovChain(start, ConditionalNormal(GatedTransition(K, 8)), 0)
    with pytest.raises(ValueError, match=r"contexts\[0\] must be of shape \(..., 3, c\)"):
        MarkovChain(start, lambda z, c: start, T, contexts=(torch.zeros(T, 2),))
    with pytest.raises(ValueError, match="from 0 to 5"):
        MarkovChain(start, lambda z: start, T, lengths=torch.tensor([0, 5]))
    with pytest.raises(TypeError, match="lengths must be"):
        of_steps(dist.Normal(torch.zeros(3, T), 1.0), torch.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(TypeError, match="h_given_x"):
        MarkovPosterior(None, steps("normal"), K)
    with pytest.raises(ValueError, match="latent_dim"):
        MarkovPosterior(Summaries(), steps("normal"), 0)
