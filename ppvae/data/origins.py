"""Where each data set comes from: embedded in a package, files in torchvision's layout, images with known factors."""

import math
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppvae.data.factor_files import load_factors
from ppvae.rng import permutation


class Split(NamedTuple):
    """The images and labels of one part of a data set.

    Attributes:
        x: images with intensities in [0, 1], shape (n, channels, height, width), float32.
        y: labels 0 .. c - 1, shape (n,), int64.

    Example:
        >>> from ppvae.data import load
        >>> x, y = load("digits").valid
        >>> x.shape, y.shape
        (torch.Size([200, 1, 8, 8]), torch.Size([200]))
    """

    x: Tensor
    y: Tensor


@dataclass(frozen=True, kw_only=True)
class Origin(ABC):
    """What a data set looks like, and how its files are read.

    Attributes:
        shape: of one image, (channels, height, width).
        levels: number of grey levels of a pixel.
        num_classes: number of labels; 0 is known only once they are read.
        num_valid: images held out of the training set unless `load` is told otherwise.
    """

    shape: tuple[int, int, int]
    levels: int = 256
    num_classes: int = 10
    num_valid: int = 1000

    @abstractmethod
    def read(self, root: Path, *, download: bool) -> tuple[Split, Split]:
        """Read the training and the test set.

        Args:
            root: folder of the data sets.
            download: whether missing files may be fetched.

        Returns:
            Two splits whose images hold grey levels, shape (n, channels, height, width), uint8.

        Raises:
            FileNotFoundError: if files are missing.
            ValueError: if a file is damaged.
        """


@dataclass(frozen=True, kw_only=True)
class Embedded(Origin):
    """The 8x8 digits that come with scikit-learn, in an order fixed here; they have no official test set.

    Attributes:
        num_test: images held out for the test set.
    """

    num_test: int

    def read(self, root: Path, *, download: bool) -> tuple[Split, Split]:
        """Read the digits from the installed package; see `Origin.read`."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = permutation(len(digits.target), seed=0)
        x = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1)[order]
        y = torch.from_numpy(digits.target).long()[order]
        cut = len(y) - self.num_test
        return Split(x[:cut], y[:cut]), Split(x[cut:], y[cut:])


@dataclass(frozen=True, kw_only=True)
class Torchvision(Origin):
    """A data set in torchvision's layout.

    Attributes:
        dataset: name of the class in `torchvision.datasets`.
        folder: where its files lie, below the root.
        files: their names.
        url: where they come from.
        fault: what is wrong with a file, or "", given torchvision's class and the path.
        part: images and labels, given torchvision's class, the root and whether to read the training set.
    """

    dataset: str
    folder: str
    files: tuple[str, ...]
    url: str
    fault: Callable[[Any, Path], str]
    part: Callable[[Any, Path, bool], tuple[Any, Any]]

    def read(self, root: Path, *, download: bool) -> tuple[Split, Split]:
        """Read torchvision's files, fetching them if some are missing; see `Origin.read`."""
        import torchvision.datasets

        dataset = getattr(torchvision.datasets, self.dataset)
        self._fetch(dataset, root, download)
        paths = [root / self.folder / name for name in self.files]
        if faults := [f"{path} {fault}" for path in paths if (fault := self.fault(dataset, path))]:
            raise ValueError(f"{self.dataset} is damaged, delete and load again: {'; '.join(faults)}")
        return self._split(dataset, root, train=True), self._split(dataset, root, train=False)

    def _fetch(self, dataset: Any, root: Path, download: bool) -> None:
        """See that all files are there, without a look at the network if they are."""
        folder, reason = root / self.folder, None
        if download and self._missing(folder):
            try:
                dataset(root, download=True)
            # Whatever went wrong, from the resolver to the disk, what the user lacks is the files.
            except Exception as error:
                reason = error
        if missing := self._missing(folder):
            details = " ".join(f"{type(reason).__name__}: {reason}".split())
            failure = f" The download failed: {details}" if reason else ""
            raise FileNotFoundError(
                f"{self.dataset}: {folder} lacks {', '.join(missing)}. Use download=True where there is "
                f"a network, or put the unpacked files of {self.url} there.{failure}"
            ) from reason

    def _missing(self, folder: Path) -> list[str]:
        """Name the files that are not there."""
        return [name for name in self.files if not (folder / name).is_file()]

    def _split(self, dataset: Any, root: Path, *, train: bool) -> Split:
        """Turn one of torchvision's sets into tensors."""
        x, y = map(torch.as_tensor, self.part(dataset, root, train))
        channels, height, width = self.shape
        where = f"{self.dataset}: the {'training' if train else 'test'} set in {root / self.folder}"
        if x.shape[1:3] != (height, width) or x.shape[:1] != y.shape or len(y) == 0:
            raise ValueError(
                f"{where} must have {height}x{width} images and a label for each, "
                f"got shapes {tuple(x.shape)} and {tuple(y.shape)}"
            )
        if not 0 <= y.min() <= y.max() < self.num_classes:
            raise ValueError(
                f"{where} must have labels 0..{self.num_classes - 1}, got {int(y.min())} to {int(y.max())}"
            )
        # torchvision keeps colours last and leaves a single one out.
        return Split(x.reshape(-1, height, width, channels).movedim(-1, 1).contiguous(), y)


@dataclass(frozen=True, kw_only=True)
class Factored(Origin):
    """Some of the images that have known factors, drawn by a seed fixed here; their shape is the label.

    Attributes:
        source: what `load_factors` calls them.
        num_train: images for training and validation.
        num_test: images held out for the test set: the first of `FactorData.subset`.
    """

    source: str
    num_train: int = 20_000
    num_test: int = 2_000

    def read(self, root: Path, *, download: bool) -> tuple[Split, Split]:
        """Make the images, or read them from a file, which is never fetched; see `Origin.read`."""
        data = load_factors(self.source, root)
        rows = data.subset(self.num_test + self.num_train)
        shape = data.factors(rows)[:, data.names.index("shape")]
        test, train = (slice(None, self.num_test), slice(self.num_test, None))
        return Split(data.grey_levels(rows[train]), shape[train]), Split(data.grey_levels(rows[test]), shape[test])


def _idx_fault(dataset: Any, path: Path) -> str:
    """Compare an idx file with its own header: these files have no published checksum once unpacked."""
    ndim = int(path.name.removesuffix("-ubyte")[-1])
    with path.open("rb") as file:
        magic, sizes = file.read(4), file.read(4 * ndim)
    if magic != bytes((0, 0, 8, ndim)) or len(sizes) < 4 * ndim:
        return f"does not start like an idx{ndim}-ubyte file"
    expected = 4 + 4 * ndim + math.prod(struct.unpack(f">{ndim}I", sizes))
    size = path.stat().st_size
    return "" if size == expected else f"has {size} bytes where its header promises {expected}"


def _md5_fault(dataset: Any, path: Path) -> str:
    """Compare a pickled file with torchvision's checksum, without which it would not be safe to open."""
    from torchvision.datasets.utils import check_integrity

    checksums = {
        dataset.meta["filename"]: dataset.meta["md5"],
        **dict(dataset.train_list + dataset.test_list),
    }
    return "" if check_integrity(path, checksums[path.name]) else "does not have the published md5 checksum"


def _idx_part(dataset: Any, root: Path, train: bool) -> tuple[Any, Any]:
    """The files that were checked: torchvision's class would take a `processed/training.pt` in their place."""
    from torchvision.datasets.mnist import read_image_file, read_label_file

    stem = str(root / dataset.__name__ / "raw" / ("train" if train else "t10k"))
    return read_image_file(f"{stem}-images-idx3-ubyte"), read_label_file(f"{stem}-labels-idx1-ubyte")


def _pickled_part(dataset: Any, root: Path, train: bool) -> tuple[Any, Any]:
    part = dataset(root, train=train)
    return part.data, part.targets


def _mnist_like(dataset: str, url: str) -> Torchvision:
    """Describe a data set that comes in MNIST's four files."""
    files = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return Torchvision(
        dataset=dataset,
        shape=(1, 28, 28),
        folder=f"{dataset}/raw",
        files=tuple(f"{name}-ubyte" for name in files),
        url=url,
        fault=_idx_fault,
        part=_idx_part,
    )


DATASETS: dict[str, Origin] = {
    "digits": Embedded(shape=(1, 8, 8), levels=17, num_valid=200, num_test=300),
    "mnist": _mnist_like("MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
    "fashion": _mnist_like("FashionMNIST", "https://github.com/zalandoresearch/fashion-mnist"),
    "kmnist": _mnist_like("KMNIST", "http://codh.rois.ac.jp/kmnist/"),
    "cifar10": Torchvision(
        dataset="CIFAR10",
        shape=(3, 32, 32),
        folder="cifar-10-batches-py",
        files=(*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        fault=_md5_fault,
        part=_pickled_part,
    ),
    "sprites": Factored(source="sprites", shape=(1, 32, 32), levels=2, num_classes=3),
    "sprites64": Factored(source="sprites64", shape=(1, 64, 64), levels=2, num_classes=3),
    "dsprites": Factored(source="dsprites", shape=(1, 64, 64), levels=2, num_classes=3),
    "3dshapes": Factored(source="3dshapes", shape=(3, 64, 64), num_classes=4),
}
"""The data sets that `load` knows."""
