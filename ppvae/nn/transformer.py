"""The Transformer over sequences of any length, of either kind: each step sees all, or those up to it alone."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppvae._validate import InputError, check_count, check_flag, check_number
from ppvae.nn.sequence import SequenceNet, within


class Transformer(SequenceNet):
    r"""A Transformer from sequences ``(..., t, dim)`` to ``(..., t, dim)``, with learned positions.

    Each block normalises first:

    .. math:: h' = h + W_o\, \mathrm{softmax}\big(Q K^\top / \sqrt{d} + M\big) V, \qquad h'' = h' + \mathrm{MLP}(h')

    with M = −∞ where a step would see one in the padding or, with ``causal``, a later one.

    Args:
        dim: Width of the residual stream.
        num_positions: The most steps t of a sequence.
        num_heads: Number of attention heads, a divisor of ``dim``.
        num_blocks: Number of blocks.
        causal: Whether each step sees those up to it alone.
        dropout: Probability of dropping a unit of what a block adds, in [0, 1).

    Raises:
        ValueError: If a size is no positive int, or ``num_heads`` does not divide ``dim``.
        TypeError: If ``causal`` is no bool.

    References:
        Attention Is All You Need (Vaswani et al. 2017), arXiv 1706.03762.
        On Layer Normalization in the Transformer Architecture (Xiong et al. 2020), arXiv 2002.04745.

    Example:
        >>> net = Transformer(16, num_positions=20)
        >>> h = net(torch.zeros(5, 7, 16), lengths := torch.tensor([7, 1, 2, 3, 7]))
        >>> h.shape, net.pool(h, lengths).shape
        (torch.Size([5, 7, 16]), torch.Size([5, 16]))
    """

    def __init__(
        self,
        dim: int,
        num_positions: int,
        *,
        num_heads: int = 4,
        num_blocks: int = 2,
        causal: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_dim = self.out_dim = check_count("dim", dim)
        self.num_positions = check_count("num_positions", num_positions)
        if dim % check_count("num_heads", num_heads):
            raise ValueError(f"num_heads must divide dim, {dim}, got {num_heads}")
        self.causal = check_flag("causal", causal)
        check_number("dropout", dropout, at_least=0, below=1)
        self.position = nn.Parameter(0.02 * torch.randn(num_positions, dim))
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, dropout) for _ in range(check_count("num_blocks", num_blocks))
        )
        self.norm = nn.LayerNorm(dim)

    def steps(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Adds the positions, and runs every block.

        Raises:
            ValueError: If there are more steps than positions.
        """
        size = x.shape[-2]
        if size > self.num_positions:
            raise InputError(f"x of Transformer must have at most num_positions={self.num_positions} steps, got {size}")
        h, seen = x + self.position[:size], self._seen(size, lengths, x.device)
        for block in self.blocks:
            h = block(h, seen)
        return self.norm(h)

    def _seen(self, size: int, lengths: Tensor | None, device: torch.device) -> Tensor | None:
        """Which steps each may see, ``(..., t, t)``: one in the padding sees all that count too, and is no NaN."""
        if self.causal:  # nothing after the end is before any step that counts
            return torch.ones(size, size, dtype=torch.bool, device=device).tril()
        return None if lengths is None else within(lengths, size).unsqueeze(-2).expand(*lengths.shape, size, size)


class Block(nn.Module):
    """Attention to the steps that each may see, then an MLP, each added to what is there.

    Args:
        dim: Width.
        num_heads: Number of heads, a divisor of ``dim``.
        dropout: Probability of dropping a unit of what is added.

    Example:
        >>> Block(8, 2, 0.0)(torch.zeros(5, 3, 8)).shape
        torch.Size([5, 3, 8])
    """

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim)
        self.query_key_value, self.attended = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, seen: Tensor | None = None) -> Tensor:
        """Maps ``(..., t, dim)`` to ``(..., t, dim)``; ``seen`` ``(..., t, t)``: which steps each sees."""
        q, k, v = (self._heads(part) for part in self.query_key_value(self.norm(h)).chunk(3, dim=-1))
        mask = seen if seen is None or seen.dim() == 2 else seen.reshape(-1, 1, *seen.shape[-2:])
        message = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(-2, -3).reshape(h.shape)
        h = h + self.dropout(self.attended(message))
        return h + self.dropout(self.mlp(h))

    def _heads(self, x: Tensor) -> Tensor:
        """Maps ``(..., t, dim)`` to ``(n, heads, t, dim / heads)``: the fused kernels take one leading dimension."""
        return x.reshape(-1, x.shape[-2], self.num_heads, x.shape[-1] // self.num_heads).transpose(-2, -3)
