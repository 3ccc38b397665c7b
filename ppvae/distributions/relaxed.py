"""Discrete latents that gradients go through: concrete relaxations, and straight-through draws.

With Gumbel noise g, z = onehot argmax_c(ℓ_c + g_c) is an exact draw from Categorical(softmax ℓ), and

    s = softmax((ℓ + g) / τ)

is a point of the simplex near it, differentiable in ℓ; s → z as the temperature τ → 0. Of a Bernoulli variable, the
same with logistic noise and a sigmoid. Two ways to train by it:

    `Concrete`         draws s in the model and in the guide, with its densities there (Maddison et al. 2017). The ELBO
                       is one of the relaxed model, whose latent is s, and bounds no other.
    `StraightThrough`  draws z, with its probabilities, and takes the gradient of s for the one that z has not (Jang et
                       al. 2017). The ELBO is that of the discrete model; its gradient is biased.

In eval mode both are the discrete variable itself, so that validation, `elbo` and `log_marginal` are of the discrete
model.

    The Concrete Distribution (Maddison, Mnih & Teh 2017), arXiv 1611.00712
    Categorical Reparameterization with Gumbel-Softmax (Jang, Gu & Poole 2017), arXiv 1611.01144
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.score_parts import ScoreParts
from torch import Size, Tensor, nn
from torch.distributions import Bernoulli, Categorical, Independent, OneHotCategorical
from torch.distributions.utils import clamp_probs
from torch.nn import functional as F

from ppvae._validate import check_number, check_takes

Temperature = float | Callable[[float], float]
"""τ, or a function from the time in epochs to it (see `ppvae.objectives.schedule`)."""


class OneHotConcrete(dist.RelaxedOneHotCategorical):
    r"""The concrete distribution on the simplex, with its density exact at any temperature.

    .. math:: p(s) = (c - 1)!\, \tau^{c-1} \prod_k \frac{\pi_k\, s_k^{-\tau-1}}{\sum_i \pi_i\, s_i^{-\tau}}

    At low temperatures elements of s are zero in the numbers of the machine, and what computes the density from s, as
    torch does, returns NaN. A draw of this class keeps log s beside s, from which its density under this or another
    concrete distribution is computed.

    Args:
        temperature: τ > 0, a 0-d tensor.
        logits: ℓ, shape (*batch, c).
        probs: π = softmax(ℓ), in the place of `logits`.

    Example:
        >>> s = OneHotConcrete(torch.tensor(0.1), logits=torch.zeros(5, 3)).rsample()
        >>> torch.allclose(s.sum(-1), torch.ones(5))
        True
    """

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draws of shape (*sample_shape, *batch, c)."""
        log_value = _gumbel_softmax(self.logits, self.temperature, self._extended_shape(sample_shape))
        return _keeping(log_value.exp(), relaxed=log_value)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, with respect to any c − 1 of the elements."""
        if self._validate_args:
            self._validate_sample(value)
        log_value = _relaxed(value)
        if log_value is None:
            log_value = value.clamp_min(torch.finfo(value.dtype).tiny).log()
        return self.base_dist.log_prob(log_value) - log_value.sum(-1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """There are none.

        Raises:
            NotImplementedError: always.
        """
        raise _no_values()


class BinaryConcrete(dist.RelaxedBernoulli):
    r"""The concrete distribution on (0, 1), with its density exact at any temperature.

    .. math:: \mathrm{logit}(s) = (\ell + \text{logistic noise}) / \tau

    Args:
        temperature: τ > 0, a 0-d tensor.
        logits: ℓ, shape (*batch).
        probs: sigmoid(ℓ), in the place of `logits`.

    Example:
        >>> s = BinaryConcrete(torch.tensor(0.1), logits=torch.zeros(3)).rsample()
        >>> bool(((s >= 0) & (s <= 1)).all())
        True
    """

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draws of shape (*sample_shape, *batch); each keeps its logit."""
        logit = _logistic(self.logits, self.temperature, self._extended_shape(sample_shape))
        return _keeping(logit.sigmoid(), relaxed=logit)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, shape (*batch)."""
        if self._validate_args:
            self._validate_sample(value)
        logit = _relaxed(value)
        if logit is None:
            logit = torch.logit(value, eps=torch.finfo(value.dtype).eps)
        noise = self.logits - self.temperature * logit
        volume = F.softplus(logit) + F.softplus(-logit)  # −log |ds / d logit|
        return self.temperature.log() + noise - 2 * F.softplus(noise) + volume

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """There are none.

        Raises:
            NotImplementedError: always.
        """
        raise _no_values()


class OneHotStraightThrough(dist.OneHotCategorical):
    """A categorical variable as rows of zeros and a one; gradients of its draws are those of a concrete variable.

    Its draws, probabilities, entropy and list of values are those of `OneHotCategorical`. Log-probabilities also have a
    gradient in their argument, Σ_c log π_c dz_c: without it an ELBO of samples would train the guide as though the KL
    term did not exist.

    Args:
        temperature: τ > 0, a 0-d tensor.
        logits: ℓ, shape (*batch, c).
    """

    has_rsample = True

    def __init__(self, temperature: Tensor, *, logits: Tensor, validate_args: bool | None = None) -> None:
        self.temperature = temperature
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> OneHotStraightThrough:
        """The same with an expanded batch shape."""
        new = self._get_checked_instance(OneHotStraightThrough, _instance)
        new.temperature = self.temperature
        return super().expand(batch_shape, _instance=new)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draws of shape (*sample_shape, *batch, c)."""
        soft = _gumbel_softmax(self.logits, self.temperature, self._extended_shape(sample_shape)).exp()
        hard = torch.zeros_like(soft).scatter(-1, soft.argmax(-1, keepdim=True), 1.0)
        return _keeping(hard + (soft - soft.detach()), hard=hard)

    def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:
        """What Pyro's estimators take: of listed values, weights."""
        return _score_parts(x, self.log_prob(x))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability, shape (*batch)."""
        _check_hard(value)
        log_p = super().log_prob(value)
        if not value.requires_grad:
            return log_p
        finite = self.logits.detach().clamp_min(torch.finfo(self.logits.dtype).min)
        return log_p + ((value - value.detach()) * finite).sum(-1)  # zero, with the gradient in the value


class BinaryStraightThrough(dist.Bernoulli):
    """A Bernoulli variable; gradients of its draws are those of a concrete variable.

    Args:
        temperature: τ > 0, a 0-d tensor.
        logits: ℓ, shape (*batch).
    """

    has_rsample = True

    def __init__(self, temperature: Tensor, *, logits: Tensor, validate_args: bool | None = None) -> None:
        self.temperature = temperature
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> BinaryStraightThrough:
        """The same with an expanded batch shape."""
        new = self._get_checked_instance(BinaryStraightThrough, _instance)
        new.temperature = self.temperature
        return super().expand(batch_shape, _instance=new)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draws of shape (*sample_shape, *batch)."""
        logit = _logistic(self.logits, self.temperature, self._extended_shape(sample_shape))
        soft = logit.sigmoid()
        hard = (logit > 0).to(soft.dtype)
        return _keeping(hard + (soft - soft.detach()), hard=hard)

    def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:
        """What Pyro's estimators take: of listed values, weights."""
        return _score_parts(x, self.log_prob(x))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability, shape (*batch); with a gradient in the value."""
        _check_hard(value)
        return super().log_prob(value)

    @property
    def mode(self) -> Tensor:
        """The more probable value; of two alike, zero, where torch has NaN."""
        return (self.logits > 0).to(self.logits.dtype)


class _Relaxation(nn.Module, ABC):
    """A module over one that returns a discrete distribution, with a temperature."""

    temperature: Tensor

    def __init__(self, piece: nn.Module, temperature: Temperature = 0.5) -> None:
        super().__init__()
        if not isinstance(piece, nn.Module):
            raise TypeError(f"piece must be a module that returns a distribution, got {type(piece).__name__}")
        self.piece = piece
        self.schedule = temperature
        if callable(temperature):
            check_takes("temperature", temperature, "epoch")
        # It has no place in the state: a number comes with the constructor, a schedule with the time.
        self.register_buffer("temperature", torch.tensor(self._at(0.0)), persistent=False)

    @property
    @abstractmethod
    def families(self) -> tuple[Any, Any]:
        """What is returned while training, of a categorical variable and of a Bernoulli variable."""

    def set_time(self, epoch: float, device: torch.device | None = None) -> None:
        """Sets the temperature to what its schedule gives, in place: `ppvae.fit` does before every step.

        Args:
            epoch: the time in epochs.
            device: where the pair trains; the temperature is there.
        """
        if callable(self.schedule):
            self.temperature.fill_(self._at(epoch))

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """The distribution of one-hot rows, event shape (..., c), or of zeros and ones."""
        fn, dims = self.piece(*context), 0
        while isinstance(fn, Independent):
            fn, dims = fn.base_dist, dims + fn.reinterpreted_batch_ndims
        one_hot, binary = self.families if self.training else (OneHotStraightThrough, BinaryStraightThrough)
        if isinstance(fn, Categorical | OneHotCategorical):
            return one_hot(self.temperature, logits=fn.logits).to_event(dims)
        if isinstance(fn, Bernoulli):
            return binary(self.temperature, logits=fn.logits).to_event(dims)
        raise TypeError(
            f"piece must return a Categorical, OneHotCategorical or Bernoulli, got {type(fn).__name__}: others have no "
            "relaxation here"
        )

    def extra_repr(self) -> str:
        """Describes the temperature."""
        return f"temperature={self.schedule}"

    def _at(self, epoch: float) -> float:
        if not callable(self.schedule):
            return check_number("temperature", self.schedule, above=0)
        return check_number(f"temperature, of its schedule at epoch {epoch:g},", self.schedule(epoch), above=0)


class Concrete(_Relaxation):
    r"""The relaxation of a discrete piece while training; the discrete variable itself in eval mode.

    Put it over the prior and over the posterior, and the ELBO is

    .. math:: E_{q_\tau(s|x)}[\log p(x|s) + \log p_\tau(s) - \log q_\tau(s|x)],

    in which both densities are concrete ones: a lower bound on log p(x) of the relaxed model, unbiased with its
    gradient. It is no bound on log p(x) of the discrete one, and the columns `loss` and `elbo` of the history are of
    the former; `valid_elbo`, `elbo` and `log_marginal` run in eval mode, and are of the latter. (The discrete KL beside
    relaxed draws, as in much public code, bounds neither.) The former tends to the latter as τ → 0, while the variance
    of the gradient grows; p(x|s) must take points inside the simplex.

    Args:
        piece: a module that returns a `Categorical`, whose values become one-hot rows, (..., c) in place of (...), a
            `OneHotCategorical`, or a `Bernoulli`; each also with event dims. E.g. `ConditionalCategorical`,
            `UniformCategorical`, `ConditionalBernoulli`.
        temperature: τ > 0, or a schedule of it, e.g. `ppvae.objectives.Linear(50, 1.0, 0.5)`; it moves in `ppvae.fit`
            alone: with an SVI of your own, call `set_time(epoch)` before its steps.

    Raises:
        TypeError: where `piece` is no module, or returns another distribution.
        ValueError: where a temperature is not a finite number above 0.

    References:
        The Concrete Distribution (Maddison, Mnih & Teh 2017), arXiv 1611.00712.

    Example:
        >>> from ppvae.distributions import ConditionalCategorical
        >>> from ppvae.nn import MLP
        >>> q_z_given_x = Concrete(ConditionalCategorical(MLP(784, (400,), 10), num_classes=10), temperature=0.67)
        >>> q_z_given_x(torch.zeros(128, 784)).rsample().shape
        torch.Size([128, 10])
        >>> q_z_given_x.eval()(torch.zeros(784)).sample().sort().values
        tensor([0., 0., 0., 0., 0., 0., 0., 0., 0., 1.])
    """

    @property
    def families(self) -> tuple[Any, Any]:
        """The concrete distributions."""
        return OneHotConcrete, BinaryConcrete


class StraightThrough(_Relaxation):
    """The draws of a discrete piece, with the gradients of its relaxation.

    Put it over the prior and over the posterior: values, probabilities and with them the ELBO are those of the discrete
    model, while training too. Only the gradient is another than the ELBO's: that of p(x|z) goes through the draw z as
    though it were the relaxed one. That of the KL terms is exact with `TraceMeanField_ELBO`, which knows them in
    closed form. For p(x|z) of which log p is quadratic in z, the bias vanishes as τ → 0, while the variance grows.

    Args:
        piece: as of `Concrete`.
        temperature: as of `Concrete`; of a prior it does not matter.

    Raises:
        TypeError: where `piece` is no module, or returns another distribution.
        ValueError: where a temperature is not a finite number above 0.

    References:
        Categorical Reparameterization with Gumbel-Softmax (Jang, Gu & Poole 2017), arXiv 1611.01144.

    Example:
        >>> from ppvae.distributions import UniformCategorical
        >>> p_z = StraightThrough(UniformCategorical(3))
        >>> p_z().log_prob(torch.eye(3))
        tensor([-1.0986, -1.0986, -1.0986])
    """

    @property
    def families(self) -> tuple[Any, Any]:
        """The distributions of hard draws."""
        return OneHotStraightThrough, BinaryStraightThrough


def _gumbel_softmax(logits: Tensor, temperature: Tensor, shape: Size) -> Tensor:
    """Log s, s = softmax((ℓ + g) / τ)."""
    uniform = clamp_probs(torch.rand(shape, dtype=logits.dtype, device=logits.device))
    return ((logits - (-uniform.log()).log()) / temperature).log_softmax(-1)


def _logistic(logits: Tensor, temperature: Tensor, shape: Size) -> Tensor:
    """(ℓ + logistic noise) / τ."""
    uniform = clamp_probs(torch.rand(shape, dtype=logits.dtype, device=logits.device))
    return (logits + uniform.log() - (-uniform).log1p()) / temperature


def _keeping(value: Tensor, **kept: Tensor) -> Tensor:
    """A draw that keeps what it was made of; `ppvae.traces.carrying` takes that along where samplers reshape draws."""
    for name, source in kept.items():
        setattr(value, name, source)
    return value


def _relaxed(value: Tensor) -> Tensor | None:
    """What a relaxed draw was made of, before its exponential or sigmoid; None of values from elsewhere.

    Raises:
        ValueError: of a hard draw, whose concrete density is zero or infinite.
    """
    if hasattr(value, "hard"):
        raise ValueError("a straight-through draw has no concrete density: put StraightThrough over the prior too")
    return getattr(value, "relaxed", None)


def _check_hard(value: Tensor) -> None:
    """Checks that a value is none of the points between those of the discrete variable.

    Raises:
        ValueError: of a relaxed draw.
    """
    if hasattr(value, "relaxed"):
        raise ValueError("a relaxed draw has no probability: put Concrete over the prior and the posterior alike")


def _score_parts(value: Tensor, log_p: Tensor) -> ScoreParts:
    """The parts of a draw, whose gradient is in its value; or those of a value that Pyro has listed, to be summed over.

    Pyro reads the weight of a listed value off its score function, and takes it for one where draws are differentiable.
    """
    if value.requires_grad or hasattr(value, "hard"):
        return ScoreParts(log_prob=log_p, score_function=0, entropy_term=log_p)
    return ScoreParts(log_prob=log_p, score_function=log_p, entropy_term=0)


def _no_values() -> NotImplementedError:
    return NotImplementedError(
        "a relaxed variable has no values to sum over: train it without infer={'enumerate': ...}, by Trace_ELBO or "
        "TraceMeanField_ELBO, and mark the guide for evaluation alone, Pair(model, config_enumerate(guide))"
    )
