import copy
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ppvae import SVI, KLWeight
from ppvae.infer import NonFiniteError
from ppvae.models import PPCA
from tests.infer.pairs import ADAM, TwoLatents, binary, same, small_vae, state, twenty_steps


def joined(a, b):
    """Two tensors side by side, after their leading dims are broadcast."""
    shape = torch.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    return torch.cat([a.expand(*shape, -1), b.expand(*shape, -1)], -1)


class Mixture(nn.Module):
    """A label that both are enumerated over, and a continuous latent."""

    def __init__(self, sequential=False):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.q_y, self.q_z, self.p_x = nn.Linear(6, 3), nn.Linear(9, 4), nn.Linear(5, 6)
        self.guide = config_enumerate(self._guide, "sequential" if sequential else "parallel")

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(logits=torch.zeros(3)))
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.p_x(joined(y, z))).to_event(1), obs=x)

    def _guide(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(logits=self.q_y(x)))
            loc, raw = self.q_z(joined(x, y)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


class Discrete(nn.Module):
    """A latent bit without reparameterisation: score-function gradients."""

    def __init__(self):
        super().__init__()
        self.q, self.p = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.tensor([0.3, -0.5]))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=torch.tensor(0.2)))
            pyro.sample("x", dist.Bernoulli(logits=self.p[0] + self.p[1] * z), obs=x[:, 0])

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.q[0] + self.q[1] * x[:, 0]))


def pyro_twin(pair, optim, loss):
    """`pyro.infer.SVI` on a copy of the pair whose parameters Pyro's way sees, under names of its own."""
    twin = copy.deepcopy(pair)

    def model(*args):
        pyro.module("twin", twin)
        return twin.model(*args)

    return twin, pyro.infer.SVI(model, twin.guide, optim, loss)


def check_like_pyro(pair, x, loss, optim=None, pyro_optim=None):
    twin, theirs = pyro_twin(pair, pyro_optim or pyro.optim.Adam({"lr": 0.01}), copy.deepcopy(loss))
    ours = SVI(pair.model, pair.guide, optim or ADAM, loss)
    expected = twenty_steps(theirs, x)
    assert twenty_steps(ours, x) == pytest.approx(expected, rel=1e-5)
    for name, value in pair.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], rtol=1e-5, atol=1e-6)
    pyro.set_rng_seed(5)
    before, mine = state(pair), ours.evaluate_loss(x)
    pyro.set_rng_seed(5)
    assert mine == pytest.approx(theirs.evaluate_loss(x), rel=1e-5)
    assert same(before, state(pair))


@pytest.mark.parametrize(
    "loss",
    [
        Trace_ELBO(),
        Trace_ELBO(num_particles=3),
        Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
        Trace_ELBO(num_particles=3, vectorize_particles=True),
        TraceMeanField_ELBO(),
        TraceMeanField_ELBO(num_particles=2, vectorize_particles=True),
        RenyiELBO(alpha=0.5, num_particles=3),
        RenyiELBO(num_particles=3, vectorize_particles=True),
        TraceGraph_ELBO(),
        TraceGraph_ELBO(num_particles=2),
    ],
    ids=lambda loss: f"{type(loss).__name__}-{loss.num_particles}-{loss.vectorize_particles}",
)
@pytest.mark.parametrize("make", [small_vae, lambda: TwoLatents(masked=True)], ids=["vae", "two latents, masked"])
def test_losses_and_parameters_of_pyro(make, loss):
    if make is not small_vae and isinstance(loss, TraceMeanField_ELBO):
        make = lambda: small_vae(beta=0.5)  # noqa: E731 (the two latents are no mean field)
    check_like_pyro(make(), binary(8), loss)


@pytest.mark.parametrize("sequential", [False, True])
def test_enumeration_as_in_pyro(sequential):
    check_like_pyro(Mixture(sequential), binary(8), TraceEnum_ELBO(max_plate_nesting=1))


def test_guessed_plate_nesting_with_enumeration():
    check_like_pyro(Mixture(), binary(8), TraceEnum_ELBO())


@pytest.mark.parametrize("loss", [Trace_ELBO(), TraceGraph_ELBO(), RenyiELBO(num_particles=2)], ids=type)
def test_score_function_gradients_as_in_pyro(loss):
    check_like_pyro(Discrete(), binary(8), loss)


@pytest.mark.parametrize("loss", [Trace_ELBO(), TraceGraph_ELBO(), RenyiELBO(num_particles=2)], ids=type)
def test_terms_of_a_graph_with_score_functions(loss):
    """Those of TraceGraph_ELBO are of tensors that know where they come from, and wrap those that are traced."""

    def terms(compile):
        pair = Discrete()
        svi = SVI(pair.model, pair.guide, ADAM, loss, compile=compile)
        pyro.set_rng_seed(3)
        with svi.running():
            return [{name: float(v) for name, v in svi.update(binary(8)).named().items()} for _ in range(4)]

    for compiled, eager in zip(terms(True), terms(False), strict=True):
        assert len(eager) > 1
        assert compiled == pytest.approx(eager, rel=1e-5)


@pytest.mark.parametrize(
    ("compiled", "eager", "make"),
    [
        (JitTrace_ELBO, Trace_ELBO, small_vae),
        (JitTraceMeanField_ELBO, TraceMeanField_ELBO, small_vae),
        (JitTraceGraph_ELBO, TraceGraph_ELBO, small_vae),
        (JitTraceEnum_ELBO, TraceEnum_ELBO, Mixture),
    ],
)
def test_compiled_elbos_give_the_losses_of_those_they_compile(compiled, eager, make):
    x = binary(8)
    losses = [
        twenty_steps(SVI(pair.model, pair.guide, ADAM, kind(max_plate_nesting=1)), x)
        for kind in (compiled, eager)
        for pair in [make()]
    ]
    assert losses[0] == losses[1]


def test_wake_sleep_returns_its_two_losses():
    pair, x = small_vae(), binary(8)
    twin, theirs = pyro_twin(pair, pyro.optim.Adam({"lr": 0.01}), ReweightedWakeSleep(num_particles=2))
    ours = SVI(pair.model, pair.guide, ADAM, ReweightedWakeSleep(num_particles=2))
    expected = torch.tensor(twenty_steps(theirs, x))
    torch.testing.assert_close(torch.tensor(twenty_steps(ours, x)), expected, rtol=1e-5, atol=1e-5)
    for name, value in pair.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: pyro.optim.Adam({"lr": 0.02, "betas": (0.95, 0.999)}),
        lambda: pyro.optim.SGD({"lr": 0.001, "momentum": 0.5}),
        lambda: pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.9, "clip_norm": 0.5}),
        lambda: pyro.optim.Adam({"lr": 0.02}, {"clip_norm": 0.1}),
    ],
    ids=["Adam", "SGD", "ClippedAdam", "clip_args"],
)
def test_pyro_optim_objects(make):
    check_like_pyro(small_vae(), binary(8), Trace_ELBO(), make(), make())


def test_a_plain_pyro_optim_object_is_one_torch_optimizer():
    pair = small_vae()
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    svi.step(binary(4))
    assert isinstance(svi.optimizer, torch.optim.Adam)
    assert sum(len(group["params"]) for group in svi.optimizer.param_groups) == len(list(pair.parameters()))


def test_pyro_schedulers():
    x, pair = binary(8), small_vae()
    make = lambda: pyro.optim.ExponentialLR(  # noqa: E731
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.5}
    )
    ours, theirs = make(), make()
    twin, pyro_svi = pyro_twin(pair, theirs, Trace_ELBO())
    svi = SVI(pair.model, pair.guide, ours, Trace_ELBO())
    for each, schedule in ((svi, ours), (pyro_svi, theirs)):
        pyro.set_rng_seed(0)
        for _ in range(5):
            each.step(x)
            schedule.step()
    for name, value in pair.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("beta", [1.0, 0.25, 0.0])
@pytest.mark.parametrize("particles", [1, 4])
def test_terms_add_up_to_the_loss_and_ignore_the_kl_weight(beta, particles):
    pair, x = TwoLatents(), binary(8)
    svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=0.0), Trace_ELBO(num_particles=particles))
    terms = {}
    for weight in (1.0, beta):
        pyro.set_rng_seed(0)
        with svi.running(), KLWeight(torch.tensor(weight)):
            terms[weight] = svi.update(x)
    assert set(terms[beta].kl) == {"z1", "z2"}
    assert float(terms[beta].loss) == pytest.approx(
        -float(terms[beta].reconstruction) + beta * float(sum(terms[beta].kl.values())), rel=1e-5
    )
    assert terms[beta].named().keys() == {"loss", "reconstruction", "kl_z1", "kl_z2"}
    for name in ("reconstruction", "kl_z1", "kl_z2"):
        torch.testing.assert_close(terms[beta].named()[name], terms[1.0].named()[name], rtol=1e-5, atol=1e-5)
    assert not any(term.requires_grad for term in terms[beta].named().values())


def test_terms_hold_auxiliary_sites_and_no_terms_where_a_latent_is_enumerated():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.Parameter(torch.tensor(0.5))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                a = pyro.sample("a", dist.Normal(self.p, 0.5), infer={"is_auxiliary": True})
                pyro.sample("z", dist.Normal(a, 1.0))

    pair = Auxiliary()
    svi = SVI(pair.model, pair.guide, ADAM, Trace_ELBO())
    terms = svi.update(torch.ones(3))
    assert set(terms.kl) == {"a", "z"}
    assert float(terms.loss) == pytest.approx(-float(terms.reconstruction) + float(sum(terms.kl.values())), rel=1e-5)
    for sequential in (False, True):
        mixture = Mixture(sequential)
        svi = SVI(mixture.model, mixture.guide, ADAM, TraceEnum_ELBO(max_plate_nesting=1))
        assert svi.update(binary(4)).named().keys() == {"loss"}


class NoHostRead(TorchDispatchMode):
    """Fails where a number is read from a tensor: on a GPU, the host would wait there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (make, loss)
        for loss in (Trace_ELBO(), Trace_ELBO(num_particles=2), TraceMeanField_ELBO())
        for make in (small_vae, TwoLatents, lambda: PPCA(6, 2, guide="amortized"))
    ]
    + [(Discrete, Trace_ELBO())],
)
def test_an_update_reads_nothing_from_the_device(make, loss):
    pair, x = make(), binary(8)
    # Adam on the CPU reads its own step count; its fused and capturable forms on a GPU do not.
    svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=0.01), loss, clip_norm=1.0)
    weight = torch.tensor(0.5)
    with svi.running(), pyro.validation_enabled(False), KLWeight(weight), NoHostRead():
        for _ in range(2):
            svi.update(x, weight=1 / 8)
    with pytest.raises(AssertionError), NoHostRead():
        weight.item()


def test_the_fused_adam_step_reads_nothing_either():
    pair, x = small_vae(), binary(8)
    svi = SVI(pair.model, pair.guide, partial(torch.optim.Adam, lr=0.01, fused=True), TraceMeanField_ELBO())
    with svi.running(), pyro.validation_enabled(False), NoHostRead():
        svi.update(x, weight=1 / 8)


def test_no_graph_outlives_a_step():
    import gc
    import weakref

    pair, x = small_vae(), binary(8)
    held = []

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pair.p_z())
            held.append(weakref.ref(z))
            pyro.sample("x", pair.p_x_given_z(z), obs=x)

    svi = SVI(model, pair.guide, ADAM, Trace_ELBO())
    with svi.running():
        terms = svi.update(x)
    gc.collect()
    assert [ref() for ref in held] == [None]
    assert terms.loss.grad_fn is None


def test_the_weight_scales_the_gradient_of_every_kind_of_objective():
    x = binary(8)
    for loss in (Trace_ELBO(), RenyiELBO(num_particles=2), TraceGraph_ELBO()):
        pairs = [small_vae(), small_vae()]
        for pair, weight, lr in zip(pairs, (None, 0.125), (0.01, 0.08), strict=True):
            svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=lr), loss)
            pyro.set_rng_seed(0)
            with svi.running():
                svi.update(x, weight=weight)
        for name, value in pairs[0].state_dict().items():
            torch.testing.assert_close(value, pairs[1].state_dict()[name], rtol=1e-5, atol=1e-6)


def test_a_function_as_loss_and_clip_norm():
    pair, x = small_vae(), binary(8)
    before = state(pair)

    def loss(model, guide, *args):
        return Trace_ELBO().differentiable_loss(model, guide, *args)

    svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=1.0), loss, clip_norm=0.25)
    pyro.set_rng_seed(0)
    assert svi.step(x) > 0
    moved = torch.cat([(value - before[name]).flatten() for name, value in pair.state_dict().items()]).norm()
    assert float(moved) == pytest.approx(0.25, rel=1e-4)


def test_retain_graph_is_handed_on(monkeypatch):
    pair, asked = small_vae(), []
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda t, **options: asked.append(options) or backward(t, **options))
    SVI(pair.model, pair.guide, ADAM, Trace_ELBO(retain_graph=True)).step(binary(4))
    assert asked == [{"retain_graph": True}]


def test_a_method_and_an_autoguide_of_it():
    class Regression(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.tensor(0.0))

        def model(self, x):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(w + self.bias, 1.0), obs=x)

    pair, x = Regression(), torch.tensor([2.0, 3.0])
    guide = AutoNormal(pair.model)
    twenty_steps(SVI(pair.model, guide, ADAM, Trace_ELBO()), x)
    assert not list(pyro.get_param_store().keys())
    assert pair.bias.item() > 0
    assert guide.median()["w"].item() > 0


def test_check_stops_before_the_step_and_drops_the_gradients():
    pair, x = small_vae(), binary(8)
    svi = SVI(pair.model, pair.guide, ADAM, Trace_ELBO())
    before = state(pair)
    x[3, 2] = float("nan")
    with svi.running(), pyro.validation_enabled(False), pytest.raises(NonFiniteError, match="value of site 'z'"):
        svi.update(x, check=True)
    assert same(before, state(pair))
    assert all(p.grad is None for p in pair.parameters())


def test_bad_arguments():
    pair = small_vae()
    with pytest.raises(TypeError, match="optim must be a function"):
        SVI(pair.model, pair.guide, torch.optim.SGD(pair.parameters(), lr=1.0), Trace_ELBO())
    with pytest.raises(TypeError, match=r"loss must be a pyro\.infer ELBO"):
        SVI(pair.model, pair.guide, ADAM, "elbo")
    with pytest.raises(TypeError, match=r"optim must return a torch\.optim\.Optimizer, got list"):
        SVI(pair.model, pair.guide, list, Trace_ELBO()).step(binary(4))
    frozen = small_vae().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        SVI(frozen.model, frozen.guide, ADAM, Trace_ELBO()).setup((binary(4),))


def test_averages_of_baselines_are_no_parameters():
    """What TraceGraph_ELBO keeps in Pyro's store: it is read and written by Pyro at every step, and never trained."""

    class Discrete(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.zeros(()))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Bernoulli(0.5))
                pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)

        def guide(self, x):
            baseline = {"use_decaying_avg_baseline": True}
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Bernoulli(logits=self.a + x), infer={"baseline": baseline})

    pair, x = Discrete(), torch.randn(8)
    svi = SVI(pair.model, pair.guide, partial(torch.optim.Adam, lr=1e-2), TraceGraph_ELBO(), compile=False)
    for _ in range(4):
        svi.step(x)
    assert [len(group["params"]) for group in svi.optimizer.param_groups] == [1]
    assert list(pyro.get_param_store()) == ["__baseline_avg_downstream_cost_z"]
    assert pair.a != 0
    assert [name for name, _ in pair.named_parameters()] == ["a"]
