"""Random pairs by their seeds."""

import random

import torch

from tests.referee.case import Case
from tests.referee.conjugate_cases import conjugate
from tests.referee.gaussian_cases import hierarchy, series
from tests.referee.mixture_cases import mixture

KINDS = [hierarchy, mixture, series, conjugate, hierarchy]


def draw(seed: int) -> Case:
    """The pair of a seed; the same in every process."""
    torch.manual_seed(seed)
    return KINDS[seed % len(KINDS)](random.Random(seed))
