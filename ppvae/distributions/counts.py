"""Counts: Poisson, negative binomial and multinomial distributions, exact in float32, and likelihoods of them.

The terms of a count's log-probability are thousands of nats that cancel to a few: in float32 the distributions of these
names in PyTorch and Pyro are off by 1e-3 nats at a count of 3,000, and by nats where the negative binomial is nearly
Poisson. Here they are computed in float64 from logarithms of the parameters, and come back in the dtype of these.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn import functional as F

from ppvae._validate import check_flag, check_number
from ppvae.distributions.parameters import check_params, declared_out_shape, full_precision, resolve_event_dim


class Poisson(dist.TorchDistribution):
    r"""The Poisson distribution with rate :math:`\mu`, given as its logarithm.

    .. math:: \log p(x) = x \log \mu - \mu - \log x!

    Args:
        log_rate: log μ, any real numbers; ``batch_shape``.
        validate_args: Whether to check parameters and values; None follows the global setting.

    Example:
        >>> Poisson(torch.tensor(8.0)).log_prob(torch.tensor(2900.0))
        tensor(-6.0146)
    """

    arg_constraints = {"log_rate": constraints.real}  # noqa: RUF012
    support = constraints.nonnegative_integer

    def __init__(self, log_rate: Tensor, *, validate_args: bool | None = None) -> None:
        self.log_rate = log_rate
        super().__init__(log_rate.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Poisson:
        """Returns the distribution with its batch shape expanded."""
        new = self._get_checked_instance(Poisson, _instance)
        new.log_rate = self.log_rate.expand(batch_shape)
        super(Poisson, new).__init__(Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-probabilities of counts, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        log_rate, x = self.log_rate.double(), value.double()
        return (x * log_rate - log_rate.exp() - (x + 1).lgamma()).to(self.log_rate.dtype)

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draws counts, as floats."""
        with torch.no_grad():
            return torch.poisson(self.log_rate.exp().expand(self._extended_shape(sample_shape)))

    @property
    def mean(self) -> Tensor:
        """The rate."""
        return self.log_rate.exp()

    @property
    def variance(self) -> Tensor:
        """The rate."""
        return self.log_rate.exp()


class NegativeBinomial(dist.TorchDistribution):
    r"""The negative binomial distribution with mean :math:`\mu` and inverse dispersion :math:`\theta`, as logarithms.

    A Poisson distribution whose rate is gamma distributed; the variance is :math:`\mu + \mu^2 / \theta`, and towards
    :math:`\theta \to \infty` it is Poisson.

    .. math:: \log p(x) = \log \frac{\Gamma(x + \theta)}{\Gamma(\theta)\, x!}
        + \theta \log \frac{\theta}{\theta + \mu} + x \log \frac{\mu}{\theta + \mu}

    Within 1e-5 nats of the exact value up to θ = 1e9 (in float64, the parameters' own rounding left aside).

    Args:
        log_mean: log μ, any real numbers; broadcast with the other to ``batch_shape``.
        log_inverse_dispersion: log θ, any real numbers.
        validate_args: Whether to check parameters and values; None follows the global setting.

    Example:
        >>> NegativeBinomial(torch.tensor(3000.0).log(), torch.tensor(1e6).log()).log_prob(torch.tensor(2900.0))
        tensor(-6.5872)
    """

    arg_constraints = {  # noqa: RUF012
        "log_mean": constraints.real,
        "log_inverse_dispersion": constraints.real,
    }
    support = constraints.nonnegative_integer

    def __init__(self, log_mean: Tensor, log_inverse_dispersion: Tensor, *, validate_args: bool | None = None) -> None:
        self.log_mean, self.log_inverse_dispersion = broadcast_all(log_mean, log_inverse_dispersion)
        super().__init__(self.log_mean.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> NegativeBinomial:
        """Returns the distribution with its batch shape expanded."""
        new = self._get_checked_instance(NegativeBinomial, _instance)
        new.log_mean = self.log_mean.expand(batch_shape)
        new.log_inverse_dispersion = self.log_inverse_dispersion.expand(batch_shape)
        super(NegativeBinomial, new).__init__(Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-probabilities of counts, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        log_theta, x = self.log_inverse_dispersion.double(), value.double()
        ratio, theta = self.log_mean.double() - log_theta, log_theta.exp()
        ways = (x + theta).lgamma() - theta.lgamma() - (x + 1).lgamma()
        return (ways - theta * F.softplus(ratio) - x * F.softplus(-ratio)).to(self.log_mean.dtype)

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draws counts, as floats: a gamma rate, then a Poisson count."""
        with torch.no_grad():
            theta = self.log_inverse_dispersion.double().exp()
            rate = torch.distributions.Gamma(theta, theta / self.log_mean.double().exp(), validate_args=False)
            return torch.poisson(rate.sample(sample_shape)).to(self.log_mean.dtype)

    @property
    def mean(self) -> Tensor:
        """The mean, μ."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """The variance, μ + μ² / θ."""
        return self.mean + (2 * self.log_mean - self.log_inverse_dispersion).exp()


class Multinomial(dist.TorchDistribution):
    r"""How many of a total of draws fall into each of :math:`d` categories; each batch element has a total of its own.

    .. math:: \log p(x) = \log N! - \sum_i \log x_i! + \sum_i x_i \log \pi_i, \qquad \pi = \mathrm{softmax}(\ell)

    Args:
        logits: ℓ, any real numbers, ``(*batch_shape, d)``.
        total: N, whole numbers of at least 0, ``batch_shape`` or what broadcasts with it.
        validate_args: Whether to check parameters and values; None follows the global setting.

    Example:
        >>> Multinomial(torch.zeros(2), torch.tensor([1.0, 2.0])).log_prob(torch.tensor([[1.0, 0.0], [1.0, 1.0]])).exp()
        tensor([0.5000, 0.5000])
    """

    arg_constraints = {  # noqa: RUF012
        "logits": constraints.real_vector,
        "total": constraints.nonnegative_integer,
    }
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, logits: Tensor, total: Tensor, *, validate_args: bool | None = None) -> None:
        batch_shape = torch.broadcast_shapes(logits.shape[:-1], total.shape)
        self.logits = logits.expand(*batch_shape, -1)
        self.total = total.expand(batch_shape)
        super().__init__(batch_shape, logits.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Multinomial:
        """Returns the distribution with its batch shape expanded."""
        new = self._get_checked_instance(Multinomial, _instance)
        new.logits = self.logits.expand(*batch_shape, -1)
        new.total = self.total.expand(batch_shape)
        super(Multinomial, new).__init__(Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-probabilities of counts, in nats; −∞ where they do not sum to the total."""
        if self._validate_args:
            self._validate_sample(value)
        x, log_pi = value.double(), self.logits.double().log_softmax(-1)
        total = self.total.double()
        log_prob = (total + 1).lgamma() + (x * log_pi - (x + 1).lgamma()).sum(-1)
        return torch.where(x.sum(-1) == total, log_prob, -math.inf).to(self.logits.dtype)

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draws counts, as floats."""
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            pi = self.logits.softmax(-1).expand(shape).reshape(-1, shape[-1])
            total = self.total.expand(shape[:-1]).reshape(-1, 1).long()
            most = max(1, int(total.max()))
            drawn = torch.multinomial(pi, most, replacement=True)
            counted = (torch.arange(most, device=pi.device) < total).to(pi.dtype)
            return torch.zeros_like(pi).scatter_add_(-1, drawn, counted).reshape(shape)

    @property
    def mean(self) -> Tensor:
        """The means, N π."""
        return self.total.unsqueeze(-1) * self.logits.softmax(-1)

    @property
    def variance(self) -> Tensor:
        """The variances, N π (1 − π)."""
        pi = self.logits.softmax(-1)
        return self.total.unsqueeze(-1) * pi * (1 - pi)


class _CountsFromNet(nn.Module):
    """A net's parameters of each count, and the size of each datum that its means are multiples of."""

    def __init__(
        self, net: nn.Module, names: list[str], *, sized: bool, zero_inflated: bool, event_dim: int | None
    ) -> None:
        super().__init__()
        names = [*names, *(["gate"] if check_flag("zero_inflated", zero_inflated) else [])]
        check_flag("sized", sized)
        num_params = len(names) if len(names) > 1 else None
        self.event_dim = resolve_event_dim(net, num_params=num_params, event_dim=event_dim)
        self.net, self.names, self.sized = net, names, sized

    def parameters_of(self, context: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The net's output by name, each ``(..., *event_shape)``; the size is added to the log mean."""
        if self.sized and len(context) < 2:
            raise TypeError(f"{type(self).__name__}(sized=True) takes (*context, size), got {len(context)} argument(s)")
        size = context[-1] if self.sized else None
        output = full_precision(self.net(*(context[:-1] if self.sized else context)))
        if len(self.names) > 1:
            stacked = check_params(output, len(self.names), self.event_dim)
            named = dict(zip(self.names, stacked.unbind(-self.event_dim - 1), strict=True))
        else:
            named = {self.names[0]: output}
        if size is not None:
            log_size = size.to(output.dtype).log().reshape(*size.shape, *[1] * self.event_dim)
            named["log_mean"] = named["log_mean"] + log_size
        return named

    def inflated(self, base: dist.TorchDistribution, named: dict[str, Tensor]) -> dist.TorchDistribution:
        """The counts, with the zeros that the gate adds where there is one."""
        if "gate" in named:
            base = dist.ZeroInflatedDistribution(base, gate_logits=named["gate"])
        return base.to_event(self.event_dim)


class ConditionalPoisson(_CountsFromNet):
    r"""Independent Poisson counts given a context.

    .. math:: p(x \mid c) = \prod_i \mathrm{Poisson}\big(x_i;\, s\, e^{\eta_i(c)}\big)

    Args:
        net: A module from the context to η, ``(..., *event_shape)``; with ``zero_inflated`` to
            ``(..., 2, *event_shape)``, η and the logit of a further zero.
        sized: Whether the last context is a size s > 0 of each datum, ``(...)``, that its rates are multiples of: an
            exposure, a library size. Where it is computed from x itself, as the sum of the counts, what is reported is
            no probability of x.
        zero_inflated: Whether each count is also zero for another reason, with a probability of the net's.
        event_dim: Number of event dimensions; None reads it off the net's ``out_shape``, and is 1 for a net
            that declares none.

    Raises:
        ValueError: If the net's ``out_shape`` does not fit the options.
        TypeError: If ``net`` is not a module.

    Example:
        >>> from ppvae.nn import MLP
        >>> p_x_given_z = ConditionalPoisson(MLP(5, (32,), 200), sized=True)
        >>> p_x_given_z(torch.zeros(3, 128, 5), torch.full((128,), 1000.0)).sample().shape
        torch.Size([3, 128, 200])
    """

    def __init__(
        self, net: nn.Module, *, sized: bool = False, zero_inflated: bool = False, event_dim: int | None = None
    ) -> None:
        super().__init__(net, ["log_mean"], sized=sized, zero_inflated=zero_inflated, event_dim=event_dim)

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns p(x|c), of batch shape ``(...)`` and ``event_dim`` event dimensions."""
        named = self.parameters_of(context)
        return self.inflated(Poisson(named["log_mean"]), named)


class ConditionalNegativeBinomial(_CountsFromNet):
    r"""Independent negative binomial counts given a context: Poisson counts that vary more than their means.

    .. math:: p(x \mid c) = \prod_i \mathrm{NB}\big(x_i;\, s\, e^{\eta_i(c)},\, \theta_i\big), \qquad
        \mathrm{Var}\, x_i = \mu_i + \mu_i^2 / \theta_i

    Args:
        net: A module from the context to η, ``(..., *event_shape)``; or to ``(..., P, *event_shape)`` with the log of
            a conditional θ, and the logit of a further zero, below it.
        inverse_dispersion: θ: ``"learned"``, one for each element, which the net must then declare in its
            ``out_shape``, starting at one; ``"conditional"`` on the context; or a positive number, fixed.
        sized: As of `ConditionalPoisson`.
        zero_inflated: As of `ConditionalPoisson`.
        event_dim: Number of event dimensions; None reads it off the net's ``out_shape``, and is 1 for a net
            that declares none.

    Raises:
        ValueError: If an option is not one of the above, or the net's ``out_shape`` does not fit it.
        TypeError: If ``net`` is not a module.

    References:
        Deep generative modeling for single-cell transcriptomics (Lopez et al. 2018), Nature Methods 15.

    Example:
        >>> from ppvae.nn import MLP
        >>> p_x_given_z = ConditionalNegativeBinomial(MLP(5, (32,), (2, 200)), zero_inflated=True)
        >>> p_x_given_z(torch.zeros(128, 5)).log_prob(torch.zeros(128, 200)).shape
        torch.Size([128])
    """

    log_inverse_dispersion: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        inverse_dispersion: Literal["learned", "conditional"] | float = "learned",
        sized: bool = False,
        zero_inflated: bool = False,
        event_dim: int | None = None,
    ) -> None:
        names = ["log_mean", *(["log_inverse_dispersion"] if inverse_dispersion == "conditional" else [])]
        super().__init__(net, names, sized=sized, zero_inflated=zero_inflated, event_dim=event_dim)
        self.inverse_dispersion = inverse_dispersion
        if inverse_dispersion == "learned":
            shape = declared_out_shape(net)
            if shape is None:
                raise ValueError(
                    "inverse_dispersion='learned' needs a net that declares its out_shape, as those of ppvae.nn do: "
                    "there is one θ for each element"
                )
            self.log_inverse_dispersion = nn.Parameter(torch.zeros(shape[len(shape) - self.event_dim :]))
        elif inverse_dispersion != "conditional":
            if isinstance(inverse_dispersion, str):
                raise ValueError(
                    f"inverse_dispersion must be 'learned', 'conditional' or a number > 0, got {inverse_dispersion!r}"
                )
            number = check_number("inverse_dispersion", inverse_dispersion, above=0)
            self.register_buffer("log_inverse_dispersion", torch.tensor(math.log(number)), persistent=False)

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns p(x|c), of batch shape ``(...)`` and ``event_dim`` event dimensions."""
        named = self.parameters_of(context)
        log_theta = named.get("log_inverse_dispersion")
        log_theta = self.log_inverse_dispersion if log_theta is None else log_theta
        return self.inflated(NegativeBinomial(named["log_mean"], log_theta), named)


class ConditionalMultinomial(nn.Module):
    r"""The counts of a bag of words, of a known total, given a context.

    .. math:: p(x \mid c, N) = \mathrm{Multinomial}\big(x;\, N,\, \mathrm{softmax}\, \ell(c)\big)

    Args:
        net: A module from the context to the logits ℓ, ``(..., d)``.

    Raises:
        TypeError: If ``net`` is not a module.

    Example:
        >>> from ppvae.nn import MLP
        >>> p_x_given_z = ConditionalMultinomial(MLP(5, (32,), 200))
        >>> p_x_given_z(torch.zeros(128, 5), torch.full((128,), 30)).sample().sum(-1).unique()
        tensor([30.])
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.event_dim = resolve_event_dim(net, num_params=None, event_dim=1)
        self.net = net

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns p(x|c, N) for a context whose last element is N, ``(...)``."""
        if len(context) < 2:
            raise TypeError(f"ConditionalMultinomial takes (*context, total), got {len(context)} argument(s)")
        return Multinomial(full_precision(self.net(*context[:-1])), context[-1])
