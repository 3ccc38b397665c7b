"""Nets of two inputs, built of plain layers and of layers that take a condition."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

from torch import Tensor, nn

from ppvae.nn.conditioning import Concat, ConditionalBatchNorm, Conditioning, CrossAttention, FiLM, check_context
from ppvae.nn.layers import Layers, Norm
from ppvae.nn.shapes import Reshape, as_shape, as_sizes, between, check_input

How = Literal["concat", "film", "batch_norm", "attention"]


class ConditionalSequential(Conditioning):
    """A sequence of layers, those of two inputs among which are given the condition.

    So any net becomes conditional, with the condition where it belongs: a convolutional encoder whose features
    meet the label, or a convolutional decoder that starts from both.

    Args:
        *layers: Modules from ``h`` to the next ``h``; each :class:`ppvae.nn.Conditioning` is called with ``(h, c)``.
        embed: A module that the condition goes through first: :class:`ppvae.nn.OneHot` for a label, an encoder
            for an image. None takes it as it is.

    Attributes:
        in_shape: Event shape of ``h``, where the first layer declares it.
        out_shape: Event shape of the output, where the last layer declares it.

    Raises:
        TypeError: If something is not a module.
        ValueError: If there is no layer, or none that takes the condition.

    Example:
        >>> import torch
        >>> from ppvae.nn import ConvDecoder, ConvEncoder, OneHot
        >>> decoder = ConditionalSequential(
        ...     Concat(20, 10, 64), nn.ReLU(), ConvDecoder(64, (64, 32), (1, 28, 28)), embed=OneHot(10)
        ... )
        >>> y = torch.zeros(128, dtype=torch.long)
        >>> decoder(torch.zeros(5, 128, 20), y).shape
        torch.Size([5, 128, 1, 28, 28])
        >>> encoder = ConditionalSequential(
        ...     ConvEncoder((1, 28, 28), (32, 64), 99), nn.ReLU(), ConditionalMLP(99, 10, (), (2, 20)), embed=OneHot(10)
        ... )
        >>> encoder(torch.zeros(128, 1, 28, 28), y).shape
        torch.Size([128, 2, 20])
    """

    def __init__(self, *layers: nn.Module, embed: nn.Module | None = None) -> None:
        for name, module in [*((f"layers[{i}]", layer) for i, layer in enumerate(layers)), ("embed", embed)]:
            if not isinstance(module, nn.Module) and not (name == "embed" and module is None):
                raise TypeError(f"{name} must be a torch.nn.Module, got {type(module).__name__}")
        if not any(isinstance(layer, Conditioning) for layer in layers):
            raise ValueError(f"layers must hold one that takes the condition, got {len(layers)} without any")
        super().__init__(embed=embed)
        self.layers = nn.ModuleList(layers)
        if embed is None:
            self.context = next(layer.context for layer in layers if isinstance(layer, Conditioning))
        for name, shape in (
            ("in_shape", getattr(layers[0], "in_shape", None)),
            ("out_shape", getattr(layers[-1], "out_shape", None)),
        ):
            if shape is not None:  # what is not declared must not look as if it were
                setattr(self, name, shape)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """Maps ``(..., *in_shape)`` and the condition to ``(..., *out_shape)``; leading dimensions broadcast."""
        c = c if self.embed is None else self.embed(c)
        for layer in self.layers:
            h = layer(h, c) if isinstance(layer, Conditioning) else layer(h)
        return h


class ConditionalMLP(Conditioning):
    r"""A multi-layer perceptron with a condition, from ``(..., *in_shape)`` to ``(..., *out_shape)``.

    The condition enters in one of four ways:

    - ``"concat"``: beside the input, :class:`ppvae.nn.Concat`;
    - ``"film"``: scaling and shifting each hidden layer before its activation, :class:`ppvae.nn.FiLM`;
    - ``"batch_norm"``: in the normalisation of each hidden layer, :class:`ppvae.nn.ConditionalBatchNorm`;
    - ``"attention"``: attended to after each hidden layer, :class:`ppvae.nn.CrossAttention`, in four heads where
      four divides the width. A condition of one dimension is one token; of one of several, the last dimension is
      that of the tokens: an image is a set of rows.

    Args:
        in_shape: Event shape of the input, flattened; an int means one dimension.
        context_shape: Event shape of the condition, after ``embed``; an int means one dimension.
        hidden_dims: Widths of the hidden layers; with none the net is one affine map of both inputs.
        out_shape: Event shape of the output; an int means one dimension.
        conditioning: One of the four ways.
        activation: Name of the activation after each hidden layer, see :func:`ppvae.nn.activation`.
        norm: Normalisation before each activation: ``"batch"``, ``"layer"`` or None.
        dropout: Probability of dropping a hidden unit, in [0, 1).
        embed: A module that the condition goes through first, to ``(..., *context_shape)``: ``OneHot(10)`` for a
            label of ten classes. None takes it as it is.

    Raises:
        ValueError: If a shape, a width or an option is not one of the above, or if two do not go together.
        TypeError: If ``embed`` is not a module.

    References:
        Learning Structured Output Representation using Deep Conditional Generative Models (Sohn et al. 2015).

    Example:
        >>> import torch
        >>> from ppvae.nn import OneHot
        >>> net = ConditionalMLP(20, 10, (400,), (1, 28, 28), embed=OneHot(10))
        >>> every_label = torch.arange(10).unsqueeze(-1)
        >>> net(torch.zeros(5, 1, 128, 20), every_label).shape
        torch.Size([5, 10, 128, 1, 28, 28])
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        context_shape: int | Sequence[int],
        hidden_dims: int | Sequence[int],
        out_shape: int | Sequence[int],
        *,
        conditioning: How = "concat",
        activation: str = "relu",
        norm: Norm | None = None,
        dropout: float = 0.0,
        embed: nn.Module | None = None,
    ) -> None:
        context_shape = as_shape(context_shape, "context_shape")
        _check_embed(embed, context_shape)
        super().__init__(context_shape, embed)
        self.in_shape, self.out_shape = as_shape(in_shape, "in_shape"), as_shape(out_shape, "out_shape")
        dims = (math.prod(self.in_shape), *as_sizes(hidden_dims, "hidden_dims"), math.prod(self.out_shape))
        _check_conditioning(conditioning, norm, num_hidden=len(dims) - 2)
        tokens = _tokens(context_shape) if conditioning == "attention" else (math.prod(context_shape),)
        layers = _layers(dims, tokens, conditioning, Layers(activation, norm, dropout))
        self.flatten = Reshape(context_shape, tokens)
        self.net = ConditionalSequential(*between(self.in_shape, layers, self.out_shape))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """Maps ``(..., *in_shape)`` and the condition to ``(..., *out_shape)``; leading dimensions broadcast."""
        try:
            return self.net(h, self.flatten(c if self.embed is None else self.embed(c)))
        except (AttributeError, RuntimeError, TypeError, ValueError):
            check_input(self, h, self.in_shape, "h")
            event_shape = check_context(self, c) or ()
            leads = h.shape[: h.dim() - len(self.in_shape)], c.shape[: c.dim() - len(event_shape)]
            raise ValueError(f"h and c must have leading dims that broadcast, got {leads[0]} and {leads[1]}") from None


def _layers(dims: Sequence[int], tokens: tuple[int, ...], how: How, make: Layers) -> list[nn.Module]:
    """Returns the layers between vectors of the first and of the last of ``dims``."""
    layers: list[nn.Module] = []
    hidden_bias = make.hidden_bias and how != "batch_norm"
    *hidden, last = pairwise(dims)
    for d_in, d_out in hidden:
        layers.append(_affine(d_in, d_out, tokens, hidden_bias, concat=how == "concat" and not layers))
        stage = make.vector(d_out)
        norm = 0 if make.norm is None else 1
        if how == "film":
            stage.insert(norm, FiLM(d_out, tokens[-1]))
        elif how == "batch_norm":
            stage.insert(norm, ConditionalBatchNorm(d_out, tokens[-1]))
        elif how == "attention":
            stage.append(CrossAttention(d_out, tokens, num_heads=math.gcd(4, d_out)))
        layers += stage
    return [*layers, _affine(*last, tokens, bias=True, concat=how == "concat" and not layers)]


def _affine(d_in: int, d_out: int, tokens: tuple[int, ...], bias: bool, *, concat: bool) -> nn.Module:
    return Concat(d_in, tokens[-1], d_out, bias=bias) if concat else nn.Linear(d_in, d_out, bias=bias)


def _tokens(context_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns a condition's shape as one token ``(d,)`` or several ``(t, d)``."""
    *rows, d = context_shape or (1,)
    return (math.prod(rows), d) if rows else (d,)


def _check_conditioning(how: str, norm: str | None, *, num_hidden: int) -> None:
    if how not in get_args(How):
        raise ValueError(f"conditioning must be one of {', '.join(get_args(How))}; got {how!r}")
    if how != "concat" and not num_hidden:
        raise ValueError(f"conditioning={how!r} acts on hidden layers: hidden_dims must not be empty")
    if how == "batch_norm" and norm is not None:
        raise ValueError(f"norm must be None with conditioning='batch_norm', which is a normalisation, got {norm!r}")


def _check_embed(embed: nn.Module | None, context_shape: tuple[int, ...]) -> None:
    if embed is not None and not isinstance(embed, nn.Module):
        raise TypeError(f"embed must be a torch.nn.Module, got {type(embed).__name__}")
    declared = getattr(embed, "out_shape", None)
    if declared is not None and tuple(declared) != context_shape:
        raise ValueError(f"context_shape must be what embed returns, {tuple(declared)}, got {context_shape}")
