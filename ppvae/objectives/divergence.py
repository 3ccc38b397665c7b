"""How far codes are from other draws, by the draws alone: a kernel (MMD), or a critic (a density ratio)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus

from ppvae._validate import check_count, check_number

EncoderLoss = Literal["ratio", "non-saturating"]
"""What the encoder minimises of a critic's logit T: T itself, or log (1 + exp T)."""

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Those of the code of Tolstikhin et al. 2018."""


@dataclass(frozen=True)
class MMD:
    r"""The squared maximum mean discrepancy of two distributions, from as many draws of each: a U-statistic.

    .. math:: \frac{1}{n(n-1)} \sum_{i \ne j} \big(k(z_i, z_j) + k(z'_i, z'_j)\big)
        - \frac{2}{n^2} \sum_{i,j} k(z_i, z'_j)

    It is unbiased, so that it is zero in the mean, and often negative, where the two are the same. The kernel is a sum
    over scales s, with C_s = 2 k v s for draws of k dimensions:

    .. math:: k_\mathrm{imq}(a, b) = \sum_s \frac{C_s}{C_s + \|a - b\|^2}, \qquad
        k_\mathrm{rbf}(a, b) = \sum_s \exp\Big(-\frac{\|a - b\|^2}{C_s}\Big)

    Args:
        kernel: "imq", inverse multiquadratic, whose tails still see codes that are far away, or "rbf".
        scales: s, in units of the mean squared distance of two draws from a normal of variance v.
        variance: v, that of one dimension of the prior.

    Raises:
        ValueError: where an option is none of these; on a call, of fewer than two draws.

    References:
        Wasserstein auto-encoders (Tolstikhin et al. 2018), arXiv 1711.01558, algorithm 2.
        A kernel two-sample test (Gretton et al. 2012), lemma 6.

    Example:
        >>> import torch
        >>> MMD("rbf")(torch.zeros(100, 2) + 5.0, torch.randn(100, 2)) > 1
        tensor(True)
    """

    kernel: Literal["imq", "rbf"] = "imq"
    scales: tuple[float, ...] = SCALES
    variance: float = 1.0

    def __post_init__(self) -> None:
        if self.kernel not in ("imq", "rbf"):
            raise ValueError(f"kernel must be 'imq' or 'rbf', got {self.kernel!r}")
        if not isinstance(self.scales, tuple) or not self.scales:
            raise ValueError(f"scales must be a tuple of positive numbers, got {self.scales!r}")
        for i, scale in enumerate(self.scales):
            check_number(f"scales[{i}]", scale, above=0)
        check_number("variance", self.variance, above=0)

    def __call__(self, z: Tensor, others: Tensor) -> Tensor:
        """The estimate, 0-d, from draws (n, k) of each."""
        n = len(z)
        if n < 2:
            raise ValueError(
                "MMD compares pairs of data, and a minibatch of one datum has none: choose another batch_size, or "
                "leave the last minibatch out, ppvae.data.Batches(x, batch_size=..., drop_last=True)"
            )
        same = sum(kernel.sum() - kernel.diagonal().sum() for kernel in (self.gram(z, z), self.gram(others, others)))
        return same / (n * (n - 1)) - 2 * self.gram(z, others).mean()

    def gram(self, a: Tensor, b: Tensor) -> Tensor:
        """The kernel of every pair, (n, m), of draws (n, k) and (m, k)."""
        squares = (a.square().sum(-1, keepdim=True) + b.square().sum(-1) - 2 * a @ b.T).clamp(min=0)
        unit = 2 * a.shape[-1] * self.variance
        if self.kernel == "imq":
            return torch.stack([unit * s / (unit * s + squares) for s in self.scales]).sum(0)
        return torch.stack([(-squares / (unit * s)).exp() for s in self.scales]).sum(0)


@dataclass(frozen=True, eq=False)
class Critic:
    r"""A net T that tells codes z from other draws z', trained in the same step as the pair, by the logistic loss.

    .. math:: E[\log (1 + e^{-T(z)})] + E[\log (1 + e^{T(z')})], \qquad T^* = \log q(z) - \log p(z)

    The mean of T over the codes estimates KL(q ‖ p), as far as the net is able to. It is no bound on either side.

    Args:
        net: From codes (n, k) to one number each, (n, 1) or (n,).
        encoder_loss: "ratio", the mean of T, or "non-saturating", that of log (1 + exp T), the loss of a generator in
            the papers on adversarial training.
        steps: How many steps the net takes for each of the pair, all on the same data, but with fresh draws.

    Raises:
        TypeError: where `net` is no module.
        ValueError: where an option is none of these; on a call, where the net returns another number of values.

    References:
        Adversarial variational Bayes (Mescheder et al. 2017), arXiv 1701.04722.
        Generative adversarial networks (Goodfellow et al. 2014), arXiv 1406.2661.
    """

    net: nn.Module
    encoder_loss: EncoderLoss = "ratio"
    steps: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.net, nn.Module):
            raise TypeError(f"critic must be a torch.nn.Module, got {type(self.net).__name__}")
        if self.encoder_loss not in ("ratio", "non-saturating"):
            raise ValueError(f"encoder_loss must be 'ratio' or 'non-saturating', got {self.encoder_loss!r}")
        check_count("critic_steps", self.steps)

    def log_ratio(self, z: Tensor) -> Tensor:
        """T of each code, (n,), whose gradient reaches the codes and not the net."""
        held = {name: parameter.detach() for name, parameter in self.net.named_parameters()}
        return _one_each(functional_call(self.net, held, (z,)), z)

    def penalty(self, log_ratio: Tensor) -> Tensor:
        """What the encoder minimises, 0-d."""
        return (log_ratio if self.encoder_loss == "ratio" else softplus(log_ratio)).mean()

    def loss(self, z: Tensor, others: Tensor) -> Tensor:
        """What the net minimises, 0-d, whose gradient reaches the net and not the codes."""
        of_codes, of_others = (_one_each(self.net(draws.detach()), draws) for draws in (z, others))
        return softplus(-of_codes).mean() + softplus(of_others).mean()


Divergence = MMD | Critic | Callable[[Tensor, Tensor], Tensor]
"""Between draws (n, k) of codes and of something else: a critic, or a function to a 0-d tensor, such as an MMD."""


def permuted(z: Tensor) -> Tensor:
    """Draws (n, k) of the product of the marginals: each dimension of these codes in a random order of its own.

    Raises:
        ValueError: where there is only one code.
    """
    if len(z) < 2:
        raise ValueError(
            "the dimensions of one code cannot be permuted among data, and a minibatch of one datum has no other: "
            "choose another batch_size, or leave the last minibatch out, "
            "ppvae.data.Batches(x, batch_size=..., drop_last=True)"
        )
    return z.gather(0, torch.rand_like(z).argsort(0))


def _one_each(values: Tensor, z: Tensor) -> Tensor:
    if values.numel() != len(z):
        raise ValueError(
            f"critic must return one number for each of {len(z)} codes, (n, 1) or (n,), got shape {tuple(values.shape)}"
        )
    return values.reshape(len(z))
