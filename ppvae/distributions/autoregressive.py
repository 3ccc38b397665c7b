"""Autoregressive priors of words: sequences of discrete codes, each given all before it."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppvae._validate import check_count
from ppvae.distributions.parameters import declared_out_shape, full_precision


class AutoregressiveCategorical(dist.TorchDistribution):
    r"""Sequences of P classes, of which a net gives each its probabilities given those before it.

    .. math:: p(k) = \prod_{p=1}^P \mathrm{softmax}\big(\ell_p(k_1, \dots, k_{p-1})\big)_{k_p}

    Args:
        net: A module from integers ``(..., P)`` to logits ``(..., P, K)``, those at p of the integers before p alone.
        num_classes: K.
        num_positions: P.
        batch_shape: How many there are.
        device: Where values are drawn.

    Example:
        >>> from ppvae.nn import CausalTransformer
        >>> p_k = AutoregressiveCategorical(CausalTransformer(8, 3), 8, 3)
        >>> p_k.log_prob(p_k.sample((5,))).shape
        torch.Size([5])
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        num_positions: int,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008
        *,
        device: torch.device | None = None,
    ) -> None:
        self.net, self.num_classes, self.num_positions, self.device = net, num_classes, num_positions, device
        super().__init__(torch.Size(batch_shape), torch.Size((num_positions,)), validate_args=False)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        """Integers from 0 to K − 1 at each position."""
        return constraints.independent(constraints.integer_interval(0, self.num_classes - 1), 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "AutoregressiveCategorical":
        """Returns the same distribution for a whole batch."""
        sizes = self.num_classes, self.num_positions
        return AutoregressiveCategorical(self.net, *sizes, torch.Size(batch_shape), device=self.device)

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draws sequences, one position after the other: ``(*sample_shape, *batch_shape, P)``."""
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        k = torch.zeros(shape, dtype=torch.long, device=self.device)
        for p in range(self.num_positions):
            k[..., p] = dist.Categorical(logits=full_precision(self.net(k)[..., p, :])).sample()
        return k

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(k) in nats, ``(...)``, of sequences ``(..., P)``."""
        log_p = full_precision(self.net(value)).log_softmax(-1)
        of_each = log_p.gather(-1, value.unsqueeze(-1)).squeeze(-1)
        total = of_each.sum(-1)
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))


class AutoregressivePrior(nn.Module):
    r"""A prior of sequences of P classes, the same for every context: see :class:`AutoregressiveCategorical`.

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
        return AutoregressiveCategorical(self.net, self.num_classes, self.num_positions, device=device)

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
