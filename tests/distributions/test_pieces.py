"""Flexible priors and posteriors, alone and in a VAE: what must hold for each of them."""

import copy
import gc
import math
import weakref
from functools import partial

import pyro
import pytest
import torch
from pyro.distributions import transforms
from pyro.distributions.torch_transform import ComposeTransformModule
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.autograd.functional import jacobian

import ppvae
from ppvae.compile.arguments import Arguments
from ppvae.compile.tracing import trace
from ppvae.distributions import (
    ConditionalBernoulli,
    ConditionalMultivariateNormal,
    ConditionalNormal,
    FlowPosterior,
    FlowPrior,
    MixturePrior,
    StandardNormal,
    VampPrior,
)
from ppvae.models import PPCA, VAE
from ppvae.nn import MLP

D, K, N = 6, 2, 7


def own_transforms(autoregressive):
    """A user's own: Pyro's modules, one of them inside another, an inverse, and one without parameters."""
    return [
        autoregressive,
        transforms.Permute(torch.tensor([1, 0])),
        ComposeTransformModule([transforms.affine_coupling(K, hidden_dims=[8])]),
    ]


def own_posterior():
    own = own_transforms(transforms.affine_autoregressive(K, [8]))
    return FlowPosterior(MLP(D, (8,), (4, K)), flow=[*own, transforms.conditional_affine_coupling(K, 2 * K, [8])])


def own_prior():
    return FlowPrior(K, flow=own_transforms(transforms.affine_autoregressive(K, [8]).inv))


POSTERIORS = {
    "full": lambda: ConditionalMultivariateNormal(MLP(D, (8,), 5)),
    "iaf": lambda: FlowPosterior(MLP(D, (8,), (4, K)), flow="iaf", hidden_dims=8),
    "planar": lambda: FlowPosterior(MLP(D, (8,), (3, K)), flow="planar", hidden_dims=8),
    "householder": lambda: FlowPosterior(MLP(D, (8,), (3, K)), flow="householder", hidden_dims=8),
    "spline": lambda: FlowPosterior(MLP(D, (8,), (4, K)), flow="spline", hidden_dims=(8, 8)),
    "own": own_posterior,
}
PRIORS = {
    "mixture": lambda: MixturePrior(4, K),
    "full mixture": lambda: MixturePrior(3, K, covariance="full"),
    "maf": lambda: FlowPrior(K, flow="maf", hidden_dims=8),
    "spline": lambda: FlowPrior(K, flow="spline", hidden_dims=8),
    "own": own_prior,
}
FLOWS = [name for name in POSTERIORS if name != "full"]
FLOWS_IN_PAIRS = [f"q {name}" for name in FLOWS] + ["p maf", "p spline", "p own"]


def diagonal():
    return ConditionalNormal(MLP(D, (8,), (2, K)))


def make_vae(prior=StandardNormal, posterior=diagonal, seed=0):
    torch.manual_seed(seed)
    q_z_given_x = posterior()
    p_z = StandardNormal(K) if prior is StandardNormal else prior()
    return VAE(p_z, ConditionalBernoulli(MLP(K, (8,), D)), q_z_given_x)


def make_vamp(posterior=diagonal, seed=0):
    vae = make_vae(posterior=posterior, seed=seed)
    vae.p_z = VampPrior(vae.q_z_given_x, torch.rand(5, D))
    return vae


PAIRS = {
    **{f"q {name}": partial(make_vae, posterior=make) for name, make in POSTERIORS.items()},
    **{f"p {name}": partial(make_vae, prior=make) for name, make in PRIORS.items()},
    "p vamp": make_vamp,
    "p vamp, q iaf": partial(make_vamp, POSTERIORS["iaf"]),
    "p maf, q iaf": partial(make_vae, prior=PRIORS["maf"], posterior=POSTERIORS["iaf"]),
}


def binary(n=N, seed=0):
    return torch.bernoulli(torch.full((n, D), 0.4), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=POSTERIORS)
def posterior(request):
    torch.manual_seed(0)
    return POSTERIORS[request.param]()


@pytest.fixture(params=PRIORS)
def prior(request):
    torch.manual_seed(0)
    return PRIORS[request.param]()


def test_posterior_has_leading_dims_and_independent_rows(posterior):
    x = torch.randn(3, 1, D)
    q = posterior(x)
    assert (q.batch_shape, q.event_shape) == ((3, 1), (K,))
    z = q.expand([3, 5]).sample((2,))
    assert z.shape == (2, 3, 5, K)
    rows = [posterior(x[i, 0]).log_prob(z[s, i, j]) for s in range(2) for i in range(3) for j in range(5)]
    torch.testing.assert_close(q.log_prob(z), torch.stack(rows).reshape(2, 3, 5), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(q.log_prob(z[0, 0, 0]).shape, torch.Size([3, 1]))


def test_prior_ignores_its_context_and_broadcasts(prior):
    p = prior(torch.zeros(7, 3))
    assert (p.batch_shape, p.event_shape) == ((), (K,))
    z = p.sample((3, 5))
    assert z.shape == (3, 5, K)
    rows = [prior().log_prob(z[i, j]) for i in range(3) for j in range(5)]
    torch.testing.assert_close(p.expand([5]).log_prob(z), torch.stack(rows).reshape(3, 5), rtol=1e-4, atol=1e-4)


def flow_of(name):
    vae = PAIRS[name]()
    return vae.q_z_given_x(torch.randn(D)) if name.startswith("q") else vae.p_z()


def push(flow, value):
    for transform in flow.transforms:
        value = transform(value)
    return value


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", FLOWS_IN_PAIRS)
def test_change_of_volume_is_that_of_autograd(name, seed):
    flow = flow_of(name)
    torch.manual_seed(seed)
    base = flow.base_dist.sample()
    jacobian_matrix = jacobian(partial(push, flow), base)
    expected = flow.base_dist.log_prob(base) - torch.linalg.slogdet(jacobian_matrix)[1]
    torch.testing.assert_close(flow.log_prob(push(flow, base)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", FLOWS_IN_PAIRS)
def test_any_value_is_scored_by_the_inverse_with_its_gradients(name, seed):
    vae = PAIRS[name]()
    parameters = list(vae.p_z.parameters() if name.startswith("p") else vae.q_z_given_x.flow.parameters())
    flow = vae.q_z_given_x(torch.randn(D)) if name.startswith("q") else vae.p_z()
    torch.manual_seed(seed)
    base = flow.base_dist.sample().requires_grad_()
    z = push(flow, base)
    scored = flow.log_prob(z)  # as a function of the base and the parameters: from what it was made of
    gradients = partial(torch.autograd.grad, retain_graph=True, allow_unused=True, materialize_grads=True)
    at_base, *at_parameters = gradients(scored, [base, *parameters])
    gradient = torch.linalg.solve(jacobian(partial(push, flow), base.detach()).T, at_base)
    moved = gradients(z, parameters, gradient)
    away = z.detach().clone().requires_grad_()
    inverted = flow.log_prob(away)
    torch.testing.assert_close(inverted, scored, rtol=1e-3, atol=1e-3)
    found, *found_parameters = gradients(inverted, [away, *parameters])
    torch.testing.assert_close(found, gradient, rtol=1e-2, atol=1e-2)
    for a, b, shift in zip(found_parameters, at_parameters, moved, strict=True):
        torch.testing.assert_close(a, b - shift, rtol=1e-2, atol=1e-2)


def grid(half_width=14.0, points=351):
    line = torch.linspace(-half_width, half_width, points)
    return torch.cartesian_prod(line, line), 2 * math.log(2 * half_width / (points - 1))


@pytest.mark.parametrize("name", [name for name in PAIRS if "," not in name])
@torch.no_grad()
def test_density_integrates_to_one(name):
    vae, (z, log_cell) = PAIRS[name](), grid()
    density = vae.q_z_given_x(torch.randn(D)) if name.startswith("q") else vae.p_z()
    assert math.isclose((density.log_prob(z).logsumexp(0) + log_cell).exp(), 1, abs_tol=2e-3)


@pytest.mark.parametrize("name", PAIRS)
def test_training_reaches_every_parameter(name):
    vae, x = PAIRS[name](), binary(32)
    before = {key: p.detach().clone() for key, p in vae.named_parameters()}
    svi = ppvae.infer.SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=1e-2), Trace_ELBO())
    losses = [svi.step(x) for _ in range(5)]
    assert all(map(math.isfinite, losses))
    for key, p in vae.named_parameters():
        assert p.isfinite().all(), key
        assert (p != before[key]).any(), key


@pytest.mark.parametrize("name", PAIRS)
def test_losses_agree_in_every_form(name):
    """Many particles, vectorized or not, and the KL in closed form where there is one, or sampled."""
    vae, x = PAIRS[name](), binary(2)
    vectorized = {"num_particles": 5_000, "vectorize_particles": True, "max_plate_nesting": 1}
    torch.manual_seed(1)
    trace_elbo = Trace_ELBO(**vectorized).loss(vae.model, vae.guide, x)
    mean_field = TraceMeanField_ELBO(**vectorized).loss(vae.model, vae.guide, x)
    assert math.isclose(trace_elbo, mean_field, abs_tol=0.2)
    assert math.isclose(trace_elbo, -float(ppvae.elbo(vae, x, num_samples=5_000).values.sum()), abs_tol=0.2)


@pytest.mark.parametrize("name", PAIRS)
def test_marginal_likelihood_is_the_quadrature(name):
    vae, x, (z, log_cell) = PAIRS[name](), binary(3), grid()
    vae.q_z_given_x.min_scale = 1.5  # tails that are heavy enough for errors to mean something
    with torch.no_grad():
        log_joint = vae.p_z().log_prob(z) + vae.p_x_given_z(z).log_prob(x.unsqueeze(1))
    exact = log_joint.double().logsumexp(-1) + log_cell
    marginal = ppvae.log_marginal(vae, x, num_samples=5_000)
    assert ((marginal.values - exact).abs() < 5 * marginal.std_error + 2e-3).all()


@pytest.mark.parametrize("name", PAIRS)
def test_weights_are_saved_once_and_read_back(name, tmp_path):
    vae, x = PAIRS[name](), binary()
    state = vae.state_dict()
    assert len({value.data_ptr() for value in state.values()}) == len(state)
    other = ppvae.load(PAIRS[name](seed=1), ppvae.save(vae, tmp_path / "vae.safetensors"))
    z = torch.randn(N, K)
    for a, b in ((vae.p_z(), other.p_z()), (vae.q_z_given_x(x), other.q_z_given_x(x))):
        assert torch.equal(a.log_prob(z), b.log_prob(z))


@pytest.mark.parametrize("name", PAIRS)
def test_a_copy_after_a_step_is_independent(name):
    vae, x, z = PAIRS[name](), binary(), torch.randn(N, K)
    Trace_ELBO().loss_and_grads(vae.model, vae.guide, x)
    twin = copy.deepcopy(vae)
    before = twin.p_z().log_prob(z) + twin.q_z_given_x(x).log_prob(z)
    with torch.no_grad():
        for p in vae.parameters():
            p.add_(0.1)
    assert torch.equal(twin.p_z().log_prob(z) + twin.q_z_given_x(x).log_prob(z), before)
    # The same values scored after the step get the density of after it.
    assert not torch.equal(vae.p_z().log_prob(z) + vae.q_z_given_x(x).log_prob(z), before)


@pytest.mark.parametrize("name", PAIRS)
def test_the_traced_step_is_the_eager_one(name):
    vae, elbo = PAIRS[name](), Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)

    def compute(args):
        loss = elbo.differentiable_loss(vae.model, vae.guide, *args)
        return [loss, *torch.autograd.grad(loss, list(vae.parameters()))], None

    def seeded(function, *args):
        torch.manual_seed(2)
        return function(*args)

    traced, x = trace(compute, Arguments((binary(),))), binary(seed=1)
    expected, _ = seeded(compute, (x,))
    for a, b in zip(seeded(traced.module, x)[: len(expected)], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("with_and_without_inductor")
@pytest.mark.parametrize("name", ["p maf, q iaf"])
def test_the_compiled_step_is_the_eager_one(name):
    results = []
    for compile in (False, True):
        vae = PAIRS[name]()
        svi = ppvae.infer.SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=1e-2), Trace_ELBO(), compile=compile)
        torch.manual_seed(1)
        losses = [svi.step(binary()) for _ in range(3)]
        ppvae.elbo(vae, binary())  # leaves nothing on the modules that would cost a new graph
        results.append(torch.tensor([*losses, svi.step(binary())]))
    assert (svi._compiled.num_graphs, svi._compiled._retraces) == (1, 0)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FLOWS)
def test_a_draw_is_scored_with_what_it_was_made_of(name):
    torch.manual_seed(0)
    q_z_given_x = POSTERIORS[name]()
    calls = []

    def guide(x):
        with pyro.plate("particles", 3, dim=-2), pyro.plate("data", len(x)):
            pyro.sample("z", q_z_given_x(x))

    tracer = pyro.poutine.trace(guide).get_trace(binary())
    q_z_given_x(binary(seed=1)).sample()  # another use before this one is scored
    for module in q_z_given_x.flow.modules():
        module.register_forward_hook(lambda *_: calls.append(1))
    tracer.compute_log_prob()
    assert not calls
    value, density = tracer.nodes["z"]["value"], tracer.nodes["z"]["log_prob"]
    torch.testing.assert_close(q_z_given_x(binary()).log_prob(value.detach()), density, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [*FLOWS, "maf"])
def test_tensors_are_freed_without_the_collector(name):
    torch.manual_seed(0)
    gc.collect()
    gc.disable()
    try:
        q = POSTERIORS[name]()(binary()) if name in POSTERIORS else PRIORS[name]()().expand([N])
        z = q.rsample()
        q.log_prob(z).sum().backward()
        freed = weakref.ref(z)
        del q, z
        assert freed() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", [*FLOWS, "full"])
def test_densities_are_in_full_precision_under_autocast(name):
    torch.manual_seed(0)
    posterior = POSTERIORS[name]()
    h = posterior.net(torch.randn(N, D)).bfloat16()
    posterior.net = nn.Identity()
    if name != "full":
        posterior.net.out_shape = h.shape[1:]
    results = []
    for autocast in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            z = posterior(h).rsample()
            results.append((z, posterior(h).log_prob(z.clone())))
            assert results[-1][1].dtype == torch.float32
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def correlated_ppca(posterior):
    """PPCA whose posteriors are strongly correlated, with a guide of the test's."""
    torch.manual_seed(0)
    ppca = PPCA(3, K)
    with torch.no_grad():
        ppca.p_x_given_z.net[0].weight.copy_(torch.tensor([[2.0, 2.0], [1.0, 1.2], [0.3, -0.1]]))
        ppca.p_x_given_z.raw_scale.fill_(math.log(math.expm1(0.6)))
    x = ppca.sample(64)
    exact, guide = ppca.log_prob(x).detach(), ppca.q_z_given_x
    ppca.q_z_given_x = posterior
    ppca.p_x_given_z.requires_grad_(False)
    return ppca, x, exact, guide(x)


@pytest.mark.parametrize("flow", ["iaf", "householder"])
def test_a_trained_flow_is_closer_than_any_diagonal_normal(flow):
    torch.manual_seed(0)
    posterior = FlowPosterior(MLP(3, (), (4, K)), flow=flow, hidden_dims=16)
    ppca, x, exact, p_z_given_x = correlated_ppca(posterior)
    precision = p_z_given_x.precision_matrix[0]
    gap = 0.5 * float(precision.diagonal().log().sum() - precision.logdet())  # of the best diagonal normal
    assert gap > 0.5
    svi = ppvae.infer.SVI(ppca.model, ppca.guide, partial(torch.optim.Adam, lr=1e-2), Trace_ELBO())
    for _ in range(300):
        svi.step(x)
    elbo = ppvae.elbo(ppca, x, num_samples=500).values
    assert float((exact - elbo).mean()) < 0.5 * gap


def test_the_full_covariance_is_exact_for_ppca():
    posterior = ConditionalMultivariateNormal(MLP(3, (), 5))
    ppca, x, exact, p_z_given_x = correlated_ppca(posterior)
    tril = p_z_given_x.scale_tril[0].detach()
    weight, bias = ppca.p_x_given_z.net[0].weight, ppca.p_x_given_z.net[0].bias
    slope = p_z_given_x.covariance_matrix[0] @ weight.T / 0.6001**2
    raw = [math.log(math.expm1(tril[0, 0] - 1e-4)), tril[1, 0], math.log(math.expm1(tril[1, 1] - 1e-4))]
    with torch.no_grad():
        posterior.net[0].weight.copy_(torch.cat([slope, torch.zeros(3, 3)]))
        posterior.net[0].bias.copy_(torch.cat([-slope @ bias, torch.tensor(raw)]))
    torch.testing.assert_close(ppvae.elbo(ppca, x, num_samples=1).values.float(), exact, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("make", [POSTERIORS["iaf"], lambda: FlowPrior(K, hidden_dims=8)])
def test_a_flow_in_half_precision_is_refused_with_the_way_to_train_in_it(make):
    with pytest.raises(
        TypeError, match=r"a flow needs its parameters in float32 or float64, got torch.bfloat16: .*autocast"
    ):
        make().to(torch.bfloat16)(torch.zeros(N, D, dtype=torch.bfloat16))
