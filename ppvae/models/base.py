"""What the models share: the questions that they answer, and the checks of what they are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppvae._validate import check_count, check_flag
from ppvae.means import code_of, mean_of
from ppvae.nn import check_context


class VAEQueries(nn.Module):
    """Encoding, decoding and sampling, for a model with modules `p_z`, `p_x_given_z` and `q_z_given_x`.

    The queries run the modules as they stand: call `.eval()` first where there is dropout or batch norm.
    """

    p_z: nn.Module
    p_x_given_z: nn.Module
    q_z_given_x: nn.Module

    def encode(self, x: Tensor) -> TorchDistribution:
        """q(z|x) for x of shape (..., *event): its `.mean` is the code of x, its `.sample()` a draw."""
        return self.q_z_given_x(x)

    def decode(self, z: Tensor) -> TorchDistribution:
        """p(x|z) for z of shape (..., k), or (..., *event) where the prior has more event dims."""
        return self.p_x_given_z(z)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x|z] at the code of x, shape (..., *event)."""
        return mean_of(self.decode(code_of(self.encode(x))))

    @torch.no_grad()
    def sample(self, num_samples: int, *, mean: bool = False) -> Tensor:
        """Draws from the model: z ~ p(z), then x ~ p(x|z).

        Args:
            num_samples: n, how many.
            mean: whether to return E[x|z] in place of a draw of x, as most papers' pictures do.

        Returns:
            Data of shape (n, *event).
        """
        check_flag("mean", mean)
        p_x = self.decode(self.p_z().sample((check_count("num_samples", num_samples),)))
        return mean_of(p_x) if mean else p_x.sample()

    @torch.no_grad()
    def interpolate(self, x_from: Tensor, x_to: Tensor, num_steps: int = 9) -> Tensor:
        """E[x|z] along the straight line between the codes of two data.

        Args:
            x_from: data (..., *event).
            x_to: as many data (..., *event).
            num_steps: points on each line, both ends included.

        Returns:
            Data of shape (..., num_steps, *event).
        """
        return mean_of(self.decode(line_between(self.encode(x_from), self.encode(x_to), num_steps)))


def line_between(q_from: TorchDistribution, q_to: TorchDistribution, num_steps: int) -> Tensor:
    """Points on the straight line between two codes, both ends included: (..., num_steps, *event)."""
    check_count("num_steps", num_steps, at_least=2)
    dims = len(q_from.event_shape)
    z_from, z_to = (code_of(q).unsqueeze(-1 - dims) for q in (q_from, q_to))
    t = torch.linspace(0, 1, num_steps, device=z_from.device, dtype=z_from.dtype).reshape(-1, *[1] * dims)
    return torch.lerp(z_from, z_to, t)


class ConditionalQueries(nn.Module, ABC):
    """Encoding, decoding and sampling given y, for a model with a prior `p_z` and these two conditionals.

    The queries run the modules as they stand: call `.eval()` first where there is dropout or batch norm.
    """

    p_z: nn.Module

    @abstractmethod
    def encode(self, x: Tensor, y: Tensor) -> TorchDistribution:
        """q(z|x,y) for x of shape (..., *event) with one y each: its `.mean` is the code of x."""

    @abstractmethod
    def decode(self, z: Tensor, y: Tensor) -> TorchDistribution:
        """p(x|z,y) for z of shape (..., k) and y, whose leading dims broadcast."""

    @torch.no_grad()
    def reconstruct(self, x: Tensor, y: Tensor) -> Tensor:
        """E[x|z,y] at the code of x, shape (..., *event)."""
        return mean_of(self.decode(code_of(self.encode(x, y)), y))

    @torch.no_grad()
    def sample(self, y: Tensor, *, mean: bool = False) -> Tensor:
        """Draws one x for every y: z ~ p(z|y), then x ~ p(x|z,y).

        Args:
            y: conditions (..., *event of y); without a net that declares their event shape, (n, ...).
            mean: whether to return E[x|z,y] in place of a draw of x.

        Returns:
            Data of shape (..., *event).
        """
        event_shape = check_context(self, y, name="y")
        lead = y.shape[: _lead_dims(y, event_shape)]
        p_z = self.p_z(y)
        p_x = self.decode(p_z.sample(lead[: len(lead) - len(p_z.batch_shape)]), y)
        return mean_of(p_x) if mean else p_x.sample()

    @torch.no_grad()
    def style_transfer(self, x: Tensor, y: Tensor, new_y: Tensor) -> Tensor:
        """E[x|z,y] for each of `new_y` at the code of every datum, which is the same for all of them.

        Args:
            x: data (n, *event).
            y: their own conditions (n, *event of y).
            new_y: conditions to decode with (c, *event of y).

        Returns:
            Data of shape (c, n, *event).
        """
        self.check_batch(x, y)
        _check_one_lead_dim(new_y, check_context(self, new_y, name="new_y"), name="new_y", length="c")
        return mean_of(self.decode(code_of(self.encode(x, y)), new_y.unsqueeze(1)))

    def check_batch(self, x: Tensor, y: Tensor) -> None:
        """Checks a batch of n data and their conditions; values of labels are read from the device.

        Raises:
            TypeError: where one is no tensor, or y is of the wrong dtype.
            ValueError: where y is of the wrong shape or length, or holds a label out of range.
        """
        event_shape = check_context(self, y, name="y")
        _check_one_lead_dim(y, event_shape, name="y", length="n")
        check_each(x, y, event_shape)


def check_each(x: Tensor, y: Tensor, event_shape: tuple[int, ...] | None) -> None:
    """Checks that there is one y, of event shape `event_shape`, for every x."""
    lead = y.shape[: _lead_dims(y, event_shape)]
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if x.shape[: len(lead)] != lead:
        raise ValueError(
            f"there must be one y for every x, got x of shape {tuple(x.shape)} "
            f"and y of shape {tuple(y.shape)}{_hint(y, event_shape)}"
        )


def _lead_dims(y: Tensor, event_shape: tuple[int, ...] | None) -> int:
    """How many dims of y lead: one, where no net declares the event shape."""
    return 1 if event_shape is None else y.dim() - len(event_shape)


def _check_one_lead_dim(y: Tensor, event_shape: tuple[int, ...] | None, *, name: str, length: str) -> None:
    if y.dim() == 0 or _lead_dims(y, event_shape) != 1:
        expected = ", ".join([length, *(["..."] if event_shape is None else map(str, event_shape))])
        raise ValueError(f"{name} must have shape ({expected}), got {tuple(y.shape)}{_hint(y, event_shape, name)}")


def _hint(y: Tensor, event_shape: tuple[int, ...] | None, name: str = "y") -> str:
    if event_shape != () or y.dim() < 2:
        return ""
    way = "squeeze(-1) drops the last dim" if y.shape[-1] == 1 else "argmax(-1) turns one-hot rows into class indices"
    return f"; {name}.{way}"


def check_pieces(**pieces: Any) -> None:
    """Checks that every piece is a module.

    Raises:
        TypeError: naming the first that is not.
    """
    for name, piece in pieces.items():
        if not isinstance(piece, nn.Module):
            raise TypeError(f"{name} must be a module that returns a distribution, got {type(piece).__name__}")
