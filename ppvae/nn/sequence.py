"""Nets over sequences: what is shared by all, and the recurrent ones.

A batch of sequences of several lengths is one tensor of values ``(..., t, d)``, padded to t steps, and how many of them
count, ``lengths`` ``(...)``, or None where all do. What stands in the padding changes no number.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ppvae._internals import is_traced
from ppvae._validate import InputError, check_count, check_number
from ppvae.nn.recurrence import recurrence

Direction = Literal["forward", "backward", "both"]

_CELLS = {"gru": nn.GRU, "lstm": nn.LSTM}


def check_lengths(lengths: Tensor, num_steps: int, *, name: str = "lengths") -> None:
    """Checks that a tensor holds lengths of sequences: its dtype, then its values, which are read from the device.

    Args:
        lengths: Of any shape.
        num_steps: The steps t that sequences are padded to; a length is a whole number from 1 to t.
        name: What the caller calls them, for the error.

    Raises:
        TypeError: If they are no tensor of integers.
        ValueError: If one is out of range.

    Example:
        >>> check_lengths(torch.tensor([3, 8]), 7)
        Traceback (most recent call last):
        ValueError: lengths must be from 1 to 7, the steps that there are, got values from 3 to 8
    """
    _check_whole(lengths, name)
    if torch.compiler.is_exporting() or lengths.numel() == 0:  # what is traced for another program has no values yet
        return
    least, most = (int(bound) for bound in torch.aminmax(lengths))
    if least < 1 or most > num_steps:
        raise ValueError(
            f"{name} must be from 1 to {num_steps}, the steps that there are, got values from {least} to {most}"
        )


def _check_whole(lengths: object, name: str) -> None:
    """Refuses what is no tensor of integers, without a look at its values."""
    if not isinstance(lengths, Tensor):
        raise TypeError(f"{name} must be a tensor of integers, got {type(lengths).__name__}")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"{name} must be of an integer dtype, got {lengths.dtype}")


def within(lengths: Tensor, num_steps: int) -> Tensor:
    """Returns which steps count, ``(..., num_steps)``, of sequences of these lengths ``(...)``.

    Example:
        >>> within(torch.tensor([1, 3]), 3)
        tensor([[ True, False, False],
                [ True,  True,  True]])
    """
    return torch.arange(num_steps, device=lengths.device) < lengths.unsqueeze(-1)


def zero_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Returns values ``(..., t, d)`` with zeros after the end of each sequence."""
    return x if lengths is None else torch.where(within(lengths, x.shape[-2]).unsqueeze(-1), x, 0)


def reversed_within(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Returns sequences ``(..., t, d)`` from their last step to the first; the padding stays behind them.

    Example:
        >>> reversed_within(torch.tensor([[1.0], [2.0], [0.0]]), torch.tensor(2)).squeeze(-1)
        tensor([2., 1., 0.])
    """
    if lengths is None:
        return x.flip(-2)
    step, lengths = torch.arange(x.shape[-2], device=x.device), lengths.unsqueeze(-1)
    place = torch.where(step < lengths, lengths - 1 - step, step)
    return x.gather(-2, place.unsqueeze(-1).expand(x.shape))


def last_within(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Returns the last step that counts, ``(..., d)``, of sequences ``(..., t, d)``.

    Example:
        >>> last_within(torch.tensor([[1.0], [2.0], [0.0]]), torch.tensor(2))
        tensor([2.])
    """
    if lengths is None:
        return x[..., -1, :]
    place = (lengths.long() - 1).unsqueeze(-1).unsqueeze(-1)
    return x.gather(-2, place.expand(*x.shape[:-2], 1, x.shape[-1])).squeeze(-2)


def mean_within(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Returns the mean over the steps that count, ``(..., d)``, of sequences ``(..., t, d)``.

    Example:
        >>> mean_within(torch.tensor([[1.0], [2.0], [9.0]]), torch.tensor(2))
        tensor([1.5000])
    """
    return x.mean(-2) if lengths is None else zero_padding(x, lengths).sum(-2) / lengths.unsqueeze(-1)


class SequenceNet(nn.Module, ABC):
    """A net from sequences ``(..., t, in_dim)`` to as many steps ``(..., t, out_dim)``, whatever stands in the padding.

    Attributes:
        in_dim: Numbers of a step.
        out_dim: Numbers of what it gives for a step.
        causal: Whether what it gives for a step depends on this step and those before it alone.
    """

    in_dim: int
    out_dim: int
    causal: bool

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Maps values ``(..., t, in_dim)`` to ``(..., t, out_dim)``, zero after the end of each sequence.

        Args:
            x: The values; what stands after the end of a sequence must be finite, and changes nothing.
            lengths: How many steps of each sequence count, at least one: integers whose shape broadcasts to the leading
                dims of x; None is all. Values are not read, so that it runs in compiled graphs: see
                :func:`check_lengths`.

        Raises:
            TypeError: If x is no tensor, or lengths are no tensor of integers.
            ValueError: If x is of another shape.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"x of {type(self).__name__} must be a tensor, got {type(x).__name__}")
        if x.dim() < 2 or x.shape[-1] != self.in_dim:
            raise InputError(
                f"x of {type(self).__name__} must have shape (..., steps, {self.in_dim}), got {tuple(x.shape)}"
            )
        if lengths is not None:
            _check_whole(lengths, f"lengths of {type(self).__name__}")
            lengths = lengths.expand(x.shape[:-2])
        return zero_padding(self.steps(x, lengths), lengths)

    @abstractmethod
    def steps(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Maps checked values to what is given for each step; whatever is given after the end becomes zero."""

    def pool(self, h: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Returns one vector ``(..., out_dim)`` of what the net gave for the steps: their mean."""
        return mean_within(h, lengths)


class RNN(SequenceNet):
    r"""A recurrent net over sequences of any length, in either direction or both.

    .. math:: h_t = f(x_t, h_{t-1}), \quad h_0 = 0; \qquad \text{backward: } h_t = f(x_t, h_{t+1}),\quad h_{L+1} = 0

    Backward it begins at the last step that counts, L, of each sequence. ``pool`` gives its last state: that at L,
    backward that at 1, and both side by side.

    Args:
        in_dim: Numbers of a step.
        hidden_dim: Size of the state of one direction.
        cell: ``"gru"`` or ``"lstm"``.
        direction: ``"forward"``, ``"backward"`` or ``"both"``, whose states stand side by side.
        num_layers: Number of layers, each over the states of the one before.
        dropout: Probability of dropping a unit between layers, in [0, 1).

    Raises:
        ValueError: If an option is none of the above.

    References:
        Learning Phrase Representations using RNN Encoder-Decoder (Cho et al. 2014), arXiv 1406.1078.

    Example:
        >>> net = RNN(3, 8, direction="both")
        >>> h = net(torch.zeros(5, 7, 3), lengths := torch.tensor([7, 1, 2, 3, 7]))
        >>> h.shape, net.pool(h, lengths).shape
        (torch.Size([5, 7, 16]), torch.Size([5, 16]))
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        *,
        cell: Literal["gru", "lstm"] = "gru",
        direction: Direction = "forward",
        num_layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_dim, self.hidden_dim = check_count("in_dim", in_dim), check_count("hidden_dim", hidden_dim)
        _check_choice("cell", cell, _CELLS)
        _check_choice("direction", direction, ("forward", "backward", "both"))
        check_number("dropout", dropout, at_least=0, below=1)
        self.direction, self.causal = direction, direction == "forward"
        self.ways = ("forward", "backward") if direction == "both" else (direction,)
        self.out_dim = hidden_dim * len(self.ways)
        sizes = [in_dim, *[self.out_dim] * (check_count("num_layers", num_layers) - 1)]
        self.layers = nn.ModuleList(
            nn.ModuleList(_CELLS[cell](size, hidden_dim, batch_first=True) for _ in self.ways) for size in sizes
        )
        self.dropout = nn.Dropout(dropout)

    def steps(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Runs every layer, each in its directions."""
        layers = cast(Iterable[nn.ModuleList], self.layers)
        for i, layer in enumerate(layers):
            x = self.dropout(x) if i else x
            x = torch.cat([_run(net, x, lengths, way) for way, net in zip(self.ways, layer, strict=True)], -1)
        return x

    def pool(self, h: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Returns the last state of each direction, side by side."""
        ends = zip(self.ways, h.chunk(len(self.ways), -1), strict=True)
        return torch.cat([last_within(of, lengths) if way == "forward" else of[..., 0, :] for way, of in ends], -1)


def _run(net: nn.Module, x: Tensor, lengths: Tensor | None, way: str) -> Tensor:
    """Runs torch's net over the steps from left to right, or from the last one to the first."""
    if way == "backward":
        return reversed_within(_run(net, reversed_within(x, lengths), lengths, "forward"), lengths)
    flat = x.reshape(-1, *x.shape[-2:])
    ours = is_traced() and not torch.compiler.is_exporting()  # what is exported runs without this package
    if ours and not x.is_cuda and not torch.is_autocast_enabled("cpu"):
        weights = (net.weight_ih_l0, net.weight_hh_l0, net.bias_ih_l0, net.bias_hh_l0)
        states, _ = recurrence(flat, *weights, isinstance(net, nn.LSTM))
    else:
        states = net(flat)[0].contiguous()
    return states.reshape(*x.shape[:-1], states.shape[-1])


def _check_choice(name: str, value: Any, choices: Any) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
