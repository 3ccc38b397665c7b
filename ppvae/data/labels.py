"""Which data keep their labels in a semi-supervised experiment."""

import torch
from torch import Tensor

from ppvae._validate import check_count, check_seed, check_tensor
from ppvae.rng import permutation


def split_labels(y: Tensor, num_labels: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw the data that keep their labels, as many of each class as of any other.

    Where `num_labels` is no multiple of the number of classes, the first classes get one more each.

    Args:
        y: labels, integers of shape (n,).
        num_labels: how many data keep their labels, from 0 to n.
        seed: of the draw, at least 0; the same on every machine.

    Returns:
        Row numbers of the labelled and of the unlabelled data, each in ascending order.

    Raises:
        TypeError: if `y` is no integer tensor.
        ValueError: if `y` is not one-dimensional, a class has too few data, or `num_labels` or `seed` is no whole
            number >= 0.

    References:
        Semi-Supervised Learning with Deep Generative Models (Kingma et al. 2014), arXiv 1406.5298.

    Example:
        >>> import torch
        >>> labelled, unlabelled = split_labels(torch.tensor([0, 0, 0, 1, 1, 1]), num_labels=2)
        >>> len(labelled), len(unlabelled)
        (2, 4)
    """
    y = check_tensor("y", y)
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(f"y must hold integer labels, got {y.dtype}")
    if y.dim() != 1:
        raise ValueError(f"y must be labels of shape (n,), got shape {tuple(y.shape)}; of one-hot, take argmax(-1)")
    if not len(y):
        raise ValueError("y must hold labels, got none")
    check_count("num_labels", num_labels, at_least=0)
    check_seed(seed)
    if num_labels > len(y):
        raise ValueError(f"num_labels must be at most the {len(y)} data, got {num_labels}")
    if num_labels == len(y):
        return torch.arange(len(y)), torch.arange(0)
    order = permutation(len(y), seed)
    classes = y.unique().tolist()
    each, more = divmod(num_labels, len(classes))
    chosen = torch.zeros(len(y), dtype=torch.bool)
    for place, c in enumerate(classes):
        count, of_class = each + (place < more), order[y.cpu()[order] == c]
        if count > len(of_class):
            raise ValueError(f"num_labels={num_labels} needs {count} data of class {c}, there are {len(of_class)}")
        chosen[of_class[:count]] = True
    return chosen.nonzero().flatten(), (~chosen).nonzero().flatten()
