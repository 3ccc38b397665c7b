"""Mixture priors: of learned normals, and of an encoder's own posteriors."""

from collections.abc import Sequence
from typing import Literal, Self, get_args

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional as F

from ppvae._validate import check_count, check_flag, check_number, check_seed, check_tensor
from ppvae.distributions.normal_mixture import NormalMixture
from ppvae.distributions.parameters import full_precision
from ppvae.nn import as_shape

Covariance = Literal["diagonal", "full"]
"""Of the components of a mixture."""


class MixturePrior(nn.Module):
    r"""A mixture of normals with learned weights, means and covariances, the same for every context.

    .. math:: p(z) = \sum_j \pi_j\, \mathcal{N}\big(z;\, \mu_j,\, L_j L_j^\top\big), \qquad
        L_{j,ii} = \sigma_{\min} + \mathrm{softplus}(\rho_{ji})

    with L diagonal, or lower triangular. The weights start equal, the means as draws from N(0, I), the covariances at
    the identity. With one component it is a learned normal. `fit_to` sets all of it to what fits given codes best.

    Args:
        num_components: Number of components.
        event_shape: Shape of one ``z``; an int means one dimension.
        covariance: Of each component, ``"diagonal"`` or ``"full"``; the latter is of one event dimension.
        min_scale: σ_min, the least scale.

    Raises:
        ValueError: If a size is not a positive int, ``min_scale`` is not in (0, 1), or ``covariance`` is another.

    References:
        VAE with a VampPrior (Tomczak & Welling 2018), arXiv 1705.07120: the mixture of Gaussians prior.
        From variational to deterministic autoencoders (Ghosh et al. 2020), arXiv 1903.12436: one fitted afterwards.

    Example:
        >>> p_z = MixturePrior(10, 20)
        >>> p_z().log_prob(torch.zeros(5, 128, 20)).shape
        torch.Size([5, 128])
    """

    def __init__(
        self,
        num_components: int,
        event_shape: int | Sequence[int],
        *,
        covariance: Covariance = "diagonal",
        min_scale: float = 1e-4,
    ) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape, "event_shape")
        check_number("min_scale", min_scale, above=0, below=1)
        if covariance not in get_args(Covariance):
            raise ValueError(f"covariance must be 'diagonal' or 'full', got {covariance!r}")
        if covariance == "full" and len(self.event_shape) != 1:
            raise ValueError(f"covariance 'full' is of one event dimension, got the event_shape {self.event_shape}")
        self.min_scale, self.covariance = min_scale, covariance
        size = (check_count("num_components", num_components), *self.event_shape)
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(torch.randn(size))
        # The inverse of softplus, so that the scales start at one.
        self.raw_scale = nn.Parameter(torch.full(size, 1.0 - min_scale).expm1().log())
        if covariance == "full":
            self.lower = nn.Parameter(torch.zeros(*size, size[-1]))

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns p(z), of batch shape ``()`` and event shape ``event_shape``, whatever the context."""
        scale = F.softplus(self.raw_scale) + self.min_scale
        if self.covariance == "diagonal":
            return NormalMixture(self.logits, dist.Normal(self.loc, scale).to_event(len(self.event_shape)))
        components = dist.MultivariateNormal(self.loc, scale_tril=self.lower.tril(-1) + scale.diag_embed())
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)

    @torch.no_grad()
    def fit_to(self, codes: Tensor, *, seed: int = 0) -> Self:
        """Sets weights, means and covariances to those of maximum likelihood, as far as scikit-learn's EM finds them.

        Args:
            codes: ``(n, *event_shape)``, at least as many as there are components.
            seed: Of the means that EM starts at.

        Returns:
            The prior itself.

        Raises:
            TypeError: If ``codes`` is not a tensor.
            ValueError: If it is of another shape, not finite, or too few.
        """
        from sklearn.mixture import GaussianMixture

        check_tensor("codes", codes)
        check_seed(seed)
        num, k = len(self.logits), self.event_shape
        if codes.shape[1:] != k or len(codes) < max(2, num):
            raise ValueError(
                f"codes must be of shape (n, {str(k)[1:]} with n at least {max(2, num)}, got {tuple(codes.shape)}"
            )
        if not codes.isfinite().all():
            raise ValueError("codes must be finite, got NaN or infinite values")
        kind = "diag" if self.covariance == "diagonal" else "full"
        least = max(1e-6, 4 * self.min_scale**2)  # added to variances, so that no scale is as small as the least one
        mixture = GaussianMixture(num, covariance_type=kind, reg_covar=least, random_state=seed % 2**32)
        mixture.fit(codes.reshape(len(codes), -1).double().cpu().numpy())
        found = {name: torch.as_tensor(getattr(mixture, name)) for name in ("weights_", "means_", "covariances_")}
        factor = found["covariances_"].sqrt() if kind == "diag" else torch.linalg.cholesky(found["covariances_"])
        scale = factor if kind == "diag" else factor.diagonal(dim1=-2, dim2=-1)
        self.logits.copy_(found["weights_"].log())
        self.loc.copy_(found["means_"].reshape(self.loc.shape))
        above = (scale - self.min_scale).reshape(self.loc.shape)
        self.raw_scale.copy_(above + (-(-above).expm1()).log())  # the inverse of softplus
        if kind == "full":
            self.lower.copy_(factor.tril(-1))
        return self

    def extra_repr(self) -> str:
        """Describes the sizes."""
        return (
            f"num_components={len(self.logits)}, event_shape={self.event_shape}, covariance={self.covariance!r}, "
            f"min_scale={self.min_scale:g}"
        )


class VampPrior(nn.Module):
    r"""The average of an encoder's posteriors at pseudo-inputs u, the same for every context.

    .. math:: p(z) = \frac{1}{K} \sum_{j=1}^K q(z \mid u_j)

    It is a prior for the pair that the encoder belongs to, whose parameters it shares: they are trained and saved
    once, with the encoder. It keeps the encoder that it was given: where the guide of a pair is exchanged, so must be
    the prior. The encoder runs once a call, on the K pseudo-inputs, whatever the number of particles. In
    training mode its batch normalisation normalises them by their own statistics, which enter the running ones as a
    batch would, and its dropout makes the prior a random one; in evaluation mode the density is exact.

    Args:
        q_z_given_x: The encoder, a module from ``(K, *x_shape)`` to a distribution of batch shape ``(K,)`` of any
            family.
        pseudo_inputs: Where they start, ``(K, *x_shape)``: K of the data, ``x[torch.randperm(len(x))[:K]]``, or, as in
            the paper, ``0.05 + 0.01 * torch.randn(K, *x_shape)``.
        learned: Whether they are parameters, or stay as they are.
        bounds: The range that learned pseudo-inputs are cut to (hard tanh), that of the data; None for data without
            bounds. What starts on a bound or beyond is moved inside by a hundredth of the range: there the cut has
            no gradient.

    Raises:
        ValueError: If ``pseudo_inputs`` is empty or not finite, or ``bounds`` are not two finite numbers in order; on
            a call, if the encoder's batch shape is not ``(K,)``.
        TypeError: If ``q_z_given_x`` is not a module, or ``pseudo_inputs`` not a tensor.

    References:
        VAE with a VampPrior (Tomczak & Welling 2018), arXiv 1705.07120.

    Example:
        >>> from ppvae.distributions import ConditionalNormal
        >>> from ppvae.nn import MLP
        >>> q_z_given_x = ConditionalNormal(MLP(784, (300,), (2, 40)))
        >>> p_z = VampPrior(q_z_given_x, torch.rand(500, 784))
        >>> p_z().log_prob(torch.zeros(128, 40)).shape
        torch.Size([128])
    """

    pseudo: Tensor

    def __init__(
        self,
        q_z_given_x: nn.Module,
        pseudo_inputs: Tensor,
        *,
        learned: bool = True,
        bounds: tuple[float, float] | None = (0.0, 1.0),
    ) -> None:
        super().__init__()
        if not isinstance(q_z_given_x, nn.Module):
            raise TypeError(f"q_z_given_x must be a torch.nn.Module, got {type(q_z_given_x).__name__}")
        check_tensor("pseudo_inputs", pseudo_inputs)
        check_flag("learned", learned)
        if not pseudo_inputs.dim() or not pseudo_inputs.numel():
            raise ValueError(f"pseudo_inputs must be of shape (K, *x_shape), got {tuple(pseudo_inputs.shape)}")
        if not pseudo_inputs.isfinite().all():
            raise ValueError("pseudo_inputs must be finite, got NaN or infinite values")
        declared = getattr(getattr(q_z_given_x, "net", None), "in_shape", None)
        if declared is not None and pseudo_inputs.shape[1:] != declared:
            raise ValueError(
                f"pseudo_inputs must be of shape (K, {str(declared)[1:]} what q_z_given_x takes, got "
                f"{tuple(pseudo_inputs.shape)}"
            )
        self._q_z_given_x = (q_z_given_x,)  # in a tuple: its parameters belong to the pair's encoder
        self.bounds = _check_bounds(bounds) if learned else None
        start = pseudo_inputs.detach().clone()
        if not learned:
            self.register_buffer("pseudo", start)
            return
        start = start if start.is_floating_point() else start.to(torch.get_default_dtype())
        if self.bounds is not None:
            (low, high), margin = self.bounds, 0.01 * (self.bounds[1] - self.bounds[0])
            start = start.clamp(low + margin, high - margin)
        self.pseudo = nn.Parameter(start)

    @property
    def pseudo_inputs(self) -> Tensor:
        """The pseudo-inputs u, ``(K, *x_shape)``."""
        return self.pseudo if self.bounds is None else F.hardtanh(self.pseudo, *self.bounds)

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns p(z), of batch shape ``()``, whatever the context."""
        components = self._q_z_given_x[0](self.pseudo_inputs)
        if not isinstance(components, Distribution) or components.batch_shape != self.pseudo.shape[:1]:
            got = tuple(components.batch_shape) if isinstance(components, Distribution) else type(components).__name__
            raise ValueError(
                f"q_z_given_x must return a distribution of batch shape ({len(self.pseudo)},) for as many "
                f"pseudo-inputs, got {got}"
            )
        logits = full_precision(self.pseudo).new_zeros(len(self.pseudo))
        if NormalMixture.takes(components):
            return NormalMixture(logits, components)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), components)

    def extra_repr(self) -> str:
        """Describes the pseudo-inputs."""
        return f"pseudo_inputs={tuple(self.pseudo.shape)}, bounds={self.bounds}"


def _check_bounds(bounds: tuple[float, float] | None) -> tuple[float, float] | None:
    if bounds is None:
        return None
    numbers = isinstance(bounds, tuple | list) and all(isinstance(bound, int | float) for bound in bounds)
    if not numbers or len(bounds) != 2 or not 0 < bounds[1] - bounds[0] < float("inf"):
        raise ValueError(f"bounds must be None or two finite numbers (low, high) with low < high, got {bounds!r}")
    return float(bounds[0]), float(bounds[1])
