"""Convolutions over time, of steps further and further apart."""

from torch import Tensor, nn
from torch.nn import functional as F

from ppvae._validate import check_count, check_flag, check_number
from ppvae.nn.sequence import SequenceNet, zero_padding


class TemporalConv(SequenceNet):
    r"""Blocks of dilated convolutions over the steps of sequences ``(..., t, dim)``.

    .. math:: h' = h + W_2\, \mathrm{gelu}\Big(\sum_j W_{1j}\, \mathrm{LayerNorm}(h)_{t - 2^b j}\Big)

    in block b. With ``causal`` each step sees the ``reach`` steps up to it alone: itself and
    (``kernel_size`` − 1)(2^``num_blocks`` − 1) before it; else as many on both sides together.

    Args:
        dim: Width.
        kernel_size: Steps that a convolution sees, odd where it is not causal.
        num_blocks: Number of blocks.
        causal: Whether each step sees those up to it alone.
        dropout: Probability of dropping a unit of what a block adds, in [0, 1).

    Attributes:
        reach: How many steps one of the outputs sees.

    Raises:
        ValueError: If a size is no positive int, or the kernel is even and not causal.
        TypeError: If ``causal`` is no bool.

    References:
        Improved Variational Autoencoders for Text Modeling using Dilated Convolutions (Yang et al. 2017),
        arXiv 1702.08139.

    Example:
        >>> import torch
        >>> net = TemporalConv(16, causal=True)
        >>> net(torch.zeros(5, 7, 16)).shape, net.reach
        (torch.Size([5, 7, 16]), 7)
    """

    def __init__(
        self, dim: int, *, kernel_size: int = 3, num_blocks: int = 2, causal: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.in_dim = self.out_dim = check_count("dim", dim)
        self.causal = check_flag("causal", causal)
        if check_count("kernel_size", kernel_size) % 2 == 0 and not causal:
            raise ValueError(f"kernel_size must be odd where causal=False, got {kernel_size}")
        check_number("dropout", dropout, at_least=0, below=1)
        blocks = [_Block(dim, kernel_size, 2**b, causal, dropout) for b in range(check_count("num_blocks", num_blocks))]
        self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(dim)
        self.reach = 1 + (kernel_size - 1) * (2**num_blocks - 1)

    def steps(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Runs every block, each over zeros after the end."""
        for block in self.blocks:
            x = block(x, lengths)
        return self.norm(x)


class _Block(nn.Module):
    """One convolution, and what is made of it added to what is there."""

    def __init__(self, dim: int, kernel_size: int, dilation: int, causal: bool, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.conv, self.out = nn.Conv1d(dim, dim, kernel_size, dilation=dilation), nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        beyond = (kernel_size - 1) * dilation
        self.pad = (beyond, 0) if causal else (beyond // 2, beyond // 2)

    def forward(self, h: Tensor, lengths: Tensor | None) -> Tensor:
        """Maps ``(..., t, dim)`` to ``(..., t, dim)``."""
        x = zero_padding(self.norm(h), lengths).reshape(-1, *h.shape[-2:]).mT
        x = self.conv(F.pad(x, self.pad)).mT.reshape(h.shape)
        return h + self.dropout(self.out(F.gelu(x)))
