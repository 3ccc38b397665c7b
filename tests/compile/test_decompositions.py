"""Factors of sums and products, which Inductor loses where it fuses them: none is left in a traced graph."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ppvae.compile.arguments import Arguments
from ppvae.compile.decompositions import FACTORS
from ppvae.compile.inductor import compile_graph
from ppvae.compile.tracing import trace
from tests.compile.compiling import assert_same

RANDOM = torch.Generator().manual_seed(0)
M, A, B, V = (torch.randn(*shape, generator=RANDOM) for shape in ((4, 3), (4, 5), (5, 3), (5,)))
STACKED = torch.randn(2, 4, 5, generator=RANDOM), torch.randn(2, 5, 3, generator=RANDOM)


def graph_of(function, *args):
    return trace(lambda args: ([function(*args)], None), Arguments(args)).module


SUMS = {
    "add": lambda m, p: m.add(p, alpha=0.1),
    "add the other way": lambda m, p: p.add(m, alpha=0.1),
    "add in place": lambda m, p: m.mul(0.9).add_(p, alpha=0.1),
    "add to a product in place": lambda m, p: p.add_(m, alpha=-2.0),
    "add a number": lambda m, p: torch.add(p, 3.0, alpha=0.1),
    "add integers": lambda m, p: p.add(torch.arange(3), alpha=0.5),
    "add a number of twice the precision": lambda m, p: p.add(torch.tensor(1.0, dtype=torch.float64), alpha=0.5),
    "sub": lambda m, p: m.sub(p, alpha=0.1),
    "sub in place": lambda m, p: m.clone().sub_(p, alpha=0.1),
    "rsub": lambda m, p: torch.rsub(p, m, alpha=0.1),
    "rsub a number": lambda m, p: torch.rsub(p, 2.0, alpha=0.1),
    "lerp": lambda m, p: torch.lerp(p, m, 0.1),
    "lerp the other way": lambda m, p: torch.lerp(m, p, 0.8),
    "lerp by a tensor": lambda m, p: torch.lerp(p, m, m.sigmoid()),
    "lerp in place": lambda m, p: m.clone().lerp_(p, 0.1),
    "two products": lambda m, p: p.add((A + 1) @ B, alpha=0.1),
    "integers": lambda m, p: (m > 0).long().add((p > 0).long(), alpha=3),
}

PRODUCTS = {
    "addmm": lambda m: torch.addmm(m, A, B, alpha=0.1),
    "addmm with both": lambda m: torch.addmm(m, A, B, alpha=0.1, beta=0.5),
    "addmm in place": lambda m: m.clone().addmm_(A, B, beta=0.9, alpha=0.1),
    "addmm of nothing": lambda m: torch.addmm(m / 0, A, B, beta=0),
    "addmv": lambda m: torch.addmv(m[:, 0], A, V, alpha=0.1, beta=0.5),
    "baddbmm": lambda m: torch.baddbmm(m, *STACKED, alpha=0.1, beta=0.5),
    "addbmm": lambda m: torch.addbmm(m, *STACKED, alpha=0.1, beta=0.5),
    "addr": lambda m: torch.addr(m, A[:, 0], B[0], alpha=0.1, beta=0.5),
}


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_is_traced_without_its_factor_and_of_the_same_value(name):
    check(graph_of(lambda m, a, b: SUMS[name](m, a @ b), M, A, B), SUMS[name](M, A @ B), M, A, B)


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_is_traced_without_its_factors_and_of_the_same_value(name):
    check(graph_of(PRODUCTS[name], M), PRODUCTS[name](M), M)


def check(module, expected, *args):
    (found,) = module(*args)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected)
    for node in module.graph.nodes:
        assert not {"alpha", "beta"} & set(node.kwargs)
        assert "lerp" not in str(node.target)


def layer(x):
    return torch.nn.functional.linear(x, B.T.to(x.dtype), M[0].to(x.dtype)).relu()


def test_a_product_with_a_matrix_and_one_in_half_precision_are_left_as_they_are():
    for module in (graph_of(lambda m: torch.addmm(m, A, B), M), graph_of(layer, A.bfloat16())):
        assert torch.ops.aten.addmm.default in {node.target for node in module.graph.nodes}


class Operations(TorchDispatchMode):
    """Which operations run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.inductor
def test_a_bias_is_added_with_what_comes_after_the_product():
    """By torch's `addmm` it is written to every row first, and read back."""

    def step(args):
        x = args[0].detach().requires_grad_()
        y = layer(layer(x) @ B.T)
        return [y.detach(), *torch.autograd.grad(y.sum(), x)], None

    traced = trace(step, Arguments((A,)))
    inputs = [A, *traced.lift_tensors()]
    compiled = compile_graph(traced.module, inputs)
    with Operations() as ran:
        found = compiled(*inputs)
    assert "aten::mm.out" in ran.names
    assert not [name for name in ran.names if "addmm" in name]
    torch.testing.assert_close(found, step((A,))[0])


@pytest.mark.parametrize("operation", FACTORS, ids=str)
def test_what_has_no_factor_is_left_to_the_operation_itself(operation):
    if "lerp" not in str(operation):
        arguments = [a for a in operation._schema.arguments if a.name not in ("alpha", "beta")]
        tensors = [M if isinstance(a.type, torch.TensorType) else 2.0 for a in arguments]  # no bias, which has one dim
        assert FACTORS[operation](*tensors) is NotImplemented


@pytest.mark.inductor
def test_no_factor_is_lost_where_the_compiler_fuses_sums_into_products():
    """All in one graph, each with a product of its own: the compiler fuses only what nobody else uses."""

    def compute(args):
        m, a, b = args
        of_sums = [form(m, (a * (i + 1)) @ b) for i, form in enumerate(SUMS.values())]
        return [*of_sums, *(form(m) for form in PRODUCTS.values())], None

    expected, _ = compute((M, A, B))
    traced = trace(compute, Arguments((M, A, B)))
    constants = traced.lift_tensors()
    found = compile_graph(traced.module, [M, A, B, *constants])(M, A, B, *constants)
    for name, one, other in zip([*SUMS, *PRODUCTS], found, expected, strict=True):
        torch.testing.assert_close(one, other, msg=name, rtol=1e-4, atol=1e-4)


class MovingCodes(torch.nn.Module):
    """A codebook that its guide moves to the codes which it meets: x ~ N(decoded(c_k), 1), k the nearest."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(12, 3), torch.nn.Linear(3, 12)
        self.register_buffer("codes", torch.randn(4, 3))

    def code(self, z: Tensor) -> Tensor:
        return (z.unsqueeze(-2) - self.codes).square().sum(-1).argmin(-1)

    def model(self, x):
        with pyro.plate("data", len(x)):
            code = pyro.sample("code", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(code), 1.0).to_event(1), obs=x)

    def guide(self, x):
        z = self.encoder(x)
        one_hot = torch.nn.functional.one_hot(self.code(z), 4).to(z.dtype)
        with torch.no_grad():
            self.codes.mul_(0.9).add_(one_hot.T @ z, alpha=0.1)
        with pyro.plate("data", len(x)):
            pyro.sample("code", dist.Normal(self.codes[one_hot.argmax(-1)] + z, 1.0).to_event(1))


@pytest.mark.inductor
@pytest.mark.slow
def test_a_codebook_of_moving_averages_trains_compiled_as_it_does_eagerly(recwarn):
    svi = assert_same(MovingCodes, Trace_ELBO, [(torch.randn(8, 12),)])
    assert svi._compiled.num_graphs == 1
    assert not [w for w in recwarn if "compiled" in str(w.message)]
