"""Random streams that are functions of the seeds they are given, and of nothing else."""

import numpy as np
import torch


def stream(seed: int, *key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator for one stream of a seed.

    Neighbouring seeds and keys are hashed apart: PyTorch's CPU generator keeps only 32 bits of its seed.

    Args:
        seed: the user's seed, at least 0.
        *key: which of the seed's streams, for instance an epoch.
        device: where the numbers will be drawn.

    Returns:
        A generator that owes nothing to the global one.
    """
    word = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(word))


def permutation(n: int, seed: int) -> torch.Tensor:
    """Return a permutation of `n` rows that stays the same across machines and releases.

    It decides which data are held out, so it comes from NumPy's `RandomState`, whose streams NEP 19 froze.

    Args:
        n: number of rows.
        seed: the user's seed, at least 0.

    Returns:
        Row numbers, shape (n,), int64.
    """
    return torch.from_numpy(np.random.RandomState(np.random.MT19937(seed)).permutation(n).astype(np.int64))
