"""Bach's chorales as piano rolls, read from the files that come with music21; and series in three splits."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppvae._validate import check_count, check_path
from ppvae.rng import permutation
from ppvae.storage import load_state, save_state

KEYS = 88
"""Keys of a piano."""
LOWEST = 21
"""The MIDI number of the first one, A0."""
SHARE = 5
"""One chorale of so many is for validation, and as many for testing."""
LONGEST = 160
"""Quarters of the longest chorale that is taken, as in the papers; four are longer, up to 272."""
SUFFIXES = (".mxl", ".xml", ".krn")


class Series(NamedTuple):
    """Series of several lengths, padded with zeros.

    Attributes:
        x: values, (n, T, d).
        lengths: how many steps of each there are, (n,), int64.
    """

    x: Tensor
    lengths: Tensor


@dataclass(frozen=True, eq=False)
class SeriesData:
    """Series, split once.

    Attributes:
        train: what to fit.
        valid: what to choose models with.
        test: what to report.
    """

    train: Series
    valid: Series
    test: Series


def load_chorales(root: str | os.PathLike[str] = "data", *, steps_per_quarter: int = 1) -> SeriesData:
    """The chorales of J. S. Bach that music21 ships, as binary rolls of 88 keys.

    A key is 1 at a step where a voice holds it, whatever the voice, also where it was struck before. The chorales are
    in their own keys, not transposed; repeats are not written out. Of equal rolls one is kept, and none longer than 160
    quarters: 407 of 413 files. By a fixed seed a fifth is for validation and a fifth for testing. The papers have
    another collection and other splits (Boulanger-Lewandowski et al. 2012: 229, 76 and 77 chorales): figures of these
    are near theirs, and not to be compared to a decimal.

    Reading the files takes music21 minutes; what was read is kept below `root`, and needs it no more.

    Args:
        root: folder of the data sets.
        steps_per_quarter: steps in a quarter note: 1 as in the papers, 2 for eighths.

    Raises:
        FileNotFoundError: where music21 is not installed and nothing was read before.
        TypeError: where `root` is no path.
        ValueError: where `steps_per_quarter` is no positive int, or what was kept is damaged.

    References:
        Modeling Temporal Dependencies in High-Dimensional Sequences (Boulanger-Lewandowski et al. 2012), arXiv
        1206.6392. music21: a toolkit for computer-aided musicology (Cuthbert & Ariza 2010).
    """
    check_count("steps_per_quarter", steps_per_quarter)
    kept = check_path("root", root).expanduser().absolute() / "chorales" / f"rolls-{steps_per_quarter}.safetensors"
    if not kept.is_file():
        rolls = _read(steps_per_quarter)
        kept.parent.mkdir(parents=True, exist_ok=True)
        padded = padded_series(rolls)
        save_state(kept, {"x": padded.x.bool(), "lengths": padded.lengths, "music21": version("music21")})
    state = load_state(kept)
    if not isinstance(state, dict) or not {"x", "lengths"} <= state.keys():
        raise ValueError(f"root: {kept} does not hold rolls, delete it and load again")
    taken = state["lengths"] <= LONGEST * steps_per_quarter
    series = Series(state["x"][taken].float(), state["lengths"][taken])
    return split_series(series, num_valid=len(series.x) // SHARE)


def padded_series(series: Iterable[Tensor]) -> Series:
    """Series (t, d) of several lengths as one tensor, in their order.

    Args:
        series: tensors (t, d), each of its own t ≥ 1.

    Raises:
        ValueError: where there is none, or one has no step.

    Example:
        >>> padded_series([torch.ones(2, 3), torch.ones(5, 3)]).x.shape
        torch.Size([2, 5, 3])
    """
    rows = list(series)
    lengths = torch.tensor([len(row) for row in rows])
    if not rows or not bool((lengths > 0).all()):
        raise ValueError(f"series must have steps, got {len(rows)} of lengths {lengths.tolist()}")
    return Series(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths)


def split_series(series: Series, *, num_valid: int) -> SeriesData:
    """Series in three splits, by a fixed seed; each is padded to its own longest.

    Args:
        series: all of them.
        num_valid: how many are for validation, and as many for testing.
    """
    order = permutation(len(series.x), seed=0)
    parts = order.split([len(order) - 2 * num_valid, num_valid, num_valid])
    return SeriesData(*(Series(series.x[rows, : series.lengths[rows].max()], series.lengths[rows]) for rows in parts))


def roll_of(notes: Iterable[tuple[int, float, float]], steps_per_quarter: int = 1) -> Tensor:
    """A binary roll of 88 keys, (T, 88), of notes.

    Args:
        notes: the MIDI number of each, and in quarters when it begins and how long it is held.
        steps_per_quarter: steps in a quarter.

    Example:
        >>> roll_of([(60, 0.0, 2.0), (64, 1.0, 1.0)]).nonzero().tolist()  # middle C is key 39
        [[0, 39], [1, 39], [1, 43]]
    """
    held = []
    for pitch, start, duration in notes:
        first, last = (math.ceil(steps_per_quarter * at - 1e-6) for at in (start, start + duration))
        held += [(step, pitch - LOWEST) for step in range(first, last) if 0 <= pitch - LOWEST < KEYS]
    roll = torch.zeros(1 + max((step for step, _ in held), default=-1), KEYS)
    for step, key in held:
        roll[step, key] = 1
    return roll


def _read(steps_per_quarter: int) -> list[Tensor]:
    """The rolls of the chorales, without those that are equal to an earlier one."""
    files = sorted(file for file in _folder().glob("bwv*") if file.suffix in SUFFIXES)
    rolls = (roll_of(_notes(file), steps_per_quarter) for file in files)
    return list({(len(roll), roll.numpy().tobytes()): roll for roll in rolls}.values())


def _folder() -> Path:
    """Where music21 has its chorales."""
    spec = find_spec("music21")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "the chorales are read from the files of music21, which is not installed: pip install music21, or "
            "pip install 'ppvae[chorales]'"
        )
    return Path(spec.origin).parent / "corpus" / "bach"


def _notes(file: Path) -> list[tuple[int, float, float]]:
    """The notes of a file as they sound: MIDI number, start and duration in quarters."""
    from music21 import converter, harmony

    score: Any = converter.parse(file, forceSource=True)
    notes = (note for note in score.toSoundingPitch().flatten().notes if not isinstance(note, harmony.Harmony))
    return [(pitch.midi, float(note.offset), float(note.quarterLength)) for note in notes for pitch in note.pitches]
