"""The condition itself: class labels as floats, and the checks of what a user gives as one."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppvae._validate import check_count, check_dense


def check_labels(y: Tensor, num_classes: int, *, name: str = "y") -> None:
    """Checks that a tensor holds class indices: its dtype, then its values, which are read from the device.

    Args:
        y: Labels, of any shape.
        num_classes: Number of classes c; labels are integers from 0 to c - 1.
        name: What the caller calls them, for the error.

    Raises:
        TypeError: If they are of no integer dtype, such as rows of a one-hot code.
        ValueError: If one is out of range.

    Example:
        >>> check_labels(torch.tensor([3, 10]), 10)
        Traceback (most recent call last):
        ValueError: y must hold class indices from 0 to 9, got values from 3 to 10
    """
    check_count("num_classes", num_classes)
    _check_index_dtype(y, num_classes, name)
    if torch.compiler.is_exporting() or y.numel() == 0:  # what is traced for another program has no values yet
        return
    least, most = (int(bound) for bound in torch.aminmax(y))
    if least < 0 or most >= num_classes:
        raise ValueError(
            f"{name} must hold class indices from 0 to {num_classes - 1}, got values from {least} to {most}"
        )


def _check_index_dtype(y: Tensor, num_classes: int, name: str) -> None:
    if not isinstance(y, Tensor):
        raise TypeError(f"{name} must be a tensor of class indices, got {type(y).__name__}")
    check_dense(name, y)
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        looks_one_hot = y.dim() > 0 and y.shape[-1] == num_classes
        hint = f"{name}.argmax(-1) turns one-hot rows into indices" if looks_one_hot else f"try {name}.long()"
        raise TypeError(
            f"{name} must hold class indices of an integer dtype, got {y.dtype} of shape {tuple(y.shape)}; {hint}"
        )


class OneHot(nn.Module):
    """The one-hot code of a class index: from integers ``(...)`` to floats ``(..., num_classes)``.

    The values are not read, so that it runs in compiled graphs: the code of an index out of range is NaN, which no
    loss hides. :func:`check_labels` finds such an index with a clear error.

    Args:
        num_classes: Number of classes c.

    Raises:
        ValueError: If ``num_classes`` is not a positive int.

    Example:
        >>> OneHot(3)(torch.tensor([[0], [2]]))
        tensor([[[1., 0., 0.]],
                [[0., 0., 1.]]])
    """

    table: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = check_count("num_classes", num_classes)
        self.in_shape, self.out_shape = (), (num_classes,)
        nan = torch.full((1, num_classes), math.nan)
        self.register_buffer("table", torch.cat([nan, torch.eye(num_classes), nan]), persistent=False)

    def forward(self, y: Tensor) -> Tensor:
        """Maps ``(...)`` to ``(..., num_classes)``.

        Raises:
            TypeError: If ``y`` is of no integer dtype.
        """
        _check_index_dtype(y, self.num_classes, "y")
        return F.embedding(y.long().clamp(-1, self.num_classes) + 1, self.table)

    def extra_repr(self) -> str:
        """Describes the size."""
        return str(self.num_classes)


@dataclass(frozen=True)
class Context:
    """What a conditional net expects of the condition that it is given.

    Args:
        shape: Event shape, ``()`` for labels; None where it is not known.
        num_classes: Number of classes where the condition is a class index, else None.
        is_float: Whether it must be floating point, as what goes into a net without an embedding must.
    """

    shape: tuple[int, ...] | None
    num_classes: int | None = None
    is_float: bool = False

    @classmethod
    def of(cls, shape: tuple[int, ...] | None, embed: nn.Module | None) -> "Context":
        """Reads it off the module that the condition goes through first; without one, ``shape`` is its event shape.

        Example:
            >>> Context.of((10,), nn.Sequential(OneHot(10)))
            Context(shape=(), num_classes=10, is_float=False)
        """
        if embed is None:
            return cls(shape, is_float=shape is not None)
        while isinstance(embed, nn.Sequential) and not hasattr(embed, "in_shape") and len(embed):
            embed = embed[0]
        return cls(getattr(embed, "in_shape", None), embed.num_classes if isinstance(embed, OneHot) else None)

    def check(self, c: Tensor, name: str) -> None:
        """Checks a condition ``(..., *shape)``; where it is a label, its values are read from the device.

        Raises:
            TypeError: If it is no tensor, or of the wrong dtype.
            ValueError: If it is of the wrong shape, or holds a label out of range.
        """
        if not isinstance(c, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(c).__name__}")
        if self.num_classes is not None:
            check_labels(c, self.num_classes, name=name)
        if self.is_float and not c.is_floating_point():
            raise TypeError(
                f"{name} must be floating point, got {c.dtype} of shape {tuple(c.shape)}; "
                "a net takes class indices with embed=OneHot(num_classes)"
            )
        if self.shape is not None and c.shape[max(c.dim() - len(self.shape), 0) :] != self.shape:
            raise ValueError(f"{name} must have shape (..., {str(self.shape)[1:]}, got {tuple(c.shape)}")
