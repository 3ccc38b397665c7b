"""Layers that take a second input, the condition: a label, a vector, or a set of tokens.

Each maps ``(h, c)`` to the next ``h``. The leading dimensions of the two broadcast against each other: samples,
particles and enumeration arrive on the left of either, so that ``h`` may be ``(n, d)`` where ``c`` enumerates ten
classes as ``(10, 1, c)``, or ``(5, n, d)`` where ``c`` is ``(n, c)``. What needs only one of the two is computed once.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppvae._validate import check_count
from ppvae.nn.context import Context
from ppvae.nn.shapes import as_shape, lead_dims


class Conditioning(nn.Module, ABC):
    """A layer of two inputs: what :class:`ppvae.nn.ConditionalSequential` gives its condition to.

    Derive your own layers from it.

    Args:
        context_shape: Event shape of the condition that the layer works on; None declares none.
        embed: A module that the condition goes through first, to that shape; None takes it as it is.

    Attributes:
        context: What :func:`check_context` holds a condition to.

    Example:
        >>> class Add(Conditioning):
        ...     def forward(self, h, c):
        ...         return h + c
        >>> Add((5,))(torch.zeros(3, 5), torch.ones(5)).shape
        torch.Size([3, 5])
    """

    def __init__(self, context_shape: tuple[int, ...] | None = None, embed: nn.Module | None = None) -> None:
        super().__init__()
        self.embed = embed
        self.context = Context.of(context_shape, embed)

    @abstractmethod
    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """Maps ``h`` and its condition ``c`` to the next ``h``; leading dimensions broadcast."""


def check_context(net: nn.Module, c: Tensor, *, name: str = "c") -> tuple[int, ...] | None:
    """Checks a condition against what the conditional nets in a module declare of it.

    Where it is a label its values are read from the device, see :func:`ppvae.nn.check_labels`.

    Args:
        net: Any module; the outermost :class:`Conditioning` modules in it count.
        c: The condition, ``(..., *event_shape)``.
        name: What the caller calls it, for the error.

    Returns:
        Its event shape, ``()`` for labels; None where no net declares one.

    Raises:
        TypeError: If it is no tensor, or of the wrong dtype.
        ValueError: If it is of the wrong shape, or holds a label out of range.

    Example:
        >>> check_context(FiLM(20, 40), torch.zeros(128, 40), name="attributes")
        (40,)
    """
    contexts = list(dict.fromkeys(_contexts(net)))
    for context in contexts:
        context.check(c, name)
    return next((context.shape for context in contexts if context.shape is not None), None)


def _contexts(net: nn.Module) -> Iterator[Context]:
    """What the conditional modules in ``net`` that lie in no other one expect: theirs is the caller's condition."""
    if isinstance(net, Conditioning):
        yield net.context
        return
    for child in net.children():
        yield from _contexts(child)


class Concat(Conditioning):
    r"""An affine map of the concatenation of ``h`` and ``c``, which is never formed.

    .. math:: h' = W [h; c] + b = W_h h + W_c c + b

    Where ``c`` enumerates the classes, the product with ``h`` is not repeated.

    Args:
        dim: Size of ``h``.
        context_dim: Size of ``c``.
        out_dim: Size of the output.
        bias: Whether there is a ``b``.

    Raises:
        ValueError: If a size is not a positive int.

    Example:
        >>> Concat(20, 10, 400)(torch.zeros(128, 20), torch.zeros(10, 1, 10)).shape
        torch.Size([10, 128, 400])
    """

    def __init__(self, dim: int, context_dim: int, out_dim: int, *, bias: bool = True) -> None:
        super().__init__((check_count("context_dim", context_dim),))
        self.dims = [check_count("dim", dim), context_dim]
        self.in_shape, self.out_shape = (dim,), (check_count("out_dim", out_dim),)
        # One matrix starts, and is saved, as that of a plain layer on the concatenation.
        self.linear = nn.Linear(sum(self.dims), out_dim, bias=bias)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """Maps ``(..., dim)`` and ``(..., context_dim)`` to ``(..., out_dim)``."""
        of_h, of_c = self.linear.weight.split(self.dims, dim=1)
        return F.linear(h, of_h, self.linear.bias) + F.linear(c, of_c)


class FiLM(Conditioning):
    r"""Feature-wise linear modulation: the condition scales and shifts every feature.

    .. math:: h' = \gamma(c) \odot h + \beta(c)

    with γ and β affine in ``c``. It starts as the identity, γ = 1 and β = 0.

    Args:
        dim: Number of features (for images: channels).
        context_dim: Size of ``c``.
        spatial_dims: Dimensions of ``h`` to the right of its features: 2 for images.

    Raises:
        ValueError: If a size is not a positive int.

    References:
        FiLM: Visual Reasoning with a General Conditioning Layer (Perez et al. 2017), arXiv 1709.07871.

    Example:
        >>> FiLM(32, 10, spatial_dims=2)(torch.zeros(128, 32, 7, 7), torch.zeros(5, 1, 10)).shape
        torch.Size([5, 128, 32, 7, 7])
    """

    def __init__(self, dim: int, context_dim: int, *, spatial_dims: int = 0) -> None:
        super().__init__((check_count("context_dim", context_dim),))
        self.dim, self.spatial_dims = check_count("dim", dim), check_count("spatial_dims", spatial_dims, at_least=0)
        self.linear = nn.Linear(context_dim, 2 * dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """Maps ``(..., dim, *spatial)`` and ``(..., context_dim)`` to ``(..., dim, *spatial)``."""
        _check_features(h, self.dim, self.spatial_dims)
        parameters = self.linear(c)[(..., *[None] * self.spatial_dims)]
        scale, shift = parameters.chunk(2, dim=-1 - self.spatial_dims)
        return h * (1 + scale) + shift


class ConditionalBatchNorm(Conditioning):
    r"""Batch normalisation whose scale and shift depend on the condition.

    .. math:: h' = \gamma(c) \odot \frac{h - \mathrm{E}[h]}{\sqrt{\mathrm{Var}[h] + \epsilon}} + \beta(c)

    Mean and variance are over all leading (and spatial) dimensions of ``h``; γ and β are affine in ``c``. It starts
    as plain batch normalisation, γ = 1 and β = 0.

    Args:
        dim: Number of features (for images: channels).
        context_dim: Size of ``c``.
        spatial_dims: Dimensions of ``h`` to the right of its features: 2 for images.

    Raises:
        ValueError: If a size is not a positive int.

    References:
        Modulating Early Visual Processing by Language (de Vries et al. 2017), arXiv 1707.00683.

    Example:
        >>> ConditionalBatchNorm(32, 10)(torch.zeros(5, 128, 32), torch.zeros(128, 10)).shape
        torch.Size([5, 128, 32])
    """

    def __init__(self, dim: int, context_dim: int, *, spatial_dims: int = 0) -> None:
        super().__init__((check_count("context_dim", context_dim),))
        self.film = FiLM(dim, context_dim, spatial_dims=spatial_dims)
        self.norm = nn.BatchNorm1d(dim, affine=False)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """Maps ``(..., dim, *spatial)`` and ``(..., context_dim)`` to ``(..., dim, *spatial)``."""
        dim, spatial_dims = self.film.dim, self.film.spatial_dims
        _check_features(h, dim, spatial_dims)
        points = math.prod(h.shape[h.dim() - spatial_dims :])
        return self.film(self.norm(h.reshape(-1, dim, points)).reshape(h.shape), c)


class CrossAttention(Conditioning):
    r"""Multi-head attention of ``h``, one or several queries, to the tokens of the condition, with a residual.

    .. math:: h' = h + W_o\, \mathrm{softmax}\big(Q K^\top / \sqrt{d}\big) V, \qquad
        Q = W_q\, \mathrm{LayerNorm}(h), \quad [K; V] = W_{kv}\, t

    The tokens :math:`t_i = W_t c_i + p_i` carry a learned position, and a learned token beside them stands for
    nothing to attend to: with a condition of one token, attention is then a gate and not the constant one.

    Args:
        in_shape: Shape of ``h``: ``(dim,)`` or an int for one query, ``(queries, dim)`` for several.
        context_shape: Shape of ``c``: ``(context_dim,)`` or an int for one token, ``(tokens, context_dim)`` for
            several.
        num_heads: Number of heads, a divisor of ``dim``.

    Raises:
        ValueError: If a shape is not one of the above, or ``num_heads`` does not divide ``dim``.

    References:
        Attention Is All You Need (Vaswani et al. 2017), arXiv 1706.03762.
        Perceiver: General Perception with Iterative Attention (Jaegle et al. 2021), arXiv 2103.03206.

    Example:
        >>> CrossAttention(64, (49, 16), num_heads=4)(torch.zeros(5, 128, 64), torch.zeros(128, 49, 16)).shape
        torch.Size([5, 128, 64])
    """

    def __init__(
        self, in_shape: int | Sequence[int], context_shape: int | Sequence[int], *, num_heads: int = 1
    ) -> None:
        in_shape, context_shape = as_shape(in_shape, "in_shape"), as_shape(context_shape, "context_shape")
        for name, shape in (("in_shape", in_shape), ("context_shape", context_shape)):
            if len(shape) not in (1, 2):
                raise ValueError(f"{name} must have one dimension, or two for several tokens, got {shape}")
        super().__init__(context_shape)
        self.in_shape = self.out_shape = in_shape
        self.context_shape = context_shape
        self.one_query, self.one_token = len(in_shape) == 1, len(context_shape) == 1
        dim, num_tokens = in_shape[-1], math.prod(context_shape[:-1])
        self.num_heads = check_count("num_heads", num_heads)
        if dim % num_heads:
            raise ValueError(f"num_heads must divide the size of h, {dim}, got {num_heads}")
        self.norm = nn.LayerNorm(dim)
        self.query, self.token = nn.Linear(dim, dim), nn.Linear(context_shape[-1], dim, bias=False)
        self.position = nn.Parameter(torch.randn(1 + num_tokens, dim) / math.sqrt(dim))
        # No bias: that of the keys would cancel in the softmax, that of the values is in the output's.
        self.key_value, self.out = nn.Linear(dim, 2 * dim, bias=False), nn.Linear(dim, dim)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """Maps ``(..., *in_shape)`` and ``(..., *context_shape)`` to ``(..., *in_shape)``."""
        for x, shape in ((h, self.in_shape), (c, self.context_shape)):
            lead_dims(x, shape)  # refuses another shape
        queries, tokens = (h.unsqueeze(-2) if self.one_query else h), (c.unsqueeze(-2) if self.one_token else c)
        q = self._heads(self.query(self.norm(queries)))
        k, v = self.key_value(F.pad(self.token(tokens), (0, 0, 1, 0)) + self.position).chunk(2, dim=-1)
        # Plain products broadcast; the fused kernels want the leading dimensions of all three to be equal.
        attention = (q @ self._heads(k).mT / math.sqrt(q.shape[-1])).softmax(-1)
        message = self.out((attention @ self._heads(v)).transpose(-2, -3).flatten(-2))
        return h + (message.squeeze(-2) if self.one_query else message)

    def _heads(self, x: Tensor) -> Tensor:
        """Maps ``(..., t, dim)`` to ``(..., heads, t, dim / heads)``."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)


def _check_features(h: Tensor, dim: int, spatial_dims: int) -> None:
    """Refuses an ``h`` of another number of features, which could broadcast in silence."""
    if h.dim() <= spatial_dims or h.shape[-1 - spatial_dims] != dim:
        spatial = ", *spatial" if spatial_dims else ""
        raise ValueError(f"expected h of shape (..., {dim}{spatial}), got {tuple(h.shape)}")
