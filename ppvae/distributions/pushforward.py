"""Distributions pushed through invertible maps, for Pyro's transforms with parameters."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.conditional import (
    ConditionalComposeTransformModule,
    ConditionalTransform,
    ConstantConditionalTransform,
)
from torch import Size, Tensor, nn
from torch.distributions import Transform
from torch.distributions.transforms import ComposeTransform

from ppvae._internals import invert, is_inverse, sum_rightmost
from ppvae.distributions.parameters import without_autocast


class PushForward(dist.TransformedDistribution):
    r"""The distribution of z = f(ε), where ε has a base distribution and f is a sequence of transforms.

    .. math:: \log p(z) = \log p(\varepsilon) - \log \left| \det \frac{\partial f}{\partial \varepsilon} \right|

    A draw is scored with the ε that it was made of: Pyro's transforms keep the last pair. All of it is computed in the
    precision of the parameters, also under autocast.
    """

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draws values, differentiable in all parameters: ``(*sample_shape, *batch_shape, *event_shape)``."""
        x = self.base_dist.rsample(sample_shape)
        with without_autocast(x):
            for transform in self.transforms:
                x = transform(x)
        return x

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draws values without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-density of values in nats, of their batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        event_dim = len(self.event_shape)
        log_det: Any = 0.0
        y = self._with_batch(value)
        with without_autocast(value):
            for transform in reversed(self.transforms):
                # Not transform.inv, which refers to the transform and that to it: their tensors would stay in memory
                # until Python's collector of circles runs.
                x = invert(transform, y)
                event_dim += transform.domain.event_dim - transform.codomain.event_dim
                log_det = log_det + sum_rightmost(
                    transform.log_abs_det_jacobian(x, y), event_dim - transform.domain.event_dim
                )
                y = x
        log_base = self.base_dist.log_prob(y)
        return sum_rightmost(log_base, event_dim - len(self.base_dist.event_shape)) - log_det

    def _with_batch(self, value: Tensor) -> Tensor:
        """Values with the batch shape: the nets of transforms do not broadcast their context over it."""
        batch = torch.broadcast_shapes(value.shape[: value.dim() - len(self.event_shape)], self.batch_shape)
        shape = batch + self.event_shape
        return value if value.shape == shape else value.expand(shape)  # a draw stays the very tensor that it was


class Transforms(nn.Module):
    """A sequence of transforms that are given a context.

    Every call makes them anew, on the same parameters. Pyro's keep their last value and its logarithm of the volume
    on themselves: shared between calls, a second one would take the place of the first before that is scored, and a
    value that is scored after a step would get the density from before it.

    Args:
        transforms: Pyro's transforms or conditional transforms, or inverses of them, the one nearest to the base
            first.

    Raises:
        ValueError: If there are none.
        TypeError: If it is no sequence, or one in it no transform.
    """

    def __init__(self, transforms: Sequence[Transform | ConditionalTransform]) -> None:
        super().__init__()
        if not isinstance(transforms, Sequence):
            raise TypeError(f"flow must be a name or a sequence of transforms, got {type(transforms).__name__}")
        if not transforms:
            raise ValueError("flow must have at least one transform, got none")
        for transform in transforms:
            if not isinstance(transform, Transform | ConditionalTransform):
                raise TypeError(f"flow must hold transforms of pyro.distributions, got a {type(transform).__name__}")
        transforms = [part for transform in transforms for part in _parts(transform)]
        # An inverse is no module, and its copy forgets what it inverts: that is kept in its place.
        self.inverted = [is_inverse(t) for t in transforms]
        self.transforms = [t.inv if inv else t for t, inv in zip(transforms, self.inverted, strict=True)]
        self.parts = nn.ModuleList(t for t in self.transforms if isinstance(t, nn.Module))
        self.constants: list[dict[str, str]] = [self._registered(i, t) for i, t in enumerate(self.transforms)]

    def _registered(self, place: int, transform: Any) -> dict[str, str]:
        """Makes the tensors of a transform that is no module this one's, to be saved, moved and trained with it."""
        names = {}
        for name, value in [] if isinstance(transform, nn.Module) else vars(transform).items():
            if isinstance(value, Tensor):
                names[name] = f"constant_{place}_{name}"
                register: Any = self.register_parameter if isinstance(value, nn.Parameter) else self.register_buffer
                register(names[name], value)
        return names

    def forward(self, context: Tensor) -> list[Transform]:
        """Returns the transforms for a context, ``(..., c)``."""
        fresh = [
            t.condition(context) if isinstance(t, ConditionalTransform) else _with_empty_cache(t)
            for t in self.transforms
        ]
        for transform, names in zip(fresh, self.constants, strict=True):
            for name, own in names.items():
                setattr(transform, name, getattr(self, own))
        return [Inverse(t) if inv else t for t, inv in zip(fresh, self.inverted, strict=True)]


class Inverse(Transform):
    """The inverse of a transform, which does not know of it."""

    bijective = True

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform
        self.domain, self.codomain = transform.codomain, transform.domain

    def _call(self, x: Tensor) -> Tensor:
        return invert(self.transform, x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.transform(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns minus that of the transform."""
        return -self.transform.log_abs_det_jacobian(y, x)


def _parts(transform: Any) -> Iterator[Any]:
    """The transforms that one is composed of, itself where it is of none."""
    if isinstance(transform, ConstantConditionalTransform):
        yield from _parts(transform.transform)
    elif isinstance(transform, ComposeTransform):
        for part in transform.parts:
            yield from _parts(part)
    elif isinstance(transform, ConditionalComposeTransformModule):
        for part in transform.transforms:
            yield from _parts(part)
    else:
        yield transform


def _with_empty_cache(transform: Transform) -> Transform:
    """A copy that shares everything but the transforms themselves."""
    if not isinstance(transform, nn.Module):
        return copy.copy(transform)
    nets = (module for module in transform.modules() if not isinstance(module, Transform))
    shared = (*transform.parameters(), *transform.buffers(), *nets)
    return copy.deepcopy(transform, {id(part): part for part in shared})
