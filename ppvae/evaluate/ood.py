"""How unlike the data that a pair was trained on a datum is, by three scores, and how well they tell two sets apart.

All scores are higher for what is more anomalous:

    −log p(x)                       the plain one; simple images can have a high density under a model of others
    −E_q[log p(x|z)]                the reconstruction error
    log p_background(x) − log p(x)  what any image shares is taken off by a model of the background (Ren et al. 2019)
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ppvae._validate import check_tensor
from ppvae.evaluate.estimator import Estimator
from ppvae.evaluate.marginal import elbo, estimator_of, log_marginal
from ppvae.inputs import takes_data
from ppvae.pair import check_data, check_pair
from ppvae.result import Result

ELBO_SAMPLES = 100
"""The most draws for the reconstruction error, which needs fewer than log p(x)."""


@dataclass(frozen=True, repr=False)
class AnomalyScores(Result):
    """Scores of each datum, higher where it is more anomalous.

    Attributes:
        negative_log_marginal: −log p̂(x), shape (n,), nats.
        reconstruction_error: −E_q[log p(x|z)], (n,), nats.
        likelihood_ratio: log p̂_background(x) − log p̂(x), (n,), nats; None without a background model.
    """

    negative_log_marginal: Tensor
    reconstruction_error: Tensor
    likelihood_ratio: Tensor | None = None

    def summary(self) -> str:
        """The mean of each score, nats per datum."""
        scores = {field.name: getattr(self, field.name) for field in fields(self)}
        means = [f"{name} {float(of.mean()):.3f}" for name, of in scores.items() if of is not None]
        return f"scores of {len(self.negative_log_marginal)} data, means in nats; {'; '.join(means)}"

    def auroc(self, other: AnomalyScores) -> dict[str, float]:
        """The area under the ROC curve of each score that both have, with `other` of the anomalous data.

        Args:
            other: scores of another set of data by the same pairs.

        Returns:
            The areas by the name of the score, see `auroc`.
        """
        pairs = {name: (value, vars(other)[name]) for name, value in vars(self).items()}
        return {name: auroc(a, b) for name, (a, b) in pairs.items() if a is not None and b is not None}


@takes_data
def anomaly_scores(
    pair: nn.Module,
    *data: Any,
    num_samples: int | None = None,
    method: str | Estimator = "importance",
    background: nn.Module | None = None,
    seed: int = 0,
) -> AnomalyScores:
    """Scores each datum by its negative log-likelihood, its reconstruction error and a likelihood ratio.

    Args:
        pair: any model/guide pair.
        data: its arguments, tensors or arrays of shape (n, ...), on any device; or one iterable of minibatches of them.
        num_samples: draws per datum for log p(x), by default 1,000 importance samples; and at most 100 draws from the
            guide for the reconstruction error.
        method: how log p(x) is estimated, as in `log_marginal`.
        background: a pair that takes the same arguments and knows the background only; the paper trains the same model
            on data of which a part of the elements is replaced at random.
        seed: of the draws; the global random state is left alone.

    Returns:
        The scores, as float64 tensors on the CPU.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where a pair or the data break the contract.

    Warns:
        ParetoWarning: where log p(x) is not to be trusted, see `log_marginal`. Of anomalous data it is often too low,
            as the encoder never met their like; that makes them the more anomalous.

    References:
        Likelihood Ratios for Out-of-Distribution Detection (Ren et al. 2019), arXiv 1906.02845.

    Example:
        >>> import torch
        >>> from ppvae.models import PPCA
        >>> pair = PPCA(8, 2)
        >>> near, far = (anomaly_scores(pair, scale * torch.randn(50, 8), num_samples=50) for scale in (1, 4))
        >>> near.auroc(far)["negative_log_marginal"] > 0.9
        True
    """
    method = estimator_of(method, num_samples)
    check_data(data)
    check_pair(pair)
    if background is not None:
        check_pair(background, name="background")
    log_p = log_marginal(pair, *data, method=method, seed=seed).values
    terms = elbo(pair, *data, num_samples=min(num_samples or ELBO_SAMPLES, ELBO_SAMPLES), seed=seed)
    ratio = None
    if background is not None:
        ratio = log_marginal(background, *data, method=method, seed=seed).values - log_p
    return AnomalyScores(-log_p, -terms.reconstruction, ratio)


def auroc(scores_in: Tensor, scores_out: Tensor) -> float:
    """The area under the ROC curve: the probability that an anomalous datum has the higher score, ties by half.

    Args:
        scores_in: scores of data like those of the training, shape (n,).
        scores_out: scores of anomalous data, shape (m,).

    Returns:
        A number between 0 and 1; 0.5 is chance.

    Raises:
        TypeError: where one is no tensor.
        ValueError: where one is empty, of another shape, or holds NaN.

    Example:
        >>> auroc(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 3.0]))
        0.75
    """
    from sklearn.metrics import roc_auc_score

    for name, scores in (("scores_in", scores_in), ("scores_out", scores_out)):
        if check_tensor(name, scores).dim() != 1 or len(scores) == 0:
            raise ValueError(f"{name} must have shape (n,) with n at least 1, got {tuple(scores.shape)}")
        if bool(scores.isnan().any()):
            raise ValueError(f"{name} holds {int(scores.isnan().sum())} NaN of {len(scores)} scores")
    scores = torch.cat([scores_in.double().cpu(), scores_out.double().cpu()])
    ranks = scores.unique(return_inverse=True)[1]  # the area depends on the order alone, and scores may be infinite
    return float(roc_auc_score([0] * len(scores_in) + [1] * len(scores_out), ranks.numpy()))
