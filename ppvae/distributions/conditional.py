"""Distributions whose parameters a net computes from a context.

The family says nothing about the role: each is a prior, a posterior or a likelihood depending on where it is
plugged in.
"""

import pyro.distributions as dist
from torch import Tensor, nn

from ppvae._validate import check_count
from ppvae.distributions.parameters import LocationScale, Scale, check_params, full_precision, resolve_event_dim


class ConditionalNormal(LocationScale):
    r"""A diagonal normal distribution given a context.

    .. math:: p(x \mid c) = \mathcal{N}\big(x;\, \mu(c),\, \mathrm{diag}\, \sigma(c)^2\big), \qquad
        \sigma(c) = \sigma_{\min} + \mathrm{softplus}(\rho(c))

    Args:
        net: A module from the context to ``(..., 2, *event_shape)``, which are μ and ρ stacked, where
            ``scale`` is ``"conditional"``; to ``(..., *event_shape)``, which is μ, otherwise.
        scale: ``"conditional"`` on the context; ``"learned"``, one parameter for all elements, which starts
            at one; or a positive number, fixed. In units of the data.
        min_scale: σ_min, the least scale that is conditional or learned, in units of the data.
        event_dim: Number of event dimensions; None reads it off the net's ``out_shape``, and is 1 for a net
            that declares none.

    Raises:
        ValueError: If an option is not one of the above, or the net's ``out_shape`` does not fit it.
        TypeError: If ``net`` is not a module.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling 2014), arXiv 1312.6114.
        Simple and Effective VAE Training with Calibrated Decoders (Rybkin et al. 2021), arXiv 2006.13202: the
        learned scale.

    Example:
        >>> import torch
        >>> from ppvae.nn import MLP
        >>> q_z_given_x = ConditionalNormal(MLP(784, (400,), (2, 20)))
        >>> q_z_given_x(torch.zeros(128, 784)).rsample((5,)).shape
        torch.Size([5, 128, 20])
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        scale: Scale = "conditional",
        min_scale: float = 1e-4,
        event_dim: int | None = None,
    ) -> None:
        super().__init__(net, scale, first_scale=1.0, min_scale=min_scale, event_dim=event_dim)

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns p(x|c), of batch shape ``(...)`` and ``event_dim`` event dimensions."""
        return dist.Normal(*self.location_scale(*context)).to_event(self.event_dim)


class ConditionalBernoulli(nn.Module):
    r"""Independent Bernoulli variables given a context.

    .. math:: p(x \mid c) = \prod_i \pi_i^{x_i} (1 - \pi_i)^{1 - x_i}, \qquad \pi = \mathrm{sigmoid}(\ell(c))

    Args:
        net: A module from the context to the logits ℓ, ``(..., *event_shape)``.
        event_dim: Number of event dimensions; None reads it off the net's ``out_shape``, and is 1 for a net
            that declares none.

    Raises:
        ValueError: If ``event_dim`` is negative or beyond the net's ``out_shape``.
        TypeError: If ``net`` is not a module.

    Example:
        >>> import torch
        >>> from ppvae.nn import MLP
        >>> p_x_given_z = ConditionalBernoulli(MLP(20, (400,), 784))
        >>> p_x_given_z(torch.zeros(5, 128, 20)).log_prob(torch.zeros(128, 784)).shape
        torch.Size([5, 128])
    """

    def __init__(self, net: nn.Module, *, event_dim: int | None = None) -> None:
        super().__init__()
        self.event_dim = resolve_event_dim(net, num_params=None, event_dim=event_dim)
        self.net = net

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns p(x|c), of batch shape ``(...)`` and ``event_dim`` event dimensions."""
        return dist.Bernoulli(logits=full_precision(self.net(*context))).to_event(self.event_dim)


class ConditionalCategorical(nn.Module):
    r"""Independent categorical variables given a context: a label, tokens, or pixels of discrete levels.

    .. math:: p(x \mid c) = \prod_i \mathrm{softmax}(\ell_i(c))_{x_i}

    Args:
        net: A module from the context to the logits ℓ, ``(..., num_classes, *event_shape)``: a single label
            has the event shape ``()``, a sequence ``(t,)``, an image ``(c, h, w)``.
        num_classes: Number of classes; values are integers from 0 to ``num_classes - 1``.
        event_dim: Number of event dimensions; None reads it off the net's ``out_shape``, and is 1 for a net
            that declares none.

    Raises:
        ValueError: If an option is not one of the above, or the net's ``out_shape`` does not fit it.
        TypeError: If ``net`` is not a module.

    Example:
        >>> import torch
        >>> from ppvae.nn import MLP
        >>> q_y_given_x = ConditionalCategorical(MLP(784, (500,), 10), num_classes=10)
        >>> q_y_given_x(torch.zeros(128, 784)).sample().shape
        torch.Size([128])
    """

    def __init__(self, net: nn.Module, *, num_classes: int, event_dim: int | None = None) -> None:
        super().__init__()
        self.num_classes = check_count("num_classes", num_classes)
        self.event_dim = resolve_event_dim(net, num_params=num_classes, event_dim=event_dim)
        self.net = net

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns p(x|c), of batch shape ``(...)`` and ``event_dim`` event dimensions."""
        logits = check_params(full_precision(self.net(*context)), self.num_classes, self.event_dim)
        return dist.Categorical(logits=logits.movedim(-self.event_dim - 1, -1)).to_event(self.event_dim)
