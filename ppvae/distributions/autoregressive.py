"""Sequences of which each step is given those before it: of data, and of words as their prior."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppvae._validate import check_count, check_number
from ppvae.distributions.conditional import ConditionalCategorical
from ppvae.distributions.parameters import declared_out_shape, full_precision
from ppvae.nn import within

Step = Callable[[Tensor], dist.TorchDistribution]
"""From sequences (..., t, *event) to the distribution of each step given those before it, of batch shape (..., t)."""


class Autoregressive(dist.TorchDistribution):
    r"""The t steps of a sequence, the last dim of the batch, each given those before it.

    .. math:: \log p(x_i \mid x_1, \dots, x_{i-1}), \quad i = 1, \dots, t

    ``to_event(1)`` makes a sequence of the steps, and log p(x) of their log-probabilities; ``mask(within(lengths, t))``
    before it leaves padding out.

    Args:
        step: From sequences to the distribution of each step, which looks at those before it alone.
        batch_shape: ``(..., t)``.
        like: A value of one step, of which the shape, the dtype and the device are those of draws.

    Example:
        >>> from ppvae.nn import CausalTransformer
        >>> step = ConditionalCategorical(CausalTransformer(8, 3), num_classes=8, event_dim=0)
        >>> p_x = Autoregressive(step, (3,), like=torch.tensor(0)).to_event(1)
        >>> p_x.log_prob(p_x.sample((5,))).shape
        torch.Size([5])
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, step: Step, batch_shape: Any, *, like: Tensor) -> None:
        self.step, self.like = step, like
        super().__init__(torch.Size(batch_shape), like.shape, validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:
        """That of a step."""
        return self.step(self.like.expand(self.batch_shape + self.event_shape)).support

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Autoregressive":
        """Returns the same distribution for a whole batch."""
        return Autoregressive(self.step, batch_shape, like=self.like)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p of each step given those before it, ``(..., t)``, nats, of sequences ``(..., t, *event)``."""
        of_steps = self.step(value).log_prob(value)
        return of_steps.expand(torch.broadcast_shapes(of_steps.shape, self.batch_shape))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draws sequences, one step after the other: ``(*sample_shape, *batch_shape, *event)``."""
        return self.generate(sample_shape)

    @torch.no_grad()
    def generate(
        self,
        sample_shape: Any = torch.Size(),  # noqa: B008
        *,
        end: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:
        """Draws sequences, one step after the other, each as often as it is probable or otherwise.

        Args:
            sample_shape: How many, before those of the batch.
            end: The class after which a sequence has ended: all later steps are it too. None is none.
            temperature: What log-probabilities of classes are divided by: 0 takes the most probable one.
            top_k: Of how many classes, the most probable ones, one is drawn; None is all.

        Returns:
            ``(*sample_shape, *batch_shape, *event)``.

        Raises:
            ValueError: If an option is none of the above, or steps are of no classes and it is given.
        """
        check_number("temperature", temperature, at_least=0)
        top_k = None if top_k is None else check_count("top_k", top_k)
        end = None if end is None else check_count("end", end, at_least=0)
        time = -1 - len(self.event_shape)
        x = self.like.expand(torch.Size(sample_shape) + self.batch_shape + self.event_shape).clone()
        ended = torch.zeros((), dtype=torch.bool, device=x.device)
        for t in range(self.batch_shape[-1]):
            drawn = _draw(self.step(x), t, time, temperature, top_k)
            if end is not None:
                drawn = torch.where(ended, end, drawn)
                ended = ended | (drawn == end)
            x.select(time, t).copy_(drawn)
        return x


def _draw(steps: dist.TorchDistribution, t: int, time: int, temperature: float, top_k: int | None) -> Tensor:
    """A draw of step t."""
    if temperature == 1.0 and top_k is None:
        return steps.sample().select(time, t)
    if not isinstance(steps, dist.Categorical):
        name, value = ("top_k", top_k) if temperature == 1.0 else ("temperature", temperature)
        raise ValueError(f"{name} must be left out where steps are of no classes, got {value!r}")
    logits = steps.logits[..., t, :]
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return logits.argmax(-1) if temperature == 0 else dist.Categorical(logits=logits / temperature).sample()


class ConditionalSequence(nn.Module):
    r"""Sequences given a context, of which each step is given the context and the steps before it.

    .. math:: p(x \mid z) = \prod_{i=1}^{n} p(x_i \mid z, x_1, \dots, x_{i-1})

    of a sequence of n steps. Where one class ends a sequence and is the last of its n steps, the probabilities of all
    sequences of all lengths sum to one; else this is the probability of what the first n steps are.

    Args:
        step: A module from sequences ``(..., t, *event)`` and a context to the distribution of each step, of batch
            shape ``(..., t)``: a conditional piece of a :class:`ppvae.nn.SequenceDecoder`. Of another net you vouch
            that it looks at the steps before each alone: else the probabilities would not sum to one.

    Raises:
        TypeError: If ``step`` is no module.
        ValueError: If it does not declare what a step is.

    References:
        Generating Sentences from a Continuous Space (Bowman et al. 2016), arXiv 1511.06349.

    Example:
        >>> from ppvae.nn import RNN, SequenceDecoder
        >>> net = SequenceDecoder(nn.Embedding(30, 8), RNN(8, 16), 4, 30)
        >>> p_x_given_z = ConditionalSequence(ConditionalCategorical(net, num_classes=30))
        >>> p_x_given_z(torch.zeros(5, 4), 7, torch.tensor([7, 1, 2, 3, 7])).sample().shape
        torch.Size([5, 7])
    """

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        if not isinstance(step, nn.Module):
            raise TypeError(f"step must be a module that returns a distribution, got {type(step).__name__}")
        self.step, self.event_shape = step, _event_shape(step)
        self.of_classes = isinstance(step, ConditionalCategorical)

    def forward(self, z: Tensor | None, num_steps: int, lengths: Tensor | None = None) -> dist.TorchDistribution:
        """Returns p(x|z) of sequences that are padded to so many steps.

        Args:
            z: The context ``(..., k)``; None where the net takes none.
            num_steps: t.
            lengths: How many steps of each sequence count, ``(...)``; None is all.

        Returns:
            A distribution of batch shape ``(...)`` and event shape ``(t, *event)``.
        """
        context = () if z is None else (z,)
        lead = () if z is None else z.shape[:-1]
        steps = self.steps(context, (*lead, num_steps))
        return (steps if lengths is None else steps.mask(within(lengths, num_steps))).to_event(1)

    def steps(self, context: tuple[Tensor, ...], batch_shape: tuple[int, ...]) -> Autoregressive:
        """The steps by themselves, of batch shape ``(..., t)``, of which ``generate`` makes sequences."""
        weight = next(self.step.parameters())
        dtype = torch.long if self.of_classes else weight.dtype
        like = torch.zeros(self.event_shape, dtype=dtype, device=weight.device)
        return Autoregressive(lambda x: self.step(x, *context), batch_shape, like=like)


def _event_shape(step: nn.Module) -> tuple[int, ...]:
    """The event shape of one step.

    Raises:
        ValueError: If it is not declared.
    """
    event_dim, net = getattr(step, "event_dim", None), getattr(step, "net", None)
    declared = None if net is None else declared_out_shape(net)
    if event_dim is None or (event_dim and declared is None):
        raise ValueError("step must be a conditional piece whose net declares the out_shape of a step")
    return tuple(declared[-event_dim:]) if event_dim and declared is not None else ()


class AutoregressivePrior(nn.Module):
    r"""A prior of sequences of P classes, the same for every context: a :class:`ConditionalSequence` without a context.

    Args:
        net: A module from integers ``(..., P)`` to logits ``(..., P, K)``, those at p of the integers before p alone,
            which is
            tried out; e.g. a :class:`ppvae.nn.CausalTransformer`. It declares ``(P, K)`` as its ``out_shape``.

    Raises:
        ValueError: If the net declares no such shape, or its logits depend on what they must not see: the probabilities
            would not sum to one.
        TypeError: If ``net`` is no module.

    References:
        Neural Discrete Representation Learning (van den Oord et al. 2017), arXiv 1711.00937.

    Example:
        >>> from ppvae.nn import CausalTransformer
        >>> p_k = AutoregressivePrior(CausalTransformer(512, 16))
        >>> p_k().sample((5,)).shape
        torch.Size([5, 16])
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}")
        declared = declared_out_shape(net)
        if declared is None or len(declared) != 2:
            raise ValueError(f"net must declare an out_shape (positions, classes), got {declared}")
        self.num_positions, self.num_classes = declared
        check_count("num_classes of the net", self.num_classes)
        self.net = net
        self._check_causal()

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns p(k), of batch shape ``()`` and event shape ``(P,)``, whatever the context."""
        device = next((p.device for p in self.net.parameters()), None)
        return Autoregressive(self._step, (self.num_positions,), like=torch.tensor(0, device=device)).to_event(1)

    def _step(self, k: Tensor) -> dist.TorchDistribution:
        return dist.Categorical(logits=full_precision(self.net(k)))

    @torch.no_grad()
    def _check_causal(self) -> None:
        """Changes each position in turn and looks whether logits up to it change."""
        device = next((p.device for p in self.net.parameters()), None)
        others = torch.eye(self.num_positions, dtype=torch.long, device=device) * (self.num_classes - 1)
        words = torch.cat([torch.zeros_like(others[:1]), others])
        modes = {module: module.training for module in self.net.modules()}
        logits = self.net.eval()(words)
        for module, mode in modes.items():
            module.training = mode
        if logits.shape != (*words.shape, self.num_classes):
            raise ValueError(
                f"net must return logits (..., {self.num_positions}, {self.num_classes}), got "
                f"{tuple(logits.shape)} for {tuple(words.shape)}"
            )
        for p in range(0 if logits.is_meta else self.num_positions):
            if not torch.allclose(logits[0, : p + 1], logits[1 + p, : p + 1], rtol=1e-4, atol=1e-5):
                raise ValueError(
                    f"net must give logits of the positions before each alone, but those up to position {p} depend on "
                    f"the class at {p}: the probabilities of all sequences would not sum to one"
                )

    def extra_repr(self) -> str:
        """Describes the sizes."""
        return f"num_classes={self.num_classes}, num_positions={self.num_positions}"
