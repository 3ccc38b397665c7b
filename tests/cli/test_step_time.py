"""The nets of a step are found and run again as they were, and each way has as many turns as any other."""

import pyro
import pytest
import torch
from torch import nn

from ppvae.cli import step_time
from ppvae.cli.step_time import StepTime, calls_of_nets, time_step
from ppvae.distributions import ConditionalNormal, StandardNormal
from ppvae.infer import SVI
from ppvae.models import VAE
from ppvae.nn import MLP

CPU = torch.device("cpu")


class Clock:
    """Time that passes where a test says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def pass_by(self, milliseconds):
        self.now += milliseconds / 1000


def small():
    torch.manual_seed(0)
    return VAE(StandardNormal(2), ConditionalNormal(MLP(2, (5,), (2, 6))), ConditionalNormal(MLP(6, (5,), (2, 2))))


def calls_of_a_step(pair, x):
    svi = SVI(pair.model, pair.guide, torch.optim.SGD, pyro.infer.Trace_ELBO(), owner=pair)
    with calls_of_nets(pair) as calls:
        svi.step(x)
    return calls


def test_the_outermost_nets_are_noted_with_what_they_were_given():
    pair, x = small(), torch.randn(7, 6)
    encoder, decoder = calls_of_a_step(pair, x)
    assert encoder.net is pair.q_z_given_x.net
    assert decoder.net is pair.p_x_given_z.net
    assert torch.equal(encoder.inputs[0], x)
    assert not encoder.inputs[0].requires_grad
    assert decoder.inputs[0].shape == (7, 2)
    assert decoder.inputs[0].requires_grad  # a step needs the gradient of the code, too
    assert decoder.inputs[0].is_leaf
    assert not any(module._forward_hooks for module in pair.modules())


def test_running_a_call_again_is_its_forward_and_backward_pass():
    pair, x = small(), torch.randn(7, 6)
    _, decoder = calls_of_a_step(pair, x)
    pair.zero_grad()
    decoder.run()
    expected = [p.grad.clone() for p in decoder.net.parameters()]
    pair.zero_grad()
    decoder.net(decoder.inputs[0]).sum().backward()
    for p, gradient in zip(decoder.net.parameters(), expected, strict=True):
        assert torch.equal(p.grad, gradient)


def test_options_and_several_outputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(3, 2)

        def forward(self, x, *, scale):
            return self.lin(x), scale * self.lin(x)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Two()

    pair = Outer()
    with calls_of_nets(pair) as calls:
        pair.net(torch.ones(4, 3), scale=2.0)
    (call,) = calls
    assert call.net is pair.net
    call.run()
    assert torch.equal(pair.net.lin.bias.grad, torch.full((2,), 12.0))  # 4 rows, once and twice


def test_medians_of_equally_many_turns(monkeypatch):
    clock, turns = Clock(), []

    def way(name, milliseconds):
        def run():
            turns.append(name)
            clock.pass_by(milliseconds[turns.count(name) % len(milliseconds)])

        return run

    monkeypatch.setattr(step_time, "time", clock)
    pair, x = small(), torch.randn(7, 6)
    calls = calls_of_a_step(pair, x)
    handle = calls[0].net.register_forward_hook(lambda *_: clock.pass_by(1.5))
    found = time_step(way("eager", [4.0, 6.0, 5.0]), way("compiled", [2.0]), calls, num_data=7, device=CPU)
    handle.remove()
    assert found == StepTime(7, pytest.approx(5.0), pytest.approx(1.5), pytest.approx(2.0))
    assert turns.count("eager") == turns.count("compiled") == 100 + step_time.WARM
    assert all(p.grad is None for p in calls[0].net.parameters())
    assert found.summary() == (
        "a training step on 7 data takes 5 ms, its nets alone, forward and backward, 1.5 ms: 70% goes on around them; "
        "compiled it takes 2 ms"
    )


def test_a_slow_step_has_few_turns(monkeypatch):
    clock, turns = Clock(), []
    monkeypatch.setattr(step_time, "time", clock)

    def slow():
        turns.append(1)
        clock.pass_by(3000)

    assert time_step(slow, None, [], num_data=7, device=CPU).summary() == "a training step on 7 data takes 3e+03 ms"
    assert len(turns) == 1 + step_time.WARM
