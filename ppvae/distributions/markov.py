"""Markov chains as one draw: a trajectory of latent states is one site, however many steps it has."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor, nn
from torch.distributions import constraints

from ppvae._validate import check_count
from ppvae.nn.sequence import check_lengths, within

Transition = Callable[..., dist.TorchDistribution]
"""From the state before, and a context of the step, to the distribution of the next: a `ConditionalNormal`, say."""


class MarkovChain(dist.TorchDistribution):
    r"""Trajectories of T states, each given the one before it.

    .. math:: p(z_{1:T}) = p(z_1) \prod_{t=2}^{T} p(z_t \mid z_{t-1}, c_t)

    Any trajectory is scored by one call of the transition for all of its steps; a draw takes one call for each. A draw
    is scored as it was drawn, so that a transition may be a flow. A trajectory ends after its length: the states
    that follow are zero, and have no density.

    Args:
        initial: p(z_1), of event shape ``event``, usually ``(k,)``.
        transition: From the states before ``(..., *event)``, and one ``(..., c)`` of each context, to p(z_t | z_{t-1},
            c_t), of batch shape ``(...)``.
        num_steps: T.
        contexts: What the steps 2 to T are given besides, each ``(..., T - 1, c)``.
        lengths: How many steps of each trajectory there are, from 1 to T, of a shape that broadcasts with the batch;
            None is all.
        batch_shape: How many there are; by default as many as p(z_1) and the lengths say.

    Raises:
        ValueError: If ``num_steps`` is no positive int, a context has not T - 1 steps, or, under Pyro's validation, a
            length is none from 1 to T.

    Example:
        >>> step = lambda z: dist.Normal(0.9 * z, 1.0).to_event(1)
        >>> chain = MarkovChain(dist.Normal(torch.zeros(2), 1.0).to_event(1), step, 50, lengths=torch.tensor([50, 3]))
        >>> z = chain.rsample((5,))
        >>> z.shape, chain.log_prob(z).shape
        (torch.Size([5, 2, 50, 2]), torch.Size([5, 2]))
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(
        self,
        initial: dist.TorchDistribution,
        transition: Transition,
        num_steps: int,
        *,
        contexts: tuple[Tensor, ...] = (),
        lengths: Tensor | None = None,
        batch_shape: Size | None = None,
    ) -> None:
        check_count("num_steps", num_steps)
        for i, context in enumerate(contexts):
            if context.dim() < 2 or context.shape[-2] != num_steps - 1:
                raise ValueError(
                    f"contexts[{i}] must be of shape (..., {num_steps - 1}, c), one for each step after the first, got "
                    f"{tuple(context.shape)}"
                )
        self.initial, self.transition, self.contexts, self.lengths = initial, transition, contexts, lengths
        self.within = None if lengths is None else _within(lengths, num_steps)
        if batch_shape is None:
            batch_shape = torch.broadcast_shapes(initial.batch_shape, () if lengths is None else lengths.shape)
        self._drawn: tuple[Tensor, list[tuple[dist.TorchDistribution, Tensor]]] | None = None
        super().__init__(batch_shape, Size((num_steps,)) + initial.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:
        """Whether draws are differentiable."""
        return bool(self.initial.has_rsample)

    @constraints.dependent_property
    def support(self) -> Any:
        """That of a state, at every step."""
        return constraints.independent(self.initial.support, 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "MarkovChain":
        """Returns the same distribution for a whole batch."""
        return MarkovChain(
            self.initial,
            self.transition,
            self.event_shape[0],
            contexts=self.contexts,
            lengths=self.lengths,
            batch_shape=Size(batch_shape),
        )

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draws trajectories, one step after the other: ``(*sample_shape, *batch_shape, T, *event)``."""
        fn = self.initial.expand(self.batch_shape)
        draw = fn.rsample(sample_shape) if self.has_rsample else fn.sample(sample_shape)
        steps, states = [(fn, draw)], [draw]
        for t in range(1, self.event_shape[0]):
            fn = self.transition(states[-1], *(context[..., t - 1, :] for context in self.contexts))
            draw = fn.rsample() if self.has_rsample else fn.sample()
            steps.append((fn, draw))
            states.append(draw if self.within is None else self._ended(draw, self.within[..., t]))
        drawn = torch.stack(states, self._time)
        self._drawn = drawn, steps
        return drawn

    @torch.no_grad()
    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draws trajectories without gradients."""
        return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(z_{1:T}) in nats, of the batch shape, of trajectories ``(..., T, *event)``."""
        if self._drawn is not None and value is self._drawn[0]:
            terms = torch.stack([fn.log_prob(z) for fn, z in self._drawn[1]], -1)
        else:
            terms = self._scored(value if self.within is None else self._ended(value, self.within))
        if self.within is not None:
            terms = torch.where(self.within, terms, 0.0)
        total = terms.sum(-1)
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))

    def _scored(self, z: Tensor) -> Tensor:
        """Log p of each step, (..., T)."""
        first = self.initial.log_prob(z.select(self._time, 0)).unsqueeze(-1)
        rest = self.event_shape[0] - 1
        if not rest:
            return first
        before, after = z.narrow(self._time, 0, rest), z.narrow(self._time, 1, rest)
        others = self.transition(before, *self.contexts).log_prob(after)
        lead = torch.broadcast_shapes(first.shape[:-1], others.shape[:-1])
        return torch.cat([first.expand(*lead, 1), others.expand(*lead, rest)], -1)

    def _ended(self, z: Tensor, within: Tensor) -> Tensor:
        """States ``(..., *event)``, zeros in place of those that are not within the length."""
        return torch.where(within.reshape(*within.shape, *[1] * len(self.initial.event_shape)), z, 0)

    @property
    def _time(self) -> int:
        """The dim of the steps, from the right."""
        return -1 - len(self.initial.event_shape)


class MarkovPosterior(nn.Module):
    r"""A chain whose every step is given the state before it and a summary of the data.

    .. math:: q(z_{1:T} \mid x_{1:T}) = \prod_{t=1}^{T} q(z_t \mid z_{t-1}, h_t), \qquad h = \mathrm{net}(x)

    with z_0 learned. Where h_t is the state of a recurrent net that reads x backwards, it knows of x_t, ..., x_T: all
    that the exact posterior of z_t given z_{t-1} depends on.

    Args:
        h_given_x: A module from data ``(..., T, d)`` and their lengths, or None, to ``(..., T, c)``.
        q_z_given_zh: A module from states ``(..., k)`` and summaries ``(..., c)`` to q(z_t | z_{t-1}, h_t): a
            ``ConditionalNormal`` or a ``FlowPosterior`` of an :class:`ppvae.nn.Combiner`.
        latent_dim: k.

    Raises:
        TypeError: If a piece is not a module.
        ValueError: If ``latent_dim`` is no positive int.

    References:
        Structured Inference Networks for Nonlinear State Space Models (Krishnan et al. 2017), arXiv 1609.09869:
        equation 6, the structured posterior DKS where h reads the data backwards.
    """

    def __init__(self, h_given_x: nn.Module, q_z_given_zh: nn.Module, latent_dim: int) -> None:
        super().__init__()
        for name, piece in (("h_given_x", h_given_x), ("q_z_given_zh", q_z_given_zh)):
            if not isinstance(piece, nn.Module):
                raise TypeError(f"{name} must be a torch.nn.Module, got {type(piece).__name__}")
        self.h_given_x = h_given_x
        self.q_z_given_zh = q_z_given_zh
        self.z_0 = nn.Parameter(torch.zeros(check_count("latent_dim", latent_dim)))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> MarkovChain:
        """Returns q(z|x) for data ``(..., T, d)``, of batch shape ``(...)`` and event shape ``(T, k)``."""
        h = self.h_given_x(x, lengths)
        first = self.q_z_given_zh(self.z_0.expand(*h.shape[:-2], -1), h[..., 0, :])
        contexts = (h[..., 1:, :],)
        return MarkovChain(first, self.q_z_given_zh, h.shape[-2], contexts=contexts, lengths=lengths)


def of_steps(fn: dist.TorchDistribution, lengths: Tensor | None) -> dist.TorchDistribution:
    """The distribution of a whole series whose steps are independent, of which those after its length do not count.

    Args:
        fn: Of every step, of batch shape ``(..., T)``.
        lengths: How many steps of each series there are, ``(...)``; None is all.

    Returns:
        One of batch shape ``(...)`` and event shape ``(T, *event)``.

    Example:
        >>> fn = of_steps(dist.Normal(torch.zeros(4, 3), 1.0), torch.tensor([1, 3, 3, 2]))
        >>> fn.log_prob(torch.zeros(4, 3))
        tensor([-0.9189, -2.7568, -2.7568, -1.8379])
    """
    return (fn if lengths is None else fn.mask(_within(lengths, fn.batch_shape[-1]))).to_event(1)


def _within(lengths: Tensor, num_steps: int) -> Tensor:
    """Which of T steps there are, ``(..., T)``; lengths are read, and checked, under Pyro's validation alone."""
    if dist.is_validation_enabled():
        check_lengths(lengths, num_steps)
    return within(lengths, num_steps)
