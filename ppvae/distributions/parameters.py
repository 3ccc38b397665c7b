"""How a net's output becomes the parameters of a distribution.

A family with one parameter per element reads it off a net's output ``(..., *event_shape)``; a family with
``P`` of them, off ``(..., P, *event_shape)``.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppvae._validate import check_number
from ppvae.nn import as_shape

Scale = Literal["conditional", "learned"] | float


def resolve_event_dim(net: nn.Module, *, num_params: int | None, event_dim: int | None) -> int:
    """Returns the number of event dimensions of a net's distribution, having checked the net.

    Args:
        net: The net, which may declare the event shape of its output as ``out_shape``; an ``nn.Sequential``
            declares that of its last module.
        num_params: The size ``P`` of the parameter dimension, or None for a family without one.
        event_dim: What the user asked for; None means all declared dimensions but the parameter one, and one
            dimension where nothing is declared.

    Returns:
        The number of event dimensions.

    Raises:
        ValueError: If ``event_dim`` is not an int of at least 0, or does not fit the declared shape.
        TypeError: If ``net`` is not a module.

    Example:
        >>> from ppvae.nn import MLP
        >>> resolve_event_dim(MLP(784, (400,), (2, 20)), num_params=2, event_dim=None)
        1
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}")
    if event_dim is not None and (type(event_dim) is not int or event_dim < 0):
        raise ValueError(f"event_dim must be None or an int of at least 0, got {event_dim!r}")
    declared = declared_out_shape(net)
    if declared is None:
        return 1 if event_dim is None else event_dim
    dims = 0 if num_params is None else 1
    if event_dim is None:
        event_dim = max(len(declared) - dims, 0)
    if len(declared) < event_dim + dims:
        raise ValueError(
            f"net must declare an out_shape of at least {event_dim + dims} dimensions "
            f"for event_dim={event_dim}, got {declared}"
        )
    if num_params is not None and declared[-event_dim - 1] != num_params:
        raise ValueError(
            f"net must declare an out_shape (..., {num_params}, *event_shape) "
            f"with {event_dim} event dimensions, got {declared}"
        )
    return event_dim


def declared_out_shape(net: nn.Module) -> tuple[int, ...] | None:
    """The event shape that a net says it returns, of a `Sequential` that of its last module; None where none does."""
    while not hasattr(net, "out_shape") and isinstance(net, nn.Sequential) and len(net):
        net = net[-1]
    declared: Any = getattr(net, "out_shape", None)
    return None if declared is None else as_shape(declared, "out_shape of the net")


def check_params(params: Tensor, num_params: int, event_dim: int) -> Tensor:
    """Returns a net's output after checking that its parameter dimension is where it must be.

    Args:
        params: The output of a net, ``(..., P, *event_shape)``.
        num_params: The size ``P`` expected.
        event_dim: The number of event dimensions.

    Returns:
        The output.

    Raises:
        ValueError: If the parameter dimension is missing or of another size.

    Example:
        >>> check_params(torch.zeros(128, 2, 20), num_params=2, event_dim=1).shape
        torch.Size([128, 2, 20])
    """
    if params.dim() <= event_dim or params.shape[-event_dim - 1] != num_params:
        raise ValueError(
            f"net must return (..., {num_params}, *event_shape) "
            f"with {event_dim} event dimensions, got {tuple(params.shape)}"
        )
    return params


def full_precision(params: Tensor) -> Tensor:
    """Returns a net's output in float32 where autocast made it narrower: densities are sums of many small terms.

    Raises:
        TypeError: If it is no tensor.
    """
    if not isinstance(params, Tensor):
        raise TypeError(
            "net must return one tensor, (..., P, *event_shape) for a family of P parameters, got "
            f"{type(params).__name__}: of a location and a raw scale, whose softplus is the scale, "
            "torch.stack((loc, raw_scale), -2) makes one"
        )
    return params.float() if params.dtype in (torch.bfloat16, torch.float16) else params


@contextmanager
def without_autocast(like: Tensor) -> Iterator[None]:
    """Context in which tensors on the device of ``like`` keep their precision, in products too."""
    with torch.autocast(like.device.type, enabled=False):
        yield


class LocationScale(nn.Module):
    """Location and scale from a net: what the families with those two parameters are built on.

    Args:
        net: A net with output ``(..., 2, *event_shape)``, location and raw scale, where ``scale`` is
            ``"conditional"``, else ``(..., *event_shape)``, the location.
        scale: ``"conditional"``, ``"learned"`` (one parameter for all elements) or a fixed positive number.
        first_scale: Where a learned scale starts.
        min_scale: The least scale, in units of the data.
        event_dim: Number of event dimensions, see :func:`resolve_event_dim`.

    Raises:
        ValueError: If an option is not one of the above, or the net does not fit them.
        TypeError: If ``net`` is not a module.

    Example:
        >>> pieces = LocationScale(nn.Linear(3, 4), "learned", first_scale=1.0, min_scale=1e-4, event_dim=1)
        >>> loc, scale = pieces.location_scale(torch.zeros(128, 3))
        >>> loc.shape, scale.shape
        (torch.Size([128, 4]), torch.Size([]))
    """

    fixed_scale: Tensor

    def __init__(
        self, net: nn.Module, scale: Scale, *, first_scale: float, min_scale: float, event_dim: int | None
    ) -> None:
        super().__init__()
        check_number("min_scale", min_scale, above=0)
        num_params = 2 if scale == "conditional" else None
        self.event_dim = resolve_event_dim(net, num_params=num_params, event_dim=event_dim)
        self.net, self.min_scale = net, min_scale
        if scale == "learned":
            if min_scale >= first_scale:
                raise ValueError(f"min_scale must be below {first_scale}, a learned scale's start, got {min_scale}")
            # The inverse of softplus, so that the scale starts at first_scale.
            self.raw_scale = nn.Parameter(torch.tensor(math.log(math.expm1(first_scale - min_scale))))
        elif scale != "conditional":
            if isinstance(scale, str | bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
                raise ValueError(f"scale must be 'conditional', 'learned' or a positive number, got {scale!r}")
            # A tensor on the module's device: a Python number would be copied to it at every call.
            self.register_buffer("fixed_scale", torch.tensor(float(scale)), persistent=False)
        self.scale = scale

    def location_scale(self, *context: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the location ``(..., *event_shape)`` and the scale, of that shape or a scalar.

        Args:
            *context: What the net takes.

        Returns:
            Location and scale, in units of the data.

        Raises:
            ValueError: If the net returns another number of parameters than two for a conditional scale.
        """
        params = full_precision(self.net(*context))
        if self.scale == "conditional":
            loc, raw_scale = check_params(params, 2, self.event_dim).unbind(-self.event_dim - 1)
            return loc, F.softplus(raw_scale) + self.min_scale
        if self.scale == "learned":
            return params, F.softplus(self.raw_scale) + self.min_scale
        return params, self.fixed_scale

    def extra_repr(self) -> str:
        """Describes the scale and the event."""
        return f"scale={self.scale!r}, min_scale={self.min_scale:g}, event_dim={self.event_dim}"
