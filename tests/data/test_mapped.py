"""Data that memory does not hold lie in a file without a name, and are the same data."""

import os

import pytest
import torch
from PIL import Image

from ppvae.data import load, mapped
from ppvae.data.mapped import room


@pytest.fixture
def little_memory(monkeypatch):
    monkeypatch.setattr(mapped, "memory_bytes", lambda: 1000)


def in_a_file(tensor):
    address = tensor.untyped_storage().data_ptr()
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            low, high = (int(place, 16) for place in line.split()[0].split("-"))
            if low <= address < high:
                return "(deleted)" in line
    return False


def folder_of_pictures(root):
    for i in range(40):
        colour = (6 * i, 255 - 6 * i, (i * i) % 256)
        Image.new("RGB", (9, 7), colour).save(root / f"{i:02}.png")


def test_what_fits_is_in_memory_and_what_does_not_in_a_file_that_has_no_name(tmp_path, little_memory):
    small, large = (room((n, 10), torch.float32, tmp_path, name="root") for n in (10, 100))
    assert not in_a_file(small)
    assert in_a_file(large)
    assert not list(tmp_path.iterdir())
    large.copy_(torch.arange(1000.0).view(100, 10))
    torch.testing.assert_close(large[50], torch.arange(500.0, 510.0), rtol=0, atol=0)


def test_a_folder_larger_than_memory_is_the_same_data_set(tmp_path, monkeypatch):
    folder_of_pictures(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    held = load("folder", tmp_path)
    monkeypatch.setattr(mapped, "memory_bytes", lambda: 1000)
    read = load("folder", tmp_path)
    assert in_a_file(read.train.x)
    for part in ("train", "valid", "test"):
        for ours, theirs in zip(getattr(read, part), getattr(held, part), strict=True):
            assert torch.equal(ours, theirs)
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_disk_without_room_is_named_before_anything_is_decoded(tmp_path, monkeypatch, little_memory):
    def full(*_):
        raise OSError(28, os.strerror(28))

    folder_of_pictures(tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", full)
    message = r"root: the data take .* GiB, .* has no room .*: No space .* ppvae.data.Pictures takes none"
    with pytest.raises(ValueError, match=message):
        load("folder", tmp_path)
    assert len(list(tmp_path.iterdir())) == 40
