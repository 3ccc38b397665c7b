"""What stands around a net over sequences: from all of one to a vector, and from what was so far to what comes next."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppvae._validate import InputError, check_count, check_number
from ppvae.nn.sequence import SequenceNet
from ppvae.nn.shapes import as_shape


class SequenceEncoder(nn.Module):
    """A net from a whole sequence to ``(..., *out_shape)``, such as the parameters of q(z|x).

    Args:
        embed: A module from the values of steps to vectors ``(..., t, net.in_dim)``: ``nn.Embedding`` of tokens
            ``(..., t)``, ``nn.Linear`` of reals ``(..., t, d)``, ``nn.Sequential(Patches(...), nn.Linear(...))`` of
            images.
        net: Over the steps; its ``pool`` makes one vector of them.
        out_shape: Event shape of the output; an int means one dimension.

    Raises:
        TypeError: If ``embed`` is no module, or ``net`` no :class:`ppvae.nn.SequenceNet`.
        ValueError: If ``out_shape`` is not a positive int or a sequence of them.

    Example:
        >>> from ppvae.nn import RNN
        >>> net = SequenceEncoder(nn.Embedding(30, 8), RNN(8, 16, direction="both"), (2, 4))
        >>> net(torch.zeros(5, 7, dtype=torch.long), torch.tensor([7, 1, 2, 3, 7])).shape
        torch.Size([5, 2, 4])
    """

    def __init__(self, embed: nn.Module, net: SequenceNet, out_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.embed, self.net = _checked(embed, net)
        self.out_shape = as_shape(out_shape, "out_shape")
        self.out = _Out(net.out_dim, self.out_shape)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Maps sequences with ``lengths`` ``(...)``, None for all steps, to ``(..., *out_shape)``."""
        return self.out(self.net.pool(self.net(self.embed(x), lengths), lengths))


class SequenceDecoder(nn.Module):
    r"""What each step of a sequence is, given those before it and a context: ``(..., t, *out_shape)``.

    .. math:: y_t = W\, f\big(E x_0 + U z, \dots, E x_{t-1} + U z\big)

    where :math:`E x_0` is a learned vector. What stands in the padding changes nothing before it, so that there are no
    lengths here.

    Args:
        embed: A module from the values of steps to vectors ``(..., t, net.in_dim)``.
        net: A causal net over the steps.
        context_dim: Size of the context z; None is none, as in a language model.
        out_shape: Event shape of what is given for a step: ``num_classes`` logits, ``(2, d)`` for mean and scale.
        word_dropout: Probability that in training a step does not see the value before it, but zeros: so that z
            has something to say.

    Raises:
        TypeError: If ``embed`` is no module, or ``net`` no :class:`ppvae.nn.SequenceNet`.
        ValueError: If ``net`` is not causal, or a size or probability is none.

    References:
        Generating Sentences from a Continuous Space (Bowman et al. 2016), arXiv 1511.06349.

    Example:
        >>> from ppvae.nn import RNN
        >>> net = SequenceDecoder(nn.Embedding(30, 8), RNN(8, 16), 4, 30)
        >>> net(torch.zeros(128, 7, dtype=torch.long), torch.zeros(5, 128, 4)).shape
        torch.Size([5, 128, 7, 30])
    """

    def __init__(
        self,
        embed: nn.Module,
        net: SequenceNet,
        context_dim: int | None,
        out_shape: int | Sequence[int],
        *,
        word_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed, self.net = _checked(embed, net)
        if not net.causal:
            raise ValueError("net must be causal: each step is given those before it alone")
        self.out_shape = as_shape(out_shape, "out_shape")
        self.word_dropout = check_number("word_dropout", word_dropout, at_least=0, below=1)
        self.context_dim = None if context_dim is None else check_count("context_dim", context_dim)
        self.first = nn.Parameter(0.02 * torch.randn(net.in_dim))
        self.context = None if context_dim is None else nn.Linear(context_dim, net.in_dim, bias=False)
        self.out = _Out(net.out_dim, self.out_shape)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Maps sequences and contexts ``(..., context_dim)``, whose leading dims broadcast, to all steps' outputs.

        Raises:
            ValueError: If there is a context where the net takes none, or none where it does, or one of another size.
        """
        if (z is None) != (self.context is None) or (z is not None and z.shape[-1:] != (self.context_dim,)):
            got = None if z is None else tuple(z.shape)
            wanted = "None" if self.context is None else f"of shape (..., {self.context_dim})"
            raise InputError(f"z of SequenceDecoder must be {wanted}, got {got}")
        seen = self.embed(x)[..., :-1, :]
        if self.training and self.word_dropout:
            seen = torch.where(torch.rand_like(seen[..., :1]) < self.word_dropout, 0, seen)
        before = torch.cat([self.first.expand(*seen.shape[:-2], 1, -1), seen], -2)
        if z is not None and self.context is not None:
            before = before + self.context(z).unsqueeze(-2)
        return self.out(self.net(before))


class Patches(nn.Module):
    """Square patches of images ``(..., c, h, w)`` as a sequence of vectors ``(..., t, c · size²)``, row by row.

    Args:
        in_shape: ``(c, h, w)``.
        size: Pixels of a side of a patch, which divides height and width.

    Attributes:
        num_patches: t.
        out_dim: Numbers of a patch.

    Raises:
        ValueError: If ``in_shape`` is no such shape, or ``size`` does not divide it.

    References:
        An Image is Worth 16x16 Words (Dosovitskiy et al. 2021), arXiv 2010.11929.

    Example:
        >>> patches = Patches((1, 28, 28), 7)
        >>> patches(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 16, 49])
    """

    def __init__(self, in_shape: Sequence[int], size: int) -> None:
        super().__init__()
        self.in_shape, self.size = as_shape(in_shape, "in_shape"), check_count("size", size)
        if len(self.in_shape) != 3:
            raise ValueError(f"in_shape must be (channels, height, width), got {self.in_shape}")
        channels, height, width = self.in_shape
        if height % size or width % size:
            raise ValueError(f"size must divide height and width, {height} and {width}, got {size}")
        self.num_patches, self.out_dim = (height // size) * (width // size), channels * size**2
        self.out_shape = (self.num_patches, self.out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(..., c, h, w)`` to ``(..., t, c · size²)``."""
        if x.shape[-3:] != self.in_shape:
            raise InputError(f"x of Patches must have shape (..., {str(self.in_shape)[1:]}, got {tuple(x.shape)}")
        tiles = x.unflatten(-1, (-1, self.size)).unflatten(-3, (-1, self.size))  # (..., c, h, size, w, size)
        return tiles.movedim((-4, -2), (-5, -4)).flatten(-3).flatten(-3, -2)


class _Out(nn.Module):
    """An affine map from vectors to event shapes."""

    def __init__(self, in_dim: int, out_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.out_shape = out_shape
        self.linear = nn.Linear(in_dim, torch.Size(out_shape).numel())

    def forward(self, h: Tensor) -> Tensor:
        """Maps ``(..., in_dim)`` to ``(..., *out_shape)``."""
        y = self.linear(h)
        return y if len(self.out_shape) == 1 else y.reshape(*y.shape[:-1], *self.out_shape)


def _checked(embed: nn.Module, net: SequenceNet) -> tuple[nn.Module, SequenceNet]:
    """Refuses what are no such modules."""
    if not isinstance(embed, nn.Module):
        raise TypeError(f"embed must be a torch.nn.Module, got {type(embed).__name__}")
    if not isinstance(net, SequenceNet):
        raise TypeError(f"net must be a ppvae.nn.SequenceNet, such as an RNN, got {type(net).__name__}")
    return embed, net
