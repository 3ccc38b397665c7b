"""A causal Transformer: of sequences of classes, each seen by those after it alone."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppvae._validate import check_count, check_number
from ppvae.nn.shapes import InputError


class CausalTransformer(nn.Module):
    r"""A Transformer from classes ``(..., P)`` to logits ``(..., P, K)``, those at p of the classes before p alone.

    The sequence is moved by one position, a learned token in front of it. Each block normalises first:

    .. math:: h' = h + W_o\, \mathrm{softmax}\big(Q K^\top / \sqrt{d} + M\big) V, \qquad h'' = h' + \mathrm{MLP}(h')

    with M = −∞ where a position would see a later one.

    Args:
        num_classes: Number of classes K.
        num_positions: Length P of a sequence.
        dim: Width of the residual stream.
        num_heads: Number of attention heads, a divisor of ``dim``.
        num_blocks: Number of blocks.
        dropout: Probability of dropping a unit of what a block adds, in [0, 1).

    Raises:
        ValueError: If a size is no positive int, or ``num_heads`` does not divide ``dim``.

    References:
        Attention Is All You Need (Vaswani et al. 2017), arXiv 1706.03762.
        On Layer Normalization in the Transformer Architecture (Xiong et al. 2020), arXiv 2002.04745.

    Example:
        >>> CausalTransformer(512, 16)(torch.zeros(5, 128, 16, dtype=torch.long)).shape
        torch.Size([5, 128, 16, 512])
    """

    def __init__(
        self,
        num_classes: int,
        num_positions: int,
        *,
        dim: int = 64,
        num_heads: int = 4,
        num_blocks: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes, num_positions = (
            check_count("num_classes", num_classes),
            check_count("num_positions", num_positions),
        )
        self.in_shape, self.out_shape = (num_positions,), (num_positions, num_classes)
        check_count("dim", dim)
        if dim % check_count("num_heads", num_heads):
            raise ValueError(f"num_heads must divide dim, {dim}, got {num_heads}")
        check_number("dropout", dropout, at_least=0, below=1)
        self.embed = nn.Embedding(num_classes + 1, dim)  # the last one stands in front
        self.position = nn.Parameter(0.02 * torch.randn(num_positions, dim))
        blocks = (CausalBlock(dim, num_heads, dropout) for _ in range(check_count("num_blocks", num_blocks)))
        self.blocks = nn.Sequential(*blocks)
        self.out = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))

    def forward(self, k: Tensor) -> Tensor:
        """Maps integers ``(..., P)`` to ``(..., P, K)``."""
        if not isinstance(k, Tensor) or k.is_floating_point() or k.shape[-1:] != self.in_shape:
            got = f"{k.dtype} of shape {tuple(k.shape)}" if isinstance(k, Tensor) else type(k).__name__
            raise InputError(f"k must hold integers of shape (..., {self.in_shape[0]}), got {got}")
        before = F.pad(k[..., :-1], (1, 0), value=self.num_classes)
        return self.out(self.blocks(self.embed(before) + self.position))


class CausalBlock(nn.Module):
    """Attention to the positions up to each, then an MLP, each added to what is there.

    Args:
        dim: Width.
        num_heads: Number of heads, a divisor of ``dim``.
        dropout: Probability of dropping a unit of what is added.

    Example:
        >>> CausalBlock(8, 2, 0.0)(torch.zeros(5, 3, 8)).shape
        torch.Size([5, 3, 8])
    """

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim)
        self.query_key_value, self.attended = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        """Maps ``(..., P, dim)`` to ``(..., P, dim)``."""
        q, k, v = (self._heads(part) for part in self.query_key_value(self.norm(h)).chunk(3, dim=-1))
        size = h.shape[-2]
        later = torch.ones(size, size, dtype=torch.bool, device=h.device).triu(1)
        # Plain products: the fused kernels take one leading dimension and are not traced alike everywhere.
        attention = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(later, -math.inf).softmax(-1)
        h = h + self.dropout(self.attended((attention @ v).transpose(-2, -3).flatten(-2)))
        return h + self.dropout(self.mlp(h))

    def _heads(self, x: Tensor) -> Tensor:
        """Maps ``(..., P, dim)`` to ``(..., heads, P, dim / heads)``."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)
