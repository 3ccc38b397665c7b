"""A causal Transformer: of sequences of classes, each seen by those after it alone."""

from torch import Tensor, nn

from ppvae._validate import InputError, check_count
from ppvae.nn.sequence_coding import SequenceDecoder
from ppvae.nn.transformer import Transformer


class CausalTransformer(nn.Module):
    """A Transformer from classes ``(..., P)`` to logits ``(..., P, K)``, those at p of the classes before p alone.

    A :class:`ppvae.nn.SequenceDecoder` without a context, over a causal :class:`ppvae.nn.Transformer`.

    Args:
        num_classes: Number of classes K.
        num_positions: Length P of a sequence.
        dim: Width of the residual stream.
        num_heads: Number of attention heads, a divisor of ``dim``.
        num_blocks: Number of blocks.
        dropout: Probability of dropping a unit of what a block adds, in [0, 1).

    Raises:
        ValueError: If a size is no positive int, or ``num_heads`` does not divide ``dim``.

    Example:
        >>> import torch
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
        check_count("num_classes", num_classes)
        net = Transformer(dim, num_positions, num_heads=num_heads, num_blocks=num_blocks, causal=True, dropout=dropout)
        self.decoder = SequenceDecoder(nn.Embedding(num_classes, dim), net, None, num_classes)
        self.num_classes, self.in_shape, self.out_shape = num_classes, (num_positions,), (num_positions, num_classes)

    def forward(self, k: Tensor) -> Tensor:
        """Maps integers ``(..., P)`` to ``(..., P, K)``."""
        if not isinstance(k, Tensor) or k.is_floating_point() or k.shape[-1:] != self.in_shape:
            got = f"{k.dtype} of shape {tuple(k.shape)}" if isinstance(k, Tensor) else type(k).__name__
            raise InputError(f"k must hold integers of shape (..., {self.in_shape[0]}), got {got}")
        return self.decoder(k)
