"""Points of many dimensions brought to two."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST_FOR_TSNE = 5


def principal_components(points: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Returns the points' mean (k,), first two principal axes (k, 2), and the parts of variance they explain."""
    mean = points.mean(axis=0, dtype=np.float64)
    centred = points.astype(np.float64) - mean
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    if len(singular) < 2:  # a single point has one direction only: the second explains nothing
        singular, axes = np.append(singular, 0.0), np.vstack([axes, np.zeros_like(axes)])
    # An axis has no sign of its own: the largest loading is made positive, so that a picture can be redrawn.
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1, keepdims=True), axis=1)
    basis = (axes * np.where(largest < 0, -1.0, 1.0))[:2].T
    total = float((singular**2).sum())
    return mean, basis, singular[:2] ** 2 / (total or 1.0)


def tsne_of(z: NDArray[Any], plane: NDArray[Any]) -> NDArray[Any]:
    """Returns points (n, 2) whose neighbours are those of z (n, k), found from the points in the plane on."""
    from sklearn.manifold import TSNE

    start = plane.astype(np.float32) * (1e-4 / (float(plane[:, 0].std()) or 1.0))
    perplexity = min(30.0, (len(z) - 1) / 3)
    return TSNE(perplexity=perplexity, init=start, max_iter=500, random_state=0).fit_transform(z.astype(np.float32))
