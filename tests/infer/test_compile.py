"""The compiled step against the eager one: the same seeds give the same losses and the same parameters."""

import os
import random
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

import ppvae
from ppvae.data import Batches, Binarize, binarize, load
from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
from ppvae.infer import SVI, Linear
from ppvae.infer.svi import COMPILE_FROM
from ppvae.models import PPCA, VAE
from ppvae.nn import MLP
from ppvae.pair import KLWeight

D, K, N = 12, 3, 8


def make_vae(**options):
    return VAE(
        p_z=StandardNormal(K),
        p_x_given_z=ConditionalBernoulli(MLP(K, (16,), D, **options)),
        q_z_given_x=ConditionalNormal(MLP(D, (16,), (2, K), **options)),
    )


def concatenate(a, b):
    shape = torch.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    return torch.cat([a.expand(*shape, -1), b.expand(*shape, -1)], -1)


class SemiSupervised(nn.Module):
    """y ~ Categorical, z ~ N(0, I), x ~ p(x|z, y); y is enumerated where it is not given."""

    def __init__(self):
        super().__init__()
        self.p_z = StandardNormal(K)
        self.p_x_given_zy = ConditionalBernoulli(MLP(K + 4, (16,), D))
        self.q_z_given_xy = ConditionalNormal(MLP(D + 4, (16,), (2, K)))
        self.q_y_given_x = MLP(D, (16,), 4)

    def model(self, x, y=None):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(4)), obs=y)
            z = pyro.sample("z", self.p_z())
            pyro.sample("x", self.p_x_given_zy(concatenate(z, y)), obs=x)

    def guide(self, x, y=None):
        with pyro.plate("data", len(x)):
            if y is None:
                q_y = dist.OneHotCategorical(logits=self.q_y_given_x(x))
                y = pyro.sample("y", q_y, infer={"enumerate": "parallel"})
            pyro.sample("z", self.q_z_given_xy(concatenate(x, y)))


class TwoLevels(nn.Module):
    """z2 ~ N(0, I), z1 ~ p(z1|z2), x ~ p(x|z1), with a flow in the guide of z2."""

    def __init__(self):
        super().__init__()
        self.p_z2 = StandardNormal(2)
        self.p_z1_given_z2 = ConditionalNormal(MLP(2, (8,), (2, K), activation="tanh"))
        self.p_x_given_z1 = ConditionalBernoulli(MLP(K, (8,), D, activation="tanh"))
        self.q_z1_given_x = ConditionalNormal(MLP(D, (8,), (2, K), activation="tanh"))
        self.q_z2_given_z1 = ConditionalNormal(MLP(K, (8,), (2, 2), activation="tanh"))
        self.flow = dist.transforms.Planar(2)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", self.p_z2())
            z1 = pyro.sample("z1", self.p_z1_given_z2(z2))
            pyro.sample("x", self.p_x_given_z1(z1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", self.q_z1_given_x(x))
            pyro.sample("z2", dist.TransformedDistribution(self.q_z2_given_z1(z1), [self.flow]))


ENUMERATED = partial(TraceEnum_ELBO, max_plate_nesting=1, strict_enumeration_warning=False)

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
}


def binary(n=N, seed=0):
    return torch.bernoulli(torch.full((n, D), 0.4), generator=torch.Generator().manual_seed(seed))


def train(pair, loss, batches, *, compile, optim=None, steps=20):
    """Losses and state after some steps, and the SVI."""
    optim = optim or partial(torch.optim.Adam, lr=1e-2, fused=True)
    svi = SVI(pair.model, pair.guide, optim, loss, compile=compile)
    torch.manual_seed(1)
    losses = [svi.step(*batches[i % len(batches)]) for i in range(steps)]
    return losses, {name: value.detach().clone() for name, value in pair.state_dict().items()}, svi


def compiled_graphs(svi):
    return svi._compiled.num_graphs


def assert_same(make, loss, batches, **options):
    results = []
    for compile in (False, True):
        torch.manual_seed(0)
        results.append(train(make(), loss(), batches, compile=compile, **options))
    (eager, eager_state, _), (compiled, compiled_state, svi) = results
    torch.testing.assert_close(torch.tensor(compiled), torch.tensor(eager), rtol=1e-5, atol=1e-5)
    for name, value in eager_state.items():
        torch.testing.assert_close(compiled_state[name], value, rtol=1e-4, atol=1e-5, msg=name)
    return svi


@pytest.mark.parametrize("case", CASES)
def test_compiled_equals_eager(case):
    make, loss = CASES[case]
    svi = assert_same(make, loss, [(binary(),)])
    assert compiled_graphs(svi) == 1


def test_labels_that_are_sometimes_none_and_a_short_batch():
    y = torch.eye(4)[torch.arange(N) % 4]
    batches = [(binary(),), (binary(), y), (binary(5),)]
    svi = assert_same(SemiSupervised, ENUMERATED, batches)
    assert compiled_graphs(svi) == 3


def test_more_kinds_of_batch_than_graphs_run_eagerly_and_right():
    svi = assert_same(partial(PPCA, D, K, guide="amortized"), Trace_ELBO, [(binary(n),) for n in range(2, 9)])
    assert compiled_graphs(svi) == 4


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


def test_pyro_param_and_autoguide():
    def model(x):
        scale = pyro.param("scale", torch.tensor(1.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    svi = assert_same(lambda: ppvae.Pair(model, AutoNormal(model)), Trace_ELBO, [(binary()[:, 0],)])
    assert compiled_graphs(svi) == 1


def test_a_changed_attribute_of_a_module_counts():
    def run(compile):
        torch.manual_seed(0)
        pair = make_vae()
        svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=1e-3), Trace_ELBO(), compile=compile)
        torch.manual_seed(1)
        losses = []
        for beta in (1.0, 1.0, 4.0, 4.0, 1.0):
            pair.beta = beta
            losses.append(svi.step(binary()))
        return losses

    assert run(True) == pytest.approx(run(False), rel=1e-5)


def test_train_and_eval_mode_are_different_graphs():
    torch.manual_seed(0)
    pair = make_vae(norm="batch")
    svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=0.0), Trace_ELBO(), compile=True)
    for _ in range(3):
        svi.step(binary())
    before = {name: value.clone() for name, value in pair.named_buffers()}
    pair.eval()
    svi.step(binary())
    assert all(torch.equal(value, before[name]) for name, value in pair.named_buffers())
    pair.train()
    svi.step(binary())
    assert not all(torch.equal(value, before[name]) for name, value in pair.named_buffers())


class Branching(nn.Module):
    """A pair whose Python code looks at a value of its data."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.5))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            mean = z if x.sum() > 0 else 3 * z
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 1.0))


def test_a_recorded_decision_that_would_change_is_never_a_silent_wrong_gradient():
    positive, negative = torch.ones(N), -torch.ones(N)
    svi = assert_same(Branching, Trace_ELBO, [(positive,), (positive,), (negative,)])
    assert svi._compiled._misses > 0


class Counting(nn.Module):
    """A pair that draws with Python's own generator."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.5))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0 + random.random()), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 1.0))


class Selecting(Counting):
    """A pair with a shape that depends on values."""

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc + x[x > 0].mean(), 1.0))


@pytest.mark.parametrize(
    ("make", "reason"), [(Counting, "a state that is no tensor"), (Selecting, "depends on values of tensors")]
)
def test_what_cannot_be_traced_runs_eagerly_after_one_warning(make, reason):
    pair = make()
    svi = SVI(pair.model, pair.guide, partial(torch.optim.Adam, lr=1e-2), Trace_ELBO(), compile=True)
    x = torch.ones(N)
    svi.step(x)
    with pytest.warns(UserWarning, match=reason):
        svi.step(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svi.step(x)


def test_without_a_compiler_the_step_runs_eagerly_after_one_warning(monkeypatch):
    def no_compiler(*args):
        raise RuntimeError("no working C++ compiler")

    monkeypatch.setattr("torch._inductor.compile", no_compiler)
    with pytest.warns(UserWarning, match="no working C"):
        assert_same(make_vae, Trace_ELBO, [(binary(),)])


def test_auto_compiles_only_long_runs():
    pair = make_vae()
    svi = SVI(pair.model, pair.guide, partial(torch.optim.Adam, lr=1e-2), Trace_ELBO())
    svi.planned_steps = COMPILE_FROM - 1
    for _ in range(3):
        svi.step(binary())
    assert compiled_graphs(svi) == 0
    svi.planned_steps = COMPILE_FROM
    svi.step(binary())
    assert compiled_graphs(svi) == 1


def test_compile_must_be_a_known_word():
    pair = make_vae()
    with pytest.raises(ValueError, match="compile must be True, False or 'auto', got 'yes'"):
        SVI(pair.model, pair.guide, torch.optim.Adam, Trace_ELBO(), compile="yes")


def test_fit_compiled_equals_fit_eager():
    histories = []
    for compile in (False, True):
        torch.manual_seed(0)
        run = ppvae.fit(
            make_vae(norm="batch"),
            binary(30),
            binary(10, seed=1),
            epochs=4,
            batch_size=8,
            kl_weight=Linear(2.0),
            compile=compile,
            progress=False,
        )
        histories.append(run.history)
    for eager, compiled in zip(*histories, strict=True):
        assert compiled == pytest.approx(eager, rel=1e-3)  # Adam magnifies rounding in the first steps


def test_a_compiled_run_resumes_bit_for_bit(tmp_path):
    def run(out, epochs, **options):
        torch.manual_seed(0)
        return ppvae.fit(
            make_vae(), binary(30), epochs=epochs, batch_size=8, compile=True, out=out, progress=False, **options
        )

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    parts = run(tmp_path / "parts", 4, resume=True)
    assert parts.history == whole.history
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "parts/model.safetensors").read_bytes()


@pytest.mark.parametrize("make", [make_vae, partial(PPCA, D, K, guide="amortized"), TwoLevels])
def test_compiled_likelihood_equals_the_eager_one(make):
    torch.manual_seed(0)
    pair, x = make(), binary(6)
    eager = ppvae.log_marginal(pair, x, num_samples=1500, compile=False)
    compiled = ppvae.log_marginal(pair, x, num_samples=1500, compile=True)
    torch.testing.assert_close(compiled.values, eager.values, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(compiled.ess, eager.ess, rtol=1e-3, atol=1e-3)


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


@pytest.mark.skipif("PPVAE_DATA" not in os.environ, reason="PPVAE_DATA names no folder with MNIST")
def test_training_curves_on_mnist_agree():
    x = load("mnist", os.environ["PPVAE_DATA"], download=False).train.x[:5000].flatten(1)
    curves = []
    for compile in (False, True):
        torch.manual_seed(0)
        vae = VAE(
            p_z=StandardNormal(10),
            p_x_given_z=ConditionalBernoulli(MLP(10, (64,), 784)),
            q_z_given_x=ConditionalNormal(MLP(784, (64,), (2, 10))),
        )
        batches = Batches(x, batch_size=100, transform=Binarize())
        run = ppvae.fit(vae, batches, binarize(x[:500]), epochs=4, compile=compile, progress=False)
        curves.append([(row["elbo"], row["valid_elbo"]) for row in run.history])
    torch.testing.assert_close(torch.tensor(curves[1]), torch.tensor(curves[0]), rtol=1e-4, atol=0.0)


class Guarded(nn.Module):
    """A pair whose likelihood depends on everything that Python can hold."""

    def __init__(self):
        super().__init__()
        self.p_x_given_z = nn.Linear(K, D)
        self.q_z_given_x = nn.Linear(D, K)
        self.nothing = None
        self.items = [1.0]
        self.table = {"weight": 1.0}
        self.config = Config()
        self.tensor = torch.tensor(1.0)
        self.activation = torch.sigmoid

    def factor(self):
        return (self.nothing or 1.0) * self.items[0] * self.table["weight"] * self.config.weight * self.tensor

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            mean = self.activation(self.p_x_given_z(z)) * self.factor()
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.q_z_given_x(x), 1.0).to_event(1))


class Config:
    """Options of a user's own."""

    weight = 1.0

    def __init__(self):
        self.weight = 1.0


def replace_weight(pair, svi):
    pair.p_x_given_z.weight = nn.Parameter(2 * pair.p_x_given_z.weight.detach())


CHANGES = {
    "None": lambda pair, svi: setattr(pair, "nothing", 3.0),
    "list item": lambda pair, svi: pair.items.__setitem__(0, 3.0),
    "list": lambda pair, svi: setattr(pair, "items", [3.0]),
    "dict item": lambda pair, svi: pair.table.update(weight=3.0),
    "object": lambda pair, svi: setattr(pair.config, "weight", 3.0),
    "tensor": lambda pair, svi: setattr(pair, "tensor", torch.tensor(3.0)),
    "function": lambda pair, svi: setattr(pair, "activation", torch.tanh),
    "forward hook": lambda pair, svi: pair.p_x_given_z.register_forward_hook(lambda m, i, o: 2 * o),
    "forward": lambda pair, svi: setattr(pair.p_x_given_z, "forward", lambda z: z.repeat(1, D // K)),
    "frozen": lambda pair, svi: pair.p_x_given_z.requires_grad_(False),
    "parameter": replace_weight,
    "loss": lambda pair, svi: setattr(svi, "loss", TraceMeanField_ELBO()),
    "model": lambda pair, svi: setattr(svi, "model", lambda x: pair.model(2 * x)),
    "particles": lambda pair, svi: setattr(svi.loss, "num_particles", 4),
    "state": lambda pair, svi: pair.load_state_dict({k: v + 0.1 for k, v in pair.state_dict().items()}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_between_steps_counts(change):
    results = []
    for compile in (False, True):
        torch.manual_seed(0)
        pair = Guarded()
        svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=1e-3), Trace_ELBO(), compile=compile)
        torch.manual_seed(1)
        losses = [svi.step(binary()) for _ in range(3)]
        before = {name: value.clone() for name, value in pair.state_dict().items()}
        CHANGES[change](pair, svi)
        losses += [svi.step(binary()) for _ in range(3)]
        results.append((losses, pair.state_dict()))
    (eager, state), (compiled, compiled_state) = results
    assert compiled == pytest.approx(eager, rel=1e-5)
    for name, value in state.items():
        torch.testing.assert_close(compiled_state[name], value, rtol=1e-5, atol=1e-6, msg=name)
    if change == "frozen":
        assert torch.equal(before["p_x_given_z.weight"], compiled_state["p_x_given_z.weight"])
    if change == "parameter":
        assert not torch.equal(2 * before["p_x_given_z.weight"], compiled_state["p_x_given_z.weight"])


def test_a_condition_around_the_step_counts():
    def run(compile):
        torch.manual_seed(0)
        pair = Guarded()
        svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=1e-3), Trace_ELBO(), compile=compile)
        torch.manual_seed(1)
        losses = []
        for i in range(6):
            x = binary() * (1 if i < 3 else 10)
            with pyro.poutine.condition(data={"x": x}):
                losses.append(svi.step(x))
        return losses

    assert run(True) == pytest.approx(run(False), rel=1e-5)


def test_networks_of_plain_functions_are_guarded_and_restored():
    def run(compile):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(K, D), nn.BatchNorm1d(D), nn.Dropout(0.5))

        def model(x):
            pyro.module("net", net)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(net(z), 1.0).to_event(1), obs=x)

        def guide(x):
            loc = pyro.param("loc", torch.zeros(K))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

        with pyro.get_param_store().scope():
            svi = SVI(model, guide, partial(torch.optim.SGD, lr=1e-3), Trace_ELBO(), compile=compile)
            torch.manual_seed(1)
            losses = [svi.step(binary()) for _ in range(3)]
            net[2].p = 0.0
            losses += [svi.step(binary()) for _ in range(3)]
        return losses, int(net[1].num_batches_tracked)

    (eager, count), (compiled, compiled_count) = run(False), run(True)
    assert compiled == pytest.approx(eager, rel=1e-5)
    assert compiled_count == count == 6


def test_a_guessed_nesting_of_plates_is_settled_before_the_graph():
    svi = assert_same(SemiSupervised, partial(TraceEnum_ELBO, strict_enumeration_warning=False), [(binary(),)])
    assert compiled_graphs(svi) == 1
