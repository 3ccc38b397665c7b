"""Data sets of images with known factors by name: the generated sprites, and the files of published ones."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppvae._validate import check_memory, check_path
from ppvae.data.factors import FactorData, StoredFactors
from ppvae.data.sprites import Sprites

DSPRITES = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
SHAPES3D = "3dshapes.h5"
URLS = {
    DSPRITES: "https://github.com/google-deepmind/dsprites-dataset",
    SHAPES3D: "https://github.com/google-deepmind/3d-shapes",
}
FACTOR_DATA = ("sprites", "sprites64", "dsprites", "3dshapes")
"""The data sets that `load_factors` knows."""
SHAPES3D_FACTORS = ("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation")
"""The columns of the labels of 3D shapes."""


def load_factors(name: str, root: str | os.PathLike[str] = "data") -> FactorData:
    """Opens a data set of images with known factors; only the generated ones need no file.

    | name | images |
    | --- | --- |
    | "sprites" | `Sprites(32)`, 184,320 of 32×32 pixels |
    | "sprites64" | `Sprites(64)`, 737,280 of 64×64 pixels |
    | "dsprites" | dSprites, of its .npz below `root`: 737,280 of 64×64, which take 3 GB of memory |
    | "3dshapes" | 3D shapes, of its .h5 below `root`: 480,000 in colour of 64×64, 6 GB; needs h5py |

    No file is fetched. The metadata of dSprites are a pickle: they are not read.

    Args:
        name: one of these.
        root: folder of the data sets.

    Raises:
        FileNotFoundError: where a file is missing, with where it is to be had.
        TypeError: where `root` is no path.
        ValueError: where the name is unknown, a file does not hold what it should, or h5py is needed and not installed.

    References:
        dSprites: disentanglement testing sprites dataset (Matthey et al. 2017). 3D shapes dataset (Burgess & Kim 2018).

    Example:
        >>> len(load_factors("sprites"))
        184320
    """
    if not isinstance(name, str) or name not in FACTOR_DATA:
        raise ValueError(f"name must be one of {', '.join(FACTOR_DATA)}; got {name!r}")
    folder = check_path("root", root).expanduser().absolute()
    if name in ("sprites", "sprites64"):
        return Sprites(32 if name == "sprites" else 64)
    path = folder / (DSPRITES if name == "dsprites" else SHAPES3D)
    if not path.is_file():
        raise FileNotFoundError(f"{name}: there is no {path}; it is to be had from {URLS[path.name]}")
    return read_dsprites(path) if name == "dsprites" else read_3dshapes(path)


def read_dsprites(path: Path) -> StoredFactors:
    """Reads the images of dSprites' .npz; no array of it is unpickled.

    Raises:
        ValueError: where the file is damaged, or its images are not in the order of its factors.
    """
    try:
        check_memory("path", path, path.stat().st_size)
        with np.load(path, allow_pickle=False) as file:
            classes, pixels = file["latents_classes"], file["imgs"]
    except (zipfile.BadZipFile, KeyError, OSError, ValueError) as error:
        raise ValueError(f"{path} is no file of dSprites: {error}") from error
    if classes.ndim != 2 or classes.shape[1] != 6 or pixels.ndim != 3 or len(pixels) != len(classes):
        raise ValueError(
            f"{path} must hold latents_classes (N, 6) and imgs (N, h, w), got {classes.shape} and {pixels.shape}"
        )
    _check_order(path, classes)
    sizes = (classes.max(0) + 1).tolist()[1:]  # the colour is white
    names = ("shape", "scale", "orientation", "x", "y")
    images = torch.from_numpy(pixels.astype(np.uint8, copy=False)).unsqueeze(1)
    return StoredFactors(images, dict(zip(names, sizes, strict=True)), categorical=["shape"], levels=2)


def read_3dshapes(path: Path) -> StoredFactors:
    """Reads the images of 3D shapes' .h5, colours first.

    Raises:
        ValueError: where h5py is not installed, or the file is damaged or its images not in the order of its factors.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ValueError("h5py, which reads 3dshapes, is not installed: pip install h5py") from error
    try:
        check_memory("path", path, path.stat().st_size)
        with h5py.File(path, "r") as file:
            labels, pixels = file["labels"][()], file["images"][()]
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(f"{path} is no file of 3D shapes: {error}") from error
    if labels.ndim != 2 or labels.shape[1] != 6 or pixels.ndim != 4 or len(pixels) != len(labels):
        raise ValueError(
            f"{path} must hold labels (N, 6) and images (N, h, w, c), got {labels.shape} and {pixels.shape}"
        )
    classes = np.stack([np.unique(column, return_inverse=True)[1] for column in labels.T], 1)
    _check_order(path, classes)
    sizes = dict(zip(SHAPES3D_FACTORS, (classes.max(0) + 1).tolist(), strict=True))
    return StoredFactors(torch.from_numpy(pixels).movedim(-1, 1), sizes, categorical=["shape"])


def _check_order(path: Path, classes: np.ndarray[Any, Any]) -> None:
    """Checks that the rows are all combinations of the factors, the last one fastest."""
    sizes = classes.max(0) + 1
    rows = np.zeros(len(classes), dtype=np.int64)
    for column, size in zip(classes.T, sizes, strict=True):
        rows = rows * size + column
    if len(classes) != sizes.prod() or not (rows == np.arange(len(classes))).all():
        raise ValueError(f"{path}: the images are not in the order of all combinations of their factors")
