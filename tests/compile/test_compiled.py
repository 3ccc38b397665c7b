"""The compiled step against the eager one: the same seeds give the same losses and the same parameters."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import ppvae
from ppvae.distributions import VampPrior
from ppvae.infer import SVI
from ppvae.models import PPCA
from ppvae.pair import KLWeight
from tests.compile.compiling import D, K, N, SemiSupervised, TwoLevels, assert_same, binary, compiled_graphs, make_vae

ENUMERATED = partial(TraceEnum_ELBO, max_plate_nesting=1, strict_enumeration_warning=False)


def make_vamp():
    pair = make_vae()
    pair.p_z = VampPrior(pair.q_z_given_x, torch.rand(7, D))
    return pair


CASES = {
    "trace": (make_vae, Trace_ELBO),
    "mean-field": (make_vae, TraceMeanField_ELBO),
    "particles": (make_vae, partial(Trace_ELBO, num_particles=3)),
    "vectorized": (make_vae, partial(Trace_ELBO, num_particles=3, vectorize_particles=True, max_plate_nesting=1)),
    "renyi": (make_vae, partial(RenyiELBO, alpha=0.0, num_particles=3)),
    "batch norm": (partial(make_vae, norm="batch"), Trace_ELBO),
    "dropout": (partial(make_vae, dropout=0.3), Trace_ELBO),
    "spectral norm": (partial(make_vae, spectral_norm=True), Trace_ELBO),
    "two levels and a flow": (TwoLevels, Trace_ELBO),
    "enumerated": (SemiSupervised, ENUMERATED),
    "pseudo-inputs": (make_vamp, Trace_ELBO),
}


@pytest.mark.usefixtures("with_and_without_inductor")
@pytest.mark.parametrize("case", CASES)
def test_compiled_equals_eager(case):
    make, loss = CASES[case]
    svi = assert_same(make, loss, [(binary(),)])
    assert compiled_graphs(svi) == 1


@pytest.mark.usefixtures("with_and_without_inductor")
def test_labels_that_are_sometimes_none_and_a_short_batch():
    y = torch.eye(4)[torch.arange(N) % 4]
    batches = [(binary(),), (binary(), y), (binary(5),)]
    svi = assert_same(SemiSupervised, ENUMERATED, batches)
    assert compiled_graphs(svi) == 3


@pytest.mark.usefixtures("with_and_without_inductor")
def test_more_kinds_of_batch_than_graphs_run_eagerly_and_right():
    with pytest.warns(UserWarning, match=r"args\[0\] comes in more kinds .* than are compiled") as caught:
        svi = assert_same(partial(PPCA, D, K, guide="amortized"), Trace_ELBO, [(binary(n),) for n in range(2, 9)])
    assert len(caught) == 1
    assert compiled_graphs(svi) == 4


@pytest.mark.usefixtures("with_and_without_inductor")
@pytest.mark.parametrize(
    "optim",
    [
        partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        pyro.optim.Adam({"lr": 1e-2}),
        pyro.optim.ClippedAdam({"lr": 1e-2}),
    ],
    ids=["sgd", "adamw", "pyro adam", "pyro clipped adam"],
)
def test_optimizers(optim):
    assert_same(make_vae, Trace_ELBO, [(binary(),)], optim=optim)


@pytest.mark.usefixtures("with_and_without_inductor")
def test_a_schedule_changes_a_tensor_kl_weight_without_a_new_graph():
    results = []
    for compile in (False, True):
        torch.manual_seed(0)
        pair, weight = make_vae(), torch.tensor(0.0)
        svi = SVI(pair.model, pair.guide, partial(torch.optim.Adam, lr=1e-2), Trace_ELBO(), compile=compile)
        torch.manual_seed(1)
        losses = []
        for i in range(10):
            weight.fill_(i / 10)
            with KLWeight(weight):
                losses.append(svi.step(binary()))
        results.append(losses)
    torch.testing.assert_close(torch.tensor(results[0]), torch.tensor(results[1]), rtol=1e-5, atol=1e-5)
    assert compiled_graphs(svi) == 1


@pytest.mark.usefixtures("with_and_without_inductor")
def test_pyro_param_and_autoguide():
    def model(x):
        scale = pyro.param("scale", torch.tensor(1.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    svi = assert_same(lambda: ppvae.Pair(model, AutoNormal(model)), Trace_ELBO, [(binary()[:, 0],)])
    assert compiled_graphs(svi) == 1


def test_without_a_compiler_the_step_runs_eagerly_after_one_warning(monkeypatch):
    def no_compiler(*args):
        raise RuntimeError("no working C++ compiler")

    monkeypatch.setattr("torch._inductor.compile", no_compiler)
    with pytest.warns(UserWarning, match="no working C"):
        assert_same(make_vae, Trace_ELBO, [(binary(),)])


def test_compile_must_be_a_known_word():
    pair = make_vae()
    with pytest.raises(ValueError, match="compile must be True, False or 'auto', got 'yes'"):
        SVI(pair.model, pair.guide, torch.optim.Adam, Trace_ELBO(), compile="yes")


@pytest.mark.usefixtures("with_and_without_inductor")
@pytest.mark.parametrize("make", [make_vae, make_vamp, partial(PPCA, D, K, guide="amortized"), TwoLevels])
def test_compiled_likelihood_equals_the_eager_one(make):
    torch.manual_seed(0)
    pair, x = make(), binary(6)
    eager = ppvae.log_marginal(pair, x, num_samples=1500, compile=False)
    compiled = ppvae.log_marginal(pair, x, num_samples=1500, compile=True)
    torch.testing.assert_close(compiled.values, eager.values, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(compiled.ess, eager.ess, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("with_and_without_inductor")
class Recurrent(nn.Module):
    """Series, encoded by a layer of torch's own."""

    def __init__(self, kind, packs):
        super().__init__()
        self.encode, self.mean, self.decode = kind(D, 4, batch_first=True), nn.Linear(4, K), nn.Linear(K, D)
        self.packs = packs

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(K), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decode(z)[..., None, :]).to_event(2), obs=x)

    def guide(self, x):
        series = pack_padded_sequence(x, [3, 1, 3, 2, 1], batch_first=True, enforce_sorted=False) if self.packs else x
        states = self.encode(series)[0]
        last = (pad_packed_sequence(states, batch_first=True)[0] if self.packs else states)[:, -1]
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.mean(last), 1.0).to_event(1))


@pytest.mark.usefixtures("with_and_without_inductor")
@pytest.mark.parametrize(("kind", "packs"), [(nn.LSTM, False), (nn.GRU, True)])
def test_recurrent_layers(kind, packs):
    svi = assert_same(partial(Recurrent, kind, packs), Trace_ELBO, [(binary(15).view(5, 3, D),)], steps=6)
    assert compiled_graphs(svi) == 1


def test_autocast_computes_in_lower_precision_and_trains_as_well():
    losses = []
    for compile, autocast in [(False, None), (False, torch.bfloat16), (True, torch.bfloat16)]:
        torch.manual_seed(0)
        pair = make_vae()
        optim = partial(torch.optim.Adam, lr=1e-2)
        svi = SVI(pair.model, pair.guide, optim, Trace_ELBO(), compile=compile, autocast=autocast)
        torch.manual_seed(1)
        losses.append([svi.step(binary()) for _ in range(10)])
        assert {p.dtype for p in pair.parameters()} == {torch.float32}
    full, eager, compiled = losses
    assert eager != full
    assert eager == pytest.approx(full, rel=0.05)
    assert compiled == pytest.approx(eager, rel=0.05)


@pytest.mark.usefixtures("with_and_without_inductor")
def test_a_guessed_nesting_of_plates_is_settled_before_the_graph():
    svi = assert_same(SemiSupervised, partial(TraceEnum_ELBO, strict_enumeration_warning=False), [(binary(),)])
    assert compiled_graphs(svi) == 1


def test_what_would_be_too_long_a_graph_runs_eagerly_after_one_warning(monkeypatch):
    monkeypatch.setattr("ppvae.compile.compiled.MAX_OPERATIONS", 50)
    with pytest.warns(UserWarning, match="the others run eagerly: the graph would be too long") as caught:
        svi = assert_same(make_vae, Trace_ELBO, [(binary(),), (binary(5),)])
    assert len(caught) == 1
    assert compiled_graphs(svi) == 0


def test_a_long_graph_is_made_for_what_comes_often(monkeypatch):
    """Of one that is twice as long as another, for what comes four times as often."""
    often, once = [(binary(),)] * 12, [(binary(n),) for n in (3, 4, 5, 6, 7)]
    batches = [*often, *once]
    (graph,) = assert_same(make_vae, Trace_ELBO, often, steps=3)._compiled._graphs
    for rank, made in ((2.9, 1), (4.1, 0)):  # the first of 12 meets the parameters, and 11 is between 9 and 16
        monkeypatch.setattr("ppvae.compile.compiled.LONG", graph.traced.num_operations / rank)
        assert compiled_graphs(assert_same(make_vae, Trace_ELBO, batches, steps=17)) == made
