"""What the best epoch is chosen by: the ELBO of validation data, by evaluation's estimator, or the loss on them."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ppvae.data import Source
from ppvae.infer.nonfinite import NonFiniteError, nonfinite_rows
from ppvae.infer.svi import SVI
from ppvae.objectives.base import evaluate_objective
from ppvae.pair import Batch, check_batch
from ppvae.sampling.importance import Draws, importance_draws


def mean_elbo(pair: Any, valid: Source, *, seed: int, epoch: int) -> float:
    """The mean ELBO of the validation data, one draw per datum, the same draws every epoch.

    Args:
        pair: a model/guide pair.
        valid: the data.
        seed: of the draws.
        epoch: for errors.

    Raises:
        NonFiniteError: where it is NaN or +inf.
    """
    total, count = 0.0, 0
    for batch in valid.epoch(0) if valid.whole is None else [valid.whole]:
        try:
            for draws in importance_draws(pair, batch, num_samples=1, seed=seed):
                total += _sum_of(draws, batch, epoch)
        except ValueError as error:
            if cause := nonfinite_rows(batch, "valid"):
                raise NonFiniteError(f"{cause}{error}") from error
            raise
        count += check_batch(batch, name="valid")
    return total / count


def _sum_of(draws: Draws, batch: Batch, epoch: int) -> float:
    """The summed ELBO of validation data; -inf is only the worst value there is."""
    total = float(draws.elbo().double().sum())
    if not total < math.inf:
        terms = {"log p(x|z)": draws.reconstruction()} | {f"kl_{z}": value for z, value in draws.kl().items()}
        named = ", ".join(f"{name} = {float(value.sum()):g}" for name, value in terms.items())
        cause = nonfinite_rows(batch, "valid")
        raise NonFiniteError(f"{cause}the validation ELBO is {total:g} after epoch {epoch}: {named}")
    return total


def mean_loss(objective: Any, svi: SVI, valid: Source, *, epoch: int) -> float:
    """The mean loss of the validation data, for a guide without a density.

    Args:
        objective: of one data set.
        svi: whose model and guide are evaluated.
        valid: the data.
        epoch: for errors.

    Raises:
        NonFiniteError: where it is not finite.
    """
    total, count = 0.0, 0
    for batch in valid.epoch(0):
        loss: Tensor = evaluate_objective(objective, svi.model, svi.guide, batch, {}).loss
        total, count = total + float(loss), count + check_batch(batch, name="valid")
    if not math.isfinite(total):
        raise NonFiniteError(f"the loss on the validation data is {total:g} after epoch {epoch}")
    return total / count
