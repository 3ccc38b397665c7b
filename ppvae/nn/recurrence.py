"""The recurrence of a GRU and an LSTM as one operation of a traced graph, however many steps there are.

Torch's own unrolls on a CPU: some seventy operations a step with its gradient, which take a compiler minutes. Here the
gradient is written out, and the graph holds two operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, library
from torch.nn import functional as F


@library.custom_op("ppvae::recurrence", mutates_args=())
def recurrence(
    x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, is_lstm: bool
) -> tuple[Tensor, Tensor]:
    """Returns the states ``(n, t, h)`` of sequences ``(n, t, d)``, and what their gradient needs ``(n, t, ...)``.

    Args:
        x: The sequences.
        w_ih: Of the inputs, as torch lays them out: gates r, z, n of a GRU, or i, f, g, o of an LSTM.
        w_hh: Of the states.
        b_ih: Of the inputs.
        b_hh: Of the states.
        is_lstm: Which of them.
    """
    of_x = F.linear(x, w_ih, b_ih).unbind(1)
    state = x.new_zeros(len(x), w_hh.shape[1])
    carried, states, kept = state, [], []
    for gates in of_x:
        of_h = F.linear(state, w_hh, b_hh)
        if is_lstm:
            i, f, g, o = (gates + of_h).chunk(4, -1)
            i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
            before, carried = carried, f * carried + i * g
            state = o * carried.tanh()
            kept.append(torch.cat([i, f, g, o, before, carried.tanh()], -1))
        else:
            (x_r, x_z, x_n), (h_r, h_z, h_n) = gates.chunk(3, -1), of_h.chunk(3, -1)
            r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
            n = (x_n + r * h_n).tanh()
            kept.append(torch.cat([r, z, n, h_n], -1))
            state = n + z * (state - n)
        states.append(state)
    return torch.stack(states, 1), torch.stack(kept, 1)


@recurrence.register_fake
def _(x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, is_lstm: bool) -> tuple[Tensor, Tensor]:
    size = w_hh.shape[1]
    return x.new_empty(*x.shape[:2], size), x.new_empty(*x.shape[:2], (6 if is_lstm else 4) * size)


@library.custom_op("ppvae::recurrence_backward", mutates_args=())
def recurrence_backward(
    grad: Tensor, x: Tensor, w_ih: Tensor, w_hh: Tensor, states: Tensor, kept: Tensor, is_lstm: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of what `recurrence` was given, from that of its states."""
    before = F.pad(states[:, :-1], (0, 0, 1, 0))
    of_state = torch.zeros_like(states[:, 0])
    of_carried = of_state
    of_x, of_h = [], []
    for t in reversed(range(states.shape[1])):
        of_state = of_state + grad[:, t]
        if is_lstm:
            i, f, g, o, carried_before, squashed = kept[:, t].chunk(6, -1)
            of_carried = of_carried + of_state * o * (1 - squashed.square())
            gates = torch.cat(
                [
                    of_carried * g * i * (1 - i),
                    of_carried * carried_before * f * (1 - f),
                    of_carried * i * (1 - g.square()),
                    of_state * squashed * o * (1 - o),
                ],
                -1,
            )
            of_carried = of_carried * f
            of_x.append(gates)
            of_h.append(gates)
            of_state = gates @ w_hh
        else:
            r, z, n, h_n = kept[:, t].chunk(4, -1)
            of_z = of_state * (before[:, t] - n) * z * (1 - z)
            of_n = of_state * (1 - z) * (1 - n.square())
            of_r = of_n * h_n * r * (1 - r)
            of_x.append(torch.cat([of_r, of_z, of_n], -1))
            of_h.append(torch.cat([of_r, of_z, of_n * r], -1))
            of_state = of_state * z + of_h[-1] @ w_hh
    gates_x, gates_h = (torch.stack(of[::-1], 1) for of in (of_x, of_h))
    weights = [gates.flatten(0, 1).mT @ values.flatten(0, 1) for gates, values in ((gates_x, x), (gates_h, before))]
    return gates_x @ w_ih, weights[0], weights[1], gates_x.sum((0, 1)), gates_h.sum((0, 1))


@recurrence_backward.register_fake
def _(
    grad: Tensor, x: Tensor, w_ih: Tensor, w_hh: Tensor, states: Tensor, kept: Tensor, is_lstm: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    bias = w_ih.new_empty(len(w_ih))
    return torch.empty_like(x), torch.empty_like(w_ih), torch.empty_like(w_hh), bias, torch.empty_like(bias)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, w_ih, w_hh, _, _, ctx.is_lstm = inputs
    ctx.save_for_backward(x, w_ih, w_hh, *output)


def _backward(ctx: Any, grad: Tensor, of_kept: Tensor | None) -> tuple[Tensor | None, ...]:
    return (*recurrence_backward(grad, *ctx.saved_tensors, ctx.is_lstm), None)


recurrence.register_autograd(_backward, setup_context=_keep)
