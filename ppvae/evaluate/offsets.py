"""A guide whose distributions have parameters of their own for every datum, starting from the encoder's answer.

Offsets are added to the parameters of every latent site's distribution, in unconstrained space: to the mean of a
normal, to the logarithm of its scale. With offsets of zero the guide is itself; optimised, they find for each datum
the best member of the family that the guide's code returns, whatever that code is.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from pyro.distributions import Delta, ExpandedDistribution, TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from torch import Size, Tensor
from torch.distributions import transform_to

from ppvae.infer.conditioned import Conditioned

_SAID_TWICE = {"probs": "logits", "covariance_matrix": "scale_tril", "precision_matrix": "scale_tril"}
"""Parameters that a family takes in place of another one."""


Values = dict[tuple[str, ...], Tensor]
"""Offsets by site and parameter."""


class Offsets(Messenger):
    """Shifts the parameters of the guide that runs inside, for each datum by offsets of its own.

    Of a distribution that is transformed (a flow), the base is shifted. A `Delta` is a function of what was drawn
    before and stays. Where a later site's parameters depend on earlier draws, its offset is the same for all draws.

    Args:
        conditioned: the pair and its data; `draw` and `log_posterior` of this very one may run inside.

    Attributes:
        values: the offsets by site and parameter, made at the first run, of shape (*plates, n, ...).
    """

    def __init__(self, conditioned: Conditioned) -> None:
        super().__init__()
        self._num_data = len(conditioned)
        self._plated = conditioned.sampler.plate_dim is not None
        self.values: Values = {}
        self._inner_dims: dict[tuple[str, ...], int] = {}

    def merged(self, where: Tensor | None = None, others: Values | None = None) -> Values:
        """A copy of the offsets, of the data `where` (n,) says so; of the rest those of `others`."""
        values = {key: value.detach().clone() for key, value in self.values.items()}
        if where is None or others is None:
            return values
        of_datum = {key: where.view(-1, *[1] * dims) for key, dims in self._inner_dims.items()}
        return {key: torch.where(of_datum[key], value, others[key]) for key, value in values.items()}

    @torch.no_grad()
    def load(self, values: Values) -> None:
        """Takes over the offsets of a copy."""
        for key, value in values.items():
            self.values[key].copy_(value)

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if msg["is_observed"] or not isinstance(fn, TorchDistributionMixin):  # a plate's subsampling has no density
            return
        if not fn.has_rsample:
            raise ValueError(
                f"the guide's site {msg['name']!r} has no reparameterized draws ({_family(fn)}): its parameters cannot "
                "be optimised by gradients through the draws"
            )
        msg["fn"] = self._shifted(fn, fn.batch_shape, (msg["name"],), len(fn.batch_shape) - 1)

    def _shifted(self, fn: Any, shape: Size, key: tuple[str, ...], data_dim: int) -> Any:
        """`fn`, expanded to the batch shape `shape`, with shifted parameters; the data lie at `data_dim`."""
        if isinstance(fn, Delta):
            return fn
        if fn.arg_constraints:
            return self._rebuilt(fn, shape, key, data_dim)
        if not hasattr(fn, "base_dist"):
            raise ValueError(f"the guide's site {key[0]!r} is a {_family(fn)}, whose parameters are not known")
        if isinstance(fn, ExpandedDistribution):
            return self._shifted(fn.base_dist, shape, key, data_dim)
        shape = shape + fn.base_dist.batch_shape[len(fn.batch_shape) :]
        new = copy.copy(fn)
        new.base_dist = self._shifted(fn.base_dist, shape, key, data_dim)
        return new

    def _rebuilt(self, fn: Any, shape: Size, key: tuple[str, ...], data_dim: int) -> TorchDistribution:
        arguments = {}
        for name, parameter in inspect.signature(type(fn).__init__).parameters.items():
            if name in ("self", "validate_args") or _SAID_TWICE.get(name) in fn.arg_constraints:
                continue
            if not hasattr(fn, name):
                if parameter.default is inspect.Parameter.empty:
                    raise ValueError(f"the guide's site {key[0]!r} is a {_family(fn)}, which hides its {name!r}")
                continue
            arguments[name] = value = getattr(fn, name)
            constraint = fn.arg_constraints.get(name)
            if constraint is not None and not constraint.is_discrete:
                transform = transform_to(constraint)
                free = transform.inv(value)
                free = free.expand(shape + free.shape[free.dim() - transform.domain.event_dim :])
                arguments[name] = transform(free + self._offset((*key, name), free, data_dim))
        return type(fn)(**arguments)

    def _offset(self, key: tuple[str, ...], like: Tensor, data_dim: int) -> Tensor:
        n = self._num_data
        if key not in self.values:
            # in an outer plate the samples come first, else they are repeated along the data
            shape = like.shape[1:] if self._plated else (*like.shape[:data_dim], n, *like.shape[data_dim + 1 :])
            self._inner_dims[key] = like.dim() - data_dim - 1
            self.values[key] = torch.zeros(shape, dtype=like.dtype, device=like.device, requires_grad=True)
        offset = self.values[key]
        if self._plated:
            return offset
        return offset.repeat(*[1] * data_dim, like.shape[data_dim] // n, *[1] * (like.dim() - data_dim - 1))


def _family(fn: Any) -> str:
    while isinstance(getattr(fn, "base_dist", None), TorchDistributionMixin) and not fn.arg_constraints:
        fn = fn.base_dist
    return type(fn).__name__
