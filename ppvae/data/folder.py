"""A folder of pictures as a data set: PNG and JPEG files, in a folder for each class or all in one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppvae._validate import check_count, check_flag
from ppvae.data.mapped import room
from ppvae.data.origins import Origin, Split
from ppvae.rng import permutation

SUFFIXES = (".png", ".jpg", ".jpeg")
AT_ONCE = 1024
"""Pictures that are decoded before they go where they belong."""
TEST_SHARE = 10
"""One picture of so many is a test picture, where there is no folder of them."""


@dataclass(frozen=True, kw_only=True)
class Folder(Origin):
    """Pictures of a folder: `train/` and `test/` where it has them, else a tenth, drawn by a fixed seed, for testing.

    Each folder in it is a class, numbered in the order of the names; without any there is one class.

    Attributes:
        size: height and width that pictures are brought to: scaled until the shorter side fits, and cut around the
            centre. None takes them as they are, all of one size.
        grey: whether colours are dropped; None is where no picture has any.
    """

    shape: tuple[int, int, int] = (0, 0, 0)
    num_classes: int = 0
    size: tuple[int, int] | None = None
    grey: bool | None = None

    def read(self, root: Path, *, download: bool) -> tuple[Split, Split]:
        """Read the pictures; see `Origin.read`. Their number of classes is that of the labels."""
        files, labels, train, test = listed(root)
        form = self.form(files)
        parts = [(_decoded([files[i] for i in part.tolist()], *form, root), labels[part]) for part in (train, test)]
        return Split(*parts[0]), Split(*parts[1])

    def form(self, files: Sequence[Path]) -> tuple[tuple[int, int], bool]:
        """Height and width that all pictures are brought to, and whether they are grey; read off their headers."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            kinds = list(pool.map(_kind, files))
        grey = all(kind[1] for kind in kinds) if self.grey is None else self.grey
        return self._common_size(files, [kind[0] for kind in kinds]), grey

    def _common_size(self, files: Sequence[Path], sizes: list[tuple[int, int]]) -> tuple[int, int]:
        if self.size is not None:
            return self.size
        counts = Counter(sizes)
        if len(counts) > 1:
            (usual, _), *others = counts.most_common()
            odd = next(file for file, size in zip(files, sizes, strict=True) if size == others[0][0])
            raise ValueError(
                f"size: the pictures are of {len(counts)} sizes, most {usual[0]}x{usual[1]} and {odd} "
                f"{others[0][0][0]}x{others[0][0][1]}; size=64 scales and cuts all of them to 64x64"
            )
        return sizes[0]


def folder_of(size: int | tuple[int, int] | None, grey: bool | None) -> Folder:
    """The origin of a folder of pictures with these options, checked."""
    if grey is not None:
        check_flag("grey", grey)
    if size is None:
        return Folder(grey=grey)
    height, width = size if isinstance(size, tuple) and len(size) == 2 else (size, size)
    return Folder(size=(check_count("size", height), check_count("size", width)), grey=grey)


def listed(root: Path) -> tuple[list[Path], Tensor, Tensor, Tensor]:
    """The pictures of a folder with their classes (n,), and which are to train on and to test on, by number.

    Raises:
        FileNotFoundError: where there are none.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"root: there is no folder {root}")
    apart = all((root / part).is_dir() for part in ("train", "test"))
    found = {folder: _pictures(folder) for folder in ((root / "train", root / "test") if apart else (root,))}
    if empty := [folder for folder, files in found.items() if not files]:
        raise FileNotFoundError(f"root: {empty[0]} has no {', '.join(SUFFIXES)} files")
    names = [_class_of(file, folder) for folder, files in found.items() for file in files]
    classes = {name: number for number, name in enumerate(sorted(set(names)))}
    labels = torch.tensor([classes[name] for name in names])
    order = torch.arange(len(names)) if apart else permutation(len(names), seed=0)
    num_test = len(found[root / "test"]) if apart else max(1, len(names) // TEST_SHARE)
    return [file for files in found.values() for file in files], labels, order[:-num_test], order[-num_test:]


def _decoded(files: Sequence[Path], size: tuple[int, int], grey: bool, root: Path) -> Tensor:
    """Pictures as grey levels, (n, channels, height, width), uint8."""
    levels = room((len(files), 1 if grey else 3, *size), torch.uint8, root, name="root")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, len(files), AT_ONCE):
            decoded = list(pool.map(partial(decode, size=size, grey=grey), files[first : first + AT_ONCE]))
            levels[first : first + AT_ONCE] = torch.from_numpy(np.stack(decoded))
    return levels


def _pictures(folder: Path) -> list[Path]:
    """Its pictures in the order of their names, hidden ones left out."""
    files = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts))


def _class_of(file: Path, folder: Path) -> str:
    """The folder that it lies in; "" where that is the root."""
    above = file.relative_to(folder).parts[:-1]
    return above[0] if above else ""


@contextmanager
def _readable(file: Path) -> Iterator[Any]:
    """An open picture.

    Raises:
        ValueError: where it is damaged.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"root: {file} is damaged, or no picture: {error}") from error


def _opened(file: Path) -> Any:
    """A picture, upright, without transparency: over white where it has any."""
    from PIL import Image, ImageOps

    with _readable(file) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB")
    return upright


def _kind(file: Path) -> tuple[tuple[int, int], bool]:
    """The height and width of a picture, upright, and whether it is grey; read off its header, not decoded."""
    from PIL import ExifTags

    with _readable(file) as image:
        sideways = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        grey = (image.mode in ("1", "L") or image.mode.startswith("I")) and not image.has_transparency_data
        return ((image.width, image.height) if sideways else (image.height, image.width)), grey


def decode(file: Path, *, size: tuple[int, int], grey: bool) -> np.ndarray[Any, Any]:
    """A picture of this size, (channels, height, width)."""
    from PIL import Image, ImageOps

    image = _opened(file)
    if image.mode.startswith("I"):  # 16 bits, of which Pillow would cut off what is above 8
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    image = image.convert("L" if grey else "RGB")
    if (image.height, image.width) != size:
        image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(*size, -1).transpose(2, 0, 1)
