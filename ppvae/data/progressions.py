"""Generated piano rolls: a hidden Markov model of chords, whose likelihood is known."""

from __future__ import annotations

import torch
from torch import Tensor

from ppvae._validate import check_count, check_seed
from ppvae.data.chorales import KEYS, LOWEST, Series
from ppvae.nn.sequence import check_lengths, within

SCALE = (0, 2, 4, 5, 7, 9, 11)
"""Semitones of C major above C."""
NEXT = (
    (4, 1, 0, 3, 3, 1, 0),
    (0, 4, 0, 0, 4, 0, 1),
    (0, 0, 4, 2, 0, 3, 0),
    (2, 1, 0, 4, 3, 0, 1),
    (4, 0, 0, 0, 4, 1, 0),
    (0, 2, 1, 2, 1, 4, 0),
    (4, 0, 0, 0, 1, 0, 4),
)
"""How often a chord of the seven degrees, a row, is followed by each."""
HELD, PASSING, STRAY = 0.95, 0.02, 0.001
"""Probability that a key of the chord sounds, another of the scale within its compass, and any other."""


class Progressions:
    """Series of chords in four voices: a stand-in for chorales of which log p(x) is known exactly.

    A state is one of the seven triads of C major in one of three positions of its upper voices. Chords follow each
    other much as in a hymn, and are held with probability 0.33 to 0.44; the position stays with probability 0.8. Given
    its state every key of a step sounds or not, independently: the four of the chord mostly, now and then a passing
    tone. So the likelihood is that of a hidden Markov model, summed over its 21 states step by step.

    Example:
        >>> process = Progressions()
        >>> x, lengths = process.draw(100, num_steps=32)
        >>> x.shape, process.log_prob(x, lengths).shape
        (torch.Size([100, 32, 88]), torch.Size([100]))
    """

    def __init__(self) -> None:
        chords = torch.tensor(NEXT, dtype=torch.float64)
        chords = chords / chords.sum(1, keepdim=True)
        position = 0.7 * torch.eye(3).double() + 0.1
        self.transition = torch.kron(chords, position)  # (21, 21): a state is 3 · degree + position
        self.sounds = torch.stack([_sounds(degree, turn) for degree in range(7) for turn in range(3)])
        first = torch.zeros(7, 3).double()
        first[0] = 1 / 3  # it begins on the tonic
        self.first = first.flatten()

    def draw(self, n: int, *, num_steps: int = 32, seed: int = 0) -> Series:
        """Draws series whose lengths are equally likely from a quarter of the steps to all of them.

        Args:
            n: how many.
            num_steps: T, the greatest length.
            seed: of all randomness here.

        Returns:
            Binary rolls (n, T, 88), zero after their lengths (n,).
        """
        check_count("n", n)
        check_count("num_steps", num_steps)
        generator = torch.Generator().manual_seed(check_seed(seed))
        lengths = torch.randint(max(1, num_steps // 4), num_steps + 1, (n,), generator=generator)
        states = [torch.multinomial(self.first, n, replacement=True, generator=generator)]
        for _ in range(num_steps - 1):
            following = self.transition[states[-1]]
            states.append(torch.multinomial(following, 1, generator=generator).squeeze(-1))
        sounds = torch.bernoulli(self.sounds[torch.stack(states, 1)], generator=generator).float()
        return Series(sounds * within(lengths, num_steps).unsqueeze(-1), lengths)

    def log_prob(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Log p(x) of series, exactly: the forward algorithm.

        Args:
            x: binary rolls (n, T, 88).
            lengths: how many steps of each count, (n,).

        Returns:
            Shape (n,), nats, in double precision.

        Raises:
            TypeError: where lengths are no integers.
            ValueError: where the rolls are of another shape, or a length is out of range.
        """
        if x.dim() != 3 or x.shape[-1] != KEYS:
            raise ValueError(f"x must be of shape (n, steps, {KEYS}), got {tuple(x.shape)}")
        check_lengths(lengths, x.shape[1])
        x, there = x.double(), within(lengths, x.shape[1])
        given = x @ (self.sounds.log() - (-self.sounds).log1p()).T + (-self.sounds).log1p().sum(-1)  # (n, T, 21)
        forward = self.first.log() + given[:, 0]
        for t in range(1, x.shape[1]):
            moved = (forward.unsqueeze(-1) + self.transition.log()).logsumexp(1) + given[:, t]
            forward = torch.where(there[:, t, None], moved, forward)
        return forward.logsumexp(-1)


def _sounds(degree: int, turn: int) -> Tensor:
    """The probability of each key to sound in a triad of this degree, its upper voices turned so often: (88,)."""
    triad = [SCALE[(degree + step) % 7] for step in (0, 2, 4)]
    upper = triad[turn:] + triad[:turn]
    pitches = [48 + triad[0] - (12 if triad[0] > 6 else 0)]
    for tone in upper:
        above = max(pitches[-1], 54)
        pitches.append(above + 1 + (tone - above - 1) % 12)
    probability = torch.full((KEYS,), STRAY, dtype=torch.float64)
    for pitch in range(min(pitches), max(pitches) + 1):
        if pitch % 12 in SCALE:
            probability[pitch - LOWEST] = PASSING
    probability[torch.tensor(pitches) - LOWEST] = HELD
    return probability
