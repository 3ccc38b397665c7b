import copy
import math
from functools import partial

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

import ppvae
from ppvae.distributions import (
    AutoregressivePrior,
    CategoricalPrior,
    Codebook,
    CodePosterior,
    ConditionalBernoulli,
    UniformCategorical,
)
from ppvae.infer import SVI
from ppvae.models import VQVAE
from ppvae.nn import MLP, CausalTransformer
from ppvae.storage import load_state
from tests.models.by_hand import assert_same_loss

D, K, P, DIM, N = 6, 4, 2, 3, 7
LETTERS = torch.arange(K)
PRIORS = {
    "uniform": lambda: UniformCategorical(K, P),
    "independent": lambda: CategoricalPrior(K, P),
    "autoregressive": lambda: AutoregressivePrior(CausalTransformer(K, P, dim=8, num_blocks=1)),
}


def make(prior="uniform", *, hidden=(5,), dropout=0.0, commitment=0.25, **codebook):
    torch.manual_seed(0)
    p_k = PRIORS[prior]()
    for parameter in p_k.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return VQVAE(
        p_k,
        ConditionalBernoulli(MLP((P, DIM), hidden, D, activation="tanh")),
        CodePosterior(MLP(D, hidden, (P, DIM), activation="tanh", dropout=dropout), Codebook(K, DIM, **codebook)),
        commitment=commitment,
    )


def binary(n=N, seed=0):
    return torch.bernoulli(torch.full((n, D), 0.4), generator=torch.Generator().manual_seed(seed))


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module, before):
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def log_bernoulli(pair, x, e):
    logits = pair.p_x_given_e.net(e)
    return (x * logits - torch.nn.functional.softplus(logits)).sum(-1)


@pytest.mark.parametrize("prior", PRIORS)
def test_sites(prior):
    pair, x = make(prior), binary()
    guide_trace = poutine.trace(pair.guide).get_trace(x)
    model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(x)
    assert set(model_trace.stochastic_nodes) - {"data"} == {"k"} == set(guide_trace.stochastic_nodes) - {"data"}
    assert model_trace.nodes["k"]["value"].shape == (N, P)
    assert {"x", "commitment"} <= set(model_trace.observation_nodes)
    pair.eval()
    assert poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(x).observation_nodes == ["x"]


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("learned", ["average", "gradient", "fixed"])
def test_loss_and_gradients_are_those_of_the_formula(learned, loss):
    """The decoder's gradient at the code goes to the encoder's output, and to no code."""
    pair, x = make("independent", learned=learned, commitment=0.7), binary()
    z, codes = pair.q_k_given_x.net(x), pair.codebook.vectors.clone()
    k = (z.unsqueeze(-2) - codes).square().sum(-1).argmin(-1)
    e = codes[k]
    log_k = pair.p_k.logits.log_softmax(-1)[torch.arange(P), k].sum(-1)
    bound = log_bernoulli(pair, x, z + (e - z).detach()) + log_k
    expected = -bound + 0.7 * (z - e.detach()).square().sum((-1, -2))
    if learned == "gradient":
        expected = expected + (e - z.detach()).square().sum((-1, -2))
    assert_same_loss(pair, lambda: loss().differentiable_loss(pair.model, pair.guide, x), expected.sum())
    reached = {name for name, parameter in pair.named_parameters() if parameter.grad.abs().sum() > 0}
    assert reached == {name for name, _ in pair.named_parameters()}


def test_straight_through_values_are_the_codes_themselves():
    """Not z + (e - z), which rounds: the likelihood of training is that of evaluation."""
    pair, x = make(restart=0.0), binary()
    with torch.no_grad():
        pair.q_k_given_x.net[-2].weight.mul_(1e5)
    trace = poutine.trace(poutine.replay(pair.model, poutine.trace(pair.guide).get_trace(x)))
    before = copy.deepcopy(pair)
    assert torch.equal(trace.get_trace(x).nodes["x"]["fn"].mean, before.decode(before.codes(x)).mean)


@pytest.mark.parametrize("prior", PRIORS)
@torch.no_grad()
def test_log_prob_is_the_sum_over_all_words(prior):
    pair, x = make(prior), binary()
    terms = []
    for first in LETTERS:
        for second in LETTERS:
            k = torch.stack([first, second])
            terms.append(log_bernoulli(pair, x, pair.codebook.vectors[k]) + pair.p_k().log_prob(k))
    torch.testing.assert_close(pair.log_prob(x), torch.stack(terms).logsumexp(0).double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pair.log_prob(x.expand(2, N, D))[1], pair.log_prob(x))


@torch.no_grad()
def test_blocks_of_words_are_the_whole(monkeypatch):
    pair, x = make("autoregressive"), binary()
    whole = pair.log_prob(x)
    monkeypatch.setattr("ppvae.models.vqvae.SCORED", 3 * x.numel())
    torch.testing.assert_close(pair.log_prob(x), whole, rtol=1e-6, atol=1e-6)
    big = VQVAE(UniformCategorical(512, 16), pair.p_x_given_e, pair.q_k_given_x)
    big.q_k_given_x.codebook.num_codes = 512
    with pytest.raises(ValueError, match=r"there are 512\^16 words, .* ppvae.log_marginal estimates log p\(x\)"):
        big.log_prob(x)


@pytest.mark.parametrize("prior", PRIORS)
def test_the_estimate_is_the_exact_sum(prior):
    pair, x = make(prior), binary()
    pair.q_k_given_x.temperature.fill_(20.0)
    found, exact = ppvae.log_marginal(pair, x, num_samples=2000), pair.log_prob(x)
    assert ((found.values - exact).abs() < 4.5 * found.std_error).all()
    assert float(found.std_error.max()) < 0.1
    assert float(ppvae.elbo(pair, x, num_samples=50).values.mean()) < float(exact.mean())


def test_nearest_codes_give_a_bound_that_is_called_one():
    pair, x = make("autoregressive"), binary()
    found, k = ppvae.log_marginal(pair, x, num_samples=200), pair.codes(x)
    with torch.no_grad():
        bound = log_bernoulli(pair, x, pair.codebook(k)) + pair.p_k().log_prob(k)
    torch.testing.assert_close(found.values, bound.double(), rtol=1e-5, atol=1e-5)
    assert found.diagnostics.codes == ("k",)
    assert found.std_error.isnan().all()
    assert (found.values < pair.log_prob(x)).all()


def test_evaluation_moves_no_code():
    """Nor the loss without a step, nor what is run before training."""
    pair, x = make(restart=0.0), binary(40)
    before = state(pair)
    svi = SVI(pair.model, pair.guide, partial(torch.optim.Adam, lr=1e-2), Trace_ELBO(), compile=False)
    svi.evaluate_loss(x)
    ppvae.log_marginal(pair, x, num_samples=3)
    pair.log_prob(x), pair.codes(x), pair.reconstruct(x), pair.sample(3), pair.encode(x)
    assert pair.training
    assert not changed(pair, before)
    twin = copy.deepcopy(pair)
    ppvae.fit(pair, x, x, epochs=1, batch_size=40, progress=False)  # one step, after the runs that look at the pair
    twin.codebook.update(twin.q_k_given_x.points(x), twin.codes(x))
    torch.testing.assert_close(pair.codebook.vectors, twin.codebook.vectors)
    torch.testing.assert_close(pair.codebook.counts, twin.codebook.counts)


def test_a_prior_is_trained_with_all_else_frozen():
    """And becomes the shares of the codes, which make the bound highest."""
    pair, x = make(), binary(40)
    pair.codebook.update(pair.q_k_given_x.points(x), pair.codes(x))
    pair.requires_grad_(False)
    pair.p_k = CategoricalPrior(K, P)
    before, codes = state(pair), pair.codes(x)
    run = ppvae.fit(pair, x, epochs=40, lr=0.3, progress=False, compile=False)
    assert changed(pair, before) == {"p_k.logits"}
    assert "commitment" not in run.history[0]
    shares = torch.stack([codes[:, p].bincount(minlength=K) / 40 for p in range(P)])
    torch.testing.assert_close(pair.p_k.logits.softmax(-1).detach(), shares, rtol=0, atol=0.03)


def test_particles():
    pair, x = make(), binary()
    losses = []
    for particles in (1, 5):
        twin = copy.deepcopy(pair)
        elbo = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
        losses.append(elbo.differentiable_loss(twin.model, twin.guide, x))
        losses[-1].backward()
        assert twin.codebook.vectors.isfinite().all()
    torch.testing.assert_close(*losses)


def test_batch_size_does_not_matter():
    pair, x = make("autoregressive").eval(), binary()
    whole = ppvae.log_marginal(pair, x, num_samples=1).values
    one_by_one = torch.cat([ppvae.log_marginal(pair, x[i : i + 1], num_samples=1).values for i in range(N)])
    torch.testing.assert_close(whole, one_by_one)


@pytest.mark.parametrize(
    "options",
    [
        {"restart": 0.9},
        pytest.param({"cosine": True, "dropout": 0.3}, marks=pytest.mark.slow),
        pytest.param({"learned": "gradient"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.usefixtures("with_and_without_inductor")
def test_the_compiled_step_is_the_eager_one(options):
    """Also what it leaves in the codebook, dead codes and their random places included."""
    results = []
    for compile in (False, True):
        pair = make(hidden=(), **options)
        svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=1e-2), Trace_ELBO(), compile=compile)
        pyro.set_rng_seed(1)
        losses = [svi.step(binary(20, seed=i)) for i in range(4)]
        results.append({"losses": torch.tensor(losses)} | state(pair))
    assert (svi._compiled.num_graphs, svi._compiled._retraces) == (1, 0)
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-4, atol=1e-5)


def test_a_resumed_run_is_the_unbroken_one(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = {"batch_size": 16, "lr": 1e-2, "progress": False, "compile": False}
    ppvae.fit(make(dropout=0.2), binary(40), epochs=4, out=whole, **options)
    ppvae.fit(make(dropout=0.2), binary(40), epochs=2, out=parts, **options)
    ppvae.fit(make(dropout=0.2), binary(40), epochs=4, out=parts, resume=True, **options)
    one, other = (load_state(folder / "model.safetensors") for folder in (whole, parts))
    assert "q_k_given_x.codebook.counts" in one
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert (whole / "history.csv").read_bytes() == (parts / "history.csv").read_bytes()


def test_state_round_trip(tmp_path):
    pair, x = make("autoregressive"), binary()
    pair.q_k_given_x.temperature.fill_(2.0)
    pair.codebook.update(pair.q_k_given_x.points(x), pair.codes(x))
    fresh = ppvae.load(make("autoregressive"), ppvae.save(pair, tmp_path / "vqvae.safetensors"))
    estimate = partial(ppvae.log_marginal, num_samples=5)
    assert torch.equal(estimate(fresh, x).values, estimate(pair, x).values)
    assert len({value.data_ptr() for value in pair.state_dict().values()}) == len(pair.state_dict())


def test_overfits_a_tiny_set():
    pair, x = make(decay=0.9, hidden=(16,)), torch.eye(D)[:2]
    ppvae.fit(pair, x, epochs=80, lr=0.03, progress=False, compile=False)
    assert len(pair.codes(x).unique(dim=0)) == 2
    assert float(log_bernoulli(pair, x, pair.codebook(pair.codes(x))).detach().mean()) > -0.2


def test_queries():
    pair, x = make("autoregressive"), binary(2 * N).reshape(2, N, D)
    k = pair.codes(x)
    assert k.shape == (2, N, P)
    assert torch.equal(k, pair.encode(x).sample())
    assert torch.equal(k, pair.codebook.nearest(pair.q_k_given_x.net(x)))
    torch.testing.assert_close(pair.reconstruct(x), pair.p_x_given_e.net(pair.codebook.vectors[k]).sigmoid())
    torch.testing.assert_close(pair.decode(k).mean[1, 3], pair.decode(k[1, 3]).mean)
    assert pair.sample(9).shape == (9, D)
    means, n = pair.sample(4000, mean=True), 4000
    words = torch.cartesian_prod(LETTERS, LETTERS)
    with torch.no_grad():
        expected = pair.p_k().log_prob(words).exp() @ pair.decode(words).mean
    assert ((means.mean(0) - expected).abs() < 4.5 * means.std(0) / math.sqrt(n) + 1e-6).all()


def test_constructor():
    pieces = {name: getattr(make(), name) for name in ("p_k", "p_x_given_e", "q_k_given_x")}
    with pytest.raises(TypeError, match="q_k_given_x must be a CodePosterior, got MLP"):
        VQVAE(**pieces | {"q_k_given_x": MLP(D, (), (P, DIM))})
    with pytest.raises(TypeError, match="p_k must be a module that returns a distribution, got int"):
        VQVAE(**pieces | {"p_k": 3})
    with pytest.raises(ValueError, match="commitment must be a finite number >= 0, got -1"):
        VQVAE(**pieces, commitment=-1)


@pytest.mark.parametrize("make_prior", [UniformCategorical, CategoricalPrior])
@pytest.mark.parametrize("num_codes", [K - 1, K + 1])
def test_a_prior_of_another_alphabet_is_refused(make_prior, num_codes):
    pair = make()
    pair.p_k = make_prior(num_codes, P)
    with pytest.raises(
        ValueError, match=rf"p_k must be of words of the {K} codes of the codebook, got one of {num_codes}"
    ):
        ppvae.log_marginal(pair, binary(), num_samples=2)


def test_a_prior_of_longer_words_is_refused():
    pair = make()
    pair.p_k = UniformCategorical(K, P + 1)
    with pytest.raises(ValueError, match="'k' is drawn in other plates in the guide than in the model"):
        ppvae.log_marginal(pair, binary(), num_samples=2)
