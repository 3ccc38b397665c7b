"""Sequences given a context: all strings together have probability one, and draws have the density."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppvae.distributions import ConditionalCategorical, ConditionalNormal, ConditionalSequence
from ppvae.nn import RNN, SequenceDecoder, TemporalConv, Transformer, within

V, T, K, END = 3, 4, 2, 0
NETS = {
    "rnn": lambda: RNN(8, 7),
    "attention": lambda: Transformer(8, 12, causal=True),
    "convolution": lambda: TemporalConv(8, causal=True),
}


@pytest.fixture(params=NETS)
def tokens(request):
    net = SequenceDecoder(nn.Embedding(V, 8), NETS[request.param](), K, V)
    with torch.no_grad():
        net.out.linear.weight.mul_(3)  # far from uniform
    return ConditionalSequence(ConditionalCategorical(net, num_classes=V))


def reals():
    net = SequenceDecoder(nn.Linear(2, 8), RNN(8, 7), K, (2, 2))
    return ConditionalSequence(ConditionalNormal(net))


def strings(end):
    """All strings of at most T tokens that end with the end, and those of T without one."""
    letters = [c for c in range(V) if c != end]
    found = [[*s, end] for n in range(T) for s in itertools.product(letters, repeat=n)]
    found += [list(s) for s in itertools.product(letters, repeat=T)]
    lengths = torch.tensor([len(s) for s in found])
    return torch.tensor([s + [end] * (T - len(s)) for s in found]), lengths


def test_the_probabilities_of_all_strings_sum_to_one(tokens):
    x, lengths = strings(END)
    z = torch.randn(K)
    total = tokens(z, T, lengths).log_prob(x).logsumexp(0)
    torch.testing.assert_close(total, torch.tensor(0.0), rtol=0, atol=1e-5)
    everything = torch.cartesian_prod(*[torch.arange(V)] * T)
    torch.testing.assert_close(tokens(z, T).log_prob(everything).logsumexp(0), torch.tensor(0.0), rtol=0, atol=1e-5)


def test_padding_changes_no_number(tokens):
    x, lengths = strings(END)
    z = torch.randn(len(x), K)
    expected = tokens(z, T, lengths).log_prob(x)
    longer = torch.cat([torch.where(within(lengths, T), x, V - 1), torch.randint(V, (len(x), 5))], 1)
    torch.testing.assert_close(tokens(z, T + 5, lengths).log_prob(longer), expected, rtol=1e-6, atol=1e-6)
    alone = [tokens(z[i], int(n)).log_prob(x[i, :n]) for i, n in enumerate(lengths)]
    torch.testing.assert_close(torch.stack(alone), expected, rtol=1e-6, atol=1e-6)


def test_draws_have_the_density(tokens):
    n, (x, lengths) = 10_000, strings(END)
    z = torch.randn(K)
    probability = tokens(z, T, lengths).log_prob(x).exp().detach()
    draws = tokens.steps((z,), (T,)).generate((n,), end=END)
    place = torch.tensor([V**t for t in range(T)])
    number = {int(s): i for i, s in enumerate(x @ place)}
    found = torch.tensor([number[int(s)] for s in draws @ place]).bincount(minlength=len(x)) / n
    assert ((found - probability).abs() < 5 * (probability * (1 - probability) / n).sqrt() + 1e-4).all()
    assert probability.max() > 2 * probability.min()


def test_choices(tokens):
    z = torch.randn(50, K)
    steps = tokens.steps((z,), (50, T))
    greedy = steps.generate(temperature=0.0)
    assert torch.equal(greedy, steps.generate(top_k=1))
    best = steps.step(greedy).logits.argmax(-1)
    assert torch.equal(greedy, best)
    assert torch.equal(steps.generate(temperature=1e-4), greedy)
    two = steps.generate((50,), top_k=2)
    least = steps.step(two).logits.topk(2).values[..., -1]
    assert (steps.step(two).log_prob(two) >= least - 1e-6).all()
    hot, cold = (steps.log_prob(steps.generate((50,), temperature=t)).mean() for t in (3.0, 0.5))
    assert cold > hot
    ended = steps.generate(end=END)
    over = (ended == END).cumsum(-1) > 0
    assert torch.equal(over, ended == END)


def test_one_step_of_a_tempered_draw_has_its_probabilities(tokens):
    z, n = torch.randn(K), 10_000
    logits = tokens.steps((z,), (1,)).step(torch.zeros(1, dtype=torch.long)).logits[0]
    for temperature, top_k in ((0.5, None), (2.0, 2)):
        kept = logits if top_k is None else logits.masked_fill(logits < logits.topk(top_k).values[-1], -math.inf)
        expected = (kept / temperature).softmax(-1).detach()
        draws = tokens.steps((z,), (1,)).generate((n,), temperature=temperature, top_k=top_k)
        found = draws.flatten().bincount(minlength=V) / n
        assert ((found - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt() + 1e-6).all()


def test_reals_have_the_density_of_the_chain_rule():
    p_x, z, lengths = reals(), torch.randn(5, 3, K), torch.tensor([T, 1, 2])
    x = p_x(z, T, lengths).sample()
    assert x.shape == (5, 3, T, 2)
    loc, scale = p_x.step.location_scale(x, z)
    by_hand = (dist.Normal(loc, scale).log_prob(x).sum(-1) * within(lengths, T)).sum(-1)
    torch.testing.assert_close(p_x(z, T, lengths).log_prob(x), by_hand)
    with pytest.raises(ValueError, match=r"temperature must be left out where steps are of no classes, got 0.5"):
        p_x.steps((z,), (5, 3, T)).generate(temperature=0.5)


def test_the_mean_of_real_draws_is_that_of_the_first_step():
    p_x, z = reals(), torch.randn(K)
    loc, scale = p_x.step.location_scale(torch.zeros(T, 2), z)
    draws = p_x(z, T).sample((20_000,))[:, 0]
    assert ((draws.mean(0) - loc[0]).abs() < 5 * scale[0] / math.sqrt(20_000)).all()
    torch.testing.assert_close(draws.std(0), scale[0], rtol=0.05, atol=0)


def test_leading_dims_and_plates(tokens):
    z, lengths = torch.randn(5, 3, K), torch.tensor([T, 1, 2])
    x = torch.randint(V, (3, T))
    fn = tokens(z, T, lengths)
    assert (fn.batch_shape, fn.event_shape) == ((5, 3), (T,))
    rows = torch.stack(
        [torch.stack([tokens(z[s, i], T, lengths[i]).log_prob(x[i]) for i in range(3)]) for s in range(5)]
    )
    torch.testing.assert_close(fn.log_prob(x), rows, rtol=0, atol=1e-6)

    def model():
        with pyro.plate("particles", 5, dim=-2), pyro.plate("data", 3):
            return pyro.sample("x", fn)

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"].shape == (5, 3)
    assert fn.support.is_discrete


def test_without_a_context_it_is_a_language_model():
    net = SequenceDecoder(nn.Embedding(V, 8), RNN(8, 7), None, V)
    p_x = ConditionalSequence(ConditionalCategorical(net, num_classes=V))
    x, lengths = strings(END)
    torch.testing.assert_close(p_x(None, T, lengths).log_prob(x).logsumexp(0), torch.tensor(0.0), rtol=0, atol=1e-5)
    assert p_x(None, T).expand([4]).sample().shape == (4, T)


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (3, TypeError, "step must be a module that returns a distribution, got int"),
        (nn.Linear(2, 2), ValueError, "step must be a conditional piece whose net declares the out_shape of a step"),
        (ConditionalNormal(nn.Linear(2, 2)), ValueError, "step must be a conditional piece whose net declares"),
    ],
)
def test_what_is_no_step_is_refused(step, error, message):
    with pytest.raises(error, match=message):
        ConditionalSequence(step)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature must be a finite number >= 0, got -1.0"),
        ({"top_k": 0}, "top_k must be a whole number >= 1, got 0"),
        ({"end": -1}, "end must be a whole number >= 0, got -1"),
    ],
)
def test_options_out_of_range(tokens, options, message):
    with pytest.raises(ValueError, match=message):
        tokens.steps((torch.zeros(K),), (T,)).generate(**options)
