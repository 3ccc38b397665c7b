"""The VAE of sequences: exact where it can be summed and integrated, the same whatever the padding, compiled or not."""

import itertools
import warnings

import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn

import ppvae
from ppvae.data import LengthBuckets
from ppvae.distributions import (
    ConditionalCategorical,
    ConditionalNormal,
    ConditionalSequence,
    StandardNormal,
)
from ppvae.evaluate import posterior_predictive
from ppvae.infer import SVI
from ppvae.models import SequenceVAE
from ppvae.nn import RNN, SequenceDecoder, SequenceEncoder, TemporalConv, Transformer

V, T, K, END = 3, 4, 2, 0
ZEROS = torch.zeros(2, 3, dtype=torch.long)
KINDS = {
    "rnn": lambda causal: RNN(8, 8, direction="forward" if causal else "both"),
    "attention": lambda causal: Transformer(8, 12, causal=causal),
    "convolution": lambda causal: TemporalConv(8, causal=causal),
}


def make(kind="rnn", **options):
    decoder = SequenceDecoder(nn.Embedding(V, 8), KINDS[kind](True), K, V, **options)
    with torch.no_grad():
        decoder.context.weight.mul_(3)
    return SequenceVAE(
        StandardNormal(K),
        ConditionalSequence(ConditionalCategorical(decoder, num_classes=V)),
        ConditionalNormal(SequenceEncoder(nn.Embedding(V, 8), KINDS[kind](False), (2, K))),
    )


def reals():
    decoder = SequenceDecoder(nn.Linear(3, 8), RNN(8, 8), K, (2, 3))
    encoder = SequenceEncoder(nn.Linear(3, 8), RNN(8, 8, direction="both"), (2, K))
    return SequenceVAE(StandardNormal(K), ConditionalSequence(ConditionalNormal(decoder)), ConditionalNormal(encoder))


def data(n=6):
    lengths = 1 + torch.arange(n) % T
    return torch.randint(V, (n, T)), lengths


@pytest.fixture(params=KINDS)
def pair(request):
    torch.manual_seed(0)
    return make(request.param).eval()


def test_sites():
    x, lengths = data()
    for pair in (make(), reals()):
        values = x if pair.p_x_given_z.of_classes else torch.randn(6, T, 3)
        guide = poutine.trace(pair.guide).get_trace(values, lengths)
        model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(values, lengths)
        model.compute_log_prob()
        assert {*guide.stochastic_nodes} == {"z", "data"}
        assert {*model.observation_nodes} == {"x"}
        assert model.nodes["x"]["log_prob"].shape == (6,)


@torch.no_grad()
def test_all_strings_have_probability_one():
    """By quadrature over z; and the estimator finds the same for each of them."""
    strings = [[*s, END] for n in range(T) for s in itertools.product((1, 2), repeat=n)]
    strings += [list(s) for s in itertools.product((1, 2), repeat=T)]
    lengths = torch.tensor([len(s) for s in strings])
    x = torch.tensor([s + [END] * (T - len(s)) for s in strings])
    decoder = SequenceDecoder(nn.Embedding(V, 8), RNN(8, 8), 2, V)

    step = ConditionalSequence(ConditionalCategorical(decoder, num_classes=V))
    lines = torch.linspace(-6, 6, 61)
    z = torch.cartesian_prod(lines, lines)
    log_p = step(z.unsqueeze(1), T, lengths).log_prob(x)
    weight = StandardNormal(2)().log_prob(z).unsqueeze(-1)
    area = torch.log(lines[1] - lines[0]) * 2
    exact = (log_p + weight + area).logsumexp(0)
    assert exact.logsumexp(0).item() == pytest.approx(0.0, abs=1e-4)
    encoder = SequenceEncoder(nn.Embedding(V, 8), RNN(8, 8), (2, 2))
    with torch.no_grad():
        encoder.out.linear.bias[2:] = 2.0  # wider than the posterior, so that no weight is large
    pair = SequenceVAE(StandardNormal(2), step, ConditionalNormal(encoder)).eval()
    found = ppvae.log_marginal(pair, x, lengths, num_samples=1000)
    assert ((found.values - exact).abs() < 4.5 * found.std_error).all()
    assert found.std_error.max() < 0.1


def test_elbo_is_below_the_bounds_and_log_p():
    pair, (x, lengths) = make().eval(), data()
    many = (x.repeat(200, 1), lengths.repeat(200))
    with warnings.catch_warnings(action="ignore"):
        elbo = ppvae.elbo(pair, x, lengths, num_samples=500)
        few = ppvae.log_marginal(pair, *many, num_samples=5).values.reshape(200, 6).mean(0)
        log_p = ppvae.log_marginal(pair, x, lengths, num_samples=2000)
    assert elbo.mean() < few.mean() < log_p.mean() + 0.02
    assert log_p.num_dims == lengths.double().mean()
    assert log_p.perplexity() == pytest.approx(float((-log_p.values.sum() / lengths.sum()).exp()))


@pytest.mark.parametrize("kind", [*KINDS, "reals"])
def test_padding_and_batching_change_no_number(kind):
    pair = (reals() if kind == "reals" else make(kind)).eval()
    x, lengths = data()
    x = torch.randn(6, T, 3) if kind == "reals" else x
    more = 1e3 * torch.randn(6, 5, 3) if kind == "reals" else torch.randint(V, (6, 5))
    padded = torch.cat([x, more], 1)
    with warnings.catch_warnings(action="ignore"):
        short, long = (ppvae.log_marginal(pair, values, lengths, num_samples=20) for values in (x, padded))
        torch.testing.assert_close(short.values, long.values, rtol=1e-6, atol=2e-6)
        for i, n in enumerate(lengths.tolist()):
            z = torch.randn(7, 1, K)
            model = poutine.condition(pair.model, {"z": z[0]})
            alone = poutine.trace(model).get_trace(x[i : i + 1, :n], lengths[i : i + 1]).log_prob_sum()
            within = poutine.trace(model).get_trace(padded[i : i + 1], lengths[i : i + 1]).log_prob_sum()
            torch.testing.assert_close(alone, within, rtol=1e-6, atol=2e-6)


def test_the_estimators_outer_plate_is_used(pair):
    """Particles on the left give what data repeated along the batch give."""
    x, lengths = data()
    z = torch.randn(5, 6, K)
    outer = poutine.condition(pair.model, {"z": z})
    trace = poutine.trace(outer).get_trace(x, lengths)
    trace.compute_log_prob()
    for s in range(5):
        inner = poutine.trace(poutine.condition(pair.model, {"z": z[s]})).get_trace(x, lengths)
        inner.compute_log_prob()
        torch.testing.assert_close(trace.nodes["x"]["log_prob"][s], inner.nodes["x"]["log_prob"], rtol=1e-5, atol=1e-5)


def test_gradients_reach_every_parameter(pair):
    x, lengths = data(40)
    pair.train()
    Trace_ELBO().differentiable_loss(pair.model, pair.guide, x, lengths).backward()
    for name, parameter in pair.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_it_overfits_a_tiny_set():
    torch.manual_seed(0)
    pair, (x, lengths) = make(), data(4)
    run = ppvae.fit(pair, (x, lengths), epochs=150, lr=2e-2, compile=False, progress=False)
    assert run.history[-1]["loss"] < 1.6  # four sequences: log 4 = 1.39 at best
    found = pair.eval().reconstruct(x, lengths)
    assert found.x.shape == x.shape


@pytest.mark.parametrize("kind", [pytest.param("attention", marks=pytest.mark.slow), "convolution"])
def test_compiled_it_takes_the_same_steps_for_sequences_of_several_lengths(kind):
    histories = []
    for compile in (False, True):
        torch.manual_seed(0)
        pair = make(kind, word_dropout=0.3)
        x, lengths = data(24)
        source = LengthBuckets(x, lengths, batch_size=8, num_buckets=2)
        run = ppvae.fit(pair, source, epochs=2, lr=1e-2, compile=compile, progress=False)
        histories.append([row["loss"] for row in run.history])
    assert histories[0] == pytest.approx(histories[1], rel=1e-4)


@pytest.mark.usefixtures("with_and_without_inductor")
def test_a_recurrent_step_compiled_is_the_eager_one():
    losses = []
    for compile in (False, True):
        torch.manual_seed(0)
        pair, batches = make(), [data(6), data(6)]
        svi = SVI(pair.model, pair.guide, lambda p: torch.optim.Adam(p, lr=1e-2), Trace_ELBO(), compile=compile)
        torch.manual_seed(1)
        losses.append([svi.step(*batch) for batch in batches * 2])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_word_dropout_is_of_training_alone():
    pair, (x, lengths) = make(word_dropout=0.5), data()
    z = torch.randn(6, K)

    def log_p():
        return pair.p_x_given_z(z, T, lengths).log_prob(x)

    assert not torch.equal(log_p(), log_p())
    pair.eval()
    assert torch.equal(log_p(), log_p())


def test_queries():
    pair, (x, lengths) = make().eval(), data()
    drawn = pair.sample(7, 5, end=END)
    assert (drawn.x.shape, drawn.lengths.shape) == ((7, 5), (7,))
    ended = (drawn.x == END).any(1)
    assert torch.equal(drawn.lengths, torch.where(ended, (drawn.x == END).int().argmax(1) + 1, 5))
    assert pair.sample(7, 5).lengths.tolist() == [5] * 7
    rebuilt = pair.reconstruct(x, lengths, end=END)
    assert torch.equal(rebuilt.x, pair.decode(pair.encode(x, lengths).mean, T, end=END, temperature=0.0).x)
    line = pair.interpolate(x[:2], lengths[:2], num_points=5, end=END)
    assert line.x.shape == (5, T)
    assert torch.equal(line.x[[0, -1]], pair.reconstruct(x[:2], lengths[:2], end=END).x)
    assert reals().sample(3, 5).x.shape == (3, 5, 3)


def test_predictive_draws_are_of_the_model_and_not_of_the_data():
    pair, (x, lengths) = make().eval(), data()
    draws = posterior_predictive(pair, x, lengths, num_samples=400).predictive["x"]
    assert draws.shape == (400, 6, T)
    again = pair.p_x_given_z(pair.encode(x, lengths).sample((400,)), T).sample()
    for token in range(V):
        difference = (draws == token).double().mean(0) - (again == token).double().mean(0)
        assert (difference.abs() < 5 * (0.5 / 400) ** 0.5).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda pair: pair.encode(torch.zeros(2, 3).long(), torch.tensor([1, 4])),
            ValueError,
            "lengths must be from 1 to 3",
        ),
        (
            lambda pair: pair.encode(torch.zeros(2, 3).long(), torch.tensor([1])),
            ValueError,
            "lengths must hold one number",
        ),
        (lambda pair: pair.encode([1], torch.tensor([1])), TypeError, "x must be a tensor, got list"),
        (lambda pair: pair.sample(0, 3), ValueError, "num_samples must be a whole number >= 1, got 0"),
        (lambda pair: pair.sample(1, 0), ValueError, "num_steps must be a whole number >= 1, got 0"),
        (
            lambda pair: pair.interpolate(torch.zeros(3, 3).long(), torch.ones(3).long()),
            ValueError,
            "x must hold two seq",
        ),
        (
            lambda pair: ppvae.elbo(pair, torch.zeros(2, 3).long(), torch.tensor([0, 1])),
            ValueError,
            "lengths must be from 1",
        ),
        (
            lambda pair: SequenceVAE(StandardNormal(2), pair.p_z, pair.q_z_given_x),
            TypeError,
            "p_x_given_z must be a Cond",
        ),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call(make())
