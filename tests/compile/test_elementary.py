"""Slow functions spelt by quick ones: right to the last bits at every number, compiled too, with their gradients."""

import pytest
import torch
import torch.nn.functional as F

from ppvae.compile.arguments import Arguments
from ppvae.compile.elementary import ELEMENTARY, expm1, log1p, softplus
from ppvae.compile.tracing import trace

MAGNITUDES = torch.cat([torch.logspace(-44, 38, 2001), torch.tensor([0.0, torch.inf])])
NUMBERS = torch.cat([MAGNITUDES, -MAGNITUDES, -1 + torch.logspace(-7, 0, 501), torch.tensor([-1.0, torch.nan])])

FUNCTIONS = {
    "log1p": (log1p, torch.log1p),
    "expm1": (expm1, torch.expm1),
    "softplus": (softplus, lambda x: torch.logaddexp(x, torch.zeros((), dtype=x.dtype))),
}

TRACED = {
    "log1p": torch.log1p,
    "expm1": torch.expm1,
    "softplus": F.softplus,
    "softplus of another slope": lambda x: F.softplus(x, 2.0, 15.0),
    "logsigmoid": F.logsigmoid,
    "cross entropy": lambda x: F.binary_cross_entropy_with_logits(x, target_of(x), reduction="none"),
    "mean cross entropy": lambda x: F.binary_cross_entropy_with_logits(x, target_of(x)),
    "weighted cross entropy": lambda x: F.binary_cross_entropy_with_logits(
        x, target_of(x), weight=x.detach().sigmoid(), reduction="sum"
    ),
    "weighted positives": lambda x: F.binary_cross_entropy_with_logits(x, target_of(x), pos_weight=torch.tensor(3.0)),
}


def target_of(x):
    return (x.detach().cos() > 0).to(x.dtype)


def graph_of(function, *args):
    return trace(lambda args: ([function(*args)], None), Arguments(args)).module


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_are_right_to_the_last_bits(name, dtype):
    ours, torchs = FUNCTIONS[name]
    x = NUMBERS.to(dtype)
    exact = torchs(x.double()).to(dtype)
    found = ours(x)
    regular = exact.isfinite() & (exact.abs() > 2 * torch.finfo(dtype).tiny)
    error = ((found - exact) / exact)[regular].abs().max()
    assert error < 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(found[~regular], exact[~regular], rtol=0, atol=torch.finfo(dtype).tiny, equal_nan=True)


@pytest.mark.parametrize("name", TRACED)
def test_a_graph_has_none_of_them_and_gives_the_same_values_and_gradients(name):
    x = torch.linspace(-30, 30, 301) if name != "log1p" else torch.linspace(-0.9, 30, 301)

    def value_and_gradient(x):
        leaf = x.detach().requires_grad_()
        value = TRACED[name](leaf)
        return torch.stack([value.sum().expand(301), torch.autograd.grad(value.sum(), leaf)[0]])

    module = graph_of(value_and_gradient, x)
    (found,) = module(x)
    torch.testing.assert_close(found, value_and_gradient(x), rtol=2e-6, atol=1e-6)
    left = {node.target for node in module.graph.nodes} & set(ELEMENTARY)
    assert bool(left) == (name == "weighted positives")


def test_numbers_that_are_none_of_a_processors_keep_their_own():
    half = torch.randn(3, dtype=torch.bfloat16)
    assert {node.target for node in graph_of(torch.log1p, half).graph.nodes} & set(ELEMENTARY)


@pytest.mark.inductor
def test_the_compiler_keeps_the_bits():
    logs, exps = torch.compile(lambda x: (log1p(x), expm1(x)), dynamic=False)(NUMBERS)
    torch.testing.assert_close(logs, log1p(NUMBERS), rtol=3e-7, atol=0, equal_nan=True)
    torch.testing.assert_close(exps, expm1(NUMBERS), rtol=3e-7, atol=2e-38, equal_nan=True)
