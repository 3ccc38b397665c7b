"""Layers from their names, and the options that all nets of this package share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.nn.utils import parametrizations

from ppvae._validate import check_number
from ppvae.nn.shapes import Batched

Norm = Literal["batch", "layer"]

GATED = "gated"
"""One half of the features is multiplied by the sigmoid of the other."""

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}


def activation(name: str) -> nn.Module:
    """Returns a new activation module by its name.

    Args:
        name: One of ``relu``, ``leaky_relu``, ``elu``, ``gelu``, ``silu``, ``tanh``, ``softplus`` and
            ``identity``.

    Returns:
        The elementwise module.

    Raises:
        ValueError: If there is no activation of that name.

    Example:
        >>> activation("silu")
        SiLU()
    """
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise ValueError(f"the name of an activation must be one of {', '.join(_ACTIVATIONS)}; got {name!r}")
    return _ACTIVATIONS[name]()


@dataclass(frozen=True)
class Layers:
    """Makes the layers of one net: what its options mean is said here, once.

    Args:
        activation: Name of the activation.
        norm: ``"batch"``, ``"layer"`` (for images: over channels and pixels, per image) or None.
        dropout: Probability of dropping a feature (for images: a channel), in [0, 1).
        spectral_norm: Whether each weight is divided by its largest singular value.
        gates: Whether the net asks `before` how wide its layers are to be, so that the activation may be "gated".

    Raises:
        ValueError: If an option is none of the above.

    Example:
        >>> Layers(activation="tanh", dropout=0.1).vector(8)
        [Tanh(), Dropout(p=0.1, inplace=False)]
    """

    activation: str = "relu"
    norm: Norm | None = None
    dropout: float = 0.0
    spectral_norm: bool = False
    gates: bool = False

    def __post_init__(self) -> None:
        self._activation()
        if self.norm not in (None, "batch", "layer"):
            raise ValueError(f"norm must be None, 'batch' or 'layer', got {self.norm!r}")
        check_number("dropout", self.dropout, at_least=0, below=1)
        if not isinstance(self.spectral_norm, bool):
            raise ValueError(f"spectral_norm must be a bool, got {self.spectral_norm!r}")

    @property
    def hidden_bias(self) -> bool:
        """Whether hidden layers have a bias: batch normalisation would only take it off again."""
        return self.norm != "batch"

    def before(self, size: int) -> int:
        """Returns how many features a layer gives for a hidden layer of this size: a gate takes as many again."""
        return 2 * size if self.activation == GATED else size

    def weight(self, layer: nn.Module) -> nn.Module:
        """Returns a layer with weights, its spectral norm held at one if so asked."""
        return parametrizations.spectral_norm(layer) if self.spectral_norm else layer

    def vector(self, size: int) -> list[nn.Module]:
        """Returns norm, activation and dropout, from vectors ``(..., before(size))`` to ``(..., size)``."""
        size = self.before(size)
        norms: dict[str, Callable[[], nn.Module]] = {
            "batch": lambda: Batched(nn.BatchNorm1d(size), size, size),
            "layer": lambda: nn.LayerNorm(size),
        }
        return self._stage(norms, nn.Dropout)

    def image(self, channels: int) -> list[nn.Module]:
        """Returns norm, activation and dropout for images ``(n, channels, h, w)``."""
        norms: dict[str, Callable[[], nn.Module]] = {
            "batch": lambda: nn.BatchNorm2d(channels),
            "layer": lambda: nn.GroupNorm(1, channels),
        }
        return self._stage(norms, nn.Dropout2d)

    def _stage(
        self, norms: dict[str, Callable[[], nn.Module]], dropout: Callable[[float], nn.Module]
    ) -> list[nn.Module]:
        return [
            *([norms[self.norm]()] if self.norm else []),
            self._activation(),
            *([dropout(self.dropout)] if self.dropout else []),
        ]

    def _activation(self) -> nn.Module:
        if not self.gates:
            return activation(self.activation)
        if self.activation not in (GATED, *_ACTIVATIONS):
            raise ValueError(f"activation must be one of {', '.join([*_ACTIVATIONS, GATED])}; got {self.activation!r}")
        return nn.GLU() if self.activation == GATED else activation(self.activation)
