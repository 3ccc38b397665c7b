"""The label by Bayes' rule from the generative model, and the error of a classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ppvae.evaluate.marginal import log_marginal, standard_error
from ppvae.infer.importance import check_count


def label_posterior(
    pair: nn.Module, x: Tensor, *, num_classes: int, log_prior: Tensor | None = None, **options: Any
) -> Tensor:
    """Estimates p(y|x) of a pair with arguments (x, y) by Bayes' rule, p(y|x) ∝ p(x, y).

    Every class in turn is given as the label of all data; a discriminative q(y|x) of the guide plays no part.

    Args:
        pair: a model/guide pair whose arguments are x and class indices y.
        x: data of shape (n, ...).
        num_classes: c.
        log_prior: log p(y), shape (c,), for a pair that does not score y itself (`CVAE`, whose likelihood is
            log p(x|y)); by default nothing is added: p(y) is the pair's own, or uniform.
        options: of `log_marginal`: `num_samples`, `seed`, ...

    Returns:
        Probabilities of shape (n, c), float64 on the CPU.

    Raises:
        TypeError: where `log_prior` is no tensor.
        ValueError: where an argument is out of range, the pair breaks the contract, or a datum has probability zero
            in every class.

    References:
        Semi-Supervised Learning with Deep Generative Models (Kingma et al. 2014), arXiv 1406.5298.
    """
    check_count("num_classes", num_classes)
    if log_prior is not None and not isinstance(log_prior, Tensor):
        raise TypeError(f"log_prior must be a tensor, got {type(log_prior).__name__}")
    if log_prior is not None and log_prior.shape != (num_classes,):
        raise ValueError(f"log_prior must have shape ({num_classes},), got {tuple(log_prior.shape)}")
    of_class = [
        log_marginal(pair, x, torch.full((len(x),), c, device=x.device), **options).values for c in range(num_classes)
    ]
    log_joint = torch.stack(of_class, -1)
    if log_prior is not None:
        log_joint = log_joint + log_prior.cpu()
    impossible = (log_joint == -torch.inf).all(-1).nonzero().flatten().tolist()
    if impossible:
        raise ValueError(f"datum {impossible[0]} has probability zero in every class: check it and the pair's weights")
    return log_joint.softmax(-1)


def error_rate(probabilities: Tensor, y: Tensor) -> dict[str, float]:
    """The share of data whose most probable class is not the true one, in %.

    Args:
        probabilities: of each class, shape (n, c).
        y: true classes, shape (n,).

    Returns:
        "mean" and "std_error", in %.
    """
    if probabilities.dim() != 2 or y.shape != probabilities.shape[:1]:
        raise ValueError(
            f"probabilities must have shape (n, c) and y (n,), got {tuple(probabilities.shape)} and {tuple(y.shape)}"
        )
    wrong = 100 * (probabilities.argmax(-1).cpu() != y.cpu()).double()
    return {"mean": float(wrong.mean()), "std_error": standard_error(wrong)}
