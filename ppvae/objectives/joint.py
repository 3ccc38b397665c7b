"""The ELBO of several data sets that one pair explains, e.g. of data with labels and without."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from ppvae._validate import check_number
from ppvae.objectives.base import Evaluation, Objective, evaluate_objective, networks_of
from ppvae.pair import Batch


class JointELBO(Objective):
    r"""The ELBO of several data sets that one pair explains, a minibatch of each at a time.

    .. math:: \mathcal{L} = \sum_j \frac{N_j}{n_j} \sum_{i \in B_j} \mathrm{ELBO}(\text{datum } i \text{ of set } j)

    For semi-supervised learning: one set with labels and one without, where labels are arguments that a pair can do
    without. The weights make every step an unbiased estimate for all data, whatever the sizes of the minibatches.
    Works with `pyro.infer.SVI` and with `ppvae.SVI`; each argument of the step is then the tuple of a minibatch:
    `svi.step((x_labelled, y), (x_unlabelled,))`. `ppvae.fit` makes it for `ppvae.data.JointBatches`.

    Args:
        elbo: the ELBO of each set, one that has a `differentiable_loss`.
        weights: N_j / n_j of each set, what a minibatch's sum is multiplied with; see `JointBatches.weights`.

    Raises:
        TypeError: where `elbo` is no such object.
        ValueError: where the weights are no positive numbers.

    References:
        Semi-Supervised Learning with Deep Generative Models (Kingma et al. 2014), arXiv 1406.5298, equation 8.

    Example:
        >>> import torch
        >>> from pyro.infer import Trace_ELBO
        >>> from ppvae.models import PPCA
        >>> ppca, x = PPCA(8, 2), torch.randn(10, 8)
        >>> loss = JointELBO(Trace_ELBO(), weights=[1.0, 2.0]).loss(ppca.model, ppca.guide, (x,), (x[:5],))
        >>> exact = -ppca.log_prob(x).sum() - 2 * ppca.log_prob(x[:5]).sum()
        >>> torch.allclose(torch.tensor(loss), exact, atol=0.01)
        True
    """

    def __init__(self, elbo: ELBO, weights: Sequence[float]) -> None:
        if not isinstance(elbo, ELBO) or isinstance(elbo, JointELBO) or not hasattr(elbo, "differentiable_loss"):
            raise TypeError(f"elbo must be a pyro.infer ELBO with a differentiable_loss, got {type(elbo).__name__}")
        if not isinstance(weights, Sequence) or isinstance(weights, str) or not weights:
            raise ValueError(f"weights must be positive numbers, one for each data set, got {weights!r}")
        for i, weight in enumerate(weights):
            check_number(f"weights[{i}]", weight, above=0)
        super().__init__(num_particles=elbo.num_particles, retain_graph=elbo.retain_graph)
        self.weights = tuple(float(weight) for weight in weights)
        self.elbo = copy.copy(elbo)
        self.elbo.strict_enumeration_warning = False  # a labelled minibatch has nothing to enumerate
        if before := getattr(elbo, "before", ()):
            self.before = tuple(JointELBO(part, weights) for part in before)
        self._elbos = tuple(copy.copy(self.elbo) for _ in weights)  # each guesses how the plates of its set nest

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Those of `elbo`, which all sets share."""
        return networks_of(self.elbo)

    def evaluate(self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any) -> Evaluation:
        """Loss and surrogate of several minibatches, each as if it were alone."""
        parts = [(w, evaluate_objective(elbo, model, guide, batch, kwargs)) for w, elbo, batch in self.parts(args)]
        surrogates = [weight * part.surrogate for weight, part in parts if part.surrogate is not None]
        loss = torch.stack([weight * part.loss for weight, part in parts]).sum()
        return Evaluation(loss, torch.stack(surrogates).sum() if surrogates else None, parts=parts)

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batches: Batch, **kwargs: Any
    ) -> Tensor:
        """Minus the ELBO of all data, estimated from one minibatch of each set."""
        parts = self.parts(batches)
        return sum(w * elbo.differentiable_loss(model, guide, *batch, **kwargs) for w, elbo, batch in parts)

    def set_time(self, epoch: float, device: torch.device | None = None) -> None:
        """Sets the scheduled values of `elbo`, where it has any."""
        for elbo in self._elbos:
            if hasattr(elbo, "set_time"):
                elbo.set_time(epoch, device)

    def set_data(self, *num_data: int | None) -> None:
        """Tells `elbo` of each set how many data that has."""
        for elbo, n in zip(self._elbos, num_data, strict=True):
            if isinstance(elbo, Objective):
                elbo.set_data(n)

    def parts(self, batches: Sequence[Batch]) -> list[tuple[float, Any, Batch]]:
        """Each set's weight, ELBO and minibatch.

        Raises:
            TypeError: where a minibatch is no tuple.
            ValueError: where there are not as many as weights.
        """
        if len(batches) != len(self.weights):
            raise ValueError(f"expected a minibatch of each of {len(self.weights)} data sets, got {len(batches)}")
        for i, batch in enumerate(batches):
            if not isinstance(batch, tuple):
                raise TypeError(f"minibatch {i} must be the tuple of a pair's arguments, got {type(batch).__name__}")
        return list(zip(self.weights, self._elbos, batches, strict=True))

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("the traces are those of JointELBO.elbo, for one minibatch at a time")
