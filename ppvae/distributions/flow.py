"""Normalizing flows as priors and as posteriors, of Pyro's transforms."""

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from pyro.distributions.conditional import ConditionalTransform
from pyro.nn import ConditionalAutoRegressiveNN, DenseNN
from torch import Tensor, nn
from torch.distributions import Transform
from torch.nn import functional as F

from ppvae._validate import check_count, check_number
from ppvae.distributions.parameters import check_params, declared_out_shape, full_precision, resolve_event_dim
from ppvae.distributions.planar import InvertiblePlanar
from ppvae.distributions.prior import StandardNormal
from ppvae.distributions.pushforward import PushForward, Transforms
from ppvae.distributions.spline import AutoregressiveSpline
from ppvae.nn import as_shape

Step: TypeAlias = Transform | ConditionalTransform
SPLINE_BINS = 8


class FlowPosterior(nn.Module):
    r"""A diagonal normal pushed through transforms, all of them given a context.

    .. math:: z = f_m(\dots f_1(\mu + \sigma \varepsilon;\, h) \dots;\, h), \qquad \varepsilon \sim \mathcal{N}(0, I),
        \quad (\mu, \rho, h) = \mathrm{net}(c), \quad \sigma = \sigma_{\min} + \mathrm{softplus}(\rho)

    By name the transforms are, with their own nets for what depends on h,

    - ``"iaf"``: :math:`z_i\, s_i(z_{<i}, h) + m_i(z_{<i}, h)`, the order reversed from one to the next;
    - ``"planar"``: :math:`z + u \tanh(w^\top z + b)`;
    - ``"householder"``: :math:`z - 2\, v v^\top z / \lVert v \rVert^2`, so that q is a normal with a full covariance;
    - ``"spline"``: rational splines on [-3, 3] and the identity elsewhere, autoregressive as ``"iaf"``.

    A draw is scored with what it was made of, at no cost. Scoring any other value takes the inverse: k runs of a net
    for the autoregressive flows, a search in one dimension for the planar one.

    Args:
        net: A module from the context to ``(..., P, k)``, declared as its ``out_shape``: μ, ρ, and P - 2 more for h,
            at least one for a flow by name.
        flow: One of the names above, or transforms of ``pyro.distributions.transforms`` in their order from μ + σε to
            z, conditional ones for a context of size (P - 2) k.
        num_flows: Number of transforms of a flow by name.
        hidden_dims: Widths of the hidden layers of the nets in the transforms of a flow by name.
        min_scale: σ_min.

    Raises:
        ValueError: If an option is not one of the above, or the net does not fit it.
        TypeError: If ``net`` is not a module, or ``flow`` holds something else than transforms.

    References:
        Variational Inference with Normalizing Flows (Rezende & Mohamed 2015), arXiv 1505.05770: planar.
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al. 2016), arXiv 1606.04934.
        Improving Variational Auto-Encoders using Householder Flow (Tomczak & Welling 2016), arXiv 1611.09630.
        Neural Spline Flows (Durkan et al. 2019), arXiv 1906.04032.

    Example:
        >>> from ppvae.nn import MLP
        >>> q_z_given_x = FlowPosterior(MLP(784, (400,), (4, 20)), flow="iaf")
        >>> q_z_given_x(torch.zeros(128, 784)).rsample((5,)).shape
        torch.Size([5, 128, 20])
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        flow: Literal["iaf", "planar", "householder", "spline"] | Sequence[Step] = "iaf",
        num_flows: int = 2,
        hidden_dims: int | Sequence[int] = 128,
        min_scale: float = 1e-4,
    ) -> None:
        super().__init__()
        resolve_event_dim(net, num_params=None, event_dim=1)
        check_number("min_scale", min_scale, above=0)
        least = 3 if isinstance(flow, str) else 2
        declared = declared_out_shape(net)
        if declared is None or len(declared) != 2 or declared[0] < least:
            raise ValueError(f"net must declare an out_shape (P, k) with P of at least {least}, got {declared}")
        num_params, k = declared
        self.net, self.min_scale = net, min_scale
        self.num_params = num_params
        self.flow = _transforms(flow, _POSTERIORS, k, (num_params - 2) * k, num_flows, hidden_dims)

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns q(z|c), of batch shape ``(...)`` and event shape ``(k,)``."""
        params = check_params(full_precision(self.net(*context)), self.num_params, 1)
        _check_precision(self.flow)
        loc, raw_scale = params[..., 0, :], params[..., 1, :]
        base = dist.Normal(loc, F.softplus(raw_scale) + self.min_scale).to_event(1)
        return PushForward(base, self.flow(params[..., 2:, :].flatten(-2)))

    def extra_repr(self) -> str:
        """Describes the scale."""
        return f"min_scale={self.min_scale:g}"


class FlowPrior(nn.Module):
    r"""A standard normal pushed through transforms, the same for every context.

    .. math:: z = f_m(\dots f_1(\varepsilon) \dots), \qquad \varepsilon \sim \mathcal{N}(0, I)

    A prior is scored at what the posterior drew, at every step of training. Both flows by name run their nets once to
    score a value, whatever k, and k times to draw one; their order of the dimensions is reversed from one transform
    to the next.

    Args:
        latent_dim: k, the size of one ``z``.
        flow: ``"maf"``, autoregressive affine maps; ``"spline"``, autoregressive rational splines on [-3, 3]; or
            transforms of ``pyro.distributions.transforms`` in their order from ε to z, that can score any value.
        num_flows: Number of transforms of a flow by name.
        hidden_dims: Widths of the hidden layers of the nets in the transforms of a flow by name.

    Raises:
        ValueError: If an option is not one of the above.
        TypeError: If ``flow`` holds something else than transforms.

    References:
        Masked Autoregressive Flow for Density Estimation (Papamakarios et al. 2017), arXiv 1705.07057.
        Variational Lossy Autoencoder (Chen et al. 2017), arXiv 1611.02731: an autoregressive flow as the prior.
        Neural Spline Flows (Durkan et al. 2019), arXiv 1906.04032.

    Example:
        >>> p_z = FlowPrior(20, flow="maf")
        >>> p_z().log_prob(torch.zeros(5, 128, 20)).shape
        torch.Size([5, 128])
    """

    context: Tensor

    def __init__(
        self,
        latent_dim: int,
        *,
        flow: Literal["maf", "spline"] | Sequence[Step] = "maf",
        num_flows: int = 2,
        hidden_dims: int | Sequence[int] = 128,
    ) -> None:
        super().__init__()
        self.base = StandardNormal(check_count("latent_dim", latent_dim))
        self.flow = _transforms(flow, _PRIORS, latent_dim, 0, num_flows, hidden_dims)
        self.register_buffer("context", torch.zeros(0), persistent=False)

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns p(z), of batch shape ``()`` and event shape ``(k,)``, whatever the context."""
        _check_precision(self.flow)
        return PushForward(self.base(), self.flow(self.context))


def _check_precision(flow: nn.Module) -> None:
    """Refuses nets of a flow in half precision, in which its volume would be too coarse.

    Raises:
        TypeError: With the way to train in half precision.
    """
    first = next(flow.parameters(), None)  # the others have been converted with it
    if first is not None and first.dtype in (torch.bfloat16, torch.float16):
        raise TypeError(
            f"a flow needs its parameters in float32 or float64, got {first.dtype}: densities are sums of many small "
            "terms. Leave the module as it is and train with autocast=torch.bfloat16"
        )


Recipe: TypeAlias = Callable[[int, int, int, list[int]], Step]
"""From k, the size of the context, the place of the transform among the others, and widths, to the transform."""


def _transforms(
    flow: str | Sequence[Step],
    recipes: dict[str, Recipe],
    k: int,
    context_dim: int,
    num_flows: int,
    hidden_dims: int | Sequence[int],
) -> Transforms:
    if not isinstance(flow, str):
        return Transforms(flow)
    if flow not in recipes:
        raise ValueError(f"flow must be transforms or one of {', '.join(recipes)}; got {flow!r}")
    widths = list(as_shape(hidden_dims, "hidden_dims"))
    least = 1 if flow in ("planar", "householder") else k
    if not widths or min(widths) < least:
        raise ValueError(f"hidden_dims must be widths of at least {least} for this flow, got {hidden_dims!r}")
    return Transforms([recipes[flow](k, context_dim, i, widths) for i in range(check_count("num_flows", num_flows))])


def _masked_net(k: int, context_dim: int, place: int, widths: list[int], params: list[int]) -> nn.Module:
    order = torch.arange(k)
    return ConditionalAutoRegressiveNN(
        k, context_dim, widths, param_dims=params, permutation=order if place % 2 == 0 else order.flip(0)
    )


def _affine(k: int, context_dim: int, place: int, widths: list[int]) -> Step:
    return transforms.ConditionalAffineAutoregressive(_masked_net(k, context_dim, place, widths, [1, 1]))


def _spline(k: int, context_dim: int, place: int, widths: list[int]) -> Step:
    return AutoregressiveSpline(_masked_net(k, context_dim, place, widths, [3 * SPLINE_BINS - 1]))


def _planar(k: int, context_dim: int, place: int, widths: list[int]) -> Step:
    return InvertiblePlanar(DenseNN(context_dim, widths, [1, k, k]))


def _householder(k: int, context_dim: int, place: int, widths: list[int]) -> Step:
    return transforms.ConditionalHouseholder(k, DenseNN(context_dim, widths, [k]))


_POSTERIORS: dict[str, Recipe] = {"iaf": _affine, "planar": _planar, "householder": _householder, "spline": _spline}
_PRIORS: dict[str, Recipe] = {
    "maf": lambda *sizes: _affine(*sizes).inv,
    "spline": lambda *sizes: _spline(*sizes).inv,
}
