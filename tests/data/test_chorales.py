"""Rolls of notes written by hand, series that are padded and split; Bach's where music21 is installed."""

import importlib.util

import pytest
import torch

from ppvae.data import Series, load_chorales, padded_series
from ppvae.data import chorales as module
from ppvae.data.chorales import roll_of, split_series
from ppvae.storage import save_state

TUNE = """<?xml version="1.0"?>
<score-partwise version="3.1">
  <part-list><score-part id="P1"><part-name>S</part-name></score-part></part-list>
  <part id="P1"><measure number="1">
    <attributes><divisions>2</divisions><time><beats>4</beats><beat-type>4</beat-type></time></attributes>
    <note><pitch><step>C</step><octave>4</octave></pitch><duration>4</duration><type>half</type></note>
    <note><chord/><pitch><step>E</step><octave>4</octave></pitch><duration>4</duration><type>half</type></note>
    <note><pitch><step>D</step><octave>4</octave></pitch><duration>1</duration><type>eighth</type></note>
    <note><pitch><step>B</step><octave>3</octave></pitch><duration>1</duration><type>eighth</type></note>
    <note><rest/><duration>2</duration><type>quarter</type></note>
  </measure></part>
</score-partwise>
"""


def keys(roll):
    return [(21 + step.nonzero().flatten()).tolist() for step in roll]


def test_a_key_sounds_at_every_step_that_it_is_held_at():
    notes = [(60, 0.0, 2.0), (64, 1.0, 1.0), (67, 2.5, 0.5), (72, 2.5, 1.0)]
    assert keys(roll_of(notes)) == [[60], [60, 64], [], [72]]
    assert keys(roll_of(notes, 2)) == [[60], [60], [60, 64], [60, 64], [], [67, 72], [72]]


def test_thirds_of_a_quarter_that_are_rounded_stay_in_their_step():
    assert keys(roll_of([(60, 1 / 3, 2 / 3), (62, 2 / 3 + 1 / 3 + 1e-9, 1.0)])) == [[], [62]]


def test_notes_outside_the_keyboard_are_left_out():
    assert keys(roll_of([(20, 0.0, 1.0), (21, 0.0, 1.0), (108, 0.0, 1.0), (109, 0.0, 1.0)])) == [[21, 108]]
    assert roll_of([]).shape == (0, 88)


def test_series_are_padded_and_split_once():
    series = padded_series([torch.full((length, 2), float(length)) for length in range(1, 11)])
    assert series.lengths.tolist() == list(range(1, 11))
    data = split_series(series, num_valid=2)
    lengths = [part.lengths.tolist() for part in (data.train, data.valid, data.test)]
    assert [len(part) for part in lengths] == [6, 2, 2]
    assert sorted(length for part in lengths for length in part) == list(range(1, 11))
    for x, own in (data.train, data.valid, data.test):
        assert x.shape[1] == own.max()
        assert torch.equal(x.sum((1, 2)), 2.0 * own**2)  # a series of m steps holds m at each
    with pytest.raises(ValueError, match="series must have steps"):
        padded_series([torch.zeros(0, 2)])


def kept(root, lengths=(3, 161, 2, 5, 4, 7)):
    """What a first reading leaves below a root."""
    rolls = padded_series([torch.full((length, 88), True) for length in lengths])
    (root / "chorales").mkdir()
    return save_state(root / "chorales" / "rolls-1.safetensors", {**rolls._asdict(), "music21": "0"})


def test_what_was_read_before_needs_no_music21(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    kept(tmp_path)
    data = load_chorales(tmp_path)
    assert isinstance(data.train, Series)
    assert sorted(torch.cat([part.lengths for part in (data.train, data.valid, data.test)]).tolist()) == [2, 3, 4, 5, 7]


def test_what_is_missing_or_damaged_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install music21"):
        load_chorales(tmp_path)
    file = kept(tmp_path)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"rolls-1\.safetensors"):
        load_chorales(tmp_path)
    with pytest.raises(ValueError, match="steps_per_quarter"):
        load_chorales(tmp_path, steps_per_quarter=0)
    with pytest.raises(TypeError, match="root"):
        load_chorales(3)


needs_music21 = pytest.mark.skipif(importlib.util.find_spec("music21") is None, reason="music21 is not installed")


@needs_music21
@pytest.mark.filterwarnings("ignore")
def test_a_file_is_read_as_it_sounds(tmp_path):
    file = tmp_path / "bwv0.xml"
    file.write_text(TUNE)
    assert keys(roll_of(module._notes(file), 2)) == [[60, 64]] * 4 + [[62], [59]]


@needs_music21
@pytest.mark.filterwarnings("ignore")
def test_a_chorale_is_what_its_four_voices_hold_at_each_quarter():
    from music21 import converter

    file = module._folder() / "bwv66.6.mxl"
    roll = roll_of(module._notes(file))
    voices = [part.flatten().notesAndRests.stream() for part in converter.parse(file).parts]
    assert (len(roll), len(voices)) == (36, 4)
    for quarter, sounding in enumerate(keys(roll)):
        held = (voice.getElementAtOrBefore(quarter) for voice in voices)
        assert sounding == sorted({note.pitch.midi for note in held if note.isNote})
