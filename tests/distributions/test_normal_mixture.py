import pyro
import pyro.distributions as dist
import pytest
import torch

from ppvae.compile.compiled import Compiled
from ppvae.distributions.normal_mixture import NormalMixture

C, K = 50, 8


def mixture(*, dtype=torch.float32, spread=3.0, least=0.05):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(C, generator=generator).to(dtype).requires_grad_()
    loc = (spread * torch.randn(C, K, generator=generator)).to(dtype).requires_grad_()
    scale = (least + torch.rand(C, K, generator=generator)).to(dtype).requires_grad_()
    return logits, loc, scale


def explicit(logits, loc, scale):
    """Pyro's own, whose log_prob subtracts before it squares; in float64."""
    components = dist.Normal(loc.double(), scale.double()).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(logits=logits.double()), components)


def ours(logits, loc, scale):
    return NormalMixture(logits, dist.Normal(loc, scale).to_event(1))


@pytest.mark.parametrize(("spread", "least"), [(1.0, 0.5), (3.0, 0.05), (100.0, 1e-3)])
def test_it_is_exact_where_the_expanded_parts_cancel(spread, least):
    parameters = mixture(spread=spread, least=least)
    expected, actual = explicit(*parameters), ours(*parameters)
    torch.manual_seed(1)
    z = actual.sample((200,))
    assert z.dtype == actual.log_prob(z).dtype == torch.float32
    torch.testing.assert_close(actual.log_prob(z).double(), expected.log_prob(z.double()), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(("scale", "spread"), [(1e-4, 1e3), (1e-6, 1e2), (1e-8, 1.0), (1e-8, 1e6)])
@pytest.mark.parametrize("twins", [False, True])
def test_it_is_exact_however_far_narrow_components_lie_apart(scale, spread, twins):
    """In float64, where the expanded parts lack up to sixteen digits; also where several components overlap."""
    loc = spread * torch.randn(6, 3, dtype=torch.float64)
    if twins:
        loc[1:4] = loc[4] + 2 * scale * torch.randn(3, 3, dtype=torch.float64)
    normal = dist.Normal(loc.requires_grad_(), torch.full_like(loc, scale)).to_event(1)
    logits = torch.randn(6, dtype=torch.float64)
    z = (loc[2] + scale * torch.randn(2, 4, 3, dtype=torch.float64)).detach()
    actual = NormalMixture(logits, normal).log_prob(z)
    expected = dist.MixtureSameFamily(dist.Categorical(logits=logits), normal).log_prob(z)
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-7)
    slopes = [torch.autograd.grad(log_prob.sum(), loc)[0] * scale for log_prob in (actual, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-7, atol=1e-7)


def test_a_compiled_graph_decides_as_eager_does():
    """The same graph is not used for values that it was not traced with."""
    loc = torch.randn(6, 3, dtype=torch.float64)
    p = NormalMixture(torch.zeros(6), dist.Normal(loc, torch.full_like(loc, 1e-6)).to_event(1))
    compiled = Compiled(lambda args: ([p.log_prob(args[0])], None), [])
    for z in (loc, loc, loc * 0.99, loc + 1e6, loc * 0.5):
        torch.testing.assert_close(compiled((z,))[0][0], p.log_prob(z), rtol=1e-14, atol=1e-6)


def test_gradients_are_those_of_the_explicit_mixture():
    parameters, z = mixture(), torch.randn(5, 3, K)
    expected = torch.autograd.grad(explicit(*parameters).log_prob(z.double()).sum(), parameters)
    actual = torch.autograd.grad(ours(*parameters).log_prob(z).sum(), parameters)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_float64_stays():
    p = ours(*mixture(dtype=torch.float64))
    assert p.log_prob(p.sample()).dtype == torch.float64


@pytest.mark.parametrize("num", [1, 7])
def test_in_a_plate_it_is_drawn_and_scored_for_every_datum(num):
    p = ours(*mixture())

    def model():
        with pyro.plate("samples", 3, dim=-2), pyro.plate("data", num):
            return pyro.sample("z", p)

    torch.manual_seed(0)
    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    z = trace.nodes["z"]["value"]
    assert z.shape == (3, num, K)
    assert len(z.flatten(0, 1).unique(dim=0)) == 3 * num
    assert trace.nodes["z"]["log_prob"].shape == (3, num)
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], p.log_prob(z))


def test_values_off_the_support_are_named():
    p = ours(*mixture())
    with pyro.validation_enabled(True), pytest.raises(ValueError, match="within the support"):
        p.log_prob(torch.full((2, K), float("nan")))


def test_no_value_costs_a_tensor_of_components_by_dimensions():
    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                Largest.numel = max(Largest.numel, result.numel())
            return result

    p, z = ours(*mixture()), torch.zeros(1000, K)
    with torch.no_grad(), Largest():
        p.log_prob(z)
    assert Largest.numel <= 1000 * max(C, 2 * K)


def test_only_diagonal_normals_with_one_batch_dimension_are_taken():
    normal = dist.Normal(torch.zeros(C, K), 1.0)
    assert NormalMixture.takes(normal.to_event(1))
    assert NormalMixture.takes(dist.Normal(torch.zeros(C), 1.0))
    assert not NormalMixture.takes(normal)
    assert not NormalMixture.takes(dist.Laplace(torch.zeros(C, K), 1.0).to_event(1))
    assert not NormalMixture.takes(dist.MultivariateNormal(torch.zeros(C, K), torch.eye(K)))


def test_expanding_an_expanded_mixture_leaves_it_as_it_was():
    p = ours(*mixture()).expand([4])
    again = p.expand([2, 4])
    assert (p.batch_shape, again.batch_shape) == ((4,), (2, 4))
    z = again.sample()
    assert z.shape == (2, 4, K)
    torch.testing.assert_close(again.log_prob(z), p.log_prob(z))
    assert p.to_event(1).log_prob(p.sample()).shape == ()
    assert p.batch_shape == (4,)


def test_means_far_from_zero_cost_no_digits():
    p = dist.Normal(torch.full((3, 1), 1e8, dtype=torch.float64), 1.0).to_event(1)
    z = torch.full((1,), 1e8 + 0.5, dtype=torch.float64)
    assert float(NormalMixture(torch.zeros(3), p).log_prob(z)) == pytest.approx(float(p.log_prob(z)[0]))
