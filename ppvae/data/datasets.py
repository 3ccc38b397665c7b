"""Data sets by name, in memory, as train, validation and test splits of intensities in [0, 1]."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ppvae._validate import check_count, check_flag, check_seed
from ppvae.data.folder import folder_of
from ppvae.data.mapped import room
from ppvae.data.origins import DATASETS, Split
from ppvae.rng import permutation

ROWS_AT_ONCE = 4096
"""Images that are turned into intensities at once."""


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set in memory, or mapped into it where it is too large, split once.

    Attributes:
        name: what `load` was asked for.
        train: what to fit.
        valid: what to choose models with; a part of the official training set.
        test: what to report; the official test set where there is one.
        num_classes: number of labels c.
        levels: number of grey levels of a pixel; the intensities are k / (levels - 1).

    Example:
        >>> data = load("digits")
        >>> data, data.event_shape
        (DataSet(name='digits', num_classes=10, levels=17), torch.Size([1, 8, 8]))
    """

    name: str
    train: Split = field(repr=False)
    valid: Split = field(repr=False)
    test: Split = field(repr=False)
    num_classes: int
    levels: int

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one image, (channels, height, width)."""
        return self.train.x.shape[1:]


def load(
    name: str,
    root: str | os.PathLike[str] = "data",
    *,
    num_valid: int | None = None,
    seed: int = 0,
    download: bool = True,
    size: int | tuple[int, int] | None = None,
    grey: bool | None = None,
) -> DataSet:
    """Load a data set by name.

    The test set is the official one. The validation set is the last `num_valid` images of the training set,
    after a permutation fixed by `seed`. Files below `root`, in torchvision's layout, are used as they are.

    Args:
        name: "digits" (embedded, 1797 images of 8x8), "mnist", "fashion", "kmnist", "cifar10"; or 22,000 images of
            `load_factors`, with their shape as the label: "sprites", "sprites64", "dsprites", "3dshapes"; or "folder":
            the PNG and JPEG files below `root`, each folder in it a class, tested on those of `root/test` where there
            is `root/train` too, else on a tenth.
        root: folder of the data sets; "digits" and the sprites need none.
        num_valid: size of the validation set, 0 allowed; by default 200 for "digits", a tenth of a folder, else 1000.
        seed: which images are held out for validation, at least 0; the test set does not depend on it.
        download: whether to fetch files that are missing.
        size: of "folder", the height and width that pictures are scaled and cut to; None takes them as they are, all of
            one size.
        grey: of "folder", whether colours are dropped; None is where no picture has any.

    Returns:
        The splits, on the CPU.

    Raises:
        TypeError: if `root` is no path.
        ValueError: if the name is unknown, `num_valid` leaves nothing to train on, or a file is damaged.
        FileNotFoundError: if files are missing and are not to be had.

    References:
        LeCun et al. (1998), Gradient-based learning applied to document recognition (MNIST).
        Xiao, Rasul, Vollgraf (2017), Fashion-MNIST, arXiv 1708.07747.
        Clanuwat et al. (2018), Deep Learning for Classical Japanese Literature, arXiv 1812.01718 (KMNIST).
        Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images (CIFAR-10).

    Example:
        >>> data = load("digits", num_valid=100)
        >>> len(data.train.x), len(data.valid.x), len(data.test.x)
        (1397, 100, 300)
    """
    if not isinstance(name, str) or (name != "folder" and name not in DATASETS):
        raise ValueError(f"name must be one of {', '.join(DATASETS)}, folder; got {name!r}")
    if not isinstance(root, (str, os.PathLike)):
        raise TypeError(f"root must be a path, got {root!r} of type {type(root).__name__}")
    origin = folder_of(size, grey) if name == "folder" else DATASETS[name]
    if name != "folder" and (size is not None or grey is not None):
        raise ValueError(f"size and grey go with name='folder', got {name!r}")
    if num_valid is not None:
        check_count("num_valid", num_valid, at_least=0)
    check_seed(seed)
    check_flag("download", download)
    folder = Path(root).expanduser().absolute()
    rest, test = origin.read(folder, download=download)
    usual = len(rest.y) // 10 if name == "folder" else origin.num_valid
    num_valid = usual if num_valid is None else num_valid
    cut = len(rest.y) - num_valid
    if cut < 1:
        raise ValueError(f"num_valid={num_valid} leaves nothing of {name}'s {len(rest.y)} training images")
    order = permutation(len(rest.y), seed)

    return DataSet(
        name=name,
        train=_scaled(rest, order[:cut], origin.levels, folder),
        valid=_scaled(rest, order[cut:], origin.levels, folder),
        test=_scaled(test, torch.arange(len(test.y)), origin.levels, folder),
        num_classes=origin.num_classes or 1 + int(torch.cat([rest.y, test.y]).max()),
        levels=origin.levels,
    )


def _scaled(split: Split, rows: torch.Tensor, levels: int, folder: Path) -> Split:
    """Turn the grey levels of some images into intensities."""
    x = room((len(rows), *split.x.shape[1:]), torch.float32, folder, name="root")
    for first in range(0, len(rows), ROWS_AT_ONCE):
        part = slice(first, first + ROWS_AT_ONCE)
        x[part] = split.x[rows[part]].float().div_(levels - 1)
    return Split(x, split.y[rows])
