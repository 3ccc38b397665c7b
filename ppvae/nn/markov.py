"""Nets of state-space models: what moves a latent state, and what makes a guide's step of a state and a summary."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppvae._validate import check_count
from ppvae.nn.shapes import Reshape, as_shape


class GatedTransition(nn.Module):
    r"""Location and raw scale of the next state: between a linear map of this one and a net of it.

    .. math:: \mu = (1 - g) \odot (A z + a) + g \odot m, \quad \rho = C \max(m, 0) + c, \qquad
        g = \mathrm{sigmoid}(\mathrm{MLP}(z)), \quad m = \mathrm{MLP}(z)

    A starts as the identity: states stay where they are until something else is learned.

    Args:
        latent_dim: k.
        hidden_dim: Width of the hidden layer of either net.

    Attributes:
        out_shape: ``(2, k)``, what a :class:`ppvae.distributions.ConditionalNormal` takes.

    Raises:
        ValueError: If a size is no positive int.

    References:
        Structured Inference Networks for Nonlinear State Space Models (Krishnan et al. 2017), arXiv 1609.09869: the
        gated transition function of section 5.

    Example:
        >>> import torch
        >>> GatedTransition(20, 64)(torch.zeros(5, 128, 20)).shape
        torch.Size([5, 128, 2, 20])
    """

    def __init__(self, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        k, width = check_count("latent_dim", latent_dim), check_count("hidden_dim", hidden_dim)
        self.in_shape, self.out_shape = (k,), (2, k)
        self.hidden = nn.Linear(k, 2 * width)  # of both nets, side by side
        self.gate = nn.Linear(width, k)
        self.proposal = nn.Linear(width, k)
        self.linear = nn.Linear(k, k)
        self.scale = nn.Linear(k, k)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, z: Tensor) -> Tensor:
        """Maps states ``(..., k)`` to ``(..., 2, k)``."""
        of_gate, of_proposal = F.relu(self.hidden(z)).chunk(2, -1)
        gate, proposal = self.gate(of_gate).sigmoid(), self.proposal(of_proposal)
        loc = self.linear(z).lerp(proposal, gate)
        return torch.stack([loc, self.scale(F.relu(proposal))], -2)


class Combiner(nn.Module):
    r"""What a guide's step is made of: the state before it, and a summary of the data to come.

    .. math:: y = W \tfrac{1}{2} \big(\tanh(V z_{t-1} + v) + h_t\big) + w

    Args:
        latent_dim: k, the size of a state.
        summary_dim: c, the size of a summary.
        out_shape: Event shape of the output; an int means one dimension, ``(2, k)`` is for a normal.

    Raises:
        ValueError: If a size or shape is no positive int.

    References:
        Structured Inference Networks for Nonlinear State Space Models (Krishnan et al. 2017), arXiv 1609.09869: the
        combiner function of section 4.

    Example:
        >>> import torch
        >>> Combiner(20, 64, (2, 20))(torch.zeros(5, 128, 20), torch.zeros(128, 64)).shape
        torch.Size([5, 128, 2, 20])
    """

    def __init__(self, latent_dim: int, summary_dim: int, out_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.out_shape = as_shape(out_shape, "out_shape")
        self.of_state = nn.Linear(check_count("latent_dim", latent_dim), check_count("summary_dim", summary_dim))
        self.out = nn.Linear(summary_dim, math.prod(self.out_shape))
        self.shape = Reshape(math.prod(self.out_shape), self.out_shape)

    def forward(self, z: Tensor, h: Tensor) -> Tensor:
        """Maps states ``(..., k)`` and summaries ``(..., c)``, which broadcast, to ``(..., *out_shape)``."""
        return self.shape(self.out((self.of_state(z).tanh() + h) / 2))
