"""The recurrence as one operation is torch's own, with its gradient, and a graph is as long whatever the steps."""

import pytest
import torch
from torch import library, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ppvae.nn import RNN
from ppvae.nn.recurrence import recurrence

CELLS = {"gru": nn.GRU, "lstm": nn.LSTM}


@pytest.fixture(params=CELLS)
def cell(request):
    return request.param


def weights_of(net):
    return net.weight_ih_l0, net.weight_hh_l0, net.bias_ih_l0, net.bias_hh_l0


@pytest.mark.parametrize("steps", [1, 7])
def test_states_and_gradients_are_torchs(cell, steps):
    net = CELLS[cell](4, 3, batch_first=True).double()
    x = torch.randn(5, steps, 4, dtype=torch.float64, requires_grad=True)
    expected, found = net(x)[0], recurrence(x, *weights_of(net), cell == "lstm")[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    grad = torch.randn_like(expected)
    inputs = [x, *net.parameters()]
    for a, b in zip(*(torch.autograd.grad(y, inputs, grad) for y in (found, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_it_is_a_sound_operation(cell):
    net = CELLS[cell](4, 3, batch_first=True)
    arguments = (torch.randn(5, 7, 4), *weights_of(net), cell == "lstm")
    library.opcheck(recurrence, arguments, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_a_traced_net_is_as_long_whatever_its_steps_and_gives_the_same(cell, direction):
    net, lengths = RNN(4, 3, cell=cell, direction=direction, num_layers=2), torch.tensor([2, 1, 2])

    def gradients(x):
        total = net.pool(net(x, lengths), lengths).square().sum()
        return (total, *torch.autograd.grad(total, list(net.parameters())))

    sizes = set()
    for steps in (3, 30):
        x = torch.randn(3, steps, 4)
        graph = make_fx(gradients)(x)
        sizes.add(len(graph.graph.nodes))
        for a, b in zip(graph(x), gradients(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert len(sizes) == 1
