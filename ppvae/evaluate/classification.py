"""The label by Bayes' rule from the generative model, and how often and how surely a classifier is right."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppvae._validate import check_count, check_tensor
from ppvae.compile.policy import Compile
from ppvae.evaluate.estimates import mean_over_data, standard_error
from ppvae.evaluate.estimator import Estimator
from ppvae.evaluate.marginal import log_marginal
from ppvae.evaluate.psis import PARETO_GOOD, ParetoWarning

SUMS_TO_ONE = 1e-4
"""How far from one the sum of probabilities may be."""


def label_posterior(
    pair: nn.Module,
    x: Tensor,
    *,
    num_classes: int,
    log_prior: Tensor | None = None,
    num_samples: int | None = None,
    method: str | Estimator = "importance",
    batch_size: int | None = None,
    seed: int = 0,
    compile: Compile = "auto",
    given: Sequence[str] = (),
    progress: bool = False,
) -> Tensor:
    """Estimates p(y|x) of a pair with arguments (x, y) by Bayes' rule, p(y|x) ∝ p(x, y).

    Every class in turn is given as the label of all data; a discriminative q(y|x) of the guide plays no part.

    Args:
        pair: a model/guide pair whose arguments are x and class indices y.
        x: data of shape (n, ...).
        num_classes: c.
        log_prior: log p(y), shape (c,), for a pair that does not score y itself (`CVAE`, whose likelihood is
            log p(x|y)); by default nothing is added: p(y) is the pair's own, or uniform.
        num_samples: of each class, as in `log_marginal`.
        method: how log p(x, y) is estimated, as there.
        batch_size: as there.
        seed: of the draws, the same for every class; the global random state is left alone.
        compile: as there.
        given: observed sites to condition on, as there: with the label's own its prior is left out.
        progress: whether to show progress bars.

    Returns:
        Probabilities of shape (n, c), float64 on the CPU.

    Raises:
        TypeError: where `log_prior` is no tensor.
        ValueError: where an argument is out of range, the pair breaks the contract, or a datum has probability zero
            in every class.

    Warns:
        ParetoWarning: where k̂ > 0.7 in a datum's most probable class; it counts these data.

    References:
        Semi-Supervised Learning with Deep Generative Models (Kingma et al. 2014), arXiv 1406.5298.

    Example:
        >>> from ppvae.distributions import (
        ...     ConditionalBernoulli, ConditionalCategorical, ConditionalNormal, StandardNormal, UniformCategorical
        ... )
        >>> from ppvae.models import SSVAE
        >>> from ppvae.nn import MLP, ConditionalMLP, OneHot
        >>> ssvae = SSVAE(
        ...     p_y=UniformCategorical(3),
        ...     p_z=StandardNormal(2),
        ...     p_x_given_zy=ConditionalBernoulli(ConditionalMLP(2, 3, (16,), 8, embed=OneHot(3))),
        ...     q_y_given_x=ConditionalCategorical(MLP(8, (16,), 3), num_classes=3),
        ...     q_z_given_xy=ConditionalNormal(ConditionalMLP(8, 3, (16,), (2, 2), embed=OneHot(3))),
        ... )
        >>> label_posterior(ssvae, torch.zeros(5, 8), num_classes=3, num_samples=20).shape
        torch.Size([5, 3])
    """
    check_count("num_classes", num_classes, at_least=2)
    if check_tensor("x", x).dim() == 0:
        raise ValueError("x must have a leading batch dim, got a 0-d tensor")
    if log_prior is not None and check_tensor("log_prior", log_prior).shape != (num_classes,):
        raise ValueError(f"log_prior must have shape ({num_classes},), got {tuple(log_prior.shape)}")
    if log_prior is not None and not bool((log_prior < math.inf).all()):  # NaN fails every comparison
        raise ValueError(f"log_prior must hold numbers below infinity, got {log_prior.tolist()}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParetoWarning)  # of classes that are improbable anyway
        of_class = [
            log_marginal(
                pair,
                x,
                torch.full((len(x),), c, device=x.device),
                num_samples=num_samples,
                method=method,
                batch_size=batch_size,
                seed=seed,
                compile=compile,
                given=given,
                progress=progress,
            )
            for c in range(num_classes)
        ]
    log_joint = torch.stack([estimate.values for estimate in of_class], -1)
    if log_prior is not None:
        log_joint = log_joint + log_prior.cpu()
    impossible = (log_joint == -torch.inf).all(-1).nonzero().flatten().tolist()
    if impossible:
        raise ValueError(f"datum {impossible[0]} has probability zero in every class: check it and the pair's weights")
    k = torch.stack([estimate.pareto_k for estimate in of_class], -1).gather(-1, log_joint.argmax(-1, keepdim=True))
    bad = int((k > PARETO_GOOD).sum())  # NaN, of a method without k̂, is not
    if bad:
        warnings.warn(
            f"k̂ > {PARETO_GOOD} for {bad} of {len(x)} data in their most probable class: the tails of the guide are "
            "too light for them, so that their p(x, y), and with it p(y|x), cannot be trusted",
            ParetoWarning,
            stacklevel=2,
        )
    return log_joint.softmax(-1)


def error_rate(probabilities: Tensor, y: Tensor) -> dict[str, float]:
    """The share of data whose most probable class is not the true one, in %.

    Args:
        probabilities: of each class, shape (n, c).
        y: true classes, shape (n,).

    Returns:
        "mean" and "std_error", in %.

    Example:
        >>> error_rate(torch.tensor([[0.1, 0.9], [0.9, 0.1], [0.7, 0.3], [0.4, 0.6]]), torch.tensor([1, 0, 0, 0]))
        {'mean': 25.0, 'std_error': 25.0}
    """
    _check_scores(probabilities, y)
    wrong = 100 * (probabilities.argmax(-1).cpu() != y.cpu()).double()
    return mean_over_data(wrong)


@dataclass(frozen=True)
class Reliability:
    """How often a classifier is right where it is so sure: one entry for each bin of its confidence in [0, 1].

    Attributes:
        confidence: mean probability of the predicted class, shape (num_bins,); NaN in an empty bin.
        accuracy: share of right predictions, (num_bins,); NaN in an empty bin.
        count: number of data, (num_bins,).
        std_error: standard error of the expected calibration error, with the sign of each bin's gap held.
    """

    confidence: Tensor
    accuracy: Tensor
    count: Tensor
    std_error: float

    def expected_calibration_error(self) -> float:
        """Σ_b count_b / n |accuracy_b − confidence_b|; noise in small bins adds to it."""
        gap = (self.accuracy - self.confidence).abs()
        return float((self.count / self.count.sum() * gap).nansum())

    def maximum_calibration_error(self) -> float:
        """max_b |accuracy_b − confidence_b| over the bins with data."""
        return float((self.accuracy - self.confidence).abs().nan_to_num(0.0).max())


def reliability(probabilities: Tensor, y: Tensor, *, num_bins: int = 15) -> Reliability:
    """Compares a classifier's confidence with its accuracy, in bins of equal width (0, 1/b], (1/b, 2/b], ...

    Args:
        probabilities: of each class, shape (n, c).
        y: true classes, shape (n,).
        num_bins: b.

    Returns:
        The bins, as float64 tensors on the CPU, and the calibration errors.

    Raises:
        ValueError: where the shapes do not fit, there are no data, a row is no distribution, or b is not positive.

    References:
        On calibration of modern neural networks (Guo et al. 2017), arXiv 1706.04599.

    Example:
        >>> sure = torch.tensor([[0.1, 0.9], [0.9, 0.1], [0.3, 0.7], [0.3, 0.7]])
        >>> round(reliability(sure, torch.tensor([1, 0, 1, 0]), num_bins=5).expected_calibration_error(), 3)
        0.15
    """
    check_count("num_bins", num_bins)
    _check_scores(probabilities, y)
    probabilities = probabilities.detach().double().cpu()
    confidence, predicted = probabilities.max(-1)
    right = (predicted == y.cpu()).double()
    edges = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64)[1:-1]
    place = torch.bucketize(confidence, edges)
    total = torch.zeros(3, num_bins, dtype=torch.float64)
    total.index_add_(1, place, torch.stack([torch.ones_like(right), confidence, right]))
    count, mean_confidence, accuracy = total[0], total[1] / total[0], total[2] / total[0]
    signed = (right - confidence) * (accuracy - mean_confidence).sign()[place]
    return Reliability(mean_confidence, accuracy, count.long(), standard_error(signed))


def _check_scores(probabilities: Tensor, y: Tensor) -> None:
    """Checks that there are probabilities of classes, and one class for each datum."""
    check_tensor("probabilities", probabilities)
    check_tensor("y", y)
    if probabilities.dim() != 2 or y.shape != probabilities.shape[:1]:
        raise ValueError(
            f"probabilities must have shape (n, c) and y (n,), got {tuple(probabilities.shape)} and {tuple(y.shape)}"
        )
    if not probabilities.is_floating_point():
        raise TypeError(f"probabilities must be floating point, got {probabilities.dtype}")
    if y.is_floating_point() or y.dtype == torch.bool:
        raise TypeError(f"y must hold class indices of an integer dtype, got {y.dtype}")
    if not len(y):
        raise ValueError("probabilities must hold at least one datum, got none")
    total = probabilities.detach().double().sum(-1)
    if not ((probabilities >= 0).all() and ((total - 1).abs() < SUMS_TO_ONE).all()):
        raise ValueError("probabilities must be nonnegative and sum to 1 over the classes; log-probabilities do not")
    if (y < 0).any() or (y >= probabilities.shape[1]).any():
        raise ValueError(
            f"y must hold class indices from 0 to {probabilities.shape[1] - 1}, got values from {int(y.min())} to "
            f"{int(y.max())}"
        )
